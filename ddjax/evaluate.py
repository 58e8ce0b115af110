"""How well distilled data trains networks that have not seen it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.tree_util import Partial
from jaxtyping import Array, Key

from ddjax import models, parallel, training
from ddjax.types import Batch, InputError

__all__ = ["EvalResult", "evaluate", "stored", "summarise"]


class EvalResult(NamedTuple):
    """Test accuracies of independently initialised networks.

    Attributes:
      accuracy: [s], in 0..1.
      mean: of them.
      std: of them, with s - 1 in the denominator; 0 where s is 1.
      ci95: half width of the 95% interval of the mean, Student's t; 0 where
        s is 1.
    """

    accuracy: np.ndarray
    mean: float
    std: float
    ci95: float


def summarise(accuracy: Any) -> EvalResult:
    """Mean, spread and interval of [s] accuracies."""
    accuracy = np.asarray(accuracy, np.float64)
    count = len(accuracy)
    if count < 2:
        return EvalResult(accuracy, float(accuracy.mean()), 0.0, 0.0)
    std = float(accuracy.std(ddof=1))
    t = float(scipy.special.stdtrit(count - 1, 0.975))
    return EvalResult(
        accuracy, float(accuracy.mean()), std, t * std / count**0.5
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
    key: Key[Array, ""],
    sample_fn: Callable[[jax.Array], Batch],
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
        from ``fold_in(key, i)``.
      sample_fn: key -> Batch, the training data of one epoch; see ``stored``.
      test: images [n h w c] and integer labels [n].
      module: a network from ``models.build``.
      recipe: how to train.
      learning_rate: of the first half.
      num_networks: s, at least 1.
      preprocessing: where given, takes the training images to network input.
      test_preprocessing: the same for the test images.

    Returns:
      An EvalResult over the s networks.

    Raises:
      InputError: no network is asked for.
    """
    if num_networks < 1:
        raise InputError(
            f"evaluate.networks must be at least 1, not {num_networks}"
        )
    if not isinstance(sample_fn, Partial):
        sample_fn = Partial(sample_fn)
    images, labels = jnp.asarray(test.images), jnp.asarray(test.labels)
    keys = [jax.random.fold_in(key, i) for i in range(num_networks)]
    accuracy = _accuracies(
        jnp.stack(keys),
        sample_fn,
        images,
        labels,
        jnp.asarray(learning_rate, jnp.float32),
        preprocessing,
        test_preprocessing,
        module=module,
        recipe=recipe,
    )
    return summarise(accuracy)


@functools.partial(jax.jit, static_argnames=("module", "recipe"))
def _accuracies(
    keys,
    sample_fn,
    images,
    labels,
    learning_rate,
    preprocessing,
    test_preprocessing,
    *,
    module,
    recipe,
):
    shape = jax.eval_shape(sample_fn, keys[0]).images.shape[1:]

    def one(key):
        init_key, train_key = jax.random.split(key)
        params = training.train(
            train_key,
            models.init_params(module, init_key, shape),
            sample_fn,
            learning_rate,
            module=module,
            recipe=recipe,
            preprocessing=preprocessing,
        )
        return training.accuracy(
            params,
            images,
            labels,
            module=module,
            preprocessing=test_preprocessing,
        )

    return parallel.map_networks(one, keys)
