"""One static page per run: pictures, curves and tables, for a reader.

``write_report`` turns the artefacts of a run folder into ``report.html``: a
single file without scripts or outside resources, the same bytes for the same
artefacts, so it can be mailed, archived and compared.

    config.json, distilled.npz, eval.json           required
    metrics.jsonl, initial.npz, difference.npz      their section, if there

In metrics.jsonl, ``seconds`` is what the update of that line took. Everything
is read without pickle.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
import shlex
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from PIL import Image, ImageDraw, ImageFont

from ddjax.files import atomic_write
from ddjax.types import InputError

__all__ = ["picture", "save_picture", "write_report"]

# Pictures -------------------------------------------------------------------

_GAP = 4
_BACKGROUND, _TEXT = (242, 242, 242), (32, 32, 32)
_COMFORTABLE = 6_000_000  # pixels; beyond, tiles are made smaller
_LARGEST = 16_000_000  # beyond, fewer images are shown


def picture(
    images: Any,
    labels: Any,
    class_names: Sequence[str],
    *,
    scale: int | None = None,
) -> Image.Image:
    """Images as a grid of tiles, with class names.

    One column per class, in the order of the classes; within a column, the
    order of ``images``. Ten classes to a band, twenty where tiles are small;
    with one image per class that is simply rows of ten.

    Args:
      images: [n h w c] floats, 0 black to 1 white; clipped for display. Three
        channels are a colour, any other number is shown as its mean, grey.
      labels: [n] integers.
      class_names: label i is captioned ``class_names[i]``, or i beyond them.
      scale: edge of the square that a pixel becomes. By default tiles of at
        least 64 pixels (96 for images up to 16 pixels and for one image per
        class), less where the whole would be very large; where it is too
        large at scale 1, the first images of each class, and a line saying
        so.

    Returns:
      An RGB picture.

    Raises:
      InputError: shapes that are not as above, or no image.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or not images.size:
        raise InputError(
            f"a picture needs images [n h w c], at least one, not an array "
            f"of shape {images.shape}"
        )
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"a picture of {len(images)} images needs labels of shape "
            f"({len(images)},), not {labels.shape}"
        )
    height, width = images.shape[1:3]
    columns = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    most = rows = max(map(len, columns))
    if scale is None:
        scale = _scale(height, width, len(columns), rows)
        column_pixels = len(columns) * height * width * scale**2
        rows = max(1, min(rows, _LARGEST // column_pixels))
    tile_w, tile_h = scale * width, scale * height
    across = min(len(columns), 10 if tile_w >= 48 else 20)
    bands = math.ceil(len(columns) / across)
    font = _font(max(10, min(15, tile_w // 6)))
    line = math.ceil(1.5 * font.size)
    band_h = line + rows * (tile_h + _GAP) + _GAP
    note = f"The first {rows} of {most} images of each class"
    canvas = Image.new(
        "RGB",
        (
            across * (tile_w + _GAP) + 3 * _GAP,
            bands * band_h + 2 * _GAP + (line if rows < most else 0),
        ),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(canvas)
    for i, column in enumerate(columns):
        x = 2 * _GAP + i % across * (tile_w + _GAP)
        y = _GAP + i // across * band_h
        label = int(labels[column[0]])
        name = class_names[label] if label < len(class_names) else label
        draw.text(
            (x + tile_w / 2, y + line / 2),
            _fit(str(name), font, tile_w),
            _TEXT,
            font,
            anchor="mm",
        )
        for row, index in enumerate(column[:rows]):
            canvas.paste(
                Image.fromarray(_bytes(images[index])).resize(
                    (tile_w, tile_h), Image.Resampling.NEAREST
                ),
                (x, y + line + row * (tile_h + _GAP)),
            )
    if rows < most:
        y = canvas.height - line / 2 - _GAP
        draw.text((2 * _GAP, y), note, _TEXT, font, anchor="lm")
    return canvas


def _scale(height: int, width: int, columns: int, rows: int) -> int:
    side = max(height, width)
    wanted = 96 if side <= 16 or rows == 1 else 64
    scale = max(1, round(wanted / side), math.ceil(64 / side))
    pixels = columns * rows * height * width
    return max(1, min(scale, math.isqrt(_COMFORTABLE // pixels)))


def _bytes(image: np.ndarray) -> np.ndarray:
    image = image if image.shape[-1] == 3 else image.mean(-1, keepdims=True)
    image = np.clip(np.nan_to_num(image.astype(np.float32)), 0, 1)
    pixels = np.round(255 * image).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy()


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Matplotlib's own copy: the same letters on every machine, and more of
    # them than in Pillow's default.
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(path), size)


def _fit(name: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    name = " ".join(name.split())
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(name + "…") > width:
        name = name[:-1]
    return name + "…"


def save_picture(
    path: Path,
    images: Any,
    labels: Any,
    class_names: Sequence[str],
    *,
    scale: int | None = None,
) -> None:
    """Writes ``picture(...)`` as a PNG file, whole or not at all."""
    image = picture(images, labels, class_names, scale=scale)
    with atomic_write(path) as file:
        image.save(file, "PNG", optimize=True)


# Reading artefacts ----------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} should hold one JSON object")
    return content


def _read_npz(path: Path, *required: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a whole npz file: {error}") from error
    for name in required:
        if name not in arrays:
            raise InputError(f"{path} has no array named {name}")
    return arrays


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; [] where there is none."""
    if not path.exists():
        return []
    records = []
    lines = path.read_text("utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line) if line.strip() else {}
        except ValueError as error:
            if number == len(lines):  # the run was stopped while writing it
                break
            raise InputError(
                f"{path}, line {number}, is not JSON: {error}"
            ) from error
        if "step" in record:
            records.append(record)
    return records


def _series(
    records: Iterable[Mapping[str, Any]], name: str
) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of one metric. A resumed run may repeat steps: the
    later line counts."""
    found = {
        int(record["step"]): float(record[name])
        for record in records
        if isinstance(record.get(name), int | float)
    }
    steps = sorted(found)
    return np.array(steps, int), np.array([found[step] for step in steps])


def _require(workdir: Path) -> None:
    if not workdir.is_dir():
        raise InputError(
            f"there is no run folder {workdir}; name the --workdir of a run"
        )
    where = f"--workdir={shlex.quote(str(workdir))}"
    distil = f"python experiments/iadd.py --config=configs/tiny.py {where}"
    if (workdir / "config.json").exists():
        config = _read_json(workdir / "config.json")
        distil = str(config.get("command", distil))
    for name, command in {
        "config.json": distil,
        "distilled.npz": distil,
        "eval.json": distil,
    }.items():
        if not (workdir / name).exists():
            raise InputError(
                f"{workdir / name} is missing; make it with: {command}"
            )


def _tensor_order(name: str) -> tuple[Any, ...]:
    """conv0, norm0, conv1, ..., head; kernel, scale, bias within each."""
    layer, _, leaf = name.rpartition(".")
    numbers = [int(digits) for digits in re.findall(r"\d+", layer)]
    kinds = ("kernel", "scale", "bias")
    kind = kinds.index(leaf) if leaf in kinds else len(kinds)
    return numbers or [math.inf], layer, kind, leaf


# Figures --------------------------------------------------------------------

# Middle tones, readable on white and on black; ink becomes the page's own
# text colour in ``_svg``.
_INK, _BLUE, _ORANGE, _GREEN = "#010203", "#3b82c4", "#cc7722", "#2f9468"
_GREY = "#8a8f98"
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": _INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "figure.facecolor": "none",
    "font.size": 8,
    "grid.alpha": 0.18,
    "grid.color": _INK,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "ddjax",
    "text.color": _INK,
    "text.parse_math": False,  # a name may hold a dollar sign
    "xtick.color": _INK,
    "ytick.color": _INK,
}
_HALF, _WHOLE = 5.0, 10.0  # inches; one scale on the page for both
_PLAIN = FuncFormatter(lambda value, _: f"{value:.10g}")


def _svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an <svg> element to put into a page.

    Args:
      figure: drawn under ``_STYLE``.
      name: unique in the page; ids begin with it.
      alt: for those who do not see it.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg")
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # Metadata holds the date and outside addresses.
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace("xlink:href", "href").replace(_INK, "currentColor")
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 sans-serif", text)
    box = re.search(r'viewBox="[^"]*"', text[: text.index(">")])
    head = f'<svg role="img" aria-label="{html.escape(alt)}" {box[0]}>'
    return head + text[text.index(">") + 1 :].strip()


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


def _number(value: Any) -> str:
    return f"{value:.3g}"


def _curves(
    records: list[dict[str, Any]], selected: int | None, relative: bool
) -> list[str]:
    """Small figures, one per group of metrics that the run logged."""
    groups = (
        ("Outer loss", {"loss": "loss"}),
        (
            "Student's inner loss",
            {"inner_loss_first": "first step", "inner_loss_last": "last step"},
        ),
        ("Student's learning rate", {"learning_rate": "learning rate"}),
        ("Norm of the images' gradient", {"image_gradient_norm": "norm"}),
    )
    figures = []
    for title, names in groups:
        curves = {
            label: _series(records, name) for name, label in names.items()
        }
        curves = {label: c for label, c in curves.items() if len(c[0])}
        if not curves:
            continue
        figure = Figure((_HALF, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.set(title=title, xlabel="step")
        alt = []
        for color, (label, (steps, values)) in zip(
            (_BLUE, _ORANGE), curves.items()
        ):
            _curve(axes, steps, values, color, label)
            alt.append(
                f"{label} from {_number(values[0])} at step {steps[0]} to "
                f"{_number(values[-1])} at step {steps[-1]}"
            )
        positive = [v[np.isfinite(v) & (v > 0)] for _, v in curves.values()]
        positive = np.concatenate(positive)
        total = sum(len(values) for _, values in curves.values())
        wide = len(positive) == total and positive.max() > 30 * positive.min()
        if wide:
            axes.set_yscale("log")
            axes.yaxis.set_minor_locator(NullLocator())
        if title == "Outer loss" and relative:
            axes.axhline(1, color=_INK, linewidth=0.8, linestyle=":")
        axes.yaxis.set_major_formatter(_PLAIN)
        _mark(axes, selected)
        if len(curves) > 1:
            axes.legend()
        figures.append(
            _svg(figure, f"curve{len(figures)}", f"{title}: {'; '.join(alt)}")
        )
    steps, values = _series(records, "held_out_accuracy")
    if len(steps):
        figure = Figure((_HALF, 2.6), layout="constrained")
        axes = figure.subplots()
        spread = dict(zip(*_series(records, "held_out_std")))
        axes.errorbar(
            steps,
            100 * values,
            [100 * spread.get(step, 0) for step in steps],
            color=_GREEN,
            marker="o",
            ms=4,
            capsize=2,
            elinewidth=1,
        )
        axes.set(
            title="Accuracy on held-out training images, % (mean ± std)",
            xlabel="step",
        )
        axes.set_xlim(left=0)
        _mark(axes, selected)
        best = values.argmax()
        alt = (
            f"Held-out accuracy at {len(steps)} looks, highest "
            f"{_percent(values[best])} at step {steps[best]}"
        )
        if selected is not None:
            alt += f"; step {selected} was selected"
        figures.append(_svg(figure, "held-out", alt))
    return figures


def _mark(axes: Any, selected: int | None) -> None:
    if selected is not None:
        axes.axvline(selected, color=_INK, linewidth=0.9, linestyle="--")


def _importance_curves(records: list[dict[str, Any]]) -> str | None:
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
    figure = Figure((_WHOLE, 1.8 * down + 0.3), layout="constrained")
    panels = figure.subplots(
        down, across, sharex=True, sharey=True, squeeze=False
    ).ravel()
    leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    leaves.sort(key=lambda leaf: _tensor_order(f"x.{leaf}"))
    palette = (_BLUE, _ORANGE, _GREEN, _GREY)
    colors = {leaf: palette[i % 4] for i, leaf in enumerate(leaves)}
    drawn = {}
    for axes, layer in zip(panels, layers):
        axes.set_title(layer or "network")
        axes.axhline(1, color=_INK, linewidth=0.8, linestyle=":")
        for name in names:
            owner, _, leaf = name.rpartition(".")
            if owner != layer:
                continue
            here = [step for step in steps if name in looks[step]]
            mean, std = (
                np.array([looks[step][name].get(key, 0) for step in here])
                for key in ("mean", "std")
            )
            (drawn[leaf],) = axes.plot(here, mean, color=colors[leaf])
            axes.fill_between(
                here,
                mean - std,
                mean + std,
                color=colors[leaf],
                alpha=0.2,
                linewidth=0,
            )
        axes.xaxis.set_major_locator(
            MaxNLocator(4, integer=True, steps=[1, 2, 5, 10])
        )
        axes.yaxis.set_major_formatter(_PLAIN)
    for axes in panels[len(layers) :]:
        axes.set_visible(False)
    # Their panel above shows the steps instead, which sharing had hidden.
    for axes in panels[:across] if down == 1 else panels[-across * 2 :]:
        axes.xaxis.set_tick_params(labelbottom=True)
    panels[0].set_xlim(left=0)
    figure.legend(
        [drawn[leaf] for leaf in leaves],
        leaves,
        loc="outside upper right",
        ncols=len(leaves),
    )
    figure.supxlabel("step", fontsize=8)
    means = {name: looks[steps[-1]].get(name, {}).get("mean") for name in names}
    alt = ", ".join(
        f"{name} {_number(mean)}"
        for name, mean in means.items()
        if mean is not None
    )
    return _svg(
        figure, "weights", f"Mean W by layer at step {steps[-1]}: {alt}"
    )


def _rows_figure(names: Sequence[str], panels: int) -> tuple[Figure, Any]:
    """Axes whose rows are parameter tensors, a line between layers."""
    figure = Figure(
        (_WHOLE, 0.27 * len(names) + 0.75 + 0.2 * (panels > 1)),
        layout="constrained",
    )
    ratios = {"width_ratios": [2.4, 1]} if panels > 1 else {}
    axes = np.atleast_1d(
        figure.subplots(1, panels, sharey=True, gridspec_kw=ratios)
    )
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    for panel in axes:
        panel.grid(visible=False, axis="y")
        panel.tick_params(axis="y", length=0)
        for i in range(1, len(names)):
            if names[i].rpartition(".")[0] != names[i - 1].rpartition(".")[0]:
                panel.axhline(i - 0.5, color=_INK, linewidth=0.4, alpha=0.35)
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
    axes.plot(q[[0, 4]], [y, y], color=color, linewidth=1)
    axes.plot(
        q[[1, 3]], [y, y], color=color, linewidth=5, solid_capstyle="butt"
    )
    if q[2] > low:
        axes.plot(q[2], y, "|", color=_INK, ms=8, markeredgewidth=1.2)


def _importance_bars(weights: Mapping[str, np.ndarray]) -> str | None:
    """The final W of every tensor as quantiles."""
    names = sorted(weights, key=_tensor_order)
    if not names:
        return None
    figure, (axes,) = _rows_figure(names, 1)
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
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.axvline(1, color=_INK, linewidth=0.8, linestyle=":")
    for y, name in enumerate(names):
        _quantiles(axes, y, weights[name], _BLUE, -math.inf)
    axes.set_xlabel("final W")
    alt = ", ".join(f"{n} {_number(np.median(weights[n]))}" for n in names)
    return _svg(figure, "final", f"Median of the final W: {alt}")


_STILL = "teacher hardly moves"


def _differences(
    student: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray]
) -> tuple[str, list[list[str]]] | None:
    """(figure, rows of a table) of student and start against target."""
    names = sorted(student.keys() & start.keys(), key=_tensor_order)
    if not names:
        return None
    figure, (bars, ratios) = _rows_figure(names, 2)
    student = {name: np.abs(np.ravel(student[name])) for name in names}
    start = {name: np.abs(np.ravel(start[name])) for name in names}
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
    bars.set_xscale("log")
    bars.set_xlim(low, high * 1.6)
    bars.xaxis.set_minor_locator(NullLocator())
    bars.xaxis.set_major_formatter(_PLAIN)
    bars.set_xlabel("absolute difference to the target")
    ratios.set_xlabel("student's rms / start's rms")
    ratios.axvline(1, color=_INK, linewidth=0.8, linestyle=":")
    table = []
    for y, name in enumerate(names):
        _quantiles(bars, y - 0.17, start[name], _GREY, low)
        _quantiles(bars, y + 0.17, student[name], _ORANGE, low)
        before, after = _rms(start[name]), _rms(student[name])
        ratio = after / before if before > still else None
        if ratio is None:
            ratios.text(
                0.02,
                y,
                _STILL,
                transform=ratios.get_yaxis_transform(),
                va="center",
                alpha=0.7,
            )
        else:
            ratios.plot(ratio, y, "o", color=_ORANGE, ms=5)
        table.append(
            [
                name,
                f"{len(start[name]):,}",
                _number(before),
                _number(after),
                _STILL if ratio is None else f"{ratio:.2f}",
            ]
        )
    ratios.set_xlim(left=0)
    ratios.set_xlim(right=max(1.1, ratios.get_xlim()[1]))
    for color, label in ((_GREY, "start"), (_ORANGE, "student")):
        bars.plot([], [], color=color, linewidth=5, label=label)
    figure.legend(loc="outside upper left", ncols=2)
    alt = ", ".join(f"{row[0]} {row[-1]}" for row in table)
    return _svg(
        figure,
        "difference",
        f"Student's rms difference to the target over the start's: {alt}",
    ), table


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


# The page -------------------------------------------------------------------

_CSS = """
:root { color-scheme: light dark; --line: #d5d7da; --soft: #f2f3f4; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3a3f45; --soft: #22262a; }
  body { background: #15181b; color: #e6e7e8; }
}
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 66rem; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem;
  border-bottom: 1px solid var(--line); }
p, figcaption, .note { max-width: 48rem; }
figcaption, .note { font-size: .9rem; opacity: .8; }
figure { margin: 0 0 1rem; }
svg, img { display: block; max-width: 100%; height: auto; }
svg { width: 100%; }
img { image-rendering: pixelated; }
.wide { display: flex; flex-wrap: wrap; gap: 1rem; width: max-content;
  min-width: 100%; max-width: min(100vw - 3rem, 100rem);
  position: relative; left: 50%; transform: translateX(-50%); }
.wide figure { margin: 0; }
.pair { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); }
table { border-collapse: collapse; font-size: .93rem; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left;
  border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; }
strong { white-space: nowrap; }
.number { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
tr.biased { opacity: .75; }
code, pre { font-family: ui-monospace, monospace; font-size: .87em; }
pre { background: var(--soft); padding: .6rem .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.columns { columns: 2 24rem; }
@media print {
  body { font-size: 11pt; margin: 0; max-width: none; }
  h2 { break-after: avoid; } figure, tr { break-inside: avoid; }
  .wide { max-width: 100%; position: static; transform: none; }
}
"""

_ROWS = {
    "distilled": "Distilled images, state selected on held-out images",
    "distilled_last": "Distilled images, last state",
    "real_initial": "The real images they started from",
    "random_real": "As many real images, picked at random",
    "full_data": "All training data",
    "best_of_looks": "Highest test mean of all looks",
}
_FILES = {
    "config.json": "configuration, command, versions and device of the run",
    "metrics.jsonl": "what was logged, one JSON object a line",
    "checkpoints": "states that the run can be continued from",
    "distilled.npz": "the distilled images, labels and learning rate, with "
    "all that is needed to use them",
    "distilled.png": "a picture of them",
    "initial.npz": "the real images they started from",
    "eval.json": "test accuracies of every network trained",
    "difference.npz": "parameters of one student against its teacher, and W",
}
_OPENING = """\
import json, numpy as np
file = np.load("distilled.npz")  # images [n h w c], 0 black to 1 white
info = json.loads(str(file["metadata"])); print(info.keys(), file.files)"""


def write_report(workdir: Path) -> Path:
    """Writes ``report.html`` of a run folder, whole or not at all.

    Args:
      workdir: the folder of a run; the top of this file lists what is read.

    Returns:
      The path of the page.

    Raises:
      InputError: a required artefact is missing, or one cannot be read.
    """
    workdir = Path(workdir)
    _require(workdir)
    config = _read_json(workdir / "config.json")
    scores = _read_json(workdir / "eval.json")
    data = _read_npz(workdir / "distilled.npz", "images", "labels", "metadata")
    records = _read_metrics(workdir / "metrics.jsonl")
    metadata = json.loads(str(data["metadata"]))
    difference = {}
    if (workdir / "difference.npz").exists():
        difference = _read_npz(workdir / "difference.npz")

    # Figures draw under this page's style, whatever the reader's own is.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        sections = [
            _pictures_section(workdir, data, metadata),
            _results_section(scores),
            _curves_section(records, metadata),
            _importance_section(records, _part(difference, "importance")),
            _difference_section(difference),
        ]
    title = f"Distillation report: {workdir.resolve().name}"
    sections += [
        _files_section(workdir),
        _commands_section(workdir, config),
        _config_section(config),
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n"
        f"</head>\n<body>\n<h1>{html.escape(title)}</h1>\n"
        f"<p>{_summary(config, scores, data, metadata, records)}</p>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )
    path = workdir / "report.html"
    with atomic_write(path) as file:
        file.write(page.encode())
    return path


def _part(arrays: Mapping[str, np.ndarray], prefix: str):
    """The arrays under ``prefix/``, without it; empty ones left out."""
    return {
        name.partition("/")[2]: array
        for name, array in arrays.items()
        if name.startswith(f"{prefix}/") and array.size
    }


def _section(name: str, title: str, *body: str) -> str:
    return (
        f'<section id="{name}">\n<h2>{html.escape(title)}</h2>\n'
        + "\n".join(body)
        + "\n</section>"
    )


def _figure(content: str, caption: str) -> str:
    caption = html.escape(caption)
    return (
        f"<figure>{content}<figcaption>{caption}</figcaption></figure>"
        if caption
        else f"<figure>{content}</figure>"
    )


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    biased: Sequence[int] = (),
) -> str:
    """A table of plain text; ``numbers`` are columns, ``biased`` rows."""

    def line(tag, cells):
        return "".join(
            f"<{tag}{' class=number' if i in numbers else ''}>"
            f"{html.escape(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        )

    body = "\n".join(
        f"<tr{' class=biased' if i in biased else ''}>{line('td', row)}</tr>"
        for i, row in enumerate(rows)
    )
    return (
        f"<table>\n<thead><tr>{line('th', head)}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>"
    )


def _percent(accuracy: Any) -> str:
    return f"{100 * accuracy:.1f}%"


def _score(result: Mapping[str, Any]) -> str:
    """Mean, with its interval where there is more than one network."""
    text = f"{100 * result['mean']:.1f}"
    if len(result.get("accuracies", ())) != 1 and "ci95" in result:
        text += f" ± {100 * result['ci95']:.1f}"
    return text + "%"


def _main_score(
    scores: Mapping[str, Any], row: str, metadata: Mapping[str, Any]
) -> tuple[str, dict[str, Any]] | None:
    """(network, result) of the network that distilled, or else the first."""
    results = scores.get(row)
    if not results:
        return None
    model = metadata.get("model")
    name = model.get("name") if isinstance(model, dict) else model
    name = name if name in results else next(iter(results))
    return name, results[name]


def _summary(
    config: Mapping[str, Any],
    scores: Mapping[str, Any],
    data: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    records: list[dict[str, Any]],
) -> str:
    """The run in a paragraph, as HTML."""
    n, height, width, channels = data["images"].shape
    k = data["labels"].shape[-1]
    each = f"{n // k} per class, " if n % k == 0 else ""
    text = f"<strong>{n} distilled images</strong> ({each}{k} classes, "
    text += f"{height} &times; {width} &times; {channels})"
    found = _main_score(scores, "distilled", metadata)
    if found:
        name, result = found
        count = len(result.get("accuracies", ()))
        text += (
            f" train a fresh {html.escape(str(name))} to <strong>"
            f"{_score(result)}</strong> on the test set"
        )
        if count > 1:
            text += f" (mean and 95% interval over {count} networks)"
    text += "."
    for row, phrase in (
        ("random_real", "As many real images picked at random reach"),
        ("full_data", "All training data reaches"),
    ):
        found = _main_score(scores, row, metadata)
        if found:
            text += f" {phrase} <strong>{_score(found[1])}</strong>."
    _, seconds = _series(records, "seconds")
    last = max((int(record["step"]) for record in records), default=None)
    method = html.escape(str(metadata.get("method", "")).upper())
    if last is not None:
        text += f" Distilled{f' by {method}' if method else ''} in {last} steps"
        if len(seconds):
            # Resumed runs repeat lines, sparse ones lack some: the mean of
            # what is there, for as many steps as there were.
            text += f", about {_duration(float(seconds.mean()) * last)}"
        device = config.get("device")
        text += f", on {html.escape(str(device))}." if device else "."
    if metadata.get("selected_step") is not None:
        text += (
            f" The state of step {html.escape(str(metadata['selected_step']))}"
            " was selected on held-out training images; the test set played "
            "no part in it."
        )
    return text


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f}\N{NO-BREAK SPACE}s"
    if seconds < 5400:
        return f"{seconds / 60:.0f}\N{NO-BREAK SPACE}min"
    return f"{seconds / 3600:.1f}\N{NO-BREAK SPACE}h"


_TILES = 400  # in each of the page's two pictures


def _pictures_section(
    workdir: Path,
    data: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
) -> str:
    images, labels = data["images"], data["labels"].argmax(-1)
    shown = {"Distilled": images}
    path = workdir / "initial.npz"
    if path.exists():
        initial = _read_npz(path, "images", "labels")
        if initial["images"].shape != images.shape:
            raise InputError(
                f"{path} holds images of shape {initial['images'].shape}, "
                f"distilled.npz of {images.shape}: they are not of one run"
            )
        shown["The real images they started from"] = initial["images"]
        # Learned labels may change their class; a place in one picture must
        # stay the same place in the other.
        labels = initial["labels"].argmax(-1)
    classes = np.unique(labels)
    per_class = max(1, min(10, _TILES // len(classes)))
    of_class = [np.flatnonzero(labels == label) for label in classes]
    chosen = np.concatenate([i[:per_class] for i in of_class[:_TILES]])
    one_each = max(map(len, of_class)) == 1 or per_class == 1
    side = max(images.shape[1:3])
    scale = None if one_each else max(1, math.ceil(64 / side))
    names = metadata.get("class_names") or []
    figures = []
    for title, pixels in shown.items():
        file = io.BytesIO()
        grid = picture(pixels[chosen], labels[chosen], names, scale=scale)
        grid.save(file, "PNG", optimize=True)
        code = base64.b64encode(file.getvalue()).decode()
        alt = (
            f"{title}: {len(chosen)} images of {len(classes)} classes, one "
            "column per class"
        )
        figures.append(
            f"<figure><figcaption>{title}</figcaption>"
            f'<img src="data:image/png;base64,{code}" alt="{alt}" '
            f'width="{grid.width}" height="{grid.height}"></figure>'
        )
    notes = []
    if len(chosen) < len(images):
        notes.append(f"{len(chosen)} of {len(images)} images are shown.")
    if len(shown) > 1:
        notes.append("A place in one picture is the same place in the other.")
    outside = np.mean((images < 0) | (images > 1))
    if outside > 0:
        notes.append(
            f"Values run from {images.min():.2f} to {images.max():.2f}; the "
            f"{_percent(outside)} of them outside 0 to 1 are clipped for "
            "display."
        )
    return _section(
        "pictures",
        "Images",
        f'<div class="wide">{"".join(figures)}</div>',
        f'<p class="note">{html.escape(" ".join(notes))}</p>' if notes else "",
    )


def _results_section(scores: Mapping[str, Any]) -> str:
    rows, biased = [], []
    order = [name for name in _ROWS if name != "best_of_looks"]
    order += [name for name in scores if name not in _ROWS]
    order += ["best_of_looks"]
    for name in order:
        results = scores.get(name)
        if not isinstance(results, dict):
            continue
        for model, result in results.items():
            if not isinstance(result, dict) or "mean" not in result:
                continue
            label = _ROWS.get(name, name)
            if name == "best_of_looks":
                biased.append(len(rows))
                looks, step = result.get("looks"), result.get("step")
                label = f"Highest test mean of {looks or 'all'} looks"
                label += f", at step {step}" if step is not None else ""
                label += " (biased: chosen on the test set)"
            count = len(result.get("accuracies", ()))
            std = result.get("std")
            rows.append(
                [
                    label,
                    model,
                    _score(result),
                    f"{100 * std:.1f}" if std is not None and count > 1 else "",
                    str(count or ""),
                ]
            )
    head = (
        "Trained on",
        "Network",
        "Test accuracy ± 95% interval",
        "Std, points",
        "Networks",
    )
    note = (
        '<p class="note">The interval is that of the mean over '
        "independently initialised networks (Student's t); the standard "
        "deviation is between networks."
    )
    if biased:
        note += (
            " The highest test mean of all looks is what MTT and its heirs "
            "report. It is chosen by the test set and so too high; compare "
            "it with their tables only."
        )
    return _section(
        "results",
        "Results",
        _table(head, rows, numbers=(2, 3, 4), biased=biased),
        note + "</p>",
    )


def _curves_section(
    records: list[dict[str, Any]], metadata: Mapping[str, Any]
) -> str:
    selected = metadata.get("selected_step")
    relative = str(metadata.get("method", "")).lower() == "iadd"
    figures = _curves(records, selected, relative)
    if not figures:
        return ""
    note = (
        "A band is the smallest to the largest of neighbouring steps, the "
        "line their mean."
    )
    if relative:
        note += (
            " An outer loss of 1 (dotted) means: with W = 1, the student "
            "ends as far from the teacher's target as it began."
        )
    if selected is not None:
        note += f" The dashed line is the selected state, step {selected}."
    return _section(
        "curves",
        "Curves",
        f'<div class="pair">{"".join(_figure(f, "") for f in figures)}</div>',
        f'<p class="note">{html.escape(note)}</p>',
    )


def _importance_section(
    records: list[dict[str, Any]], weights: Mapping[str, np.ndarray]
) -> str:
    over_time, final = _importance_curves(records), _importance_bars(weights)
    body = []
    if over_time:
        body.append(
            _figure(
                over_time,
                "W over time: the mean over each parameter tensor, with a "
                "band of one standard deviation.",
            )
        )
    if final:
        body.append(
            _figure(
                final,
                "The final W of each parameter tensor: median (stroke), "
                "middle half (bar), 1% to 99% (line). Dotted: 1.",
            )
        )
    return _section("importance", "Importance by layer", *body) if body else ""


def _difference_section(difference: Mapping[str, np.ndarray]) -> str:
    found = _differences(
        _part(difference, "student_target"), _part(difference, "start_target")
    )
    if not found:
        return ""
    figure, rows = found
    head = ("Tensor", "Values", "Start, rms", "Student, rms", "Ratio")
    return _section(
        "difference",
        "Student against teacher, parameter by parameter",
        _figure(
            figure,
            "One segment: how far each parameter is from the teacher's "
            "target, before (start) and after the student's training on the "
            "distilled images. Median (stroke), middle half (bar), 1% to 99% "
            "(line); an arrow at the left edge stands for what is smaller, "
            "zero included. Right: below 1, the student came nearer.",
        ),
        _table(head, rows, numbers=(1, 2, 3, 4)),
    )


def _files_section(workdir: Path) -> str:
    rows = []
    for name, what in _FILES.items():
        path = workdir / name
        if path.is_dir():
            rows.append([f"{name}/", "", what])
        elif path.exists():
            rows.append([name, _size(path.stat().st_size), what])
    return _section(
        "files",
        "Files",
        _table(("File", "Size", "What it is"), rows, numbers=(1,)),
        "<p>The distilled data opens with NumPy alone:</p>",
        f"<pre>{html.escape(_OPENING)}</pre>",
    )


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _commands_section(workdir: Path, config: Mapping[str, Any]) -> str:
    where = f"--workdir={shlex.quote(str(workdir))}"
    run = str(config.get("command", ""))
    # The evaluation reads the data and the recipe that the run's flags name.
    flags = " ".join(
        word for word in run.split() if word.startswith("--config")
    )
    commands = [
        run,
        f"python experiments/evaluate.py {where} {flags}".rstrip(),
        f"python experiments/report.py {where}",
    ]
    text = "\n".join(command for command in commands if command)
    return _section(
        "commands",
        "To repeat",
        "<p>The run, its evaluation alone, and this page alone:</p>",
        f"<pre>{html.escape(text)}</pre>",
    )


def _flatten(value: Any, name: str = "") -> list[list[str]]:
    if isinstance(value, dict) and value:
        return [
            row
            for key, inner in value.items()
            for row in _flatten(inner, f"{name}.{key}" if name else str(key))
        ]
    text = value if isinstance(value, str) else json.dumps(value)
    return [[name, text]]


def _config_section(config: Mapping[str, Any]) -> str:
    versions = config.get("versions") or {}
    body = [
        '<div class="columns">',
        _table(("Field", "Value"), _flatten(config.get("config") or {})),
        "</div>",
    ]
    if versions:
        rows = [[name, str(version)] for name, version in versions.items()]
        body += ["<h3>Versions</h3>", _table(("Package", "Version"), rows)]
    return _section("config", "Configuration", *body)
