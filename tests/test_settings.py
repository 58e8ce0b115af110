"""Settings: every field once, and what is refused in a sentence."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from ddjax import presets, settings
from ddjax.settings import Iadd, Settings
from ddjax.types import InputError


def test_fields_are_those_of_the_settings_in_order():
    found = settings.fields()
    assert [field.name for field in found] == list(Settings().flat())
    assert {field.name: field.default for field in found} == Settings().flat()
    assert all(field.meaning for field in found)
    assert found[0].name == "seed" and found[-1].name.startswith("log.")


def test_there_and_back():
    changed = Settings.of({"iadd.ipc": 10, "iadd.importance.bound": 2})
    assert (changed.iadd.ipc, changed.iadd.importance.bound) == (10, 2.0)
    assert Settings.of(changed.flat()) == changed
    assert changed.changed({"seed": 3}).iadd.ipc == 10
    # As JSON gives it back.
    bounds = {"iadd.learning_rate_bounds": [1e-5, 0.5]}
    assert Settings.of(bounds).iadd.learning_rate_bounds == (1e-5, 0.5)


def test_baselines_have_one_order():
    def names(joined):
        return Settings.of(
            {"evaluate.baselines": joined}
        ).evaluate.baseline_names

    assert Settings().evaluate.baseline_names == settings.BASELINES
    assert names(" class_means,herding") == ("herding", "class_means")
    assert names("") == ()


def test_a_part_is_static_under_jit():
    traced = []

    def steps(x, part):
        traced.append(part)
        return x * part.inner_steps

    call = jax.jit(steps, static_argnames="part")
    for part in (Iadd(inner_steps=3), Iadd(inner_steps=3)):
        assert int(call(2, part=part)) == 6
    assert len(traced) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        traced[0].inner_steps = 4


@pytest.mark.parametrize(
    "field, value, stored",
    [
        ("iadd.ipc", np.int64(3), 3),
        ("iadd.image_step", 5, 5.0),
        ("teacher.learning_rate", np.float32(0.5), 0.5),
    ],
)
def test_values_take_the_type_of_the_default(field, value, stored):
    found = Settings.of({field: value}).flat()[field]
    assert found == stored and type(found) is type(stored)


REFUSED = [
    ("iadd.ipcc", 1, "no field iadd.ipcc: did you mean iadd.ipc?"),
    ("iadd.ipc", 1.5, "iadd.ipc must be a whole number, not 1.5"),
    ("iadd.ipc", True, "iadd.ipc must be a whole number"),
    ("iadd.ipc", "many", "iadd.ipc must be a whole number, not 'many'"),
    ("iadd.image_step", "10", "iadd.image_step must be a number"),
    ("iadd.image_step", float("nan"), "iadd.image_step must be finite"),
    ("data.source", 3, "data.source must be a text"),
    ("seed", 1 << 32, "seed must lie in 0..2.*32 - 1"),
    ("iadd.image_step", b"1", "iadd.image_step must be a number"),
    ("iadd.image_step", np.True_, "iadd.image_step must be a number"),
    ("iterations", 3, "did you mean iadd.iterations or gan.iterations or d2m"),
    ("iadd.learning_rate_bounds", 3.0, "must be two numbers"),
    ("iadd.learning_rate_bounds", (0.1, 1.0), "within its bounds 0.1 .. 1.0"),
    ("data.size", -1, "data.size must not be negative, not -1"),
    ("data.crop", "middle", "data.crop: unknown crop 'middle': choose center"),
    ("data.channels", 2, "data.channels must be 0, 1 or 3, not 2"),
    ("data.per_class", -1, "data.per_class must not be negative"),
    ("data.test_share", 0.0, "data.test_share: a share lies between 0 and 1"),
    ("data.held_out", 1.5, "data.held_out: a share lies between 0 and 1"),
    ("data.preprocess", "pca", "data.preprocess: .*standardise, zca, none"),
    ("model.name", "convnext", "model.name: .*'convnext': choose .*convnet"),
    ("model.width", 0, "model.width must be at least 1, not 0"),
    ("teacher.count", 0, "teacher.count must be at least 1"),
    ("teacher.epochs", 0, "teacher.epochs must be at least 1"),
    ("teacher.batch_size", 0, "teacher.batch_size must be at least 1"),
    ("teacher.learning_rate", 0.0, "teacher.learning_rate must be positive"),
    ("teacher.dtype", "float16", "teacher.dtype must be float32 or bfloat16"),
    ("iadd.ipc", 0, "iadd.ipc must be at least 1, not 0"),
    ("iadd.inner_steps", 0, "iadd.inner_steps must be at least 1"),
    ("iadd.batch_size", -1, "iadd.batch_size must not be negative"),
    ("iadd.span", 0, "iadd.span .K. must be at least 1, not 0"),
    ("iadd.max_start", -1, "iadd.max_start must not be negative"),
    ("iadd.max_start", 49, "= 49 . 2 is beyond the teachers' 50 epochs"),
    ("iadd.segments", 0, "iadd.segments must be at least 1"),
    ("iadd.optimizer", "lamb", "iadd.optimizer must be sgd or adam"),
    ("iadd.image_rate", 0.0, "iadd.image_rate must be positive"),
    ("iadd.alpha_rate", -1.0, "iadd.alpha_rate must not be negative"),
    ("iadd.final_rate", 0.0, "iadd.final_rate must lie above 0 and up to 1"),
    ("iadd.clip", -1.0, "iadd.clip must not be negative"),
    ("iadd.space", "noise", "iadd.space must be pixels or latent"),
    ("iadd.space", "latent", "by Adam: set iadd.optimizer=adam"),
    ("iadd.generator_rate", 0.1, "in pixels there is none"),
    ("iadd.initial", "centres", "random or herding or k_centre with .*pixels"),
    ("iadd.augment", "blur", "iadd.augment: .*'blur'.* crop"),
    (
        "iadd.importance.form",
        "magic",
        "free, clipped, exponential, displacement or",
    ),
    ("iadd.importance.per", "layer", "must be parameter or tensor"),
    ("iadd.importance.rescale", "all", "must be none, network or tensor"),
    ("iadd.importance.direction", "up", "must be descend or ascend"),
    ("iadd.importance.bound", 0.0, "iadd.importance.bound must be positive"),
    ("iadd.importance.step", -1.0, "importance.step must not be negative"),
    ("gan.iterations", 0, "gan.iterations must be at least 1"),
    ("gan.attention", -1, "gan.attention must not be negative"),
    ("gan.generator_rate", 0.0, "gan.generator_rate must be positive"),
    ("gan.critic_rate", -1.0, "gan.critic_rate must be positive"),
    ("gan.average", 1.0, "gan.average must lie in 0..1 and below 1"),
    ("d2m.temperature", 0.0, "d2m.temperature must be positive"),
    ("d2m.rate", 0.0, "d2m.rate must be positive"),
    ("d2m.power", 0.5, "d2m.power must be at least 1"),
    ("d2m.average", 1.0, "d2m.average must lie in 0..1"),
    ("d2m.balance", -1.0, "d2m.balance must not be negative"),
    ("d2m.networks", "some", "d2m.networks must be trained or random"),
    ("d2m.first_epoch", 5, r"d2m.first_epoch must lie in 0\.\.4"),
    ("d2m.ipcs", "1,0", "d2m.ipcs must be numbers of at least 1"),
    ("d2m.ipcs", "1,1", "d2m.ipcs must be different numbers"),
    ("d2m.epochs", "1,2", "one for each of d2m.ipcs=1,10,50, not '1,2'"),
    ("evaluate.metric", "f1", "accuracy or balanced_accuracy, not 'f1'"),
    ("evaluate.models", "convnet,vgg", "evaluate.models: .*'vgg'"),
    ("evaluate.models", ",", "evaluate.models must name a network"),
    ("evaluate.baselines", "herding,kmeans", "herding, k_centre, class_means"),
    ("evaluate.full_steps", -1, "evaluate.full_steps must not be negative"),
    ("evaluate.networks", 0, "evaluate.networks must be at least 1"),
    ("log.every", 0, "log.every must be at least 1"),
]


@pytest.mark.parametrize("field, value, said", REFUSED)
def test_impossible_values(field, value, said):
    with pytest.raises(InputError, match=said) as error:
        Settings.of({field: value})
    assert "\n" not in str(error.value)


def test_fields_that_do_not_fit_each_other():
    with pytest.raises(InputError, match="nothing is matched"):
        Settings.of({"d2m.embedding": 0.0, "d2m.balance": 0.0})
    with pytest.raises(InputError, match="at least 8 where gan"):
        Settings.of({"gan.width": 4, "gan.attention": 16})
    # First epochs do not matter where no teacher is asked.
    Settings.of({"d2m.first_epoch": 5, "d2m.networks": "random"})


def test_numbers_of_images_and_their_epochs():
    part = settings.D2m(ipcs="50, 1,10", epochs="20")
    assert part.epochs_of == {50: 20, 1: 20, 10: 20}
    assert part.middle_ipc == 10
    part = settings.D2m(ipcs="1,10", epochs="30,20", layers=" a, b")
    assert part.epochs_of == {1: 30, 10: 20}
    assert part.layer_names == ("a", "b")


# Presets ---------------------------------------------------------------------


def npz(path, side):
    np.savez(
        path,
        train_images=np.zeros((2, side, side, 1), np.uint8),
        train_labels=np.arange(2),
    )
    return str(path)


def test_presets_are_possible_settings(tmp_path):
    for ipc in (1, 7, 10):
        for full in (False, True):
            for side in (8, 28, 32, 64, 128):
                Settings.of(presets.of_side(side, ipc, full=full))
    own = {
        what: Settings.of(presets.own(what, 3))
        for what in (
            "digits",
            "cifar10",
            "./photos",
            npz(tmp_path / "a.npz", 8),
            npz(tmp_path / "b.npz", 32),
        )
    }
    assert [part.model.depth for part in own.values()] == [2, 3, 4, 2, 3]
    assert [part.data.source for part in own.values()] == [
        "digits",
        "cifar10",
        "folder",
        "npz",
        "npz",
    ]
    assert {part.iadd.ipc for part in own.values()} == {3}


def test_no_distillation_through_batch_norm():
    with pytest.raises(InputError, match=r"model\.name must .* batch norm"):
        Settings.of({"model.name": "resnet18_bn"})
    Settings.of({"evaluate.models": "resnet18_bn"})


def test_a_folder_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert presets.own("photos", 1)["data.source"] == "photos"
    (tmp_path / "photos").mkdir()
    assert presets.own("photos", 1)["data.source"] == "folder"


@pytest.mark.parametrize(
    ("side", "kept", "depth"),
    [(5, 8, 2), (12, 12, 2), (28, 28, 3), (64, 64, 4), (90, 64, 4)],
)
def test_small_images_of_a_folder_are_not_enlarged(tmp_path, side, kept, depth):
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("L", (2 * side, side)).save(tmp_path / name / "0.png")
    own = presets.own(str(tmp_path), 1)
    assert own["data.size"] == kept
    assert Settings.of(own).model.depth == depth
    for full in (False, True):
        part = Settings.of(presets.own(str(tmp_path), 1, full=full)).gan
        # A generator of the next side has features of that side.
        assert part.attention < 2 * kept


def test_npz_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        presets.own(str(tmp_path / "nowhere.npz"), 1)
    path = tmp_path / "other.npz"
    np.savez(path, images=np.zeros(3))
    with pytest.raises(InputError, match="called train_images"):
        presets.own(str(path), 1)
    path.write_bytes(b"PK no zip")
    with pytest.raises(InputError, match="called train_images"):
        presets.own(str(path), 1)
