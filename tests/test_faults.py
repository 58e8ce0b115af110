"""Damaged files and full disks, for each kind of file: the short form of the
campaign of ``experiments/benchmarks/faults.py``."""

import json
import os

import numpy as np
import pytest
from small import ROOT, door

KINDS = [
    "checkpoint",
    "teacher",
    "teachers' manifest",
    "prepared data",
    "their manifest",
    "half prepared data",
    "prepared ZCA",
    "distilled.npz",
    "generator",
    "a look",
    "initial, difference",
    "config.json",
    "metrics.jsonl",
    "ceiling",
    "eval.json",
    "quality.json",
]


@pytest.fixture(scope="module")
def faults():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "experiments" / "benchmarks"))
        yield door("benchmarks/faults")


@pytest.fixture(scope="module")
def kinds(faults):
    import fault_kinds

    assert list(fault_kinds.KINDS) == KINDS
    return fault_kinds


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_told_or_made_good(kinds, tmp_path, name):
    rng = np.random.default_rng(KINDS.index(name))
    found = kinds.damaged(kinds.KINDS[name], tmp_path / "a", 9, rng)
    told = {"refused", "made good", "unchanged"}
    assert [case for case in found if case[1] not in told] == []


@pytest.mark.parametrize("name", KINDS)
def test_a_full_disk_is_told_and_loses_nothing(kinds, tmp_path, name):
    rng = np.random.default_rng(KINDS.index(name))
    found = kinds.full(kinds.KINDS[name], tmp_path / "a", 2, rng)
    assert {result for _, result in found} <= {"told", "fitted"}


def test_a_wrong_result_is_seen(kinds, tmp_path):
    """Of a kind whose files nothing checks."""

    def write(folder, more):
        (folder / "numbers").write_bytes(bytes(range(64)))

    def read(folder):
        values = list((folder / "numbers").read_bytes())
        return [values[i] for i in range(64)], False

    careless = kinds.Kind(write, read, "numbers")
    rng = np.random.default_rng(0)
    found = {how for _, how in kinds.damaged(careless, tmp_path / "a", 6, rng)}
    assert "WRONG: another result" in found
    assert any(how.startswith("TRACEBACK: IndexError") for how in found)


def test_a_full_disk_that_loses_something_is_seen(kinds, tmp_path):
    def write(folder, more):
        (folder / "text").write_text("more" * 200 if more else "a")

    def read(folder):
        return (folder / "text").read_text(), False

    careless = kinds.Kind(write, read, "text")
    rng = np.random.default_rng(0)
    found = kinds.full(careless, tmp_path / "a", 2, rng)
    assert {how for _, how in found} == {"WRONG: what was there is gone"}


def test_what_a_run_came_to(faults, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "eval.json").write_text("{}")
    expected = faults.ends(tmp_path)
    assert expected == {"run/eval.json": b"{}"}

    def judged(code, said):
        return faults.judged(code, said, tmp_path, expected)

    assert judged(0, "done") == "same"
    assert judged(2, "error: mend it\n") == "refused"
    assert judged(2, "nothing").startswith("WRONG")
    assert judged(-9, "").startswith("WRONG: exit code -9")
    assert (
        judged(1, "Traceback ..\nValueError: x") == "TRACEBACK: ValueError: x"
    )
    (tmp_path / "run" / "eval.json").write_text("[]")
    assert judged(0, "done") == "WRONG: other bytes in run/eval.json"


def test_stages_and_the_table(faults, tmp_path, capsys):
    assert faults._reached("iadd", tmp_path) == 0
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    assert faults._reached("iadd", tmp_path) == 1
    (tmp_path / "run" / "report.html").touch()
    assert faults._reached("iadd", tmp_path) == 5
    rows = {
        "kills": [["iadd", "page", "same"], ["iadd", "page", "WRONG: x"]],
        "full": [["a look", "9 bytes", "told"], ["a look", "8 bytes", "told"]],
    }
    assert list(faults.table(rows)) == [
        "kills: 2",
        f"  {'iadd, page':32} 1 same, 1 WRONG: x",
        "full: 2",
        f"  {'a look':32} 2 told",
    ]
    assert faults.failed(rows) == [["iadd", "page", "WRONG: x"]]
    # Parts that are done are not done again.
    environment = dict(os.environ)
    for part, found in rows.items():
        (tmp_path / f"{part}.json").write_text(json.dumps(found))
    try:
        code = faults.main([f"--out={tmp_path}", "--parts=kills,full"])
    finally:
        os.environ.clear()
        os.environ.update(environment)
    assert code == 1
    assert "2 told" in capsys.readouterr().out
