"""3x3 convolutions with half the multiplications: minimal filtering of rows.

Four neighbouring outputs of a filter with three taps take twelve products, or
six where inputs and taps are first brought to the values of their polynomials
at six points (F(4, 3) of Winograd). Here that is done along the rows of an
image alone: what is left are convolutions with one row of taps, and the sums
before and after them read whole rows of memory. Along both axes there would be
a quarter of the products, but 36 small ones between more sums.

The points are 0, ±1/√2, ±√2 and infinity. In float32 a result is then some
twice as far from the exact one as a plain sum of products is, and nearer than
with the usual points 0, ±1, ±2 and infinity.

References:
  Winograd, Arithmetic Complexity of Computations (1980); Lavin and Gray, arXiv
  1509.09308, section 4, where both axes are filtered.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

__all__ = ["convolve", "kernel_gradient", "kernel_products", "pays"]

POINTS = 6
_ROWS = 4  # outputs of a tile; it reads six rows
_SMALL, _LARGE = 0.5**0.5, 2**0.5  # the points; their product is 1
_SQUARES = _SMALL**2 + _LARGE**2
_BY_SMALL = 1 / (2 * _SMALL**2 * (_SMALL**2 - _LARGE**2))
_BY_LARGE = 1 / (2 * _LARGE**2 * (_LARGE**2 - _SMALL**2))
DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_Pair = tuple[int, int]


def pays(dtype, kernel, rows: int) -> bool:
    """Whether a convolution of stride 1 can be filtered without much waste.

    Rows that the last tile has too many are computed in vain, and with fewer
    than 32 bits the rounding would show.
    """
    tiles = -(-rows // _ROWS)
    return (
        tuple(kernel) == (3, 3)
        and jnp.issubdtype(dtype, jnp.floating)
        and jnp.finfo(dtype).bits >= 32
        and 3 * tiles * _ROWS <= 4 * rows
    )


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "3 3 c o"],
    padding: Sequence[_Pair],
) -> Float[Array, "b h2 w2 o"]:
    """A convolution of stride 1 with 3x3 taps."""
    rows = x.shape[1] + sum(padding[0]) - 2
    products = [
        lax.conv_general_dilated(
            part,
            taps[None],
            (1, 1),
            ((0, 0), padding[1]),
            dimension_numbers=DIMENSIONS,
        )
        for part, taps in zip(
            _of_inputs(_tiles(x, padding[0][0], rows)), _of_taps(kernel)
        )
    ]
    y = jnp.stack(_outputs(products), 2)
    b, tiles = y.shape[:2]
    return y.reshape(b, tiles * _ROWS, *y.shape[3:])[:, :rows]


def kernel_products(
    x: Float[Array, "b h w c"],
    g: Float[Array, "b h2 w2 o"],
    padding: Sequence[_Pair],
) -> Float[Array, "6 3 c o"]:
    """What ``kernel_gradient`` is a sum of; images add up in it.

    Args:
      x: [b h w c] what was convolved.
      g: [b h2 w2 o] the gradient to the result.
      padding: of the convolution.

    Returns:
      [point, column of taps, c, o].
    """
    (b, rows), width, features = g.shape[:2], x.shape[2], g.shape[3]
    low = padding[1][0]
    # Columns of g are shifted against those of x, not the other way round, as
    # in ``ops``.
    columns = (2 - low, width + low - g.shape[2])
    g = pad(g, [(0, 0), (0, -rows % _ROWS), columns, (0, 0)])
    g = g.reshape(b, -1, _ROWS, *g.shape[2:])
    parts = zip(
        _of_inputs(_tiles(x, padding[0][0], rows)),
        _of_outputs([g[:, :, row] for row in range(_ROWS)]),
    )
    products = []
    for left, right in parts:
        shifted = jnp.concatenate(
            [right[:, :, 2 - tap : 2 - tap + width] for tap in range(3)], -1
        )
        products.append(
            left.reshape(-1, x.shape[3]).T @ shifted.reshape(-1, 3 * features)
        )
    return jnp.stack(products).reshape(POINTS, -1, 3, features).swapaxes(1, 2)


def kernel_gradient(
    products: Float[Array, "6 3 c o"],
) -> Float[Array, "3 3 c o"]:
    """The gradient to the taps, of all images' summed products."""
    return jnp.stack(_taps(products))


def _tiles(x, low: int, rows: int):
    """The six rows that each tile reads: six arrays [b tiles w c]."""
    tiles = -(-rows // _ROWS)
    high = _ROWS * (tiles + 1) - x.shape[1] - low
    x = pad(x, [(0, 0), (low, high), (0, 0), (0, 0)])
    x = x.reshape(x.shape[0], tiles + 1, _ROWS, *x.shape[2:])
    return [x[:, :-1, row] for row in range(_ROWS)] + [x[:, 1:, 0], x[:, 1:, 1]]


def pad(x, widths: Sequence[_Pair]):
    """jnp.pad that also crops, where a width is negative."""
    zero = jnp.zeros((), x.dtype)
    return lax.pad(x, zero, [(low, high, 0) for low, high in widths])


# --- The four changes of base. Each takes and gives a list, one entry for each
# row or point; points stand as 0, small, -small, large, -large, infinity. ----


def _of_inputs(d):
    """Six input rows at the six points."""
    return [
        d[0] - _SQUARES * d[2] + d[4],
        *_both(d[4] - _LARGE**2 * d[2], _SMALL * (d[3] - _LARGE**2 * d[1])),
        *_both(d[4] - _SMALL**2 * d[2], _LARGE * (d[3] - _SMALL**2 * d[1])),
        d[1] - _SQUARES * d[3] + d[5],
    ]


def _outputs(m):
    """Four output rows of the products at the six points."""
    small, small_odd, large, large_odd = *_both(*m[1:3]), *_both(*m[3:5])
    return [
        m[0] + small + large,
        _SMALL * small_odd + _LARGE * large_odd,
        _SMALL**2 * small + _LARGE**2 * large,
        _SMALL**3 * small_odd + _LARGE**3 * large_odd + m[5],
    ]


def _of_outputs(g):
    """Its transpose: four rows of gradients at the six points."""
    return [
        g[0],
        *_both(g[0] + _SMALL**2 * g[2], _SMALL * (g[1] + _SMALL**2 * g[3])),
        *_both(g[0] + _LARGE**2 * g[2], _LARGE * (g[1] + _LARGE**2 * g[3])),
        g[3],
    ]


def _of_taps(w):
    """Three rows of taps at the six points, and Lagrange's divisions."""
    return [
        w[0],
        *_both(
            _BY_SMALL * (w[0] + _SMALL**2 * w[2]), _BY_SMALL * _SMALL * w[1]
        ),
        *_both(
            _BY_LARGE * (w[0] + _LARGE**2 * w[2]), _BY_LARGE * _LARGE * w[1]
        ),
        w[2],
    ]


def _taps(u):
    """Its transpose: the gradients to three rows of taps."""
    small, small_odd, large, large_odd = *_both(*u[1:3]), *_both(*u[3:5])
    small, small_odd = _BY_SMALL * small, _BY_SMALL * _SMALL * small_odd
    large, large_odd = _BY_LARGE * large, _BY_LARGE * _LARGE * large_odd
    return [
        u[0] + small + large,
        small_odd + large_odd,
        _SMALL**2 * small + _LARGE**2 * large + u[5],
    ]


def _both(even, odd):
    return even + odd, even - odd
