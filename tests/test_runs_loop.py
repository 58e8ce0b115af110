"""The outer loop: what it draws, writes, looks at, keeps and refuses."""

import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import metrics, settings
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
    found = metrics.read(folder / "metrics.jsonl")
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


def stepping(state, value):
    """Leaves the numbers at update 5 unless the step is small enough."""
    broken = value == 4 and float(state["scale"]) > 0.3
    total = state["sum"] + state["scale"] * (np.nan if broken else value)
    return state | {"sum": total}, {"loss": total}


def halved(state):
    if float(state["scale"]) <= 0.25:
        return None
    return state | {"scale": state["scale"] / 2}


def scaled(folder, stop=None, **changes):
    drawn = []

    def draw(step):
        if step == stop:
            raise KeyboardInterrupt
        drawn.append(step)
        return step

    arguments = {
        "name": "sums",
        "last": 8,
        "draw": draw,
        "update": stepping,
        "guard": loop.finite("mend it"),
        "folder": folder,
        "log": LOG,
        "recover": halved,
    }
    state = {"sum": jnp.zeros(()), "scale": jnp.ones(())}
    try:
        return loop.run(state, **(arguments | changes)), drawn
    except KeyboardInterrupt:
        return None, drawn


def test_a_run_goes_back_and_takes_smaller_steps(tmp_path, capsys):
    """From the checkpoint of update 3, twice: a half is not small enough."""
    state, drawn = scaled(tmp_path)
    assert drawn == [0, 1, 2, 3, 4, 3, 4, 3, 4, 5, 6, 7]
    # 0 + 1 + 2 in whole steps, then quarters.
    assert float(state["sum"]) == 3 + (3 + 4 + 5 + 6 + 7) / 4
    said = capsys.readouterr().out
    assert "Going back to update 3, with smaller steps" in said
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == [2, 4, 4, 6, 8]
    assert rows[1] == {"step": 4, "mended": "the loss is nan; mend it"}


@pytest.mark.parametrize("stop", [5, 7])
def test_a_mended_run_that_is_stopped_ends_the_same(tmp_path, stop):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected, _ = scaled(whole)
    scaled(stopped, stop=stop)
    again, _ = scaled(stopped)
    assert float(again["sum"]) == float(expected["sum"])
    assert lines(stopped) == lines(whole)


def test_mending_has_an_end(tmp_path):
    def broken(state, value):
        return state, {"loss": np.nan}

    with pytest.raises(InputError, match="update 1 of sums: the loss is nan"):
        scaled(tmp_path, update=broken)


def test_looks_are_spread_evenly_and_the_last_is_one():
    assert loop.look_steps(5, 400) == [80, 160, 240, 320, 400]
    assert loop.look_steps(3, 2) == [1, 2]
    assert loop.look_steps(1, 7) == [7]


@pytest.fixture
def terminated(monkeypatch):
    """SIGTERM as scripts hear it: a draw that sends it at a step, once."""
    before = signal.signal(signal.SIGTERM, loop.terminate)
    monkeypatch.setattr(loop, "_terminated", False)

    def at(step):
        def draw(number):
            if number == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return number

        return draw

    yield at
    signal.signal(signal.SIGTERM, before)


def test_sigterm_keeps_the_state_of_its_update(
    tmp_path, terminated, monkeypatch, capsys
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = run(whole)[0]
    for step in (0, 3, 4):
        with pytest.raises(loop.Terminated):
            run(stopped, draw=terminated(step))
        monkeypatch.setattr(loop, "_terminated", False)
    total, drawn, _ = run(stopped)
    assert (total, drawn) == (expected, [5, 6, 7])
    said = capsys.readouterr().out
    for step in (1, 4, 5):
        assert f"going on from the checkpoint of update {step}" in said
    assert lines(stopped) == lines(whole)


def test_a_run_that_sigterm_stopped_is_mended_the_same(
    tmp_path, terminated, monkeypatch
):
    """It goes back to where the whole run does, not to where it stopped."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected, _ = scaled(whole)
    # Stopped twice after the checkpoint of update 3, and before update 5.
    for step in (1, 3):
        with pytest.raises(loop.Terminated):
            scaled(stopped, draw=terminated(step))
        monkeypatch.setattr(loop, "_terminated", False)
    again, _ = scaled(stopped)
    assert float(again["sum"]) == float(expected["sum"])
    assert lines(stopped) == lines(whole)


def test_sigterm_without_a_loop_is_heard_at_once(terminated):
    with pytest.raises(loop.Terminated):
        terminated(0)(0)


def test_in_a_log_file_a_bar_is_lines(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    bar = loop.progress("updates", 10, unit="update")
    # Both spare a file what it need not have.
    bar.mininterval = bar.delay = 0
    bar.set_postfix(loss="0.5000", refresh=False)
    bar.update(3)
    bar.update(4)
    bar.close()
    *_, last = said = capsys.readouterr().err.splitlines()
    assert last.startswith("updates: 7 of 10, ") and "loss=0.5000" in last
    assert len(said) == 2
