"""The page of a search among networks: nas.html.

    nas.json    required

A single file without scripts or outside resources, the same bytes for the same
nas.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from ddjax.pages import artefacts, figures, page

__all__ = ["write_page"]

_SOURCES = {
    "distilled": "The file",
    "random_real": "Random real images",
    "herding": "Herding",
    "k_centre": "K-centre",
    "class_means": "Class means",
    "full_data": "All training data",
    "best": "The best there is",
}
_ON = {"held_out": "held-out training images", "test": "test images"}
_ACTIVATIONS = {
    "relu": (figures.BLUE, "o"),
    "leaky_relu": (figures.GREEN, "^"),
    "sigmoid": (figures.ORANGE, "s"),
}
_FILES = {
    "nas.json": "all that this page shows, with every network's accuracies",
    "cells": "each network on each of its training sets, with times",
}
_MOST = 10  # networks in the table of the best


def write_page(folder: Path) -> Path:
    """Writes ``nas.html``, whole or not at all.

    Args:
      folder: of ``nas.py``.

    Returns:
      The path of the page.

    Raises:
      InputError: nas.json is missing, or not such a file.
    """
    folder = Path(folder)
    artefacts.require(
        folder,
        ["nas.json"],
        "python experiments/nas.py --distilled=PATH --config=...",
    )
    content = artefacts.read_json(folder / "nas.json")
    with artefacts.as_written(folder / "nas.json", "nas.py"):
        networks, found = content["networks"], content["correlations"]
        picks, costs = content["picks"], content["costs"]
        proxies = [name for name in costs if name != "full_data"]
        metric = str(content["metric"])
        values = {
            "shape": [int(size) for size in content["file"]["shape"]],
            "method": str(content["file"]["method"]),
            "where": str(content["file"]["path"]),
            "sha256": str(content["file"]["sha256"]),
            "ipc": int(content["ipc"]),
            "count": len(networks),
            "grid": {k: int(v) for k, v in content["grid"].items()},
            "images": {k: int(v) for k, v in content["images"].items()},
            "seeds": int(content["seeds"]),
            "metric": page.words(metric),
            "proxies": proxies,
            "panels": [
                _panel(networks, name, picks, found) for name in proxies
            ],
            "tables": {
                words: _correlations(found, on, proxies)
                for on, words in _ON.items()
            },
            "less": _less(found),
            "picks": [_pick(row, len(networks)) for row in picks],
            "mean": page.percent(
                sum(row["full_data"]["test"] for row in networks)
                / len(networks)
            ),
            "best": _best(networks, [*proxies, "full_data"]),
            "costs": [_cost(name, costs[name]) for name in costs],
            "rate": content["config"]["evaluate.real_learning_rate"],
            "steps": content["config"]["nas.full_steps"],
            "epochs": content["config"]["nas.epochs"],
        }
    return page.write(
        folder / "nas.html",
        "nas.html",
        folder=folder,
        title=f"Search: {folder.resolve().name}",
        files=artefacts.file_rows(folder, _FILES),
        **values,
        **artefacts.config_values(content),
    )


def _rho(found: Mapping[str, Any] | None) -> str:
    """A correlation with its interval, as typeset."""
    if not found or found["rho"] is None:
        return ""
    text = f"{found['rho']:+.2f}"
    if found["low"] is not None:
        text += f" ({found['low']:+.2f} to {found['high']:+.2f})"
    return text.replace("-", "\N{MINUS SIGN}")


def _correlations(
    found: Sequence[Mapping[str, Any]], on: str, proxies: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of a table: a row for each proxy."""
    rows = [row for row in found if row["on"] == on]
    counts = dict.fromkeys((row["networks"], row["best"]) for row in rows)
    head = ["Trained on"]
    for count, best in counts:
        head.append(f"best {count}" if best else f"all {count} networks")
    by = {(row["proxy"], row["networks"]): row for row in rows}
    return head, [
        [_SOURCES[name], *(_rho(by.get((name, n))) for n, _ in counts)]
        for name in proxies
    ]


def _less(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """How far the file is above each other proxy, over all networks."""
    rows = {
        (row["proxy"], row["on"]): _rho(row["less"])
        for row in found
        if "less" in row
    }
    names = dict.fromkeys(name for name, _ in rows)
    return [
        [_SOURCES[name], *(rows.get((name, on), "") for on in _ON)]
        for name in names
    ]


def _pick(row: Mapping[str, Any], count: int) -> list[str]:
    equals = "" if row["by"] == "best" else str(row["equals"])
    return [
        _SOURCES[row["by"]],
        str(row["network"]),
        equals,
        page.percent(row["test"]),
        f"{row['rank']} of {count}",
    ]


def _best(
    networks: Sequence[Mapping[str, Any]], sources: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of the networks that are best on all data, by test
    images."""
    best = sorted(networks, key=lambda row: -row["full_data"]["test"])
    head = ["Network", *(_SOURCES[name] for name in sources)]
    return head, [
        [
            str(row["name"]),
            *(page.percent(row[name]["test"]) for name in sources),
        ]
        for row in best[:_MOST]
    ]


def _cost(name: str, clocks: Mapping[str, Mapping[str, float]]) -> list[str]:
    spent = clocks["seconds"]
    return [
        _SOURCES[name],
        *(page.duration(spent[phase]) for phase in spent),
        page.duration(sum(spent.values())),
        page.duration(sum(clocks["processor_seconds"].values())),
    ]


@figures.style()
def _panel(
    networks: Sequence[Mapping[str, Any]],
    proxy: str,
    picks: Sequence[Mapping[str, Any]],
    found: Sequence[Mapping[str, Any]],
) -> Markup:
    """Test accuracy after all data over that after a proxy; a point for each
    network, its pick ringed."""
    figure = Figure((4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set(
        title=_SOURCES[proxy],
        xlabel="trained on them: test images, %",
        ylabel="trained on all data: test images, %",
    )
    for name, (color, mark) in _ACTIVATIONS.items():
        some = [row for row in networks if row["activation"] == name]
        if some:
            axes.scatter(
                [100 * row[proxy]["test"] for row in some],
                [100 * row["full_data"]["test"] for row in some],
                s=16,
                color=color,
                marker=mark,
                alpha=0.75,
                linewidths=0,
                label=page.words(name),
            )
    picked = next(row["network"] for row in picks if row["by"] == proxy)
    (row,) = (row for row in networks if row["name"] == picked)
    axes.scatter(
        [100 * row[proxy]["test"]],
        [100 * row["full_data"]["test"]],
        s=90,
        facecolors="none",
        edgecolors=figures.INK,
        linewidths=1,
    )
    figure.legend(loc="outside lower center", ncols=3)
    rho = next(
        row
        for row in found
        if row["proxy"] == proxy and row["on"] == "test" and not row["best"]
    )
    alt = (
        f"{_SOURCES[proxy]}: test accuracy of {len(networks)} networks beside "
        f"that after training on all data, rank correlation "
        f"{_rho(rho) or 'unknown'}"
    )
    return figures.svg(figure, f"scatter-{proxy}", alt)
