"""The page of a generator's pre-training, and what is told of it on that of
its distillation.

    shaped_by.json, generator.npz, quality.json, samples/    required
    metrics.jsonl                                            if there

A generator may be shared between runs, and the page of a run is to be readable
without it: ``copy_pretraining`` takes a part along.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddjax import artifact, evaluate
from ddjax.files import atomic_write
from ddjax.pages import artefacts, figures, page, pictures
from ddjax.types import InputError

__all__ = ["copy_pretraining", "write_page"]

_FILES = {
    "shaped_by.json": "all that shaped the generator",
    "metrics.jsonl": "what was logged, one JSON object a line",
    "checkpoints": "states that the pre-training can be continued from",
    "samples": "images of the same noise at every look",
    "looks": "the generator at each of them, where the best was selected",
    "generator.npz": "the generator, with all that is needed to use it",
    "quality.json": "how good its images are",
}
_CURVES = {
    "Losses": {"critic_loss": "critic", "generator_loss": "generator"},
    "The critic's mean scores": {
        "real_score": "real images",
        "fake_score": "generated images",
    },
}
_LAST = 100  # images of the last look
_MOST_LOOKS = 12


def write_page(folder: Path) -> Path:
    """Writes ``report.html`` of a pre-training, whole or not at all.

    Args:
      folder: of the pre-training; the top of this file lists what is read.

    Returns:
      The path of the page.

    Raises:
      InputError: a required artefact is missing, or one cannot be read.
    """
    folder = Path(folder)
    command = artefacts.again(folder, _command(folder))
    needed = ("shaped_by.json", "generator.npz", "quality.json", "samples")
    artefacts.require(folder, needed, command)
    shaped_by = artefacts.read_json(folder / "shaped_by.json")
    found = artifact.load_generator(folder / "generator.npz")
    names = found.metadata["class_names"]
    looks = _read_looks(folder)
    return page.write(
        folder / "report.html",
        "gan.html",
        folder=folder,
        title=f"Pre-training report: {folder.resolve().name}",
        generator=generator_values(found, "generator.npz"),
        updates=looks["steps"][-1],
        pictures=_last_look(folder, names),
        pretraining=_values(folder, looks, names, command),
        files=artefacts.file_rows(folder, _FILES),
        command=_command(folder),
        config=artefacts.flatten(shaped_by),
    )


def _command(folder: Path) -> str:
    """What makes such a folder, as far as the folder tells."""
    words = ["python experiments/gan.py --config=configs/NAME.py"]
    if (folder / "shaped_by.json").exists():
        shaped_by = artefacts.read_json(folder / "shaped_by.json")
        shaped_by.pop("data", None)  # a checksum
        for name, value in shaped_by.items():
            words.append(f"--config.{name}={shlex.quote(str(value))}")
    return " ".join(words)


def generator_values(
    found: artifact.GeneratorArtifact, file: str
) -> dict[str, Any]:
    """What templates tell of a generator."""
    size = found.size_in_images
    return {
        "file": file,
        "module": found.apply.module,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(found.params)),
        "in_images": f"{size:,.0f}" if size >= 100 else f"{size:.1f}",
    }


def _read_looks(folder: Path) -> dict[str, np.ndarray]:
    """Two images of each class from the samples of a pre-training, of the
    same noise at every look: steps [t], images [t n h w c], labels [n]."""
    paths = sorted(folder.glob("samples/[0-9]*.npz"))
    if not paths:
        raise InputError(
            f"{folder / 'samples'} holds no samples; make them with: "
            f"{_command(folder)}"
        )
    images = []
    for path in paths:
        arrays = artefacts.read_npz(path, "images", "labels")
        here, shape = arrays["labels"], arrays["images"].shape
        if path == paths[0]:
            labels, first = here, (len(here), *shape[1:])
        alike = np.array_equal(here, labels) and shape == first
        if not alike or len(shape) != 4:
            raise InputError(
                f"{path} is not of one pre-training with {paths[0]}: remove "
                f"{folder / 'samples'} and make it again with: "
                f"{_command(folder)}"
            )
        chosen = pictures.few_of_each(labels, each=2)
        images.append(arrays["images"][chosen].astype(np.float32))
    steps = np.array([int(path.stem) for path in paths])
    images, labels = np.stack(images), labels[chosen]
    return {"steps": steps, "images": images, "labels": labels}


def copy_pretraining(folder: Path, workdir: Path) -> None:
    """Puts what the page of D2M tells of a pre-training into
    ``workdir/pretraining``.

    Args:
      folder: of the finished pre-training.
      workdir: of the run that distils its generator.

    Raises:
      InputError: an artefact of the pre-training is missing or damaged.
    """
    folder, target = Path(folder), Path(workdir) / "pretraining"
    plain = ("metrics.jsonl", "quality.json")
    artefacts.require(folder, plain, _command(folder))
    looks = _read_looks(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name in plain:
        with atomic_write(target / name) as file:
            file.write((folder / name).read_bytes())
    with atomic_write(target / "samples.npz") as file:
        np.savez(file, allow_pickle=False, **looks)


def pretraining_values(
    workdir: Path, names: Sequence[str], command: str
) -> dict[str, Any] | None:
    """What templates tell of what ``copy_pretraining`` put into a run's
    folder; None where there is nothing. ``command`` mends a damaged one."""
    folder = workdir / "pretraining"
    if not folder.is_dir():
        return None
    needed = ("metrics.jsonl", "quality.json", "samples.npz")
    artefacts.require(folder, needed, command)
    path = folder / "samples.npz"
    looks = artefacts.read_npz(path, "steps", "images", "labels")
    shape = looks["images"].shape
    steps, labels = len(looks["steps"]), len(looks["labels"])
    if shape[:2] != (steps, labels):
        raise InputError(
            f"{path} holds images {shape} of {steps} steps and {labels} "
            f"labels; make it again with: {command}"
        )
    return _values(folder, looks, names, command)


def _values(
    folder: Path, looks: dict[str, Any], names: Sequence[str], command: str
) -> dict[str, Any]:
    """What the pages of a pre-training and of a distillation both tell."""
    records = artefacts.read_metrics(folder / "metrics.jsonl")
    quality = _read_quality(folder / "quality.json", command)
    steps, images = looks["steps"], looks["images"]
    # At most so many looks, the first and the last among them.
    spread = np.linspace(0, len(steps) - 1, min(len(steps), _MOST_LOOKS))
    shown = spread.round().astype(int)
    small = {steps[i]: _thumbnails(images[i]) for i in shown}
    return {
        "effort": artefacts.effort(records),
        "quality": quality,
        "looks": [
            pictures.titled(
                f"Step {step}",
                look,
                looks["labels"],
                names,
                **pictures.for_phones(look.shape[1], 32),
            )
            for step, look in small.items()
        ],
        "curves": figures.held_out(
            records,
            selected=quality["selected"],
            metric=quality["metric"],
        )
        + figures.curves(records, "gan", _CURVES),
    }


def _read_quality(path: Path, command: str) -> dict[str, Any]:
    found = artefacts.read_json(path)
    try:
        score = evaluate.summarise(found["classification_accuracy"])
        return {
            "score": {"mean": score.mean, "ci95": score.ci95}
            | {"accuracies": score.accuracy.tolist()},
            "distance": f"{found['frechet_distance']:.3g}",
            "images": int(found["images"]),
            "features": str(found["features"]),
            "of_a_teacher": float(found.get("of_a_teacher", 1)),
            "cut": found.get("cut"),
            "selected": found.get("selected_step"),
            "metric": found.get("metric", "accuracy"),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} does not hold the quality of a generator ({error!r}); "
            f"make it again with: {command}"
        ) from error


def _thumbnails(images: np.ndarray) -> np.ndarray:
    """At most 48 pixels a side, by means of squares."""
    n, side, _, channels = images.shape
    factor = 1
    while side // factor > 48 and side % (2 * factor) == 0:
        factor *= 2
    return images.reshape(
        n, side // factor, factor, side // factor, factor, channels
    ).mean((2, 4))


def _last_look(folder: Path, names: Sequence[str]) -> list[Any]:
    """The samples of the last look, one picture for a few classes each."""
    arrays = artefacts.read_npz(max(folder.glob("samples/[0-9]*.npz")))
    chosen = pictures.few_of_each(arrays["labels"], shown=_LAST)
    images, labels = arrays["images"][chosen], arrays["labels"][chosen]
    classes = np.unique(labels)
    layout = pictures.for_phones(images.shape[1])
    drawn = []
    for first in range(0, len(classes), layout["across"]):
        band = classes[first : first + layout["across"]].tolist()
        here = np.isin(labels, band)
        title = ", ".join(
            str(names[i]) if i < len(names) else str(i) for i in band
        )
        drawn.append(
            pictures.titled(title, images[here], labels[here], names, **layout)
        )
    return drawn
