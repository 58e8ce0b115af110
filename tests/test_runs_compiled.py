"""Compiled programs that the next process finds, and where they lie."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from small import door

import ddjax
from ddjax import api
from ddjax.runs import compiled

_PROGRAM = """
import sys, jax
from ddjax.runs import compiled
compiled.keep(*sys.argv[1:])
print(float(jax.jit(lambda x: x * 2 + 1)(3.0)), jax.config.{name})
"""


def second_process(*arguments, **variables):
    """Prints 7.0 and JAX's folder for programs; what it says, and stderr."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("JAX_")
    } | {"JAX_PLATFORMS": "cpu", "JAX_LOG_COMPILES": "0"}
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            _PROGRAM.format(name="jax_compilation_cache_dir"),
            *map(str, arguments),
        ],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.split(), found.stderr


def test_programs_are_kept_and_found(tmp_path):
    (value, folder), _ = second_process(tmp_path / "kept")
    assert (value, folder) == ("7.0", str(tmp_path / "kept"))
    programs = sorted((tmp_path / "kept").glob("*-cache"))
    assert programs
    written = [path.stat().st_mtime_ns for path in programs]
    (value, _), _ = second_process(tmp_path / "kept")
    assert value == "7.0"
    assert sorted((tmp_path / "kept").glob("*-cache")) == programs
    assert [path.stat().st_mtime_ns for path in programs] == written


def test_the_default_lies_in_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compiled.default_folder()
    assert folder.parent == tmp_path / "ddjax"
    assert folder.name.startswith("compiled-")


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({"JAX_COMPILATION_CACHE_DIR": "mine"}, "mine"),
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, "None"),
    ],
)
def test_a_users_own_choice_stays(tmp_path, variables, expected):
    if expected == "mine":
        variables = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "mine")}
        expected = str(tmp_path / "mine")
    (_, folder), _ = second_process(tmp_path / "other", **variables)
    assert folder == expected
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    (value, folder), said = second_process(tmp_path / "file" / "below")
    assert (value, folder, said) == ("7.0", "None", "")


@pytest.mark.parametrize(
    "flag, kept",
    [
        ([], [None]),
        (["--compiled=there"], [Path("there")]),
        (["--compiled=none"], []),
    ],
)
@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
def test_scripts_keep_programs_unless_told_not_to(monkeypatch, flag, kept):
    asked = []
    monkeypatch.setattr(compiled, "keep", asked.append)
    launch = door("launch")
    launch.asked(
        ["iadd.py", f"--config={launch.ROOT / 'configs/tiny.py'}", *flag]
    )
    assert asked == kept


@pytest.mark.filterwarnings("ignore:the load_module")
def test_scripts_and_calls_return_the_memory_of_compiling(
    monkeypatch, tmp_path
):
    asked = []
    monkeypatch.setattr(
        compiled, "return_memory_of_compiling", lambda: asked.append(1)
    )
    launch = door("launch")
    config = f"--config={launch.ROOT / 'configs/tiny.py'}"
    launch.asked(["iadd.py", config, "--compiled=none"])
    assert asked == [1]
    monkeypatch.setattr(
        api, "_METHODS", {"iadd": lambda *of, **more: asked.append(2)}
    )
    ddjax.plan("digits", minutes=1, root=tmp_path)
    assert asked == [1, 1, 2]


def test_tests_keep_nothing():
    assert not jax.config.jax_enable_compilation_cache


_MEMORY = """
import jax, jax.numpy as jnp
from ddjax import models
from ddjax.runs import compiled

def resident():
    with open("/proc/self/status") as lines:
        return next(int(x.split()[1]) for x in lines if x.startswith("VmRSS"))

module = models.build("convnet", num_classes=10, width=32, depth=3)
params = models.init_params(module, jax.random.key(0), (32, 32, 3))

def loss(params, images):
    return module.apply({"params": params}, images)[0].sum()

compiled._LONG_SECONDS = 0
if {spared}:
    compiled.return_memory_of_compiling()
jax.jit(jax.grad(loss))(params, jnp.ones((4, 32, 32, 3)))
print(resident())
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library"
)
def test_memory_of_compiling_is_given_back():
    def resident(spared):
        found = subprocess.run(
            [sys.executable, "-c", _MEMORY.replace("{spared}", str(spared))],
            # The tests' own flags have less compiled.
            env={k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
            | {
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": "",
                "JAX_ENABLE_COMPILATION_CACHE": "false",
            },
            capture_output=True,
            text=True,
            check=True,
        )
        return int(found.stdout)

    assert resident(True) < resident(False) - 10 * 1024  # KiB
