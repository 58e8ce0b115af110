"""Labels: checked, one-hot, and images drawn by them."""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddjax.types import InputError

__all__ = [
    "ByClass",
    "balanced_weights",
    "check_labels",
    "check_names",
    "is_showable",
    "one_hot",
    "per_class_indices",
    "random_orders",
]


_LABEL_HINTS = {2: ": of one-hot labels give labels.argmax(1)"}


def check_labels(
    what: str, labels: Any, count: int, num_classes: int
) -> np.ndarray:
    """Labels that belong to so many images.

    Args:
      what: the labels are, to begin a sentence with.
      labels: [n] integers in 0..k-1.
      count: n, of the images.
      num_classes: k.

    Raises:
      InputError: there is no image, or the labels are something else.
    """
    labels = np.asarray(labels)
    integers = np.issubdtype(labels.dtype, np.integer)
    if not count or labels.shape != (count,) or not integers:
        raise InputError(
            f"{what} must be {count} integers, one for each image and at "
            f"least one, not {labels.dtype} of shape {labels.shape}"
            f"{_LABEL_HINTS.get(labels.ndim, '')}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"{what} must lie in 0..{num_classes - 1}, not "
            f"{labels.min()}..{labels.max()}"
        )
    return labels


def is_showable(name: str) -> bool:
    """Whether a text can stand on a page and in a terminal.

    It is not empty, and of its characters none controls a terminal and none is
    half of a pair (a file name that is no UTF-8 is read as such halves).
    """
    kinds = {unicodedata.category(character) for character in name}
    return bool(name.strip()) and not kinds & {"Cc", "Cs"}


def check_names(where: str, names: Sequence[str]) -> None:
    """InputError unless classes have names that can be shown, all different.

    Args:
      where: what a sentence about them begins with.
      names: of the classes.
    """
    if len(set(names)) < len(names):
        raise InputError(f"{where}class_names must all be different")
    for number, name in enumerate(names):
        if not is_showable(name):
            raise InputError(
                f"{where}the name of class {number}, {name!a}, is empty "
                "or holds characters that cannot be shown: rename it"
            )


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """[n] integers to [n k] float32."""
    return np.eye(num_classes, dtype=np.float32)[labels]


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """What an image of each class counts, for all classes to count alike.

    Args:
      labels: [n] integers in 0..k-1.
      num_classes: k.

    Returns:
      [k] float32, n / (k n_c), whose mean over the images is 1; 0 for a class
      without images.

    >>> balanced_weights(np.array([0, 0, 0, 1]), 2)
    array([0.6666667, 2.       ], dtype=float32)
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = len(labels) / (num_classes * np.maximum(counts, 1))
    return np.where(counts, weights, 0).astype(np.float32)


def per_class_indices(
    key: jax.Array,
    labels: np.ndarray,
    num_classes: int,
    count: int,
    *,
    field: str = "iadd.ipc",
    names: Sequence[str] = (),
) -> np.ndarray:
    """``count`` random examples of every class, class by class.

    Args:
      key: one key.
      labels: [n] integers in 0..k-1.
      num_classes: k.
      count: examples of each class.
      field: of the config that asks for so many, for the message.
      names: of the classes, for the message; their numbers by default.

    Returns:
      [k * count] indices, without repetition.

    Raises:
      InputError: a class has fewer than ``count`` examples.
    """
    members = [np.flatnonzero(labels == c) for c in range(num_classes)]
    for label, found in enumerate(members):
        if len(found) < count:
            raise InputError(
                f"class {names[label] if names else label} has "
                f"{len(found)} training images beside "
                f"those held out, fewer than the {count} asked for: lower "
                f"config.{field}"
            )
    orders = random_orders(key, [len(found) for found in members])
    return np.concatenate(
        [found[order[:count]] for found, order in zip(members, orders)]
    )


def random_orders(key: jax.Array, sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """``jax.random.permutation(fold_in(key, i), sizes[i])`` for each i.

    One program draws the numbers that all of them are sorted by: JAX would
    compile one for every size, and classes seldom have the same.

    Args:
      key: one key.
      sizes: of the orders, 1 or more each.

    Yields:
      [sizes[i]] indices.
    """
    longest = max(sizes)
    for label, size in enumerate(sizes):
        drawn = np.asarray(_random_bits(key, label, longest, _rounds(longest)))
        order = np.arange(size)
        # What is drawn for a place does not depend on how many there are.
        for bits in drawn[: _rounds(size)]:
            order = order[np.argsort(bits[:size], kind="stable")]
        yield order


def _rounds(size: int) -> int:
    """Sorts of a permutation of JAX: more where 32 bits would often tie."""
    return math.ceil(3 * math.log(size) / math.log(2**32 - 1))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _random_bits(key, label, size, rounds):
    key, drawn = jax.random.fold_in(key, label), []
    for _ in range(rounds):
        key, subkey = jax.random.split(key)
        drawn.append(jax.random.bits(subkey, (size,), jnp.uint32))
    return jnp.stack(drawn) if drawn else jnp.zeros((0, size), jnp.uint32)


class ByClass:
    """Random images of the classes that are asked for."""

    def __init__(self, labels: np.ndarray, num_classes: int):
        """Sorts the images by class.

        Args:
          labels: [n] integers in 0..k-1.
          num_classes: k.

        Raises:
          InputError: a class has no image.
        """
        self.num_classes = num_classes
        self._order = np.argsort(labels, kind="stable")
        self._count = np.bincount(labels, minlength=num_classes)
        self._first = np.cumsum(self._count) - self._count
        if not self._count.all():
            raise InputError(
                f"class {int(np.argmin(self._count))} has no training images: "
                "remove it with data.classes"
            )

    def draw(self, key: jax.Array, labels: np.ndarray) -> np.ndarray:
        """Indices of random images, with replacement, one of each label."""
        share = np.asarray(_uniform(key, labels.size), np.float64)
        at = share.reshape(labels.shape) * self._count[labels]
        return self._order[self._first[labels] + at.astype(np.int64)]


_uniform = jax.jit(
    lambda key, count: jax.random.uniform(key, (count,)), static_argnums=1
)
