"""Teachers: their training runs, recorded, stored and read back.

A folder of teachers holds one ``manifest.json`` (what shaped them, the order
and shapes of the parameters, a checksum for each) and one array file per
teacher, [e N]: a row of all N parameters at the start and after each epoch.
A row is read through the memory map without touching the rest, which is
faster and smaller than a checkpoint library's slice by two orders.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Key

from ddjax import files, models, parallel, training
from ddjax.types import Batch, InputError, Params, Segment

__all__ = ["Teachers", "record", "sample_segment", "train_teachers"]

_MANIFEST = "manifest.json"
_FORMAT = 1
_KEYS = {"dtype", "shaped_by", "leaves", "teachers"}
# NumPy's file format does not know bfloat16: it is stored as its bits.
_DTYPES = {
    "float32": (np.dtype(np.float32), np.dtype(np.float32)),
    "bfloat16": (np.dtype(np.uint16), np.dtype(ml_dtypes.bfloat16)),
}


def check_range(max_start: int, span: int, epochs: int) -> None:
    """InputError unless segments fit in ``epochs`` epochs of training."""
    if span < 1:
        raise InputError(f"iadd.span (K) must be at least 1, not {span}")
    if max_start < 0:
        raise InputError(
            f"iadd.max_start must not be negative, not {max_start}"
        )
    if max_start + span > epochs:
        raise InputError(
            f"iadd.max_start + iadd.span = {max_start} + {span} is beyond the "
            f"teachers' {epochs} epochs: lower them or raise teacher.epochs"
        )


def check_dtype(dtype: str) -> None:
    """InputError unless snapshots can be stored as ``dtype``."""
    if dtype not in _DTYPES:
        raise InputError(
            f"teacher.dtype must be one of {', '.join(_DTYPES)}, not {dtype!r}"
        )


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


def train_teachers(
    keys: Key[Array, " m"],
    data: Batch | training.Stream,
    module: Any,
    *,
    recipe: training.Recipe,
    learning_rate: float,
    preprocessing: Any = None,
) -> Iterator[Params]:
    """Teachers side by side: their parameters at the start and every epoch.

    Args:
      keys: one per teacher; decides initialisation, order and augmentation.
      data: stored images [n h w c] and one-hot labels [n k], on the device; or
        a Stream of them, with the same result.
      module: a network from ``models.build``.
      recipe: ``recipe.epochs`` epochs at a constant rate.
      learning_rate: that rate.
      preprocessing: where given, takes the images to network input.

    Yields:
      params whose leaves lead with m, ``recipe.epochs + 1`` times.
    """
    pairs = jax.vmap(jax.random.split)(keys)
    params = jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        *(
            models.init_params(module, key, data.images.shape[1:])
            for key in pairs[:, 0]
        ),
    )
    optimizer = training.sgd(recipe, learning_rate, 1)
    carry = params, jax.vmap(optimizer.init)(params)
    yield params
    rate = jnp.asarray(learning_rate, jnp.float32)
    constant = recipe._replace(epochs=1, decay_at_half=False)
    for epoch in range(recipe.epochs):
        epoch_keys = jax.vmap(jax.random.fold_in, (0, None))(pairs[:, 1], epoch)
        if isinstance(data, training.Stream):
            carry = training.stream_epochs(
                carry,
                epoch_keys[None],
                data,
                rate,
                module=module,
                recipe=constant,
                num_steps=1,
                preprocessing=preprocessing,
            )
        else:
            carry = _epoch(
                carry,
                epoch_keys,
                data,
                rate,
                preprocessing,
                module=module,
                recipe=constant,
            )
        yield carry[0]


@functools.partial(jax.jit, static_argnames=("module", "recipe"))
def _epoch(carry, keys, data, rate, preprocessing, *, module, recipe):
    def one(carry, key):
        params, opt_state, _ = training.train_epochs(
            training.supervised_loss(
                training.apply_fn_of(module), recipe.augment
            ),
            training.sgd(recipe, rate, 1),
            *carry,
            lambda key: data,
            key[None],
            batch_size=recipe.batch_size,
            to_input=training.to_input(preprocessing),
        )
        return params, opt_state

    return parallel.map_networks(one, carry, keys)


def record(
    folder: Path,
    key: Key[Array, ""],
    data: Batch | training.Stream,
    module: Any,
    *,
    count: int,
    recipe: training.Recipe,
    learning_rate: float,
    preprocessing: Any = None,
    dtype: str = "float32",
    shaped_by: dict[str, Any],
    at_once: int | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Teachers:
    """Trains the teachers that a folder lacks, and opens it.

    Teacher i draws from ``fold_in(key, i)``, so an interrupted recording
    goes on where it stopped, and more teachers can be added, with the same
    result.

    Args:
      folder: made if need be.
      key: of all teachers.
      data: stored images [n h w c] and one-hot labels [n k], which go to the
        device; or a Stream of images that do not fit there.
      module: a network from ``models.build``.
      count: m, teachers in all.
      recipe: of each; every epoch is stored.
      learning_rate: constant.
      preprocessing: where given, takes the images to network input.
      dtype: "float32" or "bfloat16", of the stored parameters.
      shaped_by: JSON-able; whatever made these teachers what they are. A
        folder that was shaped by something else is refused.
      at_once: teachers trained side by side; by default what is fastest on
        this backend.
      progress: called after every epoch of every teacher.

    Returns:
      Teachers.

    Raises:
      InputError: the folder holds other teachers, or a damaged one; or a
        stream's labels and images do not belong together.
    """
    check_dtype(dtype)
    if count < 1:
        raise InputError(f"teacher.count must be at least 1, not {count}")
    recipe.check("teacher")
    folder.mkdir(parents=True, exist_ok=True)
    manifest = _read_manifest(folder)
    if manifest is None:
        manifest = {
            "format": _FORMAT,
            "dtype": dtype,
            "shaped_by": shaped_by,
            "leaves": None,
            "teachers": {},
        }
    if (manifest["shaped_by"], manifest["dtype"]) != (shaped_by, dtype):
        raise InputError(
            f"{folder} holds teachers of another kind: name another folder "
            "with --teachers, or remove it"
        )
    at_once = at_once or parallel.networks_at_once()
    if not isinstance(data, training.Stream):
        data = Batch(jnp.asarray(data.images), jnp.asarray(data.labels))
    stored_as, kind = _DTYPES[dtype]
    missing = [i for i in range(count) if str(i) not in manifest["teachers"]]
    for _ in range((count - len(missing)) * recipe.epochs):
        progress()
    for begin in range(0, len(missing), at_once):
        group = missing[begin : begin + at_once]
        keys = jnp.stack([jax.random.fold_in(key, i) for i in group])
        rows = []
        for params in train_teachers(
            keys,
            data,
            module,
            recipe=recipe,
            learning_rate=learning_rate,
            preprocessing=preprocessing,
        ):
            leaves = jax.tree_util.tree_leaves_with_path(params)
            row = np.concatenate(
                [np.reshape(leaf, (len(group), -1)) for _, leaf in leaves], 1
            )
            if not np.isfinite(row).all():
                raise InputError(
                    f"a teacher among {group} is not finite after {len(rows)} "
                    "epochs: look for NaN in the data, or lower "
                    "teacher.learning_rate"
                )
            if rows:
                for _ in group:
                    progress()
            rows.append(row.astype(kind).view(stored_as))
        manifest["leaves"] = [
            {
                "path": [entry.key for entry in path],
                "shape": list(leaf.shape[1:]),
            }
            for path, leaf in leaves
        ]
        for position, teacher in enumerate(group):
            name = f"teacher_{teacher:04d}.npy"
            with files.atomic_write(folder / name) as file:
                np.save(file, np.stack([row[position] for row in rows]))
            manifest["teachers"][str(teacher)] = {
                "file": name,
                "snapshots": len(rows),
                "sha256": files.sha256(folder / name),
            }
        files.write_json(folder / _MANIFEST, manifest)
    return Teachers(folder, count)


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
          folder: of ``record``.
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
        mend = (
            f"remove it and its line in {self.folder / _MANIFEST}, and "
            "run the same command to train that teacher again"
        )
        try:
            if files.sha256(path) != entry["sha256"]:
                raise InputError(
                    f"teacher file {path} is truncated or damaged: {mend}"
                )
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise InputError(
                f"teacher file {path} is missing: {mend}"
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
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != _FORMAT or not _KEYS <= manifest.keys():
            raise KeyError("format")
        return manifest
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        raise InputError(
            f"{path} is damaged: remove {folder} and run the same command to "
            "train the teachers again"
        ) from None
