"""Other projects' distilled images, brought to our form and to be tested."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import ROOT, door, refused

from ddjax import artifact, foreign
from ddjax.data.preprocess import Standardiser
from ddjax.runs import imported
from ddjax.types import InputError

# Of ml_collections, which loads a config file so.
pytestmark = pytest.mark.filterwarnings(
    "ignore:the load_module:DeprecationWarning"
)
DATA = Path(__file__).parent / "data"
SCALE = Standardiser(np.float32([0.4, 0.5, 0.6]), np.float32([0.2, 0.3, 0.4]))


def brought(path, number=0, **how):
    how = {"learning_rate": 0.02, "preprocessing": SCALE} | how
    return foreign.as_artifact(foreign.read(path, number), **how)


def npz(folder, **arrays):
    np.savez(folder / "set.npz", **arrays)
    return folder / "set.npz"


def test_tensors_of_mtt(tmp_path):
    found = brought(DATA / "mtt", class_names=["cat", "dog"])
    inputs = np.arange(96, dtype="f").reshape(2, 3, 4, 4) / 48 - 1
    expected = inputs.transpose(0, 2, 3, 1) * SCALE.std + SCALE.mean
    np.testing.assert_allclose(found.images, expected, rtol=1e-6)
    assert found.labels.tolist() == [[0, 1], [1, 0]]
    assert found.metadata["class_names"] == ["cat", "dog"]
    assert found.metadata["source"].keys() == {
        "images_best.pt",
        "labels_best.pt",
    }
    artifact.save(tmp_path / "distilled.npz", found)
    again = artifact.load(tmp_path / "distilled.npz")
    np.testing.assert_array_equal(again.images, found.images)
    assert again.learning_rate == np.float32(0.02)
    # By the file's name as by the folder's.
    named = brought(DATA / "mtt" / "images_best.pt")
    np.testing.assert_array_equal(named.images, found.images)
    assert named.metadata["class_names"] == ["0", "1"]


def test_sets_of_dc():
    grey = Standardiser(np.float32([0.5]), np.float32([0.25]))
    for number in range(2):
        found = brought(DATA / "dc.pt", number, preprocessing=grey)
        assert found.images.shape == (4, 4, 4, 1)
        np.testing.assert_array_equal(found.images, 0.5 + 0.25 * number)
        assert found.labels.argmax(-1).tolist() == [0, 1, 0, 1]
    for number in (2, -1):
        with pytest.raises(InputError, match=r"holds sets 0\.\.1, and none"):
            foreign.read(DATA / "dc.pt", number)


def test_a_folder_of_pictures(tmp_path):
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    for name, image in zip(("b/0", "a/1", "b/2"), levels):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    found = brought(tmp_path)
    np.testing.assert_allclose(found.images, levels[[1, 0, 2]] / 255, rtol=1e-6)
    assert found.metadata["class_names"] == ["a", "b"]
    # In the order of the data set, not of the folder; one has no image.
    found = brought(tmp_path, class_names=["b", "c", "a"])
    assert found.labels.argmax(-1).tolist() == [2, 0, 0]
    with pytest.raises(InputError, match="'b' of the images is none"):
        brought(tmp_path, class_names=["a", "c"])
    Image.fromarray(levels[0, :2]).save(tmp_path / "a" / "3.png")
    with pytest.raises(InputError, match="2 sizes"):
        foreign.read(tmp_path)
    (tmp_path / "a" / "3.png").write_bytes(b"none")
    with pytest.raises(InputError, match="cannot be read"):
        foreign.read(tmp_path)


def test_arrays(tmp_path):
    rng = np.random.default_rng(0)
    floats = np.float32(rng.uniform(-0.1, 1.1, (2, 4, 4, 3)))
    found = brought(npz(tmp_path, images=floats, labels=[0, 1]))
    np.testing.assert_array_equal(found.images, floats)  # not clipped
    levels = np.uint8(floats.clip(0, 1) * 255)
    path = npz(
        tmp_path,
        train_images=levels,
        train_labels=[1, 0],
        class_names=["x", "y"],
    )
    found = brought(path, class_names=["y", "x"])
    np.testing.assert_allclose(found.images, levels / 255, rtol=1e-6)
    assert found.labels.tolist() == [[1, 0], [0, 1]]
    # Standardised ones where it is said.
    inputs = np.float32(rng.normal(0, 5, (2, 4, 4, 3)))
    path = npz(tmp_path, images=inputs, labels=[0, 1])
    with pytest.raises(InputError, match="--values=standardised"):
        brought(path)
    found = brought(path, values="standardised")
    np.testing.assert_allclose(
        found.images, inputs * SCALE.std + SCALE.mean, rtol=1e-5, atol=1e-6
    )


def test_soft_labels(tmp_path):
    images = np.zeros((2, 4, 4, 3), "f")
    logits = np.float32([[2, -1, 0], [0, 0, 5]])
    path = npz(tmp_path, images=images, labels=logits)
    with pytest.raises(InputError, match="--labels=logits"):
        brought(path)
    found = brought(path, labels="logits")
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found.labels, expected, rtol=1e-5)
    path = npz(tmp_path, images=images, labels=expected)
    np.testing.assert_allclose(brought(path).labels, expected, rtol=1e-6)
    with pytest.raises(InputError, match="of 3 classes, and the data set has"):
        brought(path, class_names=["a", "b"])
    # Columns that are named go where the data set has them.
    path = npz(tmp_path, images=images, labels=logits, class_names=list("abc"))
    found = brought(path, class_names=list("cxab"), labels="logits")
    np.testing.assert_allclose(found.labels[:, [2, 3, 0]], expected, rtol=1e-5)
    assert not found.labels[:, 1].any()


ONE = np.zeros((2, 4, 4, 3), "f")


@pytest.mark.parametrize(
    "arrays, why",
    [
        ({"images": ONE}, "must hold images and labels.*holds images"),
        ({}, "holds nothing"),
        ({"images": ONE, "labels": [0, 1, 1]}, "2 images and 3 labels"),
        ({"images": ONE[0, 0], "labels": [0, 1]}, r"of shape \(4, 3\)"),
        ({"images": ONE[..., :2], "labels": [0, 1]}, "1 or 3 channels"),
        ({"images": ONE.astype(int), "labels": [0, 1]}, "uint8 or floats"),
        ({"images": ONE * np.nan, "labels": [0, 1]}, "not finite"),
        ({"images": ONE, "labels": [0.0, 1]}, "labels of .* float64 of sh"),
        ({"images": ONE, "labels": ["a", "b"]}, "labels of"),
        ({"images": ONE, "labels": [0, -1]}, "must lie in 0"),
        ({"images": ONE, "labels": [0, 10**9]}, "go up to 1000000000"),
        ({"images": ONE, "labels": np.full((2, 2), np.nan)}, "not finite"),
        ({"images": ONE, "labels": [[1.5, -0.5]] * 2}, "not probabilities"),
        ({"images": ONE, "labels": [0, 1], "class_names": 3}, "list of texts"),
        (
            {"images": ONE, "labels": [0, 1], "class_names": ["a", "a"]},
            "must all be different",
        ),
        (
            {"images": ONE, "labels": [0, 1], "preprocess/mean": 1},
            "is a distilled file of ddjax already",
        ),
    ],
)
def test_arrays_that_are_refused(tmp_path, arrays, why):
    with pytest.raises(InputError, match=why) as error:
        brought(npz(tmp_path, **arrays))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "how, why",
    [
        ({"learning_rate": None}, "--learning_rate must be given"),
        ({"learning_rate": 0.0}, "--learning_rate must be"),
        ({"learning_rate": float("nan")}, "--learning_rate must be"),
        ({"preprocessing": None}, "--config=FILE.*--mean and --std"),
        ({"values": "levels"}, "--values must be pixels or standardised"),
        ({"labels": "hard"}, "--labels must be probabilities or logits"),
        ({"class_names": ["a"]}, "labels must lie in 0..0"),
        (
            {"preprocessing": Standardiser(*np.ones((2, 1), "f"))},
            r"\(4, 4, 3\), and the mean of \(1,\)",
        ),
    ],
)
def test_what_the_user_has_to_say(how, why):
    with pytest.raises(InputError, match=why):
        brought(DATA / "mtt", **how)


def test_files_that_are_refused(tmp_path):
    for name in ("none", "none.npz", "none.pt", "images_1.pt"):
        with pytest.raises(InputError, match=str(tmp_path / name)):
            foreign.read(tmp_path / name)
    # A tensor alone, and one without its labels.
    lone = tmp_path / "lone.pt"
    lone.write_bytes((DATA / "mtt" / "images_best.pt").read_bytes())
    with pytest.raises(InputError, match="neither"):
        foreign.read(lone)
    lone.rename(tmp_path / "images_7.pt")
    with pytest.raises(InputError, match=r"no file .*labels_7\.pt"):
        foreign.read(tmp_path / "images_7.pt")
    for content in ({"data": []}, {"data": [1]}, {}, 3, [1, 2, 3], [1, 2]):
        with zipfile.ZipFile(tmp_path / "odd.pt", "w") as file:
            file.writestr("odd/data.pkl", pickle.dumps(content, 2))
        with pytest.raises(InputError, match=r"neither|a tensor each"):
            foreign.read(tmp_path / "odd.pt")
    with zipfile.ZipFile(tmp_path / "code.pt", "w") as file:
        file.writestr("code/data.pkl", pickle.dumps(shutil.rmtree, 2))
    with pytest.raises(
        InputError,
        match=r"holds shutil\.rmtree, which no tensor needs, and no code in a "
        "file is run: save tensors alone",
    ):
        foreign.read(tmp_path / "code.pt")
    (tmp_path / "set.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="is damaged"):
        foreign.read(tmp_path / "set.npz")


def test_nothing_is_overwritten(tmp_path):
    out = tmp_path / "out"
    how = {"learning_rate": 0.1, "mean": [0.5] * 3, "std": [0.2] * 3}
    imported.run(DATA / "mtt", out, **how)
    assert sorted(path.name for path in out.iterdir()) == [
        "distilled.npz",
        "distilled.png",
    ]
    before = (out / "distilled.npz").read_bytes()
    with pytest.raises(InputError, match="not an empty folder"):
        imported.run(DATA / "mtt", out, **how)
    assert (out / "distilled.npz").read_bytes() == before
    for wrong in ({"std": []}, {"std": [0.2, 0.2, 0.0]}, {"mean": [0.5]}):
        with pytest.raises(InputError, match="--mean and --std"):
            imported.run(DATA / "mtt", tmp_path / "other", **how | wrong)
    assert list(tmp_path.iterdir()) == [out]


def test_the_door(tmp_path, capsys, monkeypatch):
    script = door("import_images")
    monkeypatch.chdir(tmp_path)
    config = f"--config={ROOT / 'configs' / 'tiny.py'}"
    path = npz(
        tmp_path, images=np.zeros((2, 8, 8), np.uint8), labels=np.array([3, 9])
    )
    flags = [f"--from={path}", "--out=out", "--compiled=none"]
    code = script.main([*flags, config])
    refused(code, capsys.readouterr().err, "--learning_rate must be given")
    assert script.main([*flags, config, "--learning_rate=0.01"]) == 0
    assert "2 images of 10 classes: out" in capsys.readouterr().out
    found = artifact.load(Path("out/distilled.npz"))
    assert found.labels.argmax(-1).tolist() == [3, 9]
    # The data's own mean, of scikit-learn's digits.
    assert 0.25 < float(found.preprocessing.mean[0]) < 0.35
    with np.load("out/distilled.npz") as file:
        assert json.loads(str(file["metadata"]))["method"] == "imported"
    flags[1] = "--out=other"
    code = script.main([*flags, "--learning_rate=0.01"])
    refused(code, capsys.readouterr().err, "unexpected argument '--compiled")
    mtt = [f"--from={DATA / 'mtt'}", *flags[1:], "--learning_rate=0.01"]
    code = script.main([*mtt, config])
    refused(code, capsys.readouterr().err, "(4, 4, 3)", "(8, 8, 1)")
    assert not Path("other").exists()
