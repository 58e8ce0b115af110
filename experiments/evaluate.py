"""Tests distilled images or a distilled generator again, on any networks.

    python experiments/evaluate.py --config=configs/tiny.py --workdir=DIR

Trains fresh networks on the images of DIR/distilled.npz, as the config's
``evaluate`` part says (``--config.evaluate.models=convnet,mlp`` for two kinds),
and prints their test accuracy. With the run's own config these are the networks
of its eval.json, up to the rounding of the stored pixels. Of a run of d2m.py,
the generator is tested, beside itself before distillation, at the numbers of
images that ``d2m.ipcs`` says. DIR stays as it is.
"""

import functools
import sys

import launch

from ddjax import artifact
from ddjax.runs import d2m, iadd, prepare, workdir


def run(asked: launch.Asked) -> None:
    """Prints one line for each network."""
    folder = asked.workdir
    chosen = workdir.as_run(asked.settings, folder)
    # Before the data: that it is missing is told at once.
    images = folder / "distilled.npz"  # which D2M's runs have not
    if (folder / "generator").is_dir() and not images.exists():
        test_again = functools.partial(
            d2m.test_again, teachers_folder=asked.shared.teachers
        )
        found = d2m.load_sides(folder)
    else:
        test_again = iadd.test_again
        found = artifact.load(images)
    task = prepare.task(
        chosen.data, chosen.model, chosen.seed, asked.shared.data
    )
    test_again(chosen, task, found)


if __name__ == "__main__":
    sys.exit(launch.main(run, __doc__, planned=True))
