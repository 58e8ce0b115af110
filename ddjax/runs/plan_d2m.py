"""A plan of D2M: a generator for the minutes that a user has, on this machine.

A probe trains one teacher for a while, makes one update of the pre-training
and one of the distillation, and draws some images; from what they took the plan
decides how many teachers there are, how many updates either stage makes, and
what is tested. Pre-training gets most: a generator that was trained for too
short a time is the method's first limit, and it ends by itself where held-out
images show no more gain.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import numpy as np

from ddjax import d2m, gan, training
from ddjax.runs import gan as gan_run
from ddjax.runs import plan, prepare, probe, protocols, scores
from ddjax.settings import BASELINES, Settings
from ddjax.types import InputError, Params

__all__ = ["decide", "lines"]

_PATIENCE = 2  # looks without a better score that end a pre-training
_MOST_PRETRAINING, _LEAST_PRETRAINING = 20_000, 100
_MOST_UPDATES, _LEAST_UPDATES = 400, 20
_LOOKS = 4, 10  # of a pre-training, least and most
# Whether images are chosen, what else stands beside, looks, and whether the
# largest number of images is left in; the first that fits. Fewer epochs would
# leave networks on real images half trained.
_TESTS = (
    (True, BASELINES, 3, True),
    (True, BASELINES, 2, True),
    (True, BASELINES[:1], 2, True),
    (False, BASELINES[:1], 1, True),
    (False, (), 1, True),
    (False, (), 1, False),
)
# Of the minutes. What is left, half at least, is for the generator.
_PILOT_SHARE, _TEACHERS_SHARE, _TESTS_SHARE = 0.05, 0.08, 0.3
_LOOKS_SHARE = 0.12
_DISTILLING_SHARE = 0.25  # of what is left
_MOST_TEACHERS, _LEAST_TEACHERS = 10, 2
# Of further minutes, where all else takes its share of them.
_PRETRAINING_SHARE = (1 - _DISTILLING_SHARE) * (
    1 - _TEACHERS_SHARE - _TESTS_SHARE - _LOOKS_SHARE - plan.FULL_DATA_SHARE
)
_CANDIDATES = 50  # images that are made for each that is chosen


def decide(
    asked: Settings,
    task: prepare.Task,
    first_groups: Callable[[Settings, Params], d2m.Group],
    fixed: Collection[str] = (),
) -> plan.Plan:
    """Measures this machine and lays a run of D2M out.

    Args:
      asked: with ``minutes``.
      task: data and network.
      first_groups: (settings, a network's params) to what an update of the
        distillation is made of.
      fixed: dotted names that the user has set and the plan leaves alone.

    Raises:
      InputError: the minutes are too few, or memory or disk do not suffice;
        the sentence names the field to change.
    """
    begin = time.perf_counter()
    total = 60 * asked.minutes
    plan.check_minutes(asked)
    fields: dict[str, Any] = {}

    put = plan.choosing(asked, fields, fixed)
    fits = fitting(asked, task, fixed)
    put(**fits)
    planned = put(
        teacher__batch_size=plan.teacher_batch(task),
        teacher__snapshot_steps=plan.SNAPSHOT_STEPS,
        iadd__span=1,
        iadd__max_start=1,
        gan__patience=_PATIENCE,
    )
    data, left = task.training_data(planned.teacher.class_weights)
    pilot = probe.fly(
        planned, task, data, left, most=_PILOT_SHARE * total, least=4
    )
    last = max(2, plan.risen(pilot.scores))
    pace = pilot.pace
    turns = int(_TEACHERS_SHARE * total / (last * pace.of(pace.beside)))
    count = turns * pace.beside
    planned = put(
        iadd__max_start=last - planned.iadd.span,
        teacher__epochs=last,
        teacher__count=min(max(count, _LEAST_TEACHERS), _MOST_TEACHERS),
    )
    stored = planned.iadd.stored_epochs

    found, pretraining = _pretraining(planned, task)
    drawing = _seconds_of_images(found)
    groups = first_groups(planned, pilot.snapshots[-1])
    distilling = _distilling_cost(planned, task, found, groups)

    # A row of so many images is trained on at this pace, as many as the middle
    # one of d2m.ipcs has being timed.
    middle = planned.d2m.middle_ipc
    test = probe.test_cost(planned.changed({"iadd.ipc": middle}), task)
    for chosen, picks, looks, all_numbers in _TESTS:
        if not all_numbers:
            planned = put(**_without_largest(planned, fixed))
        planned = put(
            d2m__choose=asked.d2m.choose if chosen else "none",
            evaluate__looks=looks,
            evaluate__look_networks=2,
            evaluate__baselines=",".join(picks),
        )
        tests = _tests(planned, task, test, drawing, timed=middle)
        if tests <= _TESTS_SHARE * total:
            break
    each = plan.whole_data_step(planned, pilot)
    planned = put(
        evaluate__full_steps=max(100, int(plan.FULL_DATA_SHARE * total / each)),
    )
    # A look trains networks on fresh images, as long as a teacher where the
    # least number of looks, and the score at the end, fit into their share.
    images = gan_run.images_of_a_look(planned, task)
    networks = planned.evaluate.look_networks
    epoch = pace.of(networks) + networks * images * drawing
    share = _LOOKS_SHARE * total
    longest = max(1, int(share / (_LOOKS[0] + 1) / epoch))
    if longest < stored:
        planned = put(gan__look_epochs=longest)
    look = epoch * (planned.gan.look_epochs or stored)
    gan_looks = min(max(int(share / look) - 1, _LOOKS[0]), _LOOKS[1])
    planned = put(gan__looks=gan_looks)
    seconds = {
        "plan": 0.0,
        "teachers": stored * pace.of(planned.teacher.count),
        # Its quality at the end is one more.
        "looks of pre-training": (planned.gan.looks + 1) * look + test.compile,
        "tests": tests + 2 * test.compile,
        "full data": planned.evaluate.full_steps * each + 3 * test.compile,
        "start and pages": 2 * plan.FIXED_SECONDS,
    }
    seconds["plan"] = time.perf_counter() - begin
    rest = total - sum(seconds.values())
    rest -= pretraining.compile + distilling.compile
    updates = int(_DISTILLING_SHARE * rest / distilling.seconds)
    planned = put(
        d2m__iterations=min(max(updates, _LEAST_UPDATES), _MOST_UPDATES)
    )
    rest -= planned.d2m.iterations * distilling.seconds
    updates = int(rest / pretraining.seconds)
    planned = put(
        gan__iterations=min(max(updates, 1), _MOST_PRETRAINING),
    )
    made = planned.gan.iterations
    planned = put(log__checkpoint_every=max(5, made // 10))
    seconds |= {
        "pre-training": made * pretraining.seconds + pretraining.compile,
        "distilling": planned.d2m.iterations * distilling.seconds
        + distilling.compile,
    }
    result = plan.Plan(
        planned,
        fields,
        seconds,
        max(pretraining.memory, distilling.memory),
        plan.disk_of(pilot.snapshots[0], planned),
    )
    if updates < _LEAST_PRETRAINING and "gan.iterations" not in fixed:
        missing = (_LEAST_PRETRAINING - updates) * pretraining.seconds / 60
        missing /= _PRETRAINING_SHARE
        raise InputError(
            f"minutes={asked.minutes:g} do not suffice for a generator of this "
            f"set on this machine, {_LEAST_PRETRAINING} updates of pre-training"
            " are the least: give minutes="
            f"{math.ceil(asked.minutes + missing)}, or lower data.size"
        )
    plan.check_room(result, remedy="gan.width, gan.batch_size or d2m.per_class")
    return result


def _without_largest(settings, fixed) -> dict[str, Any]:
    """Fields without the largest number of images per class, stored and as a
    stream; none where there is one number, or the user has chosen them."""
    epochs = settings.d2m.epochs_of
    *kept, _ = sorted(epochs)
    fields = "d2m.ipcs", "d2m.epochs", "d2m.stream_ipc"
    if not kept or set(fields) & set(fixed):
        return {}
    stream = min(settings.d2m.stream_ipc, kept[-1])
    return _rows({ipc: epochs[ipc] for ipc in kept}) | {
        "d2m.stream_ipc": stream
    }


def _rows(epochs: dict[int, int]) -> dict[str, Any]:
    """Fields that say ``D2m.epochs_of``."""
    return {
        "d2m.ipcs": ",".join(map(str, epochs)),
        "d2m.epochs": ",".join(map(str, epochs.values())),
    }


def fitting(
    settings: Settings, task: prepare.Task, fixed: Collection[str] = ()
) -> dict[str, Any]:
    """The numbers of images that every class has, where some are too many.

    Real images stand beside each number of generated ones.

    Args:
      settings: as asked for.
      task: data and network.
      fixed: dotted names that the user has set.

    Returns:
      {dotted name: value} of what changes: nothing where all fit, none does,
      or the user has chosen.
    """
    epochs = settings.d2m.epochs_of
    labels = task.splits.train.labels
    smallest = np.bincount(labels, minlength=task.num_classes).min()
    kept = {ipc: count for ipc, count in epochs.items() if ipc <= smallest}
    if {"d2m.ipcs", "d2m.epochs"} & set(fixed) or len(kept) in (0, len(epochs)):
        return {}
    return _rows(kept)


def _tests(settings, task, test, drawing, *, timed: int) -> float:
    """Seconds of all rows of eval.json but that of the whole data; of so many
    images per class an epoch was timed."""
    part, middle = settings.evaluate, settings.d2m.middle_ipc
    k = task.num_classes

    def row(networks, images, count, room=scores.STACKED_BYTES):
        """Trained for so many epochs of so many images, and tested."""
        size = 4 * images * math.prod(task.image_shape)
        at_once = scores.at_once_of(size, room)
        epoch = test.per_epoch.of(networks, at_once) * images / (timed * k)
        return test.constant.of(networks) + count * epoch

    seconds = 0.0
    networks, epochs = part.networks, settings.d2m.epochs_of
    for ipc, count in epochs.items():
        made = networks * ipc * k * drawing
        # Drawn and chosen, of both sides; random real images, and picks.
        ways = 1 if settings.d2m.choose == "none" else 2
        rows = 2 * ways + 1 + len(part.baseline_names)
        seconds += rows * row(networks, ipc * k, count)
        seconds += 2 * (ways + (ways - 1) * _CANDIDATES) * made
    stream, count = settings.d2m.stream_ipc * k, epochs[max(epochs)]
    seconds += 2 * row(networks, stream, count, scores.DRAWN_BYTES)
    seconds += 2 * networks * count * stream * drawing
    looks = (part.looks + 1) * row(
        part.look_networks, middle * k, epochs[middle]
    )
    return len(part.model_names) * seconds + looks


def _pretraining(settings, task):
    """(An untrained generator, in the form that images are made by; what an
    update of its pre-training takes)."""
    part, networks = settings.gan, gan_run.networks_of(settings.gan, task)
    init = jax.jit(lambda key: gan.init_state(key, *networks, part))
    state = init(jax.random.key(0))
    apply, params = gan_run.averaged(part, state, networks.generator)
    update = jax.jit(
        functools.partial(
            gan.update,
            generator=networks.generator,
            critic=networks.critic,
            settings=part,
        )
    )
    cost = probe.timed(update, state, gan_run.first_batch(settings, task))
    return gan_run.artifact_of(task, apply, params, {}), cost


def _seconds_of_images(found) -> float:
    """To make one image, of many."""
    labels = np.zeros(protocols.AT_ONCE, np.int32)
    for _ in range(2):  # the first compiles
        since = time.perf_counter()
        jax.block_until_ready(
            protocols.make(found.apply, found.params, jax.random.key(0), labels)
        )
        seconds = time.perf_counter() - since
    return seconds / len(labels)


def _distilling_cost(settings, task, found, groups) -> probe.UpdateCost:
    update = jax.jit(
        functools.partial(
            d2m.update,
            gen_apply=found.apply,
            apply_fn=training.apply_fn_of(task.module),
            preprocessing=task.preprocessing,
            settings=settings.d2m,
        )
    )
    state = d2m.init_state(jax.random.key(0), found.params, settings.d2m)
    return probe.timed(update, state, groups)


def lines(found: plan.Plan) -> Iterator[str]:
    """A plan for a person to read."""
    chosen = found.settings
    rows = {
        "teachers": f"{chosen.teacher.count}, each "
        f"{chosen.iadd.stored_epochs} snapshots of "
        f"{chosen.teacher.snapshot_steps or 'all'} steps",
        "generator": f"of width {chosen.gan.width}; "
        f"{chosen.gan.iterations} updates of pre-training at most, until "
        f"{chosen.gan.patience} of {chosen.gan.looks} looks show no gain"
        + (
            f", each by networks of {chosen.gan.look_epochs} epochs"
            if chosen.gan.look_epochs
            else ""
        ),
        "updates": f"{chosen.d2m.iterations} of D2M",
        "tests": f"{chosen.evaluate.networks} networks for each row of the "
        "table; "
        + ", ".join(
            f"{ipc} images a class: {epochs} epochs"
            for ipc, epochs in chosen.d2m.epochs_of.items()
        )
        + (
            " (larger numbers left out: too few images, or minutes)"
            if "d2m.ipcs" in found.fields
            else ""
        ),
    }
    yield from plan.rows_of(rows | plan.needs(found))
