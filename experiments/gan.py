"""Pre-trains the generator that D2M distils, or goes on where it stopped.

    python experiments/gan.py --config=configs/tiny.py

A class-conditional BigGAN is trained on the real images of the config's
``gan`` part. Samples are kept as it goes; at the end its quality is measured
and report.html written beside it. ``experiments/d2m.py`` calls this by itself;
runs with the same data and ``gan`` part share the folder.
"""

import sys

import launch

from ddjax.runs import gan


def run(asked: launch.Asked) -> None:
    """Pre-trains or finds the generator of a config."""
    gan.run(asked.settings, asked.shared)


if __name__ == "__main__":
    sys.exit(launch.main(run, __doc__, spread=True))
