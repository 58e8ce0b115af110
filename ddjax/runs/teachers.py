"""Teachers: trained where they are missing, shared between runs.

Each is an ordinary training run on the real images; its parameters are stored
at the start and after every epoch that a segment can reach.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import (
    augment,
    files,
    hosts,
    models,
    parallel,
    training,
    trajectories,
)
from ddjax.data import sources
from ddjax.runs import loop
from ddjax.runs.prepare import Task
from ddjax.settings import Settings, Teacher
from ddjax.types import Batch

__all__ = ["key_of", "recipe_of", "record", "train"]


def recipe_of(teacher: Teacher) -> training.Recipe:
    """How a whole teacher is trained, and networks on all images like it."""
    return training.Recipe(
        epochs=teacher.epochs,
        batch_size=teacher.batch_size,
        augment=augment.parse(teacher.augment),
        epoch_steps=teacher.snapshot_steps,
        flatness=teacher.flatness,
    )


# The training images themselves are what the rest of the data's part decides.
_SHAPES_NOTHING = ("teacher.count", "teacher.epochs")
# Fields that came later: teachers of before are found again by what they are.
_ABSENT_AT = {
    "teacher.snapshot_steps": 0,
    "teacher.flatness": 0.0,
    "teacher.class_weights": "none",
}


def key_of(settings: Settings) -> jax.Array:
    """The key of all teachers; teacher i has ``fold_in(key, i)``."""
    return jax.random.fold_in(jax.random.key(settings.seed), 0x7EAC)


def train(
    settings: Settings, task: Task, folder: Path
) -> trajectories.Teachers:
    """Trains or opens the teachers of a run.

    Args:
      settings: of the run; the data, model and teacher parts, the seed, and
        how many epochs IADD's segments reach decide which teachers.
      task: data and network.
      folder: the parent of all teachers.

    Raises:
      InputError: what is there is damaged, or a teacher is not finite.
    """
    teacher, stored = settings.teacher, settings.iadd.stored_epochs
    shaped_by: dict[str, Any] = {
        field: value
        for field, value in settings.flat().items()
        if field.startswith(("model.", "teacher."))
        and field not in _SHAPES_NOTHING
        and _ABSENT_AT.get(field, ...) != value
    }
    shaped_by |= {
        "data.preprocess": settings.data.preprocess,
        "seed": settings.seed,
        "stored_epochs": stored,
        "data": sources.fingerprint(task.splits.train),
    }
    data, left = task.training_data(teacher.class_weights)
    return record(
        folder / f"{named_after(settings.data.source, shaped_by)}",
        key_of(settings),
        data,
        task.module,
        count=teacher.count,
        recipe=recipe_of(teacher)._replace(epochs=stored),
        learning_rate=teacher.learning_rate,
        preprocessing=left,
        dtype=teacher.dtype,
        shaped_by=shaped_by,
    )


def named_after(source: str, shaped_by: dict[str, Any]) -> str:
    """A folder's name: the source, and a digest of all that shapes it."""
    digest = hashlib.sha256(json.dumps(shaped_by, sort_keys=True).encode())
    return f"{source.replace('/', '_')}-{digest.hexdigest()[:12]}"


def record(
    folder: Path,
    key: jax.Array,
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
) -> trajectories.Teachers:
    """Trains the teachers that a folder lacks, and opens it.

    Teacher i draws from ``fold_in(key, i)``, so an interrupted recording
    goes on where it stopped, and more teachers can be added, with the same
    result. Of two processes that record the same one waits for the other.

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
        this backend and all its devices, as far as their snapshots fit into
        2 GiB, but one a device.

    Returns:
      Teachers.

    Raises:
      InputError: the folder holds other teachers, or a damaged one; or a
        teacher is not finite; or a stream's labels and images do not belong
        together.
    """
    at_once = at_once or _that_fit(module, data, recipe.epochs)
    if not isinstance(data, training.Stream):
        data = Batch(jnp.asarray(data.images), jnp.asarray(data.labels))
    with contextlib.ExitStack() as held:
        if hosts.writes():
            held.enter_context(files.alone(folder, "trains teachers", print))
        with hosts.first():
            recorder = trajectories.Recorder(
                folder, dtype=dtype, shaped_by=shaped_by
            )
        missing = hosts.from_writer(lambda: recorder.missing(count))
        bar = loop.progress(
            "teachers",
            count * recipe.epochs,
            unit="epoch",
            initial=(count - len(missing)) * recipe.epochs,
        )
        with bar:
            for first in range(0, len(missing), at_once):
                group = missing[first : first + at_once]
                snapshots = _train_group(
                    group,
                    jnp.stack([jax.random.fold_in(key, i) for i in group]),
                    data,
                    module,
                    bar,
                    recipe=recipe,
                    learning_rate=learning_rate,
                    preprocessing=preprocessing,
                )
                if hosts.writes():
                    recorder.write(group, snapshots)
    hosts.meet()
    return trajectories.Teachers(folder, count)


# Of the snapshots of teachers side by side, which memory holds until the last.
_GROUP_BYTES = 1 << 31


def _that_fit(module: Any, data: Any, epochs: int) -> int:
    """How many teachers to train side by side, one a device at least."""
    params = jax.eval_shape(
        lambda key: models.init_params(module, key, data.images.shape[1:]),
        jax.random.key(0),
    )
    size = 4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return parallel.that_fit((epochs + 1) * size, _GROUP_BYTES)


def _train_group(group, keys, data, module, bar, *, preprocessing, **how):
    """Params of teachers side by side, at the start and after every epoch."""
    snapshots: list[Any] = []

    def one_epoch(carry, epoch):
        carry = trajectories.advance(
            carry,
            keys,
            epoch,
            data,
            module,
            preprocessing=preprocessing,
            **how,
        )
        return carry, {"largest parameter": _largest(carry[0])}

    loop.run(
        trajectories.begin(keys, data.images.shape[1:], module, **how),
        name=f"teachers {', '.join(map(str, group))}",
        unit="epoch",
        last=how["recipe"].epochs,
        draw=lambda epoch: epoch,
        update=one_epoch,
        guard=loop.finite(
            "look for NaN in the data, or lower teacher.learning_rate"
        ),
        looks=range(how["recipe"].epochs + 1) if hosts.writes() else (),
        look=lambda carry, epoch: snapshots.append(
            jax.tree.map(np.asarray, carry[0])
        ),
        bar=bar,
        ticks=len(group),
    )
    return snapshots


@jax.jit
def _largest(params):
    return jnp.stack([jnp.abs(x).max() for x in jax.tree.leaves(params)]).max()
