"""Builds the documentation: the pages beside this file, and every docstring.

    pip install -e '.[docs]'
    python experiments/docs/build.py --out=site

Writes a static site that needs no network: formulas become MathML. What pdoc
warns of, a formula that is none, a link into nothing and a public name that no
page shows stop it, with exit code 2 and a sentence.
"""

import argparse
import importlib
import pkgutil
import posixpath
import re
import sys
import types
import typing
import warnings
from html.parser import HTMLParser
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import latex2mathml.converter
import pdoc
from markupsafe import Markup

import ddjax
from ddjax import files
from ddjax.types import InputError

PAGES = (
    "index",
    "concepts",
    "iadd",
    "d2m",
    "own_data",
    "own_network",
    "own_loss",
    "troubleshooting",
)
# Code is left alone; then what docstrings and pages write formulas in.
FORMULA = re.compile(
    r"(?P<code>^ *```.*?^ *```$|``[^`]+``|`[^`\n]+`)"
    r"|^(?P<indent> *)\.\. math::"
    r"(?P<directive>[^\n]*(?:\n(?:(?P=indent) +[^\n]+|[ ]*$))*)"
    r"|:math:`(?P<role>[^`]+)`"
    r"|\$\$(?P<block>.+?)\$\$"
    r"|(?<![\w\\$])\$(?P<inline>[^$\n]+)\$(?!\w)",
    re.DOTALL | re.MULTILINE,
)
# Modules in a signature that say no more than the name behind them.
LONG_NAMES = re.compile(
    r'<span class="n">(jaxtyping|typing|jaxlib|_jax)</span>'
    r'<span class="o">\.</span>'
)


def mathml(tex: str, display: str = "inline") -> str:
    """A formula for a browser; InputError where it is not all understood."""
    tex = " ".join(tex.split())
    found = latex2mathml.converter.convert(tex, display=display)
    if "\\" in found:
        raise InputError(f"no MathML of the formula {tex}: write it otherwise")
    return found


def with_formulas(text: str) -> str:
    """A docstring or page, its formulas as MathML."""

    def replaced(match):
        if match["code"]:
            return match[0]
        block = match["directive"] or match["block"]
        if block:
            return f"\n\n{mathml(block, 'block')}\n\n"
        return mathml(match["role"] or match["inline"])

    return FORMULA.sub(replaced, text)


def modules() -> dict[str, types.ModuleType]:
    """The pages, and the package with all that is below it."""
    # What is loaded when first used, pdoc would not find.
    vars(ddjax).update({name: getattr(ddjax, name) for name in ddjax.__all__})
    found = {name: types.ModuleType(name) for name in PAGES}
    for name, page in found.items():
        page.__doc__ = (HERE / f"{name}.md").read_text("utf-8")
        page.__docformat__ = "markdown"
    found["ddjax"] = ddjax
    for part in pkgutil.walk_packages(ddjax.__path__, "ddjax."):
        found[part.name] = importlib.import_module(part.name)
    for module in found.values():
        for value in vars(module).values():
            if isinstance(value, type) and hasattr(value, "_fields"):
                # pdoc does not look these up in the class's module.
                value.__new__.__annotations__ = typing.get_type_hints(value)
    return found


def documented(doc: pdoc.doc.Doc) -> pdoc.doc.Doc:
    """The same, with the formulas of all that is in it."""
    doc.docstring = with_formulas(doc.docstring)
    if isinstance(doc, pdoc.doc.Namespace):
        for member in doc.members.values():
            if not isinstance(member, pdoc.doc.Module):
                documented(member)
    return doc


class Anchors(HTMLParser):
    """What a page has and where its links go."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs["id"]} if "id" in attrs else set()
        if tag == "a" and "://" not in attrs.get("href", "://"):
            self.links.add(attrs["href"])


def check(site: dict[Path, str], found: dict[str, types.ModuleType]) -> None:
    """InputError unless links lead somewhere and public names are shown."""
    anchors = {path: Anchors(text) for path, text in site.items()}
    for path, page in anchors.items():
        for link in page.links:
            where, _, name = link.partition("#")
            there = posixpath.normpath(path.parent / where) if where else path
            ids = anchors[Path(there)].ids if Path(there) in anchors else None
            if ids is None or (name and name not in ids):
                raise InputError(f"{path} links to {link}, which is not there")
    for name, module in found.items():
        page = Path(*name.split(".")).with_suffix(".html")
        for public in getattr(module, "__all__", []):
            submodule = f"{name}.{public}" in found
            if not submodule and public not in anchors[page].ids:
                raise InputError(f"{page} does not show {name}.{public}")


def build(out: Path) -> None:
    """Writes the site into a folder."""
    found = modules()
    pdoc.render.configure(
        docformat="google",
        show_source=False,
        template_directory=HERE / "templates",
    )
    env = pdoc.render.env
    env.globals["pages"] = {
        name: page.__doc__.partition("\n")[0].lstrip("# ")
        for name, page in found.items()
        if name in PAGES
    }
    plain = env.filters["format_signature"]
    env.filters["format_signature"] = lambda *args, **kwargs: Markup(
        LONG_NAMES.sub("", plain(*args, **kwargs))
    )
    docs = {name: documented(pdoc.doc.Module(m)) for name, m in found.items()}
    site = {
        Path(*name.split(".")).with_suffix(".html"): pdoc.render.html_module(
            doc, docs
        )
        for name, doc in docs.items()
    }
    check(site, found)
    site[Path("search.js")] = pdoc.render.search_index(docs)
    for path, text in site.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(out / path) as file:
            file.write(text.encode())
    print(f"{len(site) - 1} pages in {out}: begin with {out / 'index.html'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    warnings.simplefilter("error")
    try:
        build(parser.parse_args().out)
    except (InputError, UserWarning) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
