"""Tests distilled images or a distilled generator again, on any networks.

    python experiments/evaluate.py --config=configs/tiny.py --workdir=DIR

Trains fresh networks on the images of DIR/distilled.npz, as the config's
``evaluate`` part says (``--config.evaluate.models=convnet,mlp`` for two kinds),
and prints their test accuracy. With the run's own config these are the networks
of its eval.json, up to the rounding of the stored pixels. Of a run of d2m.py,
the generator is tested, beside itself before distillation, at the numbers of
images that ``d2m.ipcs`` says. DIR stays as it is.
"""

from __future__ import annotations

from pathlib import Path

import d2m as d2m_script
import iadd as iadd_script
import launch
import teachers

from ddjax import artifact, evaluate
from ddjax.data import preprocess
from ddjax.types import Batch, InputError


def run(config, workdir: Path, shared: launch.Shared) -> None:
    """Prints one line for each network.

    Args:
      config: its data, model, evaluate and seed parts are used.
      workdir: holds distilled.npz.
      shared: where the data lie.
    """
    if (workdir / "generator").is_dir():
        test_generator(config, workdir, shared)
        return
    found = artifact.load(workdir / "distilled.npz")
    setting = teachers.prepare(config, shared.data)
    test = setting.splits.test
    if found.images.shape[1:] != test.images.shape[1:]:
        raise InputError(
            f"{workdir / 'distilled.npz'} holds images of "
            f"{found.images.shape[1:]}, the config's data set of "
            f"{test.images.shape[1:]}: name the config that it was made with"
        )
    images, left = teachers.as_input(test.images, found.preprocessing)
    for name in iadd_script.model_names(config):
        module = setting.network(config, name)
        score = evaluate.evaluate(
            iadd_script.final_key(config),
            evaluate.stored(
                preprocess.apply(found.preprocessing, found.images),
                found.labels,
            ),
            Batch(images, test.labels),
            module,
            recipe=iadd_script.recipe_of(config),
            learning_rate=found.learning_rate,
            num_networks=config.evaluate.networks,
            test_preprocessing=left,
        )
        print(iadd_script.score_line(name, score))


def test_generator(config, workdir: Path, shared: launch.Shared) -> None:
    """The same of a generator, by both protocols."""
    d2m_script.check_evaluation(config)
    sides = {
        side: artifact.load_generator(workdir / "generator" / f"{side}.npz")
        for side in ("distilled", "pretrained")
    }
    setting = teachers.prepare(config, shared.data)
    found = sides["distilled"]
    d2m_script.check_generator(workdir, found, setting)
    # Test images go the way that the generated ones go.
    setting = setting._replace(preprocessing=found.preprocessing)
    scores = d2m_script.generated_scores(
        config,
        setting,
        found,
        {side: kept.params for side, kept in sides.items()},
    )
    d2m_script.print_scores(scores)


if __name__ == "__main__":
    launch.main(run, __doc__)
