"""Listing a folder: every image once, under its class; or what is amiss."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddjax.data import folders
from ddjax.data.folders import list_images, list_tiny_imagenet, usual_side
from ddjax.types import InputError


def grow(root, *paths):
    """Empty files: only their names are read."""
    for path in paths:
        path = root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def found(listing, split="train"):
    """(path, class name) of every image, in order."""
    paths, labels = listing.splits[split]
    assert labels.dtype == np.int32 and labels.shape == (len(paths),)
    return [(p, listing.class_names[label]) for p, label in zip(paths, labels)]


# --- One folder per class ----------------------------------------------------


def test_classes_alone(tmp_path):
    grow(tmp_path, "dog/b.png", "cat/2.jpg", "cat/10.JPG", "dog/a/z.png")
    listing = list_images(tmp_path)
    assert listing.class_names == ("cat", "dog")
    assert list(listing.splits) == ["train"]
    assert found(listing) == [
        ("cat/10.JPG", "cat"),
        ("cat/2.jpg", "cat"),
        ("dog/a/z.png", "dog"),
        ("dog/b.png", "dog"),
    ]
    assert listing.ignored == 0


@pytest.mark.parametrize("train", ["train", "training", "Train"])
@pytest.mark.parametrize(
    "test", ["test", "testing", "val", "valid", "validation", "TEST", "Val"]
)
def test_names_of_the_splits(tmp_path, train, test):
    # As ImageNet has them.
    grow(
        tmp_path,
        f"{train}/n02/n02_2.JPEG",
        f"{train}/n01/n01_1.JPEG",
        f"{test}/n02/v3.JPEG",
        f"{test}/n01/v9.JPEG",
    )
    listing = list_images(tmp_path)
    assert list(listing.splits) == ["train", "test"]
    assert found(listing) == [
        (f"{train}/n01/n01_1.JPEG", "n01"),
        (f"{train}/n02/n02_2.JPEG", "n02"),
    ]
    assert found(listing, "test") == [
        (f"{test}/n01/v9.JPEG", "n01"),
        (f"{test}/n02/v3.JPEG", "n02"),
    ]


@pytest.mark.parametrize("test", ["test", "testing"])
@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_val_is_held_out_beside_a_test(tmp_path, test, val):
    grow(
        tmp_path,
        *(f"train/{c}/1.png" for c in "ab"),
        *(f"{test}/{c}/2.png" for c in "ab"),
        *(f"{val}/{c}/3.png" for c in "ab"),
    )
    listing = list_images(tmp_path)
    assert set(listing.splits) == {"train", "test", "held_out"}
    assert found(listing, "test")[1] == (f"{test}/b/2.png", "b")
    assert found(listing, "held_out")[0] == (f"{val}/a/3.png", "a")


def test_train_without_test(tmp_path):
    grow(tmp_path, "train/a/1.png", "train/b/1.png", "notes/x/y.txt")
    assert list(list_images(tmp_path).splits) == ["train"]


def test_a_test_that_lacks_a_class_keeps_the_numbers(tmp_path):
    grow(tmp_path, "train/a/1.png", "train/b/1.png", "test/b/2.png")
    assert found(list_images(tmp_path), "test") == [("test/b/2.png", "b")]


def test_every_extension(tmp_path):
    names = "png jpg jpeg jpe bmp gif webp tif tiff ppm pgm pbm".split()
    names += [name.upper() for name in names]
    grow(tmp_path, *(f"{c}/{i}.{n}" for c in "ab" for i, n in enumerate(names)))
    listing = list_images(tmp_path)
    assert len(found(listing)) == 2 * len(names) and listing.ignored == 0


def test_what_is_ignored(tmp_path):
    grow(
        tmp_path,
        "README",  # 1
        ".DS_Store",
        ".git/objects/a.png",
        "train/labels.csv",  # 2
        "train/.cache/a.png",
        "train/a/1.png",
        "train/a/._1.png",
        "train/a/.thumbs/1.png",
        "train/a/Thumbs.db",  # 3
        "train/a/deep/png",  # 4
        "train/a/deep/2.png.txt",  # 5
        "train/b/1.png",
        "test/about.txt",  # 6
        "test/a/1.png",
        "test/a/x.npy",  # 7
    )
    os.mkfifo(tmp_path / "train/a/pipe.png")  # 8
    (tmp_path / "train/a/folder.png").mkdir()
    grow(tmp_path, "train/a/folder.png/3.png")
    listing = list_images(tmp_path)
    assert found(listing) == [
        ("train/a/1.png", "a"),
        ("train/a/folder.png/3.png", "a"),
        ("train/b/1.png", "b"),
    ]
    assert found(listing, "test") == [("test/a/1.png", "a")]
    assert listing.ignored == 8


def test_links(tmp_path):
    grow(tmp_path, "elsewhere/1.png", "elsewhere/in/2.png", "far/test/b/3.png")
    root = grow(tmp_path / "set", "train/b/1.png")
    (root / "train/a").symlink_to(tmp_path / "elsewhere")
    (root / "test").symlink_to(tmp_path / "far/test")
    # A link to a file is an image; one to a folder, below a class, is not
    # followed: it may lead round in a circle.
    (root / "train/b/2.png").symlink_to(tmp_path / "elsewhere/1.png")
    (root / "train/b/again").symlink_to(root / "train")
    (root / "train/b/again.png").symlink_to(root / "train")
    (root / "train/itself").symlink_to(root / "train/itself")
    listing = list_images(root)
    assert [path for path, _ in found(listing)] == [
        "train/a/1.png",
        "train/a/in/2.png",
        "train/b/1.png",
        "train/b/2.png",
    ]
    assert found(listing, "test") == [("test/b/3.png", "b")]
    assert listing.ignored == 3


def test_a_class_that_cannot_be_shown(tmp_path):
    """It would clear the terminal."""
    grow(tmp_path, "dog/b.png", "a\x1b[2J/2.jpg")
    with pytest.raises(InputError, match="cannot be shown: rename it"):
        list_images(tmp_path)


def test_names_of_any_bytes(tmp_path):
    grow(tmp_path, "à/ü ö.png", "b/%s.png")
    with open(os.fsencode(tmp_path / "b") + b"/\xff.png", "w"):
        pass
    listing = list_images(tmp_path)
    assert listing.class_names == ("b", "à")
    assert len(found(listing)) == 3 and len(listing.stamp) == 64


def test_many_files(tmp_path):
    for c in range(20):
        (tmp_path / f"{c:02}").mkdir()
        for i in range(100):
            (tmp_path / f"{c:02}/{i}.png").touch()
    listing = list_images(tmp_path)
    paths, labels = listing.splits["train"]
    assert paths == sorted(paths) and len(set(paths)) == 2_000
    np.testing.assert_array_equal(labels, np.arange(2_000) // 100)


# --- The stamp ---------------------------------------------------------------


def rewrite(root):
    (root / "a/1.png").write_bytes(b"longer")
    os.utime(root / "a/1.png", ns=(0, 10**9))


def touch(root):
    os.utime(root / "a/1.png", ns=(0, 1_000_000_001))


def rename(root):
    (root / "a/1.png").rename(root / "a/3.png")


def move(root):
    (root / "a/1.png").rename(root / "b/1.png")


def remove(root):
    (root / "a/1.png").unlink()


def add(root):
    shutil.copy2(root / "a/1.png", root / "a/1b.png")


@pytest.mark.parametrize("change", [rewrite, touch, rename, move, remove, add])
def test_stamp_changes_with_the_folder(tmp_path, change):
    grow(tmp_path, "a/1.png", "a/2.png", "b/2.png")
    for path in tmp_path.glob("*/*.png"):
        os.utime(path, ns=(0, 10**9))
    before = list_images(tmp_path).stamp
    change(tmp_path)
    assert list_images(tmp_path).stamp != before


def test_stamp_stays_with_the_images(tmp_path):
    root = grow(tmp_path / "set", "a/1.png", "b/2.png")
    before = list_images(root).stamp
    grow(root, "a/notes.txt", ".hidden", "README")
    os.utime(root / "a/1.png", ns=(5, (root / "a/1.png").stat().st_mtime_ns))
    assert list_images(root)[2:] == (before, 2)
    root.rename(tmp_path / "moved")
    assert list_images(tmp_path / "moved").stamp == before


# --- Folders that cannot be --------------------------------------------------


@pytest.mark.parametrize(
    "paths, said",
    [
        (["1.png", "a/1.png"], "1.png lies outside any class: put the images"),
        (["train/1.png", "train/a/1.png"], "train/1.png lies outside any"),
        (
            ["train/a/1.png", "train/b/1.png", "test/1.png"],
            "test/1.png lies outside any class: .* one folder per class",
        ),
        (["README"], "holds no class folders"),
        (["train/README", "a/1.png"], "train holds no class folders"),
        (
            ["train/a/1.png", "train/b/1.png", "test/README"],
            "test holds no class folders",
        ),
        (["a/1.png"], r"one class only \('a'\): a classifier needs at least"),
        (["train/a/1.png", "test/a/1.png"], "train holds one class only"),
        (
            ["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png"],
            "val/c is a class that .*train lacks",
        ),
        (
            ["a/1.png", "b/notes.txt"],
            "b holds no images: remove the folder or add images",
        ),
        (
            ["train/a/1.png", "train/b/1.png", "test/a/1.txt", "test/b/1.png"],
            "test/a holds no images: remove the folder or add images",
        ),
        (
            ["train/a/1.png", "training/a/1.png"],
            "holds both train(ing)? and train(ing)?",
        ),
        (
            ["train/a/1.png", "test/a/1.png", "TEST/a/1.png"],
            "holds both TEST and test",
        ),
        (["test/a/1.png", "val/b/1.png"], "holds test but no train"),
        (["a/1.png", "b/1.png", "test/a/2.png"], "holds test but no train"),
        (
            ["a/images/1.png", "a/masks/1.png", "b/images/1.png"],
            "a/masks would count as images of its class",
        ),
        (["a/1.png", "b\udcff/1.png"], "is no text in UTF-8"),
    ],
)
def test_folders_that_cannot_be(tmp_path, paths, said):
    grow(tmp_path, *paths)
    with pytest.raises(InputError, match=said) as caught:
        list_images(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_no_folder(tmp_path):
    grow(tmp_path, "file")
    for said in (
        "there is no folder .*gone: ",
        "file cannot .*Not a directory",
    ):
        where = "gone" if "gone" in said else "file"
        for listing in (list_images, list_tiny_imagenet):
            with pytest.raises(InputError, match=said):
                listing(tmp_path / where)


def test_a_link_that_leads_nowhere(tmp_path):
    grow(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b/2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"b/2\.png.*No such file.*remove it"):
        list_images(tmp_path)


def test_no_permission(tmp_path, monkeypatch):
    grow(tmp_path, "a/1.png", "b/1.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    with pytest.raises(InputError, match=r"/b cannot .*Permission denied"):
        list_images(tmp_path)


def test_the_usual_side_is_the_median_of_the_shorter_ones(tmp_path):
    for split in "", "train":
        root = grow(tmp_path / f"set{split}", f"{split}/c/notes.txt")
        for name, size in {
            "a/1.png": (40, 28),
            "a/2.png": (28, 28),
            "b/1.jpg": (500, 300),
            "b/2.png": (30, 90),
            "b/3.gif": (9, 9),
        }.items():
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size).save(path)
        (root / split / "a" / "0.png").write_bytes(b"broken")
        os.mkfifo(root / split / "a" / "00.png")
        (root / split / "a" / "loop.png").symlink_to("loop.png")
        assert usual_side(root) == 28


def test_the_usual_side_of_images_in_deeper_folders(tmp_path):
    for name in "a", "b":
        path = tmp_path / name / "deep" / "er" / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("L", (30, 20)).save(path)
    assert usual_side(tmp_path) == 20


def test_the_usual_side_opens_few_images(tmp_path):
    """The first of each class, and of every second or later class only."""
    for name in range(33):
        folder = tmp_path / f"{name:02}"
        folder.mkdir()
        for number in range(9):
            side = 40 if number == 8 or name % 2 else 12
            Image.new("L", (side, side)).save(folder / f"{number}.png")
    assert usual_side(tmp_path) == 12


def test_no_usual_side_where_no_image_is_found(tmp_path):
    assert usual_side(tmp_path / "nowhere") is None
    assert usual_side(grow(tmp_path, "loose.png")) is None
    assert usual_side(grow(tmp_path / "two", "train/a/x", "Train/a/x")) is None


# --- Tiny ImageNet -----------------------------------------------------------


@pytest.fixture
def tiny(tmp_path):
    """Two of its classes, not in alphabetical order, and a third's name."""
    root = tmp_path / "tiny-imagenet-200"
    for wnid in ("n02", "n01"):
        grow(
            root,
            *(f"train/{wnid}/images/{wnid}_{i}.JPEG" for i in range(2)),
            f"train/{wnid}/{wnid}_boxes.txt",
        )
    grow(root, *(f"val/images/val_{i}.JPEG" for i in range(3)))
    grow(root, "test/images/test_0.JPEG")
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "words.txt").write_text(
        "n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tCardigan\n"
    )
    (root / "val/val_annotations.txt").write_text(
        "val_0.JPEG\tn01\t0\t32\t44\t62\n"
        "val_1.JPEG\tn02\t0\t32\t44\t62\n"
        "val_2.JPEG\tn01\t0\t32\t44\t62\n"
    )
    return root


def test_tiny_imagenet(tiny):
    listing = list_tiny_imagenet(tiny)
    assert listing.class_names == ("Cardigan", "goldfish")
    assert list(listing.splits) == ["train", "test"]
    assert found(listing) == [
        ("train/n02/images/n02_0.JPEG", "Cardigan"),
        ("train/n02/images/n02_1.JPEG", "Cardigan"),
        ("train/n01/images/n01_0.JPEG", "goldfish"),
        ("train/n01/images/n01_1.JPEG", "goldfish"),
    ]
    assert found(listing, "test") == [
        ("val/images/val_1.JPEG", "Cardigan"),
        ("val/images/val_0.JPEG", "goldfish"),
        ("val/images/val_2.JPEG", "goldfish"),
    ]
    assert listing.ignored == 0


def test_tiny_imagenet_inside_the_folder(tiny):
    whole, inside = list_tiny_imagenet(tiny.parent), list_tiny_imagenet(tiny)
    for split, (paths, labels) in inside.splits.items():
        assert whole.splits[split][0] == [f"{tiny.name}/{p}" for p in paths]
        np.testing.assert_array_equal(whole.splits[split][1], labels)
    assert whole.class_names == inside.class_names


def test_tiny_imagenet_with_one_name_twice(tiny):
    (tiny / "words.txt").write_text("\ufeffn01\tcrane, bird\r\nn02\tcrane\r\n")
    assert list_tiny_imagenet(tiny).class_names == (
        "crane (n02)",
        "crane (n01)",
    )


@pytest.mark.parametrize(
    "name",
    [
        "wnids.txt",
        "words.txt",
        "train",
        "train/n01",
        "train/n01/images",
        "val",
        "val/images",
        "val/val_annotations.txt",
    ],
)
def test_tiny_imagenet_that_lacks_a_part(tiny, name):
    path = tiny / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=name) as caught:
        list_tiny_imagenet(tiny)
    assert "tiny-imagenet-200.zip" in str(caught.value)


ANNOTATIONS = "val_0.JPEG\tn01\nval_1.JPEG\tn02\n"


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("wnids.txt", "n02\n", "names 1 class"),
        ("wnids.txt", "n02\nn01\nn02\n", "wnids.txt names n02 twice"),
        ("wnids.txt", "n02\nn03\n", "words.txt has no name for n03"),
        ("words.txt", "n01\tgoldfish\nn02\n", "words.txt has no name for n02"),
        ("words.txt", b"\xff\xfe", r"words.txt cannot be read \(not text\)"),
        ("train/1.JPEG", "", "train/1.JPEG lies outside any class"),
        ("train/n03/images/1.JPEG", "", "train/n03 is a class that wnids.txt"),
        ("val/images/x.JPEG", "", "x.JPEG is not in val_annotations.txt"),
        (
            "val/val_annotations.txt",
            f"{ANNOTATIONS}val_2.JPEG\tn01\nval_3.JPEG\tn01\n",
            "val/images/val_3.JPEG is in val_annotations.txt but not there",
        ),
        (
            "val/val_annotations.txt",
            f"{ANNOTATIONS}val_2.JPEG\tn09\n",
            "val_annotations.txt gives 'val_2.JPEG' no wnid",
        ),
        (
            "val/val_annotations.txt",
            f"{ANNOTATIONS}val_2.J",
            "val_annotations.txt gives 'val_2.J' no wnid",
        ),
        (
            "val/val_annotations.txt",
            f"{ANNOTATIONS}val_1.JPEG\tn01\n",
            "val_annotations.txt names val_1.JPEG twice",
        ),
    ],
)
def test_tiny_imagenet_that_contradicts_itself(tiny, name, text, said):
    path = tiny / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=said) as caught:
        list_tiny_imagenet(tiny)
    assert "tiny-imagenet-200.zip" in str(caught.value)


def test_tiny_imagenet_class_without_images(tiny):
    for path in (tiny / "train/n01/images").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="train/n01/images holds no images"):
        list_tiny_imagenet(tiny)


REAL = Path(__file__).resolve().parents[2] / "shared/data/covid19_xray"


@pytest.mark.skipif(not REAL.is_dir(), reason="no real data beside the project")
def test_real_xrays():
    found = list_images(REAL)
    assert found.class_names == ("covid", "normal", "pneumonia")
    counts = {
        split: np.bincount(labels).tolist()
        for split, (_, labels) in found.splits.items()
    }
    assert counts == {"train": [99, 400, 400], "test": [25, 100, 100]}
