"""Pre-training of D2M's generator: a class-conditional GAN.

``update`` is several steps of the critic and one of the generator, by the
hinge loss, with differentiable augmentation of what the critic sees and an
exponential average of the generator. ``averaged`` is the folded generator that
everything later works with.

Source: Brock et al., "Large Scale GAN Training for High Fidelity Natural Image
Synthesis", ICLR 2019 (losses, optimisers, average); Zhao et al.,
"Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg
from jaxtyping import Array, Float, Key

from ddjax.augment import augment, parse
from ddjax.data import preprocess
from ddjax.models import biggan
from ddjax.settings import Gan
from ddjax.types import Batch, InputError, Params

__all__ = [
    "GanState",
    "averaged",
    "critic_loss",
    "frechet_distance",
    "generator_loss",
    "init_state",
    "update",
]


@flax.struct.dataclass
class GanState:
    """Everything that pre-training carries from one update to the next.

    Attributes:
      step: int32 scalar, updates so far.
      key: one typed key; ``fold_in(key, step)`` feeds each update.
      generator: params of the training form.
      generator_spectral: its spectral estimates.
      critic: params.
      critic_spectral: its spectral estimates.
      average: of the generator's params.
      generator_opt: state of its optimiser.
      critic_opt: state of its optimiser.
    """

    step: Any
    key: Any
    generator: Any
    generator_spectral: Any
    critic: Any
    critic_spectral: Any
    average: Any
    generator_opt: Any
    critic_opt: Any


def adam(rate: float) -> optax.GradientTransformation:
    """The optimiser of BigGAN, and of D2M after it: betas (0, 0.999)."""
    return optax.adam(rate, b1=0.0, b2=0.999)


def init_state(
    key: Key[Array, ""],
    generator: biggan.Generator,
    critic: biggan.Critic,
    settings: Gan,
) -> GanState:
    """The state before the first update.

    Args:
      key: one key; the whole run's randomness.
      generator: the training form.
      critic: of the same size and classes.
      settings: of the run.
    """
    generator_key, critic_key, key = jax.random.split(key, 3)
    channels = generator.channels
    params, spectral = biggan.initialise(generator, generator_key, channels)
    judge, judge_spectral = biggan.initialise(critic, critic_key, channels)
    return GanState(
        step=jnp.zeros((), jnp.int32),
        key=key,
        generator=params,
        generator_spectral=spectral,
        critic=judge,
        critic_spectral=judge_spectral,
        average=params,
        generator_opt=adam(settings.generator_rate).init(params),
        critic_opt=adam(settings.critic_rate).init(judge),
    )


def critic_loss(
    real: Float[Array, " n"], fake: Float[Array, " n"]
) -> Float[Array, ""]:
    """Hinge loss of the critic's scores: 0 beyond the margin of 1.

    >>> float(critic_loss(jnp.array([2.0, 0.0]), jnp.array([-1.0, -3.0])))
    0.5
    """
    return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))


def generator_loss(fake: Float[Array, " n"]) -> Float[Array, ""]:
    """Minus the critic's mean score of generated images."""
    return -jnp.mean(fake)


def _seen(key, images, ops):
    """What the critic sees of images in 0..1: in -1..1, augmented."""
    images = 2 * preprocess.to_unit(images) - 1
    for number, op in enumerate(ops):
        images = augment(jax.random.fold_in(key, number), images, (op,))
    return images


def noise(key: Key[Array, ""], count: int, size: int) -> Float[Array, "n d"]:
    """Standard normal noise [count size]."""
    return jax.random.normal(key, (count * size,)).reshape(count, size)


def update(
    state: GanState,
    batches: Batch,
    *,
    generator: biggan.Generator,
    critic: biggan.Critic,
    settings: Gan,
    axis_name: str | None = None,
) -> tuple[GanState, dict[str, Array]]:
    """One step of the generator, after a critic's step on each batch.

    Args:
      state: before the step; the same on every device.
      batches: this device's images [t b h w c], uint8 or floats in 0..1, and
        classes [t b]; t is the number of critic steps. Generated images are
        asked for the same classes.
      generator: the training form.
      critic: of the same size and classes.
      settings: of the run.
      axis_name: of the enclosing pmap over devices, or None. Gradients are
        averaged over devices; batch statistics are each device's own.

    Returns:
      (state after the step, metrics: scalars, the same on every device).
    """
    key = jax.random.fold_in(state.key, state.step)
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    steps, size = batches.labels.shape
    ops = parse(settings.augment)
    keys = jax.random.split(key, steps + 1)

    def mean(tree):
        return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

    def generate(params, key, labels, mutable=False):
        return generator.apply(
            {"params": params, "spectral": state.generator_spectral},
            noise(key, size, generator.noise),
            labels,
            mutable=mutable,
        )

    def step_critic(carry, inputs):
        params, spectral, opt = carry
        (images, labels), key = inputs
        real_key, fake_key, noise_key = jax.random.split(key, 3)
        fake = generate(state.generator, noise_key, labels)
        seen = jnp.concatenate(
            [
                _seen(real_key, images, ops),
                _seen(fake_key, fake, ops),
            ]
        )

        def loss_of(params):
            scores, after = critic.apply(
                {"params": params, "spectral": spectral},
                seen,
                jnp.concatenate([labels, labels]),
                mutable=["spectral"],
            )
            real, fake = jnp.split(scores, 2)
            return critic_loss(real, fake), (after, real.mean(), fake.mean())

        (loss, (after, *scores)), grads = jax.value_and_grad(
            loss_of, has_aux=True
        )(params)
        updates, opt = adam(settings.critic_rate).update(mean(grads), opt)
        params = optax.apply_updates(params, updates)
        return (params, after["spectral"], opt), (loss, *scores)

    (judge, judge_spectral, judge_opt), (losses, real, fake) = jax.lax.scan(
        step_critic,
        (state.critic, state.critic_spectral, state.critic_opt),
        (batches, keys[:-1]),
    )

    def loss_of(params):
        seen_key, noise_key = jax.random.split(keys[-1])
        labels = batches.labels[-1]
        images, after = generate(params, noise_key, labels, ["spectral"])
        scores = critic.apply(
            {"params": judge, "spectral": judge_spectral},
            _seen(seen_key, images, ops),
            labels,
        )
        return generator_loss(scores), after["spectral"]

    (loss, spectral), grads = jax.value_and_grad(loss_of, has_aux=True)(
        state.generator
    )
    updates, opt = adam(settings.generator_rate).update(
        mean(grads), state.generator_opt
    )
    params = optax.apply_updates(state.generator, updates)
    metrics = mean(
        {
            "generator_loss": loss,
            "critic_loss": losses.mean(),
            "real_score": real.mean(),
            "fake_score": fake.mean(),
        }
    )
    return state.replace(
        step=state.step + 1,
        generator=params,
        generator_spectral=spectral,
        critic=judge,
        critic_spectral=judge_spectral,
        average=moving_average(
            state.average, params, state.step, settings.average
        ),
        generator_opt=opt,
        critic_opt=judge_opt,
    ), metrics


def moving_average(
    average: Params, params: Params, step: Any, most: float
) -> Params:
    """decay * average + (1 - decay) * params, leaf by leaf.

    The decay is ``most``, and (1 + step) / (10 + step) as long as that is
    less.
    """
    decay = jnp.minimum(most, (1.0 + step) / (10.0 + step))
    return jax.tree.map(
        lambda old, new: old + (1 - decay) * (new - old), average, params
    )


_MOMENTS = 16  # batches that statistics are taken over, or more for all classes


def averaged(
    state: GanState, generator: biggan.Generator, batch_size: int
) -> tuple[biggan.GenApply, Params]:
    """The generator of a state, averaged and folded.

    Its noise does not depend on the state's key, so two calls agree.

    Args:
      state: of pre-training.
      generator: the training form.
      batch_size: images in each batch that moments are taken of, as many as
        were normalised together in training; classes take turns in 16
        batches, or in as many as all of them need.

    Returns:
      (gen_apply, gen_params); see ``biggan.GenApply``.
    """
    module = generator.clone(form=biggan.FOLDED)
    return biggan.GenApply(module), _folded(
        state.average, state.generator_spectral, generator, batch_size
    )


def _folded_of(params, spectral, generator, batch_size):
    k = generator.num_classes
    batches = max(_MOMENTS, -(-k // batch_size))
    count = batches * batch_size
    drawn = noise(jax.random.key(0), count, generator.noise)
    labels = jnp.arange(count) % k
    if k > batch_size:
        # As mixed as in training: neighbouring classes are often alike.
        labels = jax.random.permutation(jax.random.key(1), labels)
    _, params = biggan.fold(
        generator,
        params,
        spectral,
        drawn.reshape(batches, batch_size, -1),
        labels.reshape(batches, batch_size),
    )
    return params


_folded = jax.jit(_folded_of, static_argnums=(2, 3))


def frechet_distance(
    real: Float[Array | np.ndarray, "n d"],
    fake: Float[Array | np.ndarray, "m d"],
) -> float:
    r"""Distance of two sets of features, each taken for a Gaussian.

    .. math:: \lVert \mu_1 - \mu_2 \rVert^2 + \mathrm{tr}(C_1 + C_2
        - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2})

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NeurIPS
    2017, there on Inception's features: a figure means something only beside
    others of the same features, and is biased upwards for few images.

    Args:
      real: [n d] features.
      fake: [m d] features.

    Returns:
      The squared distance, in the features' units; computed in float64.

    Raises:
      InputError: fewer than two images, or features that are not finite.
    """
    sets = [np.asarray(features, np.float64) for features in (real, fake)]
    for features in sets:
        if len(features) < 2 or not np.isfinite(features).all():
            raise InputError(
                "a Frechet distance needs two images or more on each side, "
                "with finite features"
            )
    (mean1, mean2), (cov1, cov2) = zip(
        *((f.mean(0), np.atleast_2d(np.cov(f, rowvar=False))) for f in sets)
    )
    values, vectors = scipy.linalg.eigh(cov1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    middle = scipy.linalg.eigvalsh(root @ cov2 @ root)
    cross = np.sqrt(np.maximum(middle, 0)).sum()
    return float(
        np.square(mean1 - mean2).sum()
        + np.trace(cov1)
        + np.trace(cov2)
        - 2 * cross
    )
