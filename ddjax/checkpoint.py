"""Checkpoints of a run's state: the only file that knows Orbax."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ddjax import files, hosts
from ddjax.types import InputError

__all__ = ["Checkpoints"]

# Not all that Orbax writes has a checksum of its own.
_CHECKSUMS = "checksums.json"

# Bytes that a checkpoint's dozen small files take beside the values.
_BESIDE = 1 << 18

# Orbax tells at length of every save; what matters reaches the user as an
# exception.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """The two latest states of a run, each whole or not there.

    Orbax writes beside the old one and renames, so a kill at any moment
    leaves the last whole checkpoint to go on from.
    """

    def __init__(self, folder: Path):
        """Opens a folder of checkpoints; made if need be.

        Of several processes, only the one that writes opens it.
        """
        self.folder = Path(folder).resolve()
        shared = {}
        if hosts.count() > 1:
            # Or Orbax would wait for processes that have nothing to do here.
            self.folder.mkdir(exist_ok=True)
            shared = {
                "create": False,
                "multiprocessing_options": ocp.options.MultiprocessingOptions(
                    primary_host=0,
                    active_processes={0},
                    barrier_sync_key_prefix="writer",
                ),
            }
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
                **shared,
            ),
        )

    def latest(self) -> int | None:
        """The step of the last checkpoint, or None."""
        return self._manager.latest_step()

    def kept(self) -> str:
        """What a run that is stopped can go on from, for its last sentence."""
        last = self.latest()
        if last is None:
            return "there is no checkpoint yet, but finished stages are kept"
        return f"the checkpoint of update {last} in {self.folder} is kept"

    def save(
        self,
        step: int,
        state: Any,
        rows: int = 0,
        instead_of: int | None = None,
    ) -> None:
        """Writes a state; returns when it is on the disk.

        Args:
          step: of the state.
          state: a pytree of arrays and typed keys.
          rows: lines of the metrics that belong to it.
          instead_of: the step of a checkpoint that is then not needed.

        Raises:
          OSError: the disk is full or cannot be written.
        """
        if instead_of in self._manager.all_steps():
            self._manager.delete(instead_of)
        if hosts.count() > 1:
            # Orbax takes arrays of one process for parts of larger ones.
            state = jax.tree.map(hosts.plain, state)
        self._check_room(state)
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state))
        except ValueError as error:
            # The storage layer below Orbax hides the operating system's
            # error in a text.
            hidden = re.search(r"os_error_code='(\d+)'", str(error))
            if hidden:
                code = int(hidden[1])
            elif "No space left" in str(error):
                code = errno.ENOSPC
            else:
                raise
            raise OSError(code, os.strerror(code), str(self.folder)) from None
        # After a kill between the two the state is whole, and unchecked.
        path = self._of(step)
        content = {
            "rows": rows,
            "sha256": {
                str(file.relative_to(path)): files.sha256(file)
                for file in sorted(path.rglob("*"))
                if file.is_file()
            },
        }
        files.write_json(path / _CHECKSUMS, files.sealed(content))

    def _check_room(self, state: Any) -> None:
        """Raises OSError where a state does not fit: of a write that fails
        midway the storage layer's threads print a traceback of their own."""
        leaves = jax.tree.leaves(state)
        needed = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        if shutil.disk_usage(self.folder).free < needed + _BESIDE:
            raise OSError(
                errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder)
            )

    def _of(self, step: int) -> Path:
        return self.folder / str(step)

    def _checked(self, step: int) -> dict[str, Any]:
        """What is told beside a state; {} where an older version wrote it.

        Raises:
          ValueError: a file is not what was written.
          OSError: one is gone.
        """
        path = self._of(step)
        try:
            told = files.read_json(path / _CHECKSUMS)
        except FileNotFoundError:
            return {}
        for name, expected in told["sha256"].items():
            if files.sha256(path / name) != expected:
                raise files.DamagedFile(f"{path / name} has changed")
        return told

    def rows(self, step: int) -> int:
        """Lines of the metrics that belong to a checkpoint that was restored;
        0 where an older version wrote it."""
        return self._checked(step).get("rows", 0)

    def restore(self, like: Any, every: int = 1) -> tuple[int, Any] | None:
        """The latest state that can be read, or None.

        A checkpoint that cannot be read is removed, with a warning, once an
        older one could be: the run will write it again.

        Args:
          like: a state of the same structure and shapes.
          every: only checkpoints of multiples of it.

        Returns:
          (step, state) or None.

        Raises:
          InputError: there are checkpoints, and none can be read.
        """
        if hosts.count() > 1:
            wanted = jax.tree.map(hosts.plain, like)
        else:
            wanted = like
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            if step % every:
                continue
            try:
                # First: of damaged files Orbax prints more than it raises.
                self._checked(step)
                state = self._manager.restore(
                    step, args=ocp.args.StandardRestore(abstract)
                )
            # Of the many formats in there each has its own exceptions.
            except Exception:
                damaged.append(step)
                continue
            for bad in damaged:
                logging.warning(
                    "checkpoint %d in %s is damaged: going on from %d",
                    bad,
                    self.folder,
                    step,
                )
                self._manager.delete(bad)
            return step, jax.tree.map(hosts.typed, like, state)
        if damaged and every == 1:
            raise InputError(
                f"no checkpoint in {self.folder} can be read: remove that "
                "folder and run the same command to start again"
            )
        return None

    def close(self) -> None:
        """Waits for what is under way."""
        self._manager.close()
