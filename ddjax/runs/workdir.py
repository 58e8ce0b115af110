"""A run's folder: whose it is, whether it is finished, on which data.

    config.json     settings, data, command, versions and device of the run
    checkpoints/    what it goes on from
    report.html     the sign that it is finished
    .lock           held while a process works there

A folder is held by a run that has a checkpoint or a result. One that stopped
before that leaves nothing and holds nothing. What is not of a run is never
touched.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax

from ddjax import files, hosts
from ddjax.data import sources
from ddjax.settings import Settings
from ddjax.types import InputError

__all__ = [
    "Shared",
    "as_run",
    "check_same_data",
    "claimed",
    "described",
    "is_complete",
    "made_with",
    "name_of",
    "planned",
    "recorded",
    "refusals",
]


class Shared(NamedTuple):
    """Folders that runs share.

    Attributes:
      teachers: one folder in it for each kind of teachers.
      data: one folder in it for each prepared data set.
      generators: one folder in it for each pre-trained generator.
    """

    teachers: Path = Path("runs/teachers")
    data: Path = Path("runs/data")
    generators: Path = Path("runs/generators")

    @classmethod
    def below(cls, root: Path) -> Shared:
        """With the folders of these names in ``root``."""
        return cls(*(root / path.name for path in cls()))


def name_of(what: str, config: str, argument: str = "") -> str:
    """A run's folder where none is named, below ``runs``.

    Args:
      what: of the script, such as "iadd".
      config: the config's name.
      argument: what stands behind the config's colon.

    >>> name_of("iadd", "folder", "some/photos,ipc=10")
    'iadd-folder-some-photos-ipc-10'
    """
    return "-".join([what, config, *re.findall("[A-Za-z0-9]+", argument)])


# What is written before the first checkpoint, by any method.
_BEGUN = (
    "config.json",
    "metrics.jsonl",
    "checkpoints",
    "looks",
    "generator",
    "pretraining",
)


def _is_held(workdir: Path) -> bool:
    """Whether a run has anything there to go on from, or a result."""
    # A save that was cut off leaves a folder whose name is no number.
    saved = (path.name for path in workdir.glob("checkpoints/*"))
    return any(map(str.isdecimal, saved)) or any(
        (workdir / name).exists()
        for name in ("report.html", "eval.json", "distilled.npz")
    )


def recorded(workdir: Path) -> dict[str, object]:
    """What config.json says of a run; nothing where no run holds the folder.

    Raises:
      InputError: it is missing, damaged or not a run's.
    """
    if not _is_held(workdir):
        return {}
    found = _config_of(workdir)
    if found is None:
        raise InputError(
            f"{workdir / 'config.json'} is damaged or not of a run: remove "
            f"{workdir} or name another --workdir"
        )
    return found


def _config_of(workdir: Path) -> dict[str, object] | None:
    """What config.json says; None where it is not what a run wrote."""
    try:
        found = files.read_json(workdir / "config.json")
        found["config"].keys(), found["data"], found["versions"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found


_FOREIGN = {"pixels": ("gan.", "d2m."), "latent": ("d2m.",)}
"""What IADD's runs have nothing to do with, by their space; of IADD's part,
D2M's runs need what decides how long teachers are."""


def described(settings: Settings, method: str) -> dict[str, object]:
    """The settings of a method's runs as JSON gives them back: tuples are
    lists."""
    if method == "nas":
        foreign = "teacher.", "iadd.", "gan.", "d2m.", "log.", "privacy."
    else:
        foreign = _FOREIGN[settings.iadd.space] if method == "iadd" else ()
        foreign = (*foreign, "nas.", "privacy.")
    return {
        field: json.loads(json.dumps(value))
        for field, value in settings.flat().items()
        if not field.startswith(foreign)
    }


def is_complete(settings: Settings, workdir: Path, method: str) -> bool:
    """Whether the folder holds the finished run of these settings.

    Args:
      settings: of the run.
      workdir: the run's folder.
      method: "iadd" or "d2m"; the fields of other methods do not matter.

    Raises:
      InputError: it holds a run of other settings.
    """
    found = recorded(workdir)
    # A planned run is called by what was asked for.
    there = found.get("plan", {}).get("asked") or found.get("config")
    if there is None:
        return False
    if method == "iadd" and any(field.startswith("d2m.") for field in there):
        raise InputError(
            f"{workdir} holds a run of D2M: name another --workdir"
        )
    if method == "d2m" and not any(f.startswith("d2m.") for f in there):
        raise InputError(
            f"{workdir} holds a run of IADD: name another --workdir"
        )
    there = _completed(there)
    changed = [
        f"{field} is {there[field]!r} there and {value!r} here"
        for field, value in described(settings, method).items()
        # The same images may be found by another path: their own checksums
        # are compared later.
        if there[field] != value and field != "data.data_dir"
    ]
    if changed:
        side = settings.data.source == "folder" and (
            there["data.size"] != settings.data.size
        )
        raise InputError(
            f"{workdir} holds a run of another config "
            f"({'; '.join(changed[:3])}): name another --workdir"
            + (
                f"; or are the images in {settings.data.data_dir}, whose side "
                "is taken from them, gone or others now?"
                if side
                else ""
            )
        )
    return (workdir / "report.html").exists()


def _completed(fields: dict[str, Any]) -> dict[str, Any]:
    """With what an older version did not have yet, which was at its default."""
    return described(Settings(), "d2m") | fields


def planned(settings: Settings, workdir: Path) -> dict[str, Any] | None:
    """The fields that an earlier call with these settings has decided.

    Args:
      settings: as asked for, with ``minutes``.
      workdir: the run's folder.

    Returns:
      {dotted name: value}; None where the folder knows no such plan.
    """
    plan = (_config_of(workdir) or {}).get("plan")
    if not plan:
        return None
    method = "d2m" if "d2m.rate" in plan["asked"] else "iadd"
    asked = described(settings, method)
    there = _completed(plan["asked"])
    same = all(
        there[field] == value
        for field, value in asked.items()
        if field != "data.data_dir"
    )
    return plan["fields"] if same else None


def as_run(settings: Settings, workdir: Path) -> Settings:
    """The settings by which the folder's run was made.

    Args:
      settings: as asked for; with ``minutes`` a plan has decided some.
      workdir: the run's folder.

    Raises:
      InputError: there is no such plan.
    """
    if not settings.minutes:
        return settings
    decided = planned(settings, workdir)
    if decided is None:
        raise InputError(
            f"{workdir} holds no run that was planned for minutes="
            f"{settings.minutes:g} with these settings: give the flags that "
            "the run was made with"
        )
    return settings.changed(decided)


def check_same_data(workdir: Path, splits: sources.Splits) -> str:
    """The fingerprint of a run's data.

    Raises:
      InputError: the folder is held by a run on other images.
    """
    data = sources.fingerprint(*splits)
    if recorded(workdir).get("data", data) != data:
        raise InputError(
            f"{workdir} holds a run on other images, the files behind "
            "data.data_dir have changed since: name another --workdir, or "
            "bring the old files back"
        )
    return data


def made_with() -> dict[str, Any]:
    """The {"versions", "device"} of what is made now."""
    return {
        "versions": {
            name: metadata.version(name)
            for name in ("ddjax", "jax", "flax", "optax", "numpy")
        },
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


@contextlib.contextmanager
def claimed(
    settings: Settings,
    workdir: Path,
    method: str,
    splits: sources.Splits,
    command: str,
    plan: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
) -> Iterator[None]:
    """Makes the folder this run's, and writes down what runs in it.

    No other process may work there meanwhile. A run that stops inside before
    it has a checkpoint gives the folder back, and what it had written is gone.
    Of several processes of one run, the one that writes does it for all.

    Args:
      settings: of the run.
      workdir: the run's folder, which ``is_complete`` has let pass.
      method: "iadd" or "d2m".
      splits: the data.
      command: what repeats the run.
      plan: what was asked for and what was decided, of a planned run.
      more: what else config.json is to tell.

    Raises:
      InputError: the folder is held by a run on other images, or another
        process works there, or it holds something else.
    """
    if not hosts.writes():
        hosts.meet()
        yield
        return
    data = check_same_data(workdir, splits)
    workdir.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(workdir / ".lock", blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InputError(
            f"another process works in {workdir}: wait for it, or name another "
            "--workdir"
        ) from None
    try:
        if not _is_held(workdir):
            _check_free(workdir)
            _clear(workdir)  # of a run that was killed early
        content = {
            "config": described(settings, method),
            "data": data,
            **({"plan": plan} if plan else {}),
            **(more or {}),
            "command": command,
            **made_with(),
        }
        files.write_json(workdir / "config.json", files.sealed(content))
        hosts.meet()
        yield
    except BaseException:
        if not _is_held(workdir) and _config_of(workdir) is not None:
            _clear(workdir)
        raise
    finally:
        # While it is held: later it may be another's.
        with contextlib.suppress(OSError):
            (workdir / ".lock").unlink()
        lock.release()
        with contextlib.suppress(OSError):
            workdir.rmdir()  # which leaves a folder with anything in it


def _check_free(workdir: Path) -> None:
    """InputError where the folder holds what only looks like a run's."""
    there = [name for name in _BEGUN if (workdir / name).exists()]
    if there and _config_of(workdir) is None:
        raise InputError(
            f"{workdir / there[0]} is not of a run: name another --workdir"
        )


def _clear(workdir: Path) -> None:
    for name in _BEGUN:
        path = workdir / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNUSABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENOENT,
)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turns what a disk refuses into an InputError of one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise InputError(
                f"the disk is full ({error.filename or 'while writing'}): "
                "free some space and run the same command, it goes on from "
                "its last checkpoint"
            ) from error
        if error.errno in _UNUSABLE:
            raise InputError(
                f"cannot use {error.filename}: {error.strerror}; name "
                "another folder with --workdir, --teachers, --data, "
                "--generators or --out"
            ) from error
        raise
