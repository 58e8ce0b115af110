"""Where images come from: one interface to every kind of data set."""

from __future__ import annotations

import functools
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from ddjax.types import InputError

__all__ = ["Dataset", "Splits", "load", "one_hot", "split_held_out"]


class Dataset(NamedTuple):
    """Labelled images as they are stored.

    Attributes:
      images: [n h w c] uint8.
      labels: [n] int32 in 0..k-1.
      class_names: k names.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


class Splits(NamedTuple):
    """A data set's three parts.

    Attributes:
      train: teaches.
      held_out: training images set aside, for choosing among states.
      test: looked at once, at the end.
    """

    train: Dataset
    held_out: Dataset
    test: Dataset


def take(dataset: Dataset, indices: np.ndarray) -> Dataset:
    """The examples at ``indices``, in that order."""
    return dataset._replace(
        images=dataset.images[indices], labels=dataset.labels[indices]
    )


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """[n] integers to [n k] float32."""
    return np.eye(num_classes, dtype=np.float32)[labels]


def per_class_indices(
    key: jax.Array, labels: np.ndarray, num_classes: int, count: int
) -> np.ndarray:
    """``count`` random examples of every class, class by class.

    Returns:
      [k * count] indices, without repetition.

    Raises:
      InputError: a class has fewer than ``count`` examples.
    """
    chosen = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        if len(members) < count:
            raise InputError(
                f"class {label} has {len(members)} training images, fewer "
                f"than the {count} asked for: lower config.iadd.ipc"
            )
        order = jax.random.permutation(
            jax.random.fold_in(key, label), len(members)
        )
        chosen.append(members[np.asarray(order)[:count]])
    return np.concatenate(chosen)


def split_held_out(
    dataset: Dataset, fraction: float, key: jax.Array
) -> tuple[Dataset, Dataset]:
    """Sets a share of every class aside.

    Args:
      dataset: the training images.
      fraction: 0 < fraction < 1, rounded up to one image a class.
      key: decides which.

    Returns:
      (the rest in its old order, the part set aside).

    Raises:
      InputError: the fraction is out of range, or empties a class.
    """
    if not 0 < fraction < 1:
        raise InputError(
            "data.held_out is a share of the training images, between 0 and "
            f"1, not {fraction}"
        )
    aside = np.zeros(len(dataset.labels), bool)
    for label, name in enumerate(dataset.class_names):
        members = np.flatnonzero(dataset.labels == label)
        if not len(members):
            raise InputError(
                f"class {name!r} has no training images: labels are numbers "
                "from 0 without a gap"
            )
        count = int(np.ceil(fraction * len(members)))
        if count >= len(members):
            raise InputError(
                f"class {name!r} has {len(members)} training images and "
                f"cannot give {count} of them to the held-out part"
            )
        order = jax.random.permutation(
            jax.random.fold_in(key, label), len(members)
        )
        aside[members[np.asarray(order)[:count]]] = True
    return take(dataset, np.flatnonzero(~aside)), take(
        dataset, np.flatnonzero(aside)
    )


def _digits(data_dir: str) -> tuple[Dataset, Dataset]:
    """scikit-learn's 1,797 handwritten digits of 8x8, grey.

    The set comes unsplit: every fifth image of each class is for testing.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten
    Digits, UCI Machine Learning Repository, 1998.
    """
    del data_dir  # bundled with scikit-learn
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    testing = np.zeros(len(labels), bool)
    for label in range(10):
        testing[np.flatnonzero(labels == label)[::5]] = True
    names = tuple(str(digit) for digit in range(10))
    whole = Dataset(images, labels, names)
    return take(whole, np.flatnonzero(~testing)), take(
        whole, np.flatnonzero(testing)
    )


def _tfds(name: str, data_dir: str) -> tuple[Dataset, Dataset]:
    """A set that TFDS has prepared as array_record, without TensorFlow."""
    import tensorflow_datasets as tfds

    where = Path(data_dir).expanduser() if data_dir else None
    if where is not None and not where.is_dir():
        raise InputError(
            f"data.data_dir {data_dir!r} is not a folder: name the one that "
            f"holds {name}/"
        )
    builder = tfds.builder(name, data_dir=where)
    if not builder.is_prepared():
        raise InputError(
            f"{name} is not prepared under {builder.data_dir}: set "
            "config.data.data_dir to a TFDS folder that has it as "
            "array_record, or use config.data.source=digits (bundled)"
        )
    names = tuple(builder.info.features["label"].names)

    def read(split):
        source = builder.as_data_source(split)
        records = [source[i] for i in range(len(source))]
        return Dataset(
            np.stack([record["image"] for record in records]),
            np.array([record["label"] for record in records], np.int32),
            names,
        )

    return read("train"), read("test")


def _npz(path: str) -> tuple[Dataset, Dataset]:
    """Arrays of the user's own, in one file.

    ``train_images`` and ``test_images`` [n h w c] or [n h w], uint8 or floats
    in 0..1; ``train_labels`` and ``test_labels`` [n] integers from 0; and, if
    wanted, ``class_names`` [k].
    """
    if not path:
        raise InputError(
            "data.source=npz needs a file: set config.data.data_dir to it"
        )
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (
        OSError,
        ValueError,
        EOFError,
        TypeError,  # a .npy file
        RuntimeError,  # a damaged header asks for a password or an odd method
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise InputError(
            f"cannot read arrays from data.data_dir {path!r} ({error}): name "
            "an .npz file that np.savez wrote, without object arrays"
        ) from None
    wanted = [f"{s}_{a}" for s in ("train", "test") for a in _ARRAYS]
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise InputError(
            f"{path} lacks {', '.join(missing)}; it must hold "
            f"{', '.join(wanted)}"
        )
    highest = max(
        int(arrays[f"{split}_labels"].max(initial=0))
        for split in ("train", "test")
    )
    names = arrays.get("class_names", np.arange(highest + 1))
    names = tuple(str(name) for name in names)

    def part(split):
        return Dataset(
            _pixels(f"{path}: {split}_images", arrays[f"{split}_images"]),
            _labels(
                f"{path}: {split}_labels",
                arrays[f"{split}_labels"],
                len(arrays[f"{split}_images"]),
                names,
            ),
            names,
        )

    return part("train"), part("test")


_ARRAYS = ("images", "labels")


def _pixels(what: str, images: np.ndarray) -> np.ndarray:
    """[n h w c] uint8 from whatever of images a user may bring."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or not images.size:
        raise InputError(
            f"{what} must have the shape (n, h, w, c), not {images.shape}"
        )
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise InputError(
            f"{what} must be uint8 or floats in 0..1, not {images.dtype}"
        )
    if not np.isfinite(images).all():
        bad = np.flatnonzero(~np.isfinite(images).all((1, 2, 3)))
        raise InputError(
            f"{what} holds NaN or infinite values in {len(bad)} images, the "
            f"first is number {bad[0]}: remove or mend them"
        )
    if images.min() < 0 or images.max() > 1:
        raise InputError(
            f"{what} are floats from {images.min():.3g} to "
            f"{images.max():.3g}: divide them so that black is 0 and white 1"
        )
    return np.rint(images * 255).astype(np.uint8)


def _labels(what, labels, count, names):
    """[n] int32, each in 0..k-1."""
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"{what} must be {count} integers, not {labels.dtype} of shape "
            f"{labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= len(names):
        raise InputError(
            f"{what} must lie in 0..{len(names) - 1}, not "
            f"{labels.min()}..{labels.max()}"
        )
    return labels.astype(np.int32)


_SOURCES = {
    "npz": _npz,
    "digits": _digits,
    "cifar10": functools.partial(_tfds, "cifar10"),
}


def load(
    source: str, *, data_dir: str = "", held_out: float, seed: int
) -> Splits:
    """Reads a data set and sets a part of its training images aside.

    Args:
      source: "digits", "cifar10" where TFDS has prepared it, or "npz".
      data_dir: the TFDS folder, empty for its default; or the .npz file.
      held_out: share of each class's training images, between 0 and 1.
      seed: decides which images are held out.

    Returns:
      Splits of uint8 images.

    Raises:
      InputError: unknown source, missing data, or an impossible share.
    """
    if source not in _SOURCES:
        raise InputError(
            f"unknown data source {source!r}: choose one of "
            f"{', '.join(sorted(_SOURCES))}"
        )
    train, test = _SOURCES[source](data_dir)
    key = jax.random.fold_in(jax.random.key(seed), 0xDA7A)
    return Splits(*split_held_out(train, held_out, key), test)
