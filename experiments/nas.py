"""Ranks networks by a distilled file: neural architecture search by proxy.

    python experiments/nas.py --config=configs/tiny.py --distilled=PATH

Picks ``nas.networks`` ConvNets, spread evenly over the field's grid of 720
(width 32 to 256, depth 1 to 4; norm, activation, pooling), trains each on the
distilled images of PATH (a file or a run's folder), on as many random and
herded real images, and on the whole data, and tells how well each orders the
networks as the whole data do: Spearman's rank correlation with a 95% interval,
over all and over the best; the network that each would pick; and what each
search costs. Networks too deep for the images are left out, and counted.

Each training is kept as it is done in --workdir, runs/nas-<config> by default;
the same command goes on, and with a larger ``nas.networks`` adds to what is
there. nas.json and nas.html hold everything. ``--config.nas.widths=8,16`` and
its like make another grid.
"""

import sys

import launch

from ddjax.runs import nas
from ddjax.types import InputError


def run(asked: launch.Asked) -> None:
    """Prints a line for each network, and then the ranking."""
    if asked.distilled is None:
        raise InputError(
            "no distilled file: add --distilled=PATH, of a run's folder or of "
            "a distilled.npz"
        )
    nas.run(
        asked.settings,
        asked.distilled,
        asked.workdir,
        asked.shared,
        asked.command,
    )


if __name__ == "__main__":
    sys.exit(launch.main(run, __doc__, tests=True))
