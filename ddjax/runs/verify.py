"""Whether a distilled file's recorded score can be had again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import scipy.special

from ddjax import artifact, augment, evaluate, training
from ddjax.data import preprocess, sources
from ddjax.runs import prepare, scores
from ddjax.settings import Settings
from ddjax.types import InputError

__all__ = ["Verdict", "lines", "verify"]

# What the networks' key is folded with; the number is a name. None of the
# run's own networks is made again.
_VERIFY = 301


class Verdict(NamedTuple):
    """A recorded score beside one of fresh networks.

    Attributes:
      recorded: by the file, in terms of the run's metric.
      found: now, of other networks.
      low: where the interval begins in which the mean of as many networks as
        were recorded lies, 95 times of 100, by what the fresh ones tell.
      high: where it ends.
      same_data: whether the test images are the same to the last bit; None
        where the file does not tell.
    """

    recorded: evaluate.EvalResult
    found: evaluate.EvalResult
    low: float
    high: float
    same_data: bool | None

    @property
    def agrees(self) -> bool:
        """Whether the recorded mean lies in the interval."""
        return self.low <= self.recorded.mean <= self.high


def verify(
    found: artifact.Artifact,
    *,
    data_folder: Path,
    data_dir: str = "",
    networks: int = 0,
    seed: int = 0,
) -> dict[str, Verdict]:
    """Trains fresh networks as a distilled file says, and tests them.

    Args:
      found: the file's content.
      data_folder: the parent of all prepared data.
      data_dir: where the data lie, if not where the file's config says.
      networks: how many, at least 2; as many as were recorded by default.
      seed: of the fresh networks.

    Returns:
      {network's name: Verdict}.

    Raises:
      InputError: the file records no score of its images or no recipe, or the
        data are missing or of another kind.
    """
    settings, recipe = _settings_of(found, data_dir), _recipe_of(found)
    table = _recorded_of(found, settings.evaluate.metric)
    if networks and networks < 2:
        raise InputError(
            f"--networks must be at least 2, for an interval, not {networks}"
        )
    if not 0 <= seed < 1 << 32:
        raise InputError(f"--seed must lie in 0..2**32 - 1, not at {seed}")
    if missing := set(settings.evaluate.model_names) - table.keys():
        raise InputError(
            f"the file records no score of {sorted(missing)[0]}, which its "
            "config names: take the file of a finished run"
        )
    task = prepare.task(
        settings.data, settings.model, settings.seed, data_folder
    )
    if found.images.shape[1:] != task.image_shape:
        raise InputError(
            f"the distilled images are of {found.images.shape[1:]}, the data "
            f"of {task.image_shape}: name their own data with --data_dir"
        )
    if list(task.splits.test.class_names) != found.metadata["class_names"]:
        raise InputError(
            "the data have other classes than the distilled images: name their "
            "own data with --data_dir"
        )
    same = None
    if "test_data" in found.metadata:
        here = sources.fingerprint(task.splits.test)
        same = found.metadata["test_data"] == here
    key = jax.random.fold_in(jax.random.key(seed), _VERIFY)
    verdicts = {}
    for name, _, score in scores.tests_of(
        task, settings.evaluate, found.preprocessing
    ):
        recorded = table[name]
        result = score(
            key,
            evaluate.stored(
                preprocess.apply(found.preprocessing, found.images),
                found.labels,
            ),
            recipe=recipe,
            learning_rate=found.learning_rate,
            num_networks=networks or max(2, len(recorded.accuracy)),
        )
        result = scores.by_metric(result, settings.evaluate.metric)
        half = _half_width(result, len(recorded.accuracy))
        # A score is no finer than one test image.
        half = max(half, 1 / len(task.splits.test.labels))
        verdicts[name] = Verdict(
            recorded, result, result.mean - half, result.mean + half, same
        )
    return verdicts


def _half_width(result: evaluate.EvalResult, count: int) -> float:
    """Of the 95% interval for the mean of ``count`` further networks."""
    n = len(result.accuracy)
    t = float(scipy.special.stdtrit(n - 1, 0.975))
    return t * result.std * (1 / n + 1 / count) ** 0.5


def lines(verdicts: Mapping[str, Verdict]) -> list[str]:
    """What a person reads of ``verify``'s result."""
    told = []
    for name, verdict in verdicts.items():
        for when, result in (
            ("recorded", verdict.recorded),
            ("now", verdict.found),
        ):
            told.append(f"{when:9}{scores.line(name, result)}")
        count = len(verdict.recorded.accuracy)
        told.append(
            f"by these, the mean of {count} more lies in "
            f"{100 * verdict.low:.2f} .. {100 * verdict.high:.2f} % (95%): the "
            f"recorded one {'agrees' if verdict.agrees else 'does not agree'}"
        )
        if verdict.same_data is False:
            told.append(
                "the test images are not the ones of the recorded score, bit "
                "for bit"
            )
    return told


def _settings_of(found: artifact.Artifact, data_dir: str) -> Settings:
    config = found.metadata.get("config")
    if found.metadata.get("method") != "IADD" or not isinstance(config, dict):
        raise InputError(
            "the file records no score of its own images: name one that "
            "experiments/iadd.py wrote, or test it with experiments/evaluate.py"
        )
    more = {"data.data_dir": data_dir} if data_dir else {}
    return Settings.of(config | more)


def _recorded_of(
    found: artifact.Artifact, metric: str
) -> dict[str, evaluate.EvalResult]:
    """The recorded accuracies by network's name."""
    try:
        table = found.metadata["scores"]["distilled"]
        if metric != "accuracy":
            table = {name: score[metric] for name, score in table.items()}
        recorded = {
            name: np.asarray(score["accuracies"], np.float64)
            for name, score in table.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        recorded = {}
    whole = all(
        values.ndim == 1
        and values.size
        and ((0 <= values) & (values <= 1)).all()
        for values in recorded.values()
    )
    if not recorded or not whole:
        raise InputError(
            "the file records no accuracies of its images: take the file of a "
            "finished run"
        )
    return {
        name: evaluate.summarise(values) for name, values in recorded.items()
    }


def _recipe_of(found: artifact.Artifact) -> training.Recipe:
    """The recorded one; its fields are of the types that they should be."""
    recorded = found.metadata.get("evaluation")
    try:
        recipe = training.Recipe(**recorded)
        groups = augment.parse("_".join(recipe.augment))
    except (TypeError, InputError):
        recipe, groups = None, ()
    if recipe is not None:
        recipe = recipe._replace(augment=groups)
    wrong = recipe is None or any(
        isinstance(value, bool) != isinstance(default, bool)
        or not isinstance(value, int | type(default))
        for value, default in zip(recipe, training.Recipe(1, 1))
    )
    if wrong or min(recipe.epochs, recipe.batch_size) < 1:
        raise InputError(
            "the file records no recipe that networks can be trained by: take "
            "the file of a finished run"
        )
    return recipe
