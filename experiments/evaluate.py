"""Tests a distilled file again, on any networks.

    python experiments/evaluate.py --config=configs/tiny.py \
        --workdir=runs/iadd-tiny --config.evaluate.models=convnet,mlp

Trains fresh networks on the file's images, as its config's ``evaluate`` part
says, and prints their test accuracy. It writes nothing.
"""

from __future__ import annotations

from pathlib import Path

import iadd as iadd_script
import jax
import launch
import teachers

from ddjax import artifact, evaluate, models
from ddjax.data import preprocess
from ddjax.types import Batch, InputError


def run(config, workdir: Path, teachers_dir: Path) -> None:
    """Prints one line for each network.

    Args:
      config: its data, model, evaluate and seed parts are used.
      workdir: holds distilled.npz.
      teachers_dir: not used.
    """
    found = artifact.load(workdir / "distilled.npz")
    setting = teachers.prepare(config)
    test = setting.splits.test
    if found.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"{workdir / 'distilled.npz'} holds images of "
            f"{found.images.shape[1:]}, the config's data set of "
            f"{test.images.shape[1:]}: name the config that it was made with"
        )
    for name in config.evaluate.models:
        module = (
            setting.module
            if name == config.model.name
            else models.build(name, num_classes=setting.num_classes)
        )
        score = evaluate.evaluate(
            jax.random.key(config.seed),
            evaluate.stored(
                preprocess.apply(found.preprocessing, found.images),
                found.labels,
            ),
            Batch(test.images, test.labels),
            module,
            recipe=iadd_script.recipe_of(config),
            learning_rate=found.learning_rate,
            num_networks=config.evaluate.networks,
            test_preprocessing=found.preprocessing,
        )
        print(
            f"{name:8} {100 * score.mean:6.2f} % +- {100 * score.ci95:.2f} "
            f"(95% of {config.evaluate.networks} networks)"
        )


if __name__ == "__main__":
    launch.main(run, __doc__)
