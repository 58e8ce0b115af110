"""Decodes a config's data set once, and draws a page of what it holds.

    python experiments/prepare.py --config=configs/folder.py:PATH

Images are decoded into .npy files below --data (runs/data), which every other
script reads; an interrupted preparation goes on where it was. A
set that is prepared already is checked from end to end. The page,
<workdir>/data.html, shows samples of every class, counts, sizes, mean and
deviation: look at it before hours of training.
"""

import sys

import launch

from ddjax.runs import prepare


def run(asked: launch.Asked) -> None:
    """Prepares the data, writes the page, and says where both are."""
    chosen = asked.settings
    prepare.write_page(
        chosen.data, chosen.seed, asked.shared.data, asked.workdir
    )


if __name__ == "__main__":
    sys.exit(launch.main(run, __doc__))
