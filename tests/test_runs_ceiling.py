"""The whole data: trained for as long as it helps, and no longer."""

import json

import numpy as np
import pytest
from small import IADD

from ddjax import evaluate
from ddjax.runs import ceiling, plan, prepare, scores
from ddjax.settings import Settings

SETTINGS = Settings.of(
    IADD | {"data.source": "digits", "evaluate.full_steps": 42}
)


def search(curve, first=10, most=None, error=0.01, **how):
    """What is chosen, and what was tried for it."""
    tried = []

    def score(epochs, rate):
        tried.append((epochs, rate))
        return curve(epochs, rate), error

    return ceiling.choose(score, first, most, **how), tried


RATE = ceiling.RATES[0]


def test_rates_are_compared_at_the_shortest_length():
    found, tried = search(lambda epochs, rate: -abs(rate - 0.1))
    assert found.learning_rate == 0.1
    assert tried[:3] == [(10, rate) for rate in ceiling.RATES]
    assert {rate for _, rate in tried[3:]} == {0.1}
    # The first of equals.
    assert search(lambda *_: 0.5)[0].learning_rate == RATE


def test_doubled_until_it_gains_less_than_chance_would():
    scores_at = {10: 0.5, 20: 0.6, 40: 0.7, 80: 0.705, 160: 0.9}
    found, tried = search(lambda epochs, _: scores_at[epochs])
    assert [epochs for epochs, _ in tried[3:]] == [20, 40, 80]
    assert found == (80, RATE, False)
    scores_at[80] = 0.695  # no worse than chance would have it
    assert search(lambda epochs, _: scores_at[epochs])[0] == (80, RATE, False)
    scores_at[80] = 0.68
    assert search(lambda epochs, _: scores_at[epochs])[0] == (40, RATE, False)


@pytest.mark.parametrize(
    "most, lengths, chosen, cut",
    [
        (10, [], 10, True),  # nothing to compare it with
        (25, [25], 25, True),
        (40, [20, 40], 40, True),
        (85, [20, 40, 85], 85, False),
        (80, [20, 40, 80], 80, False),
    ],
)
def test_the_bound_is_kept_and_told(most, lengths, chosen, cut):
    found, tried = search(lambda epochs, _: min(epochs, 40) / 100, most=most)
    assert [epochs for epochs, _ in tried[3:]] == lengths
    assert found == (chosen, RATE, cut)


def test_too_few_held_out_images_take_the_longest_training():
    found, tried = search(lambda *_: 0.3, most=85, error=0.0, tells=False)
    assert [epochs for epochs, _ in tried[3:]] == [20, 40, 85]
    assert found == (85, RATE, True)
    # Without a bound that would have no end.
    assert search(lambda *_: 0.3, tells=False)[0] == (20, RATE, False)
    # By how many there are: observed errors of one image a class are 0.
    assert ceiling._worst_error(np.arange(10), "balanced_accuracy") > 0.15
    many = np.repeat(np.arange(10), 10)
    assert ceiling._worst_error(many, "accuracy") == pytest.approx(0.05)


@pytest.mark.parametrize("most", [25, 39, 40, 41, 85, 161, 10_001])
def test_a_search_takes_no_longer_than_plans_allow(most):
    """Rounded to whole epochs, which the first length is."""
    first = max(1, most // 4)
    _, tried = search(lambda epochs, _: epochs, first=first, most=most)
    assert sum(epochs for epochs, _ in tried) <= plan.SEARCHES * most
    _, tried = search(lambda epochs, _: epochs, first=min(first, 10), most=most)
    assert sum(epochs for epochs, _ in tried) <= plan.SEARCHES * most


def test_a_perfect_score_ends_the_search():
    found, _ = search(lambda *_: 1.0, error=0.0)
    assert found == (20, RATE, False)


@pytest.mark.parametrize(
    "full_steps, steps_of, expected",
    [
        (0, 21, (23, None)),  # 500 steps
        (0, 9999, (1, None)),
        (32_000, 21, (23, 1523)),
        (400, 21, (4, 19)),  # a quarter of the bound
        (3, 21, (1, 1)),
    ],
)
def test_bounds_in_whole_epochs(full_steps, steps_of, expected):
    part = SETTINGS.changed({"evaluate.full_steps": full_steps}).evaluate
    assert ceiling._bounds(part, steps_of) == expected


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return prepare.task(
        SETTINGS.data, SETTINGS.model, 0, tmp_path_factory.mktemp("data")
    )


def full_data(task, folder, **fields):
    settings = SETTINGS.changed({"evaluate.networks": 1} | fields)
    model, module, score = next(scores.tests_of(task, settings.evaluate))
    return ceiling.full_data(settings, task, model, module, score, folder)


def test_kept_beside_the_teachers(task, tmp_path, monkeypatch):
    monkeypatch.setattr(ceiling, "FIRST_STEPS", 20)
    result, how = full_data(task, tmp_path)
    (path,) = tmp_path.glob("full_data-convnet-*.json")
    kept = json.loads(path.read_text())
    *rates, twice = kept["searched"]
    assert [row[0] for row in kept["searched"]] == [21] * 3 + [42]
    best = max(rates, key=lambda row: row[2])
    assert how["learning_rate"] == best[1] == twice[1]
    assert how["steps"] == kept["steps"]
    assert how["cut"] == (twice[2] - best[2] > best[3])
    # Read, not trained again.
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "evaluate", pytest.fail)
        again, told = full_data(task, tmp_path)
        np.testing.assert_array_equal(again.accuracy, result.accuracy)
        np.testing.assert_array_equal(again.recall, result.recall)
        assert told == how
    # One that an older library wrote, or a damaged one, is made again.
    for text in (json.dumps(kept | {"cut": None})[:-9], '{"accuracy": [1]}'):
        path.write_text(text)
        again, _ = full_data(task, tmp_path)
        np.testing.assert_array_equal(again.accuracy, result.accuracy)
    # Another bound is another training, and teachers do not matter.
    full_data(task, tmp_path, **{"teacher.learning_rate": 0.5})
    assert len(list(tmp_path.iterdir())) == 1
    _, how = full_data(task, tmp_path, **{"evaluate.full_steps": 21})
    assert len(list(tmp_path.iterdir())) == 2
    assert (how["steps"], how["cut"]) == (21, True)


def test_a_search_that_is_short_throughout_counts_as_cut(
    task, tmp_path, monkeypatch
):
    """Even where scores no longer rose: noise hides what few steps gain."""
    monkeypatch.setattr(
        ceiling,
        "choose",
        lambda *_, tells: ceiling.Length(1, 0.03, cut=False),
    )
    _, how = full_data(task, tmp_path)
    assert how["cut"]
    monkeypatch.setattr(ceiling, "FIRST_STEPS", 20)
    _, how = full_data(task, tmp_path)
    assert not how["cut"]
