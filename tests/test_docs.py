"""The documentation's pages: their code runs, and what they quote is there."""

import ast
import re

import pytest
from small import ROOT

from ddjax import settings

FOLDER = ROOT / "experiments" / "docs"
PAGES = sorted(path.stem for path in FOLDER.glob("*.md"))


def text(page):
    return (FOLDER / f"{page}.md").read_text("utf-8")


def strings():
    """Every text of the code, `..` for what a formatted one fills in."""
    for folder in ("ddjax", "experiments", "configs"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(
                        part.value if isinstance(part, ast.Constant) else ".."
                        for part in node.values
                    )
                elif isinstance(node, ast.Constant):
                    yield str(node.value)


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page_runs(page):
    blocks = re.findall(r"^```python\n(.*?)^```$", text(page), re.M | re.S)
    assert blocks or page in ("index", "troubleshooting")
    names = {"__name__": page}
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec"), names)


def test_messages_are_those_of_the_code():
    spans = re.findall(r"`([^`\n]+)`", text("troubleshooting"))
    # Of three words or more; others are names, fields and commands.
    quoted = [span for span in spans if span.count(" ") > 1]
    known = set(strings())
    assert len(set(quoted)) > 25
    for message in quoted:
        assert message in known or message.startswith("pip "), message


@pytest.mark.parametrize("page", PAGES)
def test_fields_and_scripts_are_there(page):
    known = {field.name for field in settings.fields()}
    parts = {name.partition(".")[0] for name in known if "." in name}
    for field in re.findall(r"`(?:--config\.)?(\w+(?:\.\w+)+)\b", text(page)):
        if field.partition(".")[0] in parts:
            assert field in known, field
    for script in re.findall(
        r"(?:experiments|configs)/[\w/]+\.\w+", text(page)
    ):
        assert (ROOT / script).is_file(), script


def test_every_page_is_built():
    program = (FOLDER / "build.py").read_text("utf-8")
    (pages,) = re.findall(r"^PAGES = \((.*?)^\)", program, re.M | re.S)
    assert sorted(re.findall(r'"(\w+)"', pages)) == PAGES
