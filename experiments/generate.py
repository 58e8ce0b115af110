r"""Makes images with a distilled generator: any number, for any class.

    python experiments/generate.py --generator=runs/d2m-tiny --ipc=50 --out=DIR

Writes DIR/distilled.npz, the same self-describing file as IADD's, and
DIR/distilled.png. The same command gives the same images; another --ipc gives
others, and not more of the same.

    python experiments/generate.py --generator=runs/d2m-tiny --ipc=50 \
        --choose=centres --out=DIR

chooses them among fifty times as many, beside the real images.
"""

from __future__ import annotations

import sys
from pathlib import Path

import launch

from ddjax.runs import generate
from ddjax.runs.workdir import Shared


def main() -> int:
    """Returns the exit code: 0, or 2 after a sentence on stderr."""
    parser = launch.parser(__doc__)
    parser.add_argument(
        "--generator",
        type=Path,
        required=True,
        help="a run of d2m.py or gan.py, or a generator's .npz file",
    )
    parser.add_argument(
        "--ipc",
        required=True,
        help="images per class: one number, or one for each class, joined by "
        "commas",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="a folder to make"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the noise, from 0 on"
    )
    parser.add_argument(
        "--classes",
        default="",
        help="names or numbers joined by commas; all by default",
    )
    parser.add_argument(
        "--choose",
        default="random",
        help="random, or the images that lie nearest to centres of the real "
        "ones (centres), or the group most like them in mean, deviation and "
        "skewness (moments), of many; or centres whose noise is moved on "
        "towards the real images (latents); of a run of d2m.py",
    )
    parser.add_argument(
        "--teachers", type=Path, default=Shared().teachers, help="of the run"
    )
    parser.add_argument(
        "--data", type=Path, default=Shared().data, help="of the run, prepared"
    )
    args = vars(parser.parse_args())
    shared = Shared(args.pop("teachers"), args.pop("data"))
    return launch.refusing(lambda: generate.run(**args, shared=shared))


if __name__ == "__main__":
    sys.exit(main())
