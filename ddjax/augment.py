"""Differentiable siamese augmentation (DSA) as pure functions of a key.

Each operation is a function of the images and of its random draws, so that it
can be repeated, tested and differentiated; :func:`augment` makes the draws
from a key. "Siamese" means that two batches get the same transformation: call
:func:`augment` twice with one key.

Every operation is affine in the images (contrast and saturation included: the
mean they scale about is linear). Derivatives to the images are exact in every
order, and never need the images again. ``flip``, ``crop`` and ``cutout`` are
not differentiable in their draws, the others are.

References:
  Zhao and Bilen, "Dataset Condensation with Differentiable Siamese
  Augmentation", ICML 2021, arXiv 2102.08259. The maps and magnitudes are those
  of the authors' code; one group per batch with magnitudes per image is how
  MTT (Cazenavette et al., CVPR 2022) uses it.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ddjax.types import InputError

__all__ = [
    "ALL",
    "augment",
    "brightness",
    "contrast",
    "crop",
    "cutout",
    "flip",
    "parse",
    "rotate",
    "saturation",
    "scale",
]

_CROP_RATIO = 0.125
_CUTOUT_RATIO = 0.5


def _pixels(size: int, ratio: float) -> int:
    """A fraction of the image in whole pixels, rounded half up as DSA does."""
    return int(size * ratio + 0.5)


def _check_draws(images, *draws):
    chex.assert_rank([images, *draws], [4] + [1] * len(draws))
    chex.assert_equal_shape_prefix([images, *draws], 1)


# --- Colour -----------------------------------------------------------------


def _per_image(draws, images):
    _check_draws(images, draws)
    return draws.astype(images.dtype)[:, None, None, None]


def brightness(
    images: Float[Array, "b h w c"],
    draws: Float[Array, " b"],
    *,
    strength: float = 1.0,
) -> Float[Array, "b h w c"]:
    r"""Add a constant to each image.

    .. math:: x_b + s (u_b - 1/2)

    Args:
      images: [b h w c].
      draws: [b] numbers u in 0..1.
      strength: s, the width of the range of constants.

    Returns:
      [b h w c].
    """
    return images + (_per_image(draws, images) - 0.5) * strength


def saturation(
    images: Float[Array, "b h w c"],
    draws: Float[Array, " b"],
    *,
    strength: float = 2.0,
) -> Float[Array, "b h w c"]:
    r"""Scale each pixel's distance to its own grey value.

    .. math:: \bar x_{bhw} + s u_b (x_{bhwc} - \bar x_{bhw})

    An image of one channel is its own grey value and does not change.

    Args:
      images: [b h w c].
      draws: [b] numbers u in 0..1.
      strength: s, the largest factor; the smallest is 0.

    Returns:
      [b h w c].
    """
    factor = _per_image(draws, images) * strength
    grey = jnp.mean(images, axis=3, keepdims=True)
    return (images - grey) * factor + grey


def contrast(
    images: Float[Array, "b h w c"],
    draws: Float[Array, " b"],
    *,
    strength: float = 0.5,
) -> Float[Array, "b h w c"]:
    r"""Scale each image about its mean over pixels and channels.

    .. math:: \bar x_b + (s + u_b) (x_{bhwc} - \bar x_b)

    Args:
      images: [b h w c].
      draws: [b] numbers u in 0..1.
      strength: s, the smallest factor; the largest is s + 1.

    Returns:
      [b h w c].
    """
    factor = _per_image(draws, images) + strength
    mean = jnp.mean(images, axis=(1, 2, 3), keepdims=True)
    return (images - mean) * factor + mean


# --- Geometry ---------------------------------------------------------------


def _precise(draws, images):
    """The draws in the wider of both dtypes, to compute positions from.

    XLA fuses the weights that follow anew in every derivative and rounds them
    differently: from float32 draws alone, float64 gradients were 1e-6 off.
    """
    _check_draws(images, draws)
    return draws.astype(jnp.result_type(draws, images))


def _centred(size, dtype):
    """Pixel positions along an axis, 0 in the middle of the image."""
    return jnp.arange(size, dtype=dtype) - (size - 1) / 2


def _resample(images, rows, columns):
    """Linear interpolation at the grid rows [b h] x columns [b w], 0 outside.

    Two products with matrices of mostly zeros, whose transposes are products
    as well; a gather's is a scatter. With gradient, 100 images of 32x32x3 in a
    scan on two CPU cores take under 1 ms; by gather, 16-20 ms.
    """

    def matrix(at, size):
        weights = 1 - jnp.abs(at[..., None] - jnp.arange(size)[None, None])
        return jnp.maximum(weights, 0).astype(images.dtype)

    # A GPU's default precision would round the images to 10 bits.
    return jnp.einsum(
        "bij,bjwc,bkw->bikc",
        matrix(rows, images.shape[1]),
        images,
        matrix(columns, images.shape[2]),
        precision=jax.lax.Precision.HIGHEST,
    )


def crop(
    images: Float[Array, "b h w c"],
    rows: Int[Array, " b"],
    columns: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
    r"""Shift each image by whole pixels, with zeros coming in.

    .. math:: y_{bij} = x_{b,\,i + r_b,\,j + q_b}

    The name is DSA's: it is a crop, of the image's own size, from the image
    padded with zeros.

    Args:
      images: [b h w c].
      rows: [b] integers r; :func:`augment` draws them within an eighth of the
        height, to both sides.
      columns: [b] integers q, likewise.

    Returns:
      [b h w c].
    """
    _check_draws(images, rows, columns)
    _, h, w, _ = images.shape
    return _resample(
        images,
        rows[:, None] + jnp.arange(h)[None],
        columns[:, None] + jnp.arange(w)[None],
    )


def cutout(
    images: Float[Array, "b h w c"],
    rows: Int[Array, " b"],
    columns: Int[Array, " b"],
    *,
    ratio: float = _CUTOUT_RATIO,
) -> Float[Array, "b h w c"]:
    """Set a rectangle of each image to zero, as far as it lies inside.

    Args:
      images: [b h w c].
      rows: [b] integers, the rectangle's middle row; where it is even in
        height, the first row of its lower half.
      columns: [b] integers, its middle column, likewise.
      ratio: its height and width as a fraction of the image's.

    Returns:
      [b h w c].
    """
    _check_draws(images, rows, columns)

    def covered(middle, size):
        length = _pixels(size, ratio)
        first = middle[:, None] - length // 2
        offset = jnp.arange(size)[None] - first
        return (0 <= offset) & (offset < length)

    hole = (
        covered(rows, images.shape[1])[:, :, None, None]
        & covered(columns, images.shape[2])[:, None, :, None]
    )
    return jnp.where(hole, 0, images)


def flip(
    images: Float[Array, "b h w c"],
    draws: Float[Array, " b"],
    *,
    probability: float = 0.5,
) -> Float[Array, "b h w c"]:
    """Mirror left and right where the draw is below ``probability``.

    Args:
      images: [b h w c].
      draws: [b] numbers in 0..1.
      probability: the share of mirrored images.

    Returns:
      [b h w c].
    """
    _check_draws(images, draws)
    mirrored = (draws < probability)[:, None, None, None]
    return jnp.where(mirrored, images[:, :, ::-1], images)


def scale(
    images: Float[Array, "b h w c"],
    x_draws: Float[Array, " b"],
    y_draws: Float[Array, " b"],
    *,
    ratio: float = 1.2,
) -> Float[Array, "b h w c"]:
    r"""Stretch each image about its middle, width and height separately.

    Bilinear, with zeros outside. Positions are sampled at

    .. math:: s = 1/a + u (a - 1/a)

    times their distance from the middle, so s > 1 shrinks what is seen.

    Args:
      images: [b h w c].
      x_draws: [b] numbers u in 0..1, for the columns.
      y_draws: [b] numbers u in 0..1, for the rows.
      ratio: a, at least 1; factors lie in 1/a..a.

    Returns:
      [b h w c].
    """

    def positions(draws, size):
        factor = 1 / ratio + draws[:, None] * (ratio - 1 / ratio)
        return factor * _centred(size, factor.dtype)[None] + (size - 1) / 2

    _, h, w, _ = images.shape
    return _resample(
        images,
        positions(_precise(y_draws, images), h),
        positions(_precise(x_draws, images), w),
    )


def rotate(
    images: Float[Array, "b h w c"],
    draws: Float[Array, " b"],
    *,
    degrees: float = 15.0,
) -> Float[Array, "b h w c"]:
    r"""Turn each image about its middle.

    Bilinear, with zeros outside. The angle is

    .. math:: \theta = D (2 u - 1)

    Angles are those of coordinates in which height and width are both 1, as
    in the reference, so an image that is not square is sheared a little.

    Args:
      images: [b h w c].
      draws: [b] numbers u in 0..1.
      degrees: D, the largest angle to either side.

    Returns:
      [b h w c].
    """
    angle = 2 * _precise(draws, images)[:, None, None] - 1
    angle = angle * (degrees * jnp.pi / 180)
    b, h, w, c = images.shape
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y = _centred(h, angle.dtype)[None, :, None]
    x = _centred(w, angle.dtype)[None, None, :]
    rows = cos * y + sin * (h / w) * x + (h - 1) / 2
    columns = cos * x - sin * (w / h) * y + (w - 1) / 2
    top, left = jnp.floor(rows), jnp.floor(columns)

    # A rotation does not separate into rows and columns. Measured beside this
    # gather, whose transpose is a scatter, for 10 / 100 images of 32x32x3 in a
    # scan with gradient (2 / 16-20 ms): the transpose as a gather of the nine
    # places that can reach a pixel, 3 / 32 ms; dense [h*w, h*w] products, 76
    # ms / too large. On a GPU the scatter adds in no fixed order, so the
    # images' gradient is not repeatable to the last bit.
    flat = images.reshape(b * h * w, c)
    first = (jnp.arange(b) * (h * w))[:, None, None]

    def corner(row, column):
        inside = (0 <= row) & (row < h) & (0 <= column) & (column < w)
        weight = (1 - jnp.abs(rows - row)) * (1 - jnp.abs(columns - column))
        weight = jnp.where(inside, weight, 0).astype(images.dtype)
        pixel = jnp.clip(row, 0, h - 1) * w + jnp.clip(column, 0, w - 1)
        at = first + pixel.astype(first.dtype)
        values = flat.at[at].get(mode="promise_in_bounds")
        return weight[..., None] * values

    return (
        corner(top, left)
        + corner(top, left + 1)
        + corner(top + 1, left)
        + corner(top + 1, left + 1)
    )


# --- Groups -----------------------------------------------------------------


def _integers(draws, low, high):
    """Uniform integers low..high, both included, from numbers in 0..1."""
    steps = jnp.floor(draws * (high - low + 1))
    return low + steps.astype(jnp.int32)


def _color(images, draws):
    images = brightness(images, draws[0])
    images = saturation(images, draws[1])
    return contrast(images, draws[2])


def _crop(images, draws):
    reach = [_pixels(size, _CROP_RATIO) for size in images.shape[1:3]]
    return crop(images, *(_integers(u, -r, r) for u, r in zip(draws, reach)))


def _cutout(images, draws):
    # DSA's range: one more position where the rectangle is even, so that its
    # middle, which is then between two pixels, can be at either edge.
    last = [
        size - _pixels(size, _CUTOUT_RATIO) % 2 for size in images.shape[1:3]
    ]
    return cutout(images, *(_integers(u, 0, n) for u, n in zip(draws, last)))


_GROUPS = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": lambda images, draws: flip(images, draws[0]),
    "scale": lambda images, draws: scale(images, draws[0], draws[1]),
    "rotate": lambda images, draws: rotate(images, draws[0]),
}
"""{name: function of (images, [3 b] draws)}; a group reads what it needs."""

ALL = tuple(_GROUPS)
"""Every group, in the literature's order."""


def _check(ops: tuple[str, ...]) -> None:
    unknown = [op for op in ops if op not in _GROUPS]
    if unknown:
        raise InputError(
            f"no augmentation is called {', '.join(map(repr, unknown))}; "
            f"there are {', '.join(ALL)}"
        )


def parse(strategy: str) -> tuple[str, ...]:
    """The groups of a strategy string as the literature writes it.

    Args:
      strategy: names joined by underscores; "none" or "" for no augmentation.

    Returns:
      The names, for :func:`augment`.

    Raises:
      InputError: a name is unknown; the message lists the valid ones.

    >>> parse("color_crop_flip")
    ('color', 'crop', 'flip')
    >>> parse("none")
    ()
    """
    ops = () if strategy in ("", "none") else tuple(strategy.split("_"))
    _check(ops)
    return ops


def augment(
    key: Key[Array, ""],
    images: Float[Array, "b h w c"],
    ops: tuple[str, ...] = ALL,
) -> Float[Array, "b h w c"]:
    """One random group of operations on a batch, its magnitudes per image.

    The draws depend on the key, the batch size and the image size, and on
    nothing else: two batches of one shape and one key get the same
    transformation, in float32 as in float64.

    Under a vmap over keys every group is computed and one is kept, because
    each key may draw another group.

    Args:
      key: one key.
      images: [b h w c].
      ops: names from :data:`ALL`; each call draws one of them with equal
        chances. Empty for no augmentation.

    Returns:
      [b h w c], of the images' dtype.

    Raises:
      InputError: a name is unknown; the message lists the valid ones.

    >>> images = jnp.ones((2, 4, 4, 1))
    >>> key = jax.random.key(0)
    >>> augment(key, images, ("flip", "crop")).shape
    (2, 4, 4, 1)
    """
    chex.assert_rank(images, 4)
    _check(ops)
    if not ops:
        return images
    # One flat draw, for any group: draws take longer to compile than the
    # groups do. float32 always, so that the dtype does not change the draws.
    b = images.shape[0]
    draws = jax.random.uniform(key, (1 + 3 * b,), jnp.float32)
    return jax.lax.switch(
        _integers(draws[0], 0, len(ops) - 1),
        [_GROUPS[op] for op in ops],
        images,
        draws[1:].reshape(3, b),
    )
