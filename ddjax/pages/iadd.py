"""The page of a run of IADD or MTT: pictures, curves and tables.

    config.json, distilled.npz, eval.json           required
    metrics.jsonl, initial.npz, difference.npz      their section, if there
    latents.npz                                     the sign of latent space

In metrics.jsonl, ``seconds`` is what the update of that line took; of the
``held_out_*`` scores, the one that the config's ``evaluate.metric`` names is
drawn. The page is a single file without scripts or outside resources, the same
bytes for the same artefacts, so it can be mailed, archived and compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddjax.pages import artefacts, figures, layers, page, pictures, scores
from ddjax.types import InputError

__all__ = ["write_page"]

_ROWS = {
    "distilled": "Distilled images, state selected on held-out images",
    "distilled_last": "Distilled images, last state",
    "distilled_png": "Distilled images, as their PNG has them: 8 bits, 0 to 1",
    "real_initial": "The real images they started from",
    "generated_initial": "The generated images they started from",
    "random_real": "As many real images, picked at random",
    "herding": "As many real images, picked by herding",
    "k_centre": "As many real images, picked by k-centre",
    "class_means": "As many means of each class's images",
    "full_data": "All training data",
}
_BIASED = "best_of_looks"
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
    "latents.npz": "the noise, and the classes, that a generator makes them of",
    "generator": "the generator, before and, where it has moved, after",
    "initial.npz": "the images they started from",
    "eval.json": "test accuracies of every network trained",
    "difference.npz": "parameters of one student against its teacher, and W",
}
CURVES = {
    "Outer loss": {"loss": "loss"},
    "Student's inner loss": {
        "inner_loss_first": "first step",
        "inner_loss_last": "last step",
    },
    "Student's learning rate": {"learning_rate": "learning rate"},
    "Norm of the images' gradient": {"image_gradient_norm": "norm"},
}
_ROUNDING = 1e-5  # of pixels that were network input before
_TILES = 400  # in each of the page's two pictures


def write_page(workdir: Path) -> Path:
    """Writes ``report.html`` of a run folder, whole or not at all.

    Args:
      workdir: the folder of a run; the top of this file lists what is read.

    Returns:
      The path of the page.

    Raises:
      InputError: a required artefact is missing, or one cannot be read.
    """
    workdir = Path(workdir)
    artefacts.require(
        workdir,
        ("config.json", "distilled.npz", "eval.json"),
        artefacts.run_command(workdir, "iadd.py"),
    )
    config = artefacts.read_json(workdir / "config.json")
    rows = scores.read_scores(workdir / "eval.json")
    data = artefacts.read_npz(
        workdir / "distilled.npz", "images", "labels", "metadata"
    )
    records = artefacts.read_metrics(workdir / "metrics.jsonl")
    metadata = json.loads(str(data["metadata"]))
    scores.check_told(workdir, metadata, records)
    metric = scores.metric_of(config, metadata)
    method = str(metadata.get("method", "")).upper()
    selected = metadata.get("selected_step")
    difference = {}
    if (workdir / "difference.npz").exists():
        difference = artefacts.read_npz(workdir / "difference.npz")
    student, start, weights = (
        _part(difference, part)
        for part in ("student_target", "start_target", "importance")
    )
    curves = figures.curves(
        records,
        "curve",
        CURVES,
        selected=selected,
        relative="Outer loss" if method == "IADD" else "",
    )
    return page.write(
        workdir / "report.html",
        "iadd.html",
        folder=workdir,
        title=f"Distillation report: {workdir.resolve().name}",
        method=method,
        metric=metric,
        selected=selected,
        selected_as=metadata.get("selected_as"),
        shape=data["images"].shape,
        classes=data["labels"].shape[-1],
        reached=scores.reached(rows, metadata, metric),
        effort=artefacts.effort(records),
        pictures=_pictures(workdir, data, metadata),
        results=_results(rows),
        picks=list(rows),
        ceiling=scores.ceiling(rows),
        recall=scores.recall(rows, metadata, _RECALLS),
        latent=(workdir / "latents.npz").exists(),
        mended="; ".join(
            str(record["mended"]) for record in records if "mended" in record
        ),
        curves=curves
        + figures.held_out(records, selected=selected, metric=metric),
        weights=layers.importance_curves(records),
        final=layers.importance_bars(weights),
        difference=layers.differences(student, start),
        files=artefacts.file_rows(workdir, _FILES),
        **artefacts.config_values(config),
    )


def label_of(row: str, result: Mapping[str, Any]) -> str:
    """What a row of eval.json is called; one of another method, as it is."""
    if row != _BIASED:
        return _ROWS.get(row, row)
    label = f"Highest test mean of {result.get('looks') or 'all'} looks"
    if result.get("step") is not None:
        label += f", at step {result['step']}"
    return f"{label} (biased: chosen on the test set)"


def _part(arrays: Mapping[str, np.ndarray], prefix: str):
    """The arrays under ``prefix/``, without it; empty ones left out."""
    return {
        name.partition("/")[2]: array
        for name, array in arrays.items()
        if name.startswith(f"{prefix}/") and array.size
    }


def _pictures(
    workdir: Path, data: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    images, labels = data["images"], data["labels"].argmax(-1)
    kinds = {"Distilled": images}
    path = workdir / "initial.npz"
    if path.exists():
        initial = artefacts.read_npz(path, "images", "labels")
        if initial["images"].shape != images.shape:
            raise InputError(
                f"{path} holds images of shape {initial['images'].shape}, "
                f"distilled.npz of {images.shape}: they are not of one run"
            )
        generated = (workdir / "latents.npz").exists()
        begun_with = "generated_initial" if generated else "real_initial"
        kinds[_ROWS[begun_with]] = initial["images"]
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
    return {
        "drawn": [
            pictures.titled(
                title, pixels[chosen], labels[chosen], names, scale=scale
            )
            for title, pixels in kinds.items()
        ],
        "shown": len(chosen),
        "range": (images.min(), images.max()),
        # What clamping leaves is outside by rounding alone.
        "outside": np.mean((images < -_ROUNDING) | (images > 1 + _ROUNDING)),
    }


def _results(rows: Mapping[str, scores.Results]) -> dict[str, Any]:
    """The table of all scores, the biased ones last."""
    balanced = scores.is_unbalanced(rows.values())
    table, biased = [], []
    known = [*_ROWS, *(row for row in rows if row not in _ROWS)]
    for row in sorted(known, key=_BIASED.__eq__):
        for network, result in rows.get(row, {}).items():
            label = label_of(row, result)
            if row == _BIASED:
                biased.append(len(table))
            count, std = len(result.get("accuracies", ())), result.get("std")
            points = f"{100 * std:.1f}" if std is not None and count > 1 else ""
            cells = [label, network, page.score(result)]
            cells += [scores.balanced_score(result)] if balanced else []
            table.append([*cells, points, str(count or "")])
    return {"rows": table, "biased": biased, "balanced": balanced}
