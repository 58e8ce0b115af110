r"""Turns a published BigGAN of PyTorch into a generator that D2M begins with.

    python experiments/import_biggan.py --checkpoint=G_ema.pth \
        --config=configs/cifar10.py --out=runs/generators/published
    python experiments/d2m.py --config=configs/cifar10.py \
        --config.d2m.generator=runs/generators/published

Reads .pt, .pth and .safetensors files, without PyTorch and without running
anything in them: state dicts of BigGAN-PyTorch (and DiffAugment's, built on
it) and of StudioGAN's big_resnet. The config tells the data set: size, class
names, preprocessing. Classes are taken in the checkpoint's order, which is
that of CIFAR-10 and ImageNet themselves; of ImageNet's thousand a config's ten
are found, or are named, as in --classes=207,270.
"""

from __future__ import annotations

import sys
from pathlib import Path

import launch

from ddjax.runs import published


def main() -> int:
    """Returns the exit code: 0, or 2 after a sentence on stderr."""
    parser = launch.parser(
        __doc__,
        epilog="--config, --config.FIELD=VALUE and --data as in gan.py",
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="the file of tensors"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="an .npz file, or a folder for it and a picture of samples",
    )
    parser.add_argument(
        "--classes",
        default="",
        help="the checkpoint's class for each of the data set's, numbers "
        "joined by commas",
    )
    parser.add_argument(
        "--epsilon",
        type=float,
        help="of the batch norms; 1e-5 (BigGAN-PyTorch) or 1e-4 (StudioGAN) "
        "by default",
    )
    args, rest = parser.parse_known_args()

    def run():
        asked = launch.asked([sys.argv[0], *rest])
        published.run(asked.settings, asked.shared, **vars(args))

    return launch.refusing(run)


if __name__ == "__main__":
    sys.exit(main())
