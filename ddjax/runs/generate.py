"""Images of a distilled generator: any number, for any class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from ddjax import artifact
from ddjax.data import sources
from ddjax.data.classes import one_hot
from ddjax.pages.pictures import save_picture
from ddjax.runs import choose as choices
from ddjax.runs import d2m, prepare, protocols, workdir
from ddjax.settings import Settings, numbers
from ddjax.types import InputError

__all__ = ["classes_of", "images_of", "run"]

_MOST = 1 << 32  # values of all images, 16 GiB


def run(
    generator: Path,
    out: Path,
    *,
    ipc: str,
    seed: int = 0,
    classes: str = "",
    choose: str = "random",
    shared: workdir.Shared | None = None,
) -> None:
    """Makes images and writes ``distilled.npz``, the same self-describing file
    as IADD's, and ``distilled.png``.

    Args:
      generator: a run of D2M or a pre-training, or a generator's file.
      out: a folder to make.
      ipc: images per class: one number, or one for each class, joined by
        commas.
      seed: of the noise.
      classes: names or numbers joined by commas; all by default.
      choose: of ``choose.CHOICES``; other than random only of a run of D2M,
        whose data and teachers it needs.
      shared: where those lie; below ``runs`` by default.

    Raises:
      InputError: the generator, a class or a number is not there, or the
        folder holds something else, or there is nothing to choose by.
    """
    found = artifact.find_generator(generator)
    names = found.metadata["class_names"]
    chosen = classes_of(classes, names)
    counts = list(numbers(ipc, "--ipc"))
    if len(counts) == 1:
        counts *= len(chosen)
    if len(counts) != len(chosen):
        raise InputError(
            f"--ipc must be one number or {len(chosen)}, one for each class, "
            f"not {len(counts)}"
        )
    kept = out / "distilled.npz"
    if not out.name or kept.exists() or (out / "config.json").exists():
        raise InputError(
            f"--out={out} is a run or holds {kept.name} already: name "
            "another folder"
        )
    # Before the labels: they too take memory.
    _check_size(found, sum(counts))
    labels = np.repeat(np.asarray(chosen, np.int32), counts)
    images = images_of(found, labels, seed, choose, shared)
    out.mkdir(parents=True, exist_ok=True)
    artifact.save(
        kept,
        artifact.Artifact(
            images,
            one_hot(labels, len(names)),
            found.metadata.get("learning_rate", 0.01),
            found.preprocessing,
            # All that the generator's file tells of itself, scores included.
            found.metadata | {"seed": seed, "ipc": ipc, "choose": choose},
        ),
    )
    save_picture(out / "distilled.png", images, labels, names)
    print(
        f"{len(images)} images of {len(chosen)} classes: "
        f"{kept}, {out / 'distilled.png'}"
    )


def _check_size(found: artifact.GeneratorArtifact, count: int) -> None:
    values = count * math.prod(found.apply.image_shape)
    if values > _MOST:
        raise InputError(
            f"{count:,} images are {values / 2**28:.0f} GiB: lower --ipc"
        )


def images_of(
    found: artifact.GeneratorArtifact,
    labels: np.ndarray,
    seed: int = 0,
    choose: str = "random",
    shared: workdir.Shared | None = None,
) -> np.ndarray:
    """New images of some classes.

    Args:
      found: the generator.
      labels: [n] integers, the class of each image.
      seed: of the noise, 0 to 2**32 - 1.
      choose: of ``choose.CHOICES``.
      shared: where the data and teachers lie that a choice needs; below
        ``runs`` by default.

    Returns:
      [n h w c] float32 pixels in 0..1.

    Raises:
      InputError: a label is no class, the seed is out of range, the images
        are too many, or there is nothing to choose by.
    """
    choices.check(choose)
    labels, k = np.asarray(labels), found.apply.module.num_classes
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"labels must be integers [n], the classes of the images, not "
            f"{labels.dtype} of shape {labels.shape}"
        )
    if not len(labels) or labels.min() < 0 or labels.max() >= k:
        raise InputError(
            f"labels must be one or more of 0..{k - 1}, the generator's classes"
        )
    if not 0 <= seed < 1 << 32:
        raise InputError(f"--seed must lie in 0..2**32 - 1, not at {seed}")
    _check_size(found, len(labels))
    make = protocols.drawn_images
    if choose != "random":
        make = _chooser(found, choose, shared or workdir.Shared()).images
    return make(
        found, found.params, labels.astype(np.int32), jax.random.key(seed)
    )


def _chooser(found, how, shared):
    """By the data and the teachers of the run that the generator is of."""
    config = found.metadata.get("config")
    if not config:
        raise InputError(
            f"--choose={how} needs the generator of a finished run of "
            "experiments/d2m.py, which tells its data and teachers: take that, "
            "or --choose=random"
        )
    settings = Settings().changed(config)
    task = prepare.task(
        settings.data, settings.model, settings.seed, shared.data
    )
    if sources.fingerprint(task.splits.train) != found.metadata["data"]:
        raise InputError(
            "the data of this generator are not the images that it was made "
            "of: restore those, or take --choose=random"
        )
    chooser = d2m.chooser(settings, task, shared.teachers, how)
    if chooser is None:
        raise InputError(
            "this generator was made with d2m.networks=random, so there are no "
            f"teachers to choose by: --choose={how} cannot be, take "
            "--choose=random"
        )
    return chooser


def classes_of(joined: str, names: Sequence[str]) -> list[int]:
    """Class numbers from names or numbers.

    Raises:
      InputError: one is unknown, or named twice.
    """
    if not joined:
        return list(range(len(names)))
    by_name = {str(name): number for number, name in enumerate(names)}
    by_number = {str(number): number for number in range(len(names))}
    chosen = []
    for word in joined.split(","):
        number = by_name.get(word.strip(), by_number.get(word.strip()))
        if number is None or number in chosen:
            what = "twice in" if number is not None else "unknown in"
            raise InputError(
                f"class {word.strip()!r} is {what} --classes: choose from "
                f"{d2m.some(names)}, or numbers 0..{len(names) - 1}"
            )
        chosen.append(number)
    return chosen
