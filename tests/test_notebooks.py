"""The notebooks run from top to bottom at their small settings.

Their code is plain Python, so that running the cells one after another in one
process needs no kernel.
"""

import glob
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from small import QUICK, ROOT

FOLDER = ROOT / "experiments" / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))
# Each in a namespace of its own; programs that are alike compile once.
RUN = """
import json, sys, warnings
warnings.simplefilter("error", UserWarning)
import matplotlib
matplotlib.use("agg")
for name in sys.argv[1:]:
    names = {"__name__": "__main__"}
    for number, source in enumerate(json.load(open(name))):
        print(name, number, flush=True)
        exec(compile(source, f"{name}:{number}", "exec"), names)
"""


def cells(name, kind="code"):
    notebook = json.loads((FOLDER / name).read_text("utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def sources(name):
    return ["".join(cell["source"]) for cell in cells(name)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder in which all of them ran, and what they printed."""
    folder = tmp_path_factory.mktemp("notebooks")
    for name in NAMES:
        (folder / name).write_text(json.dumps(sources(name)))
    done = subprocess.run(
        [sys.executable, "-c", RUN, *NAMES],
        cwd=folder,
        env=os.environ | {"XLA_FLAGS": QUICK, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def percents(pattern, text):
    return [float(found) for found in re.findall(pattern, text)]


@pytest.mark.campaign
def test_quickstart_ends_in_a_folder_of_pictures(ran):
    folder, said = ran
    for kind in ("circle", "cross", "square", "star", "triangle"):
        assert len(list((folder / "distilled" / kind).glob("*.png"))) == 2
    assert (folder / "distilled.zip").stat().st_size > 300
    distilled, real = percents(r"trained on ten \w+ images: ([\d.]+)%", said)
    assert distilled > real > 40


@pytest.mark.campaign
def test_iadd_leaves_a_finished_run(ran):
    folder, _ = ran
    scores = json.loads((folder / "runs/iadd-digits/eval.json").read_text())
    assert scores["distilled"]["mlp"]["mean"] > 0.6
    assert (folder / "runs/iadd-digits/loss.png").stat().st_size > 1000


@pytest.mark.campaign
def test_losses_in_plain_jax_and_in_nnx_gain_on_real_images(ran):
    found = percents(r"ten \w+ images: ([\d.]+)% over five", ran[1])
    assert len(found) == 4
    for distilled, real in (found[:2], found[2:]):
        assert distilled > real + 10 > 40


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_there_small_and_tell_no_folder(name):
    text = (FOLDER / name).read_text("utf-8")
    assert len(text) < 300_000
    assert not re.search(r"/(work|root|home|tmp|Users|opt)/", text)
    counts = [cell["execution_count"] for cell in cells(name)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [out for cell in cells(name) for out in cell["outputs"]]
    assert not [out for out in outputs if out["output_type"] == "error"]
    shown = [out["data"] for out in outputs if "data" in out]
    assert any("image/png" in data for data in shown) or any(
        "<img" in "".join(data.get("text/html", [])) for data in shown
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("device", "extra"),
    [("", ""), ("nvidia-smi", "[cuda12]"), ("/dev/accel", "[tpu]")],
)
def test_install_cell(name, device, extra, monkeypatch, capsys):
    """Nothing where ddjax is there; else it and the accelerator's plugin."""
    (install,) = (s for s in sources(name) if "SOURCE" in s)
    calls = []
    monkeypatch.setattr(
        subprocess, "run", lambda command, check: calls.append(command)
    )
    exec(install, {})
    assert not calls
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: name == device)
    monkeypatch.setattr(
        glob, "glob", lambda pattern: [device] if device == pattern[:-1] else []
    )
    exec(install, {})
    (command,) = calls
    assert command[1:4] == ["-m", "pip", "install"]
    assert command[-2:] == ["-e", f"/content/ddjax{extra}"]
    assert "Restart session" in capsys.readouterr().out
