"""D2M: a data set distilled into a conditional generator.

``update`` draws images from the generator, of the classes of a batch of real
ones, shows both to a classification network under one augmentation, and moves
the generator down the gradient of how much the network's features and
predictions differ. The distilled generator then makes training images in any
number, for any network.

Source: Sajedi et al., "Data-to-Model Distillation: Data-Efficient Learning
Framework", ECCV 2024, arXiv 2411.12841. The paper gives no code; what is our
choice is listed in BUILD_NOTES.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from ddjax import losses, parallel
from ddjax.augment import augment, parse
from ddjax.data import preprocess
from ddjax.gan import adam, moving_average
from ddjax.gan import noise as standard_noise
from ddjax.settings import D2m
from ddjax.types import ApplyFn, InputError, Params

__all__ = [
    "D2mState",
    "Group",
    "Seen",
    "decode",
    "distill_loss",
    "generate",
    "init_state",
    "matching_loss",
    "update",
]


class Group(NamedTuple):
    """What one loss is taken of.

    Attributes:
      network: params of the network that compares.
      images: [b h w c] real pixels, uint8 or floats in 0..1.
      labels: [b] their classes, and those of the images made.
    """

    network: Params
    images: Any
    labels: Any


class Seen(NamedTuple):
    """What a network makes of a batch of images.

    Attributes:
      logits: [b k].
      features: {layer: [b h w c]}.
    """

    logits: Any
    features: dict[str, Any]


Match = Callable[
    [Seen, Seen, Any, D2m], tuple[Float[Array, ""], dict[str, Array]]
]
"""(of real images, of generated ones, the classes [b] of both, settings) to
(loss, {name: term}); differentiable in the second."""


@flax.struct.dataclass
class D2mState:
    """Everything that a run carries from one update to the next.

    Attributes:
      step: int32 scalar, updates so far.
      key: one typed key; ``fold_in(key, step)`` feeds each update.
      params: of the generator.
      average: of ``params`` over the updates; what is kept in the end.
      opt_state: of Adam.
    """

    step: Any
    key: Any
    params: Any
    average: Any
    opt_state: Any


def init_state(
    key: Key[Array, ""], gen_params: Params, settings: D2m
) -> D2mState:
    """The state before the first update.

    Args:
      key: one key; the whole run's randomness.
      gen_params: of the pre-trained generator.
      settings: of the run.

    Returns:
      A D2mState of float32 arrays.
    """
    params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float32), gen_params
    )
    return D2mState(
        step=jnp.zeros((), jnp.int32),
        key=key,
        params=params,
        average=params,
        opt_state=adam(settings.rate).init(params),
    )


def generate(
    gen_apply: Callable[..., Any],
    gen_params: Params,
    key: Key[Array, ""],
    labels: Any,
    *,
    noise_size: int | None = None,
    at_once: int | None = None,
) -> Float[Array, "n h w c"]:
    """New images of the classes that are asked for.

    Pure; works under jit with ``gen_apply`` and the keywords static.

    Args:
      gen_apply: (params, noise[n d], labels[n]) -> images[n h w c], such as
        ``artifact.load_generator(path).apply``.
      gen_params: of it.
      key: decides the noise, which is standard normal.
      labels: [n] classes, integers (not one-hot).
      noise_size: d; ``gen_apply.noise_size`` where it has one.
      at_once: images in memory with all their features at a time; None: all.

    Returns:
      [n h w c] pixels in 0..1.

    Raises:
      InputError: the labels are no integers [n], or the length of the noise
        is not known.
    """
    size = noise_size or getattr(gen_apply, "noise_size", None)
    if size is None:
        raise InputError(
            "gen_apply does not tell the length of its noise: give noise_size"
        )
    labels = jnp.asarray(labels)
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(
            f"labels must be integers [n], the classes of the images, not "
            f"{labels.dtype} of shape {labels.shape}"
        )
    noise = standard_noise(key, labels.shape[0], size)
    return decode(gen_apply, gen_params, noise, labels, at_once=at_once)


def decode(
    gen_apply: Callable[..., Any],
    gen_params: Params,
    noise: Float[Array, "n d"],
    labels: Any,
    *,
    at_once: int | None = None,
) -> Float[Array, "n h w c"]:
    """The images of given noise; differentiable in noise and params.

    Args:
      gen_apply: see ``generate``.
      gen_params: of it.
      noise: what images are made of.
      labels: [n] their classes, integers.
      at_once: images in memory with all their features at a time, also while
        a gradient is taken; None: all.

    Returns:
      [n h w c] pixels in 0..1.
    """
    labels = jnp.asarray(labels)
    count = labels.shape[0]
    if at_once is None or count <= at_once:
        return gen_apply(gen_params, noise, labels)
    parts = -(-count // at_once)
    extra = (0, parts * at_once - count)
    images = jax.lax.map(
        jax.checkpoint(lambda part: gen_apply(gen_params, *part)),
        (
            jnp.pad(noise, (extra, (0, 0))).reshape(parts, at_once, -1),
            jnp.pad(labels, extra).reshape(parts, at_once),
        ),
    )
    return images.reshape(-1, *images.shape[2:])[:count]


def matching_loss(
    real: Seen, fake: Seen, labels: Any, settings: D2m
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """D2M's own loss: embedding and prediction matching, weighted.

    With ``settings.pairing`` "nearest" the predictions of each real image are
    matched by those of the generated one that is nearest to it in its class;
    published, by one of the class by chance.

    Args:
      real: logits [b k] and features {layer: [b h w c]} of real images.
      fake: the same of generated ones.
      labels: [b] classes of both, integers.
      settings: weights, layers, power and temperature.

    Returns:
      (loss, {"embedding", "prediction"}: its unweighted terms).
    """
    names = settings.layer_names or tuple(real.features)
    fake_logits = fake.logits
    if settings.pairing == "nearest":
        fake_logits = fake_logits[
            losses.nearest_of_class(real.logits, fake_logits, labels)
        ]
    terms = {
        "embedding": losses.embedding_matching_loss(
            {name: real.features[name] for name in names},
            {name: fake.features[name] for name in names},
            jax.nn.one_hot(labels, real.logits.shape[-1]),
            power=settings.power,
            last=max(real.features),
        ),
        "prediction": losses.prediction_matching_loss(
            real.logits, fake_logits, temperature=settings.temperature
        ),
    }
    # A term that is left out costs no gradient.
    loss = sum(
        weight * terms[name]
        for name, weight in (
            ("embedding", settings.embedding),
            ("prediction", settings.balance),
        )
        if weight
    )
    return loss, terms


def distill_loss(
    gen_params: Params,
    group: Group,
    key: Key[Array, ""],
    *,
    gen_apply: Callable[..., Any],
    apply_fn: ApplyFn,
    preprocessing: Any,
    settings: D2m,
    match: Match = matching_loss,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """D2M's loss of one batch, differentiable in the generator.

    Args:
      gen_params: of the generator.
      group: network, real images and their classes.
      key: decides noise and augmentation.
      gen_apply: see ``generate``.
      apply_fn: (params, images[b h w c]) -> (logits[b k], out).
      preprocessing: takes pixels to network input.
      settings: of the run.
      match: compares what the network makes of real and generated images.

    Returns:
      (loss, {name: term} of ``match``).
    """
    noise_key, augment_key = jax.random.split(key)
    fake = generate(gen_apply, gen_params, noise_key, group.labels)
    ops = parse(settings.augment)

    def seen(pixels):
        inputs = preprocess.apply(preprocessing, pixels)
        return Seen(*apply_fn(group.network, augment(augment_key, inputs, ops)))

    return match(seen(group.images), seen(fake), group.labels, settings)


def update(
    state: D2mState,
    groups: Group,
    *,
    gen_apply: Callable[..., Any],
    apply_fn: ApplyFn,
    preprocessing: Any,
    settings: D2m,
    axis_name: str | None = None,
    total: int | None = None,
    match: Match = matching_loss,
    terms: tuple[str, ...] = ("embedding", "prediction"),
) -> tuple[D2mState, dict[str, Array]]:
    """One step of Adam on the mean loss of several groups.

    Group i of all devices' groups draws from
    ``fold_in(fold_in(key, step), i)``, so the result does not depend on how
    they are spread over devices, beyond the rounding of their mean.

    Args:
      state: before the step; the same on every device.
      groups: leaves lead with m, this device's groups.
      gen_apply: see ``generate``.
      apply_fn: (params, images[b h w c]) -> (logits[b k], out).
      preprocessing: takes pixels to network input.
      settings: of the run.
      axis_name: of the enclosing pmap or vmap over devices, or None.
      total: groups of all devices, where these do not divide them evenly; see
        ``parallel.mean_gradient``.
      match: see ``distill_loss``.
      terms: the names that it gives beside its loss.

    Returns:
      (state after the step, metrics: scalars, the same on every device).

    Raises:
      InputError: ``match`` gives other terms.
    """

    def loss_fn(params, group, key):
        loss, found = distill_loss(
            params,
            group,
            key,
            gen_apply=gen_apply,
            apply_fn=apply_fn,
            preprocessing=preprocessing,
            settings=settings,
            match=match,
        )
        if set(found) != set(terms):
            raise InputError(
                f"match tells the terms {sorted(found)}, and not "
                f"{sorted(terms)}: give update their names, terms=(..)"
            )
        return loss, found

    grads, metrics = parallel.mean_gradient(
        loss_fn,
        state.params,
        groups,
        jax.random.fold_in(state.key, state.step),
        metrics=terms,
        axis_name=axis_name,
        total=total,
    )
    updates, opt_state = adam(settings.rate).update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    metrics["gradient_norm"] = optax.tree.norm(grads)
    return state.replace(
        step=state.step + 1,
        params=params,
        average=moving_average(
            state.average, params, state.step, settings.average
        ),
        opt_state=opt_state,
    ), metrics
