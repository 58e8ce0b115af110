"""Four CPU devices, and checked shapes in every function of the library."""

import os
from pathlib import Path

from small import QUICK

# Before JAX is imported: it reads both once.
os.environ["XLA_FLAGS"] = " ".join(
    (
        QUICK,
        "--xla_cpu_parallel_codegen_split_count=1",
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
    )
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests leave nothing in the user's cache folder.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")

import jax
import pytest
from jaxtyping import install_import_hook

# Not in a `with`: modules that a test imports later are to be checked too. Of
# settings, the fields check themselves, and take an integer for a float.
install_import_hook(
    [
        f"ddjax.{path.stem}"
        for path in (Path(__file__).parents[1] / "ddjax").iterdir()
        if path.stem not in ("__init__", "settings")
    ],
    "beartype.beartype",
)

# A worker that takes one of these last works on while the other has no more.
LONG = {
    "test_accelerator_kit",
    "test_api",
    "test_every_config",
    "test_experiments",
    "test_hosts",
    "test_notebooks",
    "test_runs_d2m",
    "test_runs_iadd",
    "test_runs_plan",
}


def pytest_collection_modifyitems(items):
    """Long files first."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture
def x64():
    """A test in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def generator(tmp_path_factory):
    """A generator's file, of three classes."""
    from page_folders import make_generator

    return make_generator(tmp_path_factory.mktemp("made") / "generator.npz")


@pytest.fixture
def pretraining(tmp_path, generator):
    """A pre-training; nothing logged: drawing curves takes most of a page's
    time."""
    from page_folders import make_pretraining

    folder = make_pretraining(tmp_path, generator)
    (folder / "metrics.jsonl").write_text("")
    return folder
