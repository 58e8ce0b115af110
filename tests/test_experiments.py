"""The scripts as a user runs them: whole runs, kills, and refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
# The smallest run that passes through every stage.
SMALL = {
    "model.width": 4,
    "model.depth": 1,
    "teacher.count": 2,
    "teacher.epochs": 3,
    "teacher.augment": "none",
    "iadd.iterations": 12,
    "iadd.inner_steps": 3,
    "iadd.span": 1,
    "iadd.max_start": 2,
    "iadd.augment": "crop",
    "iadd.importance.form": "exponential",
    "evaluate.epochs": 4,
    "evaluate.networks": 2,
    "evaluate.look_networks": 1,
    "evaluate.looks": 2,
    "evaluate.augment": "none",
    "log.every": 2,
    "log.checkpoint_every": 4,
}


def command(script, folder, workdir="run", config="configs/tiny.py", **fields):
    flags = [
        f"--config.{name}={value}" for name, value in (SMALL | fields).items()
    ]
    return [
        sys.executable,
        str(ROOT / "experiments" / script),
        f"--config={ROOT / config}",
        f"--workdir={folder / workdir}",
        f"--teachers={folder / 'teachers'}",
        f"--data={folder / 'data'}",
        *flags,
    ]


def environment(cache):
    """One device, and compilations shared between the runs of this file."""
    return os.environ | {
        # Compiling takes longer than these runs.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder with one finished run in it, and how to start more."""
    folder = tmp_path_factory.mktemp("experiments")
    env = environment(folder / "cache")

    def call(script="iadd.py", raw=None, **kwargs):
        return subprocess.run(
            raw or command(script, folder, **kwargs),
            capture_output=True,
            text=True,
            env=env,
            cwd=folder,
        )

    first = call()
    assert first.returncode == 0, first.stderr
    return folder, call, env, first


def images_of(workdir):
    with np.load(workdir / "distilled.npz", allow_pickle=False) as file:
        return file["images"]


def refused(result, *words):
    """One sentence on stderr, exit code 2, no traceback."""
    assert result.returncode == 2, result.stderr
    lines = [
        line for line in result.stderr.splitlines() if line.startswith("error")
    ]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[0]


def test_all_artefacts_are_there(shared):
    folder, _, _, first = shared
    run = folder / "run"
    for name in (
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "distilled.npz",
        "distilled.png",
        "eval.json",
        "report.html",
    ):
        assert (run / name).exists(), name
    scores = json.loads((run / "eval.json").read_text())
    for row in (
        "distilled",
        "distilled_last",
        "random_real",
        "full_data",
        "best_of_looks",
    ):
        score = scores[row]["convnet"]
        assert len(score["accuracies"]) == 2
        assert 0 <= score["mean"] <= 1
    best = scores["best_of_looks"]["convnet"]["mean"]
    assert best >= scores["distilled_last"]["convnet"]["mean"]
    assert "report.html" in first.stdout


def test_distilled_file_needs_numpy_alone(shared):
    folder, *_ = shared
    with np.load(folder / "run" / "distilled.npz", allow_pickle=False) as file:
        assert file["images"].shape == (10, 8, 8, 1)
        assert file["images"].dtype == np.float32
        np.testing.assert_allclose(file["labels"].sum(-1), 1)
        metadata = json.loads(str(file["metadata"]))
    assert metadata["class_names"] == [str(digit) for digit in range(10)]
    assert metadata["config"]["iadd.ipc"] == 1


def test_images_have_moved_and_importance_is_logged(shared):
    folder, *_ = shared
    with np.load(folder / "run" / "initial.npz") as file:
        assert np.abs(file["images"] - images_of(folder / "run")).max() > 1e-4
    rows = [
        json.loads(line)
        for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    weights = [row["importance"] for row in rows if "importance" in row]
    assert weights[-1]["conv0.kernel"]["std"] > 0
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_same_command_elsewhere_gives_same_bytes(shared):
    folder, call, *_ = shared
    result = call(workdir="again")
    assert result.returncode == 0, result.stderr
    same = images_of(folder / "again")
    assert same.tobytes() == images_of(folder / "run").tobytes()


def test_finished_run_says_so(shared):
    folder, call, *_ = shared
    before = (folder / "run" / "report.html").stat().st_mtime_ns
    result = call()
    assert result.returncode == 0
    assert "complete" in result.stdout and "report.html" in result.stdout
    assert (folder / "run" / "report.html").stat().st_mtime_ns == before


def test_killed_run_ends_the_same(shared):
    """SIGKILL between two checkpoints; the same command goes on."""
    folder, call, env, _ = shared
    process = subprocess.Popen(
        command("iadd.py", folder, workdir="killed"),
        env=env,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = folder / "killed" / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and '"step": 6,' in metrics.read_text():
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "killed" / "report.html").exists()
    result = call(workdir="killed")
    assert result.returncode == 0, result.stderr
    assert "going on from the checkpoint" in result.stderr + result.stdout
    resumed = images_of(folder / "killed")
    assert resumed.tobytes() == images_of(folder / "run").tobytes()
    steps = [
        json.loads(line)["step"] for line in metrics.read_text().splitlines()
    ]
    assert steps == sorted(steps)
    assert len(steps) == len(
        (folder / "run" / "metrics.jsonl").read_text().splitlines()
    )


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"iadd.ipcc": 1}, ["ipcc", "ipc"]),
        ({"iadd.ipc": "many"}, ["many"]),
        ({"iadd.ipc": 1000}, ["1000", "class"]),
        ({"iadd.inner_steps": 0}, ["inner_steps"]),
        ({"iadd.span": 0}, ["span"]),
        ({"iadd.max_start": 3}, ["max_start", "epochs"]),
        ({"model.name": "convnext"}, ["convnext", "convnet"]),
        ({"model.width": -1}, ["width", "-1"]),
        ({"iadd.augment": "blur"}, ["blur", "crop"]),
        ({"iadd.importance.form": "magic"}, ["magic", "exponential"]),
        ({"data.source": "cifar11"}, ["cifar11", "digits"]),
    ],
)
def test_impossible_configs_are_refused(shared, fields, words):
    folder, call, *_ = shared
    refused(call(workdir="refused", **fields), *words)
    assert not (folder / "refused").exists() or not list(
        (folder / "refused").glob("checkpoints/*")
    )


def test_missing_config_file_is_refused(shared):
    folder, call, *_ = shared
    refused(
        call(raw=command("iadd.py", folder, config="configs/none.py")),
        "none.py",
    )
    refused(
        call(raw=[sys.executable, str(ROOT / "experiments" / "iadd.py")]),
        "--config",
    )


def test_help_lists_the_fields(shared):
    _, call, *_ = shared
    script = str(ROOT / "experiments" / "iadd.py")
    result = call(raw=[sys.executable, script, "--help"])
    assert result.returncode == 0
    assert "iadd.ipc=1" in result.stdout
    assert "images per class" in result.stdout


def test_workdir_of_another_config_is_refused_and_kept(shared):
    folder, call, *_ = shared
    before = (folder / "run" / "distilled.npz").read_bytes()
    refused(call(**{"iadd.ipc": 2}), "iadd.ipc", "--workdir")
    assert (folder / "run" / "distilled.npz").read_bytes() == before


def test_workdir_that_cannot_be_written_is_refused(shared):
    folder, call, *_ = shared
    (folder / "file").write_text("")
    refused(call(workdir="file"), "file", "--workdir")
    refused(call(workdir="file/inside"), "file", "--workdir")


def test_damaged_teacher_is_named(shared):
    folder, call, *_ = shared
    path = next(folder.glob("teachers/*/teacher_0001.npy"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    try:
        refused(call(workdir="damaged"), str(path), "damaged")
        assert path.stat().st_size == len(whole) - 100
    finally:
        path.write_bytes(whole)


def test_learning_rate_that_leaves_its_bounds_stops_the_run(shared):
    _, call, *_ = shared
    refused(
        call(workdir="diverged", **{"iadd.learning_rate_step": 10.0}),
        "learning rate",
        "bounds",
        "update",
    )


def test_loss_that_is_not_finite_keeps_the_last_checkpoint(shared):
    """The first update sends the images so far that the second overflows."""
    folder, call, *_ = shared
    fields = {"iadd.image_step": 1e30, "log.checkpoint_every": 1}
    result = call(workdir="exploded", **fields)
    refused(result, "update", "iadd.image_step", "is kept")
    assert list((folder / "exploded" / "checkpoints").glob("[0-9]*"))


def test_nan_in_the_images_is_refused(shared):
    folder, call, *_ = shared
    images = np.zeros((4, 8, 8, 1))
    images[2, 0, 0, 0] = np.nan
    labels = np.array([0, 0, 1, 1])
    np.savez(
        folder / "nan.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    fields = {"data.source": "npz", "data.data_dir": folder / "nan.npz"}
    refused(call(workdir="nan", **fields), "NaN", "number 2")


def test_full_disk_is_refused(shared):
    """Every file has to pass through fsync; the disk says no there."""
    folder, call, *_ = shared
    script = folder / "full.py"
    script.write_text(
        "import errno, os, runpy, sys\n"
        "def fsync(fd):\n"
        "    raise OSError(errno.ENOSPC, 'No space left on device', 'disk')\n"
        "os.fsync = fsync\n"
        f"sys.path.insert(0, {str(ROOT / 'experiments')!r})\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    raw = command("iadd.py", folder, workdir="full")
    refused(call(raw=[raw[0], str(script), *raw[1:]]), "disk is full")
    assert not list((folder / "full").glob("*.json"))


# --- A folder of the user's own ----------------------------------------------

OWN = {
    "data.size": 8,
    "data.preprocess": "zca",
    "data.unreadable_share": 0.1,
    "iadd.image_step": 1.0,
    "teacher.batch_size": 16,
    "evaluate.metric": "balanced_accuracy",
}


@pytest.fixture(scope="module")
def own(shared):
    """Bright bars and dark ones, 24 and 16, and a file that is broken."""
    folder, call, *_ = shared
    rng = np.random.default_rng(0)
    for label, name in enumerate(("bright", "dark")):
        (folder / "set" / name).mkdir(parents=True)
        for i in range(24 - 8 * label):
            pixels = rng.integers(0, 90, (10 + i % 3, 12), dtype=np.uint8)
            pixels[2:-2, 3:6] = 250 - 200 * label
            path = folder / "set" / name / f"{i:02}.png"
            Image.fromarray(pixels).convert("P" if i % 2 else "L").save(path)
    (folder / "set" / "dark" / "cut.png").write_bytes(b"no picture")
    (folder / "set" / "notes.txt").write_text("not an image")

    def call_own(script="iadd.py", folder_name="set", **kwargs):
        return call(
            script,
            config=f"configs/folder.py:{folder / folder_name}",
            **({"workdir": "own"} | OWN | kwargs),
        )

    first = call_own()
    assert first.returncode == 0, first.stderr
    return folder, call_own, first


def test_own_folder_from_files_to_report(own):
    folder, _, first = own
    assert "1 image cannot be read and is left out" in first.stdout
    assert "cut.png" in first.stdout
    scores = json.loads((folder / "own" / "eval.json").read_text())
    score = scores["full_data"]["convnet"]
    assert len(score["recall"]) == 2
    np.testing.assert_allclose(
        np.mean(score["recall"]), score["balanced_accuracy"]["mean"]
    )
    with np.load(folder / "own" / "distilled.npz") as file:
        metadata = json.loads(str(file["metadata"]))
        images, matrix = file["images"], file["preprocess/matrix"]
        inputs = (images - file["preprocess/mean"]).reshape(2, -1) @ matrix
    assert metadata["class_names"] == ["bright", "dark"]
    assert images.shape == (2, 8, 8, 3) and matrix.shape == (192, 192)
    assert inputs.shape == (2, 192)
    # Whitened and back, the real images they started from are uint8 again.
    with np.load(folder / "own" / "initial.npz") as file:
        levels = 255 * file["images"]
    np.testing.assert_allclose(levels, np.rint(levels), atol=0.01)
    assert levels.min() >= -0.01 and 200 < levels.max() < 255.01
    report = (folder / "own" / "report.html").read_text()
    assert "bright" in report and "alanced accuracy" in report


def test_own_folder_is_decoded_once(own):
    folder, call_own, _ = own
    found = call_own("prepare.py", workdir="page")
    assert found.returncode == 0, found.stderr
    assert "2 classes of 8 x 8 x 3 images" in found.stdout
    page = (folder / "page" / "data.html").read_text()
    assert "cut.png" in page and "dark" in page
    prepared = [p for p in (folder / "data").iterdir() if p.is_dir()]
    assert len(prepared) == 1


def test_from_disk_the_run_is_the_same(own):
    folder, call_own, _ = own
    streamed = call_own(**{"data.in_memory_gb": 0.0, "workdir": "disk"})
    assert streamed.returncode == 0, streamed.stderr
    np.testing.assert_allclose(
        images_of(folder / "disk"), images_of(folder / "own"), atol=1e-5
    )
    scores = [
        json.loads((folder / run / "eval.json").read_text())
        for run in ("own", "disk")
    ]
    for row in scores[0]:
        np.testing.assert_allclose(
            scores[0][row]["convnet"]["accuracies"],
            scores[1][row]["convnet"]["accuracies"],
        )


def test_run_on_a_folder_that_changed(own):
    folder, call_own, _ = own
    begun = call_own(**{"workdir": "changed", "iadd.image_step": 1e20})
    refused(begun, "update")
    pixels = np.full((9, 9), 240, np.uint8)
    Image.fromarray(pixels).save(folder / "set" / "bright" / "99.png")
    try:
        refused(
            call_own(**{"workdir": "changed", "iadd.image_step": 1e20}),
            "other images",
        )
    finally:
        (folder / "set" / "bright" / "99.png").unlink()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"folder_name": "nowhere"}, ["nowhere"]),
        ({"data.unreadable_share": 0.0}, ["cut.png", "unreadable_share"]),
        ({"data.size": 0}, ["different sizes", "config.data.size"]),
        ({"iadd.ipc": 99}, ["lower config.iadd.ipc"]),
        ({"evaluate.metric": "f1"}, ["accuracy or balanced_accuracy"]),
    ],
)
def test_own_folder_refusals(own, changes, words):
    folder, call_own, _ = own
    refused(call_own(workdir="refused", **changes), *words)
    assert not (folder / "refused").exists()
