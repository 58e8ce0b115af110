"""Compiled programs, kept from one process to the next."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

__all__ = ["default_folder", "keep", "return_memory_of_compiling"]

_MOST_BYTES = 2 * 2**30  # the least recently used go first
_WORTH_KEEPING = 0.0  # seconds to compile
_LONG_SECONDS = 1.0  # of compiling, which leave memory worth asking for
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def default_folder() -> Path:
    """Below the user's cache folder, one for each kind of processor.

    A program for a CPU holds its instructions, and a home folder may be shared
    by machines that do not have the same.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    kind = platform.machine() + platform.processor()
    try:
        text = Path("/proc/cpuinfo").read_text()
        kind += next(
            (line for line in text.splitlines() if line.startswith("flags")), ""
        )
    except OSError:
        pass  # not Linux
    name = hashlib.sha256(kind.encode()).hexdigest()[:8]
    root = Path(cache) if cache else Path.home() / ".cache"
    return root / "ddjax" / f"compiled-{name}"


def keep(folder: str | Path | None = None) -> None:
    """Has JAX look up compiled programs, and keep them, from now on.

    A user's own settings of JAX's cache (``JAX_COMPILATION_CACHE_DIR``,
    ``JAX_ENABLE_COMPILATION_CACHE=false``) stay as they are. Where the folder
    cannot be made, nothing is kept.

    Args:
      folder: where to; ``default_folder()`` by default.
    """
    if (
        jax.config.jax_compilation_cache_dir
        or not jax.config.jax_enable_compilation_cache
    ):
        return
    folder = Path(folder or default_folder()).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING
    )


@functools.cache  # a second listener would do the same again
def return_memory_of_compiling() -> None:
    """Has what compiling took returned to the machine, from now on.

    The compiler leaves hundreds of MiB free, which the C library keeps for
    later, and what then runs takes other memory. After each program that took
    a second or more to compile; for the rest of the process, at 0.1 s each.
    Only glibc knows how.
    """

    def listen(event: str, duration: float, **_: Any) -> None:
        if event == _COMPILE_EVENT and duration >= _LONG_SECONDS:
            try:
                ctypes.CDLL(None).malloc_trim(0)
            except (AttributeError, OSError, TypeError):
                pass  # another C library

    jax.monitoring.register_event_duration_secs_listener(listen)
