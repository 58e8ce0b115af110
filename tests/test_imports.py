"""What an import brings along."""

import pathlib
import subprocess
import sys

import pytest

import ddjax

HEAVY = (
    "flax",
    "tensorflow_datasets",
    "tensorflow",
    "orbax",
    "ml_collections",
    "matplotlib",
    "jinja2",
    "sklearn",
)


def loaded(statement):
    """Which heavy packages a fresh interpreter has loaded after it."""
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    return set(HEAVY) & {name.partition(".")[0] for name in output}


def test_losses_need_jax_alone():
    assert loaded("import ddjax.losses, ddjax.unroll, ddjax.ops") == set()


def test_update_and_data_need_nothing_of_the_scripts():
    found = loaded("import ddjax.iadd, ddjax.data.sources, ddjax.trajectories")
    unwanted = {"tensorflow_datasets", "matplotlib", "jinja2", "sklearn"}
    assert found & unwanted == set()


def test_a_run_begins_without_what_pages_and_digits_need():
    found = loaded(
        "import ddjax.runs.iadd; from ddjax.data import sources; "
        "sources._digits()"
    )
    assert found & {"matplotlib", "sklearn"} == set()


@pytest.mark.parametrize("module", ["ddjax", "ddjax.losses", "ddjax.iadd"])
def test_public_names_exist(module):
    found = __import__(module, fromlist=["_"])
    assert found.__all__ and all(hasattr(found, n) for n in found.__all__)


def test_only_whole_runs_need_the_pages():
    root = pathlib.Path(ddjax.__file__).parent
    for path in root.rglob("*.py"):
        if path.parent.name not in ("pages", "runs") and path.stem != "api":
            assert "ddjax.pages" not in path.read_text("utf-8"), path
