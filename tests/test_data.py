"""Data: the parts are disjoint, whole and even; what is wrong is named."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from ddjax.data import classes, imagenet, preprocess, sources
from ddjax.data.rows import Rows
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


def test_digits_are_read_as_scikit_learn_reads_them(monkeypatch):
    ours = sources._digits_as_stored()
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    for mine, its in zip(ours, sources._digits_as_stored(), strict=True):
        np.testing.assert_array_equal(mine, its)


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
    with pytest.raises(InputError, match="a share lies between 0 and 1"):
        sources.split_held_out(digits.train, fraction, jax.random.key(0))


def test_fraction_that_empties_a_class():
    small = sources.Dataset(
        np.zeros((3, 2, 2, 1), np.uint8), np.int32([0, 0, 1]), ("cat", "dog")
    )
    with pytest.raises(
        InputError, match="'dog' has too few images: of 1 for training, 1 would"
    ):
        sources.split_held_out(small, 0.5, jax.random.key(0))


def test_orders_are_those_of_jax():
    key, sizes = jax.random.key(5), [9, 1700, 1]  # 1700 are sorted twice
    for label, order in enumerate(classes.random_orders(key, sizes)):
        np.testing.assert_array_equal(
            order,
            jax.random.permutation(
                jax.random.fold_in(key, label), sizes[label]
            ),
        )


def test_per_class_indices():
    labels = np.int32([2, 0, 1, 0, 2, 1, 0, 1, 2, 2])
    key = jax.random.key(0)
    chosen = classes.per_class_indices(key, labels, 3, 2)
    np.testing.assert_array_equal(labels[chosen], [0, 0, 1, 1, 2, 2])
    assert len(set(chosen.tolist())) == 6
    np.testing.assert_array_equal(
        classes.per_class_indices(key, labels, 3, 2), chosen
    )
    others = [
        classes.per_class_indices(jax.random.key(seed), labels, 3, 2).tolist()
        for seed in range(1, 4)
    ]
    assert any(other != chosen.tolist() for other in others)
    assert len(classes.per_class_indices(key, labels, 3, 3)) == 9
    with pytest.raises(InputError, match=r"class 0 has 3 .* the 4"):
        classes.per_class_indices(key, labels, 3, 4)


def test_one_hot():
    np.testing.assert_array_equal(
        classes.one_hot(np.int32([1, 0]), 3),
        np.float32([[0, 1, 0], [1, 0, 0]]),
    )
    assert classes.one_hot(np.int32([1]), 3).dtype == np.float32


@pytest.fixture
def load(tmp_path):
    """``sources.load`` with a cache of its own."""

    def load(source, data_dir="", **kwargs):
        kwargs = {"held_out": 0.25, "seed": 0} | kwargs
        return sources.load(
            source,
            data_dir=str(data_dir),
            cache_dir=tmp_path / "cache",
            **kwargs,
        )

    return load


def test_unknown_source(load):
    with pytest.raises(InputError, match=r"mnist.* may also be digits, folder"):
        load("minst")


def test_digits_of_some_classes(digits, load):
    found = load("digits", held_out=0.1, classes="7,3", class_names="g, c")
    assert found.train.class_names == found.test.class_names == ("g", "c")
    for part, whole in zip(found, digits):
        assert set(part.labels) == {0, 1}
        if whole is digits.test:
            np.testing.assert_array_equal(
                part.images[part.labels == 0], whole.images[whole.labels == 7]
            )
    assert sum(len(part.labels) for part in found) == sum(
        np.isin(part.labels, (3, 7)).sum() for part in digits
    )


def test_digits_stay_as_they_are(load):
    with pytest.raises(InputError, match="8 x 8 and grey"):
        load("digits", form=sources.Form(size=16))


def test_first_of_each_class(load):
    found = load("digits", held_out=0.1, per_class=20)
    whole, _ = sources._digits()
    assert np.bincount(found.train.labels).tolist() == [18] * 10
    assert np.bincount(found.held_out.labels).tolist() == [2] * 10
    first = sources.first_per_class(whole, 20)
    assert rows(found.train, found.held_out) == rows(first)
    np.testing.assert_array_equal(
        first.images[first.labels == 3],
        whole.images[whole.labels == 3][:20],
    )


@pytest.mark.parametrize("names", ["a", "a,a", "a,b,c"])
def test_names_that_do_not_fit(load, names):
    with pytest.raises(InputError, match="2 different names"):
        load("digits", classes="0,1", class_names=names)


# --- Folders -----------------------------------------------------------------


def draw(path, value, size=(6, 6), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = value if mode == "L" else (value, 0, 255 - value)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    """cat: 8 pictures of 10..17, dog: 4 of 100..103."""
    for i in range(8):
        draw(tmp_path / "set" / "cat" / f"{i}.png", 10 + i)
    for i in range(4):
        draw(tmp_path / "set" / "dog" / f"{i}.png", 100 + i)
    return tmp_path / "set"


def values(dataset):
    return sorted(int(image[0, 0, 0]) for image in dataset.images)


def test_folder_without_a_test_part(folder, load):
    found = load("folder", folder)
    assert [len(part.labels) for part in found] == [6, 3, 3]
    assert sorted(v for part in found for v in values(part)) == [
        *range(10, 18),
        *range(100, 104),
    ]
    for part in found:
        assert part.class_names == ("cat", "dog")
        assert part.images.shape[1:] == (6, 6, 1)
        assert all(
            (image[0, 0, 0] >= 100) == label
            for image, label in zip(part.images, part.labels)
        )
    again = load("folder", folder)
    other = load("folder", folder, seed=1)
    assert values(again.test) == values(found.test)
    assert any(
        values(part) != values(there) for part, there in zip(other, found)
    )
    with pytest.raises(InputError, match="a share lies between 0 and 1"):
        load("folder", folder, test_share=0.0)


def test_folder_with_all_parts(folder, tmp_path, load):
    draw(tmp_path / "all" / "val" / "cat" / "0.png", 1)
    draw(tmp_path / "all" / "val" / "dog" / "0.png", 2)
    draw(tmp_path / "all" / "test" / "cat" / "0.png", 3)
    draw(tmp_path / "all" / "test" / "dog" / "0.png", 4)
    folder.rename(tmp_path / "all" / "train")
    found = load("folder", tmp_path / "all")
    assert len(found.train.labels) == 12
    assert (values(found.held_out), values(found.test)) == ([1, 2], [3, 4])


def test_a_file_that_cannot_be_read_has_no_colour(tmp_path, load):
    """It comes first, and does not count as grey."""
    for name in "abcdef":
        draw(tmp_path / "set" / "cat" / f"{name}.png", 9, mode="RGB")
        draw(tmp_path / "set" / "dog" / f"{name}.png", 8, mode="RGB")
    (tmp_path / "set" / "cat" / "0.png").write_bytes(b"no picture")
    said = []
    load("folder", tmp_path / "set", unreadable_share=0.2, say=said.append)
    assert not [line for line in said if "grey" in line]
    draw(tmp_path / "set" / "cat" / "1.png", 7)
    load("folder", tmp_path / "set", unreadable_share=0.2, say=said.append)
    (line,) = [line for line in said if "grey" in line]
    assert "cat/a.png is in colour and other images are grey" in line


def test_changed_folder(folder, load):
    before = load("folder", folder)
    draw(folder / "dog" / "9.png", 200)
    after = load("folder", folder)
    assert sum(len(part.labels) for part in after) == 13
    assert sources.fingerprint(*after) != sources.fingerprint(*before)


@pytest.mark.parametrize("source", ["folder", "tiny_imagenet", "npz"])
def test_sources_that_need_a_place(load, source):
    with pytest.raises(InputError, match=r"set config\.data\.data_dir"):
        load(source)


@pytest.mark.parametrize(
    "path", ["~nobody-of-that-name/x", "a\0b", "x" * 300], ids=repr
)
def test_paths_that_cannot_be(load, path):
    with pytest.raises(InputError):
        load("folder", path)


def test_folder_gone_bad_is_not_passed_over(folder, load, tmp_path):
    before = load("folder", folder)
    draw(folder / "stray.png", 1)
    with pytest.raises(InputError, match=r"stray\.png"):
        load("folder", folder)
    folder.rename(tmp_path / "elsewhere")
    # All of it gone: whoever has the cache can go on.
    after = load("folder", folder)
    assert values(after.test) == values(before.test)


def test_tiny_imagenet_is_in_colour(tmp_path, load):
    root = tmp_path / "tiny-imagenet-200"
    for wnid, name, value in (("n2", "cat, tom", 20), ("n1", "dog", 90)):
        for i in range(4):
            draw(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", value)
        draw(root / "val" / "images" / f"val_{wnid}.JPEG", value)
        for path, line in (
            ("wnids.txt", f"{wnid}\n"),
            ("words.txt", f"{wnid}\t{name}\n"),
            (
                "val/val_annotations.txt",
                f"val_{wnid}.JPEG\t{wnid}\t0\t0\t1\t1\n",
            ),
        ):
            with open(root / path, "a") as file:
                file.write(line)
    found = load("tiny_imagenet", tmp_path)
    assert found.test.class_names == ("cat", "dog")
    assert found.test.images.shape == (2, 6, 6, 3)
    assert [int(image[0, 0, 0]) for image in found.test.images] == [20, 90]
    assert found.test.labels.tolist() == [0, 1]


def test_imagenet_in_folders(tmp_path, load):
    wordnet, names = imagenet.subset("nette")
    for i, wnid in enumerate(sorted([*wordnet, "n09999999"])):
        for split in ("train", "val"):
            for j in range(2):
                path = tmp_path / split / wnid / f"{split}{j}.JPEG"
                draw(path, 10 * i, (9, 6), "RGB")
    draw(tmp_path / "test" / "unlabelled.JPEG", 5)
    found = load(
        "imagenet",
        tmp_path,
        classes=",".join(wordnet),
        class_names=",".join(names),
        form=sources.Form(4),
    )
    assert found.test.class_names == names
    assert found.test.images.shape == (20, 4, 4, 3)
    red = [int(image[0, 0, 0]) for image in found.test.images]
    expected = [10 * sorted(wordnet).index(w) for w in wordnet for _ in "ab"]
    assert np.abs(np.subtract(red, expected)).max() < 4  # JPEG
    with pytest.raises(InputError, match="unknown ImageNet subset 'wool'"):
        imagenet.subset("wool")


def test_what_does_not_fit_stays_on_disk(folder, load):
    inside = load("folder", folder)
    outside = load("folder", folder, in_memory_gb=0.0)
    assert isinstance(outside.train.images, Rows)
    assert not isinstance(inside.train.images, Rows)
    for here, there in zip(inside, outside):
        np.testing.assert_array_equal(here.images, np.asarray(there.images))
        np.testing.assert_array_equal(here.labels, there.labels)
    # Where they lie shapes nothing that is made of them.
    assert sources.fingerprint(*outside) == sources.fingerprint(*inside)
    assert sources.fingerprint(inside.train) != sources.fingerprint(
        load("folder", folder, seed=1).train
    )
    assert sources.fingerprint(outside.train) != sources.fingerprint(
        outside.test
    )


# --- A file of the user's own ------------------------------------------------


def arrays(**changes):
    rng = np.random.default_rng(0)
    found = {
        "train_images": rng.integers(0, 256, (8, 4, 3, 3), dtype=np.uint8),
        "train_labels": np.arange(8) % 2,
        "test_images": rng.integers(0, 256, (4, 4, 3, 3), dtype=np.uint8),
        "test_labels": np.arange(4) % 2,
    }
    return found | changes


def read(tmp_path, found, **kwargs):
    np.savez(tmp_path / "own.npz", **found)
    return sources.load(
        "npz",
        data_dir=str(tmp_path / "own.npz"),
        held_out=0.25,
        seed=0,
        cache_dir=tmp_path / "cache",
        **kwargs,
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


NAN = np.zeros((8, 4, 3, 3), np.float32)
NAN[3, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"train_images": NAN}, "train_images holds NaN .* first is number 3"),
        ({"test_images": np.full((4, 4, 3, 3), 2.0)}, "test_images are floats"),
        ({"train_images": np.zeros((8, 24), np.uint8)}, "shape"),
        ({"train_images": np.zeros((8, 3, 4, 5), np.uint8)}, "transpose"),
        ({"train_images": np.zeros((8, 4, 3, 3), np.int64)}, "uint8 or floats"),
        ({"train_labels": np.arange(7) % 2}, "8 integers"),
        ({"train_labels": np.arange(8) / 8}, "integers"),
        ({"test_labels": np.array([0, 1, -1, 0])}, "test_labels must lie in"),
        (
            {"class_names": np.array(["cat"])},
            "class_names has 1 names, and lab",
        ),
        ({"train_images": np.zeros((0, 4, 3, 3), np.uint8)}, "shape"),
        ({"train_labels": np.array(["a", "b"] * 4)}, "8 integers"),
        ({"train_labels": np.full(8, np.nan)}, "8 integers"),
        ({"train_labels": np.arange(8) + 10**13}, "labels go up to 1000000"),
        ({"class_names": np.array("cat")}, "a list of texts"),
        ({"class_names": np.array([["a", "b"]])}, "a list of texts"),
        ({"class_names": np.array(["a", "a"])}, "all be different"),
        ({"class_names": np.array(["a", " "])}, "class 1, ' ', is empty"),
        ({"class_names": np.array(["\x1b[2J", "a"])}, r"class 0, '.x1b\[2J'"),
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
        sources.load(
            "npz",
            data_dir=str(path),
            held_out=0.1,
            seed=0,
            cache_dir=tmp_path / "cache",
        )


def test_npy_is_no_npz(tmp_path):
    np.save(tmp_path / "own.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"\.npz file"):
        sources.load(
            "npz",
            data_dir=str(tmp_path / "own.npy"),
            held_out=0.1,
            seed=0,
            cache_dir=tmp_path / "cache",
        )


def test_npz_without_pickles(tmp_path):
    """Not even where the objects would pass for labels."""
    labels = np.array([0, 1] * 4, object)
    with pytest.raises(
        InputError, match=r"cannot read arrays .*array of objects"
    ):
        read(tmp_path, arrays(train_labels=labels))
    # Nor where nothing would look at them.
    with pytest.raises(
        InputError, match=r"cannot read arrays .*array of objects"
    ):
        read(tmp_path, arrays(notes=np.array([None])))


# --- Preprocessing -----------------------------------------------------------


def oracle():
    """200 images and what another implementation's ZCA makes of them.

    kornia.enhance.ZCAWhitening in float64, eps 0.1, unbiased covariance.
    """
    with np.load(Path(__file__).parent / "data" / "zca.npz") as file:
        return file["images"], file["whitened"], float(file["eps"])


def test_zca_meets_another_implementation(x64):
    images, whitened, eps = oracle()
    fitted = preprocess.fit_zca(images, eps=eps)
    found = preprocess.apply(fitted, images)
    scale = np.abs(whitened).max()
    np.testing.assert_allclose(found, whitened, rtol=0, atol=1e-9 * scale)
    back = preprocess.invert(fitted, found)
    np.testing.assert_allclose(back, images, rtol=0, atol=1e-9)


def test_zca_in_single_precision():
    images, whitened, _ = oracle()
    fitted = preprocess.fit("zca", np.rint(images * 255).astype(np.uint8))
    assert fitted.matrix.dtype == np.float32
    # The images were rounded to 1/255, and whitening scales by up to
    # 1 / sqrt(eps) = 3.2.
    found = preprocess.apply(fitted, images)
    np.testing.assert_allclose(found, whitened, atol=3.2 * 2 / 255)
    # 108 terms of single precision, twice: a few units of 1e-7 each.
    back = preprocess.invert(fitted, found)
    np.testing.assert_allclose(back, images, atol=1e-5)


def test_zca_is_kept(tmp_path, monkeypatch):
    images = oracle()[0]
    kept_in = tmp_path / "deep" / "zca.npz"
    fitted = preprocess.fit("zca", images, kept_in=kept_in)
    with monkeypatch.context() as patch:
        patch.setitem(preprocess._FITS, "zca", None)
        again = preprocess.fit("zca", images, kept_in=kept_in)
    jax.tree.map(np.testing.assert_array_equal, again, fitted)
    kept_in.write_bytes(kept_in.read_bytes()[:-9])
    again = preprocess.fit("zca", images, kept_in=kept_in)
    jax.tree.map(np.testing.assert_array_equal, again, fitted)


def test_zca_of_large_images():
    with pytest.raises(InputError, match=r"49,152 x 49,152.*standardise"):
        preprocess.fit_zca(np.zeros((2, 128, 128, 3), np.uint8))


@pytest.mark.parametrize("name", ["standardise", "zca", "none"])
def test_preprocessing_survives_as_arrays(name):
    images = oracle()[0][:, :3, :3]
    fitted = preprocess.fit(name, images)
    again = preprocess.from_arrays(preprocess.arrays(fitted))
    inputs = preprocess.apply(fitted, images)
    np.testing.assert_array_equal(preprocess.apply(again, images), inputs)
    np.testing.assert_allclose(
        preprocess.invert(again, inputs), images, atol=1e-5
    )


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
    with pytest.raises(InputError, match="standardise, zca, none"):
        preprocess.fit("zac", np.zeros((1, 2, 2, 1), np.uint8))


def test_class_without_training_images(tmp_path):
    found = arrays()
    for split in ("train", "test"):
        found[f"{split}_labels"] = found[f"{split}_labels"] + 1
    with pytest.raises(InputError, match="class '0' has no readable train"):
        read(tmp_path, found)


def test_npz_has_its_own_size(tmp_path):
    for form in (sources.Form(size=8), sources.Form(channels=1)):
        with pytest.raises(InputError, match="are for encoded images"):
            read(tmp_path, arrays(), form=form)
