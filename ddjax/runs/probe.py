"""What a plan is made from: this machine's pace, and what a student can follow.

A first teacher is trained for a while, one update is made, and a few networks
are trained on a few images; all of it with the data and the network of the run.
"""

from __future__ import annotations

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import evaluate, iadd, models, parallel, training, trajectories
from ddjax.runs import prepare, scores, teachers
from ddjax.settings import Settings
from ddjax.types import Batch, Params, Segment
from ddjax.unroll import minibatch_indices, sgd_unroll

__all__ = [
    "Pace",
    "Pilot",
    "TestCost",
    "UpdateCost",
    "agreement",
    "first_rate",
    "fly",
    "real_images",
    "test_cost",
    "timed",
    "update_cost",
]

_HELD_OUT = 1000  # images that a snapshot is scored by, at most
_PATIENCE = 12  # snapshots without a better score
_MOST_SNAPSHOTS = 80
_PACES = 16  # between a student's first rate and its teacher's pace, at most
_MOST_BESIDE = 20  # teachers that are timed at the same time
_EPOCHS = 8  # of a network that is trained on distilled images


class Pace(NamedTuple):
    """Seconds of something that networks do one by one or side by side.

    Attributes:
      alone: of one network alone.
      beside: how many there are in a turn.
      turn: of so many at the same time; by default there is one.
    """

    alone: float
    beside: int = 1
    turn: float = 0.0

    def of(self, count: int, at_once: int | None = None) -> float:
        """So many networks.

        Args:
          count: of them.
          at_once: how many there may be, where that is fewer than a turn: then
            they are counted one after another.
        """
        if at_once is not None and at_once < self.beside:
            return count * self.alone
        full, rest = divmod(count, self.beside)
        turn = self.turn or self.alone
        return full * turn + min(turn, rest * self.alone)


class Pilot(NamedTuple):
    """The first teacher, as far as it was trained to make a plan.

    Attributes:
      snapshots: params at the start and after every snapshot's steps.
      scores: held-out score of each.
      pace: of the steps from one snapshot to the next.
    """

    snapshots: list[Params]
    scores: list[float]
    pace: Pace


def fly(
    settings: Settings,
    task: prepare.Task,
    data: Batch | training.Stream,
    left: Any,
    *,
    most: float,
    least: int = 1,
) -> Pilot:
    """Trains the first teacher until its held-out score stops rising.

    Args:
      settings: of its training; how long it is does not matter.
      task: data and network.
      data: the training images.
      left: preprocessing that they still need; see ``Task.training_data``.
      most: seconds, after which it ends all the same.
      least: snapshots that there must be before it ends.
    """
    if isinstance(data, Batch):
        data = jax.tree.map(jnp.asarray, data)
    keys = jax.random.fold_in(teachers.key_of(settings), 0)[None]
    how = {
        "recipe": teachers.recipe_of(settings.teacher)._replace(epochs=1),
        "learning_rate": settings.teacher.learning_rate,
    }
    images, labels, prepared = _some_held_out(task)

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

    def advance(carry, keys, epoch):
        return trajectories.advance(
            carry, keys, epoch, data, task.module, preprocessing=left, **how
        )

    carry = trajectories.begin(keys, data.images.shape[1:], task.module, **how)
    kept, found, spent = [carry[0]], [score(carry[0])], []
    begin = time.perf_counter()
    while len(kept) <= _MOST_SNAPSHOTS:
        since = time.perf_counter()
        carry = advance(carry, keys, len(kept) - 1)
        jax.block_until_ready(carry)
        spent.append(time.perf_counter() - since)
        kept.append(carry[0])
        found.append(score(carry[0]))
        stale = len(found) - 1 - int(np.argmax(found))
        # The first of them compiles: two are needed for a time.
        if len(spent) >= max(least, 2) and (
            stale >= _PATIENCE or time.perf_counter() - begin > most
        ):
            break
    snapshots = [
        jax.tree.map(lambda leaf: np.asarray(leaf[0]), params)
        for params in kept
    ]
    alone = float(np.median(spent[1:]))
    beside = parallel.side_by_side(_MOST_BESIDE)
    if beside == 1 or isinstance(data, training.Stream):
        # From files networks go one after another.
        return Pilot(snapshots, found, Pace(alone))
    turns = []
    keys, carry = jax.tree.map(
        lambda leaf: jnp.concatenate([leaf] * beside), (keys, carry)
    )
    for _ in range(3):  # the first may compile
        since = time.perf_counter()
        jax.block_until_ready(advance(carry, keys, 0))
        turns.append(time.perf_counter() - since)
    pace = Pace(alone, beside, float(np.median(turns[1:])))
    return Pilot(snapshots, found, pace)


def agreement(
    settings: Settings,
    task: prepare.Task,
    data: Batch | training.Stream,
    left: Any,
    pilot: Pilot,
    *,
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
      data: the training images.
      left: preprocessing that they still need; see ``Task.training_data``.
      pilot: the teacher.
      last: snapshot that a segment ends at, at most.
      longest: snapshots of the longest span.

    Returns:
      {span in snapshots: cosines from early, middle and late starts}.
    """
    recipe = teachers.recipe_of(settings.teacher)
    count = len(data.images)
    size = min(recipe.batch_size, count)
    per = max(1, recipe.epoch_steps // 2)
    to_input = training.to_input(left)
    loss = training.module_loss(task.module, recipe.augment)

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
            params = follow(
                params,
                np.stack([data.images[some] for some in picked]),
                training.targets(data, picked),
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
    within a factor of 16 of the teacher's own pace.

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
    initial = real_images(settings, task)._replace(learning_rate=pace)
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
    rate = float(
        np.clip(np.mean(rates or [pace]), pace / _PACES, _PACES * pace)
    )
    # Three digits: the rest is noise, and config.json is read by people.
    return float(f"{np.clip(rate, low, high):.3g}")


def real_images(settings: Settings, task: prepare.Task) -> iadd.Distilled:
    """As many real images as are to be distilled; not those that will be."""
    key = jax.random.key(settings.seed)
    return iadd.Distilled(
        *task.real_images(key, settings.iadd.ipc), settings.iadd.learning_rate
    )


class UpdateCost(NamedTuple):
    """Of one update.

    Attributes:
      seconds: that it takes.
      compile: seconds before the first.
      memory: bytes at its peak, as XLA plans it.
    """

    seconds: float
    compile: float
    memory: int


def update_cost(
    settings: Settings, task: prepare.Task, pilot: Pilot
) -> UpdateCost:
    """One update, compiled and timed."""
    part = settings.iadd
    state = iadd.init_state(
        jax.random.key(0),
        real_images(settings, task),
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
    return timed(update, state, segments)


def timed(update: Any, state: Any, batch: Any) -> UpdateCost:
    """What a jitted update of a state takes, compiled and made twice."""
    since = time.perf_counter()
    compiled = update.lower(state, batch).compile()
    compile_seconds = time.perf_counter() - since
    jax.block_until_ready(compiled(state, batch))
    since = time.perf_counter()
    jax.block_until_ready(compiled(state, batch))
    seconds = time.perf_counter() - since
    found = compiled.memory_analysis()
    memory = 0
    if found is not None:
        memory = found.temp_size_in_bytes + found.argument_size_in_bytes
    return UpdateCost(seconds, compile_seconds, memory)


class TestCost(NamedTuple):
    """Of networks on as many images as are to be distilled.

    Attributes:
      per_epoch: of training.
      constant: of looking at the test images.
      compile: seconds before the first.
    """

    per_epoch: Pace
    constant: Pace
    compile: float

    def seconds(self, count: int, epochs: int) -> float:
        """So many networks, trained for so many epochs, and tested."""
        return self.constant.of(count) + epochs * self.per_epoch.of(count)


def test_cost(settings: Settings, task: prepare.Task) -> TestCost:
    """One network alone, and some side by side, trained and tested, timed."""
    data = real_images(settings, task)
    score = scores.held_out(task)
    held, test = (len(task.splits[i].labels) for i in (1, 2))
    beside = parallel.side_by_side(settings.evaluate.networks)
    compiling, trained, looked = 0.0, {}, {}
    for count in sorted({1, beside}):
        look = _look_cost(task, count)
        spent = []
        for _ in range(2):  # the first compiles
            since = time.perf_counter()
            score(
                jax.random.key(0),
                evaluate.stored(data.images, data.labels),
                recipe=scores.recipe_of(settings.evaluate)._replace(
                    epochs=_EPOCHS
                ),
                learning_rate=settings.teacher.learning_rate,
                num_networks=count,
            )
            spent.append(time.perf_counter() - since)
        in_training = max(spent[1] - look * held, 0.1 * spent[1])
        trained[count] = in_training / _EPOCHS
        looked[count] = look * test
        compiling = max(compiling, spent[0] - spent[1])
    return TestCost(
        Pace(trained[1], beside, trained[beside]),
        Pace(looked[1], beside, looked[beside]),
        compiling,
    )


def _look_cost(task: prepare.Task, count: int) -> float:
    """Seconds in which so many networks classify an image each."""
    params = models.init_params(
        task.module, jax.random.key(0), task.image_shape
    )
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), params)
    images, labels, left = _some_held_out(task)
    for _ in range(2):  # the first compiles
        since = time.perf_counter()
        evaluate.count_right(
            params, Batch(images, labels), task.module, task.num_classes, left
        )
        seconds = time.perf_counter() - since
    return seconds / len(images)


def _some_held_out(task: prepare.Task) -> tuple[Any, np.ndarray, Any]:
    """(images, classes, preprocessing left) of at most ``_HELD_OUT``."""
    part = task.splits.held_out
    order = np.random.default_rng(0).permutation(len(part.labels))
    some = np.sort(order[:_HELD_OUT])
    images, left = prepare.as_input(part.images[some], task.preprocessing)
    return images, part.labels[some], left
