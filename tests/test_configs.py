"""Every config builds, and its header tells what a reader needs."""

import ast
import importlib.util
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from ddjax.models import biggan

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(
    path
    for path in (ROOT / "configs").glob("*.py")
    if path.stem not in ("common", "__init__")
)


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def root_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


# What stands behind the colon: every choice that each config offers.
IPCS = {
    "tiny": [],
    "cifar10": [1, 10, 50],
    "cifar100": [1, 10, 50],
    "tiny_imagenet": [1, 10, 50],
    "imagenet_subset": [1, 10],
    "imagenet1k": [1, 10],
    "mnist": [1, 10, 50],
    "fashion_mnist": [1, 10, 50],
    "svhn": [1, 10, 50],
    "covid19": [1, 10],
    "folder": [1, 10],
}
FIRST = {"imagenet_subset": "woof", "folder": "some/pictures, of=mine"}


def arguments(name):
    first = FIRST.get(name, "")
    yield first
    for ipc in IPCS[name]:
        for size in ("full", "small"):
            words = [first] if first else []
            yield ",".join([*words, f"ipc={ipc}", f"size={size}"])


CHOICES = [
    (path, argument) for path in CONFIGS for argument in arguments(path.stem)
]


@pytest.mark.parametrize(
    "path, argument",
    CHOICES,
    ids=[f"{path.stem}:{argument}" for path, argument in CHOICES],
)
def test_config_builds_and_is_locked(path, argument):
    from configs import common

    module = load(path)
    config = module.get_config(argument) if argument else module.get_config()
    assert isinstance(config, ConfigDict) and config.is_locked
    assert list(common.flat(config)) == list(common.FIELDS)
    for field, value in common.flat(config).items():
        assert isinstance(value, type(common.FIELDS[field].default)), field
    if "ipc=" in argument:
        assert f"ipc={config.iadd.ipc}," in argument
        assert (config.model.width == 128) == ("size=full" in argument)
    # What the run will check at once, once its data are there.
    last = config.iadd.max_start + config.iadd.span
    assert last <= config.teacher.epochs
    if path.stem == "folder":
        assert config.data.data_dir == FIRST["folder"]


def test_published_hyperparameters():
    """Some cells of the table in MTT's appendix."""
    find = {path.stem: load(path).get_config for path in CONFIGS}
    config = find["cifar10"]("ipc=10")
    assert (config.iadd.inner_steps, config.iadd.max_start) == (30, 20)
    assert config.data.preprocess == "zca"
    assert config.iadd.learning_rate == 1e-3
    assert find["cifar10"]("ipc=50").data.preprocess == "standardise"
    config = find["cifar100"]("ipc=50")
    assert (config.iadd.inner_steps, config.iadd.batch_size) == (80, 125)
    assert config.data.preprocess == "zca"
    config = find["tiny_imagenet"]("ipc=50")
    assert (config.iadd.image_step, config.iadd.batch_size) == (1e4, 300)
    config = find["imagenet_subset"]("meow,ipc=10")
    assert (config.iadd.image_step, config.model.depth) == (1e5, 5)
    assert config.data.class_names.split(",")[5] == "lion"
    assert config.data.classes.split(",")[0] == "n02123045"


@pytest.mark.parametrize(
    "name, argument, said",
    [
        ("cifar10", "ipc=7", "ipc=7 has no hyperparameters here: choose 1, 10"),
        ("cifar10", "size=tiny", "size=tiny: choose full or small"),
        ("cifar10", "10", "takes ipc= and size= behind the colon"),
        ("cifar10", "ipc=", "ipc= has no"),
        ("imagenet_subset", "", "needs a subset .nette, woof"),
        ("imagenet_subset", "wool,ipc=1", "unknown ImageNet subset 'wool'"),
        ("folder", "ipc=1", "needs the path of a folder"),
        ("folder", "none,minute=3", "'minute=3' is nothing .* ipc=, minutes="),
    ],
)
def test_wrong_arguments(name, argument, said):
    path = next(path for path in CONFIGS if path.stem == name)
    with pytest.raises(Exception, match=said):
        load(path).get_config(argument)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_header_names_paper_result_cost_and_command(path):
    header = ast.get_docstring(ast.parse(path.read_text()))
    for word in ("Data", "Paper", "Expected", "Cost", "Command"):
        assert f"\n{word} " in header
    assert f"--config=configs/{path.name}" in header
    assert "TO_FILL" not in header


def test_a_wrong_field_cannot_be_set():
    from configs import common

    with pytest.raises(AttributeError, match="ipc"):
        common.base().iadd.ipcc = 1


def test_the_generator_of_each_config_can_be():
    """Noise that splits between the blocks, attention where features are."""
    shapes = set()
    for path, argument in CHOICES:
        config = load(path).get_config(*([argument] if argument else []))
        # Sets that come in one size of their own do not say it.
        known = {"digits": 8, "tiny_imagenet": 64}
        known |= {"mnist": 28, "fashion_mnist": 28}
        side = config.data.size or known.get(config.data.source, 32)
        part = config.gan
        fields = (part.width, part.noise, part.embedding, part.attention)
        shapes.add((side, *fields))
    assert len(shapes) > 4
    for side, width, noise, embedding, attention in shapes:
        shape = dict(num_classes=5, size=side, width=width, attention=attention)
        for module in (
            biggan.Generator(noise=noise, embedding=embedding, **shape),
            biggan.Critic(**shape),
        ):
            params, _ = jax.eval_shape(
                lambda: biggan.initialise(module, jax.random.key(0), 3)
            )
            assert ("attention" in params) == bool(attention)
