"""Files that are whole or not there: every artefact is written through here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

__all__ = ["DamagedFile", "atomic_write", "read_npz", "sha256", "write_json"]


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that takes the place of ``path`` when, and only when, all of it
    has reached the disk; whatever was there before stays until then.

    Args:
      path: where the file is to be; its folder exists.
      mode: "wb" or "w".
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, whole or not at all."""
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=1)
        file.write("\n")


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class DamagedFile(ValueError):
    """A file that is not what its name says; str() tells in what way."""


def read_npz(path: Path | str) -> dict[str, np.ndarray]:
    """Every array of an .npz file; pickles are refused.

    Raises:
      FileNotFoundError: it is not there.
      DamagedFile: it is no .npz file, or a part of it cannot be read.
    """
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,  # a .npy file
        RuntimeError,  # a damaged header asks for a password or an odd method
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DamagedFile(str(error)) from None
