"""How well distilled data trains networks that have not seen it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.tree_util import Partial
from jaxtyping import Array, Key

from ddjax import models, parallel, training
from ddjax.data.classes import check_labels
from ddjax.data.rows import Rows, read_ahead
from ddjax.types import Batch, InputError

__all__ = [
    "Difference",
    "EvalResult",
    "balanced",
    "contrast",
    "count_right",
    "difference",
    "evaluate",
    "joined",
    "robust_score",
    "standard_error",
    "stored",
    "summarise",
]


class EvalResult(NamedTuple):
    """Test accuracies of independently initialised networks.

    Attributes:
      accuracy: [s], in 0..1.
      mean: of them.
      std: of them, with s - 1 in the denominator; 0 where s is 1.
      ci95: half width of the 95% interval of the mean, Student's t; 0 where
        s is 1.
      recall: [s k], the share of each class's test images that each network
        gets right, NaN where a class has none; None where it was not counted.
    """

    accuracy: np.ndarray
    mean: float
    std: float
    ci95: float
    recall: np.ndarray | None = None


def summarise(accuracy: Any, recall: Any = None) -> EvalResult:
    """Mean, spread and interval of [s] accuracies.

    Args:
      accuracy: [s].
      recall: [s k], passed on.
    """
    accuracy = np.asarray(accuracy, np.float64)
    mean, count = float(accuracy.mean()), len(accuracy)
    if count < 2:
        return EvalResult(accuracy, mean, 0.0, 0.0, recall)
    std = float(accuracy.std(ddof=1))
    t = float(scipy.special.stdtrit(count - 1, 0.975))
    return EvalResult(accuracy, mean, std, t * std / count**0.5, recall)


def balanced(result: EvalResult) -> EvalResult:
    """The same with every class given the same weight.

    Args:
      result: of ``evaluate``.

    Returns:
      An EvalResult whose accuracies are each network's mean recall over the
      classes that have test images.

    Raises:
      InputError: recalls were not counted.
    """
    if result.recall is None:
        raise InputError(
            "this result holds no recall of each class: balance what "
            "evaluate.evaluate returned"
        )
    return summarise(np.nanmean(result.recall, axis=1), result.recall)


def standard_error(
    result: EvalResult, numbers: Any, *, balance: bool = False
) -> float:
    """How far a mean accuracy is from that on all images there could be.

    Two things are chance: which images of each class are tested, drawn from
    the class as a source has it, and the networks. The variance is

        sum_k w_k^2 r_k (1 - r_k) / n_k + std^2 / s,

    with mean recalls r_k and weights w_k, n_k / n or, balanced, one over the
    number of classes.

    Args:
      result: of ``evaluate``, with recalls.
      numbers: n_k [k], test images of each class.
      balance: of the balanced accuracy.

    Returns:
      In the units of the accuracy, 0..1.
    """
    numbers = np.asarray(numbers, np.float64)
    there = numbers > 0
    numbers, recall = numbers[there], result.recall.mean(0)[there]
    if balance:
        result = balanced(result)
        weights = np.full(len(numbers), 1 / len(numbers))
    else:
        weights = numbers / numbers.sum()
    images = float((weights**2 * recall * (1 - recall) / numbers).sum())
    return (images + result.std**2 / len(result.accuracy)) ** 0.5


class Difference(NamedTuple):
    """How much better one set of networks is than another.

    Attributes:
      mean: of the first less that of the second.
      low: where its 95% interval begins; None where a side has one network.
      high: where it ends; the same.
    """

    mean: float
    low: float | None
    high: float | None


def difference(first: Any, second: Any) -> Difference:
    """The difference of the means of independent networks; see ``contrast``.

    Args:
      first: [s] accuracies.
      second: [s'] accuracies.
    """
    return contrast((1.0, first), (-1.0, second))


def contrast(*sides: tuple[float, Any]) -> Difference:
    """A weighted sum of the means of independent networks, by Welch's t.

    The sides may be spread differently; degrees of freedom are Welch's and
    Satterthwaite's (Welch, Biometrika 34, 1947).

    Args:
      *sides: (weight, [s] accuracies) of each; s may differ.
    """
    sides = [(weight, np.asarray(side, np.float64)) for weight, side in sides]
    mean = float(sum(weight * side.mean() for weight, side in sides))
    counts = np.array([len(side) for _, side in sides])
    if counts.min() < 2:
        return Difference(mean, None, None)
    squares = np.array(
        [weight**2 * side.var(ddof=1) / len(side) for weight, side in sides]
    )
    if not squares.any():
        return Difference(mean, mean, mean)
    freedom = squares.sum() ** 2 / (squares**2 / (counts - 1)).sum()
    t = float(scipy.special.stdtrit(freedom, 0.975))
    half = t * float(squares.sum()) ** 0.5
    return Difference(mean, mean - half, mean + half)


def robust_score(gain: float) -> float:
    """A difference of accuracies on the scale of DD-Ranking, 0 to 1.

    (e^gain - e^-1) / (e - e^-1): 0.269 for no difference. Of gain =
    (IOR - HLR) / 2 it is the label-robust score (LRS), of the mean gain over
    random images with and without augmentation the augmentation-robust score
    (ARS); IOR = acc(distilled) - acc(random), HLR = acc(all data) -
    acc(distilled with hard labels).

    Args:
      gain: of accuracies as shares, in -1..1.

    References:
      Li et al., "DD-Ranking", arXiv 2505.13300.
    """
    return (math.exp(gain) - math.exp(-1)) / (math.e - math.exp(-1))


def joined(results: Sequence[EvalResult]) -> EvalResult:
    """Networks that were tested apart, as one result; all with recalls."""
    return summarise(
        np.concatenate([result.accuracy for result in results]),
        np.concatenate([result.recall for result in results]),
    )


def _give(images, labels, key):
    del key
    return Batch(images, labels)


def stored(images: Any, labels: Any) -> Callable[[jax.Array], Batch]:
    """A sample_fn that gives the same images every epoch.

    Args:
      images: [n h w c].
      labels: [n k].
    """
    return Partial(_give, jnp.asarray(images), jnp.asarray(labels))


def evaluate(
    key: Key[Array, ""] | Key[Array, " s"],
    sample_fn: Callable[[jax.Array], Batch]
    | Sequence[Callable[[jax.Array], Batch]]
    | training.Stream,
    test: Batch,
    module: Any,
    *,
    recipe: training.Recipe,
    learning_rate: Any,
    num_networks: int = 5,
    preprocessing: Any = None,
    test_preprocessing: Any = None,
) -> EvalResult:
    """Trains fresh networks on what ``sample_fn`` gives, and tests them.

    MTT's protocol when the recipe is its own: SGD at the distilled learning
    rate, momentum 0.9, weight decay 5e-4, rate x 0.1 at half, the accuracy
    after the last step.

    Args:
      key: decides initialisations, orders and augmentation; network i draws
        from ``fold_in(key, i)``. Or the keys of the networks themselves.
      sample_fn: key -> Batch, the training data of one epoch; see ``stored``.
        Or s of them, one a network, which differ in their arrays alone; or a
        Stream, on which the networks are trained one after another.
      test: images [n h w c] and integer labels [n]; ``Rows`` are tested a
        part at a time.
      module: a network from ``models.build``.
      recipe: how to train.
      learning_rate: of the first step.
      num_networks: s, at least 1; where keys are given, their number.
      preprocessing: where given, takes the training images to network input.
      test_preprocessing: the same for the test images.

    Returns:
      An EvalResult over the s networks.

    Raises:
      InputError: no network is asked for, labels are wrong, or there are not
        as many sets of training data as networks.
    """
    if not key.ndim and num_networks < 1:
        raise InputError(
            f"evaluate.networks must be at least 1, not {num_networks}"
        )
    num_classes = _classes_of(module, test)
    keys = key
    if not key.ndim:
        folded = [jax.random.fold_in(key, i) for i in range(num_networks)]
        keys = jnp.stack(folded)
    own, train = None, functools.partial(parallel.spread_networks, _train)
    if isinstance(sample_fn, training.Stream):
        train = _train_streamed
    elif isinstance(sample_fn, Sequence):
        if len(sample_fn) != len(keys):
            raise InputError(
                f"{len(sample_fn)} sets of training data for {len(keys)} "
                "networks: give one for each, or one for all"
            )
        each = [f if isinstance(f, Partial) else Partial(f) for f in sample_fn]
        own = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        sample_fn = None
    elif not isinstance(sample_fn, Partial):
        sample_fn = Partial(sample_fn)
    params = train(
        (keys, own),
        sample_fn,
        jnp.asarray(learning_rate, jnp.float32),
        preprocessing,
        module=module,
        recipe=recipe,
    )
    right = count_right(params, test, module, num_classes, test_preprocessing)
    total = np.bincount(np.asarray(test.labels), minlength=num_classes)
    recall = right / np.where(total, total, np.nan)
    return summarise(right.sum(1) / total.sum(), recall)


@functools.partial(jax.jit, static_argnames=("module", "recipe"))
def _train(networks, shared, learning_rate, preprocessing, *, module, recipe):
    """Params whose leaves lead with s, of networks side by side."""

    def one(key, own):
        sample_fn = shared if own is None else own
        shape = jax.eval_shape(sample_fn, key).images.shape[1:]
        init_key, train_key = jax.random.split(key)
        return training.train(
            train_key,
            models.init_params(module, init_key, shape),
            sample_fn,
            learning_rate,
            module=module,
            recipe=recipe,
            preprocessing=preprocessing,
        )

    return parallel.map_networks(one, *networks)


def _train_streamed(
    networks, stream, learning_rate, preprocessing, *, module, recipe
):
    """The same of networks one after another."""

    def train(keys):
        trained = []
        for key in keys:
            init_key, train_key = jax.random.split(key)
            params = training.train_streamed(
                train_key,
                models.init_params(module, init_key, stream.images.shape[1:]),
                stream,
                learning_rate,
                module=module,
                recipe=recipe,
                preprocessing=preprocessing,
            )
            trained.append(params)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trained)

    return parallel.over_processes(train, networks[0])


def _classes_of(module, test):
    """k, the network's logits; InputError where the test's labels are not."""
    count, *shape = test.images.shape
    num_classes = _outputs(module, tuple(shape))
    check_labels("test labels", test.labels, count, num_classes)
    return num_classes


@functools.lru_cache(maxsize=256)
def _outputs(module, shape):
    """Their number, kept: a trace of the network takes longer than a small
    test."""
    key = jax.random.key(0)
    logits, _ = jax.eval_shape(
        lambda images: training.apply_fn_of(module)(
            models.init_params(module, key, shape), images
        ),
        jax.ShapeDtypeStruct((1, *shape), jnp.float32),
    )
    return logits.shape[-1]


# Bytes of test images that are read and tested at a time.
_PART = 1 << 26


def count_right(params, test, module, num_classes, preprocessing):
    """How many test images of each class each network gets right, [s k].

    Args:
      params: of s networks, as ``training.predict`` takes them, stacked.
      test: images [n h w c] and integer labels [n].
      module: the network.
      num_classes: k.
      preprocessing: where given, takes the images to network input.
    """
    count, *shape = test.images.shape
    size = count
    if isinstance(test.images, Rows):
        size = max(1, _PART // math.prod(shape))
    labels = np.asarray(test.labels)
    right = np.zeros((), np.int64)
    for begin, images in read_ahead(
        lambda begin: test.images[begin : begin + size], range(0, count, size)
    ):
        right = right + np.asarray(
            parallel.spread_networks(
                _right,
                params,
                images,
                labels[begin : begin + size],
                preprocessing,
                module=module,
                num_classes=num_classes,
            )
        )
    return right


@functools.partial(jax.jit, static_argnames=("module", "num_classes"))
def _right(params, images, labels, preprocessing, *, module, num_classes):
    def one(params):
        found = training.predict(
            params, images, module=module, preprocessing=preprocessing
        )
        # Integers: floats would stop counting at 2 ** 24, or earlier.
        hits = (found == labels).astype(jnp.int32)
        return jnp.zeros(num_classes, jnp.int32).at[labels].add(hits)

    return parallel.map_networks(one, params)
