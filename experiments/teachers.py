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
import numpy as np

from configs import common
from ddjax import augment, models, training, trajectories
from ddjax.data import cache, preprocess, sources
from ddjax.data.rows import Rows
from ddjax.types import Batch, InputError

# The training images themselves are what the rest of a data config decides.
_SHAPES_NOTHING = ("teacher.count", "teacher.epochs") + tuple(
    field
    for field in common.FIELDS
    if field.startswith("data.") and field != "data.preprocess"
)


class Setting(NamedTuple):
    """What every stage after the data has in common.

    Attributes:
      splits: the data.
      preprocessing: pixels to network input, fitted on splits.train.
      module: the network.
    """

    splits: sources.Splits
    preprocessing: preprocess.Standardiser | preprocess.Whitener
    module: Any

    @property
    def num_classes(self) -> int:
        return len(self.splits.train.class_names)

    def network(self, config, name: str) -> Any:
        """The config's own network, or another one as it is built alone."""
        if name == config.model.name:
            return self.module
        return models.build(name, num_classes=self.num_classes)


def load(
    config, data_folder: Path, *, thorough: bool = False
) -> tuple[sources.Splits, cache.Cache | None]:
    """The data that a config names, from its cache or made now.

    Args:
      config: see configs/common.py.
      data_folder: the parent of all caches.
      thorough: check all of a large cache, not samples.

    Returns:
      (splits, the cache), which is None for what is bundled.
    """
    part = config.data.to_dict()
    preprocess.check_name(part.pop("preprocess"))
    form = sources.Form(*(part.pop(field) for field in sources.Form._fields))
    found: list[cache.Cache] = []
    with launch.progress("prepare", 0, unit="image") as bar:

        def progress(done, total):
            bar.total = total
            bar.update(done - bar.n)

        splits = sources.load(
            part.pop("source"),
            form=form,
            seed=config.seed,
            cache_dir=data_folder,
            thorough=thorough,
            progress=progress,
            say=bar.write,
            opened=found.append,
            **part,
        )
    return splits, (found or [None])[0]


def prepare(config, data_folder: Path) -> Setting:
    """Loads the data and builds the network that a config names."""
    splits, _ = load(config, data_folder)
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
    kept_in, name = None, config.data.preprocess
    if name == "zca" or isinstance(splits.train.images, Rows):
        found = sources.fingerprint(splits.train)[:12]
        kept_in = data_folder / f"{name}-{found}.npz"
    return Setting(
        splits,
        preprocess.fit(
            config.data.preprocess, splits.train.images, kept_in=kept_in
        ),
        module,
    )


def as_input(images, preprocessing):
    """(images, preprocessing) for training and testing, ready where it pays.

    Whitening is a product with a large matrix for each image, dear beside a
    narrow network's step: where the images are in memory it is done once, and
    nothing is left to do batch by batch.
    """
    if isinstance(images, Rows) or not isinstance(
        preprocessing, preprocess.Whitener
    ):
        return images, preprocessing
    apply = jax.jit(preprocess.apply)
    inputs = np.empty(images.shape, np.float32)
    for begin in range(0, len(images), 1000):
        some = slice(begin, begin + 1000)
        inputs[some] = apply(preprocessing, images[some])
    return inputs, None


def whole(setting: Setting) -> tuple[Batch | training.Stream, Any]:
    """The training images, on the device or read as they are used, and what
    preprocessing is left to do."""
    data = setting.splits.train
    images, left = as_input(data.images, setting.preprocessing)
    if isinstance(images, Rows):
        return training.Stream(images, data.labels, setting.num_classes), left
    return Batch(images, sources.one_hot(data.labels, setting.num_classes)), (
        left
    )


def recipe_of(config) -> training.Recipe:
    """How the stored part of each teacher is trained, checked."""
    teacher = config.teacher
    if teacher.count < 1:
        raise InputError(
            f"teacher.count must be at least 1, not {teacher.count}"
        )
    trajectories.check_dtype(teacher.dtype)
    return training.Recipe(
        epochs=config.iadd.max_start + config.iadd.span,
        batch_size=teacher.batch_size,
        augment=augment.parse(teacher.augment),
    ).check("teacher")


def run(config, workdir: Path, shared: launch.Shared) -> None:
    """Trains or opens the teachers of a config.

    Args:
      config: see configs/common.py.
      workdir: not used; teachers are shared between runs.
      shared: where data and teachers lie.
    """
    teachers = train(config, prepare(config, shared.data), shared.teachers)
    print(f"{teachers.count} teachers in {teachers.folder}")


def train(config, setting: Setting, folder: Path) -> trajectories.Teachers:
    """The same, with the data at hand."""
    iadd, teacher = config.iadd, config.teacher
    trajectories.check_range(iadd.max_start, iadd.span, teacher.epochs)
    recipe = recipe_of(config)
    stored = recipe.epochs
    shaped_by = {
        field: value
        for field, value in common.flat(config).items()
        if field.startswith(("data.", "model.", "teacher."))
        and field not in _SHAPES_NOTHING
    }
    shaped_by |= {"seed": config.seed, "stored_epochs": stored}
    shaped_by["data"] = sources.fingerprint(setting.splits.train)
    digest = hashlib.sha256(json.dumps(shaped_by, sort_keys=True).encode())
    name = config.data.source.replace("/", "_")
    data, left = whole(setting)
    with launch.progress(
        "teachers", max(teacher.count, 0) * stored, unit="epoch"
    ) as bar:
        return trajectories.record(
            folder / f"{name}-{digest.hexdigest()[:12]}",
            jax.random.fold_in(jax.random.key(config.seed), 0x7EAC),
            data,
            setting.module,
            count=teacher.count,
            recipe=recipe,
            learning_rate=teacher.learning_rate,
            preprocessing=left,
            dtype=teacher.dtype,
            shaped_by=shaped_by,
            progress=lambda: bar.update(),
        )


if __name__ == "__main__":
    launch.main(run, __doc__)
