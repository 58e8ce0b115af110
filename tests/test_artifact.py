"""The distilled file: NumPy alone opens it, and damage is told."""

import hashlib
import json

import numpy as np
import pytest

from ddjax import artifact
from ddjax.artifact import Artifact
from ddjax.data.preprocess import Standardiser
from ddjax.types import InputError


def example(**changes):
    rng = np.random.default_rng(0)
    found = Artifact(
        np.float32(rng.normal(size=(4, 3, 3, 2))),
        np.float32(rng.dirichlet(np.ones(2), 4)),
        0.02,
        Standardiser(np.float32([0.4, 0.5]), np.float32([0.2, 0.3])),
        {"class_names": ["cat", "dög"], "seed": 3},
    )
    return found._replace(**changes)


@pytest.fixture
def path(tmp_path):
    artifact.save(tmp_path / "distilled.npz", example())
    return tmp_path / "distilled.npz"


def test_round_trip(path):
    found, given = artifact.load(path), example()
    np.testing.assert_array_equal(found.images, given.images)
    assert found.images.dtype == found.labels.dtype == np.float32
    np.testing.assert_array_equal(found.labels, given.labels)
    assert found.learning_rate == np.float32(0.02)
    np.testing.assert_array_equal(found.preprocessing, given.preprocessing)
    assert found.metadata == given.metadata


def test_numpy_alone_opens_it(path):
    with np.load(path, allow_pickle=False) as file:
        assert sorted(file.files) == [
            "checksum",
            "format_version",
            "images",
            "labels",
            "learning_rate",
            "metadata",
            "preprocess/mean",
            "preprocess/std",
        ]
        assert file["images"].shape == (4, 3, 3, 2)
        assert json.loads(str(file["metadata"]))["seed"] == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"images": np.full((4, 3, 3, 2), np.nan)},
        {"labels": np.full((4, 2), np.inf)},
        {"learning_rate": float("nan")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_not_finite(path, changes):
    before = path.read_bytes()
    with pytest.raises(InputError, match=next(iter(changes))):
        artifact.save(path, example(**changes))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_metadata_that_is_no_json(path):
    before = path.read_bytes()
    with pytest.raises(TypeError):
        artifact.save(path, example(metadata={"a": object()}))
    assert path.read_bytes() == before


def test_missing(tmp_path):
    with pytest.raises(InputError, match="there is no distilled file"):
        artifact.load(tmp_path / "distilled.npz")


def test_truncated(path):
    content = path.read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 3):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match="damaged"):
            artifact.load(path)


def test_flipped_byte(path):
    """Anywhere: refused, or (in a field that nothing reads) without effect."""
    content, given, refused = path.read_bytes(), example(), 0
    places = range(0, len(content), 23)
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        try:
            found = artifact.load(path)
        except InputError:
            refused += 1
        else:
            np.testing.assert_array_equal(found.images, given.images)
            np.testing.assert_array_equal(found.labels, given.labels)
            assert found.metadata == given.metadata
    assert refused > len(places) / 2


def test_the_checksum_by_hand(path):
    """SHA-256 over what the docstring says, computed from the file alone."""
    with np.load(path) as file:
        lines = [
            ("format_version <i8 \n", np.int64(1)),
            ("images <f4 4,3,3,2\n", file["images"]),
            ("labels <f4 4,2\n", file["labels"]),
            ("learning_rate <f4 \n", file["learning_rate"]),
            (f"metadata <U{len(str(file['metadata']))} \n", file["metadata"]),
            ("preprocess/mean <f4 2\n", file["preprocess/mean"]),
            ("preprocess/std <f4 2\n", file["preprocess/std"]),
        ]
        content = b"".join(
            line.encode() + array.tobytes() for line, array in lines
        )
        assert str(file["checksum"]) == hashlib.sha256(content).hexdigest()
        # Not the form in memory.
        arrays = {n: file[n] for n in file.files if n != "checksum"}
    swapped = {
        name: np.array(array, array.dtype.newbyteorder(">"), order="F")
        for name, array in arrays.items()
    }
    del swapped["format_version"]
    assert (
        artifact.seal(swapped)["checksum"]
        == artifact.seal({name: arrays[name] for name in swapped})["checksum"]
    )


@pytest.mark.parametrize(
    "members",
    [
        {"images": np.zeros((4, 3, 3, 2), "f")},
        {"labels": np.eye(2, dtype="f")[[0, 1, 0, 1]]},
        {"learning_rate": np.float32(0.5)},
        {"preprocess__std": np.float32([1, 1])},
        {"metadata": np.array('{"class_names": ["cat", "dog"]}')},
        {"more": np.zeros(3)},
        {"checksum": None},
        {"format_version": np.array(0)},
        {"format_version": np.array(-1)},
    ],
)
def test_changed_by_hand(path, members):
    """Every one a whole file, which would be read if it had no checksum."""
    written(path, sealed=True, **members)
    with pytest.raises(InputError, match="was changed after it was written"):
        artifact.load(path)


@pytest.mark.parametrize(
    "version, why",
    [
        (np.array(2), "of format 2, .* up to 1: install a newer one"),
        (np.array("1"), "damaged"),
        (np.array([1, 1]), "damaged"),
        (None, "damaged"),
    ],
)
def test_other_versions(path, version, why):
    written(path, sealed=True, format_version=version)
    with pytest.raises(InputError, match=why):
        artifact.load(path)


def test_a_file_of_before_there_were_checksums(path):
    written(path)
    with np.load(path) as file:
        assert "checksum" not in file.files
    np.testing.assert_array_equal(artifact.load(path).images, example().images)


def written(path, sealed=False, **members):
    """The example's file with other members; None leaves one out. Without its
    seal, if not otherwise said, as before there was one."""
    with np.load(path) as file:
        arrays = {
            name: file[name]
            for name in file.files
            if sealed or name not in ("checksum", "format_version")
        }
    for name, value in members.items():
        arrays[name.replace("__", "/")] = value
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


def said(**metadata):
    return np.array(json.dumps({"class_names": ["cat", "dog"]} | metadata))


@pytest.mark.parametrize(
    "members, why",
    [
        ({"images": np.zeros((3, 3, 3, 2), "f")}, "3 images and 4 labels"),
        ({"images": np.zeros(4, "f")}, r"images are float32 of shape \(4,\)"),
        ({"images": np.zeros((0, 3, 3, 2), "f")}, "images are"),
        ({"images": np.full((4, 3, 3, 2), np.nan)}, "images hold values"),
        ({"labels": np.float32(1)}, r"labels are float32 of shape \(\)"),
        ({"labels": np.zeros(4, "f")}, "labels are"),
        ({"labels": np.zeros((4, 2, 1), "f")}, "labels are"),
        ({"labels": np.full((4, 2), np.nan)}, "at least 0"),
        ({"labels": np.full((4, 2), -1.0)}, "at least 0"),
        ({"labels": np.ones((4, 1), "f")}, "name its 1 classes"),
        ({"learning_rate": np.nan}, "learning rate is nan"),
        ({"learning_rate": -1.0}, "learning rate is -1"),
        ({"learning_rate": 1e300}, r"learning rate is 1e\+300"),
        ({"preprocess__std": np.float32([0.2, 0])}, "not positive"),
        ({"preprocess__std": np.float32([0.2, np.nan])}, "not finite"),
        ({"preprocess__mean": np.zeros(3, "f")}, "not one of images"),
        (
            {
                "preprocess__std": None,
                "preprocess__mean": np.zeros((3, 3, 2), "f"),
                "preprocess__matrix": np.eye(17, dtype="f"),
            },
            "not one of images",
        ),
        ({"metadata": np.array("[1]")}, "metadata are a list"),
        ({"metadata": np.array("null")}, "metadata are a NoneType"),
        ({"metadata": np.array("7")}, "metadata are a int"),
        ({"metadata": np.array("{}")}, "name its 2 classes"),
        ({"metadata": said(class_names=["cat", ""])}, "name is empty"),
        ({"metadata": said(class_names=["cat", "\x1b[2J"])}, "name is empty"),
        ({"metadata": said(class_names=["cat", "\ud800"])}, "name is empty"),
        ({"metadata": np.array("[" * 100_000)}, "damaged"),
    ],
)
def test_what_nothing_can_be_trained_on(path, members, why):
    """Whole files all of them, of which none may pass for images."""
    written(path)
    artifact.load(path)
    with np.errstate(over="ignore"):
        written(path, **members)
        with pytest.raises(InputError, match=why):
            artifact.load(path)


def test_text_of_code_points_that_there_are_not(path):
    content = np.array("{}")
    written(path, metadata=content)
    raw = path.read_bytes()
    place = raw.index("{}".encode("utf-32-le"))
    raw = bytearray(raw)
    raw[place : place + 4] = b"\xff\xff\xff\x7f"
    path.write_bytes(raw)
    with pytest.raises(InputError, match="damaged"):
        artifact.load(path)


def test_some_other_file(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, images=np.zeros((1, 2, 2, 1)))
    with pytest.raises(InputError, match="no distilled file"):
        artifact.load(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(InputError, match="no distilled file"):
        artifact.load(tmp_path / "one.npy")
