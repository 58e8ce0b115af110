"""The table that every method ends with, and what states are selected by.

eval.json is {row: {network: {mean, std, ci95, accuracies, balanced_accuracy,
recall}}}; accuracies lie in 0..1. A table is built row by row; whatever is
distilled stands beside random real images, other cheap picks and the whole
data, and says how far it is above random real images.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import augment, evaluate, metrics, parallel, training
from ddjax.data import classes
from ddjax.runs.prepare import Task, as_input
from ddjax.settings import METRICS, Evaluate, Settings
from ddjax.types import Batch, InputError

__all__ = [
    "add_gains",
    "as_json",
    "at_once_of",
    "by_metric",
    "given_real",
    "hardened",
    "held_out",
    "keys_of",
    "labels_of",
    "latest",
    "line",
    "looked_at",
    "on_drawn_data",
    "on_own_data",
    "on_shared_data",
    "print_table",
    "random_real",
    "recipe_of",
    "select",
    "standard_error",
    "tests_of",
]

Score = Callable[..., evaluate.EvalResult]
"""``evaluate.evaluate`` with the test images and the network given."""

# What the draws of random real images are folded with; the number is a name.
_RANDOM_REAL = 5


def recipe_of(part: Evaluate) -> training.Recipe:
    """How networks are trained on distilled images."""
    return training.Recipe(
        epochs=part.epochs,
        batch_size=part.batch_size,
        momentum=part.momentum,
        weight_decay=part.weight_decay,
        decay_at_half=True,
        augment=augment.parse(part.augment),
    )


def by_metric(score: evaluate.EvalResult, metric: str) -> evaluate.EvalResult:
    """A result in the terms of one of ``METRICS``."""
    return score if metric == "accuracy" else evaluate.balanced(score)


def labels_of(labels: np.ndarray, part: Evaluate) -> np.ndarray:
    """Distilled labels [n k] as ``evaluate.labels`` has them."""
    return labels if part.labels == "soft" else hardened(labels)


def hardened(labels: np.ndarray) -> np.ndarray:
    """Labels [n k] as one-hot ones of the likeliest class."""
    return classes.one_hot(labels.argmax(-1), labels.shape[-1])


# What states are selected by -------------------------------------------------


def held_out(task: Task, module: Any = None) -> Score:
    """``evaluate.evaluate`` on the held-out images.

    Args:
      task: data and network.
      module: the network; the task's by default.
    """
    part = task.splits.held_out
    images, left = as_input(part.images, task.preprocessing)
    return functools.partial(
        evaluate.evaluate,
        test=Batch(images, part.labels),
        module=module or task.module,
        test_preprocessing=left,
    )


def held_out_row(score: evaluate.EvalResult, task: Task) -> dict[str, float]:
    """A look's line of metrics.jsonl, of a score by ``held_out``."""
    row = {}
    for metric in METRICS:
        found = by_metric(score, metric)
        row[f"held_out_{metric}"] = found.mean
        row[f"held_out_{metric}_std"] = found.std
        row[f"held_out_{metric}_error"] = standard_error(
            score, task.splits.held_out.labels, metric
        )
    return row


def standard_error(
    score: evaluate.EvalResult, labels: np.ndarray, metric: str
) -> float:
    """``evaluate.standard_error`` of one of ``METRICS``, on images of these
    classes [n]."""
    numbers = np.bincount(labels, minlength=score.recall.shape[1])
    return evaluate.standard_error(score, numbers, balance=metric != "accuracy")


def select(
    workdir: Path, metric: str, *, from_start: bool = False
) -> tuple[int, list[int]]:
    """The state that is best on held-out images, by metrics.jsonl.

    The earliest of equals is taken: later updates bought nothing that was
    seen.

    Args:
      workdir: of the run.
      metric: one of ``METRICS``.
      from_start: whether what the run started from, step 0, is among them.

    Returns:
      (its step, the steps of all looks but that at 0, in order).

    Raises:
      InputError: no look is recorded.
    """
    looks = looked_at(workdir, metric)
    steps = sorted(looks.keys() - {0})
    if not steps:
        raise InputError(
            f"{workdir / 'metrics.jsonl'} has lost its lines: remove {workdir} "
            "and run the same command to start again"
        )
    among = sorted(looks) if from_start else steps
    return max(among, key=looks.get), steps


def latest(workdir: Path, metric: str) -> tuple[int, list[int]]:
    """The latest state that is as good as the best, as far as can be seen.

    Among what held-out images cannot tell apart, the one that was distilled
    for longest: the outer loss was lowered to the end, and the best of several
    looks on few images is mostly the luckiest. A later state is passed over
    where it is more than one standard error of the best below it (the rule of
    Breiman et al., Classification and Regression Trees, 1984, section 3.4.3,
    with later for simpler).

    Args:
      workdir: of the run.
      metric: one of ``METRICS``.

    Returns:
      (its step, the steps of all looks but that at 0, in order).

    Raises:
      InputError: no look is recorded.
    """
    looks = looked_at(workdir, metric)
    best, steps = select(workdir, metric)
    # Runs of before recorded no error: equals alone are as good there.
    error = looked_at(workdir, f"{metric}_error").get(best, 0.0)
    good = [step for step in steps if looks[step] >= looks[best] - error]
    return max(good), steps


def looked_at(workdir: Path, field: str) -> dict[int, float]:
    """{step: figure of held-out images} of a run's metrics.jsonl.

    Args:
      workdir: of the run.
      field: one of ``METRICS``, or with _std or _error behind.
    """
    field = f"held_out_{field}"
    return {
        row["step"]: float(row[field])
        for row in metrics.read(workdir / "metrics.jsonl")
        if field in row
    }


# Rows of the table -----------------------------------------------------------


def tests_of(
    task: Task, part: Evaluate, preprocessing: Any = None
) -> Iterator[tuple[str, Any, Score]]:
    """(name, module, score) of each network that results are tested on.

    Args:
      task: data and network.
      part: names the networks.
      preprocessing: of the test images; the task's by default.
    """
    test = task.splits.test
    images, left = as_input(test.images, preprocessing or task.preprocessing)
    for name in part.model_names:
        module = task.network(name, part.resize)
        yield (
            name,
            module,
            functools.partial(
                evaluate.evaluate,
                test=Batch(images, test.labels),
                module=module,
                test_preprocessing=left,
            ),
        )


def random_real(
    settings: Settings,
    task: Task,
    score: Score,
    recipe: training.Recipe,
    ipc: int,
) -> evaluate.EvalResult:
    """As many real images; each network draws its own."""
    key = jax.random.fold_in(jax.random.key(settings.seed), _RANDOM_REAL)

    def drawn(key):
        return evaluate.stored(*task.real_images(key, ipc))

    return on_own_data(
        score,
        key,
        drawn,
        settings.evaluate.networks,
        recipe=recipe,
        learning_rate=settings.evaluate.real_learning_rate,
    )


def given_real(
    settings: Settings,
    score: Score,
    recipe: training.Recipe,
    sample_fn: Any,
) -> evaluate.EvalResult:
    """The same images for every network, trained on as random real ones are.

    Network i has the first parameters that it has with ``random_real``.

    Args:
      settings: the evaluate part and the seed count.
      score: of the network.
      recipe: of the training.
      sample_fn: of ``evaluate.stored``.
    """
    return on_shared_data(
        score,
        jax.random.fold_in(jax.random.key(settings.seed), _RANDOM_REAL),
        sample_fn,
        settings.evaluate.networks,
        recipe=recipe,
        learning_rate=settings.evaluate.real_learning_rate,
    )


# Of the training images of networks side by side, on each device: stacked data,
# which are held some times, and what networks draw themselves.
STACKED_BYTES, DRAWN_BYTES = 1 << 26, 1 << 30


def on_own_data(
    score: Score,
    key: jax.Array,
    sample_fn_of: Callable[[jax.Array], Any],
    count: int,
    **how: Any,
) -> evaluate.EvalResult:
    """Networks each of which is trained on data of its own.

    Args:
      score: of the network.
      key: network i draws from ``fold_in(key, i)``.
      sample_fn_of: its key -> what it is trained on; the arrays alone differ.
      count: of the networks.
      **how: for ``score``.
    """

    def some(networks):
        keys = [jax.random.fold_in(key, i) for i in networks.tolist()]
        first = sample_fn_of(keys[0])
        at_once = at_once_of(_bytes_of(first), STACKED_BYTES)
        results = []
        for begin in range(0, len(keys), at_once):
            now = keys[begin : begin + at_once]
            samples = [
                sample_fn_of(own) if begin + i else first
                for i, own in enumerate(now)
            ]
            results.append(
                score(_own(now), samples, num_networks=len(now), **how)
            )
        found = evaluate.joined(results)
        return found.accuracy, found.recall

    return evaluate.summarise(*parallel.over_processes(some, np.arange(count)))


def on_shared_data(
    score: Score,
    key: jax.Array,
    sample_fn: Any,
    count: int,
    **how: Any,
) -> evaluate.EvalResult:
    """The networks of ``on_own_data``, all trained on the same.

    Args:
      score: of the network.
      key: network i draws from ``fold_in(key, i)``.
      sample_fn: of ``evaluate.stored``.
      count: of the networks.
      **how: for ``score``.
    """
    return score(keys_of(key, count), sample_fn, num_networks=count, **how)


def keys_of(key: jax.Array, count: int) -> jax.Array:
    """[s], of the networks of ``on_own_data``."""
    return _own([jax.random.fold_in(key, network) for network in range(count)])


def _own(keys: list[jax.Array]) -> jax.Array:
    """What networks begin with whose data are drawn from these keys."""
    return jnp.stack([jax.random.fold_in(key, 0) for key in keys])


def on_drawn_data(
    score: Score, keys: jax.Array, sample_fn: Any, **how: Any
) -> evaluate.EvalResult:
    """Networks that draw images anew in every epoch, as many as fit at a time.

    Args:
      score: of the network.
      keys: [s], of the networks.
      sample_fn: what they draw from.
      **how: for ``score``.
    """
    at_once = at_once_of(_bytes_of(sample_fn), DRAWN_BYTES)
    return evaluate.joined(
        [
            score(some, sample_fn, num_networks=len(some), **how)
            for some in (
                keys[begin : begin + at_once]
                for begin in range(0, len(keys), at_once)
            )
        ]
    )


def _bytes_of(sample_fn: Any) -> int:
    """Of an epoch's images."""
    images = jax.eval_shape(
        lambda sample_fn, key: sample_fn(key).images,
        sample_fn,
        jax.random.key(0),
    )
    return math.prod(images.shape) * images.dtype.itemsize


def at_once_of(size: int, room: int = STACKED_BYTES) -> int:
    """How many networks train side by side that hold so many bytes each, but
    one on every device."""
    return parallel.that_fit(size, parallel.device_count() * room)


# The table in files and for people -------------------------------------------


def as_json(result: evaluate.EvalResult) -> dict[str, Any]:
    """A result with balanced accuracy and recalls, for eval.json."""
    return _figures(result) | {
        "balanced_accuracy": _figures(evaluate.balanced(result)),
        "recall": without_nan(result.recall.mean(0)),
    }


def _figures(result: evaluate.EvalResult) -> dict[str, Any]:
    return {
        "mean": result.mean,
        "std": result.std,
        "ci95": result.ci95,
        "accuracies": result.accuracy.tolist(),
    }


def without_nan(recall: np.ndarray) -> list[float | None]:
    """JSON has no NaN: None is a class without test images."""
    return [None if np.isnan(value) else value for value in recall.tolist()]


def add_gains(table: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes into what is distilled how far it is above random real images.

    Each row distilled, or PROTOCOL/IPC/distilled or distilled_chosen, beside
    which there is such a row random_real, gets ``gain_over_random``
    {mean, low, high}, of accuracy and within ``balanced_accuracy``: a
    difference of independent networks with its 95% interval; see
    ``evaluate.difference``.

    Args:
      table: eval.json's, changed in place.
    """
    for row, by_model in table.items():
        *before, what = row.split("/")
        beside = table.get("/".join([*before, "random_real"]), {})
        if what not in ("distilled", "distilled_chosen"):
            continue
        for model in by_model.keys() & beside.keys():
            pair = by_model[model], beside[model]
            for side in (pair, [score["balanced_accuracy"] for score in pair]):
                found = evaluate.difference(
                    *(score["accuracies"] for score in side)
                )
                side[0]["gain_over_random"] = found._asdict()


def line(model: str, score: evaluate.EvalResult) -> str:
    """One line for a person; one network has no interval."""
    count = len(score.accuracy)
    if count == 1:
        return f"{model:8} {100 * score.mean:6.2f} % (1 network)"
    return (
        f"{model:8} {100 * score.mean:6.2f} % +- {100 * score.ci95:.2f} "
        f"(95% interval, {count} networks)"
    )


def gain_line(gain: Mapping[str, float | None]) -> str:
    """How far above random real images, for a person, in points."""
    text = f"{100 * gain['mean']:+.2f} points"
    if gain["low"] is None:
        return text
    low, high = 100 * gain["low"], 100 * gain["high"]
    told = "above 0" if low > 0 else "below 0" if high < 0 else "holds 0"
    return f"{text} (95% interval {low:+.2f} .. {high:+.2f}: {told})"


def print_table(
    table: Mapping[str, Mapping[str, Any]], metric: str = "accuracy"
) -> None:
    """A line for each row and network, and below them one for each gain.

    Args:
      table: eval.json's.
      metric: one of ``METRICS``, the figures to print.
    """
    print(f"{metric.replace('_', ' ')} on test images")
    cut = {
        (row, model)
        for row, by_model in table.items()
        for model, score in by_model.items()
        if score.get("cut")
    }
    if metric != "accuracy":
        table = {
            row: {model: score[metric] for model, score in by_model.items()}
            for row, by_model in table.items()
        }
    wide = max(map(len, table), default=0)
    for row, by_model in table.items():
        for model, score in by_model.items():
            result = evaluate.summarise(score["accuracies"])
            more = ", cut: more steps would help" if (row, model) in cut else ""
            print(f"{row:{wide}}  {line(model, result)}{more}")
    for row, by_model in table.items():
        for model, score in by_model.items():
            if "gain_over_random" in score:
                found = gain_line(score["gain_over_random"])
                print(f"{row} - random_real  {model:8} {found}")
