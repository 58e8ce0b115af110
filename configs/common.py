"""Every field of a config: its default, its meaning, and how it is checked.

A config file's ``get_config(arg)`` calls ``base()`` and sets what differs.
Fields are overridden on the command line as ``--config.iadd.ipc=10``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from ddjax.types import InputError

DSA = "color_crop_cutout_flip_scale_rotate"

SIZES = ("full", "small")

# field: (default, meaning). The type of the default is the field's type.
FIELDS: dict[str, tuple[Any, str]] = {
    "seed": (0, "decides everything random in the run"),
    "data.source": (
        "digits",
        "digits, folder, npz, tiny_imagenet, imagenet, or a TFDS name",
    ),
    "data.data_dir": (
        "",
        "the folder of images, the .npz file, or TFDS's folder (empty: its "
        "default)",
    ),
    "data.size": (0, "side in pixels; 0: as the images are, all alike"),
    "data.crop": ("center", "to a square: center or stretch"),
    "data.channels": (0, "1 grey, 3 colour, 0 what the images are"),
    "data.classes": ("", "names or numbers joined by commas; empty: all"),
    "data.class_names": ("", "what to call them instead, joined by commas"),
    "data.per_class": (0, "the first so many training images of each; 0: all"),
    "data.test_share": (0.2, "of each class, where there is no test part"),
    "data.held_out": (0.1, "share of each class set aside for selection"),
    "data.unreadable_share": (0.01, "more broken images than that: refused"),
    "data.in_memory_gb": (4.0, "larger sets are read from disk as used"),
    "data.preprocess": ("standardise", "standardise, zca or none"),
    "model.name": ("convnet", "the student's and the teachers' network"),
    "model.width": (128, "channels of each block"),
    "model.depth": (3, "blocks; each halves the image"),
    "teacher.count": (100, "teachers"),
    "teacher.epochs": (50, "epochs of a whole teacher; stored: reachable ones"),
    "teacher.learning_rate": (0.01, "of SGD without momentum or decay"),
    "teacher.batch_size": (256, "images a step"),
    "teacher.augment": (DSA, "DSA groups joined by _, or none"),
    "teacher.dtype": ("float32", "of stored snapshots: float32 or bfloat16"),
    "iadd.ipc": (1, "distilled images per class"),
    "iadd.iterations": (5000, "updates of the outer loop"),
    "iadd.inner_steps": (50, "J: steps of the student"),
    "iadd.span": (2, "K: teacher epochs from start to target"),
    "iadd.max_start": (2, "last teacher epoch to start from, included"),
    "iadd.batch_size": (0, "distilled images per inner step; 0: all"),
    "iadd.segments": (1, "segments per update, spread over the devices"),
    "iadd.augment": (DSA, "DSA groups joined by _, or none"),
    "iadd.image_step": (100.0, "rate of the outer SGD on images"),
    "iadd.momentum": (0.5, "of the outer SGD"),
    "iadd.learning_rate": (0.01, "alpha_0, the student's first rate"),
    "iadd.learning_rate_step": (1e-7, "rate of the outer SGD on alpha"),
    "iadd.learning_rate_bounds": (
        (1e-6, 1.0),
        "the run stops where alpha leaves them",
    ),
    "iadd.label_step": (0.0, "rate of the outer SGD on label logits; 0: hard"),
    # The default form was chosen by benchmarks/importance.py; BUILD_NOTES.md
    # has the table.
    "iadd.importance.form": (
        "displacement",
        "none (MTT), free, clipped, exponential or displacement",
    ),
    "iadd.importance.per": ("parameter", "parameter or tensor"),
    "iadd.importance.bound": (1.0, "of log W, before rescaling"),
    "iadd.importance.rescale": (
        "network",
        "what mean(W^2) = 1 is held over: none, network or tensor",
    ),
    "iadd.importance.direction": ("ascend", "descend or ascend on the loss"),
    "iadd.importance.step": (0.01, "of Adam on log W"),
    "iadd.importance.power": (0.5, "of the displacement form"),
    "gan.width": (64, "of generator and critic: their channels' unit"),
    "gan.noise": (128, "length of the noise vector"),
    "gan.embedding": (0, "shared by all norms; 0: a row a class in each"),
    "gan.attention": (0, "side of features with self-attention; 0: none"),
    "gan.iterations": (100_000, "updates of the generator"),
    "gan.critic_steps": (4, "before each of them"),
    "gan.batch_size": (50, "images a step, spread over the devices"),
    "gan.generator_rate": (2e-4, "of Adam, betas (0, 0.999)"),
    "gan.critic_rate": (2e-4, "the same"),
    "gan.average": (0.9999, "decay of the generator's average"),
    "gan.augment": (
        "color_crop_cutout",
        "DSA groups joined by _, one after another, or none",
    ),
    "gan.looks": (8, "times that samples are kept and measured"),
    "d2m.generator": ("", "a generator's file or run; empty: pre-train one"),
    "d2m.iterations": (20_000, "updates"),
    "d2m.rate": (2e-5, "of Adam, betas (0, 0.999)"),
    "d2m.average": (0.999, "decay of the generator's average"),
    "d2m.per_class": (16, "real images of a class in a batch; as many made"),
    "d2m.classes": (0, "in a batch, drawn anew each time; 0: all"),
    "d2m.groups": (1, "batches per update, spread over the devices"),
    "d2m.augment": (DSA, "DSA groups joined by _, or none"),
    "d2m.layers": ("", "features to match, joined by commas; empty: all"),
    "d2m.power": (4.0, "p of channel attention"),
    "d2m.temperature": (4.0, "T of prediction matching"),
    "d2m.embedding": (1.0, "weight of embedding matching; 0: none"),
    "d2m.balance": (10.0, "weight of prediction matching; 0: none"),
    "d2m.networks": ("trained", "from the teachers' snapshots, or random"),
    "d2m.first_epoch": (1, "of the snapshots; the last is the last stored"),
    "d2m.redraw_every": (1, "updates with the same networks"),
    "d2m.ipcs": ("1,10,50", "images per class to evaluate, stored"),
    "d2m.epochs": ("1000", "of evaluation; one for all, or one for each ipc"),
    "d2m.stream_ipc": (50, "images per class of an epoch, stream"),
    "evaluate.models": ("convnet", "networks to test on, joined by commas"),
    "evaluate.networks": (5, "fresh networks for each figure"),
    "evaluate.epochs": (1000, "on the distilled images"),
    "evaluate.batch_size": (256, "images a step, or all if fewer"),
    "evaluate.momentum": (0.9, "of SGD at the distilled learning rate"),
    "evaluate.weight_decay": (5e-4, "of SGD"),
    "evaluate.augment": (DSA, "DSA groups joined by _, or none"),
    "evaluate.real_learning_rate": (0.01, "for random real images"),
    "evaluate.metric": (
        "accuracy",
        "what a state is selected by: accuracy or balanced_accuracy",
    ),
    "evaluate.looks": (10, "times that the held-out images are looked at"),
    "evaluate.look_networks": (3, "fresh networks for each look"),
    "log.every": (10, "updates between lines of metrics.jsonl"),
    "log.checkpoint_every": (100, "updates between checkpoints"),
}


def base() -> ml_collections.ConfigDict:
    """All fields at their defaults: the literature's, at CIFAR-10 IPC 1."""
    config = ml_collections.ConfigDict()
    for field, (default, _) in FIELDS.items():
        *groups, name = field.split(".")
        part = config
        for group in groups:
            if group not in part:
                part[group] = ml_collections.ConfigDict()
            part = part[group]
        part[name] = default
    return config.lock()


def flat(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """{"iadd.ipc": 1, ..} in the order of ``FIELDS``."""
    values = {}
    for field in FIELDS:
        part: Any = config
        for name in field.split("."):
            part = part[name]
        values[field] = part
    return values


def options(
    argument: str,
    *,
    ipcs: Sequence[int],
    size: str,
    what: str = "",
) -> tuple[str, int, str]:
    """What stands behind the colon of ``--config=FILE:ARGUMENT``.

    Args:
      argument: "ipc=10", "size=small", both joined by a comma, or nothing;
        after a first word of its own where the config takes one.
      ipcs: the images per class that the config has hyperparameters for; the
        first is the default.
      size: "full" or "small", the default.
      what: what the first word is; "" where there is none.

    Returns:
      (first word, ipc, size).

    Raises:
      InputError: the argument says something else.
    """
    words = argument.split(",") if argument else []
    chosen = {"ipc": str(ipcs[0]), "size": size}
    while words and words[-1].partition("=")[0] in chosen:
        name, _, value = words.pop().partition("=")
        chosen[name] = value
    first = ",".join(words)
    if first and not what:
        raise InputError(
            f"the config takes ipc= and size= behind the colon, joined by a "
            f"comma, and not {first!r}"
        )
    if what and not first:
        raise InputError(f"the config needs {what} behind a colon")
    if chosen["size"] not in SIZES:
        raise InputError(
            f"size={chosen['size']}: choose {' or '.join(SIZES)}; the side in "
            "pixels is --config.data.size"
        )
    if chosen["ipc"] not in map(str, ipcs):
        raise InputError(
            f"ipc={chosen['ipc']} has no hyperparameters here: choose "
            f"{', '.join(map(str, ipcs))}, or take the nearest of them and "
            "override --config.iadd.ipc"
        )
    return first, int(chosen["ipc"]), chosen["size"]


def published(
    config: ml_collections.ConfigDict,
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
) -> None:
    """Sets what a row of MTT's table of hyperparameters says."""
    config.iadd.ipc = ipc
    config.iadd.inner_steps = steps
    config.iadd.span = span
    config.iadd.max_start = max_start
    config.iadd.batch_size = batch
    config.iadd.image_step = image_step
    config.iadd.learning_rate_step = rate_step
    config.iadd.learning_rate = rate
    config.data.preprocess = "zca" if zca else "standardise"


def biggan(config: ml_collections.ConfigDict, side: int) -> None:
    """BigGAN's published shape at 128 pixels; at 64, a width of 64 with it.

    At 32 pixels its shape is the default.
    """
    config.gan.width = 96 if side == 128 else 64
    config.gan.noise = 120
    config.gan.embedding = 128
    config.gan.attention = side // 2


def augmented_by(config: ml_collections.ConfigDict, groups: str) -> None:
    """One augmentation for teachers, students and evaluation."""
    config.teacher.augment = groups
    config.iadd.augment = groups
    config.evaluate.augment = groups


def change(
    config: ml_collections.ConfigDict, fields: Mapping[str, Any]
) -> None:
    """Sets fields by their dotted names."""
    for field, value in fields.items():
        *groups, name = field.split(".")
        part = config
        for group in groups:
            part = part[group]
        part[name] = value


def small(config: ml_collections.ConfigDict, ipc: int) -> None:
    """A version for two CPU cores: narrow network, few and short teachers.

    Sized so that CIFAR-10 takes less than three quarters of an hour; larger
    sets take longer. What depends on the data set is set by its config after
    this.
    """
    change(
        config,
        {
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
        },
    )
