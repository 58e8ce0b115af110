r"""Takes in distilled images of another project, to be tested like our own.

    python experiments/import_images.py --from=FOLDER --learning_rate=0.02 \
        --config=configs/cifar10.py --out=runs/mtt
    python experiments/evaluate.py --config=configs/cifar10.py \
        --workdir=runs/mtt

--from is a folder with images_best.pt and labels_best.pt (MTT, DATM), a .pt
file of DC, DSA or DM, a folder of one folder of pictures per class, or an .npz
file. A .pt file is read without PyTorch, and nothing in it is run. The config's
data tell how pixels were standardised, or --mean and --std do; flags of the
config, such as --config.data.data_dir, and --data=FOLDER go as with other
scripts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import launch

from ddjax import foreign
from ddjax.runs import imported
from ddjax.types import InputError


def _numbers(joined: str) -> list[float]:
    return [float(word) for word in joined.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after a sentence on stderr."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--from", type=Path, required=True, dest="source", help="the images")
    add("--out", type=Path, required=True, help="a folder to make")
    add("--learning_rate", type=float, help="to train on them with; needed")
    add("--mean", type=_numbers, default=(), help="0.49,0.48,0.45, white is 1")
    add("--std", type=_numbers, default=(), help="likewise")
    add("--class_names", default="", help="joined by commas, without --config")
    add("--values", default="", help=" or ".join(foreign.VALUES))
    add("--labels", default=foreign.KINDS[0], help=" or ".join(foreign.KINDS))
    add("--number", type=int, default=0, help="of a file with several sets")
    args, rest = parser.parse_known_args(argv)
    how = vars(args)
    how["class_names"] = [n for n in how["class_names"].split(",") if n]

    def action():
        if any(word.startswith("--config") for word in rest):
            asked = launch.asked(["import_images.py", *rest])
            how["settings"] = asked.settings
            how["data_folder"] = asked.shared.data
        elif rest:
            raise InputError(f"unexpected argument {rest[0]!r}: see --help")
        imported.run(**how)

    return launch.refusing(action)


if __name__ == "__main__":
    sys.exit(main())
