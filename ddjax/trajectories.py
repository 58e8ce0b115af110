"""Teachers: their training runs, recorded, stored and read back.

A folder of teachers holds one ``manifest.json`` (what shaped them, the order
and shapes of the parameters, a checksum for each) and one array file per
teacher, [e N]: a row of all N parameters at the start and after each epoch.
A row is read through the memory map without touching the rest, which is
faster and smaller than a checkpoint library's slice by two orders.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Key

from ddjax import files, models, parallel, training
from ddjax.settings import check_range
from ddjax.types import Batch, InputError, Params, Segment

__all__ = ["Recorder", "Teachers", "advance", "begin", "sample_segment"]

_MANIFEST = "manifest.json"
_FORMAT = 1
_KEYS = {"dtype", "shaped_by", "leaves", "teachers"}
# NumPy's file format does not know bfloat16: it is stored as its bits.
_DTYPES = {
    "float32": (np.dtype(np.float32), np.dtype(np.float32)),
    "bfloat16": (np.dtype(np.uint16), np.dtype(ml_dtypes.bfloat16)),
}


def sample_segment(
    key: Key[Array, ""], trajectory: Params, *, max_start: int, span: int
) -> Segment:
    """A random segment of one teacher's run.

    Args:
      key: one key; decides the starting epoch, uniform in 0..max_start.
      trajectory: pytree of arrays that lead with e, the snapshots.
      max_start: last epoch to start from, included.
      span: K, epochs from start to target, at least 1.

    Returns:
      Segment(start, target) of params without the leading axis.

    Raises:
      InputError: the segment could run past the last snapshot.
    """
    snapshots = jax.tree.leaves(trajectory)[0].shape[0]
    check_range(max_start, span, snapshots - 1)
    start = jax.random.randint(key, (), 0, max_start + 1)
    return Segment(
        jax.tree.map(lambda leaf: jnp.asarray(leaf)[start], trajectory),
        jax.tree.map(lambda leaf: jnp.asarray(leaf)[start + span], trajectory),
    )


def begin(
    keys: Key[Array, " m"],
    image_shape: Sequence[int],
    module: Any,
    *,
    recipe: training.Recipe,
    learning_rate: float,
) -> tuple[Params, Any]:
    """Teachers side by side before their first epoch.

    Args:
      keys: one per teacher; decides initialisation, order and augmentation.
      image_shape: (h, w, c).
      module: a network from ``models.build``.
      recipe: of the training.
      learning_rate: of the training.

    Returns:
      (params, optimiser state) whose leaves lead with m.
    """
    params = jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        *(
            models.init_params(module, key, image_shape)
            for key in jax.vmap(jax.random.split)(keys)[:, 0]
        ),
    )
    optimizer = training.sgd(recipe, learning_rate, 1)
    return params, jax.vmap(optimizer.init)(params)


def advance(
    carry: tuple[Params, Any],
    keys: Key[Array, " m"],
    epoch: int,
    data: Batch | training.Stream,
    module: Any,
    *,
    recipe: training.Recipe,
    learning_rate: float,
    preprocessing: Any = None,
) -> tuple[Params, Any]:
    """One epoch of teachers side by side, at a constant rate.

    Args:
      carry: of ``begin``, or of the epoch before.
      keys: those of ``begin``.
      epoch: its number, from 0 on.
      data: stored images [n h w c] and one-hot labels [n k], on the device; or
        a Stream of them, with the same result.
      module: a network from ``models.build``.
      recipe: all but its number of epochs.
      learning_rate: of every step.
      preprocessing: where given, takes the images to network input.

    Returns:
      (params, optimiser state) after the epoch.
    """
    order_keys = jax.vmap(jax.random.split)(keys)[:, 1]
    epoch_keys = jax.vmap(jax.random.fold_in, (0, None))(order_keys, epoch)
    rate = jnp.asarray(learning_rate, jnp.float32)
    constant = recipe._replace(epochs=1, decay_at_half=False)
    if isinstance(data, training.Stream):
        return parallel.over_processes(
            lambda part: training.stream_epochs(
                part[0],
                part[1][None],
                data,
                rate,
                module=module,
                recipe=constant,
                num_steps=1,
                preprocessing=preprocessing,
            ),
            (carry, epoch_keys),
        )
    return parallel.spread_networks(
        _epoch,
        (carry, epoch_keys),
        data,
        rate,
        preprocessing,
        module=module,
        recipe=constant,
    )


@functools.partial(jax.jit, static_argnames=("module", "recipe"))
def _epoch(carry_and_keys, data, rate, preprocessing, *, module, recipe):
    def one(carry, key):
        params, opt_state, _ = training.train_epochs(
            training.module_loss(module, recipe.augment),
            training.sgd(recipe, rate, 1),
            *carry,
            lambda key: data,
            key[None],
            batch_size=recipe.batch_size,
            epoch_steps=recipe.epoch_steps,
            flatness=recipe.flatness,
            to_input=training.to_input(preprocessing),
        )
        return params, opt_state

    return parallel.map_networks(one, *carry_and_keys)


class Recorder:
    """A folder of teachers as it is filled, group by group."""

    def __init__(
        self, folder: Path, *, dtype: str, shaped_by: dict[str, Any]
    ) -> None:
        """Opens a folder; made if need be.

        Args:
          folder: of the teachers.
          dtype: "float32" or "bfloat16", of the stored parameters.
          shaped_by: JSON-able; whatever makes these teachers what they are.

        Raises:
          InputError: the folder holds teachers of another kind, or a damaged
            manifest.
        """
        self.folder = Path(folder)
        self._stored_as, self._kind = _DTYPES[dtype]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._manifest = _read_manifest(self.folder) or {
            "format": _FORMAT,
            "dtype": dtype,
            "shaped_by": shaped_by,
            "leaves": None,
            "teachers": {},
        }
        found = self._manifest["shaped_by"], self._manifest["dtype"]
        if found != (shaped_by, dtype):
            raise InputError(
                f"{folder} holds teachers of another kind: name another "
                "folder with --teachers, or remove it"
            )

    def missing(self, count: int) -> list[int]:
        """Which of ``count`` teachers are not there, or no longer."""
        recorded = self._manifest["teachers"]
        return [
            i
            for i in range(count)
            if str(i) not in recorded
            or not (self.folder / recorded[str(i)]["file"]).exists()
        ]

    def write(self, group: Sequence[int], snapshots: Sequence[Params]) -> None:
        """Stores some teachers, and only then counts them.

        Args:
          group: their numbers.
          snapshots: params at the start and after every epoch, whose leaves
            lead with m as ``group`` does.
        """
        leaves = jax.tree_util.tree_leaves_with_path(snapshots[0])
        self._manifest["leaves"] = [
            {
                "path": [entry.key for entry in path],
                "shape": list(leaf.shape[1:]),
            }
            for path, leaf in leaves
        ]
        rows = [
            np.concatenate(
                [
                    np.reshape(leaf, (len(group), -1))
                    for leaf in jax.tree.leaves(params)
                ],
                1,
            )
            .astype(self._kind)
            .view(self._stored_as)
            for params in snapshots
        ]
        for position, teacher in enumerate(group):
            name = f"teacher_{teacher:04d}.npy"
            with files.atomic_write(self.folder / name) as file:
                np.save(file, np.stack([row[position] for row in rows]))
            self._manifest["teachers"][str(teacher)] = {
                "file": name,
                "snapshots": len(rows),
                "sha256": files.sha256(self.folder / name),
            }
        files.write_json(self.folder / _MANIFEST, files.sealed(self._manifest))


class Teachers:
    """A folder of recorded teachers, read one snapshot at a time.

    Attributes:
      count: m, teachers in use.
      epochs: last stored epoch of each.
      manifest: what ``manifest.json`` says.
    """

    def __init__(self, folder: Path, count: int | None = None):
        """Opens a folder and checks every file of it.

        Args:
          folder: of a ``Recorder``.
          count: how many of its teachers to use; all by default.

        Raises:
          InputError: no manifest, too few teachers, or a file that is
            missing, truncated or changed; it is named.
        """
        self.folder = Path(folder)
        manifest = _read_manifest(self.folder)
        if manifest is None:
            raise InputError(
                f"{folder} holds no teachers: run experiments/teachers.py "
                "with the same config"
            )
        self.manifest = manifest
        recorded = manifest["teachers"]
        self.count = len(recorded) if count is None else count
        missing = [i for i in range(self.count) if str(i) not in recorded]
        if missing or self.count < 1:
            raise InputError(
                f"{folder} holds {len(recorded)} teachers, not {self.count}: "
                "run experiments/teachers.py with the same config"
            )
        self._kind = _DTYPES[manifest["dtype"]][1]
        self._rows = [
            self._open(manifest["teachers"][str(i)]) for i in range(self.count)
        ]
        self.epochs = min(rows.shape[0] for rows in self._rows) - 1

    def _open(self, entry: dict[str, Any]) -> np.ndarray:
        path = self.folder / entry["file"]
        mend = "remove it and run the same command to train that teacher again"
        try:
            if files.sha256(path) != entry["sha256"]:
                raise InputError(
                    f"teacher file {path} is truncated or damaged: {mend}"
                )
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise InputError(
                f"teacher file {path} is missing: run experiments/teachers.py "
                "with the same config"
            ) from None

    def snapshot(self, teacher: int, epoch: int) -> Params:
        """The parameters of one teacher after one epoch, as float32."""
        row = np.array(self._rows[teacher][epoch]).view(self._kind)
        row = row.astype(np.float32)
        params: dict[str, Any] = {}
        position = 0
        for leaf in self.manifest["leaves"]:
            *parents, last = leaf["path"]
            inner = params
            for name in parents:
                inner = inner.setdefault(name, {})
            size = int(np.prod(leaf["shape"]))
            inner[last] = row[position : position + size].reshape(leaf["shape"])
            position += size
        return params

    def sample(
        self, key: Key[Array, ""], *, max_start: int, span: int
    ) -> Segment:
        """A random segment of a random teacher; two rows are read.

        Args:
          key: decides the teacher, and the start uniform in 0..max_start.
          max_start: last epoch to start from, included.
          span: K, epochs from start to target.

        Returns:
          Segment of float32 NumPy arrays.

        Raises:
          InputError: the segment could run past the last stored epoch.
        """
        check_range(max_start, span, self.epochs)
        drawn = np.asarray(_draw(key, self.count, max_start + 1))
        teacher, start = drawn.tolist()
        return Segment(
            self.snapshot(teacher, start),
            self.snapshot(teacher, start + span),
        )


@jax.jit
def _draw(key, teachers, starts):
    return jnp.stack(
        [
            jax.random.randint(part, (), 0, limit)
            for part, limit in zip(jax.random.split(key), (teachers, starts))
        ]
    )


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / _MANIFEST
    try:
        manifest = files.read_json(path)
        if manifest["format"] != _FORMAT or not _KEYS <= manifest.keys():
            raise KeyError("format")
        return manifest
    except FileNotFoundError:
        return None
    except (files.DamagedFile, KeyError):
        raise InputError(
            f"{path} is damaged: remove {folder} and run the same command to "
            "train the teachers again"
        ) from None
