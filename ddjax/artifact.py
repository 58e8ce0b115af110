"""Distilled images and generators as files: self-describing, no pickle.

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
    format_version scalar integer, 1; an older file has none
    checksum       SHA-256 of all of the above, in hexadecimal; see ``seal``

Three lines give what a network trains on, in NumPy, JAX and PyTorch::

    import numpy as np
    file = np.load("distilled.npz")
    mean, std = file["preprocess/mean"], file["preprocess/std"]
    inputs, labels = (file["images"] - mean) / std, file["labels"]

::

    import ddjax
    import jax.numpy as jnp
    run = ddjax.load("distilled.npz")
    inputs, labels = jnp.asarray(run.inputs), jnp.asarray(run.labels)

::

    import ddjax
    import torch
    run = ddjax.load("distilled.npz")
    inputs = torch.from_numpy(run.inputs.transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(run.labels)

A generator file has no images and in their place ``params/...``, the
parameters of the folded generator; ``load_generator`` rebuilds it from those
and from "generator" in the metadata.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import files
from ddjax.data import classes, preprocess
from ddjax.models import biggan
from ddjax.types import InputError, Params

__all__ = [
    "Artifact",
    "GeneratorArtifact",
    "find_generator",
    "generator_file",
    "is_generator",
    "load",
    "load_generator",
    "save",
    "save_generator",
    "seal",
]

FORMAT_VERSION = 1
"""Of the files that are written; files up to it are read."""


def seal(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays with the format's version and a checksum over all of them.

    It tells a change that was no one's intention, or that was made by hand;
    who means to deceive can compute another. The checksum is SHA-256 over the
    arrays in the order of their names, for each the line "NAME TYPE SHAPE",
    such as "images <f4 10,8,8,1", and its values in little-endian C order.

    Args:
      arrays: all members of a file but these two.
    """
    named = dict(arrays) | {"format_version": np.int64(FORMAT_VERSION)}
    return named | {"checksum": np.array(_checksum(named))}


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        array = np.asarray(array)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        shape = ",".join(map(str, array.shape))
        digest.update(f"{name} {array.dtype.str} {shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _unsealed(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """A file's arrays without what ``seal`` added, once they agree with it.

    Raises:
      InputError: they were changed, or a later ddjax wrote them.
      ValueError: the version is no number.
    """
    if not {"format_version", "checksum"} & arrays.keys():
        return arrays  # written before there were any
    version = arrays.get("format_version")
    if version is None or version.shape or version.dtype.kind not in "iu":
        raise ValueError(path)
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path} is of format {version}, and this ddjax reads formats up "
            f"to {FORMAT_VERSION}: install a newer one"
        )
    arrays = dict(arrays)
    checksum = arrays.pop("checksum", None)
    if checksum is None or str(checksum) != _checksum(arrays):
        raise InputError(
            f"{path} was changed after it was written, because its content "
            "and its checksum differ: take the original file"
        )
    del arrays["format_version"]
    return arrays


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
        metadata = np.array(json.dumps(artifact.metadata))
        np.savez(
            file, allow_pickle=False, **seal(arrays | {"metadata": metadata})
        )


def load(path: Path) -> Artifact:
    """Reads and checks a distilled file.

    Raises:
      InputError: it is missing, damaged, changed or not one of ours.
    """
    try:
        arrays = _unsealed(path, files.read_npz(path))
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
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(
            f"there is no distilled file {path}: run experiments/iadd.py first"
        ) from None
    except (
        files.DamagedFile,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,  # of JSON nested without end
        SystemError,  # of texts with code points that there are not
    ):
        raise InputError(
            f"{path} is damaged or no distilled file: write it again with "
            "experiments/iadd.py"
        ) from None
    wrong = _wrong(found)
    if wrong:
        raise InputError(
            f"{path} is no distilled file to train on, because {wrong}: write "
            "it again with experiments/iadd.py"
        )
    return found


def _wrong(found: Artifact) -> str | None:
    """Why nothing can be trained on a distilled file; None if it can."""
    images, labels = found.images, found.labels
    if images.ndim != 4 or not images.size or images.dtype.kind != "f":
        return f"its images are {images.dtype} of shape {images.shape}"
    if labels.ndim != 2 or labels.dtype.kind != "f":
        return f"its labels are {labels.dtype} of shape {labels.shape}"
    if len(images) != len(labels):
        return f"it holds {len(images)} images and {len(labels)} labels"
    if not np.isfinite(images).all():
        return "its images hold values that are not finite"
    if not np.isfinite(labels).all() or labels.min() < 0:
        return "its labels are not all numbers of at least 0"
    if not 0 < np.float32(found.learning_rate) < np.inf:
        return f"its learning rate is {found.learning_rate:g}"
    return _wrong_preprocessing(
        found.preprocessing, images.shape[1:]
    ) or _wrong_names(found.metadata, labels.shape[1])


def _wrong_preprocessing(
    found: preprocess.Standardiser | preprocess.Whitener,
    shape: tuple[int, ...],
) -> str | None:
    """Why it cannot be of images of a shape [h w c]; None if it can."""
    channels, size = shape[2:], math.prod(shape)
    if isinstance(found, preprocess.Whitener):
        fits = found.mean.shape == shape
        fits = fits and found.matrix.shape == (size, size)
    else:
        fits = found.mean.shape == found.std.shape == channels
    if not fits:
        return f"its preprocessing is not one of images {shape}"
    arrays = preprocess.arrays(found)
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return "its preprocessing holds values that are not finite"
    if "std" in arrays and arrays["std"].min() <= 0:
        return "a standard deviation of its preprocessing is not positive"
    return None


def _wrong_names(metadata: Any, count: int) -> str | None:
    """Why metadata do not name so many classes; None if they do."""
    if not isinstance(metadata, dict):
        return f"its metadata are a {type(metadata).__name__}"
    names = metadata.get("class_names")
    if not isinstance(names, list) or len(names) != count:
        return f"it does not name its {count} classes"
    if not all(
        isinstance(name, str) and classes.is_showable(name) for name in names
    ):
        return "a class's name is empty, or not a text that can be shown"
    for name in ("config", "scores"):
        if not isinstance(metadata.get(name, {}), dict):
            return f"{name} in its metadata is no table"
    rate = metadata.get("learning_rate", 0.01)
    if not isinstance(rate, int | float) or not 0 < rate < math.inf:
        return f"the learning rate in its metadata is {rate!r}"
    return None


class GeneratorArtifact(NamedTuple):
    """What a generator file holds.

    Attributes:
      apply: gen_apply(params, noise[n d], labels[n]) -> images in 0..1.
      params: of the folded generator, float32.
      preprocessing: takes pixels to network input.
      metadata: JSON-able dict; "class_names" and what made the file.
    """

    apply: biggan.GenApply
    params: Params
    preprocessing: preprocess.Standardiser | preprocess.Whitener
    metadata: dict[str, Any]

    @property
    def size_in_images(self) -> float:
        """The parameters' number, in images that it makes."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return count / math.prod(self.apply.image_shape)


def is_generator(path: Path) -> bool:
    """Whether a file holds a generator, and not distilled images.

    Raises:
      InputError: it holds neither, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    # A damaged directory comes out as other exceptions, too.
    except Exception:
        names = []
    if "images.npy" in names and "metadata.npy" in names:
        return False
    if any(name.startswith("params/") for name in names):
        return True
    raise InputError(
        f"{path} is damaged, or holds neither distilled images nor a "
        "generator: name the folder of a finished run or its distilled.npz, or "
        "take in others' images with experiments/import_images.py first"
    )


def save_generator(path: Path, artifact: GeneratorArtifact) -> None:
    """Writes the file, whole or not at all.

    Raises:
      InputError: a parameter is not finite.
    """
    arrays = {
        f"preprocess/{name}": array
        for name, array in preprocess.arrays(artifact.preprocessing).items()
    }
    for names, leaf in jax.tree_util.tree_leaves_with_path(artifact.params):
        name = "/".join(entry.key for entry in names)
        arrays[f"params/{name}"] = np.asarray(leaf, np.float32)
        if not np.isfinite(arrays[f"params/{name}"]).all():
            raise InputError(
                f"{name} of the generator holds values that are not finite, "
                f"so {path} was not written"
            )
    module = artifact.apply.module
    metadata = artifact.metadata | {
        "generator": {field: getattr(module, field) for field in _MODULE}
        | {"hierarchical": module.hierarchical}
    }
    with files.atomic_write(path) as file:
        arrays["metadata"] = np.array(json.dumps(metadata))
        np.savez(file, allow_pickle=False, **seal(arrays))


_MODULE = (
    "num_classes",
    "size",
    "channels",
    "width",
    "noise",
    "embedding",
    "attention",
)


def load_generator(path: Path) -> GeneratorArtifact:
    """Reads and checks a generator file.

    Raises:
      InputError: it is missing, damaged, changed or not one of ours.
    """
    try:
        arrays = _unsealed(path, files.read_npz(path))
        if "images" in arrays:
            raise InputError(f"{path} holds images, and no generator")
        metadata = json.loads(str(arrays.pop("metadata")))
        fields = metadata["generator"]
        module = biggan.Generator(
            **{field: int(fields[field]) for field in _MODULE},
            # As all were before they told.
            hierarchical=bool(fields.get("hierarchical", True)),
            form=biggan.FOLDED,
        )
        params: dict[str, Any] = {}
        for name, array in arrays.items():
            first, *names = name.split("/")
            if first == "params":
                part = params
                for inner in names[:-1]:
                    part = part.setdefault(inner, {})
                part[names[-1]] = array
        found = GeneratorArtifact(
            biggan.GenApply(module),
            params,
            preprocess.from_arrays(
                {
                    name.removeprefix("preprocess/"): array
                    for name, array in arrays.items()
                    if name.startswith("preprocess/")
                }
            ),
            metadata,
        )
        expected = jax.eval_shape(
            lambda: module.init(
                jax.random.key(0),
                jnp.zeros((1, module.noise)),
                jnp.zeros(1, jnp.int32),
            )
        )["params"]
        same = jax.tree.map(lambda a, b: a.shape == b.shape, expected, params)
        if not all(jax.tree.leaves(same)):
            raise ValueError(path)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(
            f"there is no generator {path}: make it with experiments/d2m.py"
        ) from None
    except (
        files.DamagedFile,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
        SystemError,
    ):
        raise InputError(
            f"{path} is damaged or no generator: make it again with "
            "experiments/d2m.py"
        ) from None
    wrong = _wrong_preprocessing(
        found.preprocessing, found.apply.image_shape
    ) or _wrong_names(metadata, module.num_classes)
    for leaf in jax.tree.leaves(params):
        if not np.isfinite(leaf).all():
            wrong = "its parameters hold values that are not finite"
    if wrong:
        raise InputError(
            f"{path} is no generator to draw from, because {wrong}: make it "
            "again with experiments/d2m.py"
        )
    return found


def find_generator(path: Path) -> GeneratorArtifact:
    """The generator of a file, of a pre-training's folder, or of a run's.

    Raises:
      InputError: there is none, or it is damaged.
    """
    return load_generator(generator_file(path))


def generator_file(path: Path) -> Path:
    """Where ``find_generator`` finds a generator.

    Raises:
      InputError: the folder holds none.
    """
    for inside in ("generator/distilled.npz", "generator.npz", "distilled.npz"):
        if (path / inside).exists():
            return path / inside
    if path.is_dir():
        raise InputError(
            f"{path} holds no generator: name the folder of a finished "
            "run of experiments/d2m.py or experiments/gan.py, or the .npz "
            "file"
        )
    return path
