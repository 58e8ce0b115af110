"""The figures on a run's page, each as an <svg> element.

They are to be drawn inside ``style()``.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from ddjax.pages.artefacts import series
from ddjax.pages.page import percent, words

__all__ = [
    "INK",
    "curves",
    "held_out",
    "lines",
    "style",
    "svg",
]

# The colour of text in a figure; ``svg`` makes it the page's own.
INK = "#010203"
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "figure.facecolor": "none",
    "font.size": 8,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "ddjax",
    "text.color": INK,
    "text.parse_math": False,  # a name may hold a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
}
# Middle tones, readable on white and on black.
BLUE, ORANGE, GREEN, GREY = "#3b82c4", "#cc7722", "#2f9468", "#8a8f98"
HALF, WHOLE = 5.0, 10.0  # inches; one scale on the page for both
PLAIN = FuncFormatter(lambda value, _: f"{value:.10g}")


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Figures inside are drawn as the page wants them, whatever the reader's
    own style is."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def svg(drawing: Figure, name: str, alt: str) -> Markup:
    """The figure as an <svg> element to put into a page.

    Args:
      drawing: drawn inside ``style()``.
      name: unique in the page; ids begin with it.
      alt: for those who do not see it.
    """
    file = io.StringIO()
    drawing.savefig(file, format="svg")
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # Metadata holds the date and outside addresses.
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace("xlink:href", "href").replace(INK, "currentColor")
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 sans-serif", text)
    box = re.search(r'viewBox="[^"]*"', text[: text.index(">")])
    head = Markup('<svg role="img" aria-label="{}" {}>')
    inside = Markup(text[text.index(">") + 1 :].strip())
    return head.format(alt, Markup(box[0])) + inside


def _curve(axes: Any, steps: Any, values: Any, color: str, label: str) -> None:
    """Few points as they are; many as means with smallest to largest."""
    if len(steps) < 40:
        mark = "o" if len(steps) < 15 else ""
        axes.plot(steps, values, color=color, label=label, marker=mark, ms=3)
        return
    parts = np.array_split(np.arange(len(steps)), min(100, len(steps) // 5))
    x = [steps[part].mean() for part in parts]
    axes.fill_between(
        x,
        [values[part].min() for part in parts],
        [values[part].max() for part in parts],
        color=color,
        alpha=0.22,
        linewidth=0,
    )
    axes.plot(
        x, [values[part].mean() for part in parts], color=color, label=label
    )


def number(value: Any) -> str:
    return f"{value:.3g}"


def curves(
    records: list[dict[str, Any]],
    *,
    selected: int | None,
    relative: bool,
    metric: str,
) -> list[Markup]:
    """Small figures, one per group of metrics that the run logged.

    Args:
      records: lines of metrics.jsonl.
      selected: the step of the selected state, which is marked.
      relative: whether an outer loss of 1 has a meaning, and is marked.
      metric: "accuracy" or "balanced_accuracy", by which it was selected.
    """
    groups = (
        ("Outer loss", {"loss": "loss"}),
        (
            "Student's inner loss",
            {"inner_loss_first": "first step", "inner_loss_last": "last step"},
        ),
        ("Student's learning rate", {"learning_rate": "learning rate"}),
        ("Norm of the images' gradient", {"image_gradient_norm": "norm"}),
    )
    drawn = []
    for title, names in groups:
        figure = lines(
            records,
            f"curve{len(drawn)}",
            title,
            names,
            selected=selected,
            one=relative and title == "Outer loss",
        )
        if figure:
            drawn.append(figure)
    figure = held_out(records, selected=selected, metric=metric)
    return [*drawn, figure] if figure else drawn


def lines(
    records: list[dict[str, Any]],
    name: str,
    title: str,
    names: Mapping[str, str],
    *,
    selected: int | None = None,
    one: bool = False,
) -> Markup | None:
    """One or two metrics over the steps; None where none was logged.

    Args:
      records: lines of metrics.jsonl.
      name: of the figure, unique in the page.
      title: of the figure.
      names: {metric: what it is called}.
      selected: the step of the selected state, which is marked.
      one: whether a value of 1 has a meaning, and is marked.
    """
    curves = {label: series(records, name) for name, label in names.items()}
    curves = {label: c for label, c in curves.items() if len(c[0])}
    if not curves:
        return None
    figure = Figure((HALF, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel="step")
    alt = []
    for color, (label, (steps, values)) in zip((BLUE, ORANGE), curves.items()):
        _curve(axes, steps, values, color, label)
        alt.append(
            f"{label} from {number(values[0])} at step {steps[0]} to "
            f"{number(values[-1])} at step {steps[-1]}"
        )
    positive = [v[np.isfinite(v) & (v > 0)] for _, v in curves.values()]
    positive = np.concatenate(positive)
    total = sum(len(values) for _, values in curves.values())
    wide = len(positive) == total and positive.max() > 30 * positive.min()
    if wide:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
    if one:
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.yaxis.set_major_formatter(PLAIN)
    _mark(axes, selected)
    if len(curves) > 1:
        axes.legend()
    return svg(figure, name, f"{title}: {'; '.join(alt)}")


def held_out(
    records: list[dict[str, Any]],
    *,
    selected: int | None,
    metric: str,
    before: str = "",
) -> Markup | None:
    """The score on held-out images at the looks; None where there was none.

    Args:
      records: lines of metrics.jsonl.
      selected: the step of the selected state, which is marked.
      metric: "accuracy" or "balanced_accuracy", by which it was selected.
      before: what the look at step 0 is called, which is marked and cannot be
        selected; empty where it is a look like the others.
    """
    steps, values = series(records, f"held_out_{metric}")
    spread = dict(zip(*series(records, f"held_out_{metric}_std")))
    start = None
    if before and len(steps) and steps[0] == 0:
        start, steps, values = values[0], steps[1:], values[1:]
    if not len(steps):
        return None
    figure = Figure((HALF, 2.6), layout="constrained")
    axes = figure.subplots()
    name = words(metric)
    axes.errorbar(
        steps,
        100 * values,
        [100 * spread.get(step, 0) for step in steps],
        color=GREEN,
        marker="o",
        ms=4,
        capsize=2,
        elinewidth=1,
    )
    axes.set(
        title=f"{name.capitalize()} on held-out training images, % "
        "(mean ± std)",
        xlabel="step",
    )
    if start is not None:
        axes.errorbar(
            [0],
            [100 * start],
            [100 * spread.get(0, 0)],
            color=ORANGE,
            marker="D",
            ms=5,
            capsize=2,
            elinewidth=1,
            linestyle="none",
            label=before,
        )
        axes.axhline(100 * start, color=ORANGE, linewidth=0.9, linestyle=":")
        axes.legend()
    # The look at step 0 stands clear of the axis.
    axes.set_xlim(left=0 if start is None else -0.03 * steps[-1])
    _mark(axes, selected)
    best = values.argmax()
    alt = (
        f"Held-out {name} at {len(steps)} looks, highest "
        f"{percent(values[best])} at step {steps[best]}"
    )
    if start is not None:
        alt += f"; {percent(start)} at step 0, {before}"
    if selected is not None:
        alt += f"; step {selected} was selected"
    return svg(figure, "held-out", alt)


def _mark(axes: Any, selected: int | None) -> None:
    if selected is not None:
        axes.axvline(selected, color=INK, linewidth=0.9, linestyle="--")
