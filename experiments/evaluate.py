"""Tests distilled images or a distilled generator again, on any networks.

    python experiments/evaluate.py --config=configs/tiny.py --workdir=DIR

Trains fresh networks on the images of DIR/distilled.npz, as the config's
``evaluate`` part says (``--config.evaluate.models=convnet,mlp`` for two kinds),
and prints their test accuracy. With the run's own config these are the networks
of its eval.json, up to the rounding of the stored pixels. Of a run of d2m.py,
the generator is tested, beside itself before distillation, at the numbers of
images that ``d2m.ipcs`` says. DIR stays as it is.

    python experiments/evaluate.py --distilled=PATH --config=configs/tiny.py
        --config.evaluate.models=convnet,alexnet,resnet18,vit

makes the matrix of a file that anybody wrote in the layout of distilled.npz:
what is trained on (the file, random and picked real images, class means, all
data) by network, with scores of the field's ranking. Real images have their
learning rate searched on held-out images among 0.001, 0.005, 0.01, 0.05 and
0.1, as that ranking does; ``--config.evaluate.search=all`` does it for the file
too. Each cell is kept as it is done in --workdir, runs/evaluate-<config> by
default; matrix.json and matrix.html hold them all.
"""

import functools
import sys

import launch

from ddjax import artifact, hosts
from ddjax.runs import d2m, iadd, matrix, prepare, workdir
from ddjax.types import InputError


def run(asked: launch.Asked) -> None:
    """Prints one line for each network, or for each cell."""
    if asked.distilled:
        if hosts.count() > 1:
            raise InputError(
                "a matrix is made in one process: leave out --processes"
            )
        matrix.run(
            asked.settings,
            asked.distilled,
            asked.workdir,
            asked.shared,
            asked.command,
        )
        return
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
    sys.exit(launch.main(run, __doc__, planned=True, spread=True, tests=True))
