"""What a distilled file tells of the real images behind it.

    python experiments/privacy.py --distilled=PATH --config=configs/tiny.py

PATH is a distilled.npz, or the folder of its run, and the config is the one
that it was made with. Shows the nearest training image of each distilled image
by pixels and by a network's features, beside how near held-out real images
come; and tries to tell which images a network was trained on, by its losses
and by likelihood ratios with shadow networks, for networks trained on the file,
on as many real images and on all training images.

``--config.privacy.shadow_networks=64`` makes a stronger attack; few networks,
as by default, make it weak. What each network says is kept as it is done in
--workdir, runs/privacy-<config> by default, and a run that was stopped goes
on; privacy.json and privacy.html hold all figures, and say what they do not
prove.
"""

import sys

import launch

from ddjax.runs import privacy
from ddjax.types import InputError


def run(asked: launch.Asked) -> None:
    """Writes the card, and prints its figures."""
    if not asked.distilled:
        raise InputError(
            "no distilled file: add --distilled=PATH, a distilled.npz or the "
            "folder of a finished run"
        )
    privacy.run(
        asked.settings,
        asked.distilled,
        asked.workdir,
        asked.shared,
        asked.command,
    )


if __name__ == "__main__":
    sys.exit(launch.main(run, __doc__, tests=True))
