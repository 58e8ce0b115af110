"""Latents moved until their images look to networks like the real ones.

The mean and the deviation of each feature over a class's generated images are
brought near those of its real images, for many networks in turn, by moving the
noise that a generator makes the images of.

Source: distribution matching (Zhao and Bilen, "Dataset Condensation with
Distribution Matching", WACV 2023), which moves pixels to match means of random
networks' features. Noise in the place of pixels, the deviations and trained
networks are our choice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ddjax.types import Params

__all__ = ["Moments", "distance", "match", "moments"]


class Moments(NamedTuple):
    """What is matched of a class's features.

    Attributes:
      mean: [d].
      deviation: [d].
    """

    mean: Any
    deviation: Any


_LEAST = 1e-8  # added to a variance, whose root has no gradient at 0


def moments(features: Float[Array, "n d"]) -> Moments:
    """Mean and deviation of each feature."""
    mean = features.mean(0)
    variance = jnp.square(features - mean).mean(0)
    return Moments(mean, jnp.sqrt(variance + _LEAST))


def distance(made: Moments, real: Moments) -> Float[Array, ""]:
    """Mean squared difference of both moments, in units of the real variance.

    >>> one = Moments(jnp.zeros(2), jnp.ones(2))
    >>> float(distance(one._replace(mean=jnp.array([3.0, 4.0])), one))
    12.5
    """
    unit = jnp.square(real.deviation).mean()
    apart = jax.tree.map(lambda a, b: jnp.square(a - b).mean(), made, real)
    return sum(apart) / unit


def match(
    noise: Float[Array, "n d"],
    networks: Params,
    real: Moments,
    *,
    features_of: Callable[[Params, Array], Array],
    steps: int,
    rate: float,
) -> tuple[Float[Array, "n d"], Float[Array, " t"]]:
    """Noise after some steps of Adam, each towards one network's moments.

    The networks are taken in turn, and the rate falls to 0 by a cosine. Pure:
    works under jit.

    Args:
      noise: what is begun with.
      networks: params whose leaves lead with their number.
      real: moments of the real features, of each network: [m d].
      features_of: (a network's params, noise [n d]) -> features [n d] of the
        images made of it.
      steps: t.
      rate: of Adam at first.

    Returns:
      (noise, the distances on the way).
    """
    count = jax.tree.leaves(networks)[0].shape[0]
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(carry, index):
        noise, state = carry
        network, wanted = jax.tree.map(
            lambda leaf: leaf[index % count], (networks, real)
        )
        apart, gradient = jax.value_and_grad(
            lambda noise: distance(moments(features_of(network, noise)), wanted)
        )(noise)
        change, state = adam.update(gradient, state)
        return (optax.apply_updates(noise, change), state), apart

    (noise, _), apart = jax.lax.scan(
        step, (noise, adam.init(noise)), jnp.arange(steps)
    )
    return noise, apart
