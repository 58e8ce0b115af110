"""Hostile names are text, on every kind of page."""

import json
import re

import markupsafe
import numpy as np
import pytest
from page_folders import (
    make_d2m,
    make_generator,
    make_iadd,
    make_pretraining,
)
from read_pages import check_self_contained, parse

from ddjax.data.sources import Dataset
from ddjax.pages import data, gan, report

CLASSES = [
    "<script>alert(1)</script>",
    "\"' onerror=alert(1) x='",
    "{{ 77*77 }} {% raw %} {# no #}",
]
FOLDER = "<script>alert(2)<\N{DIVISION SLASH}script> \"' {{ 77*77 }} {% raw %}"
LINK = "javascript:alert(3)"
FILE = f"{LINK} <script>alert(4)</script> \"' {{{{ 77*77 }}}} {{% raw %}}"


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def data_page(parent):
    folder = parent / FOLDER
    folder.mkdir()
    labels = np.arange(3, dtype=np.int32)
    split = Dataset(np.zeros((3, 8, 8, 1), np.uint8), labels, tuple(CLASSES))
    return data.write_page(
        folder / "data.html",
        title=FOLDER,
        facts={CLASSES[0]: FILE, "Folder": str(folder)},
        splits={"train": split, CLASSES[1]: split},
        sizes={CLASSES[2]: 1},
        unreadable=[(FILE, CLASSES[0])],
        mean=[0.1],
        std=[0.1],
    )


def iadd_page(parent):
    folder = make_iadd(parent, FOLDER, CLASSES)
    rewrite(
        folder / "config.json",
        config={CLASSES[0]: FILE},
        command=FILE,
        device=CLASSES[1],
        versions={CLASSES[2]: CLASSES[0]},
    )
    found = {"mean": 0.5, "accuracies": [0.5], "recall": [0.5] * 3}
    rows = {"distilled": {CLASSES[0]: found}, CLASSES[1]: {CLASSES[2]: found}}
    (folder / "eval.json").write_text(json.dumps(rows))
    weights = {"mean": 1.0, "std": 0.1}
    line = {"step": 1, "importance": {name: weights for name in CLASSES}}
    (folder / "metrics.jsonl").write_text(json.dumps(line))
    arrays = {f"importance/{name}": np.ones(3) for name in CLASSES[1:]}
    arrays |= {
        f"{part}_target/{name}": np.ones(3)
        for part in ("start", "student")
        for name in CLASSES[1:]
    }
    np.savez(folder / "difference.npz", **arrays)
    return report.write_page(folder)


def gan_folder(parent):
    generator = make_generator(parent / "made.npz", CLASSES)
    folder = make_pretraining(parent, generator, FOLDER)
    (folder / "metrics.jsonl").write_text("")
    (folder / "shaped_by.json").write_text(json.dumps({CLASSES[0]: FILE}))
    rewrite(folder / "quality.json", features=FILE)
    return folder


def gan_page(parent):
    return report.write_page(gan_folder(parent))


def d2m_page(parent):
    pretraining = gan_folder(parent)
    (parent / "run").mkdir()
    folder = make_d2m(parent / "run", parent / "made.npz", FOLDER)
    (folder / "metrics.jsonl").unlink()
    gan.copy_pretraining(pretraining, folder)
    rewrite(
        folder / "config.json",
        config={CLASSES[0]: FILE},
        command=FILE,
        device=CLASSES[1],
        versions={CLASSES[2]: CLASSES[0]},
    )
    found = {"mean": 0.5, "accuracies": [0.5], "recall": [0.5] * 3}
    rows = {
        f"stored/{CLASSES[2]}/distilled": {CLASSES[0]: found},
        "full_data": {CLASSES[1]: found},
    }
    (folder / "eval.json").write_text(json.dumps(rows))
    return report.write_page(folder)


@pytest.mark.parametrize("write", [data_page, iadd_page, gan_page, d2m_page])
def test_hostile_names_are_text(tmp_path, write):
    text = write(tmp_path).read_text("utf-8")
    check_self_contained(text)
    parser = parse(text)
    assert not {name for name, _ in parser.attributes if name[:2] == "on"}
    for name in (*CLASSES, FILE, FOLDER):
        assert str(markupsafe.escape(name)) in text
    assert "<script" not in text
    plain = re.sub(r"<svg.*?</svg>|base64,[^\"]*", "", text, flags=re.S)
    assert "5929" not in plain  # 77 * 77
