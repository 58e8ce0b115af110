"""A data set as arrays of the user's own: checked, and brought to one form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ddjax.data.classes import check_labels, check_names
from ddjax.types import InputError

__all__ = ["Arrays", "check_arrays"]

_ARRAYS = ("images", "labels")


class Arrays(NamedTuple):
    """Checked arrays.

    Attributes:
      class_names: k names.
      parts: "train" and, where given, "test": (images [n h w c] uint8, labels
        [n] int32).
    """

    class_names: tuple[str, ...]
    parts: dict[str, tuple[np.ndarray, np.ndarray]]


def check_arrays(named: Mapping[str, np.ndarray], where: str = "") -> Arrays:
    """Arrays by name, as an .npz file or a caller gives them.

    Args:
      named: ``train_images`` and ``test_images`` [n h w c] or [n h w], uint8
        or floats in 0..1; ``train_labels`` and ``test_labels`` [n] integers
        from 0; and, if wanted, ``class_names`` [k]. Both test arrays may be
        missing: then a share of the training images is for testing.
      where: what a sentence about them begins with.

    Raises:
      InputError: one is missing or of another kind, or they do not belong
        together.
    """
    parts = ["train"]
    if any(f"test_{array}" in named for array in _ARRAYS):
        parts.append("test")
    wanted = [f"{part}_{array}" for part in parts for array in _ARRAYS]
    missing = [name for name in wanted if name not in named]
    if missing:
        raise InputError(
            f"{where}lacks {', '.join(missing)}; it must hold train_images "
            "and train_labels, and test_images with test_labels or neither"
        )
    names = _names_of(where, named, parts)
    found = {}
    for part in parts:
        images = _pixels(f"{where}{part}_images", named[f"{part}_images"])
        labels = check_labels(
            f"{where}{part}_labels",
            named[f"{part}_labels"],
            len(images),
            len(names),
        )
        found[part] = images, labels.astype(np.int32)
    return Arrays(names, found)


def _names_of(where, arrays, parts) -> tuple[str, ...]:
    """The class names that a file gives, or as many numbers as it has."""
    highest, images = 0, arrays["train_images"]
    # Sentences about images that are none come from _pixels.
    count = len(images) if images.ndim else 0
    for split in parts:
        labels = arrays[f"{split}_labels"]
        # Sentences about labels that are none of this come from check_labels.
        if np.issubdtype(labels.dtype, np.integer) and labels.size:
            highest = max(highest, int(labels.max()))
    if "class_names" not in arrays:
        if highest >= max(count, 2):
            raise InputError(
                f"{where}labels go up to {highest}, with {count} training "
                "images: number the classes from 0 without gaps"
            )
        return tuple(map(str, range(highest + 1)))
    names = arrays["class_names"]
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise InputError(
            f"{where}class_names must be a list of texts, not {names.dtype} "
            f"of shape {names.shape}"
        )
    try:
        found = tuple(
            name.decode(errors="replace")
            if isinstance(name, bytes)
            else str(name)
            for name in names
        )
    except (SystemError, ValueError):
        raise InputError(
            f"{where}class_names holds code points that there are not"
        ) from None
    check_names(where, found)
    if len(found) <= highest < count:
        raise InputError(
            f"{where}class_names has {len(found)} names, and labels go up to "
            f"{highest}: name all {highest + 1} classes"
        )
    return found


def _pixels(what: str, images: np.ndarray) -> np.ndarray:
    """[n h w c] uint8 from whatever of images a user may bring."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or not images.size:
        raise InputError(
            f"{what} must have the shape (n, h, w, c), not {images.shape}"
        )
    if images.shape[3] not in (1, 3):
        raise InputError(
            f"{what} must have 1 or 3 channels in the last axis, not "
            f"{images.shape[3]}: {_channel_hint(images.shape)}"
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
            f"{images.max():.3g}: bring them to 0..1, black to white"
        )
    return np.rint(images * 255).astype(np.uint8)


def _channel_hint(shape: tuple[int, ...]) -> str:
    if shape[1] in (1, 3):
        return "they stand in the second, give images.transpose(0, 2, 3, 1)"
    if shape[3] == 4:
        return "leave transparency out, images[..., :3]"
    return "choose which of them to give"
