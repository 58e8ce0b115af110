"""The page of a privacy card: privacy.html.

    privacy.json     required
    neighbours.npz   required

A single file without scripts or outside resources, the same bytes for the same
files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from ddjax.pages import artefacts, figures, page, pictures

__all__ = ["write_page"]

_SHOWN = 30  # distilled images beside their neighbours

_TRAINED_ON = {
    "full_data": "All training data",
    "distilled": "The file",
    "real": "Real images",
}
_MEMBERS = {
    "training": "Training images",
    "initial": "What the file began with",
    "own": "The images it saw",
    "unseen": "Training images it did not see",
}
_ATTACKS = {
    "loss": "Loss",
    "likelihood_ratio": "Likelihood ratio",
    "offline_ratio": "Likelihood ratio, offline",
}
_FILES = {
    "privacy.json": "all that this page shows, and the figures of every image",
    "neighbours.npz": "distilled images and their neighbours, as uint8",
    "cells": "what each network says of the images it was asked about",
}


def write_page(folder: Path) -> Path:
    """Writes ``privacy.html``, whole or not at all.

    Args:
      folder: of ``privacy.py``.

    Returns:
      The path of the page.

    Raises:
      InputError: a file is missing, or not such a file.
    """
    folder = Path(folder)
    command = "python experiments/privacy.py --distilled=PATH --config=..."
    artefacts.require(folder, ["privacy.json", "neighbours.npz"], command)
    content = artefacts.read_json(folder / "privacy.json")
    images = artefacts.read_npz(
        folder / "neighbours.npz", "distilled", "pixels", "features"
    )
    with artefacts.as_written(folder / "privacy.json", "privacy.py"):
        near, names = content["neighbours"], content["file"]["classes"]
        chosen = _chosen(near)
        values = {
            "shape": content["file"]["shape"],
            "where": str(content["file"]["path"]),
            "sha256": str(content["file"]["sha256"]),
            "method": str(content["file"]["method"]),
            "classes": len(names),
            "counts": content["counts"],
            "flagged": {
                by: sum(bool(row[by]["flagged"]) for row in near)
                for by in ("pixels", "features")
            },
            "share": 1 - content["flagged_below"],
            "head": _head(near),
            "rows": [_row(i, near[i], images, names) for i in chosen],
            "shown": len(chosen),
            "distances": [
                _distances(by, near, content["strangers"][by])
                for by in ("pixels", "features")
            ],
            "table": [_attack(row) for row in content["membership"]],
            "coarse": [
                row["images"][1]
                for row in content["membership"]
                if row["images"][1] < 100
            ],
            "initial": content["real"] == "initial",
            "network": str(content["config"]["model.name"]),
            "networks": int(content["networks"]),
            "shadows": int(content["shadow_networks"]),
            "findings": [
                [row["found"], row["shows"], row["does_not_show"]]
                for row in content["findings"]
            ],
        }
    return page.write(
        folder / "privacy.html",
        "privacy.html",
        folder=folder,
        title=f"Privacy card: {folder.resolve().name}",
        files=artefacts.file_rows(folder, _FILES),
        **values,
        **artefacts.config_values(content),
    )


def _chosen(near: Sequence[Mapping[str, Any]]) -> list[int]:
    """The images to show: those that are nearest to a training image, as the
    held-out images measure it, in their order in the file."""
    ranks = [
        min(
            (row[by]["strangers_as_near"], row[by]["distance"])
            for by in ("pixels", "features")
        )
        for row in near
    ]
    return sorted(sorted(range(len(near)), key=ranks.__getitem__)[:_SHOWN])


def _head(near: Sequence[Mapping[str, Any]]) -> list[str]:
    began = ["Began with"] if "initial" in near[0] else []
    return [
        "Distilled",
        *began,
        "Nearest by pixels",
        "Nearest by features",
    ]


def _row(
    number: int,
    row: Mapping[str, Any],
    images: Mapping[str, np.ndarray],
    names: Sequence[str],
) -> list[Markup]:
    """Tiles with what is told of them."""
    name = names[row["class"]]
    cells = [_cell(images["distilled"][number], [f"{number}: {name}"])]
    if "initial" in row:
        index = row["initial"]["index"]
        told = [] if index is None else [f"training image {index}"]
        told.append(f"distance {row['initial']['distance']:.3f}")
        cells.append(_cell(images["initial"][number], told))
    for by in ("pixels", "features"):
        found = row[by]
        told = [
            f"training image {found['index']}: {names[found['class']]}",
            f"distance {found['distance']:.3f}",
            f"{page.percent(found['strangers_as_near'])} of held-out images "
            "are as near",
        ]
        flag = "flagged" if found["flagged"] else ""
        cells.append(_cell(images[by][number], told, flag))
    return cells


def _cell(pixels: np.ndarray, told: Sequence[str], flag: str = "") -> Markup:
    lines = Markup("<br>").join(told)
    if flag:
        lines += Markup("<br><strong>{}</strong>").format(flag)
    return page.image(pictures.tile(pixels), ", ".join(told)) + lines


@figures.style()
def _distances(
    by: str, near: Sequence[Mapping[str, Any]], strangers: Sequence[float]
) -> Markup:
    """Held-out images as a histogram, distilled ones as marks above it."""
    own = [row[by]["distance"] for row in near]
    figure = Figure((5, 2.4), layout="constrained")
    axes = figure.subplots()
    axes.hist(
        strangers, 30, color=figures.BLUE, alpha=0.5, label="held-out images"
    )
    axes.plot(
        own,
        np.full(len(own), 0.5),
        "|",
        color=figures.ORANGE,
        ms=14,
        mew=1.4,
        label="distilled images",
    )
    axes.set(title=f"By {by}", xlabel="distance to the nearest training image")
    axes.set_ylabel("held-out images")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(left=0)
    axes.legend()
    alt = (
        f"Distances to the nearest training image by {by}: distilled "
        f"{min(own):.3f} to {max(own):.3f}, held-out {min(strangers):.3f} to "
        f"{max(strangers):.3f}"
    )
    return figures.svg(figure, f"distances-{by}", alt)


def _attack(row: Mapping[str, Any]) -> list[str]:
    members, others = row["images"]
    coarse = others < 100
    return [
        _TRAINED_ON[row["trained_on"]],
        f"{_MEMBERS[row['members']]} ({members})",
        _ATTACKS[row["attack"]],
        _interval(row["auc"]),
        _percent(row["balanced_accuracy"]),
        _percent(row["tpr_at_fpr_0.01"]) + ("*" if coarse else ""),
    ]


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _percent(found: Mapping[str, float]) -> str:
    low, high = (100 * found[end] for end in ("low", "high"))
    return f"{page.percent(found['mean'])} ({low:.1f} to {high:.1f})"
