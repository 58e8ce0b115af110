"""The examples in the library's docstrings are true."""

import ast
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import ddjax

MODULES = [
    "ddjax",
    *(found.name for found in pkgutil.walk_packages(ddjax.__path__, "ddjax.")),
]
WITH_EXAMPLES = {
    "ddjax.losses",
    "ddjax.models",
    "ddjax.ops",
    "ddjax.unroll",
}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples(name):
    """The doctests of a module, read from its source.

    doctest's own search passes over functions that are wrapped elsewhere, as
    the shape checks of the tests wrap all of them.
    """
    module = importlib.import_module(name)
    source = Path(module.__file__).read_text()
    parser, kinds = (
        doctest.DocTestParser(),
        (ast.Module, ast.ClassDef, ast.FunctionDef),
    )
    for node in ast.walk(ast.parse(source)):
        text = isinstance(node, kinds) and ast.get_docstring(node)
        if text and ">>>" in text:
            label = f"{name}.{getattr(node, 'name', '__doc__')}"
            yield parser.get_doctest(
                text, dict(vars(module)), label, module.__file__, 0
            )


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    tests = list(examples(name))
    assert tests or name not in WITH_EXAMPLES
    report: list[str] = []
    for test in tests:
        doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_say_what_they_do(name):
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", []):
        value = getattr(module, public)
        if callable(value):
            assert value.__doc__, f"{name}.{public} has no docstring"
