"""The one supervised loop: it makes teachers and it evaluates."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from ddjax import losses
from ddjax.augment import augment
from ddjax.data import preprocess
from ddjax.types import ApplyFn, Batch, InputError, LossFn, Params
from ddjax.unroll import minibatch_indices

__all__ = [
    "Recipe",
    "accuracy",
    "apply_fn_of",
    "supervised_loss",
    "train",
    "train_epochs",
]


class Recipe(NamedTuple):
    """How a network is trained; hashable, so one compilation serves it.

    Attributes:
      epochs: passes over the data.
      batch_size: images a step, or fewer where the data has fewer.
      momentum: of plain SGD; 0 for none.
      weight_decay: added to the gradient.
      decay_at_half: multiply the rate by 0.1 after half of the steps.
      augment: names of augmentation groups, () for none.
    """

    epochs: int
    batch_size: int
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay_at_half: bool = False
    augment: tuple[str, ...] = ()

    def check(self, what: str) -> Recipe:
        """Itself, or InputError where a number makes no training."""
        if self.epochs < 1 or self.batch_size < 1:
            raise InputError(
                f"{what}.epochs and {what}.batch_size must be at least 1, "
                f"not {self.epochs} and {self.batch_size}"
            )
        return self


def apply_fn_of(module: Any) -> ApplyFn:
    """A Flax module's ``apply`` as a function of bare parameters."""
    return lambda params, images: module.apply({"params": params}, images)


def supervised_loss(apply_fn: ApplyFn, ops: tuple[str, ...] = ()) -> LossFn:
    """Cross-entropy of a batch after one random augmentation.

    Args:
      apply_fn: (params, images[b h w c]) -> (logits[b k], out).
      ops: augmentation groups.

    Returns:
      ``loss_fn(params, Batch, key) -> scalar``.
    """

    def loss_fn(params, batch, key):
        images = augment(key, batch.images, ops)
        logits, _ = apply_fn(params, images)
        return losses.cross_entropy(logits, batch.labels)

    return loss_fn


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Steps that visit every example at least once."""
    return -(-num_examples // batch_size)


def sgd(recipe: Recipe, learning_rate, num_steps: int):
    """The recipe's optimiser, as PyTorch orders it: decay, momentum, rate."""

    def rate(count):
        decayed = recipe.decay_at_half & (count >= num_steps // 2)
        return learning_rate * jnp.where(decayed, 0.1, 1.0)

    parts = []
    if recipe.weight_decay:
        parts.append(optax.add_decayed_weights(recipe.weight_decay))
    if recipe.momentum:
        parts.append(optax.trace(recipe.momentum))
    return optax.chain(*parts, optax.scale_by_learning_rate(rate))


def train_epochs(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: Any,
    sample_fn: Callable[[jax.Array], Batch],
    keys: Key[Array, " epochs"],
    *,
    batch_size: int,
    to_input: Callable[[jax.Array], jax.Array] = lambda images: images,
) -> tuple[Params, Any, Float[Array, " epochs"]]:
    """Epochs of stochastic gradient descent, as one scan over scans.

    Args:
      loss_fn: loss of one batch.
      optimizer: an optax transformation.
      params: where to start.
      opt_state: the optimiser's state there.
      sample_fn: key -> Batch, the data of one epoch.
      keys: one per epoch; each decides the order, the sample and the draws.
      batch_size: images a step; at most what ``sample_fn`` gives.
      to_input: from stored images to network input, batch by batch.

    Returns:
      (params, opt_state, mean loss of each epoch).
    """

    def epoch(carry, key):
        sample_key, order_key, loss_key = jax.random.split(key, 3)
        data = sample_fn(sample_key)
        count = data.images.shape[0]
        size = min(batch_size, count)
        steps = steps_per_epoch(count, size)
        indices = minibatch_indices(order_key, count, size, steps)

        def step(carry, inputs):
            params, opt_state = carry
            chosen, key = inputs
            batch = Batch(to_input(data.images[chosen]), data.labels[chosen])
            loss, grads = jax.value_and_grad(loss_fn)(params, batch, key)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        carry, losses_ = jax.lax.scan(
            step, carry, (indices, jax.random.split(loss_key, steps))
        )
        return carry, losses_.mean()

    (params, opt_state), losses_ = jax.lax.scan(
        epoch, (params, opt_state), keys
    )
    return params, opt_state, losses_


@functools.partial(jax.jit, static_argnames=("module", "recipe"))
def train(
    key: Key[Array, ""],
    params: Params,
    sample_fn: Callable[[jax.Array], Batch],
    learning_rate: Float[Array, ""],
    *,
    module: Any,
    recipe: Recipe,
    preprocessing: Any = None,
) -> Params:
    """Trains one network by a recipe.

    Args:
      key: decides orders, samples and augmentation.
      params: where to start.
      sample_fn: a ``jax.tree_util.Partial``: key -> Batch of one epoch.
      learning_rate: of the first half.
      module: a network from ``models.build``.
      recipe: the rest.
      preprocessing: where given, takes stored images to network input.

    Returns:
      The trained params.
    """
    shapes = jax.eval_shape(sample_fn, key)
    count = shapes.images.shape[0]
    steps = recipe.epochs * steps_per_epoch(
        count, min(recipe.batch_size, count)
    )
    optimizer = sgd(recipe, learning_rate, steps)
    params, _, _ = train_epochs(
        supervised_loss(apply_fn_of(module), recipe.augment),
        optimizer,
        params,
        optimizer.init(params),
        sample_fn,
        jax.random.split(key, recipe.epochs),
        batch_size=recipe.batch_size,
        to_input=to_input(preprocessing),
    )
    return params


def to_input(preprocessing: Any) -> Callable[[Array], Array]:
    """``preprocess.apply`` of one preprocessing; None changes nothing."""
    if preprocessing is None:
        return lambda images: images
    return lambda images: preprocess.apply(preprocessing, images)


@functools.partial(jax.jit, static_argnames=("module", "batch_size"))
def predict(
    params: Params,
    images: Array,
    *,
    module: Any,
    preprocessing: Any = None,
    batch_size: int = 256,
) -> Int[Array, " n"]:
    """The most likely class of each image.

    Args:
      params: of ``module``.
      images: [n h w c], stored or network input.
      module: a network from ``models.build``.
      preprocessing: where given, takes stored images to network input.
      batch_size: images at a time; the last batch is padded, its padding
        dropped, so every image counts exactly once.

    Returns:
      [n] class indices.
    """
    count = images.shape[0]
    batches = -(-count // batch_size)
    padding = [(0, batches * batch_size - count)] + [(0, 0)] * 3
    padded = jnp.pad(images, padding).reshape(
        batches, batch_size, *images.shape[1:]
    )
    prepare = to_input(preprocessing)

    def classify(batch):
        logits, _ = module.apply({"params": params}, prepare(batch))
        return logits.argmax(-1)

    return jax.lax.map(classify, padded).reshape(-1)[:count]


def accuracy(params, images, labels, **kwargs) -> Float[Array, ""]:
    """Share of images whose label [n] ``predict`` meets, exactly counted."""
    return jnp.mean(predict(params, images, **kwargs) == labels)
