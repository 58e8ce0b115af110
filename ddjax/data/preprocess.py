"""From pixels to network input, and back.

Pixel space is float 0..1, black to white. What a network sees is the same
numbers through an invertible affine map, fitted on the training images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddjax import files
from ddjax.types import InputError

__all__ = [
    "Standardiser",
    "Whitener",
    "apply",
    "arrays",
    "fit",
    "fit_standardise",
    "fit_zca",
    "from_arrays",
    "invert",
    "to_unit",
]

_CHUNK_VALUES = 1 << 23
# The covariance of 64 x 64 x 3 values takes 1.2 GB of float64, its
# eigenvectors minutes; beyond, neither is worth having.
_LARGEST_ZCA = 64 * 64 * 3


class Standardiser(NamedTuple):
    """Per-channel shift and scale.

    Attributes:
      mean: [c], in pixel space.
      std: [c], in pixel space, positive.
    """

    mean: Float[Array, " c"]
    std: Float[Array, " c"]


class Whitener(NamedTuple):
    """ZCA whitening: every pixel decorrelated from every other.

    Attributes:
      mean: [h w c], in pixel space.
      matrix: [d d], symmetric, d = h * w * c in that order.
      inverse: [d d], of ``matrix``.
    """

    mean: Float[Array, "h w c"]
    matrix: Float[Array, "d d"]
    inverse: Float[Array, "d d"]


def to_unit(images):
    """uint8 images to float32 pixels in 0..1; floats pass unchanged."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    return images


def _chunks(images):
    """float64 pixels, some images at a time, so that memory stays bounded."""
    rows = min(1000, max(1, _CHUNK_VALUES // math.prod(images.shape[1:])))
    for begin in range(0, len(images), rows):
        chunk = np.asarray(images[begin : begin + rows])
        unit = 255.0 if chunk.dtype == np.uint8 else 1.0
        yield chunk.astype(np.float64) / unit


def fit_standardise(images: Any) -> Standardiser:
    """Mean and standard deviation of each channel.

    Args:
      images: [n h w c] uint8, or float pixels; an array or Rows.

    Returns:
      A Standardiser of float32; a constant channel gets std 1. Sums are
      float64.
    """
    channels = images.shape[-1]
    total, squares, count = np.zeros(channels), np.zeros(channels), 0
    for chunk in _chunks(images):
        flat = chunk.reshape(-1, channels)
        total += flat.sum(0)
        squares += np.square(flat).sum(0)
        count += len(flat)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    std = np.where(std > 1e-6, std, 1.0)
    return Standardiser(
        jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    )


def fit_zca(images: Any, *, eps: float = 0.1) -> Whitener:
    """ZCA whitening of whole images.

    With the eigenvectors U and eigenvalues s of the covariance,
    matrix = U (s + eps)^-1/2 U^T. Krizhevsky, "Learning Multiple Layers of
    Features from Tiny Images", 2009; eps as in MTT.

    Args:
      images: [n h w c] uint8, or float pixels; an array or Rows.
      eps: added to the eigenvalues; 0.1 leaves small ones nearly alone.

    Returns:
      A Whitener of JAX's default floats. Sums and the decomposition are
      float64.

    Raises:
      InputError: the images are too large for a matrix of d * d.
    """
    shape = tuple(images.shape[1:])
    size = int(np.prod(shape))
    if size > _LARGEST_ZCA:
        raise InputError(
            f"ZCA of {shape[0]} x {shape[1]} x {shape[2]} images needs a "
            f"matrix of {size:,} x {size:,} values: use "
            "config.data.preprocess=standardise"
        )
    total, count = np.zeros(shape), 0
    for chunk in _chunks(images):
        total += chunk.sum(0)
        count += len(chunk)
    mean = total / count
    covariance = np.zeros((size, size))
    for chunk in _chunks(images):
        flat = (chunk - mean).reshape(len(chunk), size)
        covariance += flat.T @ flat
    values, vectors = np.linalg.eigh(covariance / max(count - 1, 1))
    # Rounding may leave the eigenvalue of a constant pixel below zero.
    roots = np.sqrt(np.maximum(values, 0) + eps)
    return Whitener(
        jnp.asarray(mean),
        jnp.asarray((vectors / roots) @ vectors.T),
        jnp.asarray((vectors * roots) @ vectors.T),
    )


def apply(preprocess: Standardiser | Whitener, images):
    """[n h w c] uint8 or pixels -> network input."""
    pixels = to_unit(images)
    if isinstance(preprocess, Whitener):
        return _times(pixels - preprocess.mean, preprocess.matrix)
    return (pixels - preprocess.mean) / preprocess.std


def invert(preprocess: Standardiser | Whitener, inputs):
    """Network input -> pixels, not clipped to 0..1."""
    if isinstance(preprocess, Whitener):
        return _times(inputs, preprocess.inverse) + preprocess.mean
    return inputs * preprocess.std + preprocess.mean


def _times(images, matrix):
    flat = images.reshape(images.shape[0], -1)
    # An accelerator's default precision would keep three digits.
    product = jnp.matmul(flat, matrix, precision=jax.lax.Precision.HIGHEST)
    return product.reshape(images.shape)


def arrays(preprocess: Standardiser | Whitener) -> dict[str, np.ndarray]:
    """What takes pixels to network input, as NumPy arrays by name.

    ``mean`` [c] and ``std`` [c] of a Standardiser, ``mean`` [h w c] and
    ``matrix`` [d d] of a Whitener.
    """
    named = preprocess._asdict()
    named.pop("inverse", None)
    return {name: np.asarray(array) for name, array in named.items()}


def from_arrays(named: Mapping[str, np.ndarray]) -> Standardiser | Whitener:
    """The inverse of ``arrays``.

    Raises:
      KeyError: an array is missing.
    """
    if "std" in named:
        return Standardiser(
            jnp.asarray(named["mean"]), jnp.asarray(named["std"])
        )
    matrix = named["matrix"]
    return Whitener(
        jnp.asarray(named["mean"]),
        jnp.asarray(matrix),
        jnp.asarray(np.linalg.inv(matrix.astype(np.float64)), matrix.dtype),
    )


def check_name(name: str) -> None:
    """InputError unless ``fit`` knows the name."""
    if name not in _FITS:
        raise InputError(
            f"unknown preprocessing {name!r}: choose {', '.join(_FITS)}"
        )


def fit(
    name: str, images: Any, *, kept_in: Path | None = None
) -> Standardiser | Whitener:
    """The preprocessing that a config names, fitted on training images.

    Args:
      name: "standardise", "zca", or "none" for pixels as they are.
      images: [n h w c] uint8 or pixels; an array or Rows.
      kept_in: a file; where it is there, the fit is read from it, else it is
        written to it. It has to be named after the images.

    Raises:
      InputError: unknown name.
    """
    check_name(name)
    if kept_in is None:
        return _FITS[name](images)
    try:
        kept = files.read_npz(kept_in)
        return _FORMS[name](
            *(jnp.asarray(kept[field]) for field in _FORMS[name]._fields)
        )
    except (FileNotFoundError, files.DamagedFile, KeyError):
        pass  # it can be had again
    fitted = _FITS[name](images)
    kept_in.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(kept_in) as file:
        np.savez(file, **jax.tree.map(np.asarray, fitted._asdict()))
    return fitted


def _none(images):
    channels = images.shape[-1]
    return Standardiser(jnp.zeros(channels), jnp.ones(channels))


_FITS: dict[str, Callable[..., Any]] = {
    "standardise": fit_standardise,
    "zca": fit_zca,
    "none": _none,
}
_FORMS = {"standardise": Standardiser, "zca": Whitener, "none": Standardiser}
