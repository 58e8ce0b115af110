"""Four CPU devices, and checked shapes in every function of the library."""

import os

# Before JAX is imported: it reads both once. Nearly all of the time goes into
# compiling, most of it into machine code better than tiny arrays need: the
# fusion emitters alone treble the time of a large gradient.
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
    )
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jaxtyping import install_import_hook

# Not in a `with`: modules that a test imports later are to be checked too.
install_import_hook("ddjax", "beartype.beartype")


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
