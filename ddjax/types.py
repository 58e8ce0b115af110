"""The vocabulary of ddjax: axis names, and the few types that cross files.

Axis legend, used in every docstring of the library:

    b  batch            n  distilled images    k  classes
    h w c  image (channels last)               d  embedding
    t  inner step       e  teacher epoch       m  teachers / segments
    s  evaluation seeds

    params                  pytree of arrays
    key / keys              one typed PRNG key / split keys, leading axis
    start, target, student  the three parameter sets of a segment
    images labels logits    labels are [b k] floats, one-hot or soft
    out                     {layer name: intermediate feature}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Params = Any
"""A pytree of arrays: the parameters of a network."""

ApplyFn = Callable[[Params, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""``apply_fn(params, images[b h w c]) -> (logits[b k], out)``."""


class Batch(NamedTuple):
    """Images with their labels.

    Attributes:
      images: [b h w c] network input, or uint8 pixels where stated.
      labels: [b k] floats, one-hot or soft.
    """

    images: Any
    labels: Any


class Segment(NamedTuple):
    """Two snapshots of one teacher's training run.

    Attributes:
      start: params, where the student begins.
      target: params, where the teacher is some epochs later.
    """

    start: Params
    target: Params


LossFn = Callable[[Params, Any, jax.Array], jax.Array]
"""``loss_fn(params, batch, key) -> scalar``; the key feeds augmentation."""


class InputError(ValueError):
    """The user's input is wrong; the message says what, and how to mend it.

    Scripts print the message alone and exit with code 2.
    """
