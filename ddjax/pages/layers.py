"""The figures on a run's page that show its parameters, layer by layer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from ddjax.pages import figures
from ddjax.pages.figures import BLUE, GREY, INK, ORANGE, PLAIN, number

_WIDTH = 10  # inches, twice that of a small figure
_STILL = "teacher hardly moves"


def _tensor_order(name: str) -> tuple[Any, ...]:
    """conv0, norm0, conv1, ..., head; kernel, scale, bias within each."""
    layer, _, leaf = name.rpartition(".")
    numbers = [int(digits) for digits in re.findall(r"\d+", layer)]
    kinds = ("kernel", "scale", "bias")
    kind = kinds.index(leaf) if leaf in kinds else len(kinds)
    return numbers or [math.inf], layer, kind, leaf


@figures.style()
def importance_curves(records: list[dict[str, Any]]) -> Markup | None:
    """W's mean and standard deviation over time, one panel per layer."""
    looks = {
        int(r["step"]): r["importance"] for r in records if "importance" in r
    }
    steps = sorted(looks)
    names = {name for look in looks.values() for name in look}
    names = sorted(names, key=_tensor_order)
    if not names:
        return None
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    across = min(4, len(layers))
    down = math.ceil(len(layers) / across)
    figure = Figure((_WIDTH, 1.8 * down + 0.3), layout="constrained")
    panels = figure.subplots(
        down, across, sharex=True, sharey=True, squeeze=False
    ).ravel()
    leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    leaves.sort(key=lambda leaf: _tensor_order(f"x.{leaf}"))
    drawn = {}
    for axes, layer in zip(panels, layers):
        axes.set_title(layer or "network")
        figures.one(axes.axhline)
        axes.xaxis.set_major_locator(
            MaxNLocator(4, integer=True, steps=[1, 2, 5, 10])
        )
        axes.yaxis.set_major_formatter(PLAIN)
    for name in names:
        layer, _, leaf = name.rpartition(".")
        axes = panels[layers.index(layer)]
        color = figures.COLORS[leaves.index(leaf) % 4]
        here = [step for step in steps if name in looks[step]]
        mean, std = (
            np.array([looks[step][name].get(key, 0) for step in here])
            for key in ("mean", "std")
        )
        (drawn[leaf],) = axes.plot(here, mean, color=color)
        band = {"color": color, "alpha": 0.2, "linewidth": 0}
        axes.fill_between(here, mean - std, mean + std, **band)
    for axes in panels[len(layers) :]:
        axes.set_visible(False)
    # Their panel above shows the steps instead, which sharing had hidden.
    for axes in panels[:across] if down == 1 else panels[-across * 2 :]:
        axes.xaxis.set_tick_params(labelbottom=True)
    panels[0].set_xlim(left=0)
    lines, place = [drawn[leaf] for leaf in leaves], "outside upper right"
    figure.legend(lines, leaves, loc=place, ncols=len(leaves))
    figure.supxlabel("step", fontsize=8)
    last = looks[steps[-1]]
    alt = ", ".join(
        f"{name} {number(last[name]['mean'])}"
        for name in names
        if last.get(name, {}).get("mean") is not None
    )
    alt = f"Mean W by layer at step {steps[-1]}: {alt}"
    return figures.svg(figure, "weights", alt)


def _rows_figure(names: Sequence[str], widths: list[float]) -> Any:
    """(figure, axes) whose rows are tensors, a line between layers."""
    panels = len(widths)
    height = 0.27 * len(names) + 0.75 + 0.2 * (panels > 1)
    figure = Figure((_WIDTH, height), layout="constrained")
    axes = figure.subplots(
        1, panels, sharey=True, squeeze=False, width_ratios=widths
    )[0]
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    for panel in axes:
        panel.grid(visible=False, axis="y")
        panel.tick_params(axis="y", length=0)
        for i in range(1, len(names)):
            if names[i].rpartition(".")[0] != names[i - 1].rpartition(".")[0]:
                panel.axhline(i - 0.5, color=INK, linewidth=0.4, alpha=0.35)
    axes[0].xaxis.set_major_formatter(PLAIN)
    figures.one(axes[-1].axvline)
    return figure, axes


def _quantiles(axes: Any, y: Any, values: Any, color: str, low: Any) -> None:
    """1-99% as a line, 25-75% as a bar, the median as a stroke; what lies
    under ``low``, an end of the axis, is drawn as an arrow there."""
    q = np.quantile(values, [0.01, 0.25, 0.5, 0.75, 0.99])
    if q[0] < low:
        axes.plot([1.15 * low], [y], "<", color=color, ms=4)
    if q[-1] < low:
        return
    q = np.maximum(q, low)
    bar = {"color": color, "linewidth": 5, "solid_capstyle": "butt"}
    axes.plot(q[[0, 4]], [y, y], color=color, linewidth=1)
    axes.plot(q[[1, 3]], [y, y], **bar)
    if q[2] > low:
        axes.plot(q[2], y, "|", color=INK, ms=8, markeredgewidth=1.2)


@figures.style()
def importance_bars(weights: Mapping[str, np.ndarray]) -> Markup | None:
    """The final W of every tensor as quantiles."""
    names = sorted(weights, key=_tensor_order)
    if not names:
        return None
    figure, (axes,) = _rows_figure(names, [1.0])
    everything = np.concatenate([np.ravel(weights[name]) for name in names])
    low, high = everything.min(), everything.max()
    if low > 0:
        axes.set_xscale("log")
        pad = max((high / low) ** 0.04, 1.02)
        axes.set_xlim(min(low, 1) / pad, max(high, 1) * pad)
        steps = [m * 10.0**e for e in range(-6, 7) for m in (1, 1.5, 2, 3, 5)]
        shown = [t for t in steps if min(low, 1) <= t <= max(high, 1)]
        axes.set_xticks(shown if len(shown) < 16 else shown[::5])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(PLAIN)
    for y, name in enumerate(names):
        _quantiles(axes, y, weights[name], BLUE, -math.inf)
    axes.set_xlabel("final W")
    alt = ", ".join(f"{n} {number(np.median(weights[n]))}" for n in names)
    return figures.svg(figure, "final", f"Median of the final W: {alt}")


@figures.style()
def differences(
    student: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray]
) -> tuple[Markup, list[list[str]]] | None:
    """(figure, rows of a table) of student and start against target."""
    names = sorted(student.keys() & start.keys(), key=_tensor_order)
    if not names:
        return None
    figure, (bars, ratios) = _rows_figure(names, [2.4, 1.0])
    student, start = (
        {name: np.abs(np.ravel(part[name])) for name in names}
        for part in (student, start)
    )
    ends = [
        np.quantile(part[name], (0.01, 0.99))
        for part in (student, start)
        for name in names
    ]
    high = max(end for _, end in ends) or 1.0
    # A convolution's bias before a norm never moves: only rounding, or
    # exactly zero. Five decades show all that matters; the rest is an arrow.
    still = high * 1e-5
    low = min([end for end, _ in ends if end > still], default=still) / 2
    bars.set(xscale="log", xlim=(low, high * 1.6))
    bars.xaxis.set_minor_locator(NullLocator())
    bars.xaxis.set_major_formatter(PLAIN)
    bars.set_xlabel("absolute difference to the target")
    ratios.set_xlabel("student's rms / start's rms")
    table = []
    for y, name in enumerate(names):
        _quantiles(bars, y - 0.17, start[name], GREY, low)
        _quantiles(bars, y + 0.17, student[name], ORANGE, low)
        before, after = _rms(start[name]), _rms(student[name])
        told = _STILL
        if before > still:
            told = f"{after / before:.2f}"
            ratios.plot(after / before, y, "o", color=ORANGE, ms=5)
        else:
            inside = ratios.get_yaxis_transform()
            look = {"transform": inside, "va": "center", "alpha": 0.7}
            ratios.text(0.02, y, _STILL, **look)
        size = f"{len(start[name]):,}"
        table.append([name, size, number(before), number(after), told])
    ratios.set_xlim(left=0)
    ratios.set_xlim(right=max(1.1, ratios.get_xlim()[1]))
    for color, label in ((GREY, "start"), (ORANGE, "student")):
        bars.plot([], [], color=color, linewidth=5, label=label)
    figure.legend(loc="outside upper left", ncols=2)
    alt = "Student's rms difference to the target over the start's: "
    alt += ", ".join(f"{row[0]} {row[-1]}" for row in table)
    return figures.svg(figure, "difference", alt), table


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
