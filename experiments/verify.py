"""Verifies the scores that a distilled file records of itself.

    python experiments/verify.py --distilled=runs/iadd-tiny/distilled.npz
    python experiments/verify.py --distilled=runs/d2m-tiny

Trains fresh networks by the file's recipe, of a generator on stored images and
on a stream of them, tests them on the data that its config names, and says
whether each recorded score lies where theirs leads to expect it: exit code 0 if
all do (for 95 of 100 files whose scores are right), 1 if not, 2 where the file
or the data cannot be used.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import launch

import ddjax
from ddjax.runs import verify
from ddjax.runs.workdir import Shared


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = launch.parser(__doc__)
    parser.add_argument(
        "--distilled",
        type=Path,
        required=True,
        help="a distilled.npz of experiments/iadd.py or d2m.py, or the run's "
        "folder",
    )
    parser.add_argument(
        "--data_dir",
        default="",
        help="where the data lie, if not where the file says",
    )
    parser.add_argument(
        "--networks",
        type=int,
        default=0,
        help="how many to train, at least 2; as many as recorded by default",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the networks, from 0 on"
    )
    parser.add_argument(
        "--data", type=Path, default=Shared().data, help="prepared images"
    )
    args = vars(parser.parse_args(argv))
    found = {}

    def action():
        run = ddjax.load(args.pop("distilled"))
        found.update(run.verify(**args))
        print(*verify.lines(found), sep="\n")

    code = launch.refusing(action)
    return code or int(not all(verdict.agrees for verdict in found.values()))


if __name__ == "__main__":
    sys.exit(main())
