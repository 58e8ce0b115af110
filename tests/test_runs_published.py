"""From a checkpoint of PyTorch to a generator file, and to a run of D2M."""

import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import D2M, ROOT, door, refused

import ddjax
from ddjax import artifact, files, parallel
from ddjax.data import imagenet
from ddjax.runs import d2m, generate
from ddjax.runs.workdir import Shared
from ddjax.settings import Settings
from ddjax.types import InputError

STORED = Path(__file__).parent / "data" / "biggan"
pytestmark = pytest.mark.filterwarnings(  # of ml_collections
    "ignore:the load_module:DeprecationWarning"
)
CLASSES = ("left", "middle", "right")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With an .npz data set of three classes at 32 pixels."""
    folder = tmp_path_factory.mktemp("published")
    rng = np.random.default_rng(0)
    arrays = {"class_names": np.array(CLASSES)}
    for part, count in (("train", 8), ("test", 2)):
        labels = np.repeat(np.arange(3), count)
        pixels = rng.integers(0, 256, (3 * count, 32, 32, 3), np.uint8)
        arrays |= {f"{part}_images": pixels, f"{part}_labels": labels}
    np.savez(folder / "data.npz", **arrays)
    return folder


@pytest.fixture
def command(monkeypatch, capsys, folder):
    """The script in this process: (exit code, stdout, stderr)."""

    def call(*arguments, config="folder.py:data.npz,ipc=1"):
        monkeypatch.chdir(folder)
        flags = (
            f"--config={ROOT / 'configs' / config}",
            "--compiled=none",
            *arguments,
        )
        monkeypatch.setattr(sys, "argv", ["import_biggan.py", *flags])
        code = door("import_biggan").main()
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def given(command, folder):
    """A generator file for that data set."""
    path = folder / "given" / "generator.npz"
    if not path.exists():
        code, said, error = command(
            f"--checkpoint={STORED / 'brock32.pth'}", "--out=given"
        )
        assert code == 0, error
        assert "Brock, 32 px, width 2, 3 of 3 classes, noise 6" in said
    return path


def test_a_file_that_everything_opens(given, folder):
    with Image.open(folder / "given" / "samples.png") as picture:
        assert min(picture.size) > 6 * 32
    run = ddjax.load(given)
    assert tuple(run.class_names) == CLASSES
    assert run.metadata["imported"] == {
        "checkpoint": "brock32.pth",
        "sha256": files.sha256(STORED / "brock32.pth"),
        "layout": "Brock",
        "classes": [0, 1, 2],
    }
    images = run.generate(np.array([2, 0]))
    assert images.shape == (2, 32, 32, 3) and images.std() > 0.05
    generate.run(given.parent, folder / "made", ipc="2")
    assert len(artifact.load(folder / "made" / "distilled.npz").images) == 6


def test_classes_in_another_order(given, command, folder):
    code, *_ = command(
        f"--checkpoint={STORED / 'brock32.pth'}",
        "--out=turned.npz",
        "--classes=2,1,0",
    )
    assert code == 0
    turned = artifact.load_generator(folder / "turned.npz").params
    table = artifact.load_generator(given).params["block1"]["norm0"]["scale"]
    np.testing.assert_array_equal(
        turned["block1"]["norm0"]["scale"], table[::-1]
    )
    assert not (folder / "samples.png").exists()


@pytest.mark.campaign
def test_d2m_begins_with_it(given, folder, monkeypatch, capsys):
    monkeypatch.setattr(parallel, "device_count", lambda: 1)
    settings = Settings.of(
        D2M
        | {
            "data.source": "npz",
            "data.data_dir": str(folder / "data.npz"),
            "d2m.generator": str(given.parent),
            "d2m.networks": "random",
            "d2m.iterations": 2,
            "evaluate.looks": 1,
            "evaluate.baselines": "",
            "evaluate.full_steps": 2,
            "d2m.ipcs": "1",
        }
    )
    shared = Shared.below(folder)
    d2m.run(settings, folder / "run", shared)
    assert "published generator; images that this run" in capsys.readouterr()[0]
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["generator"] == files.sha256(given)
    sides = d2m.load_sides(folder / "run")
    began = artifact.load_generator(given)
    np.testing.assert_array_equal(
        sides["pretrained"].params["conv"]["kernel"],
        began.params["conv"]["kernel"],
    )
    assert sides["distilled"].metadata["imported"]["layout"] == "Brock"
    # Of a file that is another since, it is no longer the run.
    kept = given.read_bytes()
    artifact.save_generator(
        given, began._replace(params=sides["distilled"].params)
    )
    try:
        with pytest.raises(InputError, match="began with another gen"):
            d2m.run(settings, folder / "run", shared)
    finally:
        given.write_bytes(kept)
    d2m.run(settings, folder / "run", shared)


def test_what_does_not_fit_is_refused(given, command, folder):
    def refuse(*words, checkpoint="brock32.pth", out="--out=no.npz", **kwargs):
        code, _, error = command(
            f"--checkpoint={STORED / checkpoint}",
            out,
            *kwargs.pop("more", ()),
            **kwargs,
        )
        refused(code, error, *words)
        assert not (folder / "no.npz").exists()

    refuse("--out=given", "name another", out="--out=given")
    refuse("class 3 is wrong", "0..2", more=["--classes=0,1,3"])
    refuse("gives 2 classes", "has 3", more=["--classes=0,1"])
    refuse("numbers joined by commas", more=["--classes=left"])
    refuse("--epsilon must lie in", more=["--epsilon=2"])
    refuse("gives 4 classes", "--classes", checkpoint="brock128.old.pth")
    refuse("makes images of (128, 128, 3)", checkpoint="studio128.safetensors")
    refuse("there is no file", checkpoint="none.pth")
    refuse("unknown config field", more=["--config.gan.no=1"])
    raw = (STORED / "brock32.pth").read_bytes()
    (folder / "short.pth").write_bytes(raw[: len(raw) // 2])
    refuse("cut short or damaged", checkpoint=folder / "short.pth")
    with zipfile.ZipFile(folder / "code.pth", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(shutil.rmtree))
    refuse(
        "holds shutil.rmtree, which no tensor needs, and no code in a file is "
        "run: save tensors alone",
        checkpoint=folder / "code.pth",
    )


def test_a_subset_of_imagenet_knows_its_classes(command, folder):
    """Springers are the thousand's 217th, which this checkpoint has not."""
    for part in ("train", "val"):
        for _, wordnet, _ in imagenet.SUBSETS["nette"]:
            place = folder / "imagenet" / part / wordnet
            place.mkdir(parents=True)
            for number in range(1 + 3 * (part == "train")):
                Image.new("RGB", (9, 9), (number,) * 3).save(
                    place / f"{number}.png"
                )
    code, _, error = command(
        f"--checkpoint={STORED / 'brock128.old.pth'}",
        "--out=no.npz",
        f"--config.data.data_dir={folder / 'imagenet'}",
        config="imagenet_subset.py:nette,ipc=1",
    )
    refused(code, error, "class 217 is wrong", "0..3")
