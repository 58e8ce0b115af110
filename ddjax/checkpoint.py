"""Checkpoints of a run's state: the only file that knows Orbax."""

from __future__ import annotations

import errno
import hashlib
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ddjax.types import InputError

__all__ = ["Checkpoints"]

# Orbax tells at length of every save; what matters reaches the user as an
# exception.
logging.getLogger("absl").setLevel(logging.WARNING)


class Checkpoints:
    """The two latest states of a run, each whole or not there.

    Orbax writes beside the old one and renames, so a kill at any moment
    leaves the last whole checkpoint to go on from.
    """

    def __init__(self, folder: Path):
        """Opens a folder of checkpoints; made if need be."""
        self.folder = Path(folder).resolve()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
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

    def save(self, step: int, state: Any, rows: int = 0) -> None:
        """Writes a state; returns when it is on the disk.

        Args:
          step: its number.
          state: a pytree of arrays.
          rows: lines of the metrics that belong to it.

        Raises:
          OSError: the disk is full or cannot be written.
        """
        try:
            self._manager.save(
                step,
                args=ocp.args.StandardSave(state),
                custom_metadata={_DIGEST: _digest(state), _ROWS: rows},
            )
        except ValueError as error:
            # The storage layer below Orbax hides the operating system's
            # error in a text.
            if "No space left" in str(error):
                raise OSError(
                    errno.ENOSPC, "No space left on device", str(self.folder)
                ) from None
            raise

    def rows(self, step: int) -> int:
        """Lines of the metrics that belong to a checkpoint; 0 where an older
        version wrote it."""
        return self._known(step).get(_ROWS, 0)

    def _known(self, step: int) -> dict[str, Any]:
        try:
            return self._manager.metadata(step).custom_metadata or {}
        except Exception:  # damaged; the state itself may be whole
            return {}

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The latest state that can be read, or None.

        A checkpoint that cannot be read is removed, with a warning, once an
        older one could be: the run will write it again.

        Args:
          like: a state of the same structure and shapes.

        Returns:
          (step, state) or None.

        Raises:
          InputError: there are checkpoints, and none can be read.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self._manager.restore(
                    step, args=ocp.args.StandardRestore(abstract)
                )
            # Of the many formats in there each has its own exceptions.
            except Exception:
                damaged.append(step)
                continue
            if self._known(step).get(_DIGEST) not in (None, _digest(state)):
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
            return step, state
        if damaged:
            raise InputError(
                f"no checkpoint in {self.folder} can be read: remove that "
                "folder and run the same command to start again"
            )
        return None

    def close(self) -> None:
        """Waits for what is under way."""
        self._manager.close()


# Beside a state. Not all that Orbax stores of one has a checksum of its own.
_DIGEST, _ROWS = "sha256", "rows"


def _digest(state: Any) -> str:
    """Of all values of a state, with their places, types and shapes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        leaf = np.asarray(leaf)
        name = jax.tree_util.keystr(path)
        digest.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()
