"""The page of a matrix, from its file alone."""

import json
import re

import pytest
from page_folders import matrix_content
from read_pages import cells, parse, section, sections, summary

from ddjax.pages import report
from ddjax.types import InputError


@pytest.fixture
def content():
    return matrix_content()


def write(folder, content):
    (folder / "matrix.json").write_text(json.dumps(content))
    return report.write_page(folder)


def test_page(tmp_path, content):
    path = write(tmp_path, content)
    text = path.read_text()
    assert path == tmp_path / "matrix.html"
    assert not parse(text).tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    names = ["matrix", "scores", "rates", "files", "commands", "config"]
    assert sections(text) == names
    assert summary(text).startswith(
        "20 distilled images (10 classes, 8 &times; 8 &times; 1, soft labels, "
        "by &lt;script&gt;) on 2 networks"
    )
    heat = section(text, "matrix")
    for figure in ("91.2 ± 2.5", "58.3 ± 2.5", "97.7 ± 2.5", ">50.0<"):
        assert figure in heat
    assert "The file, convnet: 91.2 ± 2.5%" in heat
    assert "Herding picks real images" in heat and "teacher" not in heat
    change = "\N{MINUS SIGN}12.3"
    assert cells(section(text, "scores"))[1] == [
        "&lt;i&gt;vit",
        f"{change} (\N{MINUS SIGN}20.0 to +1.0)",
        change,
        "0.300 (0.250 to 0.400)",
        "0.200",
    ]
    assert cells(section(text, "rates"))[1] == [
        "Random real images",
        "0.05",
        "",
    ]
    assert "allow_pickle" not in text and "np.load" in text
    assert write(tmp_path, content).read_text() == text


def test_what_is_no_matrix(tmp_path, content):
    for change in ({"rows": {}}, {"file": 3}, {"scores": {"convnet": {}}}):
        with pytest.raises(InputError, match=r"matrix\.json is not what"):
            write(tmp_path, content | change)
