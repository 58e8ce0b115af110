"""The distilled file: self-describing, and read with NumPy alone.

``distilled.npz`` opens with ``np.load(path)`` (no pickle) and holds

    images         [n h w c] float32, pixel space: 0 is black, 1 is white;
                   not clipped, because networks were trained on them so
    labels         [n k] float32, rows sum to 1
    learning_rate  scalar float32, for the training that uses the images
    preprocess/*   arrays that take pixels to network input:
                   (images - preprocess/mean) / preprocess/std
    metadata       a JSON string: class names, method, model, recipe, scores
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddjax import files
from ddjax.data.preprocess import Standardiser
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
    preprocessing: Standardiser
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
        "preprocess/mean": np.asarray(artifact.preprocessing.mean),
        "preprocess/std": np.asarray(artifact.preprocessing.std),
    }
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
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            found = Artifact(
                file["images"],
                file["labels"],
                float(file["learning_rate"]),
                Standardiser(file["preprocess/mean"], file["preprocess/std"]),
                json.loads(str(file["metadata"])),
            )
    except FileNotFoundError:
        raise InputError(
            f"there is no distilled file {path}: run experiments/iadd.py first"
        ) from None
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        TypeError,  # a .npy file
        RuntimeError,  # a damaged header asks for a password or an odd method
        zipfile.BadZipFile,
        zlib.error,
    ):
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
