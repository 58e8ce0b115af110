"""The artefacts of a run's folder, as a report reads them.

Everything is read without pickle, and what is missing or damaged is named in
one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddjax import files
from ddjax.types import InputError

__all__ = ["read_json", "read_metrics", "read_npz", "require"]


def require(folder: Path, made_by: Mapping[str, str]) -> None:
    """Checks that a folder and its artefacts are there.

    Args:
      folder: where they lie.
      made_by: {file: the command that writes it}.

    Raises:
      InputError: one is missing; it says how to make it.
    """
    if not folder.is_dir():
        raise InputError(
            f"there is no run folder {folder}; name the --workdir of a run"
        )
    for name, command in made_by.items():
        if not (folder / name).exists():
            raise InputError(
                f"{folder / name} is missing; make it with: {command}"
            )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
      InputError: it holds something else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} should hold one JSON object")
    return content


def read_npz(path: Path, *required: str) -> dict[str, np.ndarray]:
    """Every array of an .npz file.

    Raises:
      InputError: it is damaged, or has no array of a required name.
    """
    try:
        arrays = files.read_npz(path)
    except (files.DamagedFile, OSError) as error:
        raise InputError(f"{path} is not a whole npz file: {error}") from error
    for name in required:
        if name not in arrays:
            raise InputError(f"{path} has no array named {name}")
    return arrays


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; [] where there is none.

    Raises:
      InputError: a line other than the last is not JSON.
    """
    if not path.exists():
        return []
    records = []
    lines = path.read_text("utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line) if line.strip() else {}
        except ValueError as error:
            if number == len(lines):  # the run was stopped while writing it
                break
            raise InputError(
                f"{path}, line {number}, is not JSON: {error}"
            ) from error
        if "step" in record:
            records.append(record)
    return records
