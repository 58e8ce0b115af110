"""A published generator as a file that D2M begins with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ddjax import artifact, files, tensors
from ddjax.data import imagenet
from ddjax.models import biggan, published
from ddjax.pages.pictures import save_picture
from ddjax.runs import d2m, gan, prepare, workdir
from ddjax.settings import Data, Settings
from ddjax.types import InputError

__all__ = ["run"]


def run(
    settings: Settings,
    shared: workdir.Shared,
    checkpoint: Path,
    out: Path,
    *,
    classes: str = "",
    epsilon: float | None = None,
) -> None:
    """Writes the generator file of a PyTorch checkpoint.

    Args:
      settings: the data set whose images it makes: their size, class names
        and preprocessing.
      shared: where the prepared data lie.
      checkpoint: a .pt, .pth or .safetensors file.
      out: the .npz file, or a folder for it and a picture of samples.
      classes: numbers of the checkpoint's classes joined by commas, in the
        data set's order; all by default, and of a subset of ImageNet its own.
      epsilon: of the batch norms; None takes the layout's.

    Raises:
      InputError: the checkpoint is no BigGAN, does not fit the data set, or
        the output is there already.
    """
    is_file = out.suffix == ".npz"
    kept = out if is_file else out / "generator.npz"
    if kept.exists() or (out / "config.json").exists():
        raise InputError(f"--out={out} is a run or there already: name another")
    if epsilon is not None and not 0 <= epsilon < 1:
        raise InputError(f"--epsilon must lie in 0..1, not at {epsilon:g}")
    found = published.generator(tensors.read(checkpoint), epsilon=epsilon)
    available = found.module.num_classes
    task = prepare.task(
        settings.data, settings.model, settings.seed, shared.data
    )
    rows = list(range(available))
    if classes:
        rows = _numbers(classes)
    elif available != task.num_classes:
        rows = _subset(settings.data) or rows
    if len(rows) != task.num_classes:
        raise InputError(
            f"{checkpoint} gives {len(rows)} classes and the config's data "
            f"set has {task.num_classes}: name as many of 0..{available - 1} "
            "with --classes, in the data set's order"
        )
    found = published.with_classes(found, rows)
    made = artifact.GeneratorArtifact(
        biggan.GenApply(found.module),
        found.params,
        task.preprocessing,
        {
            "class_names": list(task.splits.train.class_names),
            "method": "BigGAN, published",
            "imported": {
                "checkpoint": checkpoint.name,
                "sha256": files.sha256(checkpoint),
                "layout": found.layout,
                "classes": rows,
            },
        },
    )
    d2m.check_generator(checkpoint, made, task)
    kept.parent.mkdir(parents=True, exist_ok=True)
    artifact.save_generator(kept, made)
    if not is_file:
        images, labels = gan.sample_grid(settings.seed, made.apply, made.params)
        save_picture(
            out / "samples.png", images, labels, task.splits.train.class_names
        )
    module = found.module
    count = made.size_in_images * np.prod(task.image_shape)
    print(
        f"{kept}: {found.layout}, {module.size} px, width {module.width}, "
        f"{len(rows)} of {available} classes, noise {module.noise}, embedding "
        f"{module.embedding}, attention {module.attention}; {count:,.0f} "
        f"numbers, as many as {made.size_in_images:.1f} images"
    )


def _numbers(joined: str) -> list[int]:
    words = [word.strip() for word in joined.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise InputError(
            "--classes must be the checkpoint's numbers joined by commas, not "
            f"{joined!r}"
        )
    return list(map(int, words))


def _subset(data: Data) -> list[int]:
    """ImageNet's numbers of a config's classes, where they are known."""
    known = {
        wordnet: number
        for subset in imagenet.SUBSETS.values()
        for number, wordnet, _ in subset
    }
    wanted = data.classes.split(",")
    if data.source != "imagenet" or not set(wanted) <= set(known):
        return []
    return [known[wordnet] for wordnet in wanted]
