"""Data: the parts are disjoint, whole and even; what is wrong is named."""

import jax
import numpy as np
import pytest

from ddjax.data import preprocess, sources
from ddjax.types import InputError


@pytest.fixture(scope="module")
def digits():
    return sources.load("digits", held_out=0.1, seed=0)


def rows(*datasets):
    """Each example as bytes, sorted: a multiset."""
    return sorted(
        (image.tobytes(), int(label))
        for dataset in datasets
        for image, label in zip(dataset.images, dataset.labels)
    )


def counts(dataset):
    return np.bincount(dataset.labels, minlength=10)


def test_digits(digits):
    for part in digits:
        assert part.images.dtype == np.uint8
        assert part.images.shape[1:] == (8, 8, 1)
        assert part.labels.dtype == np.int32
        assert part.class_names == tuple("0123456789")
    assert sum(len(part.labels) for part in digits) == 1797
    assert digits.train.images.min() == 0 and digits.train.images.max() == 255


def test_digits_parts_are_disjoint(digits):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    whole = sources.Dataset(
        np.rint(images * 255 / 16).astype(np.uint8), labels, ()
    )
    # Every picture in one part, exactly once.
    assert rows(*digits) == rows(whole)


def test_digits_are_stratified(digits):
    whole = sum(counts(part) for part in digits)
    np.testing.assert_array_equal(counts(digits.test), -(-whole // 5))
    left = whole - counts(digits.test)
    np.testing.assert_array_equal(counts(digits.held_out), np.ceil(left * 0.1))


def test_seed_decides_what_is_held_out(digits):
    again = sources.load("digits", held_out=0.1, seed=0)
    other = sources.load("digits", held_out=0.1, seed=1)
    np.testing.assert_array_equal(again.held_out.images, digits.held_out.images)
    assert rows(other.held_out) != rows(digits.held_out)
    np.testing.assert_array_equal(other.test.images, digits.test.images)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5])
def test_impossible_fraction(digits, fraction):
    with pytest.raises(InputError, match="held_out"):
        sources.split_held_out(digits.train, fraction, jax.random.key(0))


def test_fraction_that_empties_a_class():
    small = sources.Dataset(
        np.zeros((3, 2, 2, 1), np.uint8), np.int32([0, 0, 1]), ("cat", "dog")
    )
    with pytest.raises(InputError, match="'dog' has 1"):
        sources.split_held_out(small, 0.5, jax.random.key(0))


def test_per_class_indices():
    labels = np.int32([2, 0, 1, 0, 2, 1, 0, 1, 2, 2])
    key = jax.random.key(0)
    chosen = sources.per_class_indices(key, labels, 3, 2)
    np.testing.assert_array_equal(labels[chosen], [0, 0, 1, 1, 2, 2])
    assert len(set(chosen.tolist())) == 6
    np.testing.assert_array_equal(
        sources.per_class_indices(key, labels, 3, 2), chosen
    )
    others = [
        sources.per_class_indices(jax.random.key(seed), labels, 3, 2).tolist()
        for seed in range(1, 4)
    ]
    assert any(other != chosen.tolist() for other in others)
    assert len(sources.per_class_indices(key, labels, 3, 3)) == 9
    with pytest.raises(InputError, match=r"class 0 has 3 .* the 4"):
        sources.per_class_indices(key, labels, 3, 4)


def test_one_hot():
    np.testing.assert_array_equal(
        sources.one_hot(np.int32([1, 0]), 3),
        np.float32([[0, 1, 0], [1, 0, 0]]),
    )
    assert sources.one_hot(np.int32([1]), 3).dtype == np.float32


def test_unknown_source():
    with pytest.raises(InputError, match="cifar10, digits, npz"):
        sources.load("minst", held_out=0.1, seed=0)


def test_cifar10_that_is_not_prepared(tmp_path):
    with pytest.raises(InputError, match="data_dir"):
        sources.load("cifar10", data_dir=str(tmp_path), held_out=0.1, seed=0)


# --- A file of the user's own ------------------------------------------------


def arrays(**changes):
    rng = np.random.default_rng(0)
    found = {
        "train_images": rng.integers(0, 256, (8, 4, 3, 2), dtype=np.uint8),
        "train_labels": np.arange(8) % 2,
        "test_images": rng.integers(0, 256, (4, 4, 3, 2), dtype=np.uint8),
        "test_labels": np.arange(4) % 2,
    }
    return found | changes


def read(tmp_path, found):
    np.savez(tmp_path / "own.npz", **found)
    return sources.load(
        "npz", data_dir=str(tmp_path / "own.npz"), held_out=0.25, seed=0
    )


def test_npz(tmp_path):
    given = arrays()
    splits = read(tmp_path, given)
    np.testing.assert_array_equal(splits.test.images, given["test_images"])
    np.testing.assert_array_equal(splits.test.labels, given["test_labels"])
    train = sources.Dataset(given["train_images"], given["train_labels"], ())
    assert rows(splits.train, splits.held_out) == rows(train)
    assert np.bincount(splits.held_out.labels).tolist() == [1, 1]
    assert splits.train.class_names == ("0", "1")
    assert splits.train.labels.dtype == np.int32


def test_npz_of_grey_floats_with_names(tmp_path):
    given = arrays()
    changes = {
        name: np.float32(given[name][..., 0] / 255)
        for name in ("train_images", "test_images")
    }
    splits = read(
        tmp_path, given | changes | {"class_names": np.array(["cat", "dog"])}
    )
    np.testing.assert_array_equal(
        splits.test.images, given["test_images"][..., :1]
    )
    assert splits.test.class_names == ("cat", "dog")


NAN = np.zeros((8, 4, 3, 2), np.float32)
NAN[3, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"train_images": NAN}, "train_images holds NaN .* first is number 3"),
        ({"test_images": np.full((4, 4, 3, 2), 2.0)}, "test_images are floats"),
        ({"train_images": np.zeros((8, 24), np.uint8)}, "shape"),
        ({"train_images": np.zeros((8, 4, 3, 2), np.int64)}, "uint8 or floats"),
        ({"train_labels": np.arange(7) % 2}, "8 integers"),
        ({"train_labels": np.arange(8) / 8}, "integers"),
        ({"test_labels": np.array([0, 1, -1, 0])}, "test_labels must lie in"),
        ({"class_names": np.array(["cat"])}, "must lie in 0..0"),
        ({"train_images": np.zeros((0, 4, 3, 2), np.uint8)}, "shape"),
    ],
)
def test_npz_that_cannot_be(tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        read(tmp_path, arrays(**changes))


def test_npz_that_lacks_an_array(tmp_path):
    found = arrays()
    del found["test_labels"]
    with pytest.raises(InputError, match="lacks test_labels; it must hold"):
        read(tmp_path, found)


@pytest.mark.parametrize(
    "content", [None, b"", b"no zip", b"PK\x03\x04cut"], ids=repr
)
def test_npz_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "own.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"own\.npz"):
        sources.load("npz", data_dir=str(path), held_out=0.1, seed=0)


def test_npy_is_no_npz(tmp_path):
    np.save(tmp_path / "own.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"\.npz file"):
        sources.load(
            "npz", data_dir=str(tmp_path / "own.npy"), held_out=0.1, seed=0
        )


def test_npz_without_pickles(tmp_path):
    with pytest.raises(InputError, match="object"):
        read(tmp_path, arrays(train_labels=np.array([None] * 8)))


# --- Preprocessing -----------------------------------------------------------


def test_standardise():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1200, 2, 3, 2), dtype=np.uint8)
    images[..., 1] //= 4
    fitted = preprocess.fit("standardise", images)
    pixels = images / 255
    np.testing.assert_allclose(fitted.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(fitted.std, pixels.std((0, 1, 2)), rtol=1e-6)
    inputs = np.asarray(preprocess.apply(fitted, images))
    np.testing.assert_allclose(inputs.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(inputs.std((0, 1, 2)), 1, rtol=1e-5)
    back = preprocess.invert(fitted, inputs)
    np.testing.assert_allclose(back, pixels, atol=1e-6)
    # Beyond black and white it stays what it is.
    assert np.min(preprocess.invert(fitted, inputs * 9)) < 0
    floats = preprocess.fit("standardise", np.float32(pixels))
    np.testing.assert_allclose(floats.std, fitted.std, rtol=1e-5)


def test_constant_channel():
    fitted = preprocess.fit("standardise", np.full((3, 2, 2, 1), 51, np.uint8))
    np.testing.assert_allclose(fitted.mean, 0.2, rtol=1e-6)
    assert fitted.std == 1


def test_no_preprocessing():
    images = np.uint8([[[[0, 51]]]])
    fitted = preprocess.fit("none", images)
    np.testing.assert_allclose(
        preprocess.apply(fitted, images), [[[[0, 0.2]]]], rtol=1e-6
    )


def test_unknown_preprocessing():
    with pytest.raises(InputError, match="standardise or none"):
        preprocess.fit("zca", np.zeros((1, 2, 2, 1), np.uint8))


def test_class_without_training_images(tmp_path):
    found = arrays()
    for split in ("train", "test"):
        found[f"{split}_labels"] = found[f"{split}_labels"] + 1
    with pytest.raises(InputError, match="class '0' has no training images"):
        read(tmp_path, found)


def test_npz_needs_a_path():
    with pytest.raises(InputError, match=r"set config\.data\.data_dir"):
        sources.load("npz", held_out=0.1, seed=0)
