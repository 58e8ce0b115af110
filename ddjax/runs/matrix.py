"""One distilled file on many networks, beside what needs no distillation.

A cell is a row (what is trained on) and a network. Cells are files, written as
they are done, so that a run that was stopped goes on; whatever shapes a cell is
in its file's name, so that a changed file or recipe is another cell.

    distilled                 the file's images, at its learning rate
    distilled_hard            the same with hard labels, where it has soft ones
    distilled_unaugmented     the same without augmentation
    random_real               as many real images, each network its own
    random_real_unaugmented   the same without augmentation
    herding k_centre class_means    picks, see ``baselines``
    full_data                 the ceiling, see ``ceiling``

The learning rate of real images and means is the best of ``RATES`` and
``evaluate.real_learning_rate`` for one network on held-out images: the
benchmark of Li et al. ("DD-Ranking", arXiv 2505.13300) searches the rate of
random images among the same, on test images. The file's images keep their own
rate on every network, as trajectory matching is compared across architectures
(Cazenavette et al., CVPR 2022), unless ``evaluate.search`` is "all".

All images but those of full_data go through the file's own preprocessing.
Herding and k-centre see the features of the config's network after
``ceiling.FIRST_STEPS`` steps on the real images.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import artifact, augment, evaluate, files, models, training
from ddjax.data import preprocess, sources
from ddjax.pages import matrix as page
from ddjax.runs import (
    baselines,
    ceiling,
    cells,
    loop,
    prepare,
    scores,
    workdir,
)
from ddjax.settings import BASELINES, Settings
from ddjax.types import Batch, InputError

__all__ = [
    "RATES",
    "Subject",
    "describe",
    "digest_of",
    "opened",
    "robust_scores",
    "run",
    "seeing",
    "subject_of",
]

RATES = (0.001, 0.005, 0.01, 0.05, 0.1)
"""Learning rates to choose from, the benchmark's."""

# What keys are folded with; the numbers are names. The first is that of
# ``iadd.test_again``: the same networks.
_DISTILLED, _SEARCH, _FEATURES = 4, 8, 9


class Subject(NamedTuple):
    """What is tested, and what it is tested on.

    Attributes:
      settings: the evaluate part, the seed count and what the data are.
      found: the distilled file.
      task: the data; preprocessed as the config has it.
      teachers: the folder that ceilings are shared in.
    """

    settings: Settings
    found: artifact.Artifact
    task: prepare.Task
    teachers: Path

    @property
    def ipc(self) -> int:
        """Images per class of what stands beside it: as many, rounded."""
        count, k = self.found.labels.shape
        return max(1, round(count / k))

    @property
    def as_file(self) -> prepare.Task:
        """The task, preprocessed as the file has it."""
        return self.task._replace(preprocessing=self.found.preprocessing)


class Cell(NamedTuple):
    """How a cell is filled, but for that of full_data.

    Attributes:
      train: rate -> EvalResult on the test images.
      sample: () -> what one network is trained on, of the search.
      recipe: how.
      rate: the first to try, and the only one where none is searched.
      searched: whether it is.
    """

    train: Callable[[float], evaluate.EvalResult]
    sample: Callable[[], Any]
    recipe: training.Recipe
    rate: float
    searched: bool


def run(
    settings: Settings,
    path: Path,
    folder: Path,
    shared: workdir.Shared,
    command: str = "",
) -> None:
    """Fills the matrix of a file, writes matrix.json and matrix.html, and
    prints the table and the scores.

    Args:
      settings: the data, the model, the evaluate part and the seed count.
      path: of the file, or of a run's folder.
      folder: for the cells and the page; made if need be.
      shared: where data and the ceilings of other runs lie.
      command: what repeats this, for the page.

    Raises:
      InputError: the file is damaged or not of the config's data, or a
        network does not take its images.
    """
    path, subject = subject_of(settings, path, shared)
    task, found = subject.task, subject.found
    # Of all networks, before the first is trained.
    tests = list(scores.tests_of(task, settings.evaluate, found.preprocessing))
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    table = fill(subject, tests, folder / "cells")
    scores.add_gains(table)
    content = {
        "file": describe(path, found),
        "ipc": subject.ipc,
        "rows": table,
        "scores": {
            name: robust_scores({row: by[name] for row, by in table.items()})
            for name, *_ in tests
        },
        "config": workdir.described(settings, "iadd"),
        "command": command,
        **workdir.made_with(),
    }
    files.write_json(folder / "matrix.json", content)
    page.write_page(folder)
    scores.print_table(table, settings.evaluate.metric)
    for name, found_ in content["scores"].items():
        print(score_line(name, found_))
    print("0.269 is neutral: IOR = HLR, or as good as random real images")
    print(f"page: {folder / 'matrix.html'}")


def subject_of(
    settings: Settings, path: Path, shared: workdir.Shared
) -> tuple[Path, Subject]:
    """A distilled file beside the config's data.

    Args:
      settings: the data, the model, the evaluate part and the seed count.
      path: of the file, or of a run's folder.
      shared: where data and the ceilings of other runs lie.

    Returns:
      (the path of the file, what is tested).

    Raises:
      InputError: the file is damaged or not of the config's data, or these
        have fewer images of a class than the file.
    """
    if settings.minutes:
        raise InputError(
            "minutes= plans runs of experiments/iadd.py, and does nothing for "
            "--distilled=: leave it out"
        )
    path, found = opened(path)
    task = prepare.task(
        settings.data, settings.model, settings.seed, shared.data
    )
    prepare.check_distilled(found, task)
    subject = Subject(settings, found, task, shared.teachers)
    train = task.splits.train
    fewest = np.bincount(train.labels, minlength=task.num_classes).min()
    if fewest < subject.ipc:
        raise InputError(
            f"the distilled file has {subject.ipc} images per class, and a "
            f"class of the config's data only {fewest} to compare them with: "
            "name the config that they were made with"
        )
    return path, subject


def opened(path: Path) -> tuple[Path, artifact.Artifact]:
    """A distilled file, and what it holds.

    Args:
      path: of it, or of its run's folder.

    Raises:
      InputError: it is missing or damaged, or holds a generator.
    """
    if path.is_dir():
        path = path / "distilled.npz"
        if not path.exists():
            raise InputError(
                f"{path.parent} holds no distilled.npz: name the folder of a "
                "finished run, or take in others' images with "
                "experiments/import_images.py first"
            )
    if path.exists() and artifact.is_generator(path):
        raise InputError(
            f"{path} holds a generator: make images of it first with "
            "experiments/generate.py"
        )
    return path, artifact.load(path)


def describe(path: Path, found: artifact.Artifact) -> dict[str, Any]:
    """What matrix.json and others say of the file."""
    metadata = found.metadata
    return {
        "path": str(path),
        "sha256": files.sha256(path),
        "shape": list(found.images.shape),
        "classes": list(metadata["class_names"]),
        "soft": _is_soft(found.labels),
        "learning_rate": found.learning_rate,
        "method": str(metadata.get("method", "")),
    }


def _is_soft(labels: np.ndarray) -> bool:
    """Whether labels [n k] are more than classes."""
    return not np.allclose(labels, scores.hardened(labels))


# Cells -----------------------------------------------------------------------


def fill(
    subject: Subject,
    tests: Sequence[tuple[str, Any, scores.Score]],
    folder: Path,
) -> dict[str, dict[str, Any]]:
    """{row: {network: result}} of all cells; those that are there are read.

    Args:
      subject: what is tested.
      tests: of ``scores.tests_of``.
      folder: of the cells.
    """
    table: dict[str, dict[str, Any]] = {}
    pick = functools.cache(lambda: picks(subject))
    rows = [rows_of(subject, score, pick) for _, _, score in tests]
    bar = loop.progress("test", sum(map(len, rows)), unit="cell")
    for (name, module, score), by_row in zip(tests, rows):
        for row, cell in by_row.items():
            how = shaping(subject, module, row, cell)
            path = cells.path_of(folder, f"{row}-{name}", how)
            result = kept(path)
            if result is None:
                if cell is None:
                    whole, more = ceiling.full_data(
                        subject.settings,
                        subject.task,
                        name,
                        module,
                        score,
                        subject.teachers,
                    )
                    result = scores.as_json(whole) | more
                elif twin := _twin(row, name, table, pick):
                    result = twin
                else:
                    result = filled(subject, module, cell)
                cells.write(path, result, how)
                told = evaluate.summarise(result["accuracies"])
                bar.write(f"{row:23}  {scores.line(name, told)}")
            table.setdefault(row, {})[name] = result
            bar.update()
    bar.close()
    return table


def _twin(row, name, table, pick):
    """The result of a row that has this one's images, where both are picks: at
    one a class k-centre's are herding's."""
    if row not in BASELINES:
        return None
    for other in BASELINES:
        if name in table.get(other, {}) and all(
            map(np.array_equal, pick()[other], pick()[row])
        ):
            return table[other][name]
    return None


def rows_of(
    subject: Subject, score: scores.Score, pick: Callable[[], Any]
) -> dict[str, Cell | None]:
    """The rows of a network, in their order; full_data has no Cell.

    Args:
      subject: what is tested.
      score: of the network.
      pick: () -> {name: Batch} of ``baselines``.
    """
    settings, found = subject.settings, subject.found
    part, seed = settings.evaluate, jax.random.key(settings.seed)
    recipe = scores.recipe_of(part)
    plain = recipe._replace(augment=())

    def at(rate):
        return settings.changed({"evaluate.real_learning_rate": rate})

    def distilled(labels, recipe):
        inputs = preprocess.apply(found.preprocessing, found.images)
        data = evaluate.stored(inputs, labels)

        def train(rate):
            return score(
                jax.random.fold_in(seed, _DISTILLED),
                data,
                recipe=recipe,
                learning_rate=rate,
                num_networks=part.networks,
            )

        searched = part.search == "all"
        return Cell(train, lambda: data, recipe, found.learning_rate, searched)

    def real(train, sample, recipe):
        rate, searched = part.real_learning_rate, part.search != "none"
        return Cell(train, sample, recipe, rate, searched)

    def random(recipe):
        key, ipc = jax.random.fold_in(seed, _SEARCH), subject.ipc
        task = subject.as_file
        return real(
            lambda rate: scores.random_real(at(rate), task, score, recipe, ipc),
            lambda: evaluate.stored(*task.real_images(key, ipc)),
            recipe,
        )

    def picked(name):
        def data():
            return evaluate.stored(*pick()[name])

        return real(
            lambda rate: scores.given_real(at(rate), score, recipe, data()),
            data,
            recipe,
        )

    labels = scores.labels_of(found.labels, part)
    hard = scores.hardened(found.labels)
    rows: dict[str, Cell | None] = {"distilled": distilled(labels, recipe)}
    if _is_soft(found.labels) and part.labels == "soft":
        rows["distilled_hard"] = distilled(hard, recipe)
    if recipe.augment:
        rows["distilled_unaugmented"] = distilled(labels, plain)
    rows["random_real"] = random(recipe)
    if recipe.augment:
        rows["random_real_unaugmented"] = random(plain)
    for name in part.baseline_names:
        rows[name] = picked(name)
    return rows | {"full_data": None}


def shaping(
    subject: Subject, module: Any, row: str, cell: Cell | None
) -> dict[str, Any]:
    """JSON-able: all that makes a cell what it is."""
    settings, task, found = subject.settings, subject.task, subject.found
    part = settings.evaluate
    how = {
        "data": sources.fingerprint(*task.splits),
        "network": repr(module),
        "networks": part.networks,
        "metric": part.metric,
        "seed": settings.seed,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
    }
    if cell is None:
        return how | {
            "preprocess": settings.data.preprocess,
            "augment": part.augment,
            "full_steps": part.full_steps,
        }
    how |= {
        "preprocess": digest_of(
            *preprocess.arrays(found.preprocessing).values()
        ),
        "recipe": cell.recipe._asdict(),
        "rate": cell.rate,
        "rates": RATES if cell.searched else None,
    }
    if row.startswith("distilled"):
        hard = row == "distilled_hard" or part.labels == "hard"
        labels = scores.hardened(found.labels) if hard else found.labels
        return how | {"file": digest_of(found.images, labels)}
    by = None if row.startswith("random_real") else repr(task.module)
    return how | {"ipc": subject.ipc, "picked_by": by}


def digest_of(*arrays: np.ndarray) -> str:
    """A checksum of arrays, in hexadecimal."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def kept(path: Path) -> dict[str, Any] | None:
    """A cell's result; None where it is not there, or damaged."""
    result = cells.read(path)
    if result is None:
        return None
    try:
        for part in (result, result["balanced_accuracy"]):
            evaluate.summarise(part["accuracies"])
            float(part["mean"]), float(part["std"]), float(part["ci95"])
    except (ValueError, KeyError, TypeError):
        return None
    return result


def filled(subject: Subject, module: Any, cell: Cell) -> dict[str, Any]:
    """A cell's result, its learning rate and what was searched for it."""
    settings = subject.settings
    rate, searched = cell.rate, {}
    if cell.searched:
        held_out = scores.held_out(subject.as_file, module)
        key = jax.random.fold_in(jax.random.key(settings.seed), _SEARCH)
        data = cell.sample()
        for tried in dict.fromkeys((cell.rate, *RATES)):
            result = held_out(
                key,
                data,
                recipe=cell.recipe,
                learning_rate=tried,
                num_networks=1,
            )
            result = scores.by_metric(result, settings.evaluate.metric)
            searched[tried] = result.mean
        # The first of equals.
        rate = max(searched, key=searched.get)
    return scores.as_json(cell.train(rate)) | {
        "learning_rate": rate,
        "searched": [list(pair) for pair in searched.items()],
    }


def picks(subject: Subject) -> dict[str, Batch]:
    """{name: Batch} of the baselines that are asked for."""
    task, part = subject.as_file, subject.settings.evaluate
    names = part.baseline_names
    found = baselines.pick(names, task, seeing(subject), [subject.ipc])
    return found[subject.ipc]


def seeing(subject: Subject) -> Any:
    """Params of the config's network, trained for a while on real images."""
    task, settings = subject.as_file, subject.settings
    init_key, train_key = jax.random.split(
        jax.random.fold_in(jax.random.key(settings.seed), _FEATURES)
    )
    data, left = task.training_data()
    train = training.train_streamed
    if isinstance(data, Batch):
        train, data = training.train, evaluate.stored(*data)
    return train(
        train_key,
        models.init_params(task.module, init_key, task.image_shape),
        data,
        jnp.float32(ceiling.RATES[0]),
        module=task.module,
        recipe=training.Recipe(
            epochs=1,
            batch_size=ceiling.BATCH,
            momentum=0.9,
            weight_decay=5e-4,
            augment=augment.parse(settings.evaluate.augment),
            epoch_steps=ceiling.FIRST_STEPS,
            cosine=True,
        ),
        preprocessing=left,
    )


# Scores ----------------------------------------------------------------------


def robust_scores(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The benchmark's scores of one network, with 95% intervals.

    HLR and IOR are differences of accuracies as shares. LRS and ARS, see
    ``evaluate.robust_score``, rise with a weighted sum of mean accuracies, so
    that the ends of its interval, see ``evaluate.contrast``, are the ends of
    theirs. Network i of two distilled rows begins with the same parameters, and
    so does that of two random rows: where a score takes both rows, they count
    as one of their networks' means. ARS needs both rows without augmentation;
    where nothing is augmented they are the rows with it.

    Args:
      rows: {row: result} with distilled, random_real and full_data.

    Returns:
      {"hlr", "ior", "lrs", "ars"}, each {mean, low, high}; the ends are None
      where a row has one network.
    """

    def both(*names):
        known = [name for name in names if name in rows]
        return np.mean([rows[name]["accuracies"] for name in known], axis=0)

    def score(*sides):
        found = evaluate.contrast(*sides)
        return {
            name: None if value is None else evaluate.robust_score(value)
            for name, value in found._asdict().items()
        }

    distilled, real, whole = (
        rows[name]["accuracies"]
        for name in ("distilled", "random_real", "full_data")
    )
    hard = rows.get("distilled_hard", rows["distilled"])["accuracies"]
    return {
        "hlr": evaluate.difference(whole, hard)._asdict(),
        "ior": evaluate.difference(distilled, real)._asdict(),
        # (IOR - HLR) / 2, and the mean gain with and without augmentation.
        "lrs": score(
            (1.0, both("distilled", "distilled_hard")),
            (-0.5, real),
            (-0.5, whole),
        ),
        "ars": score(
            (1.0, both("distilled", "distilled_unaugmented")),
            (-1.0, both("random_real", "random_real_unaugmented")),
        ),
    }


def score_line(model: str, found: Mapping[str, Any]) -> str:
    """One line for a person; HLR and IOR in points."""

    def told(name, scale, form):
        values = [found[name][end] for end in ("mean", "low", "high")]
        if None in values:
            return f"{name.upper()} {scale * values[0]:{form}}"
        mean, low, high = (f"{scale * value:{form}}" for value in values)
        return f"{name.upper()} {mean} ({low} .. {high})"

    return "  ".join(
        (
            f"{model:8}",
            told("hlr", 100, ".2f"),
            told("ior", 100, "+.2f"),
            told("lrs", 1, ".3f"),
            told("ars", 1, ".3f"),
        )
    )
