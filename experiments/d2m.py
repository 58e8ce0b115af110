"""D2M: distils a data set into a conditional generator, and reports on it.

    python experiments/d2m.py --config=configs/tiny.py

Pre-trains the generator and trains the teachers if they are missing, distils
the generator by matching features and predictions of real and generated
images, evaluates what it makes at several numbers of images per class, and
writes generator/, eval.json and report.html into the run's folder. A killed
run goes on from its last checkpoint to the same result; a finished one says so
and does nothing. ``experiments/generate.py`` makes images of the result.
"""

import sys

import launch

from ddjax.runs import d2m


def run(asked: launch.Asked) -> None:
    """The whole pipeline of one config."""
    d2m.run(
        asked.settings,
        asked.workdir,
        asked.shared,
        asked.command,
        fixed=asked.fixed,
        plan_only=asked.plan,
    )


if __name__ == "__main__":
    sys.exit(launch.main(run, __doc__, planned=True, spread=True))
