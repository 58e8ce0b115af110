"""The outer loop: draw, update, guard, log, look, checkpoint, go on.

Teachers, IADD, pre-training and D2M are four uses of it. A run that is killed
at any moment goes on from its last checkpoint (of teachers, from the last whole
one) to the same result, because what an update draws is decided by the
update's number alone. SIGTERM, which a machine sends that is about to be taken
away, is heard at the end of an update, and its state is kept.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ddjax import checkpoint, hosts, metrics, settings
from ddjax.types import InputError

__all__ = ["Terminated", "finite", "look_steps", "progress", "run", "terminate"]

State = Any
Row = dict[str, Any]


class Terminated(BaseException):
    """SIGTERM has come, and what could be kept is kept."""


_loops = 0  # that are running, one inside another
_terminated = False


def terminate(signum: int, frame: Any) -> None:
    """A handler of SIGTERM: stops at the end of the update.

    Raises:
      Terminated: at once, where no update is being made.
    """
    global _terminated
    if not _loops:
        raise Terminated
    _terminated = True


class _Lines:
    """Stands for stderr where a bar is written into a file: each of its states
    is a line, since a carriage return overwrites nothing there."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            print(line, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def progress(what: str, total: int, *, unit: str, initial: int = 0) -> tqdm:
    """A bar with the time left, in a terminal or in a notebook; in a log file,
    a line now and then."""
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    how: dict[str, Any] = {"mininterval": 0.2}
    if not watched:
        how = {
            "mininterval": 30,
            "file": _Lines(),
            "bar_format": "{desc}: {n_fmt} of {total_fmt}, {elapsed} gone, "
            "{remaining} left{postfix}",
        }
    return tqdm(
        desc=what,
        total=total,
        unit=unit,
        initial=initial,
        leave=False,
        delay=0.5,  # what is done at once needs none
        disable=not hosts.writes(),
        **how,
    )


def look_steps(looks: int, last: int) -> list[int]:
    """The updates after which a run is looked at: evenly, the last included."""
    return sorted({round(last * (i + 1) / looks) for i in range(looks)} - {0})


def finite(remedy: str) -> Callable[[Row], str | None]:
    """A guard: what is wrong where a figure has left the numbers.

    Args:
      remedy: what a user can do about it.
    """

    def guard(row: Row) -> str | None:
        for name, value in row.items():
            if not np.isfinite(value):
                return f"the {name.replace('_', ' ')} is {value}; {remedy}"
        return None

    return guard


def _restored(
    checkpoints: checkpoint.Checkpoints | None, state: State, every: int = 1
) -> tuple[int, State]:
    """The last checkpoint, in every process; where there is none, step 0 and
    the state that was given."""
    found = (0, state)

    def read():
        nonlocal found
        found = checkpoints.restore(state, every) or found
        return found[0]

    return hosts.from_writer(read), hosts.broadcast(found[1])


def run(
    state: State,
    *,
    name: str,
    last: int,
    draw: Callable[[int], Any],
    update: Callable[[State, Any], tuple[State, Row]],
    guard: Callable[[Row], str | None],
    folder: Path | None = None,
    log: settings.Log | None = None,
    detail: Callable[[State, Any], Row] = lambda state, drawn: {},
    looks: Collection[int] = (),
    look: Callable[[State, int], Row | None] = lambda state, step: None,
    enough: Callable[[int], bool] = lambda step: False,
    place: Callable[[State], State] = lambda state: state,
    recover: Callable[[State], State | None] = lambda state: None,
    unit: str = "update",
    bar: tqdm | None = None,
    ticks: int = 1,
) -> State:
    """All updates that are still to be made.

    Args:
      state: before the first update; also the form of what is restored.
      name: of the run, on the bar and in sentences.
      last: updates in all.
      draw: what an update works on, by the number of updates before it.
      update: (state, drawn) -> (state after, {metric: scalar}).
      guard: what is wrong with an update's metrics, or None.
      folder: where metrics.jsonl and checkpoints/ are kept; None: nothing is,
        and the run starts from the beginning.
      log: how often; with ``folder``.
      detail: more for a line of metrics.jsonl, of the state and what its last
        update worked on.
      looks: numbers of updates after which ``look`` is called; 0 is before
        the first.
      look: (state, updates so far) -> what to write into metrics.jsonl.
      enough: whether the run ends with this look, by what is kept of looks
        up to it, so that a run that goes on decides the same.
      place: puts a state where ``update`` wants it.
      recover: what to go on with from the last good state, which is that of
        the last checkpoint or of the beginning, after the guard has found
        something; None: the run stops. It has to remember in the state how
        often, so that a resumed run does the same.
      unit: what an update is called.
      bar: shared with other runs; one of its own by default.
      ticks: of that bar, for each update.

    Returns:
      The state after the last update.

    Raises:
      InputError: the guard found something; the last checkpoint stays.
      Terminated: SIGTERM has come, and the state is kept.
    """
    global _loops
    step, checkpoints, written = 0, None, None
    between = None  # of a checkpoint that SIGTERM has left
    good, good_step = None, 0
    if folder is not None:
        if hosts.writes():
            checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
        begin, (step, state) = state, _restored(checkpoints, state)
        if step:
            print(f"{name}: going on from the checkpoint of {unit} {step}")
        if step % log.checkpoint_every and step < last:
            # A run that was not stopped would go back to an earlier state.
            between = step
            good_step, good = _restored(
                checkpoints, begin, log.checkpoint_every
            )
            good = place(good)
        if hosts.writes():
            # Before the first checkpoint nothing is kept, not even a look.
            least = checkpoints.rows(step) if step else 0
            written = metrics.Metrics(
                folder / "metrics.jsonl", step or -1, least
            )
    state = place(state)
    if good is None:
        good, good_step = state, step

    def look_at(step):
        row = look(state, step) if step in looks else None
        if row and written:
            written.write(step, row)

    if not step:
        look_at(0)
    own = bar is None
    bar = bar or progress(name, last, unit=unit, initial=step)
    spent, since = 0.0, step
    _loops += 1
    try:
        while step < last and not (step in looks and enough(step)):
            begin = time.perf_counter()
            drawn = draw(step)
            after, row = update(state, drawn)
            row = {metric: float(value) for metric, value in row.items()}
            spent += time.perf_counter() - begin
            cause = guard(row)
            mended = recover(good) if cause else None
            if mended is not None:
                print(
                    f"{name}: {unit} {step + 1}: {cause}. Going back to "
                    f"{unit} {good_step}, with smaller steps from there"
                )
                state = good = place(mended)
                bar.update(ticks * (good_step - step))
                step, spent, since = good_step, 0.0, good_step
                if written:
                    # A resumed run forgets this line, and comes here again.
                    written = metrics.Metrics(written.path, good_step)
                    written.write(good_step + 1, {"mended": cause})
                continue
            if cause:
                kept = f"; {checkpoints.kept()}" if checkpoints else ""
                raise InputError(f"{unit} {step + 1} of {name}: {cause}{kept}")
            state, step = after, step + 1
            bar.update(ticks)
            if "loss" in row:
                bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
            if written and (step % log.every == 0 or step == last):
                row["seconds"] = round(spent / (step - since), 4)  # an update
                spent, since = 0.0, step
                written.write(step, row | detail(state, drawn))
            look_at(step)
            due = step == last or (log and step % log.checkpoint_every == 0)
            if due:
                good, good_step = state, step
            stopped = hosts.agreed(_terminated)
            if checkpoints and (due or stopped):
                checkpoints.save(step, state, written.rows, between)
                between = None if due else step
            if stopped:
                raise Terminated
    finally:
        _loops -= 1
        if own:
            bar.close()
        if checkpoints:
            checkpoints.close()
    return state
