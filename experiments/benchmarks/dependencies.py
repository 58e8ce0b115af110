"""Does ddjax work at both ends of what pyproject.toml admits?

    pip install uv
    python experiments/benchmarks/dependencies.py --lowest=3.11 --newest=3.13

Makes two virtual environments: in one every dependency has the lowest version
that is declared, in the other all are as new as they go together. In each of
them tests run that touch every dependency, and the main line with a few
updates. Prints a table of versions and what came out; ends with 1 where
something failed. The newest JAX asks for a newer Python than the lowest:
--newest names one, by number or path. --jax=0.11 holds the newest end there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import uv

ROOT = Path(__file__).resolve().parents[2]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("test", "export", "docs")
TESTS = (
    "test_imports",
    "test_losses",  # chex, jaxtyping, beartype
    "test_models",  # flax
    "test_gan",  # optax, scipy
    "test_trajectories",  # ml_dtypes
    "test_checkpoint",  # orbax
    "test_selection",  # scikit-learn, threadpoolctl
    "test_decode",  # pillow
    "test_tfds_records",  # tensorflow-datasets, importlib_resources
    "test_configs",  # absl, ml_collections
    "test_pages_figures",  # matplotlib
    "test_pages_iadd",  # jinja2, markupsafe
    "test_exports",  # pyarrow
    "test_docs",  # pdoc, latex2mathml
    "test_hosts",  # JAX's own channel between processes; filelock, tqdm
)
MAIN = {
    "teacher.count": 2,
    "teacher.epochs": 22,
    "iadd.iterations": 5,
    "evaluate.networks": 2,
    "evaluate.epochs": 20,
    "evaluate.looks": 1,
    "evaluate.full_steps": 40,
}


def main() -> int:
    """Prints the table; 0 where all went well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lowest", default=sys.executable)
    parser.add_argument("--newest", default=sys.executable)
    parser.add_argument("--jax", default="")
    asked = parser.parse_args()
    held = [f"jax=={asked.jax}.*"] if asked.jax else []
    ends = {}
    with tempfile.TemporaryDirectory() as name:
        for end, python, how, more in (
            ("lowest", asked.lowest, "lowest-direct", []),
            ("newest", asked.newest, "highest", held),
        ):
            folder = Path(name) / end
            made = environment(folder, python, how, more)
            ends[end] = versions(made), tried(made, folder)
    print("| | admitted | lowest | newest |\n|---|---|---|---|")
    rows = ["Python" + DECLARED["requires-python"], *requirements()]
    for row in rows:
        package, admitted = re.fullmatch(r"([\w.-]+)(.*)", row).groups()
        found = [version[package] for version, _ in ends.values()]
        print(f"| {package} | {admitted} |", *(f"{v} |" for v in found))
    for what in ends["lowest"][1]:
        told = [outcomes[what] for _, outcomes in ends.values()]
        print(f"| {what} | |", *(f"{outcome} |" for outcome in told))
    return int("failed" in str([outcomes for _, outcomes in ends.values()]))


def requirements() -> list[str]:
    """Of the package and its extras, without comments or spaces."""
    extras = DECLARED["optional-dependencies"]
    return [*DECLARED["dependencies"], *(p for e in EXTRAS for p in extras[e])]


def environment(folder: Path, python: str, how: str, more: list[str]) -> Path:
    """The Python of a new virtual environment with ddjax in it."""
    own = [uv.find_uv_bin(), "--quiet"]
    subprocess.run([*own, "venv", "--python", python, folder], check=True)
    made = folder / "bin" / "python"
    wanted = [f"--resolution={how}", "-e", f"{ROOT}[{','.join(EXTRAS)}]"]
    subprocess.run(
        [*own, "pip", "install", "--python", made, *wanted, *more], check=True
    )
    return made


def versions(python: Path) -> dict[str, str]:
    """{package: version} of an environment."""
    names = [re.match(r"[\w.-]+", row)[0] for row in requirements()]
    program = (
        "import importlib.metadata as m, json, platform, sys\n"
        "found = {name: m.version(name) for name in sys.argv[1:]}\n"
        "print(json.dumps(found | {'Python': platform.python_version()}))"
    )
    told = subprocess.run(
        [python, "-c", program, *names], check=True, capture_output=True
    )
    return json.loads(told.stdout)


def tried(python: Path, folder: Path) -> dict[str, str]:
    """{what: how it ended} of the tests and of the main line."""
    fields = [f"--config.{name}={value}" for name, value in MAIN.items()]
    shared = [
        f"--{name}={folder / name}"
        for name in ("workdir", "teachers", "data", "compiled")
    ]
    tests = [f"tests/{name}.py" for name in TESTS]
    return {
        "tests": ended([python, "-m", "pytest", "-n", "0", *tests]),
        "main line": ended(
            [
                *(python, "experiments/iadd.py", "--config=configs/tiny.py"),
                *fields,
                *shared,
            ]
        ),
    }


def ended(command: list[object]) -> str:
    """Its last line, or what failed; its output goes to stderr."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(found.stdout[-6000:], file=sys.stderr, flush=True)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    last = (found.stdout.strip().splitlines() or [""])[-1]
    counted = re.search(r"\d+ (passed|failed).*?(?= in )", last)
    told = counted[0] if counted else "ends"
    if found.returncode:
        told = f"failed: {last}"
    return f"{told} ({spent:.0f} s of processor)"


if __name__ == "__main__":
    sys.exit(main())
