"""Several processes of one run, on one machine or on many.

All of them run the same program on the same settings. Process 0 alone writes;
the others read what it has written, from a folder that all of them see, when
it says so. Devices are spread over in ``parallel``. Where there is one process
nothing here does anything.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ddjax.types import InputError

__all__ = [
    "agreed",
    "alone",
    "barrier",
    "broadcast",
    "connect",
    "count",
    "first",
    "from_writer",
    "gather",
    "index",
    "leave",
    "lost",
    "meet",
    "plain",
    "typed",
    "writes",
]

_HEARTBEAT = 20  # seconds without a sign of life, after which a process is dead
_MEETING = 300  # seconds that the first process waits for the last to start
_TOGETHER = 24 * 3600  # seconds that the fastest waits for the slowest
_LEAVING = 5  # seconds for all to stop for the same reason

_number = itertools.count()  # of what process 0 has said; the same everywhere
_barrier = itertools.count()
_processes, _process = 1, 0
_alone = False
_watcher: subprocess.Popen | None = None


def connect(coordinator: str, processes: str, process: int | None) -> None:
    """Makes this process one of several; before JAX does anything else.

    Args:
      coordinator: HOST:PORT of process 0, which the others can reach; empty
        where the cluster tells.
      processes: their number, or "auto" for what the cluster says (Slurm,
        Cloud TPU, GKE and others that JAX knows).
      process: the number of this one, from 0 on; None where the cluster tells.

    Raises:
      InputError: the flags do not go together, or the others are not there.
    """
    members = _members(coordinator, processes, process)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    if processes == "auto":
        late = (
            "the processes that the cluster tells of did not meet within "
            f"{_MEETING} seconds: start all of them at once, as srun does"
        )
    else:
        late = (
            f"process {process} of {processes} did not meet the others at "
            f"{coordinator}: start all of them, with the same --coordinator, "
            f"within {_MEETING} seconds"
        )
    # JAX aborts a process that has waited in vain.
    watcher = _watched_by(late)
    try:
        jax.distributed.initialize(
            **members,
            initialization_timeout=_MEETING,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_HEARTBEAT,
        )
    except ValueError as error:
        if processes != "auto":
            raise
        raise InputError(
            "JAX finds no cluster here that tells its processes: name them "
            "with --coordinator=HOST:PORT --processes=N --process=I"
        ) from error
    except RuntimeError as error:
        cause = str(error).partition("\n")[0][:200]
        raise InputError(f"{late} ({cause})") from error
    finally:
        _hush(watcher)
    global _processes, _process
    _processes, _process = jax.process_count(), jax.process_index()
    if _processes == 1:  # a cluster may have one
        return
    global _watcher
    _watcher = _watched_by(
        f"process {_process} of {_processes} was killed, or stopped by JAX "
        f"because another process died: {_AGAIN}"
    )
    found = {local.process_index for local in jax.devices()}
    if len(jax.devices()) != len(found) * jax.local_device_count():
        raise InputError(
            f"there are {len(jax.devices())} devices in {len(found)} "
            "processes: give every process as many"
        )


def _members(coordinator, processes, process):
    if processes == "auto":
        if coordinator or process is not None:
            raise InputError(
                "--processes=auto asks the cluster: leave out --coordinator "
                "and --process"
            )
        return {}
    if not processes.isdecimal() or int(processes) < 2:
        raise InputError(
            f"--processes must be at least 2, or auto, not {processes}"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(
            "--processes needs --coordinator=HOST:PORT, the machine of "
            "process 0 and a free port of it"
        )
    if process is None or not 0 <= process < int(processes):
        raise InputError(
            f"--process must be a number from 0 to {int(processes) - 1}, "
            "another one for every process"
        )
    return {
        "coordinator_address": coordinator,
        "num_processes": int(processes),
        "process_id": process,
        "cluster_detection_method": "deactivate",
    }


def lost(error: Exception) -> str:
    """What to tell of a computation over all processes that has failed."""
    cause = str(error).partition("\n")[0][:200]
    return (
        f"error: process {index()} of {_processes} could not go on, most "
        f"likely because another one died ({cause}): {_AGAIN}"
    )


_AGAIN = (
    "start all of them again with the same commands, the run goes on from its "
    "last checkpoint"
)
# Left alone by what ends this process, JAX's abort and SIGKILL included.
_LAST_WORD = "import sys; sys.stdin.read(1) or sys.stderr.write(sys.argv[1])"


def _watched_by(said: str) -> subprocess.Popen:
    """A small process that tells what happened should this one be killed.

    JAX aborts a process when another has died or has not come, and no
    exception tells of it.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LAST_WORD, f"error: {said}\n"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _hush(watcher: subprocess.Popen) -> None:
    """There is nothing to tell."""
    with contextlib.suppress(OSError):
        watcher.communicate(b".")


def leave(code: int, said: str = "") -> None:
    """Ends this process's part; where it has failed, the process too.

    Args:
      code: the exit code.
      said: what was wrong, for those that wait for this process.
    """
    if _processes == 1:
        return
    if not code:
        meet()
        jax.distributed.shutdown()
    if _watcher is not None:
        _hush(_watcher)
    if not code:
        return
    with contextlib.suppress(RuntimeError):
        client = _client()
        client.key_value_set("ddjax/failed", said, allow_overwrite=True)
        client.wait_at_barrier("ddjax/leaving", 1000 * _LEAVING)
    sys.stdout.flush()
    sys.stderr.flush()
    # JAX would wait at exit for processes that may be stuck in a sum.
    os._exit(code)


def _client() -> Any:
    """What JAX's processes talk through beside their arrays.

    It is not public, and what is does not do: ``multihost_utils`` sums arrays,
    for which Gloo waits half a minute, and process 0 may work alone for hours.
    Imported here, so that one process runs without it.
    """
    from jax._src import distributed

    return distributed.global_state.client


def count() -> int:
    """How many processes share the work."""
    return 1 if _alone else _processes


def index() -> int:
    """The number of this process, from 0 on."""
    return _process


def writes() -> bool:
    """Whether this process is the one that writes files."""
    return index() == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, work is this process's own, and shared with no other."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def from_writer(function: Callable[[], Any]) -> Any:
    """What ``function`` returns in process 0, in every process.

    The others wait, for as long as process 0 lives.

    Args:
      function: called in process 0 only; JSON-able.

    Raises:
      InputError: another process has stopped; with what it said.
    """
    if count() == 1:
        return function()
    key = f"ddjax/{next(_number)}"
    client = _client()
    if writes():
        found = function()
        client.key_value_set(key, json.dumps(found))
        return found
    while True:
        found = _said(client, key)
        if found is not None:
            return json.loads(found)
        failed = _said(client, "ddjax/failed")
        if failed is not None:
            raise InputError(failed or "another process has stopped")
        time.sleep(0.02)


def _said(client, key):
    try:
        return client.key_value_try_get(key)
    except RuntimeError as error:
        if "NOT_FOUND" in str(error):
            return None
        raise


def meet() -> None:
    """Where process 0 comes first and the others wait for it."""
    from_writer(lambda: None)


def barrier() -> None:
    """Where all processes wait for one another.

    Before they sum or gather: Gloo, which does that between CPUs, gives up
    when the last is half a minute later than the first.
    """
    if count() > 1:
        _client().wait_at_barrier(
            f"ddjax/together/{next(_barrier)}", 1000 * _TOGETHER
        )


@contextlib.contextmanager
def first() -> Iterator[None]:
    """Inside, process 0 comes first, and then the others at once.

    It makes what is missing, they find it there. What it raises they raise
    themselves.
    """
    if not writes():
        meet()
    try:
        yield
    finally:
        if writes():
            meet()


def gather(tree: Any) -> Any:
    """Arrays of all processes behind one another, in every process.

    Bytes are moved, so that nothing is rounded.

    Args:
      tree: pytree of arrays of a leading axis, of the same shapes everywhere.

    Returns:
      The same of NumPy arrays, ``count()`` times as long.
    """
    leaves, form = jax.tree.flatten(tree)
    if not leaves:
        return tree
    leaves = [np.ascontiguousarray(leaf) for leaf in leaves]
    raw = [leaf.reshape(-1).view(np.uint8) for leaf in leaves]
    barrier()
    rows = multihost_utils.process_allgather(
        np.concatenate(raw)[None], tiled=True
    )
    ends = np.cumsum([len(part) for part in raw])[:-1]
    return jax.tree.unflatten(
        form,
        [
            np.ascontiguousarray(part)
            .view(leaf.dtype)
            .reshape(-1, *leaf.shape[1:])
            for part, leaf in zip(np.split(np.asarray(rows), ends, 1), leaves)
        ],
    )


def broadcast(tree: Any) -> Any:
    """Arrays of process 0, in every process.

    Args:
      tree: pytree of arrays and typed keys, of the same shapes everywhere.
    """
    if count() == 1:
        return tree
    found = gather(jax.tree.map(lambda leaf: plain(leaf)[None], tree))
    return jax.tree.map(
        lambda leaf, all_: typed(leaf, jax.numpy.asarray(all_[0])), tree, found
    )


def _is_key(leaf):
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def plain(leaf: Any) -> np.ndarray:
    """An array as NumPy has it; of typed keys the numbers behind them."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def typed(like: Any, leaf: Any) -> Any:
    """The inverse: keys where ``like`` is one."""
    if _is_key(like) and not _is_key(leaf):
        return jax.random.wrap_key_data(leaf)
    return leaf


def agreed(flag: bool) -> bool:
    """Whether any process says so; the same answer everywhere."""
    if count() == 1:
        return flag
    return bool(gather(np.array([flag])).any())
