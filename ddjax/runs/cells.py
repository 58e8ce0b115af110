"""What dear figures are kept in: a file for each, named after all that shapes
it, so that a rerun goes on, and other settings make others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ddjax import files

__all__ = ["path_of", "read", "write"]

_SHAPED_BY = "shaped_by"


def path_of(folder: Path, name: str, how: dict[str, Any]) -> Path:
    """Where a cell lies.

    Args:
      folder: of the cells.
      name: what a person knows it by.
      how: JSON-able, all that shapes it.
    """
    digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode())
    return folder / f"{name}-{digest.hexdigest()[:12]}.json"


def write(path: Path, result: dict[str, Any], how: dict[str, Any]) -> None:
    """Keeps a result, with its checksum.

    Args:
      path: of ``path_of``.
      result: JSON-able.
      how: what shaped it, for those who look.
    """
    files.write_json(path, files.sealed(result | {_SHAPED_BY: how}))


def read(path: Path) -> dict[str, Any] | None:
    """A kept result; None where it is not there, or damaged: it can be had
    again."""
    try:
        result = files.read_json(path)
        del result[_SHAPED_BY]
    except (FileNotFoundError, files.DamagedFile, KeyError):
        return None
    return result
