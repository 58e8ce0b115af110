"""Which ConvNet is best, asked of a few images in place of all.

Networks of a grid are trained on proxies of the data, each of as many images,
and on the data themselves; a proxy is good where it puts the networks into the
order that the data put them into.

    distilled       the file's images, at its learning rate
    random_real     real images drawn at random, the same for all networks
    herding k_centre class_means    picks, see ``baselines``
    full_data       all training images, ``nas.full_steps`` of them

The grid is that of Zhao et al., "Dataset Condensation with Gradient Matching"
(ICLR 2021). Every network has the same keys on all sources; real images, few
or all, are trained on at ``evaluate.real_learning_rate``, one rate for all.

A network is tested on the held-out training images and on the test images. A
search may see the first alone: by them each proxy picks its network. The rank
correlation is given on both, as the field reports it on test images.

A cell is a network and what it is trained on. Cells are files, written as they
are done, so that a run that was stopped goes on.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from ddjax import augment, evaluate, files, models, training
from ddjax.data import preprocess, sources
from ddjax.pages import nas as page
from ddjax.runs import (
    baselines,
    ceiling,
    cells,
    loop,
    matrix,
    prepare,
    scores,
)
from ddjax.runs import workdir as workdirs
from ddjax.settings import Nas, Settings
from ddjax.types import Batch, InputError

__all__ = [
    "Network",
    "correlations",
    "grid",
    "interval",
    "pick",
    "run",
    "spearman",
]

ON = "held_out", "test"
"""What networks are tested on, in the order of a cell."""

CLOCKS = "seconds", "processor_seconds"
"""What times of a cell are told by."""

PHASES = "prepare", "compile", "train", "test"
"""What a cell's time goes into; the data are prepared for all networks."""

RESAMPLES = 2000
"""Of the networks, for an interval."""

# What keys are folded with; the numbers are names.
_RANDOM_REAL, _TRAIN, _PICK, _BOOTSTRAP = 5, 10, 11, 12

# Images that are tested at a time, in one program whatever their number.
_AT_ONCE = 256


class Network(NamedTuple):
    """A network of the grid: fields of a ConvNet, in its order."""

    width: int
    depth: int
    norm: str
    activation: str
    pooling: str

    @property
    def name(self) -> str:
        """As files and pages call it."""
        return (
            f"w{self.width}-d{self.depth}-{self.norm}-{self.activation}-"
            f"{self.pooling}"
        )


class Source(NamedTuple):
    """What networks are trained on, and how.

    Attributes:
      data: () -> (sample_fn or Stream, what is left to bring its images to
        network input, [2] seconds that it took to make it).
      recipe: of the training.
      rate: of the first step.
      seen_as: the preprocessing of what networks are tested on.
      how: JSON-able, all that makes the data what they are.
    """

    data: Callable[[], tuple[Any, Any, np.ndarray]]
    recipe: training.Recipe
    rate: float
    seen_as: Any
    how: dict[str, Any]


def run(
    settings: Settings,
    path: Path,
    folder: Path,
    shared: workdirs.Shared,
    command: str = "",
) -> None:
    """Ranks the networks by every proxy, writes nas.json and nas.html, and
    prints correlations and picks.

    Args:
      settings: the data, the model that picks by features, the evaluate and
        the nas part, and the seed.
      path: of a distilled file, or of a run's folder.
      folder: for the cells and the page; made if need be.
      shared: where data lie.
      command: what repeats this, for the page.

    Raises:
      InputError: the file is damaged or not of the config's data, or no
        network of the grid takes its images.
    """
    path, subject = matrix.subject_of(settings, path, shared)
    part, task = settings.nas, subject.task
    whole = grid(part)
    fit = _fitting(task)
    buildable = [network for network in whole if fit(network)]
    if not buildable:
        raise InputError(
            f"none of the {len(whole)} networks of the grid takes images of "
            f"{task.image_shape[0]} x {task.image_shape[1]}: add smaller "
            "numbers to nas.depths"
        )
    seed = jax.random.key(settings.seed)
    networks = pick(buildable, part.networks, jax.random.fold_in(seed, _PICK))
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    table = fill(subject, networks, folder / "cells")
    proxies = ["distilled", *part.proxy_names]
    content = {
        "file": matrix.describe(path, subject.found),
        "ipc": subject.ipc,
        "grid": {
            "networks": len(whole),
            "too_deep": len(whole) - len(buildable),
        },
        "images": {
            "held_out": len(task.splits.held_out.labels),
            "test": len(task.splits.test.labels),
            "train": len(task.splits.train.labels),
        },
        "metric": settings.evaluate.metric,
        "seeds": part.seeds,
        "networks": [
            {"name": network.name, **network._asdict(), **by}
            for network, by in zip(networks, table)
        ],
        "correlations": correlations(
            jax.random.fold_in(seed, _BOOTSTRAP),
            {
                name: {on: [by[name][on] for by in table] for on in ON}
                for name in (*proxies, "full_data")
            },
            part.best_counts,
        ),
        "picks": _picks(networks, table),
        "costs": {name: _cost(table, name) for name in table[0]},
        "config": workdirs.described(settings, "nas"),
        "command": command,
        **workdirs.made_with(),
    }
    files.write_json(folder / "nas.json", content)
    page.write_page(folder)
    _tell(content)
    print(f"page: {folder / 'nas.html'}")


# The grid --------------------------------------------------------------------


def grid(part: Nas) -> list[Network]:
    """Every combination of the lists, the last of them running fastest."""
    return [
        Network(*values) for values in itertools.product(*part.axes.values())
    ]


def pick(
    networks: Sequence[Network], count: int, key: jax.Array
) -> list[Network]:
    """So many of the networks, spread evenly over them; all, if fewer.

    One after another, each the one whose values, and then whose pairs of
    values, have been picked least for how often they occur; among equals the
    key decides. Fewer picks are the first of more.

    Args:
      networks: to pick from.
      count: of the picks.
      key: one key.
    """
    shuffled = np.asarray(jax.random.permutation(key, len(networks)))
    networks = [networks[i] for i in shuffled]
    kinds = [_shares(networks, together) for together in (1, 2)]
    used = [np.zeros(kind.shape[1]) for kind in kinds]
    free = np.ones(len(networks), bool)
    chosen = []
    for _ in range(min(count, len(networks))):
        # Rounded: sums of the same numbers are to be the same.
        first, second = ((k @ u).round(9) for k, u in zip(kinds, used))
        best = np.lexsort((second, first, ~free))[0]
        free[best] = False
        for kind, times in zip(kinds, used):
            times += kind[best] > 0
        chosen.append(networks[best])
    return chosen


def _shares(networks: Sequence[Network], together: int) -> np.ndarray:
    """[n f]: of what combines so many fields, 1 / its count where it is
    there."""
    columns = []
    for fields in itertools.combinations(range(len(Network._fields)), together):
        values = [tuple(network[i] for i in fields) for network in networks]
        for value in dict.fromkeys(values):
            there = np.array([other == value for other in values])
            columns.append(there / there.sum())
    return np.stack(columns, axis=1)


def _build(task: prepare.Task, network: Network) -> Any:
    return models.build(
        "convnet", num_classes=task.num_classes, **network._asdict()
    )


def _fitting(task: prepare.Task) -> Callable[[Network], bool]:
    """Whether a network takes the images."""

    # A width, a norm or an activation does not change the size of an image.
    @functools.cache
    def fits(depth, pooling):
        module = models.build(
            "convnet",
            num_classes=task.num_classes,
            width=1,
            depth=depth,
            pooling=pooling,
        )
        try:
            prepare.check_fits(module, task.image_shape)
        except InputError:
            return False
        return True

    return lambda network: fits(network.depth, network.pooling)


# Cells -----------------------------------------------------------------------


def fill(
    subject: matrix.Subject, networks: Sequence[Network], folder: Path
) -> list[dict[str, dict[str, Any]]]:
    """[{source: result}] of the networks; cells that are there are read.

    Args:
      subject: what the file is, and what it is tested on.
      networks: of ``pick``.
      folder: of the cells.
    """
    sources_ = _sources(subject)
    always = {
        "data": sources.fingerprint(*subject.task.splits),
        "metric": subject.settings.evaluate.metric,
        "seeds": subject.settings.nas.seeds,
        "seed": subject.settings.seed,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
    }
    table = []
    bar = loop.progress("train", len(networks), unit="network")
    for network in networks:
        module = _build(subject.task, network)
        programs = _Programs(module)
        results = {}
        for name, source in sources_.items():
            how = {
                **always,
                **source.how,
                "network": repr(module),
                "recipe": source.recipe._asdict(),
                "rate": source.rate,
                "preprocess": matrix.digest_of(
                    *preprocess.arrays(source.seen_as).values()
                ),
            }
            path = cells.path_of(folder, f"{name}-{network.name}", how)
            result = _kept(path)
            if result is None:
                result = _filled(subject, source, programs)
                cells.write(path, result, how)
            results[name] = result
        told = (
            f"{name} {100 * result['held_out']:.1f}"
            for name, result in results.items()
        )
        bar.write(f"{network.name:38} {'  '.join(told)}")
        table.append(results)
        bar.update()
    bar.close()
    return table


def _sources(subject: matrix.Subject) -> dict[str, Source]:
    """{name: Source}; full_data comes last."""
    settings, found, task = subject.settings, subject.found, subject.task
    part, seed = settings.evaluate, jax.random.key(settings.seed)
    recipe = scores.recipe_of(part)._replace(epochs=settings.nas.epochs)
    as_file, rate = subject.as_file, part.real_learning_rate
    labels = scores.labels_of(found.labels, part)

    def timed(make):
        @functools.cache
        def made():
            begin = _now()
            sample, left = make()
            return sample, left, _now() - begin

        return made

    def proxy(make, rate, how):
        def stored():
            inputs, labels = make()
            sample = evaluate.stored(
                np.asarray(inputs, np.float32), np.asarray(labels, np.float32)
            )
            return sample, None

        return Source(timed(stored), recipe, rate, found.preprocessing, how)

    def random():
        key = jax.random.fold_in(seed, _RANDOM_REAL)
        return as_file.real_images(key, subject.ipc)

    def picked(name):
        params = None if name == "class_means" else matrix.seeing(subject)
        by_ipc = baselines.pick([name], as_file, params, [subject.ipc])
        return by_ipc[subject.ipc][name]

    all_ = {
        "distilled": proxy(
            lambda: (
                preprocess.apply(found.preprocessing, found.images),
                labels,
            ),
            found.learning_rate,
            {"file": matrix.digest_of(found.images, labels)},
        )
    }
    for name in settings.nas.proxy_names:
        drawn = name == "random_real"
        all_[name] = proxy(
            random if drawn else functools.partial(picked, name),
            rate,
            {
                "ipc": subject.ipc,
                "picked_by": None if drawn else repr(task.module),
            },
        )

    def full():
        data, left = task.training_data()
        stored = isinstance(data, Batch)
        return (evaluate.stored(*data) if stored else data), left

    all_["full_data"] = Source(
        timed(full), _full_recipe(settings, task), rate, task.preprocessing, {}
    )
    return all_


def _full_recipe(settings: Settings, task: prepare.Task) -> training.Recipe:
    """At most ``nas.full_steps``, in whole epochs where there is one."""
    steps, count = settings.nas.full_steps, len(task.splits.train.labels)
    size = min(ceiling.BATCH, count)
    each = min(steps, training.steps_per_epoch(count, size))
    return training.Recipe(
        epochs=steps // each,
        batch_size=size,
        momentum=0.9,
        weight_decay=5e-4,
        augment=augment.parse(settings.evaluate.augment),
        epoch_steps=each,
        cosine=True,
    )


def _kept(path: Path) -> dict[str, Any] | None:
    """A cell's result; None where it is not there, or damaged."""
    result = cells.read(path)
    if result is None:
        return None
    try:
        numbers = [result[on] for on in ON]
        for clock in CLOCKS:
            numbers += [result[clock][phase] for phase in PHASES]
        if not np.isfinite(np.array(numbers, np.float64)).all():
            return None
    except (ValueError, KeyError, TypeError):
        return None
    return result


def _now() -> np.ndarray:
    """[2], both ``CLOCKS``."""
    return np.array([time.perf_counter(), time.process_time()])


class _Programs:
    """The compiled programs of a network, and what compiling them took.

    A program that several sources share is compiled once, and counts for each
    of them: what is told of a proxy is what a search by it alone takes.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self._made: dict[Any, tuple[Any, np.ndarray]] = {}
        self._used: set[Any] = set()
        self._waited = np.zeros(2)

    def start(self) -> None:
        """What is compiled counts for the next source."""
        self._used.clear()

    def compiling(self) -> np.ndarray:
        """[2] seconds, of all programs called since the start."""
        return sum((self._made[key][1] for key in self._used), np.zeros(2))

    def now(self) -> np.ndarray:
        """[2], both clocks, which stood still while something compiled."""
        return _now() - self._waited

    def call(
        self, function: Any, *inputs: Any, static: Any = (), **named: Any
    ) -> Any:
        """``function(*inputs, **named)``, which is jitted and takes a module.

        Args:
          function: the same for all calls of a kind.
          *inputs: pytrees of arrays.
          static: further keywords, as pairs.
          **named: pytrees of arrays.
        """
        leaves, structure = jax.tree.flatten((inputs, named))
        kinds = tuple((np.shape(leaf), leaf.dtype) for leaf in leaves)
        key = function, structure, kinds, static
        if key not in self._made:
            begin = _now()
            lowered = function.lower(
                *inputs, **named, module=self.module, **dict(static)
            )
            self._made[key] = lowered.compile(), _now() - begin
            self._waited += self._made[key][1]
        self._used.add(key)
        return self._made[key][0](*inputs, **named)


def _filled(
    subject: matrix.Subject, source: Source, programs: _Programs
) -> dict[str, Any]:
    """A cell's scores, and the seconds of each phase by both clocks."""
    settings, splits = subject.settings, subject.task.splits
    sample, left, prepared = source.data()
    key = jax.random.fold_in(jax.random.key(settings.seed), _TRAIN)
    programs.start()
    begin = programs.now()
    trained = []
    for seed in range(settings.nas.seeds):
        init_key, train_key = jax.random.split(jax.random.fold_in(key, seed))
        params = programs.call(
            _init, init_key, static=(("shape", subject.task.image_shape),)
        )
        inputs = train_key, params, sample, jnp.float32(source.rate)
        if isinstance(sample, training.Stream):  # compiled as it is trained
            params = training.train_streamed(
                *inputs,
                module=programs.module,
                recipe=source.recipe,
                preprocessing=left,
            )
        else:
            params = programs.call(
                training.train,
                *inputs,
                static=(("recipe", source.recipe),),
                preprocessing=left,
            )
        trained.append(jax.block_until_ready(params))
    middle = programs.now()
    result: dict[str, Any] = {
        on: np.mean(
            [
                _score(subject, getattr(splits, on), source, params, programs)
                for params in trained
            ]
        ).item()
        for on in ON
    }
    end = programs.now()
    spent = prepared, programs.compiling(), middle - begin, end - middle
    for clock, seconds in zip(CLOCKS, np.transpose(spent).tolist()):
        result[clock] = dict(zip(PHASES, seconds))
    return result


@functools.partial(jax.jit, static_argnames=("module", "shape"))
def _init(key, *, module, shape):
    return models.init_params(module, key, shape)


@functools.partial(jax.jit, static_argnames="module")
def _predict(params, images, preprocessing, *, module):
    return training.predict(
        params, images, module=module, preprocessing=preprocessing
    )


def _score(
    subject: matrix.Subject,
    part: sources.Dataset,
    source: Source,
    params: Any,
    programs: _Programs,
) -> float:
    """What ``evaluate.metric`` says of a trained network on labelled
    images."""
    labels, found = np.asarray(part.labels), []
    for begin in range(0, len(labels), _AT_ONCE):
        images = np.asarray(part.images[begin : begin + _AT_ONCE])
        # All chunks are of one size, for which one program is compiled.
        chunk = np.zeros((_AT_ONCE, *images.shape[1:]), images.dtype)
        chunk[: len(images)] = images
        classes = programs.call(_predict, params, chunk, source.seen_as)
        found.append(np.asarray(classes)[: len(images)])
    hits = np.concatenate(found) == labels
    if subject.settings.evaluate.metric == "accuracy":
        return float(hits.mean())
    recall = [hits[labels == label].mean() for label in np.unique(labels)]
    return float(np.mean(recall))


# How well a proxy ranks ------------------------------------------------------


def spearman(first: Any, second: Any) -> np.ndarray:
    """Spearman's rank correlation, of equals the mean rank.

    Args:
      first: [.. n].
      second: [.. n].

    Returns:
      [..], NaN where one side is constant.
    """
    sides = []
    for values in (first, second):
        ranks = scipy.stats.rankdata(np.asarray(values), axis=-1)
        ranks -= ranks.mean(-1, keepdims=True)
        sides.append(ranks)
    a, b = sides
    spread = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.divide(
        (a * b).sum(-1),
        spread,
        out=np.full_like(spread, np.nan),
        where=spread > 0,
    )


def interval(found: np.ndarray) -> tuple[float | None, float | None]:
    """The 95% interval of what resamples gave, by their percentiles.

    Args:
      found: [r], NaN where a resample told nothing.

    Returns:
      (low, high); None, None where more than half told nothing.
    """
    known = found[~np.isnan(found)]
    if 2 * len(known) <= len(found):
        return None, None
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)


def correlations(
    key: jax.Array,
    scores_of: Mapping[str, Mapping[str, Sequence[float]]],
    best: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """How each proxy ranks networks beside full_data.

    Intervals are those of 2,000 resamples of the networks, drawn with
    replacement and the same for all proxies (percentile bootstrap; Efron,
    Annals of Statistics 7, 1979). They tell of other networks of the same
    grid, and not of other seeds; of a few networks in perfect order they have
    no width.

    Args:
      key: one key; decides the resamples.
      scores_of: {source: {what it was tested on: [n] scores}}, with
        full_data.
      best: numbers of networks, those with the best scores of full_data;
        numbers that are not below n are left out.

    Returns:
      [{"proxy", "on", "networks", "best", "rho", "low", "high"}], where the
      numbers are None if there is nothing to correlate, and for all networks
      of proxies after the first "less": {"rho", "low", "high"}, how far the
      first is above.
    """
    whole = scores_of["full_data"]
    proxies = [name for name in scores_of if name != "full_data"]
    rows = []
    for on, full in whole.items():
        order = np.argsort(-np.asarray(full), kind="stable")
        counts = [n for n in best if n < len(order)]
        for count in (len(order), *counts):
            chosen = order[:count]
            drawn = jax.random.randint(key, (RESAMPLES, count), 0, count)
            drawn = chosen[np.asarray(drawn)]
            ahead = None
            for proxy in proxies:
                pair = np.asarray(scores_of[proxy][on]), np.asarray(full)
                rho = spearman(*(side[chosen] for side in pair))
                found = spearman(*(side[drawn] for side in pair))
                row = {
                    "proxy": proxy,
                    "on": on,
                    "networks": count,
                    "best": count < len(order),
                    **_told(rho, found),
                }
                if ahead is None:
                    ahead = rho, found
                elif count == len(order):
                    row["less"] = _told(ahead[0] - rho, ahead[1] - found)
                rows.append(row)
    return rows


def _told(rho: Any, found: np.ndarray) -> dict[str, float | None]:
    low, high = interval(found)
    rho = None if np.isnan(rho) else float(rho)
    return {"rho": rho, "low": low, "high": high}


def _picks(
    networks: Sequence[Network],
    table: Sequence[Mapping[str, Mapping[str, float]]],
) -> list[dict[str, Any]]:
    """What each source picks by held-out images, the first of equals, and what
    it is worth: the test score after training on all data."""
    worth = np.array([by["full_data"]["test"] for by in table])

    def row(source, index, equals):
        return {
            "by": source,
            "network": networks[index].name,
            "equals": equals,
            "test": float(worth[index]),
            "rank": 1 + int((worth > worth[index]).sum()),
        }

    rows = []
    for source in table[0]:
        held_out = np.array([by[source]["held_out"] for by in table])
        best = held_out == held_out.max()
        rows.append(row(source, int(best.argmax()), int(best.sum())))
    best = worth == worth.max()
    rows.append(row("best", int(best.argmax()), int(best.sum())))
    return rows


def _cost(
    table: Sequence[Mapping[str, Mapping[str, Any]]], source: str
) -> dict[str, dict[str, float]]:
    """{clock: {phase: seconds}} of all networks; prepared for once."""
    costs = {}
    for clock in CLOCKS:
        spent = {
            phase: [by[source][clock][phase] for by in table]
            for phase in PHASES
        }
        costs[clock] = {
            phase: max(values) if phase == "prepare" else sum(values)
            for phase, values in spent.items()
        }
    return costs


def _tell(content: Mapping[str, Any]) -> None:
    """Prints correlations, picks and costs."""
    count = len(content["networks"])
    print(f"Spearman's rank correlation with full_data, {count} networks")
    for row in content["correlations"]:
        if row["rho"] is None:
            continue
        among = f"best {row['networks']}" if row["best"] else "all"
        text = f"{row['proxy']:12} {row['on']:8} {among:8} {row['rho']:+.3f}"
        if row["low"] is not None:
            text += f" (95% interval {row['low']:+.2f} .. {row['high']:+.2f})"
        print(text)
    print(f"test {content['metric'].replace('_', ' ')} of the network picked")
    for row in content["picks"]:
        print(
            f"{row['by']:12} {100 * row['test']:6.2f} %  {row['network']} "
            f"(rank {row['rank']} of {count})"
        )
    for name, clocks in content["costs"].items():
        spent = clocks["seconds"]
        print(
            f"{name:12} {sum(spent.values()):7.0f} s, of which "
            f"{spent['compile']:.0f} compiling"
        )
