"""The static page of a generator's pre-training, and what is told of it in
the report of its distillation.

``write_gan_report`` turns the artefacts of a pre-training's folder into
``report.html``: a single file as that of ``ddjax.report``, the same bytes for
the same artefacts.

    shaped_by.json, generator.npz, quality.json, samples/    required
    metrics.jsonl                                            if there

A generator may be shared between runs, and the report of a run is to be
readable without it: ``copy_pretraining`` takes a part along.
"""

from __future__ import annotations

import html
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddjax import (
    artifact,
    evaluate,
    figures,
    generator_page,
    page,
    reading,
    run_page,
)
from ddjax.files import atomic_write
from ddjax.types import InputError

__all__ = ["copy_pretraining", "pretraining_section", "write_gan_report"]

_FILES = {
    "shaped_by.json": "all that shaped the generator",
    "metrics.jsonl": "what was logged, one JSON object a line",
    "checkpoints": "states that the pre-training can be continued from",
    "samples": "images of the same noise at every look",
    "generator.npz": "the generator, with all that is needed to use it",
    "quality.json": "how good its images are",
}


class _Looks(NamedTuple):
    """Images of the same noise while a generator was trained.

    Attributes:
      steps: [t].
      images: [t n h w c] in 0..1.
      labels: [n].
    """

    steps: np.ndarray
    images: np.ndarray
    labels: np.ndarray


def _read_looks(folder: Path) -> _Looks:
    """Two images of each class from the samples of a pre-training."""
    paths = sorted(folder.glob("samples/[0-9]*.npz"))
    if not paths:
        raise InputError(
            f"{folder / 'samples'} holds no samples; make them with: "
            f"{_gan_command(folder)}"
        )
    images, labels = [], None
    for path in paths:
        arrays = reading.read_npz(path, "images", "labels")
        if labels is None:
            labels, shape = arrays["labels"], arrays["images"].shape
        if (
            arrays["images"].shape != shape
            or not np.array_equal(arrays["labels"], labels)
            or shape[:1] != labels.shape
            or len(shape) != 4
        ):
            raise InputError(
                f"{path} is not of one pre-training with {paths[0]}: remove "
                f"{folder / 'samples'} and make it again with: "
                f"{_gan_command(folder)}"
            )
        chosen = generator_page.first_of_each(labels, 2)
        images.append(arrays["images"][chosen].astype(np.float32))
    steps = np.array([int(path.stem) for path in paths])
    return _Looks(steps, np.stack(images), labels[chosen])


def copy_pretraining(folder: Path, workdir: Path) -> None:
    """Puts what the report of D2M tells of a pre-training into
    ``workdir/pretraining``.

    Args:
      folder: of the finished pre-training.
      workdir: of the run that distils its generator.

    Raises:
      InputError: an artefact of the pre-training is missing or damaged.
    """
    folder, target = Path(folder), Path(workdir) / "pretraining"
    plain = ("metrics.jsonl", "quality.json")
    reading.require(folder, dict.fromkeys(plain, _gan_command(folder)))
    looks = _read_looks(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name in plain:
        with atomic_write(target / name) as file:
            file.write((folder / name).read_bytes())
    with atomic_write(target / "samples.npz") as file:
        np.savez(file, allow_pickle=False, **looks._asdict())


def _gan_command(folder: Path) -> str:
    """What makes such a folder, as far as the folder tells."""
    flags = ""
    if (folder / "shaped_by.json").exists():
        shaped_by = reading.read_json(folder / "shaped_by.json")
        flags = "".join(
            f" --config.{name}={shlex.quote(str(value))}"
            for name, value in shaped_by.items()
            if name != "data"  # a checksum
        )
    return f"python experiments/gan.py --config=configs/NAME.py{flags}"


class _Quality(NamedTuple):
    """What quality.json says, as HTML."""

    score: str
    sentences: str


def _read_quality(path: Path, command: str) -> _Quality:
    found = reading.read_json(path)
    try:
        score = evaluate.summarise(found["classification_accuracy"])
        distance = f"{found['frechet_distance']:.3g}"
        count, features = int(found["images"]), str(found["features"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} does not hold the quality of a generator ({error!r}); "
            f"make it again with: {command}"
        ) from error
    number = len(score.accuracy)
    text = run_page.score(
        {
            "mean": score.mean,
            "ci95": score.ci95,
            "accuracies": score.accuracy.tolist(),
        }
    )
    over = f", mean and 95% interval over {number} networks"
    return _Quality(
        text,
        f"Classification accuracy score: <strong>{text}</strong>. This is "
        "the test accuracy of networks trained on generated images alone, "
        "fresh ones for every epoch, as long and on as many as the teachers "
        f"are on real ones{over if number > 1 else ''}. Fr&eacute;chet "
        f"distance: <strong>{distance}</strong>, between {count:,} real "
        "training images and as many generated ones, by the features "
        f"&ldquo;{html.escape(features)}&rdquo;; it compares generators by "
        "the same features only.",
    )


_LAST = 100  # images of the last look
_MOST_LOOKS = 12


def _looks_over_time(looks: _Looks, names: Sequence[str]) -> str:
    """A small grid for each look."""
    shown = np.arange(len(looks.steps))
    if len(shown) > _MOST_LOOKS:
        spread = np.linspace(0, len(shown) - 1, _MOST_LOOKS)
        shown = np.unique(spread.round().astype(int))
    return generator_page.beside(
        generator_page.sample_picture(
            f"Step {looks.steps[i]}",
            _thumbnails(looks.images[i]),
            looks.labels,
            names,
            tile=32,
        )
        for i in shown
    )


def _thumbnails(images: np.ndarray) -> np.ndarray:
    """At most 48 pixels a side, by means of squares."""
    n, side, _, channels = images.shape
    factor = 1
    while side // factor > 48 and side % (2 * factor) == 0:
        factor *= 2
    return images.reshape(
        n, side // factor, factor, side // factor, factor, channels
    ).mean((2, 4))


def _gan_curves(records: list[dict[str, Any]]) -> str:
    drawn = (
        figures.lines(
            records,
            "gan-loss",
            "Losses",
            {"critic_loss": "critic", "generator_loss": "generator"},
        ),
        figures.lines(
            records,
            "gan-score",
            "The critic's mean scores",
            {"real_score": "real images", "fake_score": "generated images"},
        ),
    )
    drawn = [page.figure(figure) for figure in drawn if figure]
    if not drawn:
        return ""
    return (
        f'<div class="pair">{"".join(drawn)}</div>'
        '<p class="note">A critic that tells nothing apart scores both alike; '
        "its hinge loss is then 2 or more. A band is the smallest to the "
        "largest of neighbouring steps, the line their mean.</p>"
    )


_SAME_NOISE = (
    '<p class="note">The same noise at every step, so that a place in one '
    "picture is the same place in the others.</p>"
)


def write_gan_report(folder: Path) -> Path:
    """Writes ``report.html`` of a pre-training, whole or not at all.

    Args:
      folder: of the pre-training; the top of this file lists what is read.

    Returns:
      The path of the page.

    Raises:
      InputError: a required artefact is missing, or one cannot be read.
    """
    folder = Path(folder)
    command = generator_page.again(folder, _gan_command(folder))
    needed = ("shaped_by.json", "generator.npz", "quality.json", "samples")
    reading.require(folder, dict.fromkeys(needed, command))
    shaped_by = reading.read_json(folder / "shaped_by.json")
    found = artifact.load_generator(folder / "generator.npz")
    quality = _read_quality(folder / "quality.json", command)
    records = reading.read_metrics(folder / "metrics.jsonl")
    looks = _read_looks(folder)
    names = found.metadata["class_names"]
    with page.style():
        curves = _gan_curves(records)
    sections = [
        page.section(
            "pictures",
            f"What it makes after {looks.steps[-1]} updates",
            _last_look(folder, names),
        ),
        page.section("quality", "Quality", f"<p>{quality.sentences}</p>"),
        page.section(
            "looks",
            "Samples over time",
            _looks_over_time(looks, names),
            _SAME_NOISE,
        ),
        page.section("curves", "Curves", curves) if curves else "",
        generator_page.files_section(folder, _FILES, "generator.npz"),
        generator_page.commands_section(
            "The pre-training, where NAME is the config of its data; images "
            "of the generator, its distillation, and this page alone:",
            [
                _gan_command(folder),
                generator_page.generate_command(folder),
                "python experiments/d2m.py --config=configs/NAME.py "
                f"--config.d2m.generator={shlex.quote(str(folder))}",
                generator_page.report_command(folder),
            ],
        ),
        page.section(
            "config",
            "What shaped it",
            "<p>Runs of D2M whose data and values are these share this "
            "generator.</p>",
            '<div class="facts">',
            page.table(("Field", "Value"), run_page.flatten(shaped_by)),
            "</div>",
        ),
    ]
    text = (
        f"{generator_page.described(found)}, was pre-trained as a BigGAN on "
        f"real images{generator_page.effort(records)}. Networks that see only "
        "what it makes, fresh images in every epoch, reach "
        f"<strong>{quality.score}</strong> on the test set, which decided "
        "nothing."
    )
    return generator_page.write(
        folder, f"Pre-training report: {folder.resolve().name}", text, sections
    )


def _last_look(folder: Path, names: Sequence[str]) -> str:
    """The samples of the last look, one picture for a few classes each."""
    arrays = reading.read_npz(max(folder.glob("samples/[0-9]*.npz")))
    images, labels = arrays["images"], arrays["labels"]
    chosen = generator_page.first_of_each(
        labels, generator_page.per_class(labels, _LAST)
    )
    images, labels = images[chosen], labels[chosen]
    classes = np.unique(labels)
    _, across = generator_page.layout(images.shape[1], generator_page.TILE)
    drawn = []
    for first in range(0, len(classes), across):
        band = classes[first : first + across]
        here = np.isin(labels, band)
        drawn.append(
            generator_page.sample_picture(
                _names_of(band, names), images[here], labels[here], names
            )
        )
    return generator_page.beside(drawn)


def _names_of(band: np.ndarray, names: Sequence[str]) -> str:
    """The classes of a picture, in words."""
    return ", ".join(
        str(names[i]) if i < len(names) else str(i) for i in band.tolist()
    )


def pretraining_section(
    workdir: Path, names: Sequence[str], command: str
) -> str:
    """The section about what ``copy_pretraining`` put into a run's folder;
    empty where there is none.

    Args:
      workdir: of the run.
      names: of the classes.
      command: what mends a damaged folder.

    Raises:
      InputError: a part of it is missing or damaged.
    """
    folder = workdir / "pretraining"
    if not folder.is_dir():
        return ""
    needed = ("metrics.jsonl", "quality.json", "samples.npz")
    reading.require(folder, dict.fromkeys(needed, command))
    records = reading.read_metrics(folder / "metrics.jsonl")
    looks = _Looks(
        **{
            name: array
            for name, array in reading.read_npz(
                folder / "samples.npz", *_Looks._fields
            ).items()
            if name in _Looks._fields
        }
    )
    if looks.images.shape[:2] != looks.steps.shape + looks.labels.shape:
        raise InputError(
            f"{folder / 'samples.npz'} holds images {looks.images.shape} of "
            f"{len(looks.steps)} steps and {len(looks.labels)} labels; make "
            f"it again with: {command}"
        )
    quality = _read_quality(folder / "quality.json", command)
    effort = generator_page.effort(records)
    return page.section(
        "pretraining",
        "Pre-training",
        f"<p>Before it was distilled, the generator was trained as a BigGAN "
        f"on real images{effort}. {quality.sentences}</p>",
        "<h3>Samples over time</h3>",
        _looks_over_time(looks, names),
        _SAME_NOISE,
        _gan_curves(records),
    )
