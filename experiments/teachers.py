"""Trains the teachers of a config, or those that are still missing.

    python experiments/teachers.py --config=configs/tiny.py

Each teacher is an ordinary training run on the real images; its parameters
are stored at the start and after every epoch that a segment can reach. An
interrupted run goes on at the next missing teacher. ``experiments/iadd.py``
calls this by itself.
"""

import sys

import launch

from ddjax.runs import prepare, teachers


def run(asked: launch.Asked) -> None:
    """Trains or opens the teachers of a config."""
    chosen = asked.settings
    task = prepare.task(
        chosen.data, chosen.model, chosen.seed, asked.shared.data
    )
    found = teachers.train(chosen, task, asked.shared.teachers)
    print(f"{found.count} teachers in {found.folder}")


if __name__ == "__main__":
    sys.exit(launch.main(run, __doc__, spread=True))
