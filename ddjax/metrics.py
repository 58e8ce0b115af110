"""Figures of a run as they come: one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ddjax import files

__all__ = ["Metrics", "read"]


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last half line is dropped.

    A killed process can leave such a line, and only at the end.
    """
    rows = []
    for line in Path(path).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Metrics:
    """A metrics file that a killed run can go on with."""

    def __init__(self, path: Path, step: int):
        """Opens a file, and forgets what lies beyond ``step``.

        Args:
          path: the file; made if need be.
          step: of the checkpoint that the run goes on from; rows of later
            steps will be written again.
        """
        self.path = Path(path)
        rows = read(self.path) if self.path.exists() else []
        with files.atomic_write(self.path, "w") as file:
            for row in rows:
                if row["step"] <= step:
                    file.write(json.dumps(row) + "\n")

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Appends one row; values are JSON-able."""
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")
