"""The distilled file: self-describing, and read with NumPy alone.

``distilled.npz`` opens with ``np.load(path)`` (no pickle) and holds

    images         [n h w c] float32, pixel space: 0 is black, 1 is white;
                   not clipped, because networks were trained on them so
    labels         [n k] float32, rows sum to 1
    learning_rate  scalar float32, for the training that uses the images
    preprocess/*   arrays that take pixels to network input: mean [c] and
                   std [c], (images - mean) / std; or, of ZCA, mean [h w c]
                   and matrix [d d], d = h * w * c:
                   ((images - mean).reshape(n, d) @ matrix).reshape(n, h, w, c)
    metadata       a JSON string: class names, method, model, recipe, scores
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddjax import files
from ddjax.data import preprocess
from ddjax.types import InputError

__all__ = ["Artifact", "load", "save"]


class Artifact(NamedTuple):
    """What a distilled file holds.

    Attributes:
      images: [n h w c] float32 in pixel space.
      labels: [n k] float32.
      learning_rate: float.
      preprocessing: takes pixels to network input.
      metadata: JSON-able dict.
    """

    images: np.ndarray
    labels: np.ndarray
    learning_rate: float
    preprocessing: preprocess.Standardiser | preprocess.Whitener
    metadata: dict[str, Any]


def save(path: Path, artifact: Artifact) -> None:
    """Writes the file, whole or not at all.

    Raises:
      InputError: a value is not finite.
    """
    arrays = {
        "images": np.asarray(artifact.images, np.float32),
        "labels": np.asarray(artifact.labels, np.float32),
        "learning_rate": np.asarray(artifact.learning_rate, np.float32),
    }
    for name, array in preprocess.arrays(artifact.preprocessing).items():
        arrays[f"preprocess/{name}"] = array
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(
                f"{name} of the distilled data holds values that are not "
                f"finite, so {path} was not written"
            )
    with files.atomic_write(path) as file:
        np.savez(
            file,
            allow_pickle=False,
            metadata=np.array(json.dumps(artifact.metadata)),
            **arrays,
        )


def load(path: Path) -> Artifact:
    """Reads and checks a distilled file.

    Raises:
      InputError: it is missing, damaged or not one of ours.
    """
    try:
        arrays = files.read_npz(path)
        found = Artifact(
            arrays["images"],
            arrays["labels"],
            float(arrays["learning_rate"]),
            preprocess.from_arrays(
                {
                    name.removeprefix("preprocess/"): array
                    for name, array in arrays.items()
                    if name.startswith("preprocess/")
                }
            ),
            json.loads(str(arrays["metadata"])),
        )
    except FileNotFoundError:
        raise InputError(
            f"there is no distilled file {path}: run experiments/iadd.py first"
        ) from None
    except (files.DamagedFile, ValueError, KeyError, TypeError):
        raise InputError(
            f"{path} is damaged or no distilled file: write it again with "
            "experiments/iadd.py"
        ) from None
    if found.images.ndim != 4 or len(found.images) != len(found.labels):
        raise InputError(
            f"{path} holds images {found.images.shape} and labels "
            f"{found.labels.shape}, which do not belong together"
        )
    return found
