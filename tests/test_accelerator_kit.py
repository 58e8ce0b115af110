"""The accelerator kit, on a CPU and as small as it goes; no figure of a clock
is asserted."""

import json

import browser
import numpy as np
import pytest
from read_pages import parse
from small import door, refused

from ddjax.settings import Settings
from ddjax.types import InputError

kit = door("benchmarks/accelerator")
cifar10, memory = kit.accelerator_cifar10, kit.accelerator_memory
parts = kit.accelerator_parts
Clock, Scale, SHARES = kit.Clock, kit.Scale, kit.SHARES

TINY = Scale(
    "tiny",
    width=4,
    side=8,
    depth=1,
    unrolls=((2, 10),),
    lengths=(2,),
    teacher=(2, 8),
    evaluation=(2, 20),
    plan=Scale().plan._replace(
        classes=2, width=2, depth=1, side=8, steps=2, batch=2
    ),
    ipcs=(2,),
    stand_in=(12, 2),
    size="small",
    cuts={
        "data.preprocess": "standardise",
        "model.width": 2,
        "model.depth": 1,
        "teacher.count": 2,
        "teacher.epochs": 3,
        "teacher.augment": "none",
        "iadd.iterations": 6,
        "iadd.inner_steps": 2,
        "iadd.augment": "none",
        "iadd.learning_rate_step": 0.0,
        "evaluate.epochs": 2,
        "evaluate.looks": 1,
        "evaluate.look_networks": 1,
        "evaluate.augment": "none",
    },
    every=2,
)


def test_precision_against_float64():
    found = parts.precision(TINY, Clock(1000))
    single, half = found["rows"]
    assert not found["absent"]
    assert (single["student"], half["student"]) == ("float32", "bfloat16")
    assert single["l2"] < 1e-3 < half["l2"]
    assert single["largest"] < half["largest"]
    assert single["cosine"] > 0.999999
    assert found["needs"] == "default"


def test_differences_of_known_vectors():
    true = np.array([3.0, 4.0])
    assert parts.differences(true, true) == {
        "largest": 0,
        "l2": 0,
        "cosine": 1,
    }
    found = parts.differences([3.0, 3.0], true)
    assert found["largest"] == pytest.approx(0.25)
    assert found["l2"] == pytest.approx(0.2)
    assert found["cosine"] == pytest.approx(21 / (18**0.5 * 5))


def row(name, l2, student="float32"):
    return {"precision": name, "student": student, "l2": l2}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("default", 1e-4)], "default"),
        ([row("default", 1e-2), row("high", 1e-4)], "high"),
        ([row("default", 1e-2), row("highest", 1e-4)], None),
        ([row("default", float("nan"))], None),
        ([row("default", 1e-4, "bfloat16")], None),
    ],
)
def test_needed_precision(rows, expected):
    """The first that suffices; unknown where one before it is missing."""
    assert parts.needs(rows) == expected


def test_no_cpu_is_one_sentence(monkeypatch):
    def devices(platform=None):
        raise RuntimeError("Unknown backend cpu\nmore")

    monkeypatch.setattr(parts.jax, "devices", devices)
    found = parts.precision(TINY, Clock(1000))
    (sentence,) = found["absent"]
    assert "JAX_PLATFORMS" in sentence and "\n" not in sentence
    assert not found["rows"]


def test_largest_that_fits(monkeypatch):
    """Largest first; a failed compilation does not fit."""

    def update_bytes(scale, ipc, batch):
        if not batch and ipc == 50:
            raise RuntimeError("RESOURCE_EXHAUSTED")
        return {"temp": ipc, "total": 10 if batch else 100 * ipc}

    monkeypatch.setattr(memory, "update_bytes", update_bytes)
    monkeypatch.setattr(memory, "device_bytes", lambda: 1000)
    found = memory.images(Scale(), Clock(1000))
    assert found["largest"] == {"all": 10, "100": 50}
    assert len(found["rows"]) == 12 and not found["absent"]
    late = memory.images(Scale(), Clock(-1))
    assert late["largest"] == {} and len(late["absent"]) == 2


def test_turns_are_whole_or_absent():
    runs = {"a": lambda: None, "b": lambda: None}
    found = parts.turns(runs, Clock(-1), Clock(1000))
    assert {side["repeats"] for side in found.values()} == {3}
    assert parts.turns(runs, Clock(-1), Clock(-1)) is None


def test_a_cpu_is_cut_and_an_accelerator_is_not():
    assert kit.scale_of("gpu", 3) == kit.scale_of("tpu", 60) == Scale()
    assert not {"iadd.iterations", "model.width"} & Scale().cuts.keys()
    for minutes in (3, 60):
        cut = kit.scale_of("cpu", minutes)
        assert cut.name != Scale().name and cut.size == "small"
        fields = cifar10.changes(cut, {}, "none")
        found = cifar10.settings_of(cut, 10, fields)
        assert found.iadd.importance.form == "none"
    forms = cifar10.FORMS
    assert forms["default"] == Settings().iadd.importance.form != forms["w1"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--minutes=0"], ["--minutes"]),
        (["--minutes=nan"], ["--minutes"]),
        (["--minutes=soon"], ["bad flag", "minutes"]),
        (["--parts=memory,taste"], ["--parts", "taste"]),
        (["--parts="], ["--parts"]),
        (["--data_dir=/not/there"], ["--data_dir"]),
        (["--min=3"], ["bad flag"]),
    ],
)
def test_bad_flags(flags, words, capsys):
    code = kit.main(flags)
    refused(code, capsys.readouterr().err, *words)


SIZE = TINY.network


def result(**more):
    return {"absent": [], "seconds": 1.0} | more


HOSTILE = "<script>alert(1)</script> {{ 77*77 }}"


def hostile_page(path, hostile=HOSTILE):
    machine = kit.machine() | {"device": hostile, "driver": hostile}
    told = {
        "memory": result(size=SIZE, rows=[], absent=[hostile]),
        "images": result(
            **SIZE,
            classes=1,
            steps=1,
            limit=None,
            rows=[{"batch": "all", "ipc": 1, "failed": hostile, "fits": False}],
            largest={"all": 0},
        ),
    }
    found = {"machine": machine, "scale": hostile, "parts": told}
    return kit.accelerator_page.write(path, found)


@browser.needed
def test_the_page_in_a_browser(tmp_path):
    (text,) = browser.texts(tmp_path, hostile_page(tmp_path / "page.html"))
    assert text.count(HOSTILE) == 5


def test_page_escapes(tmp_path):
    text = hostile_page(tmp_path / "page.html").read_text()
    assert "<script" not in text and "5929" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 5
    parse(text)


def test_another_machine_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        kit, "MEASURES", {"memory": lambda *_: result(rows=[], size=SIZE)}
    )
    kit.measure(tmp_path, 1, ["memory"])
    monkeypatch.setattr(kit, "machine", lambda: {"device": "another"})
    with pytest.raises(InputError, match="another --out"):
        kit.measure(tmp_path, 1, ["memory"])
    (tmp_path / "accelerator.json").write_text("{}")
    with pytest.raises(InputError, match="damaged"):
        kit.measure(tmp_path, 1, ["memory"])


def test_other_images_are_refused(tmp_path):
    before = {"data": "a synthetic stand-in"}
    with pytest.raises(InputError, match="--data_dir as before"):
        cifar10.cifar10(TINY, Clock(9), tmp_path, "tfds", before)


@pytest.mark.campaign
def test_whole_kit(tmp_path, monkeypatch):
    """A first call that stops at once, one that finishes, one with nothing
    left to do but what --again asks for."""
    monkeypatch.setattr(kit, "scale_of", lambda *_: TINY)
    monkeypatch.setattr(cifar10, "IPCS", (1,))
    monkeypatch.setattr(cifar10, "FORMS", {"default": "displacement"})
    path = tmp_path / "accelerator.json"
    asked = []

    def counted(name, measure):
        def call(*arguments):
            asked.append(name)
            # What was measured before is on the disk already.
            there = (
                json.loads(path.read_text())["parts"] if len(asked) > 1 else {}
            )
            assert list(there) == asked[:-1] or len(asked) > 4
            return measure(*arguments)

        return call

    monkeypatch.setattr(
        kit,
        "MEASURES",
        {name: counted(name, call) for name, call in kit.MEASURES.items()},
    )
    with monkeypatch.context() as short:
        # Every run's own time is over before it begins.
        short.setattr(cifar10, "Clock", lambda seconds: Clock(-1))
        kit.measure(tmp_path, 10, list(SHARES))
    first = json.loads(path.read_text())["parts"]
    assert list(first) == list(SHARES)
    assert [row["temp"] > 0 for row in first["memory"]["rows"]] == [True]
    assert first["times"]["unroll"][0]["jax"]["repeats"] >= 3
    assert first["times"]["teacher"]["per_second"] > 0
    assert first["times"]["evaluation"]["networks"] == 10
    assert first["images"]["largest"] == {"all": 2, "2": 2}
    runs = first["cifar10"]["runs"]
    assert {row["updates"] for row in runs.values()} == {4}
    assert all(row["per_second"] > 0 for row in runs.values())
    assert not first["cifar10"]["finished"]
    assert "stand-in" in first["cifar10"]["data"]
    assert set(runs["ipc1-default"]["looks"]) == {"0"}

    kit.measure(tmp_path, 10, list(SHARES))
    second = json.loads(path.read_text())["parts"]
    assert asked == [part for part in SHARES if part != "cifar10"]
    assert second["times"] == first["times"]
    runs = second["cifar10"]["runs"]
    assert {row["updates"] for row in runs.values()} == {6}
    assert set(runs["ipc1-default"]["looks"]) == {"0", "6"}
    assert second["cifar10"]["teachers"] == first["cifar10"]["teachers"]
    assert second["cifar10"]["finished"]
    page = tmp_path / "accelerator.html"
    parse(page.read_text())
    assert "stand-in" in page.read_text()

    kit.measure(tmp_path, 10, list(SHARES))
    assert len(asked) == 4
    kit.measure(tmp_path, 10, ["memory"], again=True)
    assert asked[4:] == ["memory"]
