"""The distilled file: NumPy alone opens it, and damage is told."""

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


@pytest.mark.parametrize(
    "changes", [{"images": np.zeros((3, 3, 3, 2))}, {"images": np.zeros(4)}]
)
def test_parts_that_do_not_belong_together(path, changes):
    artifact.save(path, example(**changes))
    with pytest.raises(InputError, match="belong together"):
        artifact.load(path)


def test_some_other_file(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, images=np.zeros((1, 2, 2, 1)))
    with pytest.raises(InputError, match="no distilled file"):
        artifact.load(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(InputError, match="no distilled file"):
        artifact.load(tmp_path / "one.npy")
