"""What eval.json says: {row: {network: result}}, as pages tell it.

A result has mean, std, ci95 and accuracies; ``balanced_accuracy`` (the same
four) and ``recall`` [k] may be there too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddjax.pages.artefacts import flatten, read_json
from ddjax.pages.page import percent, score

__all__ = [
    "Reached",
    "Recall",
    "Results",
    "balanced_score",
    "is_unbalanced",
    "metric_of",
    "reached",
    "read_scores",
    "recall",
]

Results = dict[str, dict[str, Any]]
"""{network: result}"""

_MOST = 20  # classes in a table of all of them


def read_scores(path: Path) -> dict[str, Results]:
    """{row: {network: result}}; whatever is no result is left out."""
    scores = {}
    for row, results in read_json(path).items():
        if isinstance(results, dict):
            scores[row] = {
                network: result
                for network, result in results.items()
                if isinstance(result, dict)
                and isinstance(result.get("mean"), int | float)
            }
    return {row: results for row, results in scores.items() if results}


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


def is_unbalanced(rows: Iterable[Results]) -> bool:
    """Whether the balanced accuracy says anything that accuracy does not."""
    return any(
        abs(result["balanced_accuracy"]["mean"] - result["mean"]) > 0.0005
        for results in rows
        for result in results.values()
        if "balanced_accuracy" in result
    )


def balanced_score(result: Mapping[str, Any]) -> str:
    """``score`` of the balanced accuracy; empty where it was not counted."""
    balanced = result.get("balanced_accuracy")
    return score(balanced) if balanced else ""


def _main(
    scores: Mapping[str, Results], row: str, metadata: Mapping[str, Any]
) -> tuple[str, dict[str, Any]] | None:
    """(network, result) of the network that distilled, or else the first."""
    results = scores.get(row)
    if not results:
        return None
    model = metadata.get("model")
    name = model.get("name") if isinstance(model, dict) else model
    name = name if name in results else next(iter(results))
    return name, results[name]


class Reached(NamedTuple):
    """What a summary tells.

    Attributes:
      network: that was trained on the distilled images; empty if none was.
      balanced: whether the results are balanced accuracies.
      results: {row: result}, all of one kind.
    """

    network: str
    balanced: bool
    results: dict[str, dict[str, Any]]


def reached(
    scores: Mapping[str, Results], metadata: Mapping[str, Any], metric: str
) -> Reached:
    """The results that a summary tells, of the network that distilled.

    Args:
      scores: {row: {network: result}}.
      metadata: of what was distilled.
      metric: told where all of them have it; else all are accuracies.
    """
    rows = ("distilled", "pretrained", "random_real", "full_data")
    found = {row: _main(scores, row, metadata) for row in rows}
    pairs = {row: pair for row, pair in found.items() if pair}
    balanced = metric == "balanced_accuracy" and all(
        metric in result for _, result in pairs.values()
    )
    return Reached(
        pairs["distilled"][0] if "distilled" in pairs else "",
        balanced,
        {
            row: result[metric] if balanced else result
            for row, (_, result) in pairs.items()
        },
    )


class Recall(NamedTuple):
    """Recall by class; of many classes, the worst and the best.

    Attributes:
      columns: names of what was trained on.
      tables: {heading: rows of a class and its recalls}; one has no heading.
      note: what the figures are, in words.
    """

    columns: list[str]
    tables: dict[str, list[list[str]]]
    note: str


def recall(
    scores: Mapping[str, Results],
    metadata: Mapping[str, Any],
    columns_of: Mapping[str, str],
) -> Recall | None:
    """Recall by class of the network that distilled; None where not counted.

    Args:
      scores: {row: {network: result}}.
      metadata: of what was distilled: its "model" and "class_names".
      columns_of: {row: the name of its column}; the first that is there has
        the say about the network and about worst and best.
    """
    columns, network = {}, ""
    for row, title in columns_of.items():
        found = _main(scores, row, metadata)
        if found is None or not found[1].get("recall"):
            continue
        network = network or found[0]
        if found[0] == network:
            columns[title] = found[1]["recall"]
    if not columns:
        return None
    main = next(iter(columns.values()))
    names = metadata.get("class_names") or []

    def rows(classes):
        return [
            [
                str(names[i]) if i < len(names) else str(i),
                *(_known(values, i) for values in columns.values()),
            ]
            for i in classes
        ]

    tested = [i for i, value in enumerate(main) if value is not None]
    note = (
        f"The share of a class's test images that a {network} gets right, "
        "mean over networks."
    )
    if len(main) <= _MOST:
        tables = {"": rows(range(len(main)))}
        if len(tested) < len(main):
            note += " A dash: the test set has no image of the class."
    elif len(tested) <= _MOST:
        tables = {"": rows(tested)}
        note += (
            " The test set has no image of the other "
            f"{len(main) - len(tested)} classes."
        )
    else:
        order, half = sorted(tested, key=lambda i: main[i]), _MOST // 2
        worst, best = order[:half], order[: -half - 1 : -1]
        tables = {"Worst": rows(worst), "Best": rows(best)}
        note += (
            f" Of {len(tested)} classes, the {half} worst and the {half} best "
            f"by the column {next(iter(columns))}."
        )
    return Recall(list(columns), tables, note)


def _known(values: Sequence[Any], label: int) -> str:
    value = values[label] if label < len(values) else None
    return "\N{EN DASH}" if value is None else percent(value)
