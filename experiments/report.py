"""Writes report.html of a run folder.

    python experiments/report.py --workdir=runs/iadd-tiny

Prints the path of the page. Needs config.json, distilled.npz and eval.json in
the folder; other artefacts add their section.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ddjax import report
from ddjax.types import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after a sentence on stderr."""
    parser = argparse.ArgumentParser(
        description="Writes report.html of a run folder.", allow_abbrev=False
    )
    parser.add_argument(
        "--workdir", type=Path, required=True, help="folder of a run"
    )
    args = parser.parse_args(argv)
    try:
        print(report.write_report(args.workdir))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
