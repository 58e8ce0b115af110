"""Instance norm, ReLU and pooling as one operation with its own derivatives.

Between its convolutions a ConvNet is bound by memory: each elementwise step
reads and writes whole feature maps, and automatic differentiation, twice over,
makes dozens of such steps of three. Written by hand, the value, its gradient
and the gradient's own derivative need a few sweeps over the features each, and
everything else happens on pooled arrays, a quarter as large.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

__all__ = ["norm_relu_pool"]

NORM_EPSILON = 1e-5


def _mean(x):
    return x.mean((1, 2), keepdims=True)


def _quarters(x):
    """The four positions of each 2 x 2 block: four arrays [b h/2 w/2 c].

    Pooling as a sum of these stays in one loop with what comes before it; a
    reduction would have that written to memory first.
    """
    return [x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]


def _spread(y):
    """Each number to the four positions of its block."""
    b, h, w, c = y.shape
    y = jnp.broadcast_to(y[:, :, None, :, None], (b, h, 2, w, 2, c))
    return y.reshape(b, 2 * h, 2 * w, c)


def _measure(z, scale, bias):
    """What value and derivatives are made of.

    Returns:
      centred: [b h w c] z less its mean over the image.
      rate: [b 1 1 c] one over the standard deviation; centred * rate is n.
      share: [b h/2 w/2 c] of each block, the share that ReLU lets through.
      part: [b h/2 w/2 c] the mean over each block of n where it does.
    """
    centred = z - _mean(z)
    rate = lax.rsqrt(_mean(jnp.square(centred)) + NORM_EPSILON)
    share, part = 0.0, 0.0
    for x in _quarters(centred):
        passes = x * (scale * rate) + bias > 0
        share += passes.astype(z.dtype)
        part += jnp.where(passes, x, 0)
    return centred, rate, 0.25 * share, 0.25 * rate * part


@jax.custom_vjp
def _value(z, scale, bias):
    _, _, share, part = _measure(z, scale, bias)
    return scale * part + bias * share


@jax.custom_vjp
def _gradient(z, scale, bias, y_bar):
    """The cotangents of _value's arguments.

    With u0 the derivative of the loss to scale * n + bias, and means over the
    image, z's is ``rate * (u - mean(u) - n * mean(u * n))``, u = scale * u0.
    The means are those of pooled arrays.
    """
    centred, rate, share, part = _measure(z, scale, bias)
    mean_u0, mean_u0n = _means(y_bar, share, part)
    passes = centred * (scale * rate) + bias > 0
    u = jnp.where(passes, _spread(y_bar * (0.25 * scale * rate)), 0)
    z_bar = (
        u
        - rate * scale * mean_u0
        - centred * (jnp.square(rate) * scale * mean_u0n)
    )
    return z_bar, (y_bar * part).sum((0, 1, 2)), (y_bar * share).sum((0, 1, 2))


def _means(y_bar, share, part):
    """Over the image, of u0 and of u0 * n: four positions share one y_bar."""
    return 0.25 * _mean(y_bar * share), 0.25 * _mean(y_bar * part)


def _second(saved, cotangents):
    """The cotangents of _gradient's arguments, plain operations.

    v is the cotangent of z_bar. The map from u to z_bar is symmetric, so v
    goes back to y_bar as z_bar came from it; to z it goes by n and by rate:

        n_bar    = u0 * (scale_bar - scale * rate * mean(v n)) - v * rate *
                   mean(u n)
        rate_bar = sum(v z_bar) / rate
    """
    z, scale, bias, y_bar = saved
    v, scale_bar, bias_bar = cotangents
    centred, rate, share, part = _measure(z, scale, bias)
    mean_u0, mean_u0n = _means(y_bar, share, part)
    mean_v, mean_vn = _mean(v), rate * _mean(v * centred)
    passed_v = 0.25 * sum(
        jnp.where(x * (scale * rate) + bias > 0, w, 0)
        for x, w in zip(_quarters(centred), _quarters(v))
    )
    # Means over each block of what v gives to u, where ReLU lets it through.
    given = rate * (passed_v - share * mean_v - part * mean_vn)
    y_bar_bar = scale * given + scale_bar * part + bias_bar * share

    by_u0 = scale_bar - scale * rate * mean_vn
    by_v = -rate * scale * mean_u0n
    mean_n_bar = by_v * mean_v + by_u0 * mean_u0
    mean_n_bar_n = by_v * mean_vn + by_u0 * mean_u0n
    mean_vu = 0.25 * scale * _mean(y_bar * passed_v)
    by_rate = rate * (mean_vu - scale * (mean_v * mean_u0 + mean_vn * mean_u0n))
    passes = centred * (scale * rate) + bias > 0
    z_bar = (
        v * (rate * by_v)
        + jnp.where(passes, _spread(y_bar * (0.25 * rate * by_u0)), 0)
        - rate * mean_n_bar
        - centred * (jnp.square(rate) * (mean_n_bar_n + by_rate))
    )
    return (
        z_bar,
        (y_bar * given).sum((0, 1, 2)),
        jnp.zeros_like(bias),
        y_bar_bar,
    )


# Saved are the arguments alone: what is measured of them is measured again,
# which the compiler merges where both are in one program, and third derivatives
# are those of plain operations on the arguments.
_value.defvjp(
    lambda *arguments: (_value(*arguments), arguments),
    lambda saved, y_bar: _gradient(*saved, y_bar),
)
_gradient.defvjp(lambda *arguments: (_gradient(*arguments), arguments), _second)


def norm_relu_pool(
    features: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
) -> Float[Array, "b h2 w2 c"]:
    """Means over 2 x 2 blocks of ReLU(instance norm(features)).

    Equal to the three in turn, in value and in reverse derivatives of every
    order, up to rounding. Forward mode is not defined.

    Args:
      features: [b h w c], h and w even.
      scale: [c] of the norm.
      bias: [c] of the norm.

    Returns:
      [b h/2 w/2 c].

    Raises:
      AssertionError: wrong ranks, or c differs.
      ValueError: an odd height or width.

    References:
      Instance norm: Ulyanov et al., arXiv 1607.08022.

    >>> norm_relu_pool(jnp.ones((1, 4, 2, 3)), jnp.ones(3), jnp.ones(3)).shape
    (1, 2, 1, 3)
    """
    chex.assert_rank([features, scale, bias], [4, 1, 1])
    chex.assert_equal_shape([features[0, 0, 0], scale, bias])
    if features.shape[1] % 2 or features.shape[2] % 2:
        raise ValueError(
            "norm_relu_pool needs an even height and width, not "
            f"{features.shape[1]} x {features.shape[2]}"
        )
    return _value(features, scale, bias)
