"""The table beside PyTorch: its arithmetic, its form, its exit codes."""

import json

import jax
import pytest
from small import ROOT, door

MACHINE = {
    "device": "cpu",
    "name": "cpu",
    "threads": 2,
    "jax": "0",
    "no_torch": None,
    "peak": 1e9,
    "matrix": 64,
}
RESULT = {
    "title": "work",
    "seconds": {"jax": [1.0, 2.0, 4.0], "torch": [4.0, 4.0, 2.0]},
    "processor": {"jax": [2.0, 2.0, 3.0], "torch": [5.0, 6.0, 7.0]},
    "operations": {"jax": 1e9, "torch": 8e8},
    "memory": {"jax": 100.4, "torch": 200.0},
    "compile": 1.25,
    "place": [True, False, "cpu"],
    "footnotes": ["a note"],
}
ALONE = {
    **RESULT,
    **{
        name: {"jax": RESULT[name]["jax"]}
        for name in ("seconds", "processor", "operations", "memory")
    },
}


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        # First in line: experiments/ has a d2m.py, too.
        patch.syspath_prepend(str(ROOT / "experiments" / "benchmarks"))
        yield door("benchmarks/all")


@pytest.fixture
def in_process(bench, monkeypatch):
    """Children answer in this process, about one tiny row, without PyTorch."""

    def ours():
        add = jax.jit(lambda x: x + 1)
        return bench.rows.Side(lambda: add(1.0), lambda: [float(add(1.0))])

    tiny = bench.rows.Row("tiny", ours, None, (1.0, 1.0))
    monkeypatch.setattr(bench.rows, "ROWS", {"tiny": tiny})
    monkeypatch.setattr(bench, "MATRIX", {"cpu": 64})
    monkeypatch.setattr(
        bench, "ask", lambda kind, request: bench.CHILDREN[kind](request)
    )
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda _: None)


def test_operations(bench):
    rows = bench.rows
    size = rows.size_of(width=2, side=4, depth=2, batch=3)
    # 16 pixels, 9 taps, 3 to 2 channels; 4 pixels, 2 to 2; 2 numbers to 10.
    first, rest = 2 * 16 * 9 * 3 * 2, 2 * 4 * 9 * 2 * 2 + 2 * 2 * 10
    assert rows.products(size) == (first, rest) == (1728, 328)
    assert rows.unroll_operations(size, 5) == (
        15 * (7 * 1728 + 10 * 328),
        15 * (6 * 1728 + 9 * 328),
    )
    assert rows.training_operations(size, 7) == 7 * (2 * 1728 + 3 * 328)
    trained = rows.EPOCHS * 3 * (2 * 1728 + 3 * 328)
    tested = rows.TEST_IMAGES * (1728 + 328)
    assert rows.evaluation_operations(size) == rows.NETWORKS * (
        trained + tested
    )


def test_cells(bench):
    assert bench.cells(RESULT, MACHINE) == [
        "work",
        "2 (1-4)",
        "4 (2-4)",
        "0.50 (0.25-2.00)",
        "2 / 6",
        "100 / 200",
        "1.2",
        "0.50 / 0.20",
        "channels last",
    ]
    alone = bench.cells(ALONE, MACHINE)
    assert [alone[column] for column in (2, 3, 8)] == ["", "", ""]
    assert alone[7] == "0.50"


def test_table(bench):
    failed = {"title": "other work", "failed": "out of memory"}
    text = bench.table([RESULT, RESULT, failed], MACHINE)
    head, rule, *rows = text.split("\n\n")[0].splitlines()
    assert head.startswith("| row ") and set(rule) == {"|", "-", " "}
    assert len({len(line) for line in (head, rule, *rows)}) == 1
    assert "failed" in rows[2] and "other work: out of memory" in text
    assert text.count("a note") == 1
    missing = dict(MACHINE, no_torch="PyTorch is not installed")
    assert "PyTorch is not installed" in bench.table([ALONE], missing)


def test_nested_spans_count_once(bench):
    assert bench.covered([(1, 2), (0, 3), (2, 4), (6, 7)]) == 5


def test_other_losses_are_refused(bench):
    bench.check([1.0, 2.0], [1.0005, 2.001])
    for other in (2.003, float("nan")):
        with pytest.raises(SystemExit, match="losses differ"):
            bench.check([1.0, 2.0], [1.0, other])


def test_no_accelerator(bench, in_process, capsys):
    assert bench.main(["--accelerator"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --accelerator") and error.count("\n") == 1


def test_a_row(bench, in_process, tmp_path, capsys):
    out = tmp_path / "all.json"
    asked = ["--rows", "tiny", "--repeats", "2", "--out", str(out)]
    assert bench.main(asked) == 0
    written = json.loads(out.read_text("utf-8"))
    (row,) = written["rows"]
    assert row["row"] == "tiny" and len(row["seconds"]["jax"]) == 2
    assert row["memory"]["jax"] > 0 and row["compile"] > 0
    assert written["machine"]["peak"] > 0
    printed = capsys.readouterr().out
    assert "| tiny " in printed and "PyTorch is not installed" in printed


def test_a_failed_row(bench, in_process, monkeypatch, capsys):
    def fail(request):
        return {"failed": "no reason given"}

    monkeypatch.setitem(bench.CHILDREN, "times", fail)
    assert bench.main(["--rows", "tiny"]) == 1
    assert "tiny: no reason given" in capsys.readouterr().out
