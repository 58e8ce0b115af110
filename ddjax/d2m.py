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

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from ddjax import losses
from ddjax.augment import augment
from ddjax.data import preprocess
from ddjax.gan import adam, moving_average
from ddjax.gan import noise as standard_noise
from ddjax.types import ApplyFn, InputError, Params

__all__ = [
    "D2mState",
    "Group",
    "Settings",
    "distill_loss",
    "generate",
    "init_state",
    "update",
]


class Settings(NamedTuple):
    """What shapes an update; hashable, fixed during a run.

    Attributes:
      rate: of Adam, betas (0, 0.999).
      average: decay of the generator's average; smaller in the first steps,
        (1 + step) / (10 + step).
      augment: augmentation groups, () for none.
      layers: names of the features to match; () for all.
      power: p of channel attention.
      temperature: T of prediction matching.
      embedding: weight of embedding matching; 0 leaves it out.
      balance: weight of prediction matching; 0 leaves it out.
    """

    rate: float = 2e-5
    average: float = 0.999
    augment: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    power: float = 4
    temperature: float = 4.0
    embedding: float = 1.0
    balance: float = 10.0

    def check(self, layers: Iterable[str]) -> Settings:
        """Itself, or InputError saying which value is impossible.

        Args:
          layers: the names of the network's features.
        """
        layers = sorted(layers)
        for name in self.layers:
            if name not in layers:
                raise InputError(
                    f"the network has no layer {name!r} to match "
                    f"(d2m.layers): choose from {', '.join(layers)}"
                )
        for name in ("rate", "temperature"):
            if not getattr(self, name) > 0:
                raise InputError(
                    f"d2m.{name} must be positive, not {getattr(self, name)}"
                )
        if not self.power >= 1:
            raise InputError(f"d2m.power must be at least 1, not {self.power}")
        if not 0 <= self.average < 1:
            raise InputError(
                f"d2m.average must lie in 0..1 and below 1, not {self.average}"
            )
        if not (self.embedding >= 0 and self.balance >= 0):
            raise InputError(
                "d2m.embedding and d2m.balance must not be negative, not "
                f"{self.embedding} and {self.balance}"
            )
        if self.embedding == self.balance == 0:
            raise InputError(
                "d2m.embedding and d2m.balance are both 0: nothing is matched"
            )
        return self


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
    key: Key[Array, ""], gen_params: Params, settings: Settings
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
    count = labels.shape[0]
    noise = standard_noise(key, count, size)
    if at_once is None or count <= at_once:
        return gen_apply(gen_params, noise, labels)
    parts = -(-count // at_once)
    extra = (0, parts * at_once - count)
    images = jax.lax.map(
        lambda part: gen_apply(gen_params, *part),
        (
            jnp.pad(noise, (extra, (0, 0))).reshape(parts, at_once, size),
            jnp.pad(labels, extra).reshape(parts, at_once),
        ),
    )
    return images.reshape(-1, *images.shape[2:])[:count]


def distill_loss(
    gen_params: Params,
    group: Group,
    key: Key[Array, ""],
    *,
    gen_apply: Callable[..., Any],
    apply_fn: ApplyFn,
    preprocessing: Any,
    settings: Settings,
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

    Returns:
      (loss, metrics: its unweighted terms).
    """
    noise_key, augment_key = jax.random.split(key)
    fake = generate(gen_apply, gen_params, noise_key, group.labels)

    def seen(pixels):
        inputs = preprocess.apply(preprocessing, pixels)
        return apply_fn(
            group.network, augment(augment_key, inputs, settings.augment)
        )

    real_logits, real_out = seen(group.images)
    fake_logits, fake_out = seen(fake)
    labels = jax.nn.one_hot(group.labels, real_logits.shape[-1])
    last = max(real_out)
    names = settings.layers or tuple(real_out)
    terms = {
        "embedding": losses.embedding_matching_loss(
            {name: real_out[name] for name in names},
            {name: fake_out[name] for name in names},
            labels,
            power=settings.power,
            last=last,
        ),
        "prediction": losses.prediction_matching_loss(
            real_logits, fake_logits, temperature=settings.temperature
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


def update(
    state: D2mState,
    groups: Group,
    *,
    gen_apply: Callable[..., Any],
    apply_fn: ApplyFn,
    preprocessing: Any,
    settings: Settings,
    axis_name: str | None = None,
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

    Returns:
      (state after the step, metrics: scalars, the same on every device).
    """
    count = groups.labels.shape[0]
    step_key = jax.random.fold_in(state.key, state.step)
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count

    def add(total, inputs):
        group, index = inputs
        (loss, terms), grads = jax.value_and_grad(distill_loss, has_aux=True)(
            state.params,
            group,
            jax.random.fold_in(step_key, index),
            gen_apply=gen_apply,
            apply_fn=apply_fn,
            preprocessing=preprocessing,
            settings=settings,
        )
        found = (grads, {"loss": loss, **terms})
        return jax.tree.map(jnp.add, total, found), None

    zero = jnp.zeros((), jnp.float32)
    zeros = (
        jax.tree.map(jnp.zeros_like, state.params),
        dict.fromkeys(("loss", "embedding", "prediction"), zero),
    )
    total, _ = jax.lax.scan(add, zeros, (groups, first + jnp.arange(count)))
    grads, metrics = jax.tree.map(lambda leaf: leaf / count, total)
    if axis_name is not None:
        grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
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
