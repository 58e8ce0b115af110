"""Every config builds, and its header tells what a reader needs."""

import ast
import importlib.util
from pathlib import Path

import pytest
from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(
    path
    for path in (ROOT / "configs").glob("*.py")
    if path.stem not in ("common", "__init__")
)


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def root_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_builds_and_is_locked(path):
    from configs import common

    config = load(path).get_config()
    assert isinstance(config, ConfigDict) and config.is_locked
    assert list(common.flat(config)) == list(common.FIELDS)
    for field, value in common.flat(config).items():
        assert isinstance(value, type(common.FIELDS[field][0])), field


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_header_names_paper_result_cost_and_command(path):
    header = ast.get_docstring(ast.parse(path.read_text()))
    for word in ("Data", "Paper", "Expected", "Cost", "Command"):
        assert f"\n{word} " in header
    assert f"--config=configs/{path.name}" in header
    assert "TO_FILL" not in header


def test_a_wrong_field_cannot_be_set():
    from configs import common

    with pytest.raises(AttributeError, match="ipc"):
        common.base().iadd.ipcc = 1
