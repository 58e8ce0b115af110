"""What the whole data gives: the ceiling that a distilled set stands under.

Networks are trained until more steps no longer help, by a recipe of their own.
A ceiling trained for a few epochs is no ceiling: on a small set ten distilled
images, trained on for hundreds of epochs, would come near it or pass it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddjax import augment, evaluate, files, hosts, training
from ddjax.data import sources
from ddjax.runs import scores
from ddjax.runs.prepare import Task
from ddjax.settings import Evaluate, Settings
from ddjax.types import Batch

__all__ = ["BATCH", "Length", "choose", "full_data", "kept"]

# What the draws are folded with; the numbers are names.
_FULL_DATA = 4
_SEARCH = 6

RATES = (0.03, 0.1, 0.01)
"""First rates to choose from; of equals, the first."""

FIRST_STEPS = 500
"""Steps of the shortest training tried; a quarter of the bound, if fewer."""

BATCH = 64
"""Images a step."""

# A standard error, at the worst accuracy there is, beyond which held-out
# images do not tell whether to go on: 100 images have so much, and 20 have a
# tenth and stopped trainings that had hardly begun.
_TELLING = 0.05


class Length(NamedTuple):
    """How long a network is trained on the whole data.

    Attributes:
      epochs: of the training.
      learning_rate: of the first step.
      cut: whether the bound ended the search while scores were still rising,
        or before it could be seen whether they were.
    """

    epochs: int
    learning_rate: float
    cut: bool


def choose(
    score: Callable[[int, float], tuple[float, float]],
    first: int,
    most: int | None,
    *,
    tells: bool = True,
) -> Length:
    """The rate and the number of epochs that held-out images ask for.

    The rate is the best of ``RATES`` at the shortest length. The length is
    then doubled until the score rises by no more than its standard error. Of
    the last two the longer is taken, unless it is worse by more than that: a
    few held-out images tell small gains from none badly, and a ceiling that
    errs should err upwards. Where there are so few that they tell nothing, the
    longest is taken.

    The last step is of up to four times the length before it, so that the whole
    search takes no more than 2.25 of the longest trainings (plan.SEARCHES).

    Args:
      score: (epochs, rate) -> (score on held-out images, its standard error).
      first: epochs of the shortest training.
      most: epochs of the longest that is allowed, at least ``first``; None
        for no limit.
      tells: whether the held-out images are enough to stop by; only where there
        is a limit can they be too few.
    """
    tried = {rate: score(first, rate) for rate in RATES}
    rate = max(RATES, key=lambda rate: tried[rate][0])
    length, (last, error) = first, tried[rate]
    while length != most:
        shorter, before, noise = length, last, error
        length = 2 * length if most is None or 4 * length <= most else most
        last, error = score(length, rate)
        if last - before <= noise and (tells or most is None):
            worse = before - last > noise
            return Length(shorter if worse else length, rate, cut=False)
    return Length(length, rate, cut=True)


def full_data(
    settings: Settings,
    task: Task,
    model: str,
    module: Any,
    score: scores.Score,
    folder: Path,
) -> tuple[evaluate.EvalResult, dict[str, Any]]:
    """Networks trained on all training images for as long as it helps.

    SGD with momentum and a rate that falls to 0 along a cosine; its first
    value and the number of steps are chosen by ``choose`` with one network,
    which is tested on the held-out images. They do not depend on what is
    distilled: a file beside the teachers shares them between runs.

    Args:
      settings: of the run.
      task: data and network.
      model: the network's name.
      module: the network.
      score: of it, on the test images.
      folder: the parent of all teachers.

    Returns:
      (the result, {"steps", "learning_rate", "cut"} for its row).
    """
    part = settings.evaluate
    # A ceiling of balanced accuracy trains for balanced accuracy.
    weights = "none" if part.metric == "accuracy" else "balanced"
    recipe = training.Recipe(
        epochs=1,  # chosen below
        batch_size=BATCH,
        momentum=0.9,
        weight_decay=5e-4,
        augment=augment.parse(part.augment),
        cosine=True,
    )
    shaped_by = {
        "data": sources.fingerprint(*task.splits),
        "preprocess": settings.data.preprocess,
        "model": repr(module),
        "recipe": recipe._asdict(),
        "rates": RATES,
        "first_steps": FIRST_STEPS,
        "most_steps": part.full_steps,
        "telling": _TELLING,
        "metric": part.metric,
        "class_weights": weights,
        "seed": settings.seed,
        "networks": part.networks,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
    }
    digest = hashlib.sha256(json.dumps(shaped_by, sort_keys=True).encode())
    path = folder / f"full_data-{model}-{digest.hexdigest()[:12]}.json"
    found = hosts.from_writer(lambda: _stored(path))
    if found is not None:
        return _told(found)
    data, left = task.training_data(weights)
    count = len(data.images)
    if isinstance(data, Batch):
        data = evaluate.stored(*data)
    steps_of = training.steps_per_epoch(count, min(BATCH, count))
    key = jax.random.key(settings.seed)
    held_out = scores.held_out(task, module)
    searched = []

    def try_out(epochs, rate):
        result = held_out(
            jax.random.fold_in(key, _SEARCH),
            data,
            recipe=recipe._replace(epochs=epochs),
            learning_rate=rate,
            num_networks=1,
            preprocessing=left,
        )
        found = (
            scores.by_metric(result, part.metric).mean,
            scores.standard_error(
                result, task.splits.held_out.labels, part.metric
            ),
        )
        searched.append([epochs * steps_of, rate, *found])
        return found

    first, most = _bounds(part, steps_of)
    length = choose(
        try_out,
        first,
        most,
        tells=_worst_error(task.splits.held_out.labels, part.metric)
        <= _TELLING,
    )
    result = score(
        jax.random.fold_in(key, _FULL_DATA),
        data,
        recipe=recipe._replace(epochs=length.epochs),
        learning_rate=length.learning_rate,
        num_networks=part.networks,
        preprocessing=left,
    )
    how = {
        "steps": length.epochs * steps_of,
        "learning_rate": length.learning_rate,
        # Where even the shortest training was shortened, noise hides a rise.
        "cut": length.cut or first * steps_of < FIRST_STEPS // 2,
    }
    if hosts.writes():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(
            path,
            files.sealed(
                {
                    "accuracy": result.accuracy.tolist(),
                    "recall": [
                        scores.without_nan(row) for row in result.recall
                    ],
                    **how,
                    "searched": searched,
                    "shaped_by": shaped_by,
                }
            ),
        )
    return result, how


def _worst_error(labels: np.ndarray, metric: str) -> float:
    """The standard error of an accuracy of a half on images of these classes;
    what was observed may be 0, of one image a class."""
    numbers = np.bincount(labels)
    numbers = numbers[numbers > 0]
    if metric == "accuracy":
        weights = numbers / numbers.sum()
    else:
        weights = np.full(len(numbers), 1 / len(numbers))
    return float((weights**2 / (4 * numbers)).sum() ** 0.5)


def kept(path: Path) -> tuple[evaluate.EvalResult, dict[str, Any]] | None:
    """What ``full_data`` has written; None where it is not there, or damaged:
    it can be had again."""
    found = _stored(path)
    return None if found is None else _told(found)


def _stored(path: Path) -> dict[str, Any] | None:
    try:
        found = files.read_json(path)
        _told(found)
        return found
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _told(
    found: dict[str, Any],
) -> tuple[evaluate.EvalResult, dict[str, Any]]:
    return (
        evaluate.summarise(
            found["accuracy"], np.array(found["recall"], np.float64)
        ),
        {name: found[name] for name in ("steps", "learning_rate", "cut")},
    )


def _bounds(part: Evaluate, steps_of: int) -> tuple[int, int | None]:
    """(epochs of the shortest, of the longest training), at least one."""
    if not part.full_steps:
        return max(1, FIRST_STEPS // steps_of), None
    first = min(FIRST_STEPS, part.full_steps // 4)
    return max(1, first // steps_of), max(1, part.full_steps // steps_of)
