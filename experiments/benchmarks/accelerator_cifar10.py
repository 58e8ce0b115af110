"""The accelerator kit's run of CIFAR-10, as far as the minutes go.

Teachers, then four runs (1 and 10 images per class, W = 1 and the default W)
in folders of their own, each in the form that ``experiments/iadd.py`` has
them. A call goes on where the last one ended; the command that finishes a run,
with its test scores and its page, stands beside it.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from accelerator_scale import Clock, Scale, Watch

from configs import cifar10 as config
from configs import common
from ddjax import files, metrics, parallel, trajectories
from ddjax.runs import iadd as iadd_run
from ddjax.runs import prepare, teachers, workdir
from ddjax.settings import Importance, Settings
from ddjax.types import InputError, Segment

Result = dict[str, Any]

IPCS = (1, 10)
FORMS = {"w1": "none", "default": Importance().form}
TEACHERS_SHARE = 0.35
# Windows of a call in any case: the first has the compiling in it, and the
# second tells the pace.
_LEAST = 2


class OutOfTime(Exception):
    """A run has reached a checkpoint and its time is over."""


class Timed(trajectories.Teachers):
    """Teachers that a run may draw from until its time is over.

    That is behind a checkpoint, so that nothing is lost: a call begins at one,
    and every update of one segment draws once.

    Attributes:
      first: when the first checkpoint was reached, by ``time.perf_counter``;
        None before it.
    """

    first: float | None = None

    def __init__(
        self,
        store: trajectories.Teachers,
        own: Clock,
        whole: Clock,
        every: int,
    ):
        """Wraps a store.

        Args:
          store: the teachers.
          own: the run's; it has its first checkpoints all the same.
          whole: of the part.
          every: updates from checkpoint to checkpoint.
        """
        # Opened and checked already: the same in all but when it ends.
        vars(self).update(vars(store))
        self._every = every
        self._own, self._whole = own, whole
        self._drawn = 0

    def sample(self, *args: Any, **kwargs: Any) -> Segment:
        """A segment.

        Raises:
          OutOfTime: the clock has ended.
        """
        if self._drawn % self._every == 0:
            if self._drawn and self.first is None:
                self.first = time.perf_counter()
            begun = self._drawn >= _LEAST * self._every
            if (self._own if begun else self._whole).left() <= 0:
                raise OutOfTime
        self._drawn += 1
        return super().sample(*args, **kwargs)


def stand_in(path: Path, scale: Scale) -> Path:
    """An .npz file of made images in CIFAR-10's shape: a smooth pattern for
    each class under noise. What is learned of them says nothing of CIFAR-10."""
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    patterns = rng.uniform(104, 152, (10, 4, 4, 3)).repeat(8, 1).repeat(8, 2)
    arrays = {}
    for part, each in zip(("train", "test"), scale.stand_in):
        labels = np.tile(np.arange(10, dtype=np.int32), each)
        images = np.empty((len(labels), 32, 32, 3), np.uint8)
        for begin in range(0, len(labels), 1000):
            some = slice(begin, begin + 1000)
            clean = patterns[labels[some]]
            noisy = clean + rng.normal(0, 60, clean.shape)
            images[some] = np.clip(noisy, 0, 255)
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    with files.atomic_write(path) as file:
        np.savez(file, allow_pickle=False, **arrays)
    return path


def changes(scale: Scale, data: dict[str, str], form: str) -> dict[str, Any]:
    """{dotted name: value} of all that differs from the config."""
    return {
        **data,
        **scale.cuts,
        "iadd.importance.form": form,
        "log.every": scale.every,
        "log.checkpoint_every": scale.every,
    }


def settings_of(scale: Scale, ipc: int, fields: dict[str, Any]) -> Settings:
    """A run's, of configs/cifar10.py."""
    found = config.get_config(f"ipc={ipc},size={scale.size}")
    return common.settings_of(found).changed(fields)


def command(
    scale: Scale,
    ipc: int,
    fields: dict[str, Any],
    folder: Path,
    shared: workdir.Shared,
) -> str:
    """What goes on with a run to its end, with test scores and a page."""
    words = [
        f"--config=configs/cifar10.py:ipc={ipc},size={scale.size}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
        f"--workdir={folder}",
        *(f"--{name}={path}" for name, path in shared._asdict().items()),
    ]
    return shlex.join(["python", "experiments/iadd.py", *words])


@contextlib.contextmanager
def quickly_compiled(quick: bool):
    """Where compiling would take all of the time, with few optimisations."""
    name = "jax_disable_most_optimizations"
    before = getattr(jax.config, name, None)
    if not quick or before is None:
        yield
        return
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)


def train_teachers(
    settings: Settings,
    task: prepare.Task,
    folder: Path,
    clock: Clock,
    decided: Path,
) -> Result:
    """As many as there is time for, one group at least, at most the config's.

    The number is decided once, in a file: runs that have begun keep theirs,
    even where the call that began them was killed.
    """
    most = settings.teacher.count
    if decided.exists():
        return json.loads(decided.read_text())
    group = parallel.side_by_side()
    count, spent = 0, []
    while count < most and (not spent or clock.left() > spent[-1]):
        count = min(most, count + group)
        with Watch() as watch:
            teachers.train(
                settings.changed({"teacher.count": count}), task, folder
            )
        spent.append(watch.seconds)
    found = {
        "count": count,
        "of": most,
        "epochs": settings.iadd.stored_epochs,
        "seconds": sum(spent),
        # With compiling: as a run has it.
        "per_minute": 60 * count / sum(spent),
    }
    decided.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(decided, found)
    return found


def cifar10(
    scale: Scale,
    clock: Clock,
    out: Path,
    data_dir: str = "",
    before: Result | None = None,
) -> Result:
    """Teachers and four runs, each with its share of the time.

    Args:
      scale: size and cuts.
      clock: of the part.
      out: the kit's folder.
      data_dir: TFDS's folder with CIFAR-10; "" for made images.
      before: what an earlier call has returned.

    Raises:
      InputError: the data are missing, or others than before.
    """
    before = before or {}
    name = "tfds" if data_dir else "standin-{}-{}".format(*scale.stand_in)
    shared = workdir.Shared(out / "teachers", out / "data", out / "generators")
    out.mkdir(parents=True, exist_ok=True)
    if data_dir:
        data = {"data.data_dir": data_dir}
        told = "CIFAR-10"
    else:
        path = stand_in(out / f"cifar10-{name}.npz", scale)
        data = {"data.source": "npz", "data.data_dir": str(path)}
        told = "a synthetic stand-in of CIFAR-10's shape, not CIFAR-10"
    if before.get("data", told) != told:
        raise InputError(
            f"{out} holds runs on {before['data']}: give --data_dir as before, "
            "or name another --out"
        )
    runs = out / f"cifar10-{scale.size}-{name}"
    absent: list[str] = []
    result: Result = {
        "data": told,
        "size": scale.size,
        "cuts": dict(scale.cuts),
        "quick": scale.quick,
        "teachers": {},
        "runs": {},
        "absent": absent,
    }
    needed = 0.0
    pieces = [(ipc, form) for ipc in IPCS for form in FORMS]
    with quickly_compiled(scale.quick):
        for number, (ipc, form) in enumerate(pieces):
            left = clock.left() / (len(pieces) - number)
            fields = changes(scale, data, FORMS[form])
            settings = settings_of(scale, ipc, fields)
            label = f"{ipc} a class, W {FORMS[form]}"
            key = f"ipc{ipc}-{form}"
            earlier = before.get("runs", {}).get(key)
            if why := clock.lacks(needed, label):
                absent.append(f"{why}; call again to go on")
                if earlier:
                    result["runs"][key] = earlier
                    result["teachers"][str(ipc)] = before["teachers"][str(ipc)]
                continue
            task = prepare.task(
                settings.data, settings.model, settings.seed, shared.data
            )
            if str(ipc) not in result["teachers"]:
                own = Clock(TEACHERS_SHARE * 2 * left)
                result["teachers"][str(ipc)] = train_teachers(
                    settings,
                    task,
                    shared.teachers,
                    own,
                    runs / f"teachers-ipc{ipc}.json",
                )
                left = clock.left() / (len(pieces) - number)
            fields |= {"teacher.count": result["teachers"][str(ipc)]["count"]}
            folder = runs / key
            line = command(scale, ipc, fields, folder, shared)
            row = advance(
                settings_of(scale, ipc, fields),
                task,
                folder,
                shared,
                (Clock(left), clock),
                line,
            )
            needed = max(needed, row.pop("setup"))
            row |= {"ipc": ipc, "form": FORMS[form], "command": line}
            if row["updates"]:
                result["runs"][key] = row
            else:
                absent.append(
                    f"{label}: the time ended before the first checkpoint, of "
                    f"update {scale.every}"
                )
    result["finished"] = len(result["runs"]) == len(pieces) and all(
        row["updates"] >= row["of"] for row in result["runs"].values()
    )
    return result


def advance(
    settings: Settings,
    task: prepare.Task,
    folder: Path,
    shared: workdir.Shared,
    clocks: tuple[Clock, Clock],
    told: str,
) -> Result:
    """Goes on with a run until its time is over or its updates are made.

    Args:
      settings: of the run.
      task: data and network.
      folder: of the run.
      shared: where teachers lie.
      clocks: the run's own and the part's; see ``Timed``.
      told: the command that finishes it.
    """
    begin, setup = time.perf_counter(), 0.0
    if not workdir.is_complete(settings, folder, "iadd"):
        initial = iadd_run.choose_initial(settings, task)
        with (
            contextlib.suppress(OutOfTime),
            workdir.claimed(settings, folder, "iadd", task.splits, told),
        ):
            store = teachers.train(settings, task, shared.teachers)
            initial = iadd_run.picked(settings, initial, task, store)
            initial = iadd_run.with_labels(settings, initial, task, store)
            every = settings.log.checkpoint_every
            timed = Timed(store, *clocks, every)
            try:
                iadd_run.distil(settings, folder, task, initial, timed)
            finally:
                setup = (timed.first or time.perf_counter()) - begin
    path = folder / "metrics.jsonl"
    rows = metrics.read(path) if path.exists() else []
    return {
        "of": settings.iadd.iterations,
        "setup": setup,
        **progress(rows),
    }


def progress(rows: list[Result]) -> Result:
    """What a run's metrics.jsonl says: updates, their pace and the looks.

    The pace is the median of windows between checkpoints; the first window has
    the compiling in it and is left out.
    """
    windows = [row for row in rows if "seconds" in row]
    looks = {
        str(row["step"]): row["held_out_accuracy"]
        for row in rows
        if "held_out_accuracy" in row
    }
    paces = [row["seconds"] for row in windows[1:]]
    return {
        "updates": windows[-1]["step"] if windows else 0,
        "per_second": 1 / statistics.median(paces) if paces else None,
        "loss": windows[-1]["loss"] if windows else None,
        "looks": looks,
    }
