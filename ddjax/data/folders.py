"""What a folder of images holds, before any is decoded."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import stat
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddjax.data import decode
from ddjax.data.classes import check_names
from ddjax.types import InputError

__all__ = ["Listing", "list_images", "list_tiny_imagenet", "usual_side"]

EXTENSIONS = tuple(
    ".png .jpg .jpeg .jpe .bmp .gif .webp .tif .tiff .ppm .pgm .pbm".split()
)

# By what a split is called: each role with the names that it goes by.
TRAIN = ("train", "training")
TEST = ("test", "testing")
VALIDATION = ("val", "valid", "validation")


class Listing(NamedTuple):
    """The images of a folder.

    Attributes:
      class_names: k names, the labels' meanings.
      splits: "train" and, where the folder has them, "test" and "held_out":
        n paths relative to the folder, with slashes, and [n] int32 labels.
        Class by class, and by path within each.
      stamp: 64 hexadecimal digits, others as soon as an image is added,
        removed, renamed or written to.
      ignored: files that are no images by their name.
    """

    class_names: tuple[str, ...]
    splits: dict[str, tuple[list[str], np.ndarray]]
    stamp: str
    ignored: int


class _Image(NamedTuple):
    path: str  # relative to the folder of the data set
    size: int
    mtime_ns: int


def list_images(folder: Path, *, without: Sequence[str] = ()) -> Listing:
    """Lists a folder with one folder per class.

    Either ``train/class/...``, with ``test`` or ``val`` folders of the same
    classes beside it, or ``class/...`` alone, which is all "train". A split
    may also be called training, testing, valid or validation, in capitals or
    not. ``val`` is the test split where there is no ``test``, and is held out
    where there is. A class's images may lie at any depth below its folder.
    Hidden files and folders are passed over; so are links to folders, but for
    the folders of splits and classes themselves.

    Args:
      folder: holds the splits or the classes.
      without: names of folders in it to leave alone.

    Returns:
      Listing, classes in the order of their names.

    Raises:
      InputError: no such folder, images without a class, a class without
        images, fewer than two classes, or a test class that is not trained.
    """
    children, ignored = _children(folder, "")
    children = [child for child in children if child not in without]
    for child in children:
        if not _is_text(child):
            raise InputError(
                f"the name of the folder {os.fsencode(child)!r} in {folder} "
                "is no text in UTF-8: rename it"
            )
    roles = _roles(folder, children)
    classes = {}
    for split, where in roles.items():
        names, more = _children(folder, where) if where else (children, ignored)
        ignored += more if where else 0
        if not names:
            raise InputError(
                f"{folder / where} holds no class folders: put the images in "
                "one folder per class"
            )
        classes[split] = names
    class_names = classes["train"]
    if len(class_names) < 2:
        raise InputError(
            f"{folder / roles['train']} holds one class only "
            f"({class_names[0]!r}): a classifier needs at least two"
        )
    check_names(f"{folder / roles['train']}: ", class_names)
    splits = {}
    for split, names in classes.items():
        if unknown := sorted(set(names) - set(class_names)):
            raise InputError(
                f"{folder / roles[split] / unknown[0]} is a class that "
                f"{folder / roles['train']} lacks: add it there, or remove it"
            )
        splits[split] = [[] for _ in class_names]
        for label, name in enumerate(class_names):
            if name in names:
                splits[split][label], more = _images(
                    folder, _join(roles[split], name)
                )
                ignored += more
    return _listing(class_names, splits, ignored)


_CLASSES_SEEN, _IMAGES_SEEN = 32, 8


def usual_side(folder: Path) -> int | None:
    """The median of the shorter sides of a folder's images, in pixels.

    Of the first images of some classes by name: few are opened, whatever the
    folder holds, and always the same.

    Args:
      folder: see ``list_images``.

    Returns:
      None where no image was found: ``list_images`` tells what is wrong.
    """
    try:
        names = _children(folder, "")[0]
        where = _roles(folder, names)["train"]
        names = _children(folder, where)[0] if where else names
        sides = []
        for name in names[:: max(1, -(-len(names) // _CLASSES_SEEN))]:
            for image in _first_images(folder, _join(where, name)):
                with contextlib.suppress(decode.Unreadable):
                    sides.append(min(decode.header(folder / image)[:2]))
    except InputError:
        return None
    return statistics.median_low(sides) if sides else None


def _first_images(folder: Path, where: str) -> list[str]:
    """Some images of a class, at any depth, as ``_images`` would find them."""
    found: list[str] = []
    left = [where]
    while left and len(found) < _IMAGES_SEEN:
        inside = left.pop(0)
        entries = sorted(_entries(folder, inside), key=lambda entry: entry.name)
        paths = [f"{inside}/{entry.name}" for entry in entries]
        # Not entry.is_file: it raises where a link leads to itself.
        found += itertools.islice(
            (
                path
                for path in paths
                if _is_image(path) and os.path.isfile(folder / path)
            ),
            _IMAGES_SEEN - len(found),
        )
        left += [
            path
            for path, entry in zip(paths, entries)
            if entry.is_dir(follow_symlinks=False)
        ]
    return found


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _roles(folder: Path, children: list[str]) -> dict[str, str]:
    """Which child folder is which split; "" stands for the folder itself."""

    def find(names):
        found = [child for child in children if child.lower() in names]
        if len(found) > 1:
            raise InputError(
                f"{folder} holds both {found[0]} and {found[1]}: which is "
                "meant? Keep one"
            )
        return found[0] if found else None

    if not any(child.lower() in TRAIN for child in children):
        parts = [c for c in children if c.lower() in TEST + VALIDATION]
        if parts:
            raise InputError(
                f"{folder} holds {parts[0]} but no train: put the classes of "
                "the training images into train/, or name the folder that "
                "holds both"
            )
        return {"train": ""}
    roles = {"train": find(TRAIN)}
    test, validation = find(TEST), find(VALIDATION)
    if test or validation:
        roles["test"] = test or validation
    if test and validation:
        roles["held_out"] = validation
    return roles


# --- Tiny ImageNet -----------------------------------------------------------

TINY = "tiny-imagenet-200"
_UNPACK = f"unpack {TINY}.zip from cs231n.stanford.edu afresh"


def list_tiny_imagenet(folder: Path) -> Listing:
    """Lists Tiny ImageNet as published.

    Its classes are numbered as in ``wnids.txt`` and called by the first name
    that ``words.txt`` has for them, with the wnid behind where two classes
    share it. The validation images are the test split; the test images are
    published without labels and left alone.

    Args:
      folder: holds ``wnids.txt``, or ``tiny-imagenet-200`` that does.

    Returns:
      Listing, with paths relative to ``folder`` in either case.

    Raises:
      InputError: a part is missing, or two parts contradict each other.
    """
    root = ""
    if not os.path.exists(folder / "wnids.txt") and os.path.isdir(
        folder / TINY
    ):
        root = TINY
    _entries(folder, root)  # says so if there is no such folder
    wnids = _lines(folder, _join(root, "wnids.txt"))
    for at, wnid in enumerate(wnids):
        if wnid in wnids[:at]:
            raise InputError(
                f"{folder / root / 'wnids.txt'} names {wnid} twice: {_UNPACK}"
            )
    if len(wnids) < 2:
        raise InputError(
            f"{folder / root / 'wnids.txt'} names {len(wnids)} classes, and a "
            f"classifier needs at least two: {_UNPACK}"
        )
    class_names = _class_names(folder, root, wnids)
    train = _join(root, "train")
    if unknown := sorted(
        set(_children(folder, train, _UNPACK)[0]) - set(wnids)
    ):
        raise InputError(
            f"{folder / train / unknown[0]} is a class that wnids.txt does "
            f"not name: remove it, or {_UNPACK}"
        )
    splits = {"train": [], "test": _annotated(folder, root, wnids)}
    ignored = 0
    for wnid in wnids:
        found, more = _images(folder, f"{train}/{wnid}/images", _UNPACK)
        splits["train"].append(found)
        ignored += more
    return _listing(class_names, splits, ignored)


def _class_names(folder, root, wnids):
    """The first name of each wnid, told apart where two have the same."""
    path = _join(root, "words.txt")
    names = {}
    for line in _lines(folder, path):
        wnid, _, words = line.partition("\t")
        names[wnid] = words.partition(",")[0].strip()
    for wnid in wnids:
        if not names.get(wnid):
            raise InputError(
                f"{folder / path} has no name for {wnid}: {_UNPACK}"
            )
    chosen = [names[wnid] for wnid in wnids]
    return [
        f"{name} ({wnid})" if chosen.count(name) > 1 else name
        for name, wnid in zip(chosen, wnids)
    ]


def _annotated(folder, root, wnids):
    """The validation images of each class, as val_annotations.txt has them."""
    path = _join(root, "val/val_annotations.txt")
    where = _join(root, "val/images")
    labels = {}
    for line in _lines(folder, path):
        name, *fields = line.split("\t")
        if not fields or fields[0] not in wnids:
            raise InputError(
                f"{folder / path} gives {name!r} no wnid that wnids.txt "
                f"names: {_UNPACK}"
            )
        if name in labels:
            raise InputError(f"{folder / path} names {name} twice: {_UNPACK}")
        labels[name] = wnids.index(fields[0])
    split = [[] for _ in wnids]
    for image in _images(folder, where, _UNPACK)[0]:
        name = image.path.removeprefix(f"{where}/")
        if name not in labels:
            raise InputError(
                f"{folder / image.path} is not in val_annotations.txt: "
                f"remove it, or {_UNPACK}"
            )
        split[labels.pop(name)].append(image)
    if labels:
        raise InputError(
            f"{folder / where / min(labels)} is in val_annotations.txt but "
            f"not there: {_UNPACK}"
        )
    return split


def _lines(folder: Path, path: str) -> list[str]:
    """What a text file says, without its empty lines."""
    try:
        text = (folder / path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise InputError(
            f"{folder / path} cannot be read ({why}): {_UNPACK}"
        ) from None
    return [line.strip() for line in text.splitlines() if line.strip()]


# --- Reading folders ---------------------------------------------------------


def _join(where: str, name: str) -> str:
    return f"{where}/{name}" if where else name


def _entries(folder: Path, where: str, mend: str = "") -> list[os.DirEntry]:
    """What is in a folder and not hidden, in no order.

    In this and the next two, ``mend`` tells the user what to do about a folder
    that is not as it should be, if that is known better than here.
    """
    try:
        with os.scandir(folder / where) as entries:
            return [e for e in entries if not e.name.startswith(".")]
    except FileNotFoundError:
        raise InputError(
            f"there is no folder {folder / where}: {mend or 'check the path'}"
        ) from None
    except OSError as error:
        mend = mend or "name a folder of images that you may read"
        raise InputError(
            f"{folder / where} cannot be read ({error.strerror}): {mend}"
        ) from None


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _children(
    folder: Path, where: str, mend: str = ""
) -> tuple[list[str], int]:
    """The folders in a folder that is to hold folders only.

    Returns:
      (their names, sorted; how many other files there are).
    """
    names, ignored = [], 0
    for entry in _entries(folder, where, mend):
        # Not entry.is_dir: it raises where a link leads to itself.
        if os.path.isdir(entry):
            names.append(entry.name)
        elif _is_image(entry.name):
            mend = mend or "put the images in one folder per class"
            raise InputError(
                f"{folder / where / entry.name} lies outside any class: {mend}"
            )
        else:
            ignored += 1
    return sorted(names), ignored


def _images(
    folder: Path, where: str, mend: str = ""
) -> tuple[list[_Image], int]:
    """Every image at any depth of a folder, looked at once each.

    Returns:
      (the images, sorted by path; how many other files there are).
    """
    found, ignored, left = [], 0, [where]
    while left:
        inside = left.pop()
        for entry in _entries(folder, inside, mend):
            path = f"{inside}/{entry.name}"
            if entry.name == "masks" and entry.is_dir():
                raise InputError(
                    f"{folder / path} would count as images of its class: "
                    "move the masks out of the folder"
                )
            if entry.is_dir(follow_symlinks=False):
                left.append(path)
                continue
            if not _is_image(entry.name):
                ignored += 1
                continue
            try:
                status = entry.stat()
            except OSError as error:
                raise InputError(
                    f"{folder / path} cannot be read ({error.strerror}): mend "
                    "or remove it"
                ) from None
            if stat.S_ISREG(status.st_mode):
                found.append(_Image(path, status.st_size, status.st_mtime_ns))
            else:
                ignored += 1
    if not found:
        mend = mend or "remove the folder or add images"
        raise InputError(f"{folder / where} holds no images: {mend}")
    return sorted(found), ignored


def _listing(
    class_names: list[str], splits: dict[str, list[list[_Image]]], ignored: int
) -> Listing:
    """Numbers the classes; ``splits`` have their images class by class."""
    digest = hashlib.sha256(
        os.fsencode("\0".join(class_names))  # they may stand in a text file
    )
    numbered = {}
    for split, classes in splits.items():
        images = [image for found in classes for image in found]
        for path, size, mtime_ns in images:
            line = b"%s\0%d\0%d\n" % (os.fsencode(path), size, mtime_ns)
            digest.update(line)
        labels = np.repeat(
            np.arange(len(classes), dtype=np.int32),
            [len(found) for found in classes],
        )
        digest.update(labels.tobytes())
        numbered[split] = [image.path for image in images], labels
    return Listing(tuple(class_names), numbered, digest.hexdigest(), ignored)
