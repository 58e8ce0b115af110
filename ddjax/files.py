"""Files that are whole or not there: every artefact is written through here."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import filelock
import numpy as np

from ddjax.types import InputError

__all__ = [
    "DamagedFile",
    "alone",
    "atomic_folder",
    "atomic_write",
    "memory",
    "npy_header",
    "read_json",
    "read_npz",
    "sealed",
    "sha256",
    "write_json",
]


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


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, which is ``path`` when, and only when, all of it
    has been written.

    Args:
      path: where it is to be; nothing is there, or an empty folder.

    Raises:
      InputError: something is there.
    """
    if not path.name or (
        os.path.lexists(path) and not (path.is_dir() and _is_empty(path))
    ):
        raise InputError(
            f"{path} is there and not an empty folder: name another folder, "
            "nothing is overwritten"
        )
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_empty(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return next(entries, None) is None


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, whole or not at all."""
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=1)
        file.write("\n")


_SEAL = "checksum"


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The same with a checksum of itself, which ``read_json`` looks at."""
    return content | {_SEAL: _seal(content)}


def _seal(content: dict[str, Any]) -> str:
    # As it is read back: tuples are lists, and all keys are texts.
    plain = json.loads(json.dumps(content))
    return hashlib.sha256(
        json.dumps(plain, sort_keys=True).encode()
    ).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, without the checksum that ``sealed`` gave it.

    One that has none, as older versions wrote, is taken as it is.

    Raises:
      FileNotFoundError: it is not there.
      DamagedFile: it is no JSON object, or not the one that was written.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise DamagedFile(f"{path} should hold one JSON object")
    if _SEAL in content and content.pop(_SEAL) != _seal(content):
        raise DamagedFile(f"{path} has changed since it was written")
    return content


@contextlib.contextmanager
def alone(
    folder: Path, what: str, say: Callable[[str], None]
) -> Iterator[None]:
    """Keeps other processes from making the same shared files meanwhile.

    A folder that is there and can only be read is somebody else's, and there
    is nothing to wait for.

    Args:
      folder: made if need be; its file ``.lock`` is held.
      what: is done there, as in "trains teachers".
      say: told whom this waits for.

    Raises:
      OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        say(f"another process {what} in {folder}: waiting for it")
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class DamagedFile(ValueError):
    """A file that is not what its name says; str() tells in what way."""


def memory() -> int:
    """Bytes that this process may have."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text()
        return min(found, int(limit))
    except (OSError, ValueError):
        return found  # no such limit


def npy_header(file: io.BufferedIOBase) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type that a .npy file declares; ``file`` is left behind them.

    Raises:
      ValueError: it is no .npy file of numbers or texts.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"a .npy of version {version}")
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("an array of objects, which would be a pickle")
    return shape, dtype


def read_npz(path: Path | str) -> dict[str, np.ndarray]:
    """Every array of an .npz file; pickles are refused.

    What the file declares is checked against what it holds, and against this
    machine's memory, before any of it is taken.

    Raises:
      FileNotFoundError: it is not there.
      DamagedFile: it is no .npz file, or a part of it cannot be read.
    """
    try:
        with (
            open(path, "rb") as raw,
            warnings.catch_warnings(action="error"),
            np.load(raw, allow_pickle=False) as file,
        ):
            _check_members(file.zip)
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    # Headers are Python source, and members may be packed in any way: damage
    # comes out as nearly any exception, or as a warning.
    except Exception as error:
        raise DamagedFile(str(error)) from None


def _check_members(archive: zipfile.ZipFile) -> None:
    """ValueError unless every member is an array of the size it declares."""
    total = 0
    for member in archive.infolist():
        with archive.open(member) as file:
            shape, dtype = npy_header(file)
            declared = math.prod(shape) * dtype.itemsize
            held = member.file_size - file.tell()
        if declared != held:
            raise ValueError(
                f"{member.filename} declares {declared} bytes and holds {held}"
            )
        total += declared
    if total > memory():
        raise ValueError(
            f"its arrays take {total} bytes and this machine has {memory()}"
        )
