"""Every kind of page as a browser shows it, on a desk and on a phone; of a
search, a privacy card and the accelerator kit in the tests of those."""

import json

import browser
import pytest
import test_pages_hostile as hostile
from page_folders import make_d2m, make_iadd, make_pretraining, matrix_content
from small import door

from ddjax.pages import report

pytestmark = browser.needed


def with_a_plan(folder):
    hostile.rewrite(
        folder / "config.json",
        config={"minutes": 3.0, "iadd": {"span": 3}},
        plan={"asked": {}, "fields": {"teacher.count": 17}},
    )
    return folder


def without_curves(folder):
    """Which take most of a page's time, and which the others have."""
    (folder / "metrics.jsonl").write_text("")
    return folder


def matrix(folder):
    folder.mkdir()
    (folder / "matrix.json").write_text(json.dumps(matrix_content()))
    return folder


def growth(path):
    rows = [
        {
            "axis": "steps",
            "value": value,
            "seconds": value / 7,
            "least": value / 8,
            "most": value / 6,
            "compile": 1.5,
            "bytes": 1000 * value,
        }
        for value in (10, 20)
    ]
    door("benchmarks/growth").write_page(path, rows)
    return path


def test_every_page(tmp_path, generator):
    pages = {
        "Importance by layer": report.write_page(
            with_a_plan(make_iadd(tmp_path))
        ),
        "Samples over time": report.write_page(
            make_pretraining(tmp_path, generator)
        ),
        "Protocol: a stream": report.write_page(
            without_curves(make_d2m(tmp_path, generator, "d2m"))
        ),
        "Robust scores": report.write_page(matrix(tmp_path / "matrix")),
        "How cost grows": growth(tmp_path / "growth.html"),
    }
    texts = browser.texts(tmp_path, *pages.values())
    for words, text in zip(pages, texts):
        assert words in text
        # What Matplotlib writes where it expects TeX to be set.
        assert "\\mathdefault" not in text
    assert "teacher.count\t17" in texts[0]


def test_hostile_names_do_nothing(tmp_path):
    pages = []
    for kind in ("data", "iadd", "gan", "d2m"):
        (tmp_path / kind).mkdir()
        write = getattr(hostile, f"{kind}_page")
        pages.append(write(tmp_path / kind))
    for text in browser.texts(tmp_path, *pages):
        for name in (*hostile.CLASSES, hostile.FILE, hostile.FOLDER):
            assert name in text


def test_what_is_wrong_is_seen(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<!DOCTYPE html><title>page</title>"
        "<script>console.error('an error')</script><script>nothing()</script>"
        "<img src='data:image/png;base64,AAAA'><img src='gone.png'>"
        "<p style='width: 500px'>wide</p>"
    )
    with pytest.raises(AssertionError) as found:
        browser.texts(tmp_path, page)
    for why in (
        '"an error"',
        "nothing is not defined",
        "2 broken images: <iframe width=1280",
        "2 broken images: <iframe width=400",
        "px too wide: <iframe width=400",
    ):
        assert why in str(found.value)
    assert "px too wide: <iframe width=1280" not in str(found.value)
