"""The figures of a run, by what they tell those who do not see them."""

import re

import pytest
from read_pages import parse

from ddjax.pages import artefacts, figures, iadd, layers


def alternatives(drawn):
    for text in drawn:
        parse(text)
    return [re.search(r'aria-label="([^"]*)"', text)[1] for text in drawn]


def curves(records, **changes):
    """Those of a run of IADD."""
    return figures.curves(records, "curve", iadd.CURVES, **changes)


def test_series_takes_the_later_line_and_only_numbers():
    records = [
        {"step": 3, "loss": 1.0},
        {"step": 1, "loss": 2.0},
        {"step": 3, "loss": 4},
        {"step": 4, "loss": None},
        {"step": 5},
    ]
    steps, values = artefacts.series(records, "loss")
    assert steps.tolist() == [1, 3] and values.tolist() == [2.0, 4.0]
    steps, values = artefacts.series([], "loss")
    assert len(steps) == len(values) == 0


@pytest.mark.parametrize("count", [1, 20, 500])
def test_curves_tell_their_ends(count):
    records = [{"step": i + 1, "loss": 10.0**-i} for i in range(count)]
    records[-1]["loss"] = 0.5
    (alt,) = alternatives(curves(records, selected=1, relative="Outer loss"))
    first = 1.0 if count > 1 else 0.5
    assert alt == (
        f"Outer loss: loss from {first:.3g} at step 1 to 0.5 at step {count}"
    )


def test_no_metrics_no_figures():
    assert curves([]) == []
    assert figures.held_out([], selected=None, metric="accuracy") == []
    assert curves([{"step": 1, "else": 1.0}]) == []


def test_the_held_out_score_is_called_by_its_metric():
    records = [
        {
            "step": 5 * i,
            "held_out_balanced_accuracy": a,
            "held_out_balanced_accuracy_std": 0.01,
            "held_out_accuracy": 0.1,
        }
        for i, a in enumerate((0.5, 0.75, 0.7))
    ]
    (drawn,) = figures.held_out(records, selected=5, metric="balanced_accuracy")
    assert alternatives([drawn]) == [
        "Held-out balanced accuracy at 3 looks, highest 75.0% at step 5; "
        "step 5 was selected"
    ]
    assert ">Balanced accuracy on held-out training images" in drawn


def test_importance_without_records_is_none():
    assert layers.importance_curves([{"step": 1, "loss": 1.0}]) is None
    assert layers.importance_bars({}) is None
    assert layers.differences({}, {}) is None
