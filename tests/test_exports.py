"""Distilled images in other tools' forms, opened by those tools or by hand."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from ddjax import exports, foreign
from ddjax.artifact import Artifact
from ddjax.data import preprocess, sources
from ddjax.data.preprocess import Standardiser
from ddjax.types import InputError

NAMES = ["dog", "cat", "ape"]  # not in the order of a folder's listing
LABELS = np.repeat(np.eye(3, dtype="f"), 2, 0)
MEAN, STD = np.float32([0.4, 0.5, 0.6]), np.float32([0.2, 0.3, 0.4])


def example(channels=3, **changes):
    rng = np.random.default_rng(0)
    found = Artifact(
        # Black and white and what lies beyond them.
        np.float32(rng.uniform(-0.3, 1.3, (6, 4, 5, channels))),
        LABELS,
        0.02,
        Standardiser(MEAN[:channels], STD[:channels]),
        {
            "class_names": NAMES,
            "evaluation": {"epochs": 7},
            "config": {"data.data_dir": "/secret/place"},
        },
    )
    return found._replace(**changes)


def levels(found):
    return np.floor(255 * np.clip(found.images, 0, 1) + 0.5).astype(np.uint8)


def lines(folder):
    """What the folder's own README says to do, done there."""
    text = (folder / "README.md").read_text()
    names = {}
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    return names


@pytest.fixture(params=list(exports.FORMS))
def exported(request, tmp_path):
    form = request.param
    needs = {"parquet": "pyarrow", "pt": "torch"}.get(form)
    if needs:
        pytest.importorskip(needs)
    exports.export(example(), form, tmp_path / "out")
    return form, tmp_path / "out"


def test_every_folder_tells_what_its_form_has_no_room_for(exported):
    _, folder = exported
    about = json.loads((folder / "about.json").read_text())
    assert about["class_names"] == NAMES
    assert about["learning_rate"] == 0.02 and not about["soft_labels"]
    np.testing.assert_array_equal(np.float32(about["mean"]), MEAN)
    np.testing.assert_array_equal(np.float32(about["std"]), STD)
    assert about["evaluation"] == {"epochs": 7}
    for path in folder.rglob("*"):
        assert path.is_dir() or b"/secret/place" not in path.read_bytes()


def test_every_readme_opens_its_files(exported, monkeypatch):
    form, folder = exported
    if form == "safetensors":
        pytest.importorskip("safetensors")
    monkeypatch.chdir(folder)
    names, given = lines(folder), example()
    inputs = (given.images - MEAN) / STD
    rounded = (levels(given) / 255 - MEAN) / STD
    hard = LABELS.argmax(-1)
    if form == "png":
        order = [4, 5, 2, 3, 0, 1]  # ape, cat, dog
        np.testing.assert_array_equal(names["images"], levels(given)[order])
        assert names["names"] == [NAMES[hard[i]] for i in order]
    elif form == "parquet":
        images = np.stack([np.asarray(image) for image in names["images"]])
        np.testing.assert_array_equal(images, levels(given))
        assert names["labels"] == hard.tolist()
    elif form == "npz":
        np.testing.assert_allclose(names["inputs"], rounded, rtol=1e-5)
        np.testing.assert_array_equal(names["labels"], hard)
    elif form == "pt":
        found = names["inputs"].numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(found, inputs, rtol=1e-5, atol=1e-6)
        assert str(names["labels"].dtype) == "torch.int64"
        assert names["labels"].tolist() == hard.tolist()
    else:
        np.testing.assert_allclose(names["inputs"], inputs, rtol=1e-5)
        np.testing.assert_array_equal(names["labels"], LABELS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", ["png", "npz"])
def test_what_configs_folder_reads_again(tmp_path, form, channels):
    """The set as a data set: the same pixels under the same names."""
    given = example(channels)
    exports.export(given, form, tmp_path / "out")
    where, source = tmp_path / "out", "folder"
    if form == "npz":
        where, source = where / "train.npz", "npz"
    found = sources.prepare(
        source, data_dir=str(where), cache_dir=tmp_path / "cache"
    )
    images, labels = np.load(found.images_path("train")), found.labels("train")
    class_names = found.manifest["class_names"]
    for name in NAMES:
        ours = levels(given)[given.labels.argmax(-1) == NAMES.index(name)]
        theirs = images[labels == class_names.index(name)]
        np.testing.assert_array_equal(theirs, ours)


def test_safetensors_by_hand(tmp_path):
    """By the format's page: length, header, values; nothing left over."""
    given = example()
    exports.export(given, "safetensors", tmp_path / "out")
    raw = (tmp_path / "out" / "distilled.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    header = json.loads(raw[8 : 8 + length])
    assert raw[8:9] == b"{"
    said = header.pop("__metadata__")
    assert json.loads(said["class_names"]) == NAMES
    values, end = raw[8 + length :], 0
    expected = {
        "images": given.images,
        "labels": given.labels,
        "learning_rate": np.float32(0.02),
        "preprocess/mean": MEAN,
        "preprocess/std": STD,
    }
    assert header.keys() == expected.keys()
    for name, entry in header.items():
        begin, stop = entry["data_offsets"]
        assert begin == end and entry["dtype"] == "F32"
        found = np.frombuffer(values[begin:stop], "<f4").reshape(entry["shape"])
        np.testing.assert_array_equal(found, expected[name])
        end = stop
    assert end == len(values)


def test_parquet_has_hugging_faces_layout(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    exports.export(example(1), "parquet", tmp_path / "out")
    table = parquet.read_table(
        tmp_path / "out" / "data" / "train-00000-of-00001.parquet"
    )
    assert str(table.schema.field("image").type) == (
        "struct<bytes: binary, path: string>"
    )
    assert str(table.schema.field("label").type) == "int64"
    said = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert said["image"] == {"_type": "Image"}
    assert said["label"] == {"_type": "ClassLabel", "names": NAMES}
    image = Image.open(io.BytesIO(table["image"][3]["bytes"].as_py()))
    assert image.format == "PNG" and image.mode == "L"
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\nconf")


def test_pt_and_back(tmp_path):
    pytest.importorskip("torch")
    soft = np.float32([[0.5, 0.25, 0.25]] * 6)
    for labels in (LABELS, soft):
        given = example(labels=labels)
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        exports.export(given, "pt", out)
        found = foreign.as_artifact(
            foreign.read(out),
            learning_rate=0.02,
            preprocessing=given.preprocessing,
            class_names=NAMES,
        )
        np.testing.assert_allclose(
            found.images, given.images, rtol=1e-5, atol=1e-6
        )
        np.testing.assert_array_equal(found.labels, labels)


def test_whitened_images(tmp_path):
    """Their matrix goes with safetensors; .pt is whitened as networks see."""
    torch = pytest.importorskip("torch")
    whitener = preprocess.fit_zca(example().images)
    given = example(preprocessing=whitener)
    for form in ("safetensors", "npz", "pt"):
        exports.export(given, form, tmp_path / form)
        about = json.loads((tmp_path / form / "about.json").read_text())
        assert about["preprocess"] == "zca" and "mean" not in about
    found = torch.load(tmp_path / "pt" / "images_best.pt", weights_only=True)
    centred = (given.images - np.asarray(whitener.mean)).reshape(6, -1)
    expected = (centred @ np.asarray(whitener.matrix)).reshape(6, 4, 5, 3)
    np.testing.assert_allclose(
        found.numpy().transpose(0, 2, 3, 1), expected, rtol=1e-4, atol=1e-4
    )
    with np.load(tmp_path / "npz" / "train.npz") as file:
        np.testing.assert_array_equal(file["matrix"], whitener.matrix)


@pytest.mark.parametrize(
    "form, changes, why",
    [
        ("gif", {}, "no form 'gif'.*png, npz"),
        ("png", {"images": np.zeros((6, 4, 4, 2), "f")}, "1 or 3 channels"),
        *(
            ("png", {"metadata": {"class_names": ["a", "b", name]}}, why)
            for name, why in (
                ("..", r"'\.\.' cannot be a folder's"),
                ("a/b", "'a/b' cannot be"),
                ("\\", "cannot be"),
                (".hidden", "cannot be"),
                ("Train", "cannot be"),
                ("x" * 256, "cannot be"),
                ("B", "same name, up to capitals"),
            )
        ),
    ],
)
def test_refusals_leave_nothing(tmp_path, form, changes, why):
    with pytest.raises(InputError, match=why):
        exports.export(example(**changes), form, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "form, package", [("parquet", "pyarrow"), ("pt", "torch")]
)
def test_a_package_that_is_missing(tmp_path, form, package, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(InputError, match="pip install"):
        exports.export(example(), form, tmp_path / "out")
    assert not list(tmp_path.iterdir())
