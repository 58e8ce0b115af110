"""IADD: distils a data set into a few images per class, and reports on it.

    python experiments/iadd.py --config=configs/tiny.py

Trains the teachers if they are missing, learns the images, evaluates them
beside real ones, and writes distilled.npz, distilled.png, eval.json and
report.html into the run's folder. A killed run goes on from its last
checkpoint to the same result; a finished one says so and does nothing.
"""

import sys

import launch

from ddjax.runs import iadd


def run(asked: launch.Asked) -> None:
    """The whole pipeline of one config."""
    iadd.run(
        asked.settings,
        asked.workdir,
        asked.shared,
        asked.command,
        fixed=asked.fixed,
        plan_only=asked.plan,
    )


if __name__ == "__main__":
    sys.exit(launch.main(run, __doc__, planned=True, spread=True))
