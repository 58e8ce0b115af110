"""What D2M's loss might be instead, for ``d2m_study.py --variants=losses``.

Each is a ``ddjax.d2m.Match``. The published one pairs real and generated
images of a class by chance and compares class means, so what it wants most are
typical images; these ask for as many kinds of them as there are real ones.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ddjax import augment, d2m, gan, losses
from ddjax.d2m import Seen
from ddjax.data import preprocess
from ddjax.settings import D2m

# Weights of Gu et al., "Efficient Dataset Distillation via Minimax Diffusion",
# CVPR 2024.
_LIKE_REAL, _UNLIKE_EACH_OTHER = 0.002, 0.008


def _squared(a, b):
    """[n m] squared distances of the rows."""
    products = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(a**2, 1)[:, None] + jnp.sum(b**2, 1)[None] - 2 * products


def _same(labels):
    return labels[:, None] == labels[None]


def transported(real, fake, labels, per_class):
    """[b] for each real row a generated one of its own, least far in all.

    Args:
      real: [b d].
      fake: [b d].
      labels: [b], each class ``per_class`` times.
      per_class: in a batch.
    """
    order = jnp.argsort(labels, stable=True)
    gaps = jax.vmap(_squared)(
        *(
            side[order].reshape(-1, per_class, side.shape[1])
            for side in jax.lax.stop_gradient((real, fake))
        )
    )
    rows, columns = jax.vmap(optax.assignment.hungarian_algorithm)(gaps)
    partners = jax.vmap(lambda i, j: jnp.zeros_like(j).at[i].set(j))(
        rows, columns
    )
    first = per_class * jnp.arange(len(partners))[:, None]
    return (
        jnp.zeros_like(order)
        .at[order]
        .set(order[(partners + first).reshape(-1)])
    )


def _last(real: Seen, fake: Seen):
    """[b c] pooled features of the last layer, real ones of variance 1."""
    layer = max(real.features)
    sides = [seen.features[layer].mean((1, 2)) for seen in (real, fake)]
    spread = jnp.sqrt(jnp.mean(jnp.var(sides[0], axis=0)) + 1e-12)
    real_rows, fake_rows = (
        rows / jax.lax.stop_gradient(spread) for rows in sides
    )
    return jax.lax.stop_gradient(real_rows), fake_rows


def by_nearest(real: Seen, fake: Seen, labels, settings: D2m):
    """Predictions beside those of the nearest generated image, in logits."""
    settings = dataclasses.replace(settings, pairing="nearest")
    return d2m.matching_loss(real, fake, labels, settings)


def by_transport(real: Seen, fake: Seen, labels, settings: D2m):
    """Predictions beside those of an image of its own, in logits."""
    partners = transported(real.logits, fake.logits, labels, settings.per_class)
    paired = fake._replace(logits=fake.logits[partners])
    return d2m.matching_loss(real, paired, labels, settings)


def _alone(loss):
    return loss, {"embedding": loss, "prediction": jnp.zeros_like(loss)}


def features_by_nearest(real: Seen, fake: Seen, labels, settings: D2m):
    """Each real image's last features and the nearest generated image's;
    neither predictions nor inner layers."""
    del settings
    rows, made = _last(real, fake)
    gaps = rows - made[losses.nearest_of_class(rows, made, labels)]
    return _alone(jnp.mean(jnp.square(gaps)))


def features_by_transport(real: Seen, fake: Seen, labels, settings: D2m):
    """Each real image's last features and those of an image of its own;
    neither predictions nor inner layers."""
    rows, made = _last(real, fake)
    partners = transported(rows, made, labels, settings.per_class)
    return _alone(jnp.mean(jnp.square(rows - made[partners])))


def moments(real: Seen, fake: Seen, labels, settings: D2m):
    """Mean and covariance of a class's last features; neither predictions nor
    inner layers."""
    rows = [
        side[jnp.argsort(labels, stable=True)].reshape(
            -1, settings.per_class, side.shape[1]
        )
        for side in _last(real, fake)
    ]
    means = [side.mean(1) for side in rows]
    spreads = [
        jnp.einsum(
            "kni,knj->kij", left, left, precision=jax.lax.Precision.HIGHEST
        )
        / settings.per_class
        for left in (side - mean[:, None] for side, mean in zip(rows, means))
    ]
    width = rows[0].shape[-1]
    return _alone(
        jnp.mean(jnp.square(means[0] - means[1]))
        + jnp.sum(jnp.square(spreads[0] - spreads[1]), (1, 2)).mean() / width
    )


def standardised(real: Seen, fake: Seen, labels, settings: D2m):
    """Logits of mean 0 and deviation 1 in each image, at T = 1."""

    def scaled(seen):
        gap = seen.logits - seen.logits.mean(1, keepdims=True)
        spread = jnp.sqrt(jnp.mean(jnp.square(gap), 1, keepdims=True) + 1e-12)
        # The published loss divides by T.
        return seen._replace(logits=settings.temperature * gap / spread)

    return d2m.matching_loss(scaled(real), scaled(fake), labels, settings)


def diverse(real: Seen, fake: Seen, labels, settings: D2m):
    """The published loss, near to the real images and far from each other."""
    loss, terms = d2m.matching_loss(real, fake, labels, settings)
    rows, made = (
        side * jax.lax.rsqrt(jnp.sum(side**2, 1, keepdims=True) + 1e-12)
        for side in _last(real, fake)
    )
    same = _same(labels)
    others = same & ~jnp.eye(len(labels), dtype=bool)
    exact = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    to_real = jnp.where(same, exact(made, rows.T), jnp.inf).min(1)
    to_made = jnp.where(others, exact(made, made.T), -jnp.inf).max(1)
    return (
        loss
        + _LIKE_REAL * jnp.mean(1 - to_real)
        + _UNLIKE_EACH_OTHER * jnp.mean(to_made)
    ), terms


_CRITIC = "critic"  # the name of the feature that holds its scores
_CRITIC_WEIGHT = 0.1
_CRITIC_KEY = 2**31  # beyond any update's


def adversarial(real: Seen, fake: Seen, labels, settings: D2m):
    """The published loss and, beside it, that of a critic."""

    def without(seen):
        features = dict(seen.features)
        return features.pop(_CRITIC), seen._replace(features=features)

    (_, real), (scores, fake) = without(real), without(fake)
    loss, terms = d2m.matching_loss(real, fake, labels, settings)
    return loss + _CRITIC_WEIGHT * gan.generator_loss(scores), terms


class Judged(NamedTuple):
    """A generator's state and its critic's.

    Attributes:
      made: the D2mState.
      params: of the critic.
      spectral: its spectral estimates.
      opt_state: of its optimiser.
    """

    made: d2m.D2mState
    params: Any
    spectral: Any
    opt_state: Any


def update_with_critic(
    state: Judged,
    groups: d2m.Group,
    *,
    critic,
    settings,
    apply_fn,
    preprocessing,
    gen_apply,
):
    """A step of the critic on the batch, then one of D2M.

    The critic is asked about images as the network sees them, and learns on
    the same kind; in pre-training it had an augmentation of its own.

    Args:
      state: before both.
      groups: one group.
      critic: of the pre-training.
      settings: of the run.
      apply_fn: of the network.
      preprocessing: takes pixels to network input.
      gen_apply: of the generator.
    """
    images, labels = groups.images[0], groups.labels[0]
    key = jax.random.fold_in(state.made.key, _CRITIC_KEY)
    keys = jax.random.split(jax.random.fold_in(key, state.made.step), 3)
    fake = d2m.generate(gen_apply, state.made.params, keys[0], labels)
    ops = augment.parse(settings.d2m.augment)

    def shown(inputs):
        return 2 * preprocess.invert(preprocessing, inputs) - 1

    def judged(params, seen, labels, spectral, mutable=False):
        return critic.apply(
            {"params": params, "spectral": spectral},
            seen,
            labels,
            mutable=mutable,
        )

    def loss_of(params):
        seen = [
            shown(
                augment.augment(key, preprocess.apply(preprocessing, side), ops)
            )
            for key, side in zip(keys[1:], (images, fake))
        ]
        scores, after = judged(
            params,
            jnp.concatenate(seen),
            jnp.tile(labels, 2),
            state.spectral,
            ["spectral"],
        )
        return gan.critic_loss(*jnp.split(scores, 2)), after["spectral"]

    grads, spectral = jax.grad(loss_of, has_aux=True)(state.params)
    adam = gan.adam(settings.gan.critic_rate)
    updates, opt_state = adam.update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)

    def apply_beside(network, inputs):
        logits, out = apply_fn(network, inputs)
        scores = judged(params, shown(inputs), labels, spectral)
        return logits, out | {_CRITIC: scores}

    made, metrics = d2m.update(
        state.made,
        groups,
        gen_apply=gen_apply,
        apply_fn=apply_beside,
        preprocessing=preprocessing,
        settings=settings.d2m,
        match=adversarial,
    )
    return Judged(made, params, spectral, opt_state), metrics


PAIRINGS = ("published", "nearest in logits", "transport in logits")

MATCHES = {
    "published": d2m.matching_loss,
    "nearest in logits": by_nearest,
    "transport in logits": by_transport,
    "nearest in features": features_by_nearest,
    "transport in features": features_by_transport,
    "mean and covariance": moments,
    "standardised logits": standardised,
    "like real, unlike each other": diverse,
    "critic kept on": adversarial,  # by ``update_with_critic``
}
