"""Whether a distilled file's recorded scores can be had again."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.special

from ddjax import artifact, augment, evaluate, training
from ddjax.data import preprocess, sources
from ddjax.runs import prepare, protocols, scores
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
        were recorded lies by what the fresh ones tell; 95 times of 100 all
        means that are asked about lie in theirs (Bonferroni).
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

    def __repr__(self) -> str:
        recorded, found = (
            f"{100 * r.mean:.2f} +- {100 * r.ci95:.2f} %"
            for r in (self.recorded, self.found)
        )
        agrees = "agrees" if self.agrees else "does not agree"
        return f"<recorded {recorded}, now {found}: {agrees}>"


def verify(
    found: artifact.Artifact | artifact.GeneratorArtifact,
    *,
    data_folder: Path,
    data_dir: str = "",
    networks: int = 0,
    seed: int = 0,
) -> dict[str, Verdict]:
    """Trains fresh networks as a distilled file says, and tests them.

    Of a generator, by both protocols at every number of images of its config;
    chosen images need the run's teachers, and are left out.

    Args:
      found: the file's content.
      data_folder: the parent of all prepared data.
      data_dir: where the data lie, if not where the file's config says.
      networks: how many, at least 2; as many as were recorded by default.
      seed: of the fresh networks, and of a generator's noise.

    Returns:
      {network's name: Verdict}; of a generator the names go on with what it
      was trained on, as in "convnet stored/10".

    Raises:
      InputError: the file records no score or no recipe, or the data are
        missing or of another kind.
    """
    generated = isinstance(found, artifact.GeneratorArtifact)
    settings = _settings_of(found, data_dir)
    recorded = _recorded_of(found.metadata, settings)
    # Before the data: that it is missing is told at once.
    recipe = None if generated else _recipe_of(found.metadata)
    if networks and networks < 2:
        raise InputError(
            f"--networks must be at least 2, for an interval, not {networks}"
        )
    if not 0 <= seed < 1 << 32:
        raise InputError(f"--seed must lie in 0..2**32 - 1, not at {seed}")
    task = prepare.task(
        settings.data, settings.model, settings.seed, data_folder
    )
    shape = found.apply.image_shape if generated else found.images.shape[1:]
    if shape != task.image_shape:
        raise InputError(
            f"the distilled images are of {shape}, the data of "
            f"{task.image_shape}: name their own data with --data_dir"
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
    count = networks or max(2, *(len(r.accuracy) for r in recorded.values()))
    if generated:
        results = _test_generator(key, found, task, settings, count)
    else:
        results = _test_images(key, found, task, settings, count, recipe)
    verdicts = {}
    for name, result in results:
        half = _half_width(result, len(recorded[name].accuracy), len(recorded))
        # A score is no finer than one test image.
        half = max(half, 1 / len(task.splits.test.labels))
        verdicts[name] = Verdict(
            recorded[name],
            result,
            result.mean - half,
            result.mean + half,
            same,
        )
    return verdicts


def _test_images(key, found, task, settings, count, recipe):
    """(name, EvalResult) of each network, trained on the file's images."""
    data = evaluate.stored(
        preprocess.apply(found.preprocessing, found.images), found.labels
    )
    for name, _, score in scores.tests_of(
        task, settings.evaluate, found.preprocessing
    ):
        result = score(
            key,
            data,
            recipe=recipe,
            learning_rate=found.learning_rate,
            num_networks=count,
        )
        yield name, scores.by_metric(result, settings.evaluate.metric)


def _test_generator(key, found, task, settings, count):
    """The same of networks trained on what a generator makes."""
    table = protocols.generated_scores(
        settings.changed({"evaluate.networks": count}),
        task,
        found,
        {"distilled": found.params},
        key=key,
    )
    metric = settings.evaluate.metric
    for row, by_network in table.items():
        for network, score in by_network.items():
            told = score if metric == "accuracy" else score[metric]
            yield (
                _name(row, network),
                evaluate.summarise(told["accuracies"]),
            )


def _half_width(
    result: evaluate.EvalResult, count: int, means: int = 1
) -> float:
    """Of the interval for the mean of ``count`` further networks; so many
    means all lie in theirs in 95 of 100 cases, or more."""
    n = len(result.accuracy)
    t = float(scipy.special.stdtrit(n - 1, 1 - 0.025 / means))
    return t * result.std * (1 / n + 1 / count) ** 0.5


def lines(verdicts: Mapping[str, Verdict]) -> list[str]:
    """What a person reads of ``verify``'s result."""
    told = []
    share = "95%" if len(verdicts) == 1 else "95% for all together"
    for name, verdict in verdicts.items():
        for when, result in (
            ("recorded", verdict.recorded),
            ("now", verdict.found),
        ):
            told.append(f"{when:9}{scores.line(name, result)}")
        count = len(verdict.recorded.accuracy)
        low, high = 100 * verdict.low, 100 * verdict.high
        told.append(
            f"by these, the mean of {count} more lies in "
            f"{low:.2f} .. {high:.2f} % ({share}): the "
            f"recorded one {'agrees' if verdict.agrees else 'does not agree'}"
        )
        if verdict.same_data is False:
            told.append(
                "the test images are not the ones of the recorded score, bit "
                "for bit"
            )
    return told


def _settings_of(found: Any, data_dir: str) -> Settings:
    config = found.metadata.get("config")
    method = found.metadata.get("method")
    if not isinstance(config, dict) or method != _METHODS[type(found)]:
        raise InputError(
            "the file records no score of its own images: name one that "
            "experiments/iadd.py or d2m.py wrote, or test it with "
            "experiments/evaluate.py"
        )
    more = {"data.data_dir": data_dir} if data_dir else {}
    return Settings.of(config | more)


_METHODS = {artifact.Artifact: "IADD", artifact.GeneratorArtifact: "D2M"}


def _name(row: str, network: str) -> str:
    """Of what is tested; images have one row, a generator has several."""
    protocol = row.removesuffix("distilled").removesuffix("/")
    return f"{network} {protocol}".strip()


def _recorded_of(
    metadata: Mapping[str, Any], settings: Settings
) -> dict[str, evaluate.EvalResult]:
    """What is recorded of the networks of the file's config."""
    rows, metric = ["distilled"], settings.evaluate.metric
    if metadata["method"] == "D2M":
        rows = [
            *(f"stored/{n}/distilled" for n in protocols.recipes_of(settings)),
            f"stream/{settings.d2m.stream_ipc}/distilled",
        ]
    recorded = {}
    for row, network in itertools.product(rows, settings.evaluate.model_names):
        name = _name(row, network)
        try:
            score = metadata["scores"][row][network]
            score = score if metric == "accuracy" else score[metric]
            values = np.asarray(score["accuracies"], np.float64)
            whole = values.ndim == 1 and values.size
            whole = whole and ((0 <= values) & (values <= 1)).all()
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise InputError(
                f"the file records no accuracies of {name}, which its config "
                "names: take the file of a finished run"
            )
        recorded[name] = evaluate.summarise(values)
    return recorded


def _recipe_of(metadata: Mapping[str, Any]) -> training.Recipe:
    """The recorded one; its fields are of the types that they should be."""
    recorded = metadata.get("evaluation")
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
