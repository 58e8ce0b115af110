"""The static page of a run of D2M; that of a pre-training is written here too.

``write_d2m_report`` turns the artefacts of a run folder into ``report.html``:
a single file as that of ``ddjax.report``, the same bytes for the same
artefacts.

    config.json, samples.npz, eval.json, generator/distilled.npz    required
    metrics.jsonl, pretraining/                                     if there

Rows of eval.json are PROTOCOL/IPC/WHAT, such as stored/10/distilled, and
full_data; a result is as in ``ddjax.report``. Network i has the same noise and
first parameters before and after distillation, so the gain is a mean of
differences.
"""

from __future__ import annotations

import html
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddjax import (
    artifact,
    evaluate,
    figures,
    generator_page,
    page,
    reading,
    run_page,
)
from ddjax.gan_report import (
    copy_pretraining,
    pretraining_section,
    write_gan_report,
)
from ddjax.types import InputError

__all__ = ["copy_pretraining", "write_d2m_report", "write_gan_report"]

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


def write_d2m_report(workdir: Path) -> Path:
    """Writes ``report.html`` of a run of D2M, whole or not at all.

    Args:
      workdir: the folder of the run; the top of this file lists what is read.

    Returns:
      The path of the page.

    Raises:
      InputError: a required artefact is missing, or one cannot be read.
    """
    workdir = Path(workdir)
    command = _d2m_command(workdir)
    needed = (
        "config.json",
        "samples.npz",
        "eval.json",
        "generator/distilled.npz",
    )
    reading.require(workdir, dict.fromkeys(needed, command))
    config = reading.read_json(workdir / "config.json")
    scores = _checked(reading.read_json(workdir / "eval.json"))
    ipcs = list(scores["stored"])
    if not ipcs:
        raise InputError(
            f"{workdir / 'eval.json'} has no row stored/IPC/distilled; make "
            f"it again with: {command}"
        )
    found = artifact.load_generator(workdir / "generator" / "distilled.npz")
    records = reading.read_metrics(workdir / "metrics.jsonl")
    metric = run_page.metric_of(config, found.metadata)
    ipc = ipcs[len(ipcs) // 2]  # the one that looks are at
    with page.style():
        sections = [
            _samples_section(workdir, found.metadata),
            _results_section(scores, found.metadata, metric, ipc),
            _curves_section(records, found.metadata, metric, ipc),
            pretraining_section(
                workdir, found.metadata["class_names"], command
            ),
        ]
    sections += [
        generator_page.files_section(
            workdir, _FILES, "generator/distilled.npz"
        ),
        generator_page.commands_section(
            "The run, images of its generator, and this page alone:",
            [
                str(config.get("command", "")),
                generator_page.generate_command(workdir),
                generator_page.report_command(workdir),
            ],
        ),
        run_page.config_section(config),
    ]
    return generator_page.write(
        workdir,
        f"Distillation report: {workdir.resolve().name}",
        _summary(config, scores, found, records, metric, ipc),
        sections,
    )


def _d2m_command(workdir: Path) -> str:
    """What makes such a folder, as far as the folder tells."""
    where = f"--workdir={shlex.quote(str(workdir))}"
    command = f"python experiments/d2m.py --config=configs/tiny.py {where}"
    if (workdir / "config.json").exists():
        config = reading.read_json(workdir / "config.json")
        command = str(config.get("command", command))
    return generator_page.again(workdir, command)


_Results = dict[str, dict[str, Any]]  # of {row: {network: result}}


def _checked(found: Mapping[str, Any]) -> dict[str, dict[str, _Results]]:
    """{protocol: {ipc: {what: {network: result}}}} of eval.json, whatever is
    no result left out; full_data under "" and ""."""
    scores: dict[str, dict[str, _Results]] = {"stored": {}, "stream": {}}
    for row, results in found.items():
        protocol, ipc, what = (
            row.split("/") if row.count("/") == 2 else ("", "", row)
        )
        results = {
            network: result
            for network, result in (
                results.items() if isinstance(results, dict) else ()
            )
            if isinstance(result, dict)
            and isinstance(result.get("mean"), int | float)
        }
        if results:
            scores.setdefault(protocol, {}).setdefault(ipc, {})[what] = results
    for protocol in ("stored", "stream"):
        scores[protocol] = {
            ipc: rows
            for ipc, rows in scores[protocol].items()
            if "distilled" in rows
        }
    return scores


def _rows_of(
    scores: Mapping[str, Mapping[str, _Results]], protocol: str, ipc: str
) -> _Results:
    """One number of images per class of a protocol, beside full_data."""
    return {**scores.get("", {}).get("", {}), **scores[protocol][ipc]}


def _measured(result: Mapping[str, Any] | None, metric: str) -> Any:
    """A result by accuracy or by balanced accuracy; None where it has none."""
    if result is None or metric == "accuracy":
        return result
    return result.get(metric)


def _gain(
    after: Mapping[str, Any] | None, before: Mapping[str, Any] | None
) -> str:
    """The mean difference of each network to itself, in points."""
    pair = [(side or {}).get("accuracies") or () for side in (after, before)]
    if not pair[0] or len(pair[0]) != len(pair[1]):
        return ""
    gain = evaluate.summarise(np.subtract(*pair))
    text = f"{round(100 * gain.mean, 1) + 0:+.1f}"  # + 0: not -0.0
    if len(pair[0]) > 1:
        text += f" ± {100 * gain.ci95:.1f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _summary(
    config: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, _Results]],
    found: artifact.GeneratorArtifact,
    records: list[dict[str, Any]],
    metric: str,
    ipc: str,
) -> str:
    """The run in a paragraph, as HTML."""
    rows, metadata = _rows_of(scores, "stored", ipc), found.metadata
    pairs = {
        row: run_page.main_score(rows, row, metadata)
        for row in ("distilled", "pretrained", "random_real", "full_data")
    }
    results = {row: pair for row, pair in pairs.items() if pair}
    # All figures of a paragraph are of one kind.
    balanced = metric == "balanced_accuracy" and all(
        metric in result for _, result in results.values()
    )
    kind = metric if balanced else "accuracy"
    text = f"{generator_page.described(found)}, was distilled by D2M"
    text += generator_page.effort(records)
    device = config.get("device")
    text += f", on {html.escape(str(device))}. " if device else ". "
    network, result = results["distilled"]
    score = _measured(result, kind)
    count = len(score.get("accuracies", ()))
    text += (
        f"With {_images(ipc)} per class from it, stored, a fresh "
        f"{html.escape(network)} reaches "
        f"{'a balanced accuracy of ' if balanced else ''}<strong>"
        f"{run_page.score(score)}</strong> on the test set"
    )
    if count > 1:
        text += f" (mean and 95% interval over {count} networks)"
    text += "."
    if "pretrained" in results:
        before = _measured(results["pretrained"][1], kind)
        text += (
            " Before distillation, its images of the same noise reach "
            f"<strong>{run_page.score(before)}</strong>"
        )
        gain = _gain(score, before)
        text += f"; the gain is {gain} points." if gain else "."
    for row, phrase in (
        ("random_real", "As many real images picked at random reach"),
        ("full_data", "All training data reaches"),
    ):
        if row in results:
            shown = run_page.score(_measured(results[row][1], kind))
            text += f" {phrase} <strong>{shown}</strong>."
    if metadata.get("selected_step") is not None:
        by = html.escape(run_page.words(metric))
        text += (
            f" The state of step {html.escape(str(metadata['selected_step']))}"
            f" was selected by its {by} with {_images(ipc)} per class on "
            "held-out training images; the test set played no part in it."
        )
        looks = dict(zip(*figures.series(records, f"held_out_{metric}")))
        if {0, metadata["selected_step"]} <= looks.keys():
            after = page.percent(looks[metadata["selected_step"]])
            text += (
                f" There it reached {after}, before distillation "
                f"{page.percent(looks[0])}."
            )
    return text


def _images(ipc: str) -> str:
    return f"{html.escape(ipc)} image{'' if ipc == '1' else 's'}"


_SHOWN = 60  # images of each kind


def _samples_section(workdir: Path, metadata: Mapping[str, Any]) -> str:
    path = workdir / "samples.npz"
    kinds = {
        "real": "Real",
        "pretrained": "Pre-trained: before distillation",
        "distilled": "Distilled",
    }
    arrays = reading.read_npz(path, "labels", *kinds)
    labels = arrays["labels"]
    shape = arrays["real"].shape
    for kind in kinds:
        if arrays[kind].shape != shape or shape[:1] != labels.shape:
            raise InputError(
                f"{path} holds {kind} images of shape {arrays[kind].shape}, "
                f"real ones of {shape} and {len(labels)} labels; make it "
                f"again with: {_d2m_command(workdir)}"
            )
    chosen = generator_page.first_of_each(
        labels, generator_page.per_class(labels, _SHOWN)
    )
    names = metadata.get("class_names") or []
    here = len(np.unique(labels[chosen]))
    notes = [
        "A place in the pre-trained picture and the same place in the "
        "distilled one are of the same noise."
    ]
    if len(chosen) < len(labels):
        notes.append(
            f"{len(chosen)} of the {len(labels)} images of each kind in "
            "samples.npz are shown."
        )
    if here < len(names):
        notes.append(f"{here} of {len(names)} classes are shown.")
    return page.section(
        "pictures",
        "Images",
        generator_page.beside(
            generator_page.sample_picture(
                title, arrays[kind][chosen], labels[chosen], names
            )
            for kind, title in kinds.items()
        ),
        f'<p class="note">{html.escape(" ".join(notes))}</p>',
    )


_PROTOCOLS = {
    "stored": (
        "Protocol: stored images",
        "The generator makes this many images per class once, and a network "
        "sees those same images in every epoch, as with a distilled set that "
        "is stored; beside them stand as many real images picked at random.",
    ),
    "stream": (
        "Protocol: a stream of images",
        "The generator makes this many new images per class for every epoch, "
        "so that none is seen twice; figures of this protocol are not to be "
        "compared with those of stored images.",
    ),
}
_WHAT = {
    "distilled": "Distilled",
    "pretrained": "Before distillation",
    "random_real": "Random real",
}


def _results_section(
    scores: Mapping[str, Mapping[str, _Results]],
    metadata: Mapping[str, Any],
    metric: str,
    ipc: str,
) -> str:
    flat = {
        f"{protocol}/{count}/{what}": results
        for protocol, by_ipc in scores.items()
        for count, rows in by_ipc.items()
        for what, results in rows.items()
    }
    kinds = ["accuracy"]
    if run_page.is_unbalanced(flat):
        kinds.append("balanced_accuracy")
        kinds.sort(key=lambda kind: kind != metric)
    body = []
    for protocol, (title, sentence) in _PROTOCOLS.items():
        if not scores[protocol]:
            continue
        body += [f"<h3>{title}</h3>", f"<p>{html.escape(sentence)}</p>"]
        for kind in kinds:
            if len(kinds) > 1:
                body.append(f"<h4>{run_page.words(kind).capitalize()}</h4>")
            body.append(_protocol_table(scores[protocol], kind))
    full = scores.get("", {}).get("", {}).get("full_data", {})
    if full:
        head = ["Network", "Test accuracy ± 95%"]
        head += ["Balanced ± 95%"] * (len(kinds) > 1)
        body += [
            "<h3>All training data</h3>",
            page.table(
                head,
                [
                    [
                        network,
                        run_page.score(result),
                        run_page.balanced_score(result),
                    ][: len(head)]
                    for network, result in full.items()
                ],
                numbers=range(1, len(head)),
            ),
        ]
    networks = dict.fromkeys(
        network for results in flat.values() for network in results
    )
    note = (
        "Scores on the test set are means over independently initialised "
        f"networks ({', '.join(networks)}) with their 95% interval "
        "(Student's t). The gain is in "
        "points: each network's difference to itself, with the same noise "
        "and first parameters before and after distillation. Where its "
        "interval holds 0, distillation has not shown an effect."
    )
    if len(kinds) > 1:
        note += (
            " Balanced accuracy is the mean of the classes' recalls: each "
            "class counts the same, however many test images it has."
        )
    recall = run_page.recall_tables(
        _rows_of(scores, "stored", ipc),
        metadata,
        {**_WHAT, "full_data": "All data"},
    )
    if recall:
        recall[0] = (
            f"<h3>Recall by class, stored, {_images(ipc)} per class</h3>"
        )
    return page.section(
        "results",
        "Results",
        *body,
        f'<p class="note">{html.escape(note)}</p>',
        *recall,
    )


def _protocol_table(by_ipc: Mapping[str, _Results], kind: str) -> str:
    """A row for each number of images per class and network."""
    columns = [
        what for what in _WHAT if any(what in rows for rows in by_ipc.values())
    ]
    several = (
        len({n for rows in by_ipc.values() for n in rows["distilled"]}) > 1
    )
    head = ["Images per class", *(["Network"] if several else [])]
    first = len(head)
    head += [_WHAT[what] for what in columns]
    paired = "pretrained" in columns
    if paired:
        head.insert(first + 2, "Gain, points")
    table = []
    for ipc, rows in by_ipc.items():
        for network in rows["distilled"]:
            results = {
                what: _measured(rows.get(what, {}).get(network), kind)
                for what in columns
            }
            cells = [
                run_page.score(result) if result else ""
                for result in results.values()
            ]
            if paired:
                gain = _gain(results["distilled"], results["pretrained"])
                cells.insert(2, gain)
            table.append([ipc, *([network] if several else []), *cells])
    return page.table(head, table, numbers=range(first, len(head)))


def _curves_section(
    records: list[dict[str, Any]],
    metadata: Mapping[str, Any],
    metric: str,
    ipc: str,
) -> str:
    selected = metadata.get("selected_step")
    before = "before distillation"
    drawn = [
        figures.held_out(
            records, selected=selected, metric=metric, before=before
        )
    ]
    for name, title in {
        "loss": "Loss",
        "embedding": "Embedding matching",
        "prediction": "Prediction matching",
        "gradient_norm": "Norm of the generator's gradient",
    }.items():
        drawn.append(
            figures.lines(
                records,
                f"d2m-{name}",
                title,
                {name: run_page.words(name)},
                selected=selected,
            )
        )
    drawn = [page.figure(figure) for figure in drawn if figure]
    if not drawn:
        return ""
    note = (
        f"Held-out scores are of {ipc} stored images per class. Step 0 "
        f"(diamond, dotted) is the generator {before}; it is not among the "
        "states to select from. The loss is the weighted sum of both terms. A "
        "band is the smallest to the largest of neighbouring steps, the line "
        "their mean."
    )
    if selected is not None:
        note += f" The dashed line is the selected state, step {selected}."
    return page.section(
        "curves",
        "Curves",
        f'<div class="pair">{"".join(drawn)}</div>',
        f'<p class="note">{html.escape(note)}</p>',
    )
