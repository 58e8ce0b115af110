"""D2M's scripts as a user runs them: whole runs, kills, and refusals."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from test_experiments import ROOT, SMALL, refused

# The smallest run that passes through every stage.
TINY = SMALL | {
    "gan.width": 1,
    "gan.noise": 4,
    "gan.iterations": 6,
    "gan.critic_steps": 1,
    "gan.batch_size": 10,
    "gan.looks": 2,
    "d2m.iterations": 8,
    "d2m.per_class": 2,
    "d2m.augment": "crop",
    "d2m.ipcs": "1,2",
    "d2m.epochs": "4",
    "d2m.stream_ipc": 1,
    "log.checkpoint_every": 3,
}


def flags(folder, workdir="run", **fields):
    return [
        f"--config={ROOT / 'configs' / 'tiny.py'}",
        f"--workdir={folder / workdir}",
        f"--teachers={folder / 'teachers'}",
        f"--data={folder / 'data'}",
        f"--generators={folder / 'generators'}",
        *(
            f"--config.{name}={value}"
            for name, value in (TINY | fields).items()
        ),
    ]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder with one finished run in it, and how to start more."""
    folder = tmp_path_factory.mktemp("d2m")
    env = os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def call(*arguments, script="d2m.py", **kwargs):
        return subprocess.run(
            [
                sys.executable,
                str(ROOT / "experiments" / script),
                *(arguments or flags(folder, **kwargs)),
            ],
            capture_output=True,
            text=True,
            env=env,
            cwd=folder,
        )

    first = call()
    assert first.returncode == 0, first.stderr
    return folder, call, env, first


def generator_of(workdir):
    """All arrays but the metadata, which tells the command."""
    path = workdir / "generator" / "distilled.npz"
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name != "metadata"}


def test_all_artefacts_and_rows_are_there(shared):
    folder, _, _, first = shared
    run = folder / "run"
    for name in (
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "generator/pretrained.npz",
        "generator/distilled.npz",
        "pretraining/quality.json",
        "eval.json",
        "distilled.png",
        "report.html",
    ):
        assert (run / name).exists(), name
    scores = json.loads((run / "eval.json").read_text())
    assert set(scores) == {
        "full_data",
        *(
            f"stored/{ipc}/{what}"
            for ipc in (1, 2)
            for what in ("distilled", "pretrained", "random_real")
        ),
        "stream/1/distilled",
        "stream/1/pretrained",
    }
    assert "images of the data set" in first.stdout
    assert list(folder.glob("generators/*/report.html"))


def test_finished_run_says_so(shared):
    _, call, *_ = shared
    result = call()
    assert result.returncode == 0
    assert "complete" in result.stdout


def test_killed_run_ends_the_same(shared):
    """SIGKILL in pre-training and in distillation; the command goes on."""
    folder, call, env, _ = shared
    script = str(ROOT / "experiments" / "d2m.py")
    arguments = [
        flag.replace(str(folder / "generators"), str(folder / "again"))
        for flag in flags(folder, workdir="killed")
    ]

    def kill_when(found):
        process = subprocess.Popen(
            [sys.executable, script, *arguments],
            env=env,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not found():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def logged(pattern, step):
        return lambda: any(
            f'"step": {step},' in path.read_text()
            for path in folder.glob(pattern)
        )

    kill_when(logged("again/*/metrics.jsonl", 4))
    assert not list(folder.glob("again/*/report.html"))
    kill_when(logged("killed/metrics.jsonl", 4))
    assert list(folder.glob("again/*/report.html"))
    assert not (folder / "killed" / "report.html").exists()
    result = call(*arguments)
    assert result.returncode == 0, result.stderr
    ours, theirs = (generator_of(folder / name) for name in ("killed", "run"))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.tobytes() == theirs[name].tobytes(), name
    assert (folder / "killed" / "eval.json").read_bytes() == (
        folder / "run" / "eval.json"
    ).read_bytes()


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"d2m.layers": "block0,block9"}, ["block9", "block0"]),
        ({"d2m.temperature": 0.0}, ["d2m.temperature", "positive"]),
        ({"d2m.ipcs": "1,0"}, ["d2m.ipcs", "at least 1"]),
        ({"d2m.ipcs": "1000"}, ["1000", "lower config.d2m.ipcs"]),
        ({"teacher.epochs": 2}, ["teacher.epochs"]),
        ({"gan.attention": 20}, ["gan.attention", "0 or one of"]),
        ({"d2m.classes": 11}, ["d2m.classes", "0..10"]),
        ({"d2m.first_epoch": 9}, ["d2m.first_epoch", "0..3"]),
        ({"d2m.networks": "some"}, ["trained or random"]),
        ({"gan.iterations": 0}, ["gan.iterations"]),
        ({"d2m.generator": "nowhere.npz"}, ["no generator", "nowhere.npz"]),
    ],
)
def test_impossible_configs_are_refused(shared, fields, words):
    folder, call, *_ = shared
    refused(call(workdir="refused", **fields), *words)
    assert not (folder / "refused").exists()


def test_a_rate_that_explodes_stops_the_run(shared):
    _, call, *_ = shared
    fields = {"d2m.rate": 1e30, "log.checkpoint_every": 1}
    result = call(workdir="exploded", **fields)
    refused(result, "update", "d2m.rate")


def generate(call, folder, *more, run="run", out="made"):
    return call(
        f"--generator={folder / run}",
        f"--out={folder / out}",
        *more,
        script="generate.py",
    )


def test_generate_makes_what_is_asked_for(shared):
    folder, call, *_ = shared
    result = generate(call, folder, "--ipc=3,1", "--classes=7,2", "--seed=5")
    assert result.returncode == 0, result.stderr
    with np.load(folder / "made" / "distilled.npz", allow_pickle=False) as file:
        labels, images = file["labels"].argmax(-1), file["images"]
        metadata = json.loads(str(file["metadata"]))
        assert "preprocess/mean" in file.files
    assert labels.tolist() == [7, 7, 7, 2]
    assert images.shape == (4, 8, 8, 1)
    assert 0 <= images.min() and images.max() <= 1
    assert metadata["class_names"][7] == "7"
    assert (folder / "made" / "distilled.png").exists()
    refused(generate(call, folder, "--ipc=1"), "already", "another folder")
    refused(
        generate(call, folder, "--ipc=1", run="made", out="images"),
        "holds images",
    )
    # It can be tested like any distilled file.
    result = call(*flags(folder, workdir="made"), script="evaluate.py")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "more, words",
    [
        (["--ipc=0"], ["--ipc", "at least 1"]),
        (["--ipc=1", "--classes=7,eleven"], ["'eleven'", "0..9"]),
        (["--ipc=1", "--classes=7,7"], ["twice"]),
        (["--ipc=1,2,3"], ["10"]),
        (["--ipc=1000000000"], ["GiB", "--ipc"]),
    ],
)
def test_generate_refuses(shared, more, words):
    folder, call, *_ = shared
    refused(generate(call, folder, *more, out="refused"), *words)
    assert not (folder / "refused").exists()


def test_generators_that_do_not_fit_are_refused(shared, tmp_path):
    folder, call, *_ = shared
    run = folder / "run"
    refused(
        generate(call, folder, "--ipc=1", run="teachers"), "holds no generator"
    )
    damaged = tmp_path / "generator.npz"
    whole = (run / "generator" / "distilled.npz").read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    refused(
        call(f"--generator={damaged}", "--ipc=1", f"--out={tmp_path / 'out'}",
             script="generate.py"),
        "damaged",
    )  # fmt: skip
    given = {"d2m.generator": run}
    refused(
        call(workdir="classes", **given, **{"data.classes": "1,2,3"}),
        "made for the classes",
    )
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 4)
    split = rng.integers(0, 256, (40, 16, 16, 1), dtype=np.uint8), labels
    names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez(tmp_path / "large.npz", **dict(zip(names, split * 2)))
    large = {"data.source": "npz", "data.data_dir": tmp_path / "large.npz"}
    refused(
        call(workdir="size", **given, **large),
        "(8, 8, 1)",
        "(16, 16, 1)",
    )
    # A folder of pre-training that is not what its name says.
    kept = next((folder / "generators").iterdir())
    path = kept / "generator.npz"
    before = path.read_bytes()
    path.write_bytes(whole)
    try:
        refused(call(workdir="other"), "another config", str(kept))
    finally:
        path.write_bytes(before)


def test_evaluate_tests_a_run_again(shared):
    folder, call, *_ = shared
    result = call(*flags(folder), script="evaluate.py")
    assert result.returncode == 0, result.stderr
    scores = json.loads((folder / "run" / "eval.json").read_text())
    for row in ("stored/2/distilled", "stream/1/pretrained"):
        mean = f"{100 * scores[row]['convnet']['mean']:.2f} %"
        line = next(x for x in result.stdout.splitlines() if row in x)
        assert mean in line


def test_a_given_generator_needs_no_pre_training(shared):
    folder, call, *_ = shared
    result = call(
        workdir="given",
        **{"d2m.generator": folder / "run", "d2m.networks": "random"},
    )
    assert result.returncode == 0, result.stderr
    with np.load(folder / "given" / "generator" / "pretrained.npz") as file:
        ours = file["params/conv/kernel"]
    theirs = generator_of(folder / "run")["params/conv/kernel"]
    np.testing.assert_array_equal(ours, theirs)


def test_iadd_does_not_take_a_run_of_d2m(shared):
    folder, call, *_ = shared
    refused(
        call(*flags(folder), script="iadd.py"),
        "holds a run of D2M",
        "--workdir",
    )
    refused(generate(call, folder, "--ipc=1", out="run"), "another folder")
