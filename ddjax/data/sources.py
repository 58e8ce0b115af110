"""Where images come from: one interface to every kind of data set."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddjax import files
from ddjax.data import arrays, cache, classes, folders
from ddjax.data.cache import AS_THEY_ARE, Form, Records, Source
from ddjax.data.rows import Rows
from ddjax.types import InputError

__all__ = [
    "Dataset",
    "Splits",
    "check_share",
    "fingerprint",
    "load",
    "prepare",
    "split_held_out",
    "words",
]


class Origin(NamedTuple):
    """Where in a cache images come from.

    Attributes:
      checksum: of the file.
      indices: [n] int64, in it.
    """

    checksum: str
    indices: np.ndarray


class Dataset(NamedTuple):
    """Labelled images as they are stored.

    Attributes:
      images: [n h w c] uint8; an array, or Rows of a file where they are too
        many for memory.
      labels: [n] int32 in 0..k-1.
      class_names: k names.
      origin: of images from a cache; None of others.
    """

    images: np.ndarray | Rows
    labels: np.ndarray
    class_names: tuple[str, ...]
    origin: Origin | None = None


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
    images, origin = dataset.images, dataset.origin
    if origin is not None:
        origin = origin._replace(indices=origin.indices[indices])
    return dataset._replace(
        images=images.take(indices)
        if isinstance(images, Rows)
        else images[indices],
        labels=dataset.labels[indices],
        origin=origin,
    )


def first_per_class(dataset: Dataset, count: int) -> Dataset:
    """The first ``count`` examples of every class, or all it has."""
    kept = [
        np.flatnonzero(dataset.labels == label)[:count]
        for label in range(len(dataset.class_names))
    ]
    return take(dataset, np.sort(np.concatenate(kept)))


def fingerprint(*datasets: Dataset) -> str:
    """A digest of all pixels and labels, in hexadecimal.

    Of images from a cache it takes the cache's checksums, whether they are in
    memory or not.
    """
    digest = hashlib.sha256()
    for dataset in datasets:
        if dataset.origin is None:
            digest.update(np.ascontiguousarray(dataset.images))
        else:
            digest.update(dataset.origin.checksum.encode())
            digest.update(dataset.origin.indices.tobytes())
        digest.update(dataset.labels.tobytes())
        digest.update("\0".join(dataset.class_names).encode())
    return digest.hexdigest()


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
      InputError: the fraction is no share, or empties a class.
    """
    return _set_aside(dataset, fraction, key, "held-out")


def check_share(value: float) -> None:
    """InputError unless a share leaves something on both sides."""
    if not 0 < value < 1:
        raise InputError(f"a share lies between 0 and 1, not at {value}")


def _set_aside(dataset, fraction, key, part):
    check_share(fraction)
    members = [
        np.flatnonzero(dataset.labels == label)
        for label in range(len(dataset.class_names))
    ]
    counts = []
    for name, found in zip(dataset.class_names, members):
        if not len(found):
            raise InputError(
                f"class {name!r} has no training images: labels are numbers "
                "from 0 without a gap"
            )
        counts.append(int(np.ceil(fraction * len(found))))
        if counts[-1] >= len(found):
            raise InputError(
                f"class {name!r} has too few images: of {len(found)} for "
                f"training, {counts[-1]} would go to the {part} part; add "
                "some to it, or name the other classes in config.data.classes"
            )
    aside = np.zeros(len(dataset.labels), bool)
    orders = classes.random_orders(key, [len(found) for found in members])
    for found, count, order in zip(members, counts, orders):
        aside[found[order[:count]]] = True
    return take(dataset, np.flatnonzero(~aside)), take(
        dataset, np.flatnonzero(aside)
    )


def _digits_as_stored() -> tuple[np.ndarray, np.ndarray]:
    """Levels [1797 8 8] from 0 to 16, and labels.

    From scikit-learn's own file where it is where it was always: to import
    the package takes longer than anything else before the first update.
    """
    found = importlib.util.find_spec("sklearn")
    if found is not None and found.origin:
        path = Path(found.origin).parent / "datasets/data/digits.csv.gz"
        if path.exists():
            with gzip.open(path) as file:
                table = np.loadtxt(file, delimiter=",")
            return table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images, bunch.target


def _digits() -> tuple[Dataset, Dataset]:
    """scikit-learn's 1,797 handwritten digits of 8x8, grey.

    The set comes unsplit: every fifth image of each class is for testing.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten
    Digits, UCI Machine Learning Repository, 1998.
    """
    levels, labels = _digits_as_stored()
    images = np.rint(levels * (255 / 16)).astype(np.uint8)[..., None]
    labels = labels.astype(np.int32)
    testing = np.zeros(len(labels), bool)
    for label in range(10):
        testing[np.flatnonzero(labels == label)[::5]] = True
    names = tuple(str(digit) for digit in range(10))
    whole = Dataset(images, labels, names)
    return take(whole, np.flatnonzero(~testing)), take(
        whole, np.flatnonzero(testing)
    )


def _npz(path: str) -> Source:
    """Arrays of the user's own in one file; see ``arrays.check_arrays``."""
    if not path:
        raise InputError(
            "data.source=npz needs a file: set config.data.data_dir to it"
        )
    try:
        # Before it is read: if it is replaced meanwhile, it is read again.
        file = Path(path).expanduser().resolve()
        stamp = cache.stamp_of([file])
        named = files.read_npz(file)
    except (OSError, files.DamagedFile) as error:
        raise InputError(
            f"cannot read arrays from data.data_dir {path!r} ({error}): name "
            "an .npz file that np.savez wrote, without object arrays"
        ) from None
    found = arrays.check_arrays(named, where=f"{path}: ")

    def records(split):
        images, labels = found.parts[split]
        return Records(
            len(images),
            lambda begin, end: [
                (f"{split}_images[{i}]", images[i], int(labels[i]))
                for i in range(begin, end)
            ],
        )

    return Source(
        {split: records(split) for split in found.parts},
        found.class_names,
        channels=found.parts["train"][0].shape[3],
        stamp=stamp,
        watched=(file,),
    )


def _folder(folder: Path, listing: folders.Listing) -> Source:
    """The images that a listing names."""

    def records(split, paths, labels):
        return Records(
            len(paths),
            lambda begin, end: [
                (paths[i], folder / paths[i], int(labels[i]))
                for i in range(begin, end)
            ],
        )

    return Source(
        {
            split: records(split, *found)
            for split, found in listing.splits.items()
        },
        listing.class_names,
        channels=0,
        stamp=listing.stamp,
        ignored=listing.ignored,
    )


def _image_folder(data_dir: str) -> Source:
    folder = _required(data_dir, "folder", "your images")
    return _folder(folder, folders.list_images(folder))


def _tiny_imagenet(data_dir: str) -> Source:
    folder = _required(data_dir, "tiny_imagenet", "tiny-imagenet-200")
    found = _folder(folder, folders.list_tiny_imagenet(folder))
    return found._replace(channels=3)  # a few of its images are grey


def _imagenet(data_dir: str) -> Source:
    """From folders by WordNet number, or from TFDS."""
    folder = Path(data_dir).expanduser()
    if data_dir and (folder / "train").is_dir():
        # The published test images have no labels; "val" takes their place.
        has_val = (folder / "val").is_dir()
        without = ("test",) if has_val else ()
        found = _folder(folder, folders.list_images(folder, without=without))
        return found._replace(channels=3)
    return _tfds("imagenet2012")(data_dir)


def _tfds(name: str) -> Callable[[str], Source]:
    def open_it(data_dir):
        from ddjax.data import tfds_records

        return tfds_records.open_tfds(name, data_dir)

    return open_it


def _required(data_dir: str, source: str, what: str) -> Path:
    if not data_dir:
        raise InputError(
            f"data.source={source} needs a folder: set config.data.data_dir "
            f"to the one with {what}"
        )
    return Path(data_dir).expanduser()


_SOURCES: dict[str, Callable[[str], Source]] = {
    "npz": _npz,
    "folder": _image_folder,
    "tiny_imagenet": _tiny_imagenet,
    "imagenet": _imagenet,
}


def prepare(
    source: str,
    *,
    data_dir: str = "",
    cache_dir: str | Path = "runs/data",
    form: Form = AS_THEY_ARE,
    classes: str = "",
    **how: Any,
) -> cache.Cache:
    """The cache of a data set, made where it is missing.

    Args:
      source: "folder", "npz", "tiny_imagenet", "imagenet", or a TFDS name.
      data_dir: where the source lies.
      cache_dir: the parent of one folder for each source, form and choice of
        classes.
      form: size, crop and channels of the images.
      classes: names or numbers, joined by commas; empty for all.
      **how: as of ``cache.prepare``.

    Returns:
      Cache.

    Raises:
      InputError: see ``cache.prepare`` and the sources.
    """
    try:
        where = str(Path(data_dir).expanduser().resolve()) if data_dir else ""
        if where:
            os.stat(where)
    except FileNotFoundError:
        pass  # its source says so, where the cache cannot stand in for it
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"data.data_dir {data_dir!r} is no usable path ({error}): check it"
        ) from None
    identity = {
        "source": source,
        "data_dir": where,
        "form": form._asdict(),
        "classes": classes,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    name = "".join(c if c.isalnum() else "_" for c in source)[:40]
    opened = _SOURCES.get(source, _tfds(source))
    if source == "npz" and form != AS_THEY_ARE:
        raise InputError(
            "data.size, data.crop and data.channels are for encoded images: "
            "bring the arrays of an npz file to their form before they are "
            "saved"
        )
    return cache.prepare(
        Path(cache_dir) / f"{name}-{digest.hexdigest()[:12]}",
        lambda: opened(data_dir),
        identity=identity,
        form=form,
        classes=words(classes),
        **how,
    )


def words(joined: str) -> tuple[str, ...]:
    """ "a, b" as ("a", "b")."""
    return tuple(word.strip() for word in joined.split(",") if word.strip())


def load(
    source: str,
    *,
    data_dir: str = "",
    held_out: float,
    seed: int,
    classes: str = "",
    class_names: str = "",
    per_class: int = 0,
    test_share: float = 0.2,
    in_memory_gb: float = 4.0,
    form: Form = AS_THEY_ARE,
    opened: Callable[[cache.Cache], None] = lambda found: None,
    **how: Any,
) -> Splits:
    """Reads a data set and sets a part of its training images aside.

    Args:
      source: "digits" (bundled), or as of ``prepare``.
      data_dir: the folder, TFDS folder or file of the source.
      held_out: share of each class's training images, between 0 and 1; not
        used where the source has a held-out part of its own.
      seed: decides which images are held out.
      classes: names or numbers of those to keep, joined by commas, in the
        order of their new labels; empty for all.
      class_names: what to call them instead, joined by commas.
      per_class: the first so many training images of each class; 0 for all.
      test_share: share of each class for testing, where the source has no
        test part.
      in_memory_gb: larger data sets are read from disk as they are used.
      form: size, crop and channels of the images.
      opened: told the cache, of sources that have one.
      **how: as of ``cache.prepare``, and ``cache_dir``.

    Returns:
      Splits of uint8 images.

    Raises:
      InputError: unknown source, missing data, or an impossible share.
    """
    if source == "digits":
        parts = _digits_parts(form, classes)
    else:
        found = prepare(
            source, data_dir=data_dir, form=form, classes=classes, **how
        )
        opened(found)
        parts = _cached_parts(found)
    if class_names:
        parts = _renamed(parts, words(class_names))
    key = jax.random.fold_in(jax.random.key(seed), 0xDA7A)
    train = parts.pop("train")
    if "test" not in parts:
        train, parts["test"] = _set_aside(
            train,
            test_share,
            jax.random.fold_in(key, 0x7E57),
            "test",
        )
    if per_class:
        train = first_per_class(train, per_class)
    if "held_out" not in parts:
        train, parts["held_out"] = split_held_out(train, held_out, key)
    splits = Splits(train, parts["held_out"], parts["test"])
    # Read once, when it is known what is wanted of them.
    if sum(part.images.nbytes for part in splits) <= in_memory_gb * 1e9:
        splits = Splits(
            *(part._replace(images=np.asarray(part.images)) for part in splits)
        )
    return splits


def _digits_parts(form: Form, classes: str) -> dict[str, Dataset]:
    if form != AS_THEY_ARE:
        raise InputError(
            "digits are 8 x 8 and grey: leave data.size, data.crop and "
            "data.channels at their defaults"
        )
    train, test = _digits()
    numbers = cache.class_numbers(words(classes), train.class_names)
    return {
        "train": _only(train, numbers),
        "test": _only(test, numbers),
    }


def _only(dataset: Dataset, numbers: Sequence[int]) -> Dataset:
    """Some classes, labelled anew in their order."""
    new = np.full(len(dataset.class_names), -1, np.int32)
    new[list(numbers)] = np.arange(len(numbers))
    kept = take(dataset, np.flatnonzero(new[dataset.labels] >= 0))
    return kept._replace(
        labels=new[kept.labels],
        class_names=tuple(dataset.class_names[old] for old in numbers),
    )


def _cached_parts(found: cache.Cache) -> dict[str, Dataset]:
    names = tuple(found.manifest["class_names"])
    paths = {
        split: found.images_path(split) for split in found.manifest["splits"]
    }
    parts = {}
    for split, path in paths.items():
        labels = found.labels(split)
        checksum = "".join(found.manifest["files"][path.name]["sha256"])
        parts[split] = Dataset(
            Rows(path),
            labels,
            names,
            Origin(checksum, np.arange(len(labels))),
        )
    return parts


def _renamed(parts: dict[str, Dataset], names: Sequence[str]):
    count = len(parts["train"].class_names)
    if len(names) != count or len(set(names)) != count:
        raise InputError(
            f"data.class_names must be {count} different names joined by "
            f"commas, not {len(names)}"
        )
    return {
        split: dataset._replace(class_names=tuple(names))
        for split, dataset in parts.items()
    }
