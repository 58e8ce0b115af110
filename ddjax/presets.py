"""Values of many fields at once: {dotted name: value}, for ``Settings.of``.

Config files and ``ddjax.distill`` start from these, so that a call in Python
and a command make the same run.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

from ddjax import files
from ddjax.data import folders
from ddjax.types import InputError

__all__ = [
    "FOLDER_SIDE",
    "biggan",
    "folder",
    "of_side",
    "own",
    "published",
    "small",
]

Values = dict[str, Any]

# Of a source: TFDS puts a config behind a slash, a version behind a colon.
_NAME = re.compile(r"\w+(/[\w.+-]+)*(:[\w.*]+)?")


def published(
    ipc: int,
    *,
    steps: int,
    span: int,
    max_start: int,
    batch: int,
    image_step: float,
    rate_step: float,
    rate: float,
    zca: bool = False,
) -> Values:
    """What a row of MTT's table of hyperparameters says."""
    return {
        "iadd.ipc": ipc,
        "iadd.inner_steps": steps,
        "iadd.span": span,
        "iadd.max_start": max_start,
        "iadd.batch_size": batch,
        "iadd.image_step": image_step,
        "iadd.learning_rate_step": rate_step,
        "iadd.learning_rate": rate,
        "data.preprocess": "zca" if zca else "standardise",
    }


def biggan(side: int) -> Values:
    """BigGAN's published shape at 128 pixels; at 64, a width of 64 with it.

    At 32 pixels its shape is the default.
    """
    return {
        "gan.width": 96 if side == 128 else 64,
        "gan.noise": 120,
        "gan.embedding": 128,
        "gan.attention": side // 2,
    }


def small(ipc: int) -> Values:
    """A version for two CPU cores: narrow network, few and short teachers.

    Sized so that CIFAR-10 takes less than three quarters of an hour; larger
    sets take longer. What depends on the data set is set by its config after
    this.
    """
    return {
        "model.width": 32,
        "teacher.count": 5,
        "teacher.epochs": 4,
        "iadd.ipc": ipc,
        "iadd.iterations": 300,
        "iadd.inner_steps": 20 if ipc == 1 else 10,
        "iadd.span": 1,
        "iadd.max_start": 2,
        "iadd.batch_size": 0 if ipc == 1 else 50,
        "iadd.learning_rate": 0.02,
        "iadd.learning_rate_step": 1e-6,
        "evaluate.epochs": 500 if ipc == 1 else 150,
        "evaluate.looks": 5 if ipc == 1 else 3,
        "evaluate.full_steps": 3000,
        "gan.width": 8,
        "gan.noise": 64,
        "gan.embedding": 0,
        "gan.attention": 0,
        "gan.iterations": 2000,
        "gan.critic_steps": 2,
        "gan.batch_size": 64,
        "gan.generator_rate": 5e-4,
        "gan.critic_rate": 5e-4,
        "gan.average": 0.995,
        "d2m.iterations": 120,
        "d2m.rate": 1e-3,
        "d2m.average": 0.99,
        "d2m.epochs": "500,150,50",
        "log.checkpoint_every": 50,
    }


# By the side of the images: the steps of the set that was tuned and is nearest.
_TINY = {  # digits, 8 pixels
    "model.depth": 2,
    "teacher.count": 20,
    "teacher.epochs": 60,
    "teacher.batch_size": 64,
    "iadd.iterations": 400,
    "iadd.inner_steps": 20,
    "iadd.span": 2,
    "iadd.max_start": 20,
    "iadd.image_step": 10.0,
    "iadd.learning_rate": 0.02,
    "iadd.learning_rate_step": 1e-5,
    "d2m.epochs": "500,300,100",
}
_MIDDLE = {"model.depth": 3, "iadd.image_step": 100.0}  # CIFAR-10, 32 pixels


def _large(ipc: int) -> Values:  # X-rays, 64 pixels
    return {
        "model.depth": 4,
        "teacher.count": 10,
        "teacher.epochs": 20,
        "teacher.batch_size": 32,
        "iadd.span": 2,
        "iadd.max_start": 8,
        "iadd.iterations": 300 if ipc == 1 else 200,
        "iadd.inner_steps": 20 if ipc == 1 else 10,
        "iadd.image_step": 1000.0,
        "iadd.learning_rate": 0.003,
        "iadd.batch_size": 0 if ipc == 1 else 15,
        "evaluate.full_steps": 600,
    }


# What needs no tuning; benchmarks/outer.py compares it with SGD.
_SCALE_FREE = {
    "iadd.optimizer": "adam",
    "iadd.final_rate": 0.1,
    "iadd.clip": 2.0,
    "iadd.initial": "herding",
    "iadd.bound": "clamp",
}


def of_side(side: int, ipc: int, *, full: bool = False) -> Values:
    """A data set that nobody here has tuned, by the side of its images.

    Args:
      side: in pixels.
      ipc: distilled images per class.
      full: MTT's hyperparameters of Tiny ImageNet, for a GPU, instead of what
        two CPU cores have time for.
    """
    nearest = _TINY if side <= 16 else _MIDDLE if side <= 48 else _large(ipc)
    # Own sets are seldom balanced, and distilled images always are.
    metric = {
        "evaluate.metric": "balanced_accuracy",
        "teacher.class_weights": "balanced",
    }
    if not full:
        # Of several images a class each has a smaller part to play.
        rate = {} if ipc == 1 else {"iadd.image_rate": 0.03}
        return metric | small(ipc) | nearest | _SCALE_FREE | rate
    row = published(
        ipc,
        steps=10,
        span=2,
        max_start=10,
        batch=0,
        image_step=1e4,
        rate_step=1e-4,
        rate=1e-2,
    )
    depth = {"model.depth": nearest["model.depth"]}
    # Of 32 pixels and less BigGAN's shape is the default.
    return metric | (biggan(64) if side > 32 else {}) | row | depth


FOLDER_SIDE = 64
"""Pixels that the images of a folder are brought to, where they have them."""

_LEAST_SIDE = 8  # that of the smallest generator


def own(what: str, ipc: int, *, full: bool = False) -> Values:
    """A data set of the user's own, and where it lies.

    Of a folder some images are opened, and their usual side is taken where it
    is below ``FOLDER_SIDE``.

    Args:
      what: the path of an .npz file of arrays or of a folder of images, or
        the name of a source, such as a TFDS name; there may be a folder of
        that name too, which then counts.
      ipc: distilled images per class.
      full: see ``of_side``.

    Raises:
      InputError: the file is not there, or no .npz file.
    """
    path = Path(what).expanduser()
    if path.exists():
        what = str(Path(what))  # "photos/" is "photos"
    if path.suffix == ".npz":
        side = _side_of(path)
        where = {"data.source": "npz", "data.data_dir": what}
    elif path.is_dir() or not _NAME.fullmatch(what):
        # Enlarging would cost time and show networks nothing more.
        usual = folders.usual_side(path) or FOLDER_SIDE
        side = min(FOLDER_SIDE, max(_LEAST_SIDE, usual))
        where = folder(what, side)
    else:
        side = 8 if what == "digits" else 32
        where = {"data.source": what}
    return of_side(side, ipc, full=full) | where


def folder(path: str, side: int = FOLDER_SIDE) -> Values:
    """A folder of images by class, and the side that they are brought to."""
    return {
        "data.source": "folder",
        "data.data_dir": path,
        "data.size": side,
    }


def _side_of(path: Path) -> int:
    """The larger side of an .npz file's training images, from its header."""
    try:
        with (
            zipfile.ZipFile(path) as archive,
            archive.open("train_images.npy") as member,
        ):
            shape, _ = files.npy_header(member)
        return max(shape[1:3])
    except FileNotFoundError:
        raise InputError(
            f"there is no file {path}: check the path of the .npz file"
        ) from None
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile):
        raise InputError(
            f"{path} holds no images [n h w c] called train_images: see "
            "README.md for what an .npz file must hold"
        ) from None
