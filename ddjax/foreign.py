"""Distilled images of other projects, brought to the form of ours.

a folder with images_best.pt and labels_best.pt, or another images_*.pt
    MTT and what follows it: tensors [n c h w] as networks see them,
    labels [n], or [n k] probabilities or logits (DATM)
one .pt file with {'data': [[images, labels], ..]}, or [images, labels]
    DC, DSA, DM; the same tensors, several sets of them
a folder with one folder of pictures per class
    pixels
an .npz file with images and labels, or train_images and train_labels
    pixels, uint8 or floats with white at 1; labels [n] or [n k]
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddjax import artifact, files, tensors
from ddjax.data import classes, decode, folders, preprocess
from ddjax.types import InputError

__all__ = ["KINDS", "VALUES", "Given", "as_artifact", "read"]

VALUES = ("pixels", "standardised")
KINDS = ("probabilities", "logits")
# Distilled pixels leave 0..1 a little; what goes further is something else.
_BEYOND = 2.0


class Given(NamedTuple):
    """Images and labels as a file has them.

    Attributes:
      images: [n h w c] float32.
      labels: [n] integers, or [n k] floats.
      values: of ``VALUES``, what the images' numbers are where nothing else
        is known.
      class_names: where they are told.
      source: {name: SHA-256} of the files, or of a folder's pixels.
    """

    images: np.ndarray
    labels: np.ndarray
    values: str
    class_names: tuple[str, ...] | None
    source: dict[str, str]


def read(path: Path, number: int = 0) -> Given:
    """Reads images and labels, in whichever of the forms above.

    Args:
      path: a folder or file.
      number: which set, of a file with several.

    Raises:
      InputError: it is missing, damaged or of none of the forms, or images
        and labels do not belong together.
    """
    if (path / "images_best.pt").exists():
        path = path / "images_best.pt"
    if path.is_dir():
        found, sets = _pictures(path), 1
    elif path.suffix == ".pt" and path.name.startswith("images"):
        found, sets = _pair(path), 1
    elif path.suffix == ".pt":
        found, sets = _one_file(path, number)
    elif path.suffix == ".npz":
        found, sets = _arrays(path), 1
    else:
        raise InputError(
            f"{path} is no folder and no .pt or .npz file: name one with "
            "distilled images"
        )
    if not 0 <= number < sets:
        raise InputError(
            f"{path} holds sets 0..{sets - 1}, and none of number {number}: "
            "choose one of these"
        )
    if not np.isfinite(found.images).all():
        raise InputError(
            f"the images of {path} hold values that are not finite: they "
            "cannot be trained on"
        )
    if len(found.images) != len(found.labels):
        raise InputError(
            f"{path} holds {len(found.images)} images and "
            f"{len(found.labels)} labels: name files that belong together"
        )
    return found


def as_artifact(
    given: Given,
    *,
    learning_rate: float | None,
    preprocessing: preprocess.Standardiser | preprocess.Whitener | None,
    class_names: Sequence[str] = (),
    values: str = "",
    labels: str = "probabilities",
) -> artifact.Artifact:
    """What ``artifact.save`` takes.

    Args:
      given: images and labels.
      learning_rate: for the training that uses the images.
      preprocessing: takes pixels to network input.
      class_names: of the data set, in its order; by default those that are
        given, or numbers.
      values: of ``VALUES``, what the images' numbers are.
      labels: of ``KINDS``, what soft labels are; logits go through a softmax.

    Raises:
      InputError: something is missing, impossible, or does not fit.
    """
    if learning_rate is None or not 0 < learning_rate < math.inf:
        raise InputError(
            "--learning_rate must be given, and positive: the rate that the "
            "images are to be trained on with, as their authors' code or log "
            "tells it (MTT's learned rate; 0.01 of DC and DM)"
        )
    if preprocessing is None:
        raise InputError(
            "how pixels were standardised is not known: give --config=FILE of "
            "the data set, or --mean and --std"
        )
    values = values or given.values
    if values not in VALUES:
        raise InputError(
            f"--values must be {' or '.join(VALUES)}, not {values!r}"
        )
    if labels not in KINDS:
        raise InputError(
            f"--labels must be {' or '.join(KINDS)}, not {labels!r}"
        )
    names = tuple(class_names) or given.class_names or ()
    shape = given.images.shape[1:]
    whitened = isinstance(preprocessing, preprocess.Whitener)
    if preprocessing.mean.shape != (shape if whitened else shape[2:]):
        raise InputError(
            f"the images are of {shape}, and the mean of "
            f"{tuple(preprocessing.mean.shape)}: give that of the images' own "
            "data set"
        )
    images = given.images
    if values == "standardised":
        images = np.asarray(preprocess.invert(preprocessing, images))
    elif images.min() < -_BEYOND or images.max() > 1 + _BEYOND:
        raise InputError(
            f"the images' values go from {images.min():.3g} to "
            f"{images.max():.3g}, and pixels from 0, black, to 1, white: scale "
            "them, or give --values=standardised if they are"
        )
    classes.check_names("", given.class_names or ())
    soft = _soft(given, names, labels)
    names = names or tuple(map(str, range(soft.shape[1])))
    classes.check_names("", names)
    return artifact.Artifact(
        images,
        soft,
        learning_rate,
        preprocessing,
        {
            "class_names": list(names),
            "method": "imported",
            "source": given.source,
        },
    )


def _soft(given: Given, names, kind) -> np.ndarray:
    """[n k] float32, rows that sum to 1, columns as ``names`` has them."""
    labels, own = given.labels, given.class_names or names
    if labels.ndim == 1:
        k = len(own) if own else max(2, int(labels.max(initial=0)) + 1)
        if not own and k > max(len(labels), 2):
            raise InputError(
                f"labels go up to {k - 1} with {len(labels)} images: name the "
                "classes with --config or --class_names"
            )
        labels = classes.check_labels("labels", labels, len(labels), k)
        soft = classes.one_hot(labels, k)
    else:
        soft = _rows(labels.astype(np.float32), own, kind)
    if own == names:
        return soft
    unknown = sorted(set(own) - set(names))
    if unknown:
        raise InputError(
            f"the class {unknown[0]!r} of the images is none of the data "
            "set's: name the config that they belong to"
        )
    moved = np.zeros((len(soft), len(names)), np.float32)
    moved[:, [names.index(name) for name in own]] = soft
    return moved


def _rows(labels: np.ndarray, own, kind: str) -> np.ndarray:
    """Soft labels [n k], checked, as probabilities."""
    if own and labels.shape[1] != len(own):
        raise InputError(
            f"labels are of {labels.shape[1]} classes, and the data set has "
            f"{len(own)}: name the config that the images belong to"
        )
    if not np.isfinite(labels).all():
        raise InputError("labels hold values that are not finite")
    if kind == "logits":
        return np.asarray(jax.nn.softmax(labels, axis=-1))
    if labels.min() < 0 or np.abs(labels.sum(-1) - 1).max() > 1e-3:
        raise InputError(
            "rows of soft labels are not probabilities that sum to 1: give "
            "--labels=logits if they are logits, as DATM's are"
        )
    return labels


# The forms -------------------------------------------------------------------


def _pair(path: Path) -> Given:
    """images_*.pt and the labels_*.pt beside it."""
    other = path.with_name(path.name.replace("images", "labels", 1))
    images, labels = tensors.read(path), tensors.read(other)
    return Given(
        *_tensors(path, images, labels), VALUES[1], None, _digests(path, other)
    )


def _digests(*paths: Path) -> dict[str, str]:
    return {path.name: files.sha256(path) for path in paths}


def _one_file(path: Path, number: int) -> tuple[Given, int]:
    """A file of DC's code, or a pair in one file; and how many sets it has."""
    found = tensors.read(path)
    sets = found.get("data") if isinstance(found, dict) else [found]
    pairs = isinstance(sets, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in sets
    )
    if not pairs or not sets:
        raise InputError(
            f"{path} holds neither {{'data': [[images, labels], ..]}} nor "
            "[images, labels]: name the file that the distillation wrote"
        )
    # That a number is out of range is told by the caller.
    images, labels = sets[number if 0 <= number < len(sets) else 0]
    found = _tensors(path, images, labels)
    return Given(*found, VALUES[1], None, _digests(path)), len(sets)


def _tensors(path: Path, images: Any, labels: Any):
    """Tensors [n c h w] and [n] or [n k] as arrays of ours."""
    for tensor in (images, labels):
        if not isinstance(tensor, np.ndarray):
            raise InputError(
                f"{path} and its labels must hold a tensor each, not a "
                f"{type(tensor).__name__}"
            )
    if images.ndim != 4 or not images.size or images.shape[1] not in (1, 3):
        raise InputError(
            f"the images of {path} must be a tensor [n c h w] of 1 or 3 "
            f"channels, not of shape {images.shape}"
        )
    return (
        np.array(images.transpose(0, 2, 3, 1), np.float32),
        _checked_labels(path, labels),
    )


def _checked_labels(path: Path, labels: np.ndarray) -> np.ndarray:
    kinds = {1: "iu", 2: "f"}
    if labels.dtype.kind not in kinds.get(labels.ndim, "") or not labels.size:
        raise InputError(
            f"the labels of {path} must be integers [n] or floats [n k], not "
            f"{labels.dtype} of shape {labels.shape}"
        )
    return np.array(labels)


def _pictures(folder: Path) -> Given:
    """One folder of pictures per class, all of one size."""
    listing = folders.list_images(folder)
    paths, labels = listing.splits["train"]
    try:
        headers = [decode.header(folder / path) for path in paths]
        sizes = {(found.height, found.width) for found in headers}
        if len(sizes) > 1:
            raise InputError(
                f"the images of {folder} are of {len(sizes)} sizes: bring them "
                "to one"
            )
        channels = max(found.channels for found in headers)
        (size,) = sizes
        if 4 * len(paths) * math.prod(size) * channels > files.memory():
            raise InputError(f"the images of {folder} do not fit into memory")
        images = np.stack(
            [decode.decode(folder / path, channels=channels) for path in paths]
        )
    except decode.Unreadable as error:
        raise InputError(
            f"an image of {folder} cannot be read ({error}): mend or remove it"
        ) from None
    return Given(
        np.asarray(preprocess.to_unit(images)),
        labels,
        VALUES[0],
        listing.class_names,
        {folder.name: hashlib.sha256(images).hexdigest()},
    )


def _arrays(path: Path) -> Given:
    """Arrays by name."""
    try:
        named = files.read_npz(path)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}: check the path") from None
    except files.DamagedFile as error:
        raise InputError(
            f"{path} is damaged ({error}): fetch or write it again"
        ) from None
    if "preprocess/mean" in named:
        raise InputError(
            f"{path} is a distilled file of ddjax already: test it as it is"
        )
    prefix = "train_" if "train_images" in named else ""
    try:
        images, labels = named[f"{prefix}images"], named[f"{prefix}labels"]
    except KeyError:
        raise InputError(
            f"{path} must hold images and labels, or train_images and "
            f"train_labels, and holds {', '.join(sorted(named)) or 'nothing'}"
        ) from None
    images = images[..., None] if images.ndim == 3 else images
    floats = images.dtype.kind == "f"
    if (
        images.ndim != 4
        or not images.size
        or images.shape[3] not in (1, 3)
        or not (floats or images.dtype == np.uint8)
    ):
        raise InputError(
            f"the images of {path} must be uint8 or floats [n h w c] of 1 or "
            f"3 channels, not {images.dtype} of shape {images.shape}"
        )
    names = named.get("class_names")
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise InputError(f"class_names of {path} must be a list of texts")
    return Given(
        np.asarray(preprocess.to_unit(images), np.float32),
        _checked_labels(path, labels),
        VALUES[0],
        None if names is None else tuple(map(str, names)),
        _digests(path),
    )
