"""From pixels to network input, and back.

Pixel space is float 0..1, black to white. What a network sees is the same
numbers through an invertible affine map, fitted on the training images.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddjax.types import InputError

__all__ = [
    "Standardiser",
    "apply",
    "fit",
    "fit_standardise",
    "invert",
    "to_unit",
]


class Standardiser(NamedTuple):
    """Per-channel shift and scale.

    Attributes:
      mean: [c], in pixel space.
      std: [c], in pixel space, positive.
    """

    mean: Float[Array, " c"]
    std: Float[Array, " c"]


def to_unit(images):
    """uint8 images to float32 pixels in 0..1; floats pass unchanged."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    return images


def fit_standardise(images: np.ndarray) -> Standardiser:
    """Mean and standard deviation of each channel.

    Args:
      images: [n h w c] uint8, or float pixels.

    Returns:
      A Standardiser of float32; a constant channel gets std 1. Sums are
      float64, a thousand images at a time, so memory stays bounded.
    """
    channels = images.shape[-1]
    total, squares = np.zeros(channels), np.zeros(channels)
    for begin in range(0, len(images), 1000):
        chunk = np.asarray(images[begin : begin + 1000])
        if chunk.dtype == np.uint8:
            chunk = chunk / 255.0
        chunk = chunk.reshape(-1, channels).astype(np.float64)
        total += chunk.sum(0)
        squares += np.square(chunk).sum(0)
    count = images[..., 0].size
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    std = np.where(std > 1e-6, std, 1.0)
    return Standardiser(
        jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    )


def apply(preprocess: Standardiser, images):
    """[n h w c] uint8 or pixels -> network input."""
    return (to_unit(images) - preprocess.mean) / preprocess.std


def invert(preprocess: Standardiser, inputs):
    """Network input -> pixels, not clipped to 0..1."""
    return inputs * preprocess.std + preprocess.mean


def fit(name: str, images: np.ndarray) -> Standardiser:
    """The preprocessing that a config names, fitted on training images.

    Args:
      name: "standardise", or "none" for pixels as they are.
      images: [n h w c] uint8 or pixels.

    Raises:
      InputError: unknown name.
    """
    if name == "standardise":
        return fit_standardise(images)
    if name == "none":
        channels = images.shape[-1]
        return Standardiser(jnp.zeros(channels), jnp.ones(channels))
    raise InputError(
        f"data.preprocess must be standardise or none, not {name!r}"
    )
