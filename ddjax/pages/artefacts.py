"""The artefacts in the folder of a run or a pre-training, as a page reads them.

Everything is read without pickle, and what is missing or damaged is named in
the one sentence of an ``InputError``.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddjax import files, metrics
from ddjax.pages.page import file_size
from ddjax.types import InputError


def require(folder: Path, names: Iterable[str], command: str) -> None:
    """Checks that a folder is there, and its artefacts of these names; the
    error says by which command they are made."""
    if not folder.is_dir():
        raise InputError(
            f"there is no run folder {folder}; name the --workdir of a run"
        )
    for name in names:
        if not (folder / name).exists():
            raise InputError(
                f"{folder / name} is missing; make it with: {command}"
            )


def run_command(workdir: Path, script: str) -> str:
    """What makes a run's folder again, as far as the folder tells."""
    where = f"--workdir={shlex.quote(str(workdir))}"
    command = f"python experiments/{script} --config=configs/tiny.py {where}"
    if (workdir / "config.json").exists():
        config = read_json(workdir / "config.json")
        command = str(config.get("command", command))
    return again(workdir, command)


def again(folder: Path, command: str) -> str:
    """The command that makes a folder again: a script takes one with a page
    for finished."""
    if not (folder / "report.html").exists():
        return command
    return f"rm {shlex.quote(str(folder / 'report.html'))} && {command}"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds."""
    try:
        return files.read_json(path)
    except (OSError, files.DamagedFile) as error:
        raise InputError(str(error)) from error


@contextlib.contextmanager
def as_written(path: Path, script: str) -> Iterator[None]:
    """InputError where what a file holds is not what a script writes: the
    block looks into it."""
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise InputError(
            f"{path} is not what {script} writes ({error!r}): run it again"
        ) from error


def read_npz(path: Path, *required: str) -> dict[str, np.ndarray]:
    """Every array of an .npz file, which has those of the required names."""
    try:
        arrays = files.read_npz(path)
    except (files.DamagedFile, OSError) as error:
        raise InputError(f"{path} is not a whole npz file: {error}") from error
    for name in required:
        if name not in arrays:
            raise InputError(f"{path} has no array named {name}")
    return arrays


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; [] where there is none."""
    return metrics.read(path) if path.exists() else []


def series(
    records: Iterable[Mapping[str, Any]], name: str
) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of one metric. A resumed run may repeat steps: the
    later line counts."""
    found = {
        int(record["step"]): float(record[name])
        for record in records
        if isinstance(record.get(name), int | float)
    }
    steps = sorted(found)
    return np.array(steps, int), np.array([found[step] for step in steps])


def effort(records: list[dict[str, Any]]) -> tuple[int | None, float | None]:
    """(steps, seconds) that were spent; None for what was not logged."""
    last = max((int(record["step"]) for record in records), default=None)
    _, seconds = series(records, "seconds")
    if last is None or not len(seconds):
        return last, None
    # Resumed runs repeat lines, sparse ones lack some: the mean of what is
    # there, for as many steps as there were.
    return last, float(seconds.mean()) * last


def flatten(value: Any, name: str = "") -> list[list[str]]:
    """Rows of dotted names and values, however deep a dict is."""
    if isinstance(value, dict) and value:
        return [
            row
            for key, inner in value.items()
            for row in flatten(inner, f"{name}.{key}" if name else str(key))
        ]
    return [[name, value if isinstance(value, str) else json.dumps(value)]]


def file_rows(folder: Path, what: Mapping[str, str]) -> list[list[str]]:
    """(name, size, what it is) of the files of {name: what} that are there."""
    rows = []
    for name, meaning in what.items():
        path = folder / name
        if path.is_dir():
            rows.append([f"{name}/", "", meaning])
        elif path.exists():
            rows.append([name, file_size(path.stat().st_size), meaning])
    return rows


def config_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """What templates tell of a run's config.json."""
    command = str(config.get("command", ""))
    try:
        words = shlex.split(command)
    except ValueError:  # a quote that is not closed
        words = command.split()
    planned = (config.get("plan") or {}).get("fields")
    return {
        "command": command,
        # What names the run's data and recipe.
        "flags": [w for w in words if w.startswith(("--config", "--data="))],
        "device": config.get("device"),
        "config": flatten(config.get("config") or {}),
        "minutes": (config.get("config") or {}).get("minutes", 0),
        "plan": flatten(planned) if planned else [],
        "versions": list((config.get("versions") or {}).items()),
    }
