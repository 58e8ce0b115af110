"""What the pages of a generator share: pictures, size, files, commands."""

from __future__ import annotations

import html
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddjax import artifact, figures, page, run_page
from ddjax.files import atomic_write
from ddjax.picture import picture

__all__ = [
    "TILE",
    "again",
    "beside",
    "commands_section",
    "described",
    "effort",
    "files_section",
    "first_of_each",
    "generate_command",
    "layout",
    "per_class",
    "report_command",
    "sample_picture",
    "write",
]

# Three figures beside each other; on a narrow screen, under each other. There,
# a table of four scores fits without scrolling.
_CSS = """
.three { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); }
.three figure { margin: 0; min-width: 0; }
@media (max-width: 40rem) {
  #results table { font-size: .72rem; }
  #results td:first-child { min-width: 2.5rem; }
  #results th, #results td { padding-right: .3rem; }
  #files td { overflow-wrap: anywhere; }
}
"""
_OPENING = """\
import jax, jax.numpy as jnp
from ddjax import artifact, gan
found = artifact.load_generator("{name}")
labels = jnp.arange(len(found.metadata["class_names"]))
noise = gan.noise(jax.random.key(0), len(labels), found.apply.noise_size)
images = found.apply(found.params, noise, labels)  # [n h w c], 0 to 1"""
TILE = 64
"""Pixels a side, of images that are to be looked at."""

_BAND = 360  # pixels: a phone's width, and a third of the page's
_CLASSES = 20  # in a picture


def first_of_each(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Indices of the first images of each class; of many classes, of some
    spread over all."""
    classes = np.unique(labels)
    if len(classes) > _CLASSES:
        spread = np.linspace(0, len(classes) - 1, _CLASSES).astype(int)
        classes = classes[spread]
    return np.concatenate(
        [np.flatnonzero(labels == label)[:per_class] for label in classes]
    )


def per_class(labels: np.ndarray, shown: int) -> int:
    """Images of each class so that about so many are shown; three at least."""
    classes = min(len(np.unique(labels)), _CLASSES)
    return min(10, max(3, shown // classes))


def layout(side: int, tile: int) -> tuple[int, int]:
    """(edge of a pixel, classes to a band) for tiles of about that size."""
    scale = max(1, round(tile / side))
    return scale, max(2, round(_BAND / (scale * side + 4)))


def sample_picture(
    title: str,
    images: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    *,
    tile: int = TILE,
) -> str:
    """A figure whose class names can be read on a phone.

    Args:
      title: over the picture.
      images: [n h w c] in 0..1.
      labels: [n].
      names: of the classes.
      tile: pixels a side, about.
    """
    scale, across = layout(images.shape[1], tile)
    drawn = picture(images, labels, names, scale=scale, across=across)
    alt = (
        f"{title}: {len(images)} images of {len(np.unique(labels))} classes, "
        "one column per class"
    )
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f"{page.image(drawn, alt)}</figure>"
    )


def beside(drawn: Iterable[str]) -> str:
    """Figures in rows of three, of one on a phone."""
    return f'<div class="three">{"".join(drawn)}</div>'


def described(found: artifact.GeneratorArtifact) -> str:
    """A generator and its size, as the beginning of a sentence."""
    module = found.apply.module
    count = sum(leaf.size for leaf in jax.tree.leaves(found.params))
    return (
        f"<strong>A generator of {count:,} parameters</strong>, as many "
        f"numbers as {_count(found.size_in_images)} images of the data set "
        f"({module.num_classes} classes, {module.size} &times; {module.size} "
        f"&times; {module.channels})"
    )


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def effort(records: list[dict[str, Any]]) -> str:
    """Steps and time, as the middle of a sentence."""
    last = max((int(record["step"]) for record in records), default=None)
    if last is None:
        return ""
    _, seconds = figures.series(records, "seconds")
    text = f" in {last:,} steps"
    if len(seconds):
        # Each is the mean of an update since the line before.
        text += f", about {page.duration(float(seconds.mean()) * last)}"
    return text


def again(folder: Path, command: str) -> str:
    """The command that makes a folder again: a script takes one with a page
    for finished."""
    if (folder / "report.html").exists():
        page_path = shlex.quote(str(folder / "report.html"))
        return f"rm {page_path} && {command}"
    return command


def generate_command(folder: Path) -> str:
    """What makes images of the generator in a folder."""
    return (
        f"python experiments/generate.py --generator={shlex.quote(str(folder))}"
        " --ipc=50 --seed=0 --out=DIR"
    )


def report_command(folder: Path) -> str:
    """What makes the page of a folder."""
    return f"python experiments/report.py --workdir={shlex.quote(str(folder))}"


def files_section(folder: Path, what: Mapping[str, str], name: str) -> str:
    """The files that are there, and how to use the generator.

    Args:
      folder: where they lie.
      what: {file: what it is}.
      name: the generator's file.
    """
    return page.section(
        "files",
        "Files",
        run_page.file_table(folder, what),
        "<p>The generator is used so:</p>",
        f"<pre>{html.escape(_OPENING.format(name=name))}</pre>",
    )


def commands_section(lead: str, commands: Iterable[str]) -> str:
    """Commands under a sentence; empty ones are left out."""
    text = "\n".join(command for command in commands if command)
    return page.section(
        "commands",
        "To repeat",
        f"<p>{html.escape(lead)}</p>",
        f"<pre>{html.escape(text)}</pre>",
    )


def write(folder: Path, title: str, lead: str, sections: Iterable[str]) -> Path:
    """``page.document`` as ``report.html``, whole or not at all; its path."""
    path = folder / "report.html"
    text = page.document(title, lead, sections, css=_CSS)
    with atomic_write(path) as file:
        file.write(text.encode())
    return path
