"""A plan: what fits into the minutes that a user has, on this machine.

A probe trains one teacher for a while and makes one update, and from what they
took and showed the plan decides how wide the network is, how many teachers
there are and how long they train, what a student is asked to follow, how many
updates are made, and how long networks are tested. The clock decides the plan;
the plan, kept in config.json, decides every byte of the run.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddjax import files, hosts, training
from ddjax.data import sources
from ddjax.runs import ceiling, cells, prepare, probe, teachers, workdir
from ddjax.settings import BASELINES, Settings
from ddjax.types import InputError, Params

__all__ = [
    "FIXED_SECONDS",
    "FULL_DATA_SHARE",
    "SEARCHES",
    "SNAPSHOT_STEPS",
    "Plan",
    "check_minutes",
    "check_one_process",
    "check_room",
    "choosing",
    "decide",
    "disk_of",
    "estimate",
    "keep",
    "kept_in",
    "lines",
    "needs",
    "recall",
    "risen",
    "rows_of",
    "teacher_batch",
    "whole_data_step",
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

SNAPSHOT_STEPS = 20
_BATCH = 50  # distilled images in a student's step, at most
_SPANS = (1, 2, 4)
_MOST_TEACHERS, _LEAST_TEACHERS = 20, 2
_MOST_UPDATES, _FEW_UPDATES, _LEAST_UPDATES = 2000, 100, 20
# J, and updates that there must be time for; the first that fits.
_LENGTHS = ((50, 400), (30, 200), (20, 200), (10, 1))
_LEAST_WIDTH = 16
_AS_THEY_ARE = ("npz", "digits")  # sources whose images have no other side
_LARGE_SIDE = 48  # pixels, from which images may be made smaller
# Of the minutes. What is left, about half, is for the updates.
_UPDATES_SHARE = 0.4
_PILOT_SHARE, _TEACHERS_SHARE, _TESTS_SHARE = 0.07, 0.20, 0.25
FULL_DATA_SHARE = 0.08
_PLAN_SHARE = 0.5  # by then there is no time for the rest
# Imports, data, compilation of what is not measured, and the page.
FIXED_SECONDS = 25
# The search for the length on the whole data, in networks of its bound.
SEARCHES = 2.25
_CHUNK_STEPS = 4  # teacher's steps that one of a student may stand for, at most


class Plan(NamedTuple):
    """What a run is to be, and what it will take.

    Attributes:
      settings: of the run.
      fields: {dotted name: value} of what was decided.
      seconds: {stage: estimate}.
      memory: bytes at the peak of an update, as XLA plans it.
      disk: bytes of teachers and checkpoints.
      agreement: {span in snapshots: cosines}; see ``probe.agreement``.
      each: seconds of an update, without what compiling takes.
    """

    settings: Settings
    fields: dict[str, Any]
    seconds: dict[str, float]
    memory: int
    disk: int
    agreement: dict[int, list[float]] | None = None
    each: float = 0.0

    @property
    def minutes(self) -> float:
        """In all."""
        return sum(self.seconds.values()) / 60


def decide(
    asked: Settings,
    task: prepare.Task,
    fixed: Collection[str] = (),
    load: Callable[[Settings], prepare.Task] | None = None,
) -> tuple[Plan, prepare.Task]:
    """Measures this machine and lays the run out.

    Args:
      asked: with ``minutes``.
      task: data, and the network of ``asked``.
      fixed: dotted names that the user has set and the plan leaves alone.
      load: gives the task of other settings, where the side of the images may
        be changed.

    Returns:
      (the plan, the task with the plan's images and network).

    Raises:
      InputError: the minutes are too few, or memory or disk do not suffice;
        the sentence names the field to change.
    """
    begin = time.perf_counter()
    total = 60 * asked.minutes
    check_minutes(asked)
    images = min(asked.iadd.ipc * task.num_classes, _BATCH)
    looks, _, epochs = _TESTS[-1]
    widest, fields = asked.model.width, {}
    while True:
        test = probe.test_cost(asked, task)
        _check_pace(asked, begin)
        per_step = test.per_epoch.alone * images
        per_step /= asked.iadd.ipc * task.num_classes
        each = 20 * per_step * _UPDATE_COST
        least = asked.changed(
            {
                "evaluate.looks": looks,
                "evaluate.look_networks": 2,
                "evaluate.baselines": "",
                "evaluate.epochs": epochs,
            }
        )
        tests = _tests(least, test)
        excess = max(
            _FEW_UPDATES * each / (_UPDATES_SHARE * total),
            tests / (_TESTS_SHARE * total),
        )
        if excess <= 1:
            break
        # Half the width is a quarter of the work, at best: a width that cannot
        # fit is not measured.
        halved = asked.model.width >> max(1, int(math.log(excess, 4)))
        shrinks = load and _may_shrink(asked, task, fixed)
        if not shrinks:
            halved = max(halved, min(_LEAST_WIDTH, asked.model.width // 2))
        if halved >= _LEAST_WIDTH and "model.width" not in fixed:
            asked = asked.changed({"model.width": halved})
            task = prepare.with_model(task, asked.model)
        elif shrinks:
            # Half the side is a quarter of the work, too, and tells more than a
            # network of a few channels sees in larger images.
            fields |= {
                "data.size": task.image_shape[0] // 2,
                "model.depth": asked.model.depth - 1,
            }
            asked = asked.changed(fields | {"model.width": widest})
            task = load(asked)
        else:
            break
    plan = _at_width(asked, task, test, fixed, total, begin)
    plan = plan._replace(fields=fields | plan.fields)
    updates = plan.settings.iadd.iterations
    if updates < _LEAST_UPDATES:
        spent = ", ".join(
            f"{stage} {seconds / 60:.1f}"
            for stage, seconds in plan.seconds.items()
            if stage != "updates"
        )
        raise InputError(
            f"minutes={asked.minutes:g} do not suffice for this set on this "
            f"machine: without its updates, of which {_LEAST_UPDATES} are the "
            f"least, a run takes {spent} minutes; give minutes="
            f"{_sufficient(plan)}, or lower data.size"
            + (" or iadd.ipc" if asked.iadd.ipc > 1 else "")
        )
    check_room(plan)
    return plan, task


def _sufficient(plan: Plan) -> int:
    """Minutes in which the least number of updates fits beside the rest, of
    which what had a share of the minutes has as large a share of more."""
    total = 60 * plan.settings.minutes
    growing = min(FULL_DATA_SHARE * total, plan.seconds["full data"])
    for stage, share in ("teachers", _TEACHERS_SHARE), ("tests", _TESTS_SHARE):
        if plan.seconds[stage] <= share * total:
            growing += plan.seconds[stage]
    more = _LEAST_UPDATES - plan.settings.iadd.iterations
    needed = sum(plan.seconds.values()) + more * plan.each - growing
    return math.ceil(needed / (1 - growing / total) / 60)


def _check_pace(asked: Settings, begin: float) -> None:
    """InputError where measuring takes what the run would need."""
    spent = (time.perf_counter() - begin) / 60
    if spent > _PLAN_SHARE * asked.minutes:
        raise InputError(
            f"minutes={asked.minutes:g} do not suffice for this set on this "
            f"machine: to measure it has taken {spent:.1f} of them and is not "
            f"done; give at least minutes={math.ceil(8 * spent)}, or lower "
            "data.size"
        )


def _may_shrink(asked, task, fixed) -> bool:
    """Whether the images are large and theirs is no side of the user's."""
    return (
        min(task.image_shape[:2]) >= _LARGE_SIDE
        and asked.data.source not in _AS_THEY_ARE
        and asked.model.name == "convnet"
        and asked.model.depth > 1
        and not {"data.size", "model.depth"} & set(fixed)
    )


def _at_width(asked, task, test, fixed, total, begin) -> Plan:
    """The plan with the network as it is."""
    ipc = asked.iadd.ipc
    fields: dict[str, Any] = {"model.width": asked.model.width}

    put = choosing(asked, fields, fixed)
    planned = put(
        teacher__batch_size=teacher_batch(task),
        teacher__snapshot_steps=SNAPSHOT_STEPS,
        iadd__max_start=0,
        iadd__span=1,
    )
    steps = planned.teacher.snapshot_steps or 1
    data, left = task.training_data(planned.teacher.class_weights)
    pilot = probe.fly(
        planned,
        task,
        data,
        left,
        most=_PILOT_SHARE * total,
        least=max(_SPANS) + 3,
    )
    _check_pace(asked, begin)
    last = risen(pilot.scores)
    spans = [span for span in _SPANS if span < len(pilot.snapshots)]
    found = {
        span: values
        for span, values in probe.agreement(
            planned, task, data, left, pilot, last=last, longest=max(spans)
        ).items()
        if span in spans
    }
    span = max(found, key=lambda span: np.mean(found[span]))
    max_start = max(1, last - span)
    # So many teachers as there is time for, rather fewer than too short ones.
    pace = pilot.pace
    each = (max_start + span) * pace.of(pace.beside)
    count = int(_TEACHERS_SHARE * total / each) * pace.beside
    if count < _LEAST_TEACHERS:
        count = _LEAST_TEACHERS
        most = int(_TEACHERS_SHARE * total / pace.of(count))
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
    put(evaluate__look_networks=2)
    for looks, picks, epochs in _TESTS:
        planned = put(
            evaluate__looks=looks,
            evaluate__baselines=",".join(picks),
            evaluate__epochs=epochs,
        )
        tests = _tests(planned, test)
        if tests <= _TESTS_SHARE * total:
            break
    each = whole_data_step(planned, pilot)
    planned = put(
        evaluate__full_steps=max(100, int(FULL_DATA_SHARE * total / each)),
    )
    seconds = {
        "plan": 0.0,
        "teachers": last * pace.of(count),
        "tests": tests + 2 * test.compile,
        "full data": planned.evaluate.full_steps * each + 3 * test.compile,
        "start and page": FIXED_SECONDS,
    }

    # The updates have what is left: longer students first, if there are
    # enough updates of them.
    lengths = [
        length
        for length in _LENGTHS
        if span * steps <= _CHUNK_STEPS * length[0]
    ] or [_LENGTHS[0]]
    if "iadd.inner_steps" in fixed:
        lengths = [(part.inner_steps, 1)]
    shortest, _ = lengths[-1]
    update = probe.update_cost(
        planned.changed({"iadd.inner_steps": shortest}), task, pilot
    )
    seconds["plan"] = time.perf_counter() - begin
    left = total - sum(seconds.values()) - update.compile
    for length, enough in lengths:
        each = update.seconds * length / shortest
        updates = int(left / each)
        if updates >= enough:
            break
    updates = min(updates, _MOST_UPDATES)
    planned = put(iadd__inner_steps=length, iadd__iterations=max(updates, 1))
    planned = put(iadd__learning_rate=probe.first_rate(planned, task, pilot))
    every = max(5, planned.iadd.iterations // 10)
    planned = put(log__checkpoint_every=every)
    seconds["updates"] = planned.iadd.iterations * each + update.compile
    return Plan(
        planned if updates >= 1 else planned.changed({"iadd.iterations": 1}),
        fields,
        seconds,
        int(update.memory * length / shortest),
        disk_of(pilot.snapshots[0], planned),
        found,
        each,
    )


def choosing(
    asked: Settings, fields: dict[str, Any], fixed: Collection[str]
) -> Callable[..., Settings]:
    """A function that puts values into fields, ``iadd__span=1`` for iadd.span,
    but for those that are fixed, and returns what was asked for with them."""

    def put(**values):
        for name, value in values.items():
            name = name.replace("__", ".")
            if name not in fixed:
                fields[name] = value
        return asked.changed(fields)

    return put


def check_one_process() -> None:
    """InputError where there are several: what is measured is one."""
    if hosts.count() > 1:
        raise InputError(
            "minutes= and --plan measure one process: leave out --processes, "
            "or minutes= and --plan"
        )


def check_minutes(asked: Settings) -> None:
    """InputError where a start alone takes as long."""
    if 60 * asked.minutes < FIXED_SECONDS:
        raise InputError(
            f"minutes={asked.minutes:g} are less than a start and a page take, "
            "about half a minute: give at least minutes=2, for small images"
        )


def teacher_batch(task: prepare.Task) -> int:
    """Images in a teacher's step: an epoch has at least eight steps, of
    batches as the literature's at most."""
    images = len(task.splits.train.labels)
    return min(2 ** int(math.log2(max(16, min(128, images // 8)))), images)


def whole_data_step(settings: Settings, pilot: probe.Pilot) -> float:
    """Seconds of a step of all networks on the whole data: those by which the
    rate is searched, one by one, and those that are tested."""
    part = settings.teacher
    images = part.batch_size * (part.snapshot_steps or 1)
    networks = settings.evaluate.networks
    seconds = SEARCHES * pilot.pace.alone + pilot.pace.of(networks)
    return seconds / images * ceiling.BATCH


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
    test = probe.test_cost(settings, task)
    short = settings.changed({"teacher.snapshot_steps": _ESTIMATE_STEPS})
    data, left = task.training_data(settings.teacher.class_weights)
    pilot = probe.fly(short, task, data, left, most=0.0)
    steps = training.total_steps(
        teachers.recipe_of(teacher)._replace(epochs=part.stored_epochs),
        len(task.splits.train.labels),
    )
    update = probe.update_cost(settings, task, pilot)
    evaluation = settings.evaluate
    whole = evaluation.full_steps * whole_data_step(short, pilot)
    seconds = {
        "plan": time.perf_counter() - begin,
        "teachers": steps * pilot.pace.of(teacher.count) / _ESTIMATE_STEPS,
        "updates": part.iterations * update.seconds + update.compile,
        "tests": _tests(settings, test) + 2 * test.compile,
        "full data": whole + 3 * test.compile,
        "start and page": FIXED_SECONDS,
    }
    disk = disk_of(pilot.snapshots[0], settings)
    return Plan(settings, {}, seconds, update.memory, disk)


_ESTIMATE_STEPS = 5


def _tests(settings: Settings, test: probe.TestCost) -> float:
    """Seconds of networks trained on distilled images, or on as many others;
    the same images are trained on once, whatever rows they stand in."""
    part, initial = settings.evaluate, settings.iadd.initial
    others = {*part.baseline_names, initial}
    if settings.iadd.ipc == 1:
        # The first that either picks is the image nearest to the mean.
        others = {"herding" if o == "k_centre" else o for o in others}
    # Looks, the PNG, random real images, what was begun with, and picks.
    rows = part.looks + 2 + len(others)
    seconds = rows * test.seconds(part.networks, part.epochs)
    seconds += (part.looks + 1) * test.seconds(part.look_networks, part.epochs)
    return seconds * len(part.model_names)


def disk_of(params: Params, settings: Settings) -> int:
    """Bytes of all snapshots."""
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    epochs = settings.iadd.stored_epochs + 1
    return 4 * size * settings.teacher.count * epochs


def risen(found: list[float]) -> int:
    """The first snapshot that is as good as the best, but for a little."""
    smooth = np.convolve(found, np.ones(3) / 3, "valid")
    if not len(smooth):
        return len(found) - 1
    enough = smooth.min() + 0.97 * (smooth.max() - smooth.min())
    return min(int(np.argmax(smooth >= enough)) + 2, len(found) - 1)


# Between --plan and the run ---------------------------------------------------

_KEPT_SECONDS = 24 * 3600  # by then the machine may be busy with other things


def kept_in(
    folder: Path,
    asked: Settings,
    fixed: Collection[str],
    splits: Any,
    method: str = "iadd",
) -> Path:
    """The file, in a folder, of the plan for these settings and images on this
    machine by these versions."""
    request = {
        "asked": workdir.described(asked, method),
        "fixed": sorted(fixed),
        "data": sources.fingerprint(*splits),
        "machine": [platform.node(), os.cpu_count()],
        **workdir.made_with(),
    }
    return cells.path_of(folder, "plan", request)


def keep(path: Path, plan: Plan) -> None:
    """Writes a plan down for the run that is asked for next."""
    content = plan._asdict() | {"settings": None}
    with contextlib.suppress(OSError):  # what is lost is a measurement
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, files.sealed(content))


def recall(path: Path, asked: Settings) -> Plan | None:
    """The plan that ``keep`` wrote for these settings within the last day, and
    only once; None where there is none."""
    try:
        age = time.time() - path.stat().st_mtime
        found = files.read_json(path)
        path.unlink()
    except (OSError, files.DamagedFile):
        return None
    if age > _KEPT_SECONDS:
        return None
    spans = (found["agreement"] or {}).items()
    plan = Plan(**found)._replace(
        settings=asked.changed(found["fields"]),
        seconds=found["seconds"] | {"plan": 0.0},
        agreement={int(span): cosines for span, cosines in spans},
    )
    check_room(plan)
    return plan


# Room ------------------------------------------------------------------------


def check_room(
    plan: Plan,
    folder: Path = Path("."),
    remedy: str = "model.width or iadd.batch_size",
) -> None:
    """InputError where memory or disk do not suffice."""
    if jax.default_backend() == "cpu" and plan.memory > 0.9 * files.memory():
        raise InputError(
            f"an update needs {_size(plan.memory)} of memory and this machine "
            f"has {_size(files.memory())}: lower {remedy}"
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
        "network": f"{chosen.model.name} of width {chosen.model.width}"
        + (
            f", on images made smaller, to {chosen.data.size} pixels"
            if "data.size" in plan.fields
            else ""
        ),
        "teachers": f"{chosen.teacher.count}, each {chosen.iadd.stored_epochs} "
        f"snapshots of {unit} of {chosen.teacher.batch_size} images",
        "students": f"each takes J = {chosen.iadd.inner_steps} steps to where "
        f"its teacher is {chosen.iadd.span} snapshots later, from any of the "
        f"first {chosen.iadd.max_start + 1}; first learning rate "
        f"{chosen.iadd.learning_rate:g}",
        "agreement": plan.agreement
        and "of a teacher's way with a second training's (1 the same, 0 "
        "chance): "
        + ", ".join(
            f"{np.mean(values):.2f} over {span}"
            for span, values in plan.agreement.items()
        )
        + " snapshots",
        "updates": f"{chosen.iadd.iterations} of the distilled images",
        "tests": f"{chosen.evaluate.networks} networks for each row of the "
        f"table, {chosen.evaluate.epochs} epochs each",
    }
    yield from rows_of(rows | needs(plan))


def needs(plan: Plan) -> dict[str, str]:
    """What a plan takes, and until when, for a person to read."""
    return {
        "memory": f"{_size(plan.memory)} at the peak of an update",
        "disk": _size(plan.disk),
        "minutes": " + ".join(
            f"{stage} {value / 60:.1f}" for stage, value in plan.seconds.items()
        )
        + f" = {plan.minutes:.1f}",
        "done at": time.strftime(
            "%H:%M",
            time.localtime(
                time.time() + 60 * plan.minutes - plan.seconds.get("plan", 0)
            ),
        ),
    }


def rows_of(rows: dict[str, str]) -> Iterator[str]:
    """The lines of a table of two columns; rows without a value are none."""
    for name, value in rows.items():
        if value:
            yield f"  {name:9} {value}"
