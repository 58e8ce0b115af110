"""Distilled images in the forms that other tools read.

    png          one folder per class of 8-bit pictures
    npz          train_images [n h w c] uint8, train_labels [n]
    safetensors  images, labels, learning_rate and preprocess/* as they are
    parquet      encoded pictures and labels, as Hugging Face's datasets has
                 them
    pt           images_best.pt, labels_best.pt as MTT's code has them:
                 [n c h w] float32 as networks see them, labels [n] integers
                 or, if soft, [n k] probabilities

Beside them stand about.json, with what the form itself has no room for, and
README.md, whose lines open the files. What a run's config says, such as the
folder that the real images lie in, is in none of them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddjax import artifact, files
from ddjax.data import classes, preprocess
from ddjax.types import InputError

__all__ = ["FORMS", "export"]


def export(found: artifact.Artifact, form: str, out: Path) -> None:
    """Writes distilled images to a folder, all of it or nothing.

    Pictures of 8 bits are clipped to 0..1. Of soft labels, png, npz and
    parquet keep the largest class.

    Args:
      found: images, labels and what belongs to them.
      form: of ``FORMS``.
      out: a folder to make.

    Raises:
      InputError: the form is unknown or has no room for such images, a
        package that it needs is missing, or the folder holds something.
    """
    if form not in FORMS:
        raise InputError(
            f"there is no form {form!r} to export to: choose {', '.join(FORMS)}"
        )
    write, loader = FORMS[form]
    with files.atomic_folder(out) as folder:
        write(found, folder)
        files.write_json(folder / "about.json", _about(found))
        text = _HEAD.get(form, "") + _README.format(
            loader=loader, **_counts(found)
        )
        (folder / "README.md").write_text(text, "utf-8")


def _is_soft(labels: np.ndarray) -> bool:
    """Whether any label [n k] is more than one class's."""
    hard = classes.one_hot(labels.argmax(-1), labels.shape[1])
    return not np.array_equal(labels, hard)


def _about(found: artifact.Artifact) -> dict[str, Any]:
    fitted = preprocess.arrays(found.preprocessing)
    scale = None  # of whitening: its matrix is in a safetensors file alone
    if "std" in fitted:
        scale = {name: array.tolist() for name, array in fitted.items()}
    return {
        "class_names": found.metadata["class_names"],
        "learning_rate": found.learning_rate,
        "soft_labels": _is_soft(found.labels),
        "preprocess": "zca" if scale is None else "standardise",
        **(scale or {}),
        "evaluation": found.metadata.get("evaluation"),
    }


def _counts(found: artifact.Artifact) -> dict[str, Any]:
    n, h, w, c = found.images.shape
    return {"n": n, "h": h, "w": w, "c": c, "k": found.labels.shape[1]}


def _levels(found: artifact.Artifact) -> np.ndarray:
    """[n h w c] uint8."""
    if found.images.shape[3] not in (1, 3):
        raise InputError(
            "pictures have 1 or 3 channels, and these images "
            f"{found.images.shape[3]}: export them to safetensors"
        )
    return np.rint(255 * np.clip(found.images, 0, 1)).astype(np.uint8)


def _encoded(levels: np.ndarray) -> bytes:
    """One image [h w c] as a PNG file."""
    content = io.BytesIO()
    picture = levels[..., 0] if levels.shape[2] == 1 else levels
    Image.fromarray(picture).save(content, "png")
    return content.getvalue()


_PNG = """\
from pathlib import Path
import numpy as np
from PIL import Image

paths = sorted(Path(".").glob("*/*.png"))
images = np.stack([np.asarray(Image.open(path)) for path in paths])
names = [path.parent.name for path in paths]"""


def _png(found: artifact.Artifact, folder: Path) -> None:
    names = found.metadata["class_names"]
    for name in names:
        _check_folder_name(name)
    if len({name.casefold() for name in names}) < len(names):
        raise InputError(
            "two classes have the same name, up to capitals, and would share "
            "a folder: export to npz or parquet"
        )
    levels = _levels(found)
    digits = max(5, len(str(len(levels))))
    for label, name in enumerate(names):
        members = np.flatnonzero(found.labels.argmax(-1) == label)
        if len(members):
            (folder / name).mkdir()
        for number in members:
            path = folder / name / f"{number:0{digits}}.png"
            path.write_bytes(_encoded(levels[number]))


# What a folder reader takes for a part of the data set, and not for a class.
_PARTS = "train training test testing val valid validation".split()


def _check_folder_name(name: str) -> None:
    wrong = (
        name.startswith(".")
        or name != name.strip()
        or set(name) & set('/\\:*?"<>|')
        or name.casefold() in _PARTS
        or len(name.encode()) > 255
    )
    if wrong:
        raise InputError(
            f"the class name {name!r} cannot be a folder's: export to npz or "
            "parquet"
        )


_NPZ = """\
import numpy as np

file = np.load("train.npz")
inputs = (file["train_images"] / 255 - file["mean"]) / file["std"]
labels = file["train_labels"]"""


def _npz(found: artifact.Artifact, folder: Path) -> None:
    with open(folder / "train.npz", "wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            train_images=_levels(found),
            train_labels=found.labels.argmax(-1).astype(np.int64),
            class_names=np.array(found.metadata["class_names"]),
            learning_rate=np.float32(found.learning_rate),
            **preprocess.arrays(found.preprocessing),
        )


_SAFETENSORS = """\
from safetensors.numpy import load_file

file = load_file("distilled.safetensors")
inputs = (file["images"] - file["preprocess/mean"]) / file["preprocess/std"]
labels = file["labels"]"""


def _safetensors(found: artifact.Artifact, folder: Path) -> None:
    """Eight bytes with the header's length, the header, the raw values.

    The format is https://github.com/huggingface/safetensors, "Format".
    """
    arrays = {
        "images": found.images,
        "labels": found.labels,
        "learning_rate": np.float32(found.learning_rate),
        **{
            f"preprocess/{name}": array
            for name, array in preprocess.arrays(found.preprocessing).items()
        },
    }
    header: dict[str, Any] = {
        "__metadata__": {
            "class_names": json.dumps(found.metadata["class_names"]),
            "evaluation": json.dumps(found.metadata.get("evaluation")),
        }
    }
    raw = [np.asarray(array, "<f4").tobytes() for array in arrays.values()]
    end = 0
    for (name, array), content in zip(arrays.items(), raw):
        begin, end = end, end + len(content)
        header[name] = {
            "dtype": "F32",
            "shape": list(np.shape(array)),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # values begin at a multiple of 8
    with open(folder / "distilled.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.writelines([text, *raw])


_PARQUET = """\
import io
import pyarrow.parquet
from PIL import Image

rows = pyarrow.parquet.read_table("data").to_pylist()
images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
labels = [row["label"] for row in rows]"""


def _parquet(found: artifact.Artifact, folder: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            "an export to parquet needs pyarrow: pip install 'ddjax[export]', "
            "or choose another form"
        ) from None
    features = {
        "image": {"_type": "Image"},
        "label": {
            "_type": "ClassLabel",
            "names": found.metadata["class_names"],
        },
    }
    image = pyarrow.struct(
        [("bytes", pyarrow.binary()), ("path", pyarrow.string())]
    )
    schema = pyarrow.schema(
        [("image", image), ("label", pyarrow.int64())],
        {"huggingface": json.dumps({"info": {"features": features}})},
    )
    images = [
        {"bytes": _encoded(levels), "path": f"{number:05}.png"}
        for number, levels in enumerate(_levels(found))
    ]
    labels = found.labels.argmax(-1).tolist()
    (folder / "data").mkdir()
    parquet.write_table(
        pyarrow.table({"image": images, "label": labels}, schema),
        folder / "data" / "train-00000-of-00001.parquet",
    )


_PT = """\
import torch

inputs = torch.load("images_best.pt", weights_only=True)
labels = torch.load("labels_best.pt", weights_only=True)"""


def _pt(found: artifact.Artifact, folder: Path) -> None:
    try:
        import torch
    except ImportError:
        raise InputError(
            "an export to .pt needs PyTorch: pip install torch, or export to "
            "safetensors, which PyTorch reads too"
        ) from None
    inputs = np.asarray(preprocess.apply(found.preprocessing, found.images))
    inputs = inputs.transpose(0, 3, 1, 2)
    labels = found.labels
    if not _is_soft(labels):
        labels = labels.argmax(-1)
    for name, array in (("images", inputs), ("labels", labels)):
        # A copy in C order: JAX's arrays are read-only, of which torch warns.
        tensor = torch.from_numpy(array.copy("C"))
        torch.save(tensor, folder / f"{name}_best.pt")


FORMS: dict[str, tuple[Callable[[artifact.Artifact, Path], None], str]] = {
    "png": (_png, _PNG),
    "npz": (_npz, _NPZ),
    "safetensors": (_safetensors, _SAFETENSORS),
    "parquet": (_parquet, _PARQUET),
    "pt": (_pt, _PT),
}
"""{name: (what writes it, the lines of Python that read it)}."""

# What Hugging Face's hub reads first, of a folder that is put there.
_HEAD = {
    "parquet": """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
---
"""
}
_README = """\
# Distilled images

{n} images of {h} x {w} x {c}, of {k} classes, made by ddjax. They stand for a
larger training set: train on them by SGD at the `learning_rate` of
`about.json`, which also has the class names, what takes pixels (0 black to 1
white) to network input, and how networks were trained for the scores.

```python
{loader}
```

Distilled images are not anonymous: they begin as real ones and may show them.
"""
