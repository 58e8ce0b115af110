"""Metrics: a killed run goes on without gaps, doubles or half lines."""

import json

import pytest

from ddjax import metrics
from ddjax.metrics import Metrics
from ddjax.types import InputError


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = Metrics(path, 0)
    for step in range(1, 6):
        log.write(step, {"loss": step / 2})
    return path


def steps(path):
    return [row["step"] for row in metrics.read(path)]


def test_round_trip(path):
    assert metrics.read(path)[1] == {"step": 2, "loss": 1.0}
    assert steps(path) == [1, 2, 3, 4, 5]
    # A whole line is there as soon as it is written.
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_resume_forgets_what_comes_again(path):
    log = Metrics(path, 3)
    assert steps(path) == [1, 2, 3]
    log.write(4, {"loss": 0.0})
    assert steps(path) == [1, 2, 3, 4]
    assert metrics.read(path)[-1]["loss"] == 0.0


def test_half_a_line(path):
    with open(path, "a") as file:
        file.write('{"step": 6, "lo')
    assert steps(path) == [1, 2, 3, 4, 5]
    Metrics(path, 5).write(6, {"loss": 3.0})
    assert steps(path) == [1, 2, 3, 4, 5, 6]
    assert path.read_text().endswith("}\n")


def test_new_run_in_an_old_file(path):
    Metrics(path, -1)
    assert path.read_text() == ""


def test_a_changed_figure(path):
    """The line is JSON still."""
    text = path.read_text()
    path.write_text(text.replace('"loss": 1.0', '"loss": 9.0'))
    for use in (metrics.read, lambda path: Metrics(path, 5)):
        with pytest.raises(InputError, match=r"line 2, is damaged"):
            use(path)


def test_lost_lines(path):
    assert Metrics(path, 3, least=3).rows == 3
    log = Metrics(path, 3)
    log.write(4, {"loss": 1.0})
    assert log.rows == 4
    with pytest.raises(InputError, match="has lost lines"):
        Metrics(path, 3, least=4)
    assert steps(path) == [1, 2, 3, 4]


def test_lines_of_an_older_version(path):
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2}\n')
    assert metrics.read(path) == [{"step": 1, "loss": 0.5}, {"step": 2}]


@pytest.mark.parametrize("line", ["3", "null", '{"loss": 1}', "[" * 100_000])
def test_lines_that_are_none(path, line):
    path.write_text(f'{line}\n{{"step": 2}}\n')
    with pytest.raises(InputError, match="line 1, is damaged"):
        metrics.read(path)
