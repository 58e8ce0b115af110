"""A plan: what fits into the minutes that a user has, on this machine.

A probe trains one teacher for a while and makes one update, and from what they
took and showed the plan decides how wide the network is, how many teachers
there are and how long they train, what a student is asked to follow, how many
updates are made, and how long networks are tested. The clock decides the plan;
the plan, kept in config.json, decides every byte of the run.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import evaluate, iadd, training, trajectories
from ddjax.data import classes, preprocess
from ddjax.runs import ceiling, prepare, scores, teachers
from ddjax.settings import BASELINES, Evaluate, Settings
from ddjax.types import Batch, InputError, Params, Segment
from ddjax.unroll import minibatch_indices, sgd_unroll

__all__ = [
    "Pilot",
    "Plan",
    "agreement",
    "decide",
    "estimate",
    "first_rate",
    "lines",
]

# An image of an update costs so many of plain training, about.
_UPDATE_COST = 2.2
# Looks, what else stands beside, and epochs of tests: the first that fits.
# Fewer epochs would leave networks on real images half trained.
_TESTS = (
    (2, BASELINES, 500),
    (2, BASELINES, 300),
    (2, BASELINES, 150),
    (2, BASELINES[:1], 150),
    (1, BASELINES[:1], 150),
    (1, (), 150),
)

_SNAPSHOT_STEPS = 20
_BATCH = 50  # distilled images in a student's step, at most
_SPANS = (1, 2, 4)
_MOST_TEACHERS, _LEAST_TEACHERS = 20, 2
_MOST_UPDATES, _FEW_UPDATES, _LEAST_UPDATES = 600, 100, 20
_LEAST_WIDTH = 8
# Of the minutes. What is left, about half, is for the updates.
_UPDATES_SHARE = 0.4
_PILOT_SHARE, _TEACHERS_SHARE, _TESTS_SHARE = 0.07, 0.20, 0.25
_FULL_DATA_SHARE = 0.08
# Imports, data, compilation of what is not measured, and the page.
_FIXED_SECONDS = 25
_CHUNK_STEPS = 4  # teacher's steps that one of a student may stand for, at most


class Plan(NamedTuple):
    """What a run is to be, and what it will take.

    Attributes:
      settings: of the run.
      fields: {dotted name: value} of what was decided.
      seconds: {stage: estimate}.
      memory: bytes at the peak of an update, as XLA plans it.
      disk: bytes of teachers and checkpoints.
    """

    settings: Settings
    fields: dict[str, Any]
    seconds: dict[str, float]
    memory: int
    disk: int

    @property
    def minutes(self) -> float:
        """In all."""
        return sum(self.seconds.values()) / 60


class Pilot(NamedTuple):
    """The first teacher, as far as it was trained to make a plan.

    Attributes:
      snapshots: params at the start and after every snapshot's steps.
      scores: held-out score of each.
      seconds: that the steps from one snapshot to the next take.
    """

    snapshots: list[Params]
    scores: list[float]
    seconds: float


def decide(
    asked: Settings,
    task: prepare.Task,
    fixed: Collection[str] = (),
) -> tuple[Plan, prepare.Task]:
    """Measures this machine and lays the run out.

    Args:
      asked: with ``minutes``.
      task: data, and the network of ``asked``.
      fixed: dotted names that the user has set and the plan leaves alone.

    Returns:
      (the plan, the task with the plan's network).

    Raises:
      InputError: the minutes are too few, or memory or disk do not suffice;
        the sentence names the field to change.
    """
    begin = time.perf_counter()
    total = 60 * asked.minutes
    ipc = asked.iadd.ipc
    while True:
        test = _test_cost(asked, task)
        each = (
            20
            * min(ipc * task.num_classes, _BATCH)
            * test.per_image
            * _UPDATE_COST
        )
        few = _UPDATES_SHARE * total / each < _FEW_UPDATES
        looks, _, epochs = _TESTS[-1]
        least = Evaluate(looks=looks, look_networks=2, baselines="")
        least = _tests(least) * test.seconds(epochs)
        few = few or least > _TESTS_SHARE * total
        width = asked.model.width
        if not few or width // 2 < _LEAST_WIDTH or "model.width" in fixed:
            break
        asked = asked.changed({"model.width": width // 2})
        task = prepare.with_model(task, asked.model)
    plan = _at_width(asked, task, test, fixed, total, begin)
    updates = plan.settings.iadd.iterations
    if updates < _LEAST_UPDATES:
        each = plan.seconds["updates"] / max(updates, 1)
        missing = (_LEAST_UPDATES - updates) * each / 60
        raise InputError(
            f"minutes={asked.minutes:g} leave time for {max(updates, 0)} "
            f"updates of this set on this machine, and {_LEAST_UPDATES} is the "
            f"least: give minutes={math.ceil(plan.minutes + missing)}, or "
            "lower iadd.ipc or data.size"
        )
    _check_room(plan)
    return plan, task


def _at_width(asked, task, test, fixed, total, begin) -> Plan:
    """The plan with the network as it is."""
    images = len(task.splits.train.labels)
    ipc = asked.iadd.ipc
    fields: dict[str, Any] = {"model.width": asked.model.width}

    def put(**values):
        for name, value in values.items():
            name = name.replace("__", ".")
            if name not in fixed:
                fields[name] = value
        return asked.changed(fields)

    # An epoch of at least eight steps, of batches as the literature's at most.
    batch = 2 ** int(math.log2(max(16, min(128, images // 8))))
    planned = put(
        teacher__batch_size=min(batch, images),
        teacher__snapshot_steps=_SNAPSHOT_STEPS,
        iadd__max_start=0,
        iadd__span=1,
    )
    steps = planned.teacher.snapshot_steps or 1
    pilot = fly(planned, task, _PILOT_SHARE * total)
    last = _risen(pilot.scores)
    spans = [span for span in _SPANS if span < len(pilot.snapshots)]
    found = {
        span: np.mean(values)
        for span, values in agreement(
            planned, task, pilot, last, max(spans)
        ).items()
        if span in spans
    }
    span = max(found, key=found.get)
    max_start = max(1, last - span)
    # So many teachers as there is time for, rather fewer than too short ones.
    each = (max_start + span) * pilot.seconds
    count = int(_TEACHERS_SHARE * total / each)
    if count < _LEAST_TEACHERS:
        count = _LEAST_TEACHERS
        most = int(_TEACHERS_SHARE * total / (count * pilot.seconds))
        max_start = max(1, min(max_start, most - span))
    count = min(count, _MOST_TEACHERS)
    planned = put(
        iadd__span=span,
        iadd__max_start=max_start,
        teacher__epochs=max_start + span,
        teacher__count=count,
        iadd__batch_size=0 if ipc * task.num_classes <= _BATCH else _BATCH,
    )
    part = planned.iadd
    # From here on what is fixed counts as the user has set it.
    count, last = planned.teacher.count, part.stored_epochs

    # Tests: as long as the time allows, of the lengths that are in use.
    networks = planned.evaluate.networks
    put(evaluate__look_networks=2)
    for looks, picks, epochs in _TESTS:
        planned = put(
            evaluate__looks=looks,
            evaluate__baselines=",".join(picks),
            evaluate__epochs=epochs,
        )
        tests = _tests(planned.evaluate) * test.seconds(planned.evaluate.epochs)
        if tests <= _TESTS_SHARE * total:
            break
    each = test.per_image * ceiling.BATCH * (networks + _SEARCHES)
    planned = put(
        evaluate__full_steps=max(100, int(_FULL_DATA_SHARE * total / each)),
    )
    seconds = {
        "plan": 0.0,
        "teachers": count * last * pilot.seconds,
        "tests": tests + 2 * test.compile,
        "full data": planned.evaluate.full_steps * each + 3 * test.compile,
        "start and page": _FIXED_SECONDS,
    }

    # The updates have what is left: longer students first, if there are
    # enough updates of them.
    lengths = [30, 20, 10]
    if "iadd.inner_steps" in fixed:
        lengths = [part.inner_steps]
    lengths = [n for n in lengths if span * steps <= _CHUNK_STEPS * n] or [30]
    update = _update_cost(
        planned.changed({"iadd.inner_steps": lengths[-1]}), task, pilot
    )
    seconds["plan"] = time.perf_counter() - begin
    left = total - sum(seconds.values()) - update.compile
    for length in lengths:
        each = update.seconds * length / lengths[-1]
        updates = int(left / each)
        if updates >= 2 * _FEW_UPDATES:
            break
    updates = min(updates, _MOST_UPDATES)
    planned = put(iadd__inner_steps=length, iadd__iterations=max(updates, 1))
    planned = put(iadd__learning_rate=first_rate(planned, task, pilot))
    every = max(5, planned.iadd.iterations // 10)
    planned = put(log__checkpoint_every=every)
    seconds["updates"] = planned.iadd.iterations * each + update.compile
    return Plan(
        planned if updates >= 1 else planned.changed({"iadd.iterations": 1}),
        fields,
        seconds,
        int(update.memory * length / lengths[-1]),
        _disk(pilot.snapshots[0], planned),
    )


def estimate(settings: Settings, task: prepare.Task) -> Plan:
    """What a run takes that its fields decide.

    Args:
      settings: of the run.
      task: data and network.

    Returns:
      A plan that decides nothing. Networks on the whole data count at the
      bound of their length.
    """
    begin = time.perf_counter()
    part, teacher = settings.iadd, settings.teacher
    test = _test_cost(settings, task)
    pilot = fly(
        settings.changed({"teacher.snapshot_steps": _ESTIMATE_STEPS}), task, 0.0
    )
    steps = training.total_steps(
        teachers.recipe_of(teacher)._replace(epochs=part.stored_epochs),
        len(task.splits.train.labels),
    )
    update = _update_cost(settings, task, pilot)
    evaluation = settings.evaluate
    networks = evaluation.networks + _SEARCHES
    whole = networks * evaluation.full_steps * ceiling.BATCH * test.per_image
    seconds = {
        "plan": time.perf_counter() - begin,
        "teachers": teacher.count * steps * pilot.seconds / _ESTIMATE_STEPS,
        "updates": part.iterations * update.seconds + update.compile,
        "tests": _tests(evaluation) * test.seconds(evaluation.epochs)
        + 2 * test.compile,
        "full data": whole + 3 * test.compile,
        "start and page": _FIXED_SECONDS,
    }
    disk = _disk(pilot.snapshots[0], settings)
    return Plan(settings, {}, seconds, update.memory, disk)


_ESTIMATE_STEPS = 5


def _tests(part: Evaluate) -> int:
    """Networks that are trained on distilled images, or on as many others."""
    # Looks, the PNG, random real images, what was begun with, and picks.
    rows = part.looks + 3 + len(part.baseline_names)
    networks = rows * part.networks + (part.looks + 1) * part.look_networks
    return networks * len(part.model_names)


def _disk(params: Params, settings: Settings) -> int:
    """Bytes of all snapshots."""
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    epochs = settings.iadd.stored_epochs + 1
    return 4 * size * settings.teacher.count * epochs


def _risen(found: list[float]) -> int:
    """The first snapshot that is as good as the best, but for a little."""
    smooth = np.convolve(found, np.ones(3) / 3, "valid")
    if not len(smooth):
        return len(found) - 1
    enough = smooth.min() + 0.97 * (smooth.max() - smooth.min())
    return min(int(np.argmax(smooth >= enough)) + 2, len(found) - 1)


# The probe -------------------------------------------------------------------

_HELD_OUT = 1000  # images that a snapshot is scored by, at most
_PATIENCE = 12  # snapshots without a better score
_MOST_SNAPSHOTS = 80


def fly(settings: Settings, task: prepare.Task, most: float) -> Pilot:
    """Trains the first teacher until its held-out score stops rising.

    Args:
      settings: of its training; how long it is does not matter.
      task: data and network.
      most: seconds, after which it ends all the same.
    """
    data, left = task.training_data()
    if isinstance(data, Batch):
        data = jax.tree.map(jnp.asarray, data)
    keys = jax.random.fold_in(teachers.key_of(settings), 0)[None]
    how = {
        "recipe": teachers.recipe_of(settings.teacher)._replace(epochs=1),
        "learning_rate": settings.teacher.learning_rate,
    }
    part = task.splits.held_out
    order = np.random.default_rng(0).permutation(len(part.labels))[:_HELD_OUT]
    images, prepared = prepare.as_input(
        part.images[np.sort(order)], task.preprocessing
    )
    labels = part.labels[np.sort(order)]

    def score(params):
        found = training.predict(
            jax.tree.map(lambda leaf: leaf[0], params),
            images,
            module=task.module,
            preprocessing=prepared,
        )
        right = np.asarray(found) == labels
        if settings.evaluate.metric == "accuracy":
            return float(right.mean())
        return float(np.mean([right[labels == c].mean() for c in set(labels)]))

    carry = trajectories.begin(keys, data.images.shape[1:], task.module, **how)
    kept, found, spent = [carry[0]], [score(carry[0])], []
    begin = time.perf_counter()
    while len(kept) <= _MOST_SNAPSHOTS:
        since = time.perf_counter()
        carry = trajectories.advance(
            carry,
            keys,
            len(kept) - 1,
            data,
            task.module,
            preprocessing=left,
            **how,
        )
        jax.block_until_ready(carry)
        spent.append(time.perf_counter() - since)
        kept.append(carry[0])
        found.append(score(carry[0]))
        stale = len(found) - 1 - int(np.argmax(found))
        # The first of them compiles.
        if len(spent) > max(_SPANS) + 2 and (
            stale >= _PATIENCE or time.perf_counter() - begin > most
        ):
            break
    snapshots = [
        jax.tree.map(lambda leaf: np.asarray(leaf[0]), params)
        for params in kept
    ]
    return Pilot(snapshots, found, float(np.median(spent[1:])))


def agreement(
    settings: Settings,
    task: prepare.Task,
    pilot: Pilot,
    last: int,
    longest: int,
) -> dict[int, list[float]]:
    """How far a teacher's way is one that the data, and not chance, decides.

    From some of its snapshots the network is trained on the real images once
    more, with other draws and in half as many steps of twice the rate: the
    cosine between where that leads and where the teacher went is what a
    student can hope to follow.

    Args:
      settings: of the teacher's training.
      task: data and network.
      pilot: the teacher.
      last: snapshot that a segment ends at, at most.
      longest: snapshots of the longest span.

    Returns:
      {span in snapshots: cosines from early, middle and late starts}.
    """
    data, left = task.training_data()
    recipe = teachers.recipe_of(settings.teacher)
    count = len(data.images)
    size = min(recipe.batch_size, count)
    per = max(1, recipe.epoch_steps // 2)
    to_input = training.to_input(left)
    loss = training.supervised_loss(
        training.apply_fn_of(task.module), recipe.augment
    )

    @jax.jit
    def follow(start, images, labels, keys):
        def loss_fn(params, batch, key):
            images, labels = batch
            return loss(params, Batch(to_input(images), labels), key)

        rate = 2 * settings.teacher.learning_rate
        return sgd_unroll(loss_fn, start, (images, labels), keys, rate)[0]

    found: dict[int, list[float]] = {}
    latest = max(0, last - longest)
    for start in sorted({0, latest // 2, latest}):
        here = pilot.snapshots[start]
        key = jax.random.fold_in(jax.random.key(settings.seed), 0xA62E + start)
        order, keys = jax.random.split(key)
        chosen = np.asarray(
            minibatch_indices(order, count, size, longest * per)
        ).reshape(longest, per, size)
        params = here
        for span in range(1, longest + 1):
            if start + span >= len(pilot.snapshots):
                break
            picked = chosen[span - 1]
            labels = np.asarray(data.labels)[picked]
            if labels.ndim == 2:  # a stream's are numbers
                labels = classes.one_hot(labels, task.num_classes)
            params = follow(
                params,
                np.stack([data.images[some] for some in picked]),
                labels,
                jax.random.split(jax.random.fold_in(keys, span), per),
            )
            cosine = _cosine(here, params, pilot.snapshots[start + span])
            found.setdefault(span, []).append(cosine)
    return found


def _cosine(start: Params, one: Params, other: Params) -> float:
    def moved(params):
        return np.concatenate(
            [
                np.ravel(np.asarray(a) - np.asarray(b))
                for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(start))
            ]
        ).astype(np.float64)

    a, b = moved(one), moved(other)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-30))


def first_rate(settings: Settings, task: prepare.Task, pilot: Pilot) -> float:
    r"""alpha_0 in closed form, the mean over some segments.

    Where a student that starts at :math:`\theta` has taken all its steps, of
    summed gradients G, the rate that would have brought it nearest to the
    target is :math:`\langle\theta - \theta^*, G\rangle / ||G||^2`. It is kept
    within a factor of four of the teacher's own pace.

    Args:
      settings: of the run.
      task: data and network.
      pilot: a teacher.
    """
    part = settings.iadd
    pace = (
        settings.teacher.learning_rate
        * part.span
        * (settings.teacher.snapshot_steps or 1)
        / part.inner_steps
    )
    initial = _real_images(settings, task)._replace(learning_rate=pace)
    student = jax.jit(
        functools.partial(
            iadd.unroll_student,
            apply_fn=training.apply_fn_of(task.module),
            settings=part,
        )
    )
    rates = []
    for start in sorted({0, part.max_start // 2, part.max_start}):
        if start + part.span >= len(pilot.snapshots):
            continue
        here = pilot.snapshots[start]
        there = pilot.snapshots[start + part.span]
        end, _ = student(initial, here, jax.random.key(settings.seed + start))
        pairs = list(
            zip(*map(jax.tree.leaves, (here, there, jax.device_get(end))))
        )
        along = sum(float(np.vdot(h - t, h - e)) for h, t, e in pairs)
        square = sum(float(np.vdot(h - e, h - e)) for h, _, e in pairs)
        rates.append(pace * along / max(square, 1e-30))
    low, high = part.learning_rate_bounds
    rate = float(np.clip(np.mean(rates or [pace]), pace / 4, 4 * pace))
    # Three digits: the rest is noise, and config.json is read by people.
    return float(f"{np.clip(rate, low, high):.3g}")


def _real_images(settings: Settings, task: prepare.Task) -> iadd.Distilled:
    """As many real images as are to be distilled; not those that will be."""
    train = task.splits.train
    chosen = classes.per_class_indices(
        jax.random.key(settings.seed),
        train.labels,
        task.num_classes,
        settings.iadd.ipc,
    )
    return iadd.Distilled(
        preprocess.apply(task.preprocessing, jnp.asarray(train.images[chosen])),
        classes.one_hot(train.labels[chosen], task.num_classes),
        settings.iadd.learning_rate,
    )


class _UpdateCost(NamedTuple):
    seconds: float
    compile: float
    memory: int


def _update_cost(settings, task, pilot) -> _UpdateCost:
    """Of one update, measured."""
    part = settings.iadd
    state = iadd.init_state(
        jax.random.key(0),
        _real_images(settings, task),
        pilot.snapshots[0],
        part,
    )
    segments = jax.tree.map(
        lambda leaf: np.stack([leaf] * part.segments),
        Segment(pilot.snapshots[0], pilot.snapshots[1]),
    )
    update = jax.jit(
        functools.partial(
            iadd.update,
            apply_fn=training.apply_fn_of(task.module),
            settings=part,
        )
    )
    since = time.perf_counter()
    compiled = update.lower(state, segments).compile()
    compile_seconds = time.perf_counter() - since
    jax.block_until_ready(compiled(state, segments))
    since = time.perf_counter()
    jax.block_until_ready(compiled(state, segments))
    seconds = time.perf_counter() - since
    found = compiled.memory_analysis()
    memory = 0
    if found is not None:
        memory = found.temp_size_in_bytes + found.argument_size_in_bytes
    return _UpdateCost(seconds, compile_seconds, memory)


class _TestCost(NamedTuple):
    per_image: float
    per_epoch: float
    constant: float
    compile: float

    def seconds(self, epochs: int) -> float:
        """Of one network, trained and tested."""
        return self.constant + epochs * self.per_epoch


_PROBE_EPOCHS = 8
# The search for the length on the whole data, in networks of its bound.
_SEARCHES = 2.25


def _test_cost(settings, task) -> _TestCost:
    """Of one network on as many images as are to be distilled, measured."""
    data = _real_images(settings, task)
    score = scores.held_out(task)
    spent = []
    for _ in range(2):
        since = time.perf_counter()
        score(
            jax.random.key(0),
            evaluate.stored(data.images, data.labels),
            recipe=scores.recipe_of(settings.evaluate)._replace(
                epochs=_PROBE_EPOCHS
            ),
            learning_rate=settings.teacher.learning_rate,
            num_networks=1,
        )
        spent.append(time.perf_counter() - since)
    held, test = (len(task.splits[i].labels) for i in (1, 2))
    # To look at an image costs a third of training on it.
    images = _PROBE_EPOCHS * len(data.images) + held / 3
    each = spent[1] / images
    return _TestCost(
        each, each * len(data.images), each * test / 3, spent[0] - spent[1]
    )


# Room ------------------------------------------------------------------------


def _memory() -> int:
    """Bytes that this process may have."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max",):
        try:
            found = min(found, int(Path(path).read_text()))
        except (OSError, ValueError):
            pass  # no such limit
    return found


def _check_room(plan: Plan, folder: Path = Path(".")) -> None:
    """InputError where memory or disk do not suffice."""
    if jax.default_backend() == "cpu" and plan.memory > 0.9 * _memory():
        raise InputError(
            f"an update needs {_size(plan.memory)} of memory and this machine "
            f"has {_size(_memory())}: lower model.width or iadd.batch_size"
        )
    free = shutil.disk_usage(folder).free
    if plan.disk > 0.9 * free:
        raise InputError(
            f"the teachers need {_size(plan.disk)} and the disk has "
            f"{_size(free)} left: free some, or lower teacher.count"
        )


def _size(count: int | float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def lines(plan: Plan) -> Iterator[str]:
    """A plan for a person to read."""
    chosen = plan.settings
    steps = chosen.teacher.snapshot_steps
    unit = f"{steps} steps" if steps else "an epoch"
    rows = {
        "network": f"{chosen.model.name} of width {chosen.model.width}",
        "teachers": f"{chosen.teacher.count}, each {chosen.iadd.stored_epochs} "
        f"snapshots of {unit} of {chosen.teacher.batch_size} images",
        "students": f"J = {chosen.iadd.inner_steps} steps for "
        f"{chosen.iadd.span} snapshots, from any of the first "
        f"{chosen.iadd.max_start + 1}; alpha_0 {chosen.iadd.learning_rate:g}",
        "updates": f"{chosen.iadd.iterations}",
        "tests": f"{chosen.evaluate.networks} networks a row, "
        f"{chosen.evaluate.epochs} epochs",
        "memory": f"{_size(plan.memory)} at the peak of an update",
        "disk": _size(plan.disk),
        "minutes": " + ".join(
            f"{value / 60:.1f} {stage}" for stage, value in plan.seconds.items()
        )
        + f" = {plan.minutes:.1f}",
        "done at": time.strftime(
            "%H:%M",
            time.localtime(
                time.time() + 60 * plan.minutes - plan.seconds.get("plan", 0)
            ),
        ),
    }
    for name, value in rows.items():
        yield f"  {name:9} {value}"
