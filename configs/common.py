"""Every field of a config: its default, its meaning, and how it is checked.

A config file's ``get_config(arg)`` calls ``base()`` and sets what differs.
Fields are overridden on the command line as ``--config.iadd.ipc=10``.
"""

from __future__ import annotations

from typing import Any

import ml_collections

DSA = "color_crop_cutout_flip_scale_rotate"

# field: (default, meaning). The type of the default is the field's type.
FIELDS: dict[str, tuple[Any, str]] = {
    "seed": (0, "decides everything random in the run"),
    "data.source": (
        "digits",
        "digits, cifar10 (from TFDS) or npz (own)",
    ),
    "data.data_dir": ("", "TFDS folder, or the .npz file; empty: default"),
    "data.held_out": (0.1, "share of each class set aside for selection"),
    "data.preprocess": ("standardise", "standardise or none"),
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
    "evaluate.models": ("convnet", "networks to test on, joined by commas"),
    "evaluate.networks": (5, "fresh networks for each figure"),
    "evaluate.epochs": (1000, "on the distilled images"),
    "evaluate.batch_size": (256, "images a step, or all if fewer"),
    "evaluate.momentum": (0.9, "of SGD at the distilled learning rate"),
    "evaluate.weight_decay": (5e-4, "of SGD"),
    "evaluate.augment": (DSA, "DSA groups joined by _, or none"),
    "evaluate.real_learning_rate": (0.01, "for random real images"),
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
