"""Makes images with a distilled generator: any number, for any class.

    python experiments/generate.py --generator=runs/d2m-tiny --ipc=50 --out=DIR

Writes DIR/distilled.npz, the same self-describing file as IADD's, and
DIR/distilled.png. The same command gives the same images; another --ipc gives
others, and not more of the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import d2m as d2m_script
import jax
import launch
import numpy as np

from ddjax import artifact
from ddjax.data import sources
from ddjax.pages import pictures
from ddjax.types import InputError

_MOST = 1 << 32  # values of all images, 16 GiB


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after a sentence on stderr."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
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
    return launch.refusing(lambda: run(parser.parse_args(argv)))


def run(args: argparse.Namespace) -> None:
    """Makes and writes the images.

    Raises:
      InputError: the generator, a class or a number is not there.
    """
    found = d2m_script.load_generator(args.generator)
    names = found.metadata["class_names"]
    chosen = classes_of(args.classes, names)
    counts = d2m_script.numbers(args.ipc, "--ipc")
    if len(counts) == 1:
        counts *= len(chosen)
    if len(counts) != len(chosen):
        raise InputError(
            f"--ipc must be one number or {len(chosen)}, one for each class, "
            f"not {len(counts)}"
        )
    kept = args.out / "distilled.npz"
    if (
        not args.out.name
        or kept.exists()
        or (args.out / "config.json").exists()
    ):
        raise InputError(
            f"--out={args.out} is a run or holds {kept.name} already: name "
            "another folder"
        )
    module = found.apply.module
    values = sum(counts) * module.size**2 * module.channels
    if values > _MOST:
        raise InputError(
            f"{sum(counts):,} images are {values / 2**28:.0f} GiB: lower --ipc"
        )
    if not 0 <= args.seed < 1 << 32:
        raise InputError(f"--seed must lie in 0..2**32 - 1, not at {args.seed}")
    labels = np.repeat(np.asarray(chosen, np.int32), counts)
    images = np.asarray(
        d2m_script.make(
            found.apply, found.params, jax.random.key(args.seed), labels
        )
    )
    args.out.mkdir(parents=True, exist_ok=True)
    artifact.save(
        args.out / "distilled.npz",
        artifact.Artifact(
            images,
            sources.one_hot(labels, len(names)),
            found.metadata.get("learning_rate", 0.01),
            found.preprocessing,
            # All that the generator's file tells of itself, scores included.
            found.metadata | {"seed": args.seed, "ipc": args.ipc},
        ),
    )
    pictures.save_picture(args.out / "distilled.png", images, labels, names)
    print(
        f"{len(images)} images of {len(chosen)} classes: "
        f"{args.out / 'distilled.npz'}, {args.out / 'distilled.png'}"
    )


def classes_of(joined: str, names: Sequence[str]) -> list[int]:
    """Class numbers from names or numbers.

    Raises:
      InputError: one is unknown, or named twice.
    """
    if not joined:
        return list(range(len(names)))
    numbers = {str(name): number for number, name in enumerate(names)}
    by_number = {str(number): number for number in range(len(names))}
    chosen = []
    for word in joined.split(","):
        number = numbers.get(word.strip(), by_number.get(word.strip()))
        if number is None or number in chosen:
            what = "twice in" if number is not None else "unknown in"
            raise InputError(
                f"class {word.strip()!r} is {what} --classes: choose from "
                f"{d2m_script.some(names)}, or numbers 0..{len(names) - 1}"
            )
        chosen.append(number)
    return chosen


if __name__ == "__main__":
    sys.exit(main())
