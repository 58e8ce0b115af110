"""The page of a run of D2M.

    config.json, samples.npz, eval.json, generator/distilled.npz    required
    metrics.jsonl, pretraining/                                     if there

Rows of eval.json are PROTOCOL/IPC/WHAT, such as stored/10/distilled, and
full_data. Network i has the same noise and first parameters before and after
distillation, so the gain is a mean of differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddjax import artifact, evaluate
from ddjax.pages import artefacts, figures, gan, page, pictures, scores
from ddjax.types import InputError

__all__ = ["write_page"]

_FILES = {
    "config.json": "configuration, command, versions and device of the run",
    "metrics.jsonl": "what was logged, one JSON object a line",
    "checkpoints": "states that the run can be continued from",
    "looks": "the generator at each look at the held-out images",
    "pretraining": "what was logged of the pre-training, its quality, samples",
    "generator/pretrained.npz": "the generator before distillation",
    "generator/distilled.npz": "the distilled generator, with all that is "
    "needed to use it",
    "samples.npz": "real, pre-trained and distilled images of the same classes",
    "distilled.png": "a picture of the distilled ones",
    "eval.json": "test accuracies of every network trained",
}
_KINDS = {
    "real": "Real",
    "pretrained": "Pre-trained: before distillation",
    "distilled": "Distilled",
}
_WHAT = {
    "distilled": "Distilled",
    "pretrained": "Before distillation",
    "distilled_chosen": "Distilled, chosen",
    "pretrained_chosen": "Before distillation, chosen",
    "random_real": "Random real",
    "herding": "Herding",
    "k_centre": "K-centre",
    "class_means": "Class means",
}
_RECALLS = {
    **{row: _WHAT[row] for row in ("distilled", "pretrained", "random_real")},
    "full_data": "All data",
}
_CURVES = {
    "Loss": {"loss": "loss"},
    "Embedding matching": {"embedding": "embedding"},
    "Prediction matching": {"prediction": "prediction"},
    "Norm of the generator's gradient": {"gradient_norm": "gradient norm"},
}
# {kind of score: (head of its column, cell)}
_SCORES = {
    "accuracy": ("Test accuracy ± 95%", page.score),
    "balanced_accuracy": ("Balanced ± 95%", scores.balanced_score),
}
_SHOWN = 60  # images of each kind


def write_page(workdir: Path) -> Path:
    """Writes ``report.html`` of a run of D2M, whole or not at all.

    Args:
      workdir: the folder of the run; the top of this file lists what is read.

    Returns:
      The path of the page.

    Raises:
      InputError: a required artefact is missing, or one cannot be read.
    """
    workdir = Path(workdir)
    command = artefacts.run_command(workdir, "d2m.py")
    generator_file = "generator/distilled.npz"
    needed = ("config.json", "samples.npz", "eval.json", generator_file)
    artefacts.require(workdir, needed, command)
    config = artefacts.read_json(workdir / "config.json")
    protocols = _by_protocol(scores.read_scores(workdir / "eval.json"))
    ipcs = list(protocols["stored"])
    if not ipcs:
        raise InputError(
            f"{workdir / 'eval.json'} has no row stored/IPC/distilled; make "
            f"it again with: {command}"
        )
    ipc = ipcs[len(ipcs) // 2]  # the one that looks are at
    found = artifact.load_generator(workdir / generator_file)
    metadata = found.metadata
    records = artefacts.read_metrics(workdir / "metrics.jsonl")
    scores.check_told(workdir, metadata, records)
    metric = scores.metric_of(config, metadata)
    full = protocols.get("", {}).get("", {})
    middle = {**full, **protocols["stored"][ipc]}
    reached = scores.reached(middle, metadata, metric)
    selected = metadata.get("selected_step")
    looks = zip(*artefacts.series(records, f"held_out_{metric}"))
    curves = figures.held_out(
        records, selected=selected, metric=metric, before="before distillation"
    ) + figures.curves(records, "d2m", _CURVES, selected=selected)
    return page.write(
        workdir / "report.html",
        "d2m.html",
        folder=workdir,
        title=f"Distillation report: {workdir.resolve().name}",
        generator=gan.generator_values(found, generator_file),
        effort=artefacts.effort(records),
        metric=metric,
        ipc=ipc,
        selected=selected,
        looks=dict(looks),
        reached=reached,
        gain=_gain(*map(reached["results"].get, ("distilled", "pretrained"))),
        pictures=_samples(workdir, metadata, command),
        results=_results(protocols, metric),
        picks=[what for what in middle if what in _WHAT],
        ceiling=scores.ceiling(full),
        recall=scores.recall(middle, metadata, _RECALLS),
        curves=curves,
        pretraining=gan.pretraining_values(
            workdir, metadata["class_names"], command
        ),
        files=artefacts.file_rows(workdir, _FILES),
        **artefacts.config_values(config),
    )


_ByIpc = dict[str, dict[str, scores.Results]]  # {ipc: {what: results}}


def _by_protocol(rows: Mapping[str, scores.Results]) -> dict[str, _ByIpc]:
    """{protocol: {ipc: {what: results}}}; full_data is under "" and ""."""
    found: dict[str, _ByIpc] = {"stored": {}, "stream": {}}
    for row, results in rows.items():
        protocol, ipc, what = (
            row.split("/") if row.count("/") == 2 else ("", "", row)
        )
        found.setdefault(protocol, {}).setdefault(ipc, {})[what] = results
    for protocol in ("stored", "stream"):
        for ipc in list(found[protocol]):
            if "distilled" not in found[protocol][ipc]:
                del found[protocol][ipc]
    return found


def _gain(
    after: Mapping[str, Any] | None, before: Mapping[str, Any] | None
) -> str:
    """The mean difference of each network to itself, in points."""
    pair = [(side or {}).get("accuracies") or () for side in (after, before)]
    if not pair[0] or len(pair[0]) != len(pair[1]):
        return ""
    gain = evaluate.summarise(np.subtract(*pair))
    text = page.points(gain.mean)
    if len(pair[0]) > 1:
        text += f" ± {100 * gain.ci95:.1f}"
    return text


def _samples(
    workdir: Path, metadata: Mapping[str, Any], command: str
) -> dict[str, Any]:
    path = workdir / "samples.npz"
    arrays = artefacts.read_npz(path, "labels", *_KINDS)
    labels, shape = arrays["labels"], arrays["real"].shape
    for kind in _KINDS:
        if arrays[kind].shape != shape or shape[:1] != labels.shape:
            raise InputError(
                f"{path} holds {kind} images of shape {arrays[kind].shape}, "
                f"real ones of {shape} and {len(labels)} labels; make it "
                f"again with: {command}"
            )
    chosen = pictures.few_of_each(labels, shown=_SHOWN)
    names = metadata.get("class_names") or []
    few, layout = labels[chosen], pictures.for_phones(shape[1])
    return {
        "drawn": [
            pictures.titled(title, arrays[kind][chosen], few, names, **layout)
            for kind, title in _KINDS.items()
        ],
        "shown": len(chosen),
        "images": len(labels),
        "shown_classes": len(np.unique(few)),
        "classes": len(names),
    }


def _results(protocols: Mapping[str, _ByIpc], metric: str) -> dict[str, Any]:
    """The tables of all scores."""
    rows = [
        results
        for by_ipc in protocols.values()
        for by_what in by_ipc.values()
        for results in by_what.values()
    ]
    # Two tables would repeat each other's figures where classes are even.
    kinds = [metric]
    if scores.is_unbalanced(rows, least=0.005):
        kinds = sorted(_SCORES, key=lambda kind: kind != metric)
    full = protocols.get("", {}).get("", {}).get("full_data", {})
    heads, cells = zip(*(_SCORES[kind] for kind in kinds))
    return {
        "kinds": kinds,
        "networks": list(dict.fromkeys(n for part in rows for n in part)),
        "tables": {
            protocol: {kind: _table(by_ipc, kind) for kind in kinds}
            for protocol, by_ipc in protocols.items()
            if protocol in ("stored", "stream") and by_ipc
        },
        "full_head": ["Network", *heads],
        "full": [[n, *(cell(r) for cell in cells)] for n, r in full.items()],
    }


def _table(by_ipc: _ByIpc, kind: str) -> dict[str, Any]:
    """A row for each number of images per class and network."""
    columns = [
        what for what in _WHAT if any(what in rows for rows in by_ipc.values())
    ]
    networks = {n for rows in by_ipc.values() for n in rows["distilled"]}
    first = 2 if len(networks) > 1 else 1
    head = ["Images per class", "Network"][:first]
    head += [_WHAT[what] for what in columns]
    paired = "pretrained" in columns
    if paired:
        head.insert(first + 2, "Gain, points")
    table = []
    for ipc, rows in by_ipc.items():
        for network in rows["distilled"]:
            results = [rows.get(what, {}).get(network) for what in columns]
            if kind != "accuracy":
                results = [(result or {}).get(kind) for result in results]
            cells = [page.score(result) if result else "" for result in results]
            if paired:
                cells.insert(2, _gain(*results[:2]))
            table.append([*[ipc, network][:first], *cells])
    numbers = list(range(first, len(head)))
    return {"head": head, "rows": table, "numbers": numbers}
