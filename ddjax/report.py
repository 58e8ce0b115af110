"""One static page per run: pictures, curves and tables, for a reader.

``write_report`` turns the artefacts of a run folder into ``report.html``: a
single file without scripts or outside resources, the same bytes for the same
artefacts, so it can be mailed, archived and compared.

    config.json, distilled.npz, eval.json           required
    metrics.jsonl, initial.npz, difference.npz      their section, if there

In metrics.jsonl, ``seconds`` is what the update of that line took; of the
``held_out_*`` scores, the one that the config's ``evaluate.metric`` names is
drawn. A result in eval.json has mean, std, ci95 and accuracies;
``balanced_accuracy`` (the same four) and ``recall`` [k] add a column and a
table. Everything is read without pickle.
"""

from __future__ import annotations

import html
import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddjax import figures, page, reading, run_page
from ddjax.files import atomic_write
from ddjax.picture import picture
from ddjax.types import InputError

__all__ = ["write_report"]


def _require(workdir: Path) -> None:
    where = f"--workdir={shlex.quote(str(workdir))}"
    distil = f"python experiments/iadd.py --config=configs/tiny.py {where}"
    if (workdir / "config.json").exists():
        config = reading.read_json(workdir / "config.json")
        distil = str(config.get("command", distil))
    needed = ("config.json", "distilled.npz", "eval.json")
    reading.require(workdir, dict.fromkeys(needed, distil))


_ROWS = {
    "distilled": "Distilled images, state selected on held-out images",
    "distilled_last": "Distilled images, last state",
    "real_initial": "The real images they started from",
    "random_real": "As many real images, picked at random",
    "full_data": "All training data",
    "best_of_looks": "Highest test mean of all looks",
}
_RECALLS = {
    "distilled": "Distilled",
    "random_real": "Random real",
    "full_data": "All data",
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
    config = reading.read_json(workdir / "config.json")
    scores = reading.read_json(workdir / "eval.json")
    data = reading.read_npz(
        workdir / "distilled.npz", "images", "labels", "metadata"
    )
    records = reading.read_metrics(workdir / "metrics.jsonl")
    metadata = json.loads(str(data["metadata"]))
    metric = run_page.metric_of(config, metadata)
    difference = {}
    if (workdir / "difference.npz").exists():
        difference = reading.read_npz(workdir / "difference.npz")

    with page.style():
        sections = [
            _pictures_section(workdir, data, metadata),
            _results_section(scores, metadata),
            _curves_section(records, metadata, metric),
            _importance_section(records, _part(difference, "importance")),
            _difference_section(difference),
        ]
    sections += [
        _files_section(workdir),
        _commands_section(workdir, config),
        run_page.config_section(config),
    ]
    text = page.document(
        f"Distillation report: {workdir.resolve().name}",
        _summary(config, scores, data, metadata, records, metric),
        sections,
    )
    path = workdir / "report.html"
    with atomic_write(path) as file:
        file.write(text.encode())
    return path


def _part(arrays: Mapping[str, np.ndarray], prefix: str):
    """The arrays under ``prefix/``, without it; empty ones left out."""
    return {
        name.partition("/")[2]: array
        for name, array in arrays.items()
        if name.startswith(f"{prefix}/") and array.size
    }


def _summary(
    config: Mapping[str, Any],
    scores: Mapping[str, Any],
    data: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    records: list[dict[str, Any]],
    metric: str,
) -> str:
    """The run in a paragraph, as HTML."""
    n, height, width, channels = data["images"].shape
    k = data["labels"].shape[-1]
    each = f"{n // k} per class, " if n % k == 0 else ""
    text = f"<strong>{n} distilled images</strong> ({each}{k} classes, "
    text += f"{height} &times; {width} &times; {channels})"
    found = {
        row: run_page.main_score(scores, row, metadata)
        for row in ("distilled", "random_real", "full_data")
    }
    found = {row: score for row, score in found.items() if score}
    # All figures of a paragraph are of one kind.
    balanced = metric == "balanced_accuracy" and all(
        metric in result for _, result in found.values()
    )
    if balanced:
        found = {row: (name, r[metric]) for row, (name, r) in found.items()}
    if "distilled" in found:
        name, result = found["distilled"]
        count = len(result.get("accuracies", ()))
        text += (
            f" train a fresh {html.escape(str(name))} to "
            f"{'a balanced accuracy of ' if balanced else ''}<strong>"
            f"{run_page.score(result)}</strong> on the test set"
        )
        if count > 1:
            text += f" (mean and 95% interval over {count} networks)"
    text += "."
    for row, phrase in (
        ("random_real", "As many real images picked at random reach"),
        ("full_data", "All training data reaches"),
    ):
        if row in found:
            text += (
                f" {phrase} <strong>{run_page.score(found[row][1])}</strong>."
            )
    _, seconds = figures.series(records, "seconds")
    last = max((int(record["step"]) for record in records), default=None)
    method = html.escape(str(metadata.get("method", "")).upper())
    if last is not None:
        text += f" Distilled{f' by {method}' if method else ''} in {last} steps"
        if len(seconds):
            # Resumed runs repeat lines, sparse ones lack some: the mean of
            # what is there, for as many steps as there were.
            text += f", about {page.duration(float(seconds.mean()) * last)}"
        device = config.get("device")
        text += f", on {html.escape(str(device))}." if device else "."
    if metadata.get("selected_step") is not None:
        by = html.escape(run_page.words(metric))
        text += (
            f" The state of step {html.escape(str(metadata['selected_step']))}"
            f" was selected by its {by} on held-out training images; the test "
            "set played no part in it."
        )
    return text


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
        initial = reading.read_npz(path, "images", "labels")
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
    drawn = []
    for title, pixels in shown.items():
        grid = picture(pixels[chosen], labels[chosen], names, scale=scale)
        alt = (
            f"{title}: {len(chosen)} images of {len(classes)} classes, one "
            "column per class"
        )
        drawn.append(
            f"<figure><figcaption>{title}</figcaption>"
            f"{page.image(grid, alt)}</figure>"
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
            f"{page.percent(outside)} of them outside 0 to 1 are clipped for "
            "display."
        )
    return page.section(
        "pictures",
        "Images",
        f'<div class="wide">{"".join(drawn)}</div>',
        f'<p class="note">{html.escape(" ".join(notes))}</p>' if notes else "",
    )


def _results_section(
    scores: Mapping[str, Any], metadata: Mapping[str, Any]
) -> str:
    rows, biased = [], []
    balanced = run_page.is_unbalanced(scores)
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
                    run_page.score(result),
                    *([run_page.balanced_score(result)] if balanced else []),
                    f"{100 * std:.1f}" if std is not None and count > 1 else "",
                    str(count or ""),
                ]
            )
    head = ["Trained on", "Network", "Test accuracy ± 95% interval"]
    head += ["Std, points", "Networks"]
    if balanced:
        head[2:4] = "Test accuracy ± 95%", "Balanced ± 95%", "Std of accuracy"
    note = (
        '<p class="note">The interval is that of the mean over '
        "independently initialised networks (Student's t); the standard "
        "deviation is between networks."
    )
    if balanced:
        note += (
            " Balanced accuracy is the mean of the classes' recalls: each "
            "class counts the same, however many test images it has."
        )
    if biased:
        note += (
            " The highest test mean of all looks is what MTT and its heirs "
            "report. It is chosen by the test set and so too high; compare "
            "it with their tables only."
        )
    return page.section(
        "results",
        "Results",
        page.table(head, rows, numbers=range(2, len(head)), biased=biased),
        note + "</p>",
        *run_page.recall_tables(scores, metadata, _RECALLS),
    )


def _curves_section(
    records: list[dict[str, Any]], metadata: Mapping[str, Any], metric: str
) -> str:
    selected = metadata.get("selected_step")
    relative = str(metadata.get("method", "")).lower() == "iadd"
    drawn = figures.curves(
        records, selected=selected, relative=relative, metric=metric
    )
    if not drawn:
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
    return page.section(
        "curves",
        "Curves",
        f'<div class="pair">{"".join(page.figure(f) for f in drawn)}</div>',
        f'<p class="note">{html.escape(note)}</p>',
    )


def _importance_section(
    records: list[dict[str, Any]], weights: Mapping[str, np.ndarray]
) -> str:
    over_time = figures.importance_curves(records)
    final = figures.importance_bars(weights)
    body = []
    if over_time:
        body.append(
            page.figure(
                over_time,
                "W over time: the mean over each parameter tensor, with a "
                "band of one standard deviation.",
                broad=True,
            )
        )
    if final:
        body.append(
            page.figure(
                final,
                "The final W of each parameter tensor: median (stroke), "
                "middle half (bar), 1% to 99% (line). Dotted: 1.",
                broad=True,
            )
        )
    if not body:
        return ""
    return page.section("importance", "Importance by layer", *body)


def _difference_section(difference: Mapping[str, np.ndarray]) -> str:
    found = figures.differences(
        _part(difference, "student_target"), _part(difference, "start_target")
    )
    if not found:
        return ""
    figure, rows = found
    head = ("Tensor", "Values", "Start, rms", "Student, rms", "Ratio")
    return page.section(
        "difference",
        "Student against teacher, parameter by parameter",
        page.figure(
            figure,
            "One segment: how far each parameter is from the teacher's "
            "target, before (start) and after the student's training on the "
            "distilled images. Median (stroke), middle half (bar), 1% to 99% "
            "(line); an arrow at the left edge stands for what is smaller, "
            "zero included. Right: below 1, the student came nearer.",
            broad=True,
        ),
        page.table(head, rows, numbers=(1, 2, 3, 4)),
    )


def _files_section(workdir: Path) -> str:
    return page.section(
        "files",
        "Files",
        run_page.file_table(workdir, _FILES),
        "<p>The distilled data opens with NumPy alone:</p>",
        f"<pre>{html.escape(_OPENING)}</pre>",
    )


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
    return page.section(
        "commands",
        "To repeat",
        "<p>The run, its evaluation alone, and this page alone:</p>",
        f"<pre>{html.escape(text)}</pre>",
    )
