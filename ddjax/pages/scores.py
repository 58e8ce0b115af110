"""What eval.json says: {row: {network: result}}, as pages tell it.

A result has mean, std, ci95 and accuracies; ``balanced_accuracy`` (the same
four) and ``recall`` [k] may be there too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddjax.pages.artefacts import flatten, read_json
from ddjax.pages.page import percent, score
from ddjax.types import InputError

Results = dict[str, dict[str, Any]]  # {network: result}
_MOST = 20  # classes in a table of all of them


def read_scores(path: Path) -> dict[str, Results]:
    """``results_of`` what an eval.json holds."""
    return results_of(read_json(path))


def results_of(content: Mapping[str, Any]) -> dict[str, Results]:
    """{row: {network: result}}; whatever is no result is left out."""
    scores: dict[str, Results] = {}
    for row, results in content.items():
        for network, result in (
            results.items() if isinstance(results, dict) else ()
        ):
            mean = result.get("mean") if isinstance(result, dict) else None
            if isinstance(mean, int | float):
                scores.setdefault(row, {})[network] = result
    return scores


def check_told(
    folder: Path, metadata: Mapping[str, Any], records: Sequence[Any]
) -> None:
    """InputError where eval.json or metrics.jsonl are not what the metadata of
    the run's distilled file tell of them; older files tell nothing."""
    told = metadata.get("scores")
    if told is not None and told != read_json(folder / "eval.json"):
        raise InputError(
            f"{folder / 'eval.json'} is damaged or of another run: the scores "
            "are in the distilled file, too, under metadata"
        )
    if len(records) < metadata.get("metrics_rows", 0):
        raise InputError(
            f"{folder / 'metrics.jsonl'} has lost lines: the run's folder is "
            "no longer whole"
        )


def metric_of(*sources: Mapping[str, Any]) -> str:
    """What states were selected by, as the first "config" in the sources
    says; where none does, by accuracy."""
    for source in sources:
        values = dict(flatten(source.get("config") or {}))
        if "evaluate.metric" in values:
            return values["evaluate.metric"]
    return "accuracy"


def is_unbalanced(rows: Iterable[Results], least: float = 0.0005) -> bool:
    """Whether the balanced accuracy says anything that accuracy does not,
    somewhere more than ``least``."""
    return any(
        abs(result["balanced_accuracy"]["mean"] - result["mean"]) > least
        for results in rows
        for result in results.values()
        if "balanced_accuracy" in result
    )


def balanced_score(result: Mapping[str, Any]) -> str:
    """``score`` of the balanced accuracy; empty where it was not counted."""
    balanced = result.get("balanced_accuracy")
    return score(balanced) if balanced else ""


def _main(
    scores: Mapping[str, Results],
    metadata: Mapping[str, Any],
    rows: Iterable[str],
) -> dict[str, tuple[str, dict[str, Any]]]:
    """{row: (network, result)} of the network that distilled, or else the
    first; rows that are not there are left out."""
    model = metadata.get("model")
    name = model.get("name") if isinstance(model, dict) else model
    found = {}
    for row in rows:
        if results := scores.get(row):
            network = name if name in results else next(iter(results))
            found[row] = network, results[network]
    return found


def reached(
    scores: Mapping[str, Results], metadata: Mapping[str, Any], metric: str
) -> dict[str, Any]:
    """What a summary tells: the "network" that was trained on what was
    distilled ("" if none was), and {row: result} as "results", balanced
    accuracies if they are the metric and all have one, else accuracies; and
    whether the training on the whole data was "cut" short."""
    generated = ("distilled", "pretrained")
    chosen = (f"{row}_chosen" for row in generated)
    begun = ("real_initial", "generated_initial")
    rows = (*generated, *chosen, "random_real", *begun, "full_data")
    found = _main(scores, metadata, rows)
    balanced = metric == "balanced_accuracy" and all(
        metric in result for _, result in found.values()
    )
    return {
        "network": found["distilled"][0] if "distilled" in found else "",
        "balanced": balanced,
        "cut": any(result.get("cut") for _, result in found.values()),
        "results": {
            row: result[metric] if balanced else result
            for row, (_, result) in found.items()
        },
    }


def ceiling(rows: Mapping[str, Results]) -> list[dict[str, Any]]:
    """How networks were trained on the whole data, where it was recorded:
    [{"network", "steps", "learning_rate", "cut"}]."""
    names = ("steps", "learning_rate", "cut")
    return [
        {"network": network} | {name: result[name] for name in names}
        for network, result in rows.get("full_data", {}).items()
        if all(name in result for name in names)
    ]


def recall(
    scores: Mapping[str, Results],
    metadata: Mapping[str, Any],
    columns_of: Mapping[str, str],
) -> dict[str, Any] | None:
    """Recall by class of the network that distilled, as {heading: rows} in
    "tables"; of many classes, of the worst and the best. None if not counted.

    Args:
      scores: {row: {network: result}}.
      metadata: of what was distilled: its "model" and "class_names".
      columns_of: {row: the name of its column}; the first that is there has
        the say about the network and about worst and best.
    """
    found = {
        columns_of[row]: pair
        for row, pair in _main(scores, metadata, columns_of).items()
        if pair[1].get("recall")
    }
    if not found:
        return None
    network, result = next(iter(found.values()))
    main, names = result["recall"], metadata.get("class_names") or []
    columns = {
        title: result["recall"]
        for title, (name, result) in found.items()
        if name == network
    }

    def rows(classes):
        for i in classes:
            known = [v[i] if i < len(v) else None for v in columns.values()]
            yield [
                names[i] if i < len(names) else i,
                *("\N{EN DASH}" if v is None else percent(v) for v in known),
            ]

    tested = [i for i, value in enumerate(main) if value is not None]
    note = (
        f"The share of a class's test images that a {network} gets right, "
        "mean over networks."
    )
    if len(main) <= _MOST:
        tables = {"": range(len(main))}
        if len(tested) < len(main):
            note += " A dash: the test set has no image of the class."
    elif len(tested) <= _MOST:
        tables = {"": tested}
        note += (
            " The test set has no image of the other "
            f"{len(main) - len(tested)} classes."
        )
    else:
        order, half = sorted(tested, key=lambda i: main[i]), _MOST // 2
        tables = {"Worst": order[:half], "Best": order[: -half - 1 : -1]}
        note += (
            f" Of {len(tested)} classes, the {half} worst and the {half} best "
            f"by the column {next(iter(columns))}."
        )
    return {
        "columns": list(columns),
        "tables": {title: list(rows(some)) for title, some in tables.items()},
        "note": note,
    }
