"""The figures on a run's page, each as an <svg> element.

They are drawn inside ``style()``.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from ddjax.pages.artefacts import series
from ddjax.pages.page import percent, words

# The colour of text in a figure; ``svg`` makes it the page's own.
INK = "#010203"
_STYLE = {
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "grid.color"), INK),
    **dict.fromkeys(("text.color", "xtick.color", "ytick.color"), INK),
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "figure.facecolor": "none",
    "font.size": 8,
    "grid.alpha": 0.18,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "ddjax",
    "text.parse_math": False,  # a name may hold a dollar sign
}
# Middle tones, readable on white and on black.
COLORS = BLUE, ORANGE, GREEN, GREY = "#3b82c4", "#cc7722", "#2f9468", "#8a8f98"
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
    """A figure as an <svg> element to put into a page. ``name`` is unique in
    the page, and ``alt`` for those who do not see it."""
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


def number(value: Any) -> str:
    """Three digits."""
    return f"{value:.3g}"


def one(line: Callable[..., Any]) -> None:
    """Marks the value 1 by axhline or axvline."""
    line(1, color=INK, linewidth=0.8, linestyle=":")


def _mark(axes: Any, selected: int | None) -> None:
    if selected is not None:
        axes.axvline(selected, color=INK, linewidth=0.9, linestyle="--")


def _panel(title: str) -> tuple[Figure, Any]:
    figure = Figure((5, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel="step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure, axes


def _curve(axes: Any, steps: Any, values: Any, color: str, label: str) -> None:
    """Few points as they are; many as means with smallest to largest."""
    if len(steps) < 40:
        mark = "o" if len(steps) < 15 else ""
        axes.plot(steps, values, color=color, label=label, marker=mark, ms=3)
        return
    parts = np.array_split(np.arange(len(steps)), min(100, len(steps) // 5))
    x, y = ([part[i].mean() for i in parts] for part in (steps, values))
    ends = zip(*((values[i].min(), values[i].max()) for i in parts))
    axes.fill_between(x, *ends, color=color, alpha=0.22, linewidth=0)
    axes.plot(x, y, color=color, label=label)


@style()
def curves(
    records: list[dict[str, Any]],
    name: str,
    groups: Mapping[str, Mapping[str, str]],
    *,
    selected: int | None = None,
    relative: str = "",
) -> list[Markup]:
    """Small figures of one or two metrics each over the steps; those of which
    nothing was logged are left out.

    Args:
      records: lines of metrics.jsonl.
      name: unique in the page.
      groups: {title: {metric: what it is called}}.
      selected: the step of the selected state, which is marked.
      relative: the title where a value of 1 has a meaning, and is marked.
    """
    drawn = []
    for title, names in groups.items():
        found = {label: series(records, key) for key, label in names.items()}
        found = {label: both for label, both in found.items() if len(both[0])}
        if not found:
            continue
        figure, axes = _panel(title)
        alt = []
        for color, (label, (steps, values)) in zip(COLORS, found.items()):
            _curve(axes, steps, values, color, label)
            alt.append(
                f"{label} from {number(values[0])} at step {steps[0]} to "
                f"{number(values[-1])} at step {steps[-1]}"
            )
        everything = np.concatenate([values for _, values in found.values()])
        positive = np.isfinite(everything) & (everything > 0)
        if positive.all() and everything.max() > 30 * everything.min():
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(NullLocator())
        if title == relative:
            one(axes.axhline)
        axes.yaxis.set_major_formatter(PLAIN)
        _mark(axes, selected)
        if len(found) > 1:
            axes.legend()
        alt = f"{title}: {'; '.join(alt)}"
        drawn.append(svg(figure, f"{name}{len(drawn)}", alt))
    return drawn


@style()
def held_out(
    records: list[dict[str, Any]],
    *,
    selected: int | None,
    metric: str,
    before: str = "",
) -> list[Markup]:
    """The figure of the score on held-out images; [] where there was none.

    Args:
      records: lines of metrics.jsonl.
      selected: the step of the selected state, which is marked.
      metric: "accuracy" or "balanced_accuracy", by which it was selected.
      before: what the look at step 0 is called, which is marked; empty where
        it is a look like the others.
    """
    steps, values = series(records, f"held_out_{metric}")
    spread = dict(zip(*series(records, f"held_out_{metric}_std")))
    start = None
    if before and len(steps) and steps[0] == 0:
        start, steps, values = values[0], steps[1:], values[1:]
    if not len(steps):
        return []
    name = words(metric)
    figure, axes = _panel(
        f"{name.capitalize()} on held-out training images, % (mean ± std)"
    )

    def points(steps, values, **look):
        ends = [100 * spread.get(step, 0) for step in steps]
        look |= {"capsize": 2, "elinewidth": 1}
        axes.errorbar(steps, 100 * values, ends, **look)

    points(steps, values, color=GREEN, marker="o", ms=4)
    best = values.argmax()
    alt = (
        f"Held-out {name} at {len(steps)} looks, highest "
        f"{percent(values[best])} at step {steps[best]}"
    )
    if start is not None:
        look = {"color": ORANGE, "marker": "D", "ms": 5, "linestyle": "none"}
        points([0], np.array([start]), label=before, **look)
        axes.axhline(100 * start, color=ORANGE, linewidth=0.9, linestyle=":")
        axes.legend()
        alt += f"; {percent(start)} at step 0, {before}"
    # The look at step 0 stands clear of the axis.
    axes.set_xlim(left=0 if start is None else -0.03 * steps[-1])
    _mark(axes, selected)
    if selected is not None:
        alt += f"; step {selected} was selected"
    return [svg(figure, "held-out", alt)]
