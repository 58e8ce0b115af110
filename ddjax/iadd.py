"""IADD: distilled images, learned through whole student trainings.

``update`` is one step of the outer loop: unroll a student on the distilled
images from a teacher's snapshot, measure how far it ends from the teacher's
later snapshot, and move images, learning rate, importance weights and, where
asked, labels down (or up) the exact gradient of that distance. In latent space
the images are a generator's, and its noise is moved in their place.

Source: Li et al., "Importance-Aware Adaptive Dataset Distillation", Neural
Networks 172, 2024, arXiv 2401.15863; inner loop and outer optimiser after
MTT (Cazenavette et al., CVPR 2022); latent space after GLaD (the same authors,
"Generalizing Dataset Distillation via Deep Generative Prior", CVPR 2023).
BUILD_NOTES.md lists what is our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from ddjax import importance as importance_lib
from ddjax import losses, parallel
from ddjax.augment import parse
from ddjax.settings import Iadd
from ddjax.training import in_dtype, supervised_loss
from ddjax.types import ApplyFn, Batch, InputError, Params, Segment
from ddjax.unroll import minibatch_indices, sgd_unroll

__all__ = [
    "Distilled",
    "IaddState",
    "LatentState",
    "distill_loss",
    "distilled",
    "init_state",
    "make_optimizer",
    "scaled",
    "unroll_student",
    "update",
]


Decode = Callable[[Array, Params], Array]
"""(noise [n d], a generator's params) to network input [n h w c]."""


class Distilled(NamedTuple):
    """A distilled data set, as a student sees it.

    Attributes:
      images: [n h w c] network input.
      labels: [n k], rows sum to 1.
      learning_rate: scalar, of the student's steps.
    """

    images: Any
    labels: Any
    learning_rate: Any


@flax.struct.dataclass
class IaddState:
    """Everything that a run carries from one update to the next.

    Attributes:
      step: int32 scalar, updates so far.
      key: one typed key; ``fold_in(key, step)`` feeds each update.
      images: [n h w c] network input; in latent space the noise [n d] that a
        generator makes it of.
      labels: [n k]; logits where labels are learned.
      learning_rate: float32 scalar; its logarithm under Adam.
      scale: float32 scalar, of the steps of images and learning rate that the
        run takes, 1 until it has left its bounds and gone back; see ``scaled``.
      importance: raw weights from ``importance.init``, or None.
      opt_state: of ``make_optimizer``.
      average: of the images over updates, or None.
    """

    step: Any
    key: Any
    images: Any
    labels: Any
    learning_rate: Any
    scale: Any
    importance: Any
    opt_state: Any
    average: Any = None


# Apart, so that a state in pixels has the form of checkpoints of before.
@flax.struct.dataclass
class LatentState(IaddState):
    """The state in latent space.

    Attributes:
      generator: its params.
    """

    generator: Any = None


_SMOOTHING = 0.1  # of the one-hot labels that learned logits start from


class RunningNorm(NamedTuple):
    """State of ``clip_to_running_norm``.

    Attributes:
      norm: float32 scalar, average of the norms so far; 0 before the first.
    """

    norm: Any


def clip_to_running_norm(
    factor: float, decay: float = 0.9
) -> optax.GradientTransformation:
    """Shortens a gradient that is far longer than those before it.

    After RaT-BPTT (Feng et al., ICLR 2024), there with a factor of 2. The
    average takes the shortened norm in, so that one outlier moves it little.

    Args:
      factor: of the average, beyond which a gradient is shortened to it; 0
        leaves all as they are.
      decay: of the average.
    """
    if not factor:
        return optax.identity()

    def init(params):
        del params
        return RunningNorm(jnp.zeros((), jnp.float32))

    def update(updates, state, params=None):
        del params
        norm = optax.tree.norm(updates)
        most = jnp.where(state.norm > 0, factor * state.norm, norm)
        short = jnp.minimum(norm, most)
        scale = short / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny)
        average = decay * state.norm + (1 - decay) * short
        return (
            jax.tree.map(lambda leaf: leaf * scale, updates),
            RunningNorm(jnp.where(state.norm > 0, average, short)),
        )

    return optax.GradientTransformation(init, update)


def scaled(settings: Iadd, scale: float) -> Iadd:
    """Settings with all steps of images and learning rate times ``scale``.

    Apart from ``update``, so that a factor of 1 rounds nothing.
    """
    if scale == 1:
        return settings
    steps = (
        "image_step",
        "learning_rate_step",
        "image_rate",
        "alpha_rate",
        "generator_rate",
    )
    return dataclasses.replace(
        settings, **{step: scale * getattr(settings, step) for step in steps}
    )


def make_optimizer(settings: Iadd) -> optax.GradientTransformation:
    """One optimiser per field of the state, in one place.

    On images and learning rate SGD with momentum, as MTT, or Adam, whose steps
    do not depend on the scale of the loss: on images after outliers are
    clipped, on the learning rate in its logarithm. Adam on raw importance
    weights, which have no natural scale; SGD on label logits.
    """
    sgd = optax.sgd
    ascend = settings.importance.direction == "ascend"
    more = {}
    if settings.optimizer == "adam":

        def adam(rate):
            return optax.adam(
                optax.cosine_decay_schedule(
                    rate, settings.iterations, settings.final_rate
                )
            )

        images = optax.chain(
            clip_to_running_norm(settings.clip), adam(settings.image_rate)
        )
        learning_rate = adam(settings.alpha_rate)
        if settings.generator_rate:
            more["generator"] = adam(settings.generator_rate)
    else:
        images = sgd(settings.image_step, settings.momentum)
        learning_rate = sgd(settings.learning_rate_step, settings.momentum)
    return optax.partition(
        {
            "images": images,
            "learning_rate": learning_rate,
            "labels": sgd(settings.label_step, settings.momentum)
            if settings.label_step
            else optax.set_to_zero(),
            "importance": optax.adam(
                -settings.importance.step
                if ascend
                else settings.importance.step
            ),
            **more,
        },
        # A label for a whole field: optax broadcasts it over the leaves.
        lambda variables: {field: field for field in variables},
    )


def _variables(state: IaddState, settings: Iadd) -> dict[str, Any]:
    variables = {
        "images": state.images,
        "labels": state.labels,
        "learning_rate": state.learning_rate,
        "importance": state.importance,
    }
    if settings.generator_rate:
        variables["generator"] = state.generator
    return variables


def init_state(
    key: Key[Array, ""],
    initial: Distilled,
    params: Params,
    settings: Iadd,
    generator: Params | None = None,
) -> IaddState:
    """The state before the first update.

    Args:
      key: one key; the whole run's randomness.
      initial: real images of their class, in latent space noise [n d] in their
        place; one-hot labels, alpha_0.
      params: of the student's network; only shapes are used.
      settings: of the run.
      generator: its params, in latent space.

    Returns:
      An IaddState of float32 arrays; in latent space a LatentState.

    Raises:
      InputError: an image is not finite.
    """
    if not bool(jnp.isfinite(jnp.asarray(initial.images)).all()):
        raise InputError(
            "the initial images hold values that are not finite: look for "
            "NaN in the data set"
        )
    labels = jnp.asarray(initial.labels, jnp.float32)
    if settings.label_step:
        k = labels.shape[-1]
        smoothing = _SMOOTHING if settings.labels == "hard" else 1e-6
        labels = jnp.log(labels * (1 - smoothing) + smoothing / k)
    kind, more = IaddState, {}
    if generator is not None:
        kind = LatentState
        more["generator"] = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float32), generator
        )
    state = kind(
        step=jnp.zeros((), jnp.int32),
        key=key,
        images=jnp.asarray(initial.images, jnp.float32),
        labels=labels,
        learning_rate=jnp.asarray(
            np.log(initial.learning_rate)
            if settings.optimizer == "adam"
            else initial.learning_rate,
            jnp.float32,
        ),
        scale=jnp.ones((), jnp.float32),
        importance=importance_lib.init(settings.importance, params),
        opt_state=None,
        **more,
    )
    if settings.average:
        state = state.replace(average=state.images)
    return state.replace(
        opt_state=make_optimizer(settings).init(_variables(state, settings))
    )


def distilled(
    state: IaddState, settings: Iadd, decode: Decode | None = None
) -> Distilled:
    """The distilled data set that a state stands for.

    Args:
      state: of a run.
      settings: of the run.
      decode: in latent space, as ``update`` has it.
    """
    found = _distilled(_variables(state, settings), settings)
    images = state.images if state.average is None else state.average
    if decode is not None:
        images = decode(images, state.generator)
    return found._replace(images=images)


def _distilled(variables: dict[str, Any], settings: Iadd) -> Distilled:
    labels = variables["labels"]
    if settings.label_step:
        labels = jax.nn.softmax(labels)
    rate = variables["learning_rate"]
    if settings.optimizer == "adam":
        rate = jnp.exp(rate)
    return Distilled(variables["images"], labels, rate)


def unroll_student(
    data: Distilled,
    start: Params,
    key: Key[Array, ""],
    *,
    apply_fn: ApplyFn,
    settings: Iadd,
    observe: Callable[[Params], Any] | None = None,
) -> tuple[Params, Any]:
    """J differentiable steps of a student on distilled data.

    Args:
      data: the distilled data set.
      start: params to start from.
      key: decides batches and augmentation.
      apply_fn: (params, images[b h w c]) -> (logits[b k], out).
      settings: J, batch size, augmentation.
      observe: see ``unroll.sgd_unroll``.

    Returns:
      (student params, [t] losses); see ``unroll.sgd_unroll``.
    """
    order_key, loss_key = jax.random.split(key)
    count = data.images.shape[0]
    indices = minibatch_indices(
        order_key, count, settings.batch_of(count), settings.inner_steps
    )
    supervised = supervised_loss(
        in_dtype(apply_fn, settings.dtype), parse(settings.augment)
    )

    def loss_fn(params, chosen, key):
        # Looked up in here, so that the scan carries indices and not a copy
        # of the images for every step.
        batch = Batch(data.images[chosen], data.labels[chosen])
        return supervised(params, batch, key)

    keys = jax.random.split(loss_key, settings.inner_steps)
    return sgd_unroll(
        loss_fn, start, indices, keys, data.learning_rate, observe=observe
    )


def distill_loss(
    data: Distilled,
    raw_importance: Params | None,
    segment: Segment,
    key: Key[Array, ""],
    *,
    apply_fn: ApplyFn,
    settings: Iadd,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The IADD loss of one segment, differentiable in the first two.

    Where ``settings.match`` is "nearest" it is that of the student's step that
    is nearest to the target (after Liu et al., "Dataset Distillation by
    Automatic Training Trajectories", ECCV 2024).

    Args:
      data: the distilled data set.
      raw_importance: as in ``IaddState``.
      segment: the teacher's (start, target).
      key: decides batches and augmentation.
      apply_fn: (params, images[b h w c]) -> (logits[b k], out).
      settings: of the run.

    Returns:
      (loss, metrics: the student's first and last inner loss).
    """

    def distance(student):
        weights = importance_lib.weights(
            settings.importance, raw_importance, segment, student
        )
        return losses.iadd_loss(student, segment.start, segment.target, weights)

    nearest = settings.match == "nearest"
    student, inner = unroll_student(
        data,
        segment.start,
        key,
        apply_fn=apply_fn,
        settings=settings,
        observe=distance if nearest else None,
    )
    if nearest:
        inner, distances = inner
        loss = distances.min()
    else:
        loss = distance(student)
    return loss, {"inner_loss_first": inner[0], "inner_loss_last": inner[-1]}


def update(
    state: IaddState,
    segments: Segment,
    *,
    apply_fn: ApplyFn,
    settings: Iadd,
    project: Callable[[Array], Array] | None = None,
    decode: Decode | None = None,
    axis_name: str | None = None,
    total: int | None = None,
) -> tuple[IaddState, dict[str, Array]]:
    """One step of the outer loop, on the mean loss of several segments.

    Segment i of all devices' segments draws from
    ``fold_in(fold_in(key, step), i)``, so the result does not depend on how
    they are spread over devices, beyond the rounding of their mean.

    Args:
      state: before the step; the same on every device.
      segments: leaves lead with m, this device's segments.
      apply_fn: (params, images[b h w c]) -> (logits[b k], out).
      settings: of the run.
      project: where given, takes the images [n h w c] after the step to what
        they may be.
      decode: in latent space, takes the state's noise to images.
      axis_name: of the enclosing pmap or vmap over devices, or None.
      total: segments of all devices, where these do not divide them evenly; see
        ``parallel.mean_gradient``.

    Returns:
      (state after the step, metrics: scalars, the same on every device).
    """
    variables = _variables(state, settings)

    def decoded(variables):
        if decode is None:
            return variables
        seen = {"generator": state.generator, **variables}
        seen["images"] = decode(variables["images"], seen.pop("generator"))
        return seen

    # Apart from the segments' gradients: the generator is passed once for all
    # of them, and outside of their loop, in which its kernels' gradients would
    # be slow.
    seen, chain = jax.vjp(decoded, variables)

    def loss_of(variables, segment, key):
        return distill_loss(
            _distilled(variables, settings),
            variables["importance"],
            segment,
            key,
            apply_fn=apply_fn,
            settings=settings,
        )

    grads, metrics = parallel.mean_gradient(
        loss_of,
        seen,
        segments,
        jax.random.fold_in(state.key, state.step),
        metrics=("inner_loss_first", "inner_loss_last"),
        axis_name=axis_name,
        total=total,
    )
    metrics["image_gradient_norm"] = optax.tree.norm(grads["images"])
    (grads,) = chain(grads)
    updates, opt_state = make_optimizer(settings).update(
        grads, state.opt_state, variables
    )
    after = optax.apply_updates(variables, updates)
    if project is not None:
        after["images"] = project(after["images"])
    average = state.average
    if average is not None:
        # As fast as the plain mean at first, or few updates would leave it
        # with the images that were begun with.
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(settings.average, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * after["images"]
    metrics["learning_rate"] = _distilled(after, settings).learning_rate
    if decode is not None:
        state = state.replace(generator=after.get("generator", state.generator))
    return state.replace(
        step=state.step + 1,
        opt_state=opt_state,
        average=average,
        images=after["images"],
        labels=after["labels"],
        learning_rate=after["learning_rate"],
        importance=importance_lib.project(
            settings.importance, after["importance"]
        ),
    ), metrics
