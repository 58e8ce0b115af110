"""A 2-d convolution whose derivatives of every order are fast everywhere.

XLA's CPU backend runs a convolution at full speed inside ``lax.scan`` only
when its dimensions are in canonical order. The kernel gradient that
``lax.conv_general_dilated`` derives for itself is not, and is about a hundred
times slower in a loop than outside. Dataset distillation is loops of
gradients and nothing else, so the derivatives are written here instead.

A convolution is bilinear and so are its two gradients::

    convolve(x, w)          y = x * w
    input_gradient(g, w)    its transpose in x
    kernel_gradient(x, g)   its transpose in w

and the transposes of each of the three are the other two. Every function gets
a custom reverse rule in terms of the others; derivatives of any order stay in
the family, and only three kernels have to be fast. Reverse over reverse works
to any order; forward mode (``jax.jvp``, ``jax.jacfwd``) is not defined.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from ddjax import filtering

__all__ = ["conv2d"]

KEPT = "ddjax_convolution"
"""Name, for ``jax.checkpoint`` policies, of outputs that are dear to make and
cheap to keep: those with many input channels for each output number, and the
input gradients that a first derivative takes of them."""

_FEW_CHANNELS = 16
_MANY_TIMES = 4
_CACHED = 5_000_000  # bytes; from 2 to 10 MB the times differ little
# Where filtering was faster (BUILD_NOTES.md): channels of the smaller and of
# the larger side, forward and to the input; numbers of the smaller operand, to
# the kernel.
_FILTERED_CHANNELS = 32, 64
_FILTERED_GRADIENT_NUMBERS = 16_384
_Pairs = tuple[tuple[int, int], tuple[int, int]]


class _Geometry(NamedTuple):
    """What the shapes of two operands leave open about the third."""

    image: tuple[int, int]  # h, w
    kernel: tuple[int, int]  # kh, kw
    stride: tuple[int, int]
    padding: _Pairs


def _plain(x, w, geometry: _Geometry):
    return lax.conv_general_dilated(
        x,
        w,
        geometry.stride,
        geometry.padding,
        dimension_numbers=filtering.DIMENSIONS,
    )


# --- The three kernels for a CPU -------------------------------------------


def _correlate_cpu(x, w, strides, padding, dilation=(1, 1)):
    """A convolution, by matrix products where those are faster.

    XLA swaps the operands of a convolution whose kernel has more taps than
    its image has pixels, and what comes of 3x3 taps on 2x2 pixels runs up to
    fifty times slower. With 3x3 taps and many channels, half of the products
    are enough.
    """
    (kh, kw), (channels, features) = w.shape[:2], w.shape[2:]
    edges = [(*pair, step - 1) for pair, step in zip(padding, dilation)]
    sizes = [
        ((size - 1) * step + 1 + low + high - taps) // stride + 1
        for size, step, (low, high), taps, stride in zip(
            x.shape[1:3], dilation, padding, (kh, kw), strides
        )
    ]
    sides = zip(sorted((channels, features)), _FILTERED_CHANNELS)
    if (
        strides == dilation == (1, 1)
        and all(side >= least for side, least in sides)
        and min(sizes) >= 1
        and filtering.pays(x.dtype, (kh, kw), sizes[0])
    ):
        return filtering.convolve(x, w, padding)
    merges = (
        1 < kh * kw <= channels / features
        and features >= _FEW_CHANNELS
        and strides == dilation == (1, 1)
    )
    if merges and min(sizes) >= 1:
        return _correlate_after(filtering.pad(x, [(0, 0), *padding, (0, 0)]), w)
    if kh * kw <= x.shape[1] * x.shape[2] or min(sizes) < 1:
        return lax.conv_general_dilated(
            x,
            w,
            strides,
            padding,
            lhs_dilation=dilation,
            dimension_numbers=filtering.DIMENSIONS,
        )
    none = (0, 0, 0)
    padded = lax.pad(x, jnp.zeros((), x.dtype), [none, *edges, none])
    offsets = [(row, column) for row in range(kh) for column in range(kw)]
    left = _shifted(padded, offsets, sizes, strides)
    product = left.reshape(-1, kh * kw * channels) @ w.reshape(-1, features)
    return product.reshape(x.shape[0], *sizes, features)


def _correlate_after(x, w):
    """One product for all taps, then the sum of shifted parts of it.

    For kernels whose products are no larger than the image: of 128 images of
    17x17x128 with 2x2x128x32 taps it takes half the time of a convolution.
    """
    (kh, kw, channels, features), (b, h, width) = w.shape, x.shape[:3]
    flat = w.transpose(2, 0, 1, 3).reshape(channels, -1)
    y = (x.reshape(-1, channels) @ flat).reshape(b, h, width, kh, kw, features)
    rows, columns = h - kh + 1, width - kw + 1
    return sum(
        y[:, row : row + rows, column : column + columns, row, column]
        for row in range(kh)
        for column in range(kw)
    )


def _convolve_cpu(x, w, geometry: _Geometry):
    return _correlate_cpu(x, w, geometry.stride, geometry.padding)


def _input_gradient_cpu(g, w, geometry: _Geometry):
    """A forward convolution of the dilated gradient with the turned kernel."""
    padding = []
    for axis in range(2):
        size, taps = geometry.image[axis], geometry.kernel[axis]
        step, (low, _) = geometry.stride[axis], geometry.padding[axis]
        dilated = (g.shape[1 + axis] - 1) * step + 1
        before = taps - 1 - low
        padding.append((before, size + taps - 1 - dilated - before))
    turned = w[::-1, ::-1].swapaxes(2, 3)
    return _correlate_cpu(g, turned, (1, 1), padding, geometry.stride)


def _shifted(x, offsets, sizes, strides):
    """Crops of x, one per (row, column) offset, joined along channels."""
    return jnp.concatenate(
        [
            x[
                :,
                row : row + (sizes[0] - 1) * strides[0] + 1 : strides[0],
                column : column + (sizes[1] - 1) * strides[1] + 1 : strides[1],
            ]
            for row, column in offsets
        ],
        axis=-1,
    )


def _kernel_gradient_cpu(x, g, geometry: _Geometry):
    """Matrix products over all positions, of a few images at a time.

    The shifted copies are several times as large as their operand. Where those
    of all images do not stay in a core's share of the cache, images go in
    groups that do.
    """
    images = x.shape[0]
    if _filters_gradient(x, g, geometry):
        # Each of the six points has three shifted copies of a quarter of g,
        # and a quarter of x.
        numbers = g[0].size * 6 * 3 / 4 + x[0].size * 6 / 4
        shape = (filtering.POINTS, 3, x.shape[-1], g.shape[-1])
        finish = filtering.kernel_gradient

        def part(x, g):
            return filtering.kernel_products(x, g, geometry.padding)

    else:
        copied = g if _shifts_gradient(x, g, geometry) else x
        positions = geometry.image if copied is g else g.shape[1:3]
        taps = math.prod(geometry.kernel)
        numbers = math.prod(positions) * taps * copied.shape[-1]
        shape = (*geometry.kernel, x.shape[-1], g.shape[-1])

        def finish(total):
            return total

        def part(x, g):
            return _kernel_gradient_of(x, g, geometry)

    groups = -(-images // max(1, int(_CACHED // max(1, 4 * numbers))))
    if groups <= 1:
        return finish(part(x, g))
    size = -(-images // groups)
    groups = -(-images // size)
    if groups * size > images:  # images of zeros add nothing
        extra = [(0, groups * size - images)] + [(0, 0)] * 3
        x, g = filtering.pad(x, extra), filtering.pad(g, extra)

    def add(total, begin):
        few = [lax.dynamic_slice_in_dim(a, begin, size) for a in (x, g)]
        return total + part(*few), None

    zeros = jnp.zeros(shape, jnp.result_type(x, g))
    begins = jnp.arange(0, groups * size, size)
    return finish(lax.scan(add, zeros, begins)[0])


def _filters_gradient(x, g, geometry: _Geometry) -> bool:
    return (
        geometry.stride == (1, 1)
        and min(x.shape[-1], g.shape[-1]) >= _FEW_CHANNELS
        and min(x.size, g.size) >= _FILTERED_GRADIENT_NUMBERS
        and filtering.pays(g.dtype, geometry.kernel, g.shape[1])
    )


def _shifts_gradient(x, g, geometry: _Geometry) -> bool:
    channels, features = x.shape[-1], g.shape[-1]
    return (
        geometry.stride == (1, 1)
        and channels >= _FEW_CHANNELS
        and features < _MANY_TIMES * channels
    )


def _kernel_gradient_of(x, g, geometry: _Geometry):
    """One matrix product over all positions, images included.

    Either side can be shifted against the other. Shifting g keeps the
    transposed operand small and was 1.3-1.9 times faster than shifting x in
    every measured layer with 16 input channels or more; with fewer, the
    product is too flat, and shifting x wins by up to ten. From four times as
    many output channels on, too: by 1.1 (32 -> 128, 2x2) and 1.5 (64 -> 256).
    """
    (kh, kw), channels, features = geometry.kernel, x.shape[-1], g.shape[-1]
    offsets = [(row, column) for row in range(kh) for column in range(kw)]
    if _shifts_gradient(x, g, geometry):
        pad = [(0, 0), *_turned_padding(geometry, g.shape[1:3]), (0, 0)]
        turned = [(kh - 1 - row, kw - 1 - column) for row, column in offsets]
        right = _shifted(filtering.pad(g, pad), turned, geometry.image, (1, 1))
        product = x.reshape(-1, channels).T @ right.reshape(
            -1, kh * kw * features
        )
        return product.reshape(channels, kh, kw, features).transpose(1, 2, 0, 3)
    padded = filtering.pad(x, [(0, 0), *geometry.padding, (0, 0)])
    left = _shifted(padded, offsets, g.shape[1:3], geometry.stride)
    product = left.reshape(-1, kh * kw * channels).T @ g.reshape(-1, features)
    return product.reshape(kh, kw, channels, features)


def _turned_padding(geometry: _Geometry, sizes) -> _Pairs:
    """Padding that lets a stride-1 gradient be cropped at x's positions."""
    return tuple(
        (taps - 1 - low, image + low - size)
        for taps, (low, _), image, size in zip(
            geometry.kernel, geometry.padding, geometry.image, sizes
        )
    )


# --- The three kernels elsewhere: XLA's own transposes ----------------------


def _input_gradient_default(g, w, geometry: _Geometry):
    shape = (g.shape[0], *geometry.image, w.shape[2])
    x = jax.ShapeDtypeStruct(shape, g.dtype)
    (dx,) = jax.linear_transpose(lambda x: _plain(x, w, geometry), x)(g)
    return dx


def _kernel_gradient_default(x, g, geometry: _Geometry):
    shape = (*geometry.kernel, x.shape[-1], g.shape[-1])
    w = jax.ShapeDtypeStruct(shape, x.dtype)
    (dw,) = jax.linear_transpose(lambda w: _plain(x, w, geometry), w)(g)
    return dw


# --- The family, closed under reverse differentiation -----------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x, w, geometry: _Geometry):
    return lax.platform_dependent(
        x,
        w,
        cpu=functools.partial(_convolve_cpu, geometry=geometry),
        default=functools.partial(_plain, geometry=geometry),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _input_gradient(g, w, geometry: _Geometry):
    return lax.platform_dependent(
        g,
        w,
        cpu=functools.partial(_input_gradient_cpu, geometry=geometry),
        default=functools.partial(_input_gradient_default, geometry=geometry),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _kernel_gradient(x, g, geometry: _Geometry):
    return lax.platform_dependent(
        x,
        g,
        cpu=functools.partial(_kernel_gradient_cpu, geometry=geometry),
        default=functools.partial(_kernel_gradient_default, geometry=geometry),
    )


def _kept(result, channels: int):
    """Named, where a loop of gradients should keep it."""
    if channels < _FEW_CHANNELS:
        return result
    return checkpoint_name(result, KEPT)


# The forward rules call the family's own functions, never the kernels: the
# second derivative differentiates what is written here.
_convolve.defvjp(
    lambda x, w, geometry: (_convolve(x, w, geometry), (x, w)),
    lambda geometry, saved, y_bar: (
        _kept(_input_gradient(y_bar, saved[1], geometry), saved[0].shape[3]),
        _kernel_gradient(saved[0], y_bar, geometry),
    ),
)
_input_gradient.defvjp(
    lambda g, w, geometry: (_input_gradient(g, w, geometry), (g, w)),
    lambda geometry, saved, x_bar: (
        _convolve(x_bar, saved[1], geometry),
        _kernel_gradient(x_bar, saved[0], geometry),
    ),
)
_kernel_gradient.defvjp(
    lambda x, g, geometry: (_kernel_gradient(x, g, geometry), (x, g)),
    lambda geometry, saved, w_bar: (
        _input_gradient(saved[1], w_bar, geometry),
        _convolve(saved[0], w_bar, geometry),
    ),
)


def conv2d(
    images: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c o"],
    *,
    stride: int | Sequence[int] = 1,
    padding: str | Sequence[Sequence[int]] = "SAME",
) -> Float[Array, "b h2 w2 o"]:
    """2-d convolution (cross-correlation) with fast nested gradients.

    Equal to ``lax.conv_general_dilated`` in NHWC and HWIO order, in value and
    in every reverse derivative, up to rounding. On a CPU 3x3 taps of many
    channels are filtered four rows at a time: in float32 the result is then
    some twice as far from the exact one, how a kernel gradient is rounded can
    depend on the size of the batch, and a number that is not finite spreads
    over four rows.

    It works under jit, scan, vmap, ``jax.checkpoint`` and pmap. A vmap over
    kernels becomes a grouped convolution, which is slow on a CPU; use
    ``lax.map`` there.

    Args:
      images: [b h w c].
      kernel: [kh kw c o].
      stride: one number, or (rows, columns); at least 1.
      padding: "SAME", "VALID", or ((top, bottom), (left, right)).

    Returns:
      [b h' w' o].

    Raises:
      AssertionError: an operand has the wrong rank or the channels differ.
      ValueError: stride or padding is none of the above.

    >>> conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2))).shape
    (1, 4, 4, 2)
    """
    chex.assert_rank([images, kernel], 4)
    chex.assert_equal(images.shape[3], kernel.shape[2])
    strides = (stride, stride) if isinstance(stride, int) else tuple(stride)
    if len(strides) != 2 or min(strides) < 1:
        raise ValueError(
            f"stride must be one or two numbers of at least 1, not {stride}"
        )
    image, taps = images.shape[1:3], kernel.shape[:2]
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise ValueError(
                f"padding must be SAME, VALID or two pairs, not {padding!r}"
            )
        pairs = lax.padtype_to_pads(image, taps, strides, padding.upper())
    else:
        pairs = padding
    pairs = tuple((int(low), int(high)) for low, high in pairs)
    if len(pairs) != 2:
        raise ValueError(f"padding must name two axes, not {padding}")
    result = _convolve(images, kernel, _Geometry(image, taps, strides, pairs))
    return _kept(result, images.shape[3])
