"""The page of a distilled file on many networks: matrix.html.

    matrix.json    required

A single file without scripts or outside resources, the same bytes for the same
matrix.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ddjax.pages import artefacts, figures, page, scores

__all__ = ["write_page"]

_ROWS = {
    "distilled": "The file",
    "distilled_hard": "The file, hard labels",
    "distilled_unaugmented": "The file, no augmentation",
    "random_real": "Random real images",
    "random_real_unaugmented": "Random real, no augmentation",
    "herding": "Herding",
    "k_centre": "K-centre",
    "class_means": "Class means",
    "full_data": "All training data",
}
_FILES = {
    "matrix.json": "all that this page shows, with every network's accuracy",
    "cells": "each cell with its learning rate and what was searched for it",
}


def write_page(folder: Path) -> Path:
    """Writes ``matrix.html``, whole or not at all.

    Args:
      folder: of ``evaluate.py --distilled=``.

    Returns:
      The path of the page.

    Raises:
      InputError: matrix.json is missing, or not such a file.
    """
    folder = Path(folder)
    artefacts.require(
        folder,
        ["matrix.json"],
        "python experiments/evaluate.py --distilled=PATH --config=...",
    )
    content = artefacts.read_json(folder / "matrix.json")
    with artefacts.as_written(
        folder / "matrix.json", "evaluate.py --distilled="
    ):
        rows = scores.results_of(content["rows"])
        file, found = content["file"], content["scores"]
        networks = list(rows["distilled"])
        shape, classes = file["shape"], file["classes"]
        table = [_scores(name, found[name]) for name in networks]
        values = {
            "rates": [_rates(rows, row, networks) for row in _known(rows)],
            "soft": bool(file["soft"]),
            "where": str(file["path"]),
            "sha256": str(file["sha256"]),
            "method": str(file["method"]),
            "rate": float(file["learning_rate"]),
            "ipc": int(content["ipc"]),
        }
    balanced = scores.is_unbalanced(rows.values())
    return page.write(
        folder / "matrix.html",
        "matrix.html",
        folder=folder,
        title=f"Matrix: {folder.resolve().name}",
        networks=networks,
        shape=shape,
        classes=len(classes),
        inches=_inches(networks),
        heat=_heat_map(rows, networks, "accuracy"),
        balanced=(
            _heat_map(rows, networks, "balanced_accuracy") if balanced else None
        ),
        scores=table,
        ceiling=scores.ceiling(rows),
        picks=list(rows),
        files=artefacts.file_rows(folder, _FILES),
        **values,
        **artefacts.config_values(content),
    )


def _known(rows: Mapping[str, Any]) -> list[str]:
    return [row for row in _ROWS if row in rows]


def _scores(network: str, found: Mapping[str, Any]) -> list[str]:
    """A row of the table of scores."""
    return [
        network,
        *(_interval(found[name], page.points) for name in ("hlr", "ior")),
        *(_interval(found[name], "{:.3f}".format) for name in ("lrs", "ars")),
    ]


def _interval(
    found: Mapping[str, float | None], told: Callable[[float], str]
) -> str:
    text = told(found["mean"])
    if found["low"] is None:
        return text
    return f"{text} ({told(found['low'])} to {told(found['high'])})"


def _rates(
    rows: Mapping[str, scores.Results], row: str, networks: list[str]
) -> list[str]:
    """What a row's networks were trained at first."""
    rates = (rows[row].get(name, {}).get("learning_rate") for name in networks)
    return [
        _ROWS[row],
        *("" if rate is None else figures.number(rate) for rate in rates),
    ]


def _inches(networks: list[str]) -> float:
    """The width of a heat map."""
    return 2.6 + 1.05 * len(networks)


@figures.style()
def _heat_map(
    rows: Mapping[str, scores.Results], networks: list[str], metric: str
) -> Markup:
    """Accuracies in %, with their intervals; the darker the higher."""
    names = _known(rows)
    cells = {
        (row, column): result if metric == "accuracy" else result[metric]
        for row, name in enumerate(names)
        for column, network in enumerate(networks)
        if (result := rows[name].get(network))
    }
    means = [cell["mean"] for cell in cells.values()]
    low, span = min(means), max(max(means) - min(means), 1e-9)
    figure = Figure(
        (_inches(networks), 0.7 + 0.42 * len(names)),
        layout="constrained",
    )
    axes = figure.subplots()
    for (row, column), cell in cells.items():
        share = (cell["mean"] - low) / span
        axes.add_patch(
            Rectangle(
                (column + 0.02, row + 0.04),
                0.96,
                0.92,
                color=figures.BLUE,
                alpha=0.06 + 0.5 * share,
                linewidth=0,
            )
        )
        text = page.score(cell).removesuffix("%")
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center")
    axes.set_xlim(0, len(networks))
    axes.set_ylim(len(names), 0)
    axes.set_xticks([i + 0.5 for i in range(len(networks))], networks)
    axes.set_yticks(
        [i + 0.5 for i in range(len(names))], [_ROWS[name] for name in names]
    )
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    alt = f"{page.words(metric).capitalize()} in %: " + "; ".join(
        f"{_ROWS[names[row]]}, {networks[column]}: {page.score(cell)}"
        for (row, column), cell in cells.items()
    )
    return figures.svg(figure, f"heat-{metric}", alt)
