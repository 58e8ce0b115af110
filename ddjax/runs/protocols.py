"""Generated images as training data: the two protocols, never mixed.

Stored: so many images per class are drawn once, comparable with distilled
images. Stream: fresh ones in every epoch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import artifact, d2m, evaluate, training
from ddjax.data import classes, preprocess
from ddjax.models import biggan
from ddjax.runs import loop, scores
from ddjax.runs.prepare import Task
from ddjax.settings import Settings
from ddjax.types import Batch

__all__ = [
    "balanced_labels",
    "decode",
    "drawn_images",
    "generated_epoch",
    "generated_scores",
    "make",
    "recipes_of",
    "stored_score",
    "stream_recipe",
]

# What the final evaluation's key is folded with; the number is a name.
_FINAL = 203


def generated_epoch(
    apply: biggan.GenApply, params: Any, preprocessing: Any, ipc: int
) -> Any:
    """A sample_fn for the stream protocol: fresh images for every epoch."""
    return jax.tree_util.Partial(_epoch_of(apply, ipc), params, preprocessing)


@functools.cache
def _epoch_of(apply, ipc):
    # The same object for the same arguments: jit compares it by identity.
    return functools.partial(_epoch, apply, ipc)


def _epoch(apply, ipc, params, preprocessing, key):
    k = apply.module.num_classes
    labels = jnp.repeat(jnp.arange(k), ipc)
    images = d2m.generate(apply, params, key, labels, at_once=AT_ONCE)
    return Batch(
        preprocess.apply(preprocessing, images),
        jax.nn.one_hot(labels, k, dtype=jnp.float32),
    )


AT_ONCE = 250
"""Images that are generated, or looked at by a network, at a time."""


@functools.partial(jax.jit, static_argnums=0)
def make(gen_apply, gen_params, key, labels):
    """``d2m.generate``, some images at a time."""
    return d2m.generate(gen_apply, gen_params, key, labels, at_once=AT_ONCE)


@functools.partial(jax.jit, static_argnums=0)
def decode(gen_apply, gen_params, noise, labels):
    """``d2m.decode``, some images at a time."""
    return d2m.decode(gen_apply, gen_params, noise, labels, at_once=AT_ONCE)


MakeImages = Callable[
    [artifact.GeneratorArtifact, Any, np.ndarray, jax.Array], np.ndarray
]
"""(generator, its params, labels [n], key) to pixels [n h w c] in 0..1."""


def drawn_images(
    found: artifact.GeneratorArtifact,
    params: Any,
    labels: np.ndarray,
    key: jax.Array,
) -> np.ndarray:
    """``MakeImages`` as chance has it."""
    return np.asarray(make(found.apply, params, key, labels))


def balanced_labels(num_classes: int, ipc: int) -> np.ndarray:
    """Class by class, as many of each: [ipc * k]."""
    return np.repeat(np.arange(num_classes, dtype=np.int32), ipc)


def stored_score(
    score: scores.Score,
    key: jax.Array,
    found: artifact.GeneratorArtifact,
    params: Any,
    ipc: int,
    count: int,
    *,
    make_images: MakeImages = drawn_images,
    **how: Any,
) -> evaluate.EvalResult:
    """The stored protocol: images drawn once, the same in every epoch.

    Each network draws its own images; two generators are given the same noise
    and the same first parameters.

    Args:
      score: of the network.
      key: network i draws from ``fold_in(key, i)``.
      found: the generator's apply and preprocessing.
      params: of the generator.
      ipc: images per class.
      count: of the networks.
      make_images: how images are made, by chance by default.
      **how: for ``score``.
    """
    k = found.apply.module.num_classes
    labels = balanced_labels(k, ipc)

    def drawn(key):
        pixels = make_images(found, params, labels, key)
        return evaluate.stored(
            preprocess.apply(found.preprocessing, pixels),
            classes.one_hot(labels, k),
        )

    return scores.on_own_data(score, key, drawn, count, **how)


def recipes_of(settings: Settings) -> dict[int, training.Recipe]:
    """{images per class: how networks are trained on them, stored}."""
    recipe = scores.recipe_of(settings.evaluate)
    return {
        ipc: recipe._replace(epochs=epochs)
        for ipc, epochs in settings.d2m.epochs_of.items()
    }


def stream_recipe(settings: Settings) -> training.Recipe:
    """As long as on the largest stored set."""
    recipes = recipes_of(settings)
    return recipes[max(recipes)]


def generated_scores(
    settings: Settings,
    task: Task,
    found: artifact.GeneratorArtifact,
    sides: Mapping[str, Any],
    choose: MakeImages | None = None,
    key: jax.Array | None = None,
) -> dict[str, dict[str, Any]]:
    """The rows of ``final_scores`` that generated images make.

    Args:
      settings: the d2m and evaluate parts and the seed count.
      task: the data to test on.
      found: the generator's apply and preprocessing, which test images go
        through too.
      sides: {what: generator's params}.
      choose: how images are chosen, for rows WHAT_chosen beside the others.
      key: of the networks and the noise; that of a run's final scores by
        default.
    """
    part, ipc_stream = settings.evaluate, settings.d2m.stream_ipc
    if key is None:
        key = jax.random.fold_in(jax.random.key(settings.seed), _FINAL)
    recipes = recipes_of(settings)
    table: dict[str, dict] = {}
    ways = {"": drawn_images} | ({"_chosen": choose} if choose else {})
    total = len(part.model_names) * len(sides)
    rows = total * (len(ways) * len(recipes) + 1)
    bar = loop.progress("test", rows, unit="row")
    rate = {"learning_rate": part.real_learning_rate}
    for model, _, score in scores.tests_of(task, part, found.preprocessing):

        def add(row, result, model=model):
            table.setdefault(row, {})[model] = scores.as_json(result)
            bar.update()

        for ipc, side, way in itertools.product(recipes, sides, ways):
            result = stored_score(
                score,
                key,
                found,
                sides[side],
                ipc,
                part.networks,
                make_images=ways[way],
                recipe=recipes[ipc],
                **rate,
            )
            add(f"stored/{ipc}/{side}{way}", result)
        for side, params in sides.items():
            sample_fn = generated_epoch(
                found.apply, params, found.preprocessing, ipc_stream
            )
            result = scores.on_drawn_data(
                score,
                scores.keys_of(key, part.networks),
                sample_fn,
                recipe=stream_recipe(settings),
                **rate,
            )
            add(f"stream/{ipc_stream}/{side}", result)
    bar.close()
    return table
