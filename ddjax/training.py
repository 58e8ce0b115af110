"""The one supervised loop: it makes teachers and it evaluates."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from ddjax import losses, models, parallel
from ddjax.augment import augment
from ddjax.data import preprocess
from ddjax.data.classes import check_labels, one_hot
from ddjax.data.rows import Rows, read_ahead
from ddjax.types import ApplyFn, Batch, LossFn, Params
from ddjax.unroll import minibatch_indices

__all__ = [
    "Recipe",
    "Stream",
    "accuracy",
    "apply_fn_of",
    "in_groups",
    "module_loss",
    "supervised_loss",
    "targets",
    "train",
    "train_epochs",
    "train_streamed",
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
      epoch_steps: of an epoch; 0 for as many as visit every image. A shorter
        epoch sees some of the images, drawn anew each time.
      flatness: rho of sharpness-aware minimisation; 0 for plain descent.
      cosine: let the rate fall to 0 over all steps along half a cosine
        (Loshchilov & Hutter, ICLR 2017, without restarts).
    """

    epochs: int
    batch_size: int
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay_at_half: bool = False
    augment: tuple[str, ...] = ()
    epoch_steps: int = 0
    flatness: float = 0.0
    cosine: bool = False


def apply_fn_of(module: Any) -> ApplyFn:
    """A Flax module's ``apply`` as a function of bare parameters.

    Of a network with batch norm it takes the statistics of its images alone,
    as in training.
    """
    return lambda params, images: module.apply({"params": params}, images)


def in_dtype(apply_fn: ApplyFn, dtype: str) -> ApplyFn:
    """The network with its arithmetic in another type, its outputs float32.

    Args:
      apply_fn: (params, images[b h w c]) -> (logits[b k], out).
      dtype: "float32" changes nothing; "bfloat16" casts parameters and
        images to it, so that activations and their gradients are bfloat16.
    """
    if dtype == "float32":
        return apply_fn

    def apply(params, images):
        low, high = jnp.dtype(dtype), jnp.float32
        arguments = jax.tree.map(lambda a: a.astype(low), (params, images))
        return jax.tree.map(lambda a: a.astype(high), apply_fn(*arguments))

    return apply


def supervised_loss(
    apply_fn: ApplyFn, ops: tuple[str, ...] = (), *, grouped: bool = False
) -> LossFn:
    """Cross-entropy of a batch after one random augmentation.

    Args:
      apply_fn: (params, images[b h w c]) -> (logits[b k], out).
      ops: augmentation groups.
      grouped: take it ``in_groups`` whose features stay in a processor's
        cache; of a network that treats each image by itself.

    Returns:
      ``loss_fn(params, Batch, key) -> scalar``.
    """

    def plain(params, batch):
        logits, _ = apply_fn(params, batch.images)
        return losses.cross_entropy(logits, batch.labels)

    def loss_fn(params, batch, key):
        images = augment(key, batch.images, ops)
        loss = plain
        if grouped:
            loss = in_groups(plain, _at_once(apply_fn, params, images))
        return loss(params, Batch(images, batch.labels))

    return loss_fn


def module_loss(module: Any, ops: tuple[str, ...] = ()) -> LossFn:
    """``supervised_loss`` of a network, in groups on a CPU.

    Args:
      module: a network that treats each image by itself, or says by a field
        ``norm="batch"`` that it does not.
      ops: augmentation groups.

    Returns:
      ``loss_fn(params, Batch, key) -> scalar``.
    """
    # An accelerator has no such cache, and wants large products.
    grouped = jax.default_backend() == "cpu"
    return supervised_loss(
        apply_fn_of(module),
        ops,
        grouped=grouped and not models.has_batch_norm(module),
    )


# Of a group's largest named features. Those before pooling are four times as
# many, and of a few layers there are several.
_GROUP_BYTES = 1 << 20


def _at_once(apply_fn, params, images) -> int:
    """Images whose features stay in the cache of a network's cores, or are
    small beside what every group has to read and write again: the parameters
    and their gradient. As good as all of a network that names no features."""
    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
    _, out = jax.eval_shape(apply_fn, params, one)
    largest = max((_bytes(leaf) for leaf in jax.tree.leaves(out)), default=1)
    weights = sum(map(_bytes, jax.tree.leaves(params)))
    most = max(_GROUP_BYTES * parallel.cores_of_a_network(), weights // 4)
    return max(1, most // max(1, largest))


def _bytes(leaf) -> int:
    return leaf.size * leaf.dtype.itemsize


def in_groups(
    loss_of: Callable[[Params, Batch], Array], at_once: int
) -> Callable[[Params, Batch], Array]:
    r"""The same loss, its value and gradient taken group by group of images.

    .. math:: \ell(\theta, batch) =
        \sum_g \frac{b_g}{b}\, \ell(\theta, batch_g)

    A group goes forward and back before the next one does, so that its
    features stay in a processor's cache and only they are held (the derivative
    of a gradient holds those of all groups). The sum is rounded in another
    order than that of the whole batch.

    Args:
      loss_of: (params, Batch) -> scalar: a mean of what each image has by
        itself, 0 of one whose labels are zeros. Nothing that it closes over
        can be differentiated.
      at_once: images of a group, 1 or more.

    Returns:
      The same function of the same arguments, floats [b ...]; ``loss_of``
      itself of a batch that is one group. It has no forward-mode derivative.
    """

    def forward(params, batch):
        count = len(batch.labels)
        number = -(-count // at_once)
        size = -(-count // number)

        def share(params, group):
            return loss_of(params, group) * (size / count)

        def add(total, group):
            # The images' gradient costs nothing where nobody asks for it: XLA
            # leaves out what a loop makes for no one.
            value, (slope, slopes) = jax.value_and_grad(share, (0, 1))(
                params, group
            )
            return jax.tree.map(jnp.add, total, (value, slope)), slopes

        # Images of zeros with labels of zeros count for nothing.
        groups = jax.tree.map(lambda leaf: _padded(leaf, number, size), batch)
        first = jax.tree.map(lambda leaf: leaf[0], groups)
        value = jax.eval_shape(share, params, first)
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (value, params)
        )
        (value, slope), slopes = jax.lax.scan(add, zeros, groups)
        slopes = jax.tree.map(
            lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], slopes
        )
        return value, (slope, slopes)

    def backward(slopes, cotangent):
        return jax.tree.map(
            lambda slope: (slope * cotangent).astype(slope.dtype), slopes
        )

    loss = jax.custom_vjp(lambda params, batch: forward(params, batch)[0])
    loss.defvjp(forward, backward)

    def of_batch(params, batch):
        one = len(batch.labels) <= at_once
        return (loss_of if one else loss)(params, batch)

    return of_batch


def _padded(rows, number, size):
    """[n ...] as [number size ...], with zeros at the end."""
    padding = [(0, number * size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
    return jnp.pad(rows, padding).reshape(number, size, *rows.shape[1:])


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Steps that visit every example at least once."""
    return -(-num_examples // batch_size)


def total_steps(recipe: Recipe, num_examples: int) -> int:
    """Steps of a whole training."""
    steps = recipe.epoch_steps or steps_per_epoch(
        num_examples, min(recipe.batch_size, num_examples)
    )
    return recipe.epochs * steps


def sgd(recipe: Recipe, learning_rate, num_steps: int):
    """The recipe's optimiser, as PyTorch orders it: decay, momentum, rate.

    Raises:
      ValueError: the recipe asks for both ways to lower the rate.
    """
    if recipe.cosine and recipe.decay_at_half:
        raise ValueError("decay_at_half and cosine: a recipe has one of them")

    def rate(count):
        if recipe.cosine:
            return learning_rate * (1 + jnp.cos(jnp.pi * count / num_steps)) / 2
        decayed = recipe.decay_at_half & (count >= num_steps // 2)
        return learning_rate * jnp.where(decayed, 0.1, 1.0)

    parts = []
    if recipe.weight_decay:
        parts.append(optax.add_decayed_weights(recipe.weight_decay))
    if recipe.momentum:
        parts.append(optax.trace(recipe.momentum))
    return optax.chain(*parts, optax.scale_by_learning_rate(rate))


def gradient(
    loss_fn: LossFn, flatness: float = 0.0
) -> Callable[..., tuple[Array, Params]]:
    """``value_and_grad``, where asked for that of a flat minimum.

    With a flatness the gradient is taken where the loss is worst, to first
    order, within that distance of the parameters: descent then leads to minima
    whose neighbourhood is low too, at twice the cost.

    Args:
      loss_fn: loss of one batch.
      flatness: rho, the distance; 0 for the plain gradient.

    Returns:
      ``f(params, batch, key) -> (loss at params, gradient)``.

    References:
      Foret et al., "Sharpness-Aware Minimization", ICLR 2021; for teachers of
      trajectory matching, Du et al. (FTD), CVPR 2023.
    """
    plain = jax.value_and_grad(loss_fn)
    if not flatness:
        return plain

    def worst(params, batch, key):
        loss, grads = plain(params, batch, key)
        scale = flatness / jnp.maximum(optax.tree.norm(grads), 1e-12)
        there = jax.tree.map(lambda p, g: p + scale * g, params, grads)
        return loss, plain(there, batch, key)[1]

    return worst


def running_statistics(
    module: Any, ops: tuple[str, ...], image_shape: Sequence[int]
) -> optax.GradientTransformationExtraArgs:
    """Leaves gradients as they are, and follows a network's statistics.

    The last part of an optimiser's chain, whose state is the network's
    collection "batch_stats": averages that a step moves towards those of its
    own augmented batch.

    Args:
      module: a network with batch norm.
      ops: augmentation groups of the loss.
      image_shape: (h, w, c).
    """

    def init(params):
        del params
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        # The key draws parameters, which nobody sees.
        return module.lazy_init(jax.random.key(0), images)["batch_stats"]

    def update(grads, state, params, *, batch, key):
        # The loss has done the same sums: XLA computes them once.
        images = augment(key, batch.images, ops)
        _, moved = module.apply(
            {"params": params, "batch_stats": state},
            images,
            mutable=["batch_stats"],
        )
        return grads, moved["batch_stats"]

    return optax.GradientTransformationExtraArgs(init, update)


def optimizer_of(
    module: Any,
    recipe: Recipe,
    learning_rate: Any,
    num_steps: int,
    image_shape: Sequence[int],
) -> optax.GradientTransformationExtraArgs:
    """``sgd``, which follows a network's running statistics if it has any."""
    plain = sgd(recipe, learning_rate, num_steps)
    if not models.has_batch_norm(module):
        return plain
    return optax.chain(
        plain, running_statistics(module, recipe.augment, image_shape)
    )


def _trained(module, params, opt_state):
    """What ``predict`` takes."""
    if not models.has_batch_norm(module):
        return params
    return {"params": params, "batch_stats": opt_state[-1]}


class Plan(NamedTuple):
    """What one epoch draws, whether its data is in memory or streamed.

    Attributes:
      sample_key: for the epoch's data.
      indices: [t b], the images of each step.
      keys: [t], one per step.
    """

    sample_key: Key[Array, ""]
    indices: Int[Array, "t b"]
    keys: Key[Array, " t"]


@functools.partial(
    jax.jit, static_argnames=("count", "batch_size", "epoch_steps")
)
def plan_epoch(
    key: Key[Array, ""], count: int, batch_size: int, epoch_steps: int = 0
) -> Plan:
    """The draws of one epoch over ``count`` images; see ``Recipe``."""
    sample_key, order_key, loss_key = jax.random.split(key, 3)
    size = min(batch_size, count)
    steps = epoch_steps or steps_per_epoch(count, size)
    return Plan(
        sample_key,
        minibatch_indices(order_key, count, size, steps),
        jax.random.split(loss_key, steps),
    )


def step_of(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    to_input: Callable[[jax.Array], jax.Array],
    flatness: float = 0.0,
) -> Callable[..., Any]:
    """One step of training.

    Returns:
      ``step((params, opt_state), batch, key) -> ((params, opt_state), loss)``
      on stored images, the same wherever they come from.
    """

    value_and_grad = gradient(loss_fn, flatness)
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry, batch, key):
        params, opt_state = carry
        batch = Batch(to_input(batch.images), batch.labels)
        loss, grads = value_and_grad(params, batch, key)
        updates, opt_state = optimizer.update(
            grads, opt_state, params, batch=batch, key=key
        )
        return (optax.apply_updates(params, updates), opt_state), loss

    return step


def train_epochs(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: Any,
    sample_fn: Callable[[jax.Array], Batch],
    keys: Key[Array, " epochs"],
    *,
    batch_size: int,
    epoch_steps: int = 0,
    to_input: Callable[[jax.Array], jax.Array] = lambda images: images,
    flatness: float = 0.0,
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
      epoch_steps: of an epoch; 0 for as many as visit every image.
      to_input: from stored images to network input, batch by batch.
      flatness: see ``gradient``.

    Returns:
      (params, opt_state, mean loss of each epoch).
    """
    count = jax.eval_shape(sample_fn, keys[0]).images.shape[0]
    take_step = step_of(loss_fn, optimizer, to_input, flatness)

    def epoch(carry, key):
        plan = plan_epoch(key, count, batch_size, epoch_steps)
        data = sample_fn(plan.sample_key)

        def step(carry, inputs):
            chosen, key = inputs
            batch = Batch(data.images[chosen], data.labels[chosen])
            return take_step(carry, batch, key)

        carry, losses_ = jax.lax.scan(step, carry, (plan.indices, plan.keys))
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
      learning_rate: of the first step.
      module: a network from ``models.build``.
      recipe: the rest.
      preprocessing: where given, takes stored images to network input.

    Returns:
      The trained params, as ``predict`` takes them.
    """
    count, *shape = jax.eval_shape(sample_fn, key).images.shape
    optimizer = optimizer_of(
        module, recipe, learning_rate, total_steps(recipe, count), shape
    )
    params, opt_state, _ = train_epochs(
        module_loss(module, recipe.augment),
        optimizer,
        params,
        optimizer.init(params),
        sample_fn,
        jax.random.split(key, recipe.epochs),
        batch_size=recipe.batch_size,
        epoch_steps=recipe.epoch_steps,
        to_input=to_input(preprocessing),
        flatness=recipe.flatness,
    )
    return _trained(module, params, opt_state)


class Stream(NamedTuple):
    """Labelled images that are brought to the device a few steps at a time.

    Attributes:
      images: [n h w c] uint8, ``Rows`` or an array.
      labels: [n] integers in 0..k-1; one-hot only batch by batch.
      num_classes: k.
      weights: [k] that multiply the one-hot labels, or None.
    """

    images: Rows | np.ndarray
    labels: np.ndarray
    num_classes: int
    weights: np.ndarray | None = None


def targets(data: Batch | Stream, chosen: np.ndarray) -> np.ndarray:
    """What the loss compares the logits of some images with.

    Args:
      data: labelled images.
      chosen: [...] indices of some.

    Returns:
      [... k] float32: labels, weighted where a stream's are.
    """
    labels = np.asarray(data.labels)[chosen]
    if isinstance(data, Batch):
        return labels
    labels = one_hot(labels, data.num_classes)
    return labels if data.weights is None else labels * data.weights


def train_streamed(
    key: Key[Array, ""],
    params: Params,
    stream: Stream,
    learning_rate: Float[Array, ""],
    *,
    module: Any,
    recipe: Recipe,
    preprocessing: Any = None,
) -> Params:
    """``train`` on data that need not fit in memory, with the same result.

    The same order, draws and steps as ``train`` with the same images and
    one-hot labels in memory; not to be called under ``jax.jit``.

    Args:
      key: decides orders and augmentation.
      params: where to start.
      stream: the data of every epoch.
      learning_rate: of the first step.
      module: a network from ``models.build``.
      recipe: the rest.
      preprocessing: where given, takes stored images to network input.

    Returns:
      The trained params, as ``predict`` takes them.

    Raises:
      InputError: labels and images do not belong together.
    """
    count, *shape = stream.images.shape
    num_steps = total_steps(recipe, count)
    optimizer = optimizer_of(module, recipe, learning_rate, num_steps, shape)
    params, opt_state = stream_epochs(
        (params, optimizer.init(params)),
        jax.random.split(key, recipe.epochs),
        stream,
        learning_rate,
        module=module,
        recipe=recipe,
        num_steps=num_steps,
        preprocessing=preprocessing,
    )
    return _trained(module, params, opt_state)


def stream_epochs(
    carry: tuple[Params, Any],
    keys: Key[Array, "epochs ..."],
    stream: Stream,
    learning_rate: Float[Array, ""],
    *,
    module: Any,
    recipe: Recipe,
    num_steps: int,
    preprocessing: Any = None,
) -> tuple[Params, Any]:
    """Epochs over a stream, of one network or of several side by side.

    The host gathers the images of a chunk of steps while the device works on
    the chunk before it; a few chunks are held at any time.

    Args:
      carry: (params, opt_state); leaves lead with m where the keys do.
      keys: [e], or [e m] for m networks, each with an order of its own.
      stream: the data of every epoch.
      learning_rate: of the first step.
      module: a network from ``models.build``.
      recipe: all but its number of epochs.
      num_steps: of the whole training, over which the rate falls.
      preprocessing: where given, takes stored images to network input.

    Returns:
      (params, opt_state).

    Raises:
      InputError: labels and images do not belong together.
    """
    carry = jax.tree.map(jnp.asarray, carry)
    for chunk in stream_chunks(
        keys, stream, recipe.batch_size, recipe.epoch_steps
    ):
        following = _advance(
            carry,
            *chunk,
            learning_rate,
            preprocessing,
            stream.weights,
            module=module,
            recipe=recipe,
            num_classes=stream.num_classes,
            num_steps=num_steps,
            side_by_side=keys.ndim == 2,
        )
        # Wait for the chunk before, or the host would run ahead and fill the
        # device with chunks.
        jax.block_until_ready(carry)
        carry = following
    return carry


# Bytes of images that go to the device at once: enough for a read that keeps
# a disk busy, few enough to be held several times over.
_CHUNK = 1 << 26


def stream_chunks(
    keys: Key[Array, "epochs ..."],
    stream: Stream,
    batch_size: int,
    epoch_steps: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray, Key[Array, "... t"]]]:
    """What the steps of epochs need, a few steps at a time, read ahead.

    Args:
      keys: [e], or [e m] for m networks.
      stream: the data of every epoch.
      batch_size: images a step, or fewer where the data has fewer.
      epoch_steps: of an epoch; 0 for as many as visit every image.

    Yields:
      (images [t b h w c] uint8, classes [t b] int32, keys [t]), each with a
      leading m where the keys have it.

    Raises:
      InputError: labels and images do not belong together.
    """
    labels = check_labels(
        "a stream's labels",
        stream.labels,
        len(stream.images),
        stream.num_classes,
    ).astype(np.int32)

    def read(part):
        chosen, _ = part
        return stream.images[chosen], labels[chosen]

    parts = _parts(keys, stream, batch_size, epoch_steps)
    for (_, step_keys), (images, classes) in read_ahead(read, parts):
        yield images, classes, step_keys


def _parts(keys, stream, batch_size, epoch_steps):
    """Chunks of steps, epoch by epoch.

    Yields:
      (indices [... t b], keys [... t]), t steps of each network.
    """
    count, *shape = stream.images.shape
    for epoch_keys in keys:
        plans = [
            plan_epoch(key, count, batch_size, epoch_steps)
            for key in epoch_keys.reshape(-1)
        ]
        indices = np.stack([np.asarray(plan.indices) for plan in plans])
        step_keys = jnp.stack([plan.keys for plan in plans])
        networks, steps, size = indices.shape
        if not epoch_keys.ndim:
            indices, step_keys = indices[0], step_keys[0]
        most = max(1, _CHUNK // (networks * size * math.prod(shape)))
        # As even as can be: every chunk but the last has one length, for
        # which the steps are compiled once.
        length = steps_per_epoch(steps, steps_per_epoch(steps, most))
        for begin in range(0, steps, length):
            end = begin + length
            yield indices[..., begin:end, :], step_keys[..., begin:end]


@functools.partial(
    jax.jit,
    static_argnames=(
        "module",
        "recipe",
        "num_classes",
        "num_steps",
        "side_by_side",
    ),
)
def _advance(
    carry,
    images,
    classes,
    keys,
    learning_rate,
    preprocessing,
    weights,
    *,
    module,
    recipe,
    num_classes,
    num_steps,
    side_by_side,
):
    """The steps of one chunk."""
    take_step = step_of(
        module_loss(module, recipe.augment),
        optimizer_of(
            module, recipe, learning_rate, num_steps, images.shape[-3:]
        ),
        to_input(preprocessing),
        recipe.flatness,
    )

    def step(carry, inputs):
        images, classes, key = inputs
        labels = jax.nn.one_hot(classes, num_classes, dtype=jnp.float32)
        if weights is not None:
            labels *= weights
        return take_step(carry, Batch(images, labels), key)

    def advance(carry, *inputs):
        return jax.lax.scan(step, carry, inputs)[0]

    inputs = carry, images, classes, keys
    if side_by_side:
        return parallel.map_networks(advance, *inputs)
    return advance(*inputs)


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
    batch_size: int | None = None,
) -> Int[Array, " n"]:
    """The most likely class of each image.

    Args:
      params: of ``module``; of one with batch norm {"params", "batch_stats"},
        which ``train`` returns.
      images: [n h w c], stored or network input.
      module: a network from ``models.build``.
      preprocessing: where given, takes stored images to network input.
      batch_size: images at a time, by default 256, on a CPU 32, whose
        features stay in its cache; the last batch is padded, its padding
        dropped, so every image counts exactly once.

    Returns:
      [n] class indices.
    """
    count = images.shape[0]
    if batch_size is None:
        batch_size = 32 if jax.default_backend() == "cpu" else 256
    batches = -(-count // batch_size)
    padded = _padded(images, batches, batch_size)
    prepare = to_input(preprocessing)
    whole = models.has_batch_norm(module)
    variables = params if whole else {"params": params}

    def classify(batch):
        logits, _ = module.apply(variables, prepare(batch))
        return logits.argmax(-1)

    return jax.lax.map(classify, padded).reshape(-1)[:count]


def accuracy(params, images, labels, **kwargs) -> Float[Array, ""]:
    """Share of images whose label [n] ``predict`` meets, exactly counted."""
    return jnp.mean(predict(params, images, **kwargs) == labels)
