"""Images that stay in their file and are read when they are asked for."""

from __future__ import annotations

import copy
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ddjax.types import InputError

__all__ = ["Rows", "read_ahead"]

# Bytes that are announced to the system and then read, at a time.
_WINDOW = 1 << 26


class Rows:
    """A read-only [n h w c] uint8 array over a ``.npy`` file.

    Reads what is asked for, into memory of its own; nothing else of the file
    is ever held, however much of it is read. Several threads may read at once.

    Attributes:
      shape: (n, h, w, c).
      dtype: uint8.
      ndim: 4.
      nbytes: of all n images.
      path: the file.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, path: str | Path, indices: Any = None):
        """Opens a file.

        Args:
          path: what ``np.save`` wrote of an [n h w c] uint8 array.
          indices: [j] integers or a slice, which of its images to show and
            in which order; all by default.

        Raises:
          InputError: no such file, a damaged one, or another kind of array.
          IndexError: an index is out of range.
        """
        self.path = Path(path)
        stored, offset = _header(self.path)
        self._row_shape = stored[1:]
        self._row_bytes = math.prod(stored[1:])
        self._file = _File(self.path, offset)
        self._positions: range | np.ndarray = range(stored[0])
        if indices is not None:
            self._positions = self._resolve(indices)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._positions), *self._row_shape)

    @property
    def nbytes(self) -> int:
        return len(self._positions) * self._row_bytes

    def __len__(self) -> int:
        return len(self._positions)

    def __repr__(self) -> str:
        return f"Rows({str(self.path)!r}, shape={self.shape})"

    def take(self, indices: Any) -> Rows:
        """The images at ``indices``, in that order, still unread.

        Args:
          indices: [j] integers, with repeats if need be, or a slice.
        """
        taken = copy.copy(self)
        taken._positions = self._resolve(indices)
        return taken

    def __getitem__(self, index: Any) -> np.ndarray:
        """Reads images.

        Args:
          index: integers of any shape, in any order and with repeats; or a
            slice; or one integer.

        Returns:
          uint8 of the index's shape and then [h w c], the caller's own.

        Raises:
          IndexError: an index is out of range or no integer.
          InputError: the file has become shorter.
        """
        at = np.asarray(self._resolve(index), np.int64)
        out = np.empty((*at.shape, *self._row_shape), np.uint8)
        self._read(at.reshape(-1), out.reshape(-1))
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None):
        """Reads every image."""
        if copy is False:
            raise ValueError("images in a file cannot become an array uncopied")
        return self[:].astype(dtype or self.dtype, copy=False)

    def _resolve(self, index):
        """Positions in the file of what an index names."""
        if isinstance(index, slice):
            return self._positions[index]
        index = np.asarray(index)
        if index.size == 0:
            index = index.astype(np.int64)
        if not np.issubdtype(index.dtype, np.integer):
            raise IndexError(
                f"images are indexed by integers or a slice, not {index.dtype}"
            )
        count = len(self)
        if index.size and not -count <= index.min() <= index.max() < count:
            raise IndexError(
                f"index out of range: {index.min()}..{index.max()} of {count} "
                "images"
            )
        index = index.astype(np.int64)
        index = np.where(index < 0, index + count, index)
        if isinstance(self._positions, range):
            return index * self._positions.step + self._positions.start
        return self._positions[index]

    def _read(self, at: np.ndarray, out: np.ndarray) -> None:
        size = self._row_bytes
        for first in range(0, len(at), max(1, _WINDOW // size)):
            window = at[first : first + max(1, _WINDOW // size)]
            # Neighbours in the file are one read.
            cuts = np.flatnonzero(np.diff(window) != 1) + 1
            begins = np.concatenate([[0], cuts])
            lengths = np.diff(np.append(begins, len(window)))
            runs = np.stack([window[begins], lengths, begins + first], 1)
            runs = (runs * size).tolist()
            if len(runs) > 1:
                self._file.announce(runs)
            for start, length, to in runs:
                self._file.read(start, out[to : to + length])


class _File:
    """The bytes of a file behind its header, by position.

    Read, not mapped. A mapped page counts as the process's own memory until
    it is given back, and every 4 KiB costs a fault: on random batches of
    48 KiB images reading was faster from the page cache, from a sparse file
    and from disk. Announcing a window's reads before doing them keeps the
    disk busy with many at once, at no cost where the pages are cached
    already. Reading in the file's order gained nothing.
    """

    def __init__(self, path: Path, offset: int):
        self._path, self._offset = path, offset
        self._raw = open(path, "rb", buffering=0)
        self._lock = threading.Lock()
        weakref.finalize(self, self._raw.close)

    def announce(self, runs) -> None:
        """Says what will be read: [(start, length, _)]."""
        if not hasattr(os, "posix_fadvise"):  # macOS, Windows
            return
        for start, length, _ in runs:
            os.posix_fadvise(
                self._raw.fileno(),
                self._offset + start,
                length,
                os.POSIX_FADV_WILLNEED,
            )

    def read(self, start: int, out: np.ndarray) -> None:
        """Fills ``out`` [j] uint8 with what is at ``start``."""
        view = memoryview(out)
        while view:
            count = self._read_some(self._offset + start, view)
            if not count:
                raise InputError(
                    f"{self._path} has become shorter since it was opened: "
                    "write it again and leave it alone while it is read"
                )
            start, view = start + count, view[count:]

    def _read_some(self, position, view):
        if hasattr(os, "preadv"):
            return os.preadv(self._raw.fileno(), [view], position)
        with self._lock:  # the file has one position for all threads
            self._raw.seek(position)
            return self._raw.readinto(view)


def _header(path: Path) -> tuple[tuple[int, ...], int]:
    """Shape of the array in a file, and where its content begins."""
    mend = "name a file that np.save wrote of uint8 images [n h w c]"
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            version = np.lib.format.read_magic(file)
            # Version 3 differs in field names alone, which pixels have not.
            shape, fortran, dtype = (
                np.lib.format.read_array_header_1_0(file)
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0(file)
            )
            offset = file.tell()
    except OSError as error:
        raise InputError(
            f"cannot read images from {path} ({error.strerror}): {mend}"
        ) from None
    # The header is Python source: damage comes out as nearly any exception.
    except Exception:
        raise InputError(
            f"{path} is no .npy file, or its header is damaged: {mend}"
        ) from None
    if dtype != np.uint8 or len(shape) != 4 or min(shape) < 1:
        raise InputError(f"{path} holds {dtype} of shape {shape}: {mend}")
    if fortran:
        raise InputError(
            f"{path} is in Fortran order: save np.ascontiguousarray of its "
            "images"
        )
    missing = offset + math.prod(shape) - size
    if missing > 0:
        raise InputError(
            f"{path} is {missing} bytes shorter than its header says: write "
            "it again"
        )
    return shape, offset


def read_ahead(
    read: Callable[[Any], Any], parts: Iterable[Any]
) -> Iterator[tuple[Any, Any]]:
    """Reads the next part while the caller works on this one.

    Args:
      read: a function of one part, called in a thread of its own.
      parts: what to read, taken from one at a time in the caller's thread.

    Yields:
      (part, read(part)), in order.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for part in parts:
            following = part, pool.submit(read, part)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()
