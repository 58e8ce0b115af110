"""Latents moved until their images stand for clusters of the real ones.

Each generated image is given a cluster of its class's real images, and its
features are brought near the mean of the cluster's, for many networks in turn,
by moving the noise that a generator makes the image of.

Source: distribution matching (Zhao and Bilen, "Dataset Condensation with
Distribution Matching", WACV 2023), which moves pixels to match the mean of a
class. Noise in the place of pixels, clusters in that of classes, and trained
networks in that of random ones are our choice.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ddjax.types import Params

__all__ = ["distance", "match"]


def distance(
    features: Float[Array, "n d"], wanted: Float[Array, "n d"]
) -> Float[Array, ""]:
    """Mean squared difference, in units of the mean square of ``wanted``.

    >>> float(distance(jnp.array([[3.0, 4.0]]), jnp.array([[3.0, 3.0]])))
    0.0555...
    """
    return jnp.square(features - wanted).mean() / jnp.square(wanted).mean()


def match(
    noise: Float[Array, "n d"],
    networks: Params,
    wanted: Float[Array, "m n f"],
    *,
    features_of: Callable[[Params, Array], Array],
    steps: int,
    rate: float,
) -> tuple[Float[Array, "n d"], Float[Array, " t"]]:
    """Noise after some steps of Adam, each towards one network's features.

    The networks are taken in turn, and the rate falls to 0 by a cosine. Pure:
    works under jit.

    Args:
      noise: what is begun with.
      networks: m params, stacked.
      wanted: what each network is to see in each image.
      features_of: (a network's params, noise) -> features [n f] of the images
        made of it.
      steps: t.
      rate: of Adam at first.

    Returns:
      (noise, the distances on the way).
    """
    count = len(wanted)
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(carry, index):
        noise, state = carry
        network, target = jax.tree.map(
            lambda leaf: leaf[index % count], (networks, wanted)
        )
        apart, gradient = jax.value_and_grad(
            lambda noise: distance(features_of(network, noise), target)
        )(noise)
        change, state = adam.update(gradient, state)
        return (optax.apply_updates(noise, change), state), apart

    (noise, _), apart = jax.lax.scan(
        step, (noise, adam.init(noise)), jnp.arange(steps)
    )
    return noise, apart
