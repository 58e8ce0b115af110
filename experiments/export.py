"""Writes a distilled set in a form that other tools read.

    python experiments/export.py --distilled=runs/iadd-tiny --to=png --out=DIR

makes the folder DIR: pictures (png), uint8 arrays (npz), all values as they are
(safetensors), a Hugging Face data set (parquet, which needs pyarrow), or the
two tensors of MTT's code (pt, which needs PyTorch). DIR/README.md tells how to
read it, DIR/about.json the learning rate and the preprocessing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import launch

import ddjax
from ddjax import exports


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after a sentence on stderr."""
    parser = launch.parser(__doc__)
    parser.add_argument(
        "--distilled",
        type=Path,
        required=True,
        help="a distilled.npz or a run's folder; of a generator, the images "
        "that it is shown by",
    )
    parser.add_argument("--to", required=True, help=", ".join(exports.FORMS))
    parser.add_argument(
        "--out", type=Path, required=True, help="a folder to make"
    )
    args = parser.parse_args(argv)

    def action():
        run = ddjax.load(args.distilled)
        out = run.export(args.to, args.out)
        print(f"{len(run.images)} images: {out}, see {out / 'README.md'}")

    return launch.refusing(action)


if __name__ == "__main__":
    sys.exit(main())
