"""Trains the teachers of a config, or those that are still missing.

    python experiments/teachers.py --config=configs/tiny.py

Each teacher is an ordinary training run on the real images; its parameters
are stored at the start and after every epoch that a segment can reach. An
interrupted run goes on at the next missing teacher. ``experiments/iadd.py``
calls this by itself.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import launch

from configs import common
from ddjax import augment, models, training, trajectories
from ddjax.data import preprocess, sources
from ddjax.types import Batch


class Setting(NamedTuple):
    """What every stage after the data has in common.

    Attributes:
      splits: the data.
      preprocessing: pixels to network input, fitted on splits.train.
      module: the network.
    """

    splits: sources.Splits
    preprocessing: preprocess.Standardiser
    module: Any

    @property
    def num_classes(self) -> int:
        return len(self.splits.train.class_names)


def prepare(config) -> Setting:
    """Loads the data and builds the network that a config names."""
    splits = sources.load(
        config.data.source,
        data_dir=config.data.data_dir,
        held_out=config.data.held_out,
        seed=config.seed,
    )
    kwargs = {"width": config.model.width}
    if config.model.name == "convnet":
        kwargs["depth"] = config.model.depth
    module = models.build(
        config.model.name,
        num_classes=len(splits.train.class_names),
        **kwargs,
    )
    # A network that does not fit the images is refused here, before any work.
    jax.eval_shape(
        lambda: models.init_params(
            module, jax.random.key(0), splits.train.images.shape[1:]
        )
    )
    return Setting(
        splits,
        preprocess.fit(config.data.preprocess, splits.train.images),
        module,
    )


def run(config, workdir: Path, folder: Path) -> trajectories.Teachers:
    """Trains or opens the teachers of a config.

    Args:
      config: see configs/common.py.
      workdir: not used; teachers are shared between runs.
      folder: the parent of one folder per kind of teachers.
    """
    teachers = train(config, prepare(config), folder)
    print(f"{teachers.count} teachers in {teachers.folder}")
    return teachers


def train(config, setting: Setting, folder: Path) -> trajectories.Teachers:
    """The same, with the data at hand."""
    iadd, teacher = config.iadd, config.teacher
    trajectories.check_range(iadd.max_start, iadd.span, teacher.epochs)
    stored = iadd.max_start + iadd.span
    recipe = training.Recipe(
        epochs=stored,
        batch_size=teacher.batch_size,
        augment=augment.parse(teacher.augment),
    ).check("teacher")
    shaped_by = {
        field: value
        for field, value in common.flat(config).items()
        if field.startswith(("data.", "model.", "teacher."))
        and field not in ("teacher.count", "teacher.epochs", "data.data_dir")
    }
    shaped_by |= {"seed": config.seed, "stored_epochs": stored}
    shaped_by["data"] = _fingerprint(setting.splits.train)
    digest = hashlib.sha256(json.dumps(shaped_by, sort_keys=True).encode())
    train_set = setting.splits.train
    with launch.progress(
        "teachers", max(teacher.count, 0) * stored, unit="epoch"
    ) as bar:
        return trajectories.record(
            folder / f"{config.data.source}-{digest.hexdigest()[:12]}",
            jax.random.fold_in(jax.random.key(config.seed), 0x7EAC),
            Batch(
                train_set.images,
                sources.one_hot(train_set.labels, setting.num_classes),
            ),
            setting.module,
            count=teacher.count,
            recipe=recipe,
            learning_rate=teacher.learning_rate,
            preprocessing=setting.preprocessing,
            dtype=teacher.dtype,
            shaped_by=shaped_by,
            progress=lambda: bar.update(),
        )


def _fingerprint(data: sources.Dataset) -> str:
    digest = hashlib.sha256(data.images.tobytes())
    digest.update(data.labels.tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    launch.main(run, __doc__)
