"""Writes report.html of a run folder.

    python experiments/report.py --workdir=runs/iadd-tiny

Prints the path of the page. What is in the folder decides which page it is: of
a run of IADD or D2M, or of a pre-training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import launch

from ddjax.pages import report


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after a sentence on stderr."""
    parser = argparse.ArgumentParser(
        description="Writes report.html of a run folder.", allow_abbrev=False
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        required=True,
        help="folder of a run or of a pre-training",
    )
    args = parser.parse_args(argv)
    return launch.refusing(lambda: print(report.write_page(args.workdir)))


if __name__ == "__main__":
    sys.exit(main())
