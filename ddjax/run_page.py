"""What the pages of all runs share: figures in words, and some sections."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddjax import page

__all__ = [
    "balanced_score",
    "config_section",
    "file_table",
    "flatten",
    "is_unbalanced",
    "main_score",
    "metric_of",
    "recall_tables",
    "score",
    "words",
]


def words(metric: str) -> str:
    """A metric's name as it stands in a sentence."""
    return metric.replace("_", " ")


def flatten(value: Any, name: str = "") -> list[list[str]]:
    """Rows of dotted names and values, however deep a dict is."""
    if isinstance(value, dict) and value:
        return [
            row
            for key, inner in value.items()
            for row in flatten(inner, f"{name}.{key}" if name else str(key))
        ]
    text = value if isinstance(value, str) else json.dumps(value)
    return [[name, text]]


def metric_of(*sources: Mapping[str, Any]) -> str:
    """What states were selected by; where no config says, by accuracy.

    Args:
      *sources: what may hold a "config", the first that says counts.
    """
    for source in sources:
        values = dict(flatten(source.get("config") or {}))
        if "evaluate.metric" in values:
            return values["evaluate.metric"]
    return "accuracy"


def score(result: Mapping[str, Any]) -> str:
    """Mean, with its interval where there is more than one network."""
    text = f"{100 * result['mean']:.1f}"
    if len(result.get("accuracies", ())) != 1 and "ci95" in result:
        text += f" ± {100 * result['ci95']:.1f}"
    return text + "%"


def main_score(
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


def _results(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results of all rows and networks."""
    return [
        result
        for results in scores.values()
        if isinstance(results, dict)
        for result in results.values()
        if isinstance(result, dict) and "mean" in result
    ]


def is_unbalanced(scores: Mapping[str, Any]) -> bool:
    """Whether the balanced accuracy says anything that accuracy does not."""
    return any(
        abs(result["balanced_accuracy"]["mean"] - result["mean"]) > 0.0005
        for result in _results(scores)
        if "balanced_accuracy" in result
    )


def balanced_score(result: Mapping[str, Any]) -> str:
    """``score`` of the balanced accuracy; empty where it was not counted."""
    balanced = result.get("balanced_accuracy")
    return score(balanced) if balanced else ""


_MOST = 20  # classes in a table of all of them


def recall_tables(
    scores: Mapping[str, Any],
    metadata: Mapping[str, Any],
    columns_of: Mapping[str, str],
) -> list[str]:
    """Recall by class of the network that distilled, as HTML; of many
    classes, the worst and the best.

    Args:
      scores: {row: {network: result}}.
      metadata: of what was distilled: its "model" and "class_names".
      columns_of: {row: the name of its column}; the first that is there has
        the say about the network and about worst and best.
    """
    columns, network = {}, ""
    for row, title in columns_of.items():
        found = main_score(scores, row, metadata)
        if found is None or not found[1].get("recall"):
            continue
        network = network or found[0]
        if found[0] == network:
            columns[title] = found[1]["recall"]
    if not columns:
        return []
    main = next(iter(columns.values()))
    names = metadata.get("class_names") or []

    def table(classes):
        return page.table(
            ["Class", *columns],
            [
                [
                    str(names[i]) if i < len(names) else str(i),
                    *(_known(recall, i) for recall in columns.values()),
                ]
                for i in classes
            ],
            numbers=range(1, 1 + len(columns)),
        )

    tested = [i for i, value in enumerate(main) if value is not None]
    note = (
        f"The share of a class's test images that a {network} gets right, "
        "mean over networks."
    )
    if len(main) <= _MOST:
        body = table(range(len(main)))
        if len(tested) < len(main):
            note += " A dash: the test set has no image of the class."
    elif len(tested) <= _MOST:
        body = table(tested)
        note += (
            f" The test set has no image of the other "
            f"{len(main) - len(tested)} classes."
        )
    else:
        order = sorted(tested, key=lambda i: main[i])
        half = _MOST // 2
        note += (
            f" Of {len(tested)} classes, the {half} worst and the {half} best "
            f"by the column {next(iter(columns))}."
        )
        body = (
            f'<div class="pair"><div><h4>Worst</h4>{table(order[:half])}'
            f"</div><div><h4>Best</h4>{table(order[: -half - 1 : -1])}</div>"
            "</div>"
        )
    return [
        "<h3>Recall by class</h3>",
        body,
        f'<p class="note">{html.escape(note)}</p>',
    ]


def _known(recall: Sequence[Any], label: int) -> str:
    value = recall[label] if label < len(recall) else None
    return "\N{EN DASH}" if value is None else page.percent(value)


def file_table(folder: Path, what: Mapping[str, str]) -> str:
    """A table of the files that are there.

    Args:
      folder: where they lie.
      what: {name: what it is}.
    """
    rows = []
    for name, meaning in what.items():
        path = folder / name
        if path.is_dir():
            rows.append([f"{name}/", "", meaning])
        elif path.exists():
            rows.append([name, page.file_size(path.stat().st_size), meaning])
    return page.table(("File", "Size", "What it is"), rows, numbers=(1,))


def config_section(config: Mapping[str, Any]) -> str:
    """The section of what config.json says: its config and the versions."""
    versions = config.get("versions") or {}
    body = [
        '<div class="columns">',
        page.table(("Field", "Value"), flatten(config.get("config") or {})),
        "</div>",
    ]
    if versions:
        rows = [[name, str(version)] for name, version in versions.items()]
        body += ["<h3>Versions</h3>", page.table(("Package", "Version"), rows)]
    return page.section("config", "Configuration", *body)
