"""Figures of a run as they come: one JSON object a line.

The last field of a line is the CRC-32 of the others; lines of older versions
have none.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from ddjax import files
from ddjax.types import InputError

__all__ = ["Metrics", "parse", "read"]


def parse(line: str) -> dict[str, Any]:
    """The object of a line.

    Raises:
      ValueError: it is none, or not the one that was written.
    """
    try:
        row = json.loads(line)
    except RecursionError:
        raise ValueError("nested without end") from None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise ValueError("no object with a step")
    if "crc32" in row and row.pop("crc32") != _crc32(row):
        raise ValueError("it has changed since it was written")
    return row


def _crc32(row: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(row).encode()):08x}"


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row | {"crc32": _crc32(row)}) + "\n"


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last half line is dropped.

    A killed process can leave such a line, and only at the end.

    Raises:
      InputError: another line is damaged.
    """
    lines = Path(path).read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(parse(line.decode()))
        except ValueError as error:
            if number == len(lines):
                break
            raise InputError(
                f"{path}, line {number}, is damaged ({error}): remove "
                f"{Path(path).parent} and run the same command to start again"
            ) from None
    return rows


class Metrics:
    """A metrics file that a killed run can go on with.

    Attributes:
      path: the file.
      rows: lines in it.
    """

    def __init__(self, path: Path, step: int, least: int = 0):
        """Opens a file, and forgets what lies beyond ``step``.

        Args:
          path: the file; made if need be.
          step: of the checkpoint that the run goes on from; rows of later
            steps will be written again.
          least: so many lines of up to that step there were.

        Raises:
          InputError: a line that is to be kept is damaged or gone.
        """
        self.path = Path(path)
        found = read(self.path) if self.path.exists() else []
        kept = [row for row in found if row["step"] <= step]
        if len(kept) < least:
            raise InputError(
                f"{path} has lost lines: remove {self.path.parent} and run "
                "the same command to start again"
            )
        self.rows = len(kept)
        with files.atomic_write(self.path, "w") as file:
            file.writelines(map(_line, kept))

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Appends one row; values are JSON-able."""
        with open(self.path, "a") as file:
            file.write(_line({"step": step, **row}))
        self.rows += 1
