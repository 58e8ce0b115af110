"""The outer loop: what it draws, writes, looks at, keeps and refuses."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import settings
from ddjax.runs import loop
from ddjax.types import InputError

LOG = settings.Log(every=2, checkpoint_every=3)


def run(folder=None, last=8, stop=None, **changes):
    """Adds up 0, 1, 2, ..; returns (the sum, what was drawn, the looks)."""
    drawn, looks = [], []

    def draw(step):
        if step == stop:
            raise KeyboardInterrupt
        drawn.append(step)
        return step

    def look(state, step):
        looks.append((step, float(state["sum"])))
        return {"seen": float(state["sum"])}

    def update(state, value):
        total = state["sum"] + value
        return {"sum": total}, {"loss": total, "value": value}

    arguments = {
        "name": "sums",
        "last": last,
        "draw": draw,
        "update": update,
        "guard": loop.finite("mend it"),
        "folder": folder,
        "log": LOG,
        "looks": {0, 4, 8},
        "look": look,
        "detail": lambda state, value: {"twice": 2 * value},
    }
    state = {"sum": jnp.zeros(())}
    try:
        state = loop.run(state, **(arguments | changes))
    except KeyboardInterrupt:
        pass
    return float(state["sum"]), drawn, looks


def lines(folder):
    text = (folder / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    for row in found:
        row.pop("seconds", None)
    return found


def test_updates_looks_and_lines(tmp_path):
    total, drawn, looks = run(tmp_path)
    assert (total, drawn) == (28, list(range(8)))
    assert looks == [(0, 0), (4, 6), (8, 28)]
    assert lines(tmp_path) == [
        {"step": 0, "seen": 0.0},
        {"step": 2, "loss": 1.0, "value": 1.0, "twice": 2},
        {"step": 4, "loss": 6.0, "value": 3.0, "twice": 6},
        {"step": 4, "seen": 6.0},
        {"step": 6, "loss": 15.0, "value": 5.0, "twice": 10},
        {"step": 8, "loss": 28.0, "value": 7.0, "twice": 14},
        {"step": 8, "seen": 28.0},
    ]
    kept = (tmp_path / "checkpoints").glob("[0-9]*")
    assert sorted(int(path.name) for path in kept) == [6, 8]


@pytest.mark.parametrize("stop", [1, 3, 5, 7])
def test_a_stopped_run_ends_the_same(tmp_path, capsys, stop):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = run(whole)[0]
    run(stopped, stop=stop)
    again, drawn, _ = run(stopped)
    assert again == expected
    checkpoint = stop // 3 * 3
    assert drawn == list(range(checkpoint, 8))
    said = f"sums: going on from the checkpoint of update {checkpoint}"
    assert (said in capsys.readouterr().out) == bool(checkpoint)
    assert lines(stopped) == lines(whole)


def test_nothing_is_kept_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run()[0] == 28
    assert not list(tmp_path.iterdir())


def test_the_guard_stops_and_the_checkpoint_stays(tmp_path):
    def update(state, value):
        total = state["sum"] + (np.nan if value == 4 else value)
        return {"sum": total}, {"inner loss": total}

    said = (
        r"update 5 of sums: the inner loss is nan; mend it; the checkpoint "
        r"of update 3 in .* is kept"
    )
    with pytest.raises(InputError, match=said):
        run(tmp_path, update=update)
    with pytest.raises(InputError, match="mend it; there is no checkpoint"):
        run(tmp_path / "new", update=update, log=settings.Log(2, 100))
    with pytest.raises(InputError, match=r"mend it$"):
        run(update=update)


def test_looks_are_spread_evenly_and_the_last_is_one():
    assert loop.look_steps(5, 400) == [80, 160, 240, 320, 400]
    assert loop.look_steps(3, 2) == [1, 2]
    assert loop.look_steps(1, 7) == [7]
