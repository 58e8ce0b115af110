"""The scripts as a user runs them: whole runs, kills, doors and refusals."""

import json
import signal
import sys
import time

import numpy as np
import pytest
from small import D2M, IADD, ROOT, Scripts, door, refused

# Of ml_collections, which loads a config file so.
pytestmark = pytest.mark.filterwarnings(
    "ignore:the load_module:DeprecationWarning"
)


def wait_for(process, found):
    """Until something is there, or the process has ended."""
    while process.poll() is None and not found():
        time.sleep(0.002)


def kill_when(process, found):
    wait_for(process, found)
    process.send_signal(signal.SIGKILL)
    process.wait()


def logged(folder, pattern, step):
    return lambda: any(
        f'"step": {step},' in path.read_text() for path in folder.glob(pattern)
    )


def arrays_of(path):
    """All arrays but the metadata, which tells the command, and the checksum
    over them."""
    with np.load(path, allow_pickle=False) as file:
        return {
            name: file[name].tobytes()
            for name in file.files
            if name not in ("metadata", "checksum")
        }


def finished(process):
    assert process.returncode == 0, process.stderr
    return process


# IADD ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def iadd(tmp_path_factory):
    """A folder with one finished run in it."""
    scripts = Scripts(tmp_path_factory.mktemp("iadd"), IADD)
    finished(scripts.call("iadd.py"))
    return scripts


@pytest.mark.campaign
def test_a_killed_run_ends_the_same(iadd):
    """SIGKILL between two checkpoints; the same command goes on."""
    killed = iadd.folder / "killed"
    kill_when(
        iadd.start("iadd.py", workdir="killed"),
        logged(iadd.folder, "killed/metrics.jsonl", 6),
    )
    assert not (killed / "report.html").exists()
    again = finished(iadd.call("iadd.py", workdir="killed"))
    assert "going on from the checkpoint of update 4" in again.stdout
    run = iadd.folder / "run"
    for name in ("distilled.npz", "initial.npz", "difference.npz"):
        assert arrays_of(killed / name) == arrays_of(run / name)
    assert (killed / "eval.json").read_bytes() == (
        run / "eval.json"
    ).read_bytes()
    steps = [
        [json.loads(line)["step"] for line in path.read_text().splitlines()]
        for path in (killed / "metrics.jsonl", run / "metrics.jsonl")
    ]
    assert steps[0] == steps[1] == sorted(steps[0])


@pytest.mark.campaign
def test_a_killed_run_without_a_checkpoint_frees_its_folder(iadd):
    """Another config may take it; what was left is gone."""
    early = iadd.folder / "early"
    process = iadd.start(
        "iadd.py", workdir="early", **{"log.checkpoint_every": 12}
    )
    kill_when(process, logged(iadd.folder, "early/metrics.jsonl", 2))
    assert (early / "config.json").exists()
    other = iadd.call("iadd.py", workdir="early", **{"iadd.image_step": 1e30})
    refused(other.returncode, other.stderr, "iadd.image_step")
    assert not early.exists()


# D2M -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def d2m(tmp_path_factory):
    """A folder with one finished run in it."""
    # One test of few: every kind of them compiles anew in every process.
    fewer = {
        "d2m.ipcs": "1",
        "d2m.choose": "none",
        "evaluate.baselines": "",
        "evaluate.networks": 1,
    }
    scripts = Scripts(tmp_path_factory.mktemp("d2m"), D2M | fewer)
    finished(scripts.call("d2m.py"))
    return scripts


@pytest.mark.campaign
def test_a_killed_run_of_d2m_ends_the_same(d2m):
    """SIGKILL in pre-training and in distillation; the command goes on."""
    folder = d2m.folder
    other = {"workdir": "killed"}
    generators = folder / "generators"
    generators.rename(folder / "before")
    try:
        kill_when(
            d2m.start("d2m.py", **other),
            logged(folder, "generators/*/metrics.jsonl", 4),
        )
        assert not list(folder.glob("generators/*/report.html"))
        kill_when(
            d2m.start("d2m.py", **other),
            logged(folder, "killed/metrics.jsonl", 4),
        )
        assert list(folder.glob("generators/*/report.html"))
        assert not (folder / "killed" / "report.html").exists()
        finished(d2m.call("d2m.py", **other))
    finally:
        for path in generators.glob("*"):
            path.rename(folder / "again")
        generators.rmdir()
        (folder / "before").rename(generators)
    (pretrained,) = generators.iterdir()
    assert arrays_of(folder / "again" / "generator.npz") == arrays_of(
        pretrained / "generator.npz"
    )
    inside = "generator/distilled.npz"
    assert arrays_of(folder / "killed" / inside) == arrays_of(
        folder / "run" / inside
    )
    assert (folder / "killed" / "eval.json").read_bytes() == (
        folder / "run" / "eval.json"
    ).read_bytes()


@pytest.mark.campaign
def test_generate_as_a_command(d2m):
    def generate(*more):
        return d2m.call(
            "generate.py",
            f"--generator={d2m.folder / 'run'}",
            f"--out={d2m.folder / 'made'}",
            *more,
        )

    made = finished(generate("--ipc=3,1", "--classes=7,2", "--seed=5"))
    assert "4 images of 2 classes" in made.stdout
    assert (d2m.folder / "made" / "distilled.png").exists()
    again = generate("--ipc=1")
    refused(again.returncode, again.stderr, "already", "another folder")


# Doors -----------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys, iadd):
    """A script in this process: (exit code, stdout, stderr)."""

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"experiments/{name}.py", *arguments])
        monkeypatch.chdir(iadd.folder)
        script = door(name)
        code = script.launch.main(
            script.run, script.__doc__, tests=name in ("evaluate", "nas")
        )
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            ["--config.iadd.ipcc=1"],
            ["unknown config field iadd.ipcc: did you mean iadd.ipc?"],
        ),
        (["--config.qqq.qqq=1"], ["unknown config field qqq.qqq (--help"]),
        (["--config.iadd.ipc=many"], ["many"]),
        (["--config.iadd.ipc=0"], ["iadd.ipc must be at least 1"]),
        (["--config.iadd.augment=blur"], ["blur", "crop"]),
        (["unexpected"], ["unexpected"]),
        (["--confg=3"], ["confg"]),
    ],
)
def test_impossible_flags_are_refused(iadd, command, changes, words):
    code, _, err = command("iadd", *iadd.flags(workdir="refused"), *changes)
    refused(code, err, *words)
    assert not (iadd.folder / "refused").exists()


def test_config_files_that_are_none(command, tmp_path):
    code, _, err = command("iadd")
    refused(code, err, "--config=configs/tiny.py")
    code, _, err = command("iadd", "--config=nowhere.py")
    refused(code, err, "nowhere.py")
    tiny = ROOT / "configs" / "tiny.py"
    code, _, err = command("iadd", f"--config={tiny}:minutes=3")
    refused(code, err, "nothing behind the colon")
    sys.modules.pop("config_config", None)
    for name, text, said in (
        ("a.py", "x = 3", "no function get_config"),
        ("b.py", "def get_config(:", "cannot load"),
        ("c.py", "def get_config():\n    return {'seed': 1}", "common.base"),
        ("d.py", "def get_config():\n    return {}['b']", "bad flag: "),
    ):
        (tmp_path / name).write_text(text)
        # Within one process the next config file would find what the last
        # one defined.
        sys.modules.pop("config_config", None)
        code, _, err = command("iadd", f"--config={tmp_path / name}")
        refused(code, err, said)


@pytest.mark.parametrize(
    "name", ["iadd", "d2m", "gan", "teachers", "prepare", "evaluate"]
)
def test_help_lists_the_fields(command, name):
    code, out, _ = command(name, "--help")
    assert code == 0
    assert f"experiments/{name}.py --config=configs/" in out
    assert "iadd.ipc=1" in out and "distilled images per class" in out


def test_the_other_doors(iadd, command):
    code, out, err = command("teachers", *iadd.flags())
    assert code == 0, err
    assert "2 teachers in" in out
    code, out, err = command("prepare", *iadd.flags(workdir="page"))
    assert code == 0, err
    assert "10 classes of 8 x 8 x 1 images" in out
    assert (iadd.folder / "page" / "data.html").exists()
    code, out, err = command("evaluate", *iadd.flags(workdir="nowhere"))
    refused(code, err, "no distilled file")
    distilled = f"--distilled={iadd.folder / 'run'}"
    code, out, err = command(
        "evaluate",
        *iadd.flags(workdir="matrix"),
        distilled,
        "--config.evaluate.models=convnet,lenet",
    )
    refused(code, err, "a LeNet needs 12 pixels", "evaluate.resize")
    assert not (iadd.folder / "matrix").exists()
    code, out, err = command("nas", *iadd.flags(workdir="search"))
    refused(code, err, "add --distilled=PATH")
    code, out, err = command(
        "nas",
        *iadd.flags(workdir="search"),
        distilled,
        "--config.nas.depths=4",
        "--config.nas.poolings=max",
    )
    refused(code, err, "none of the 60 networks", "nas.depths")
    assert not (iadd.folder / "search").exists()
    code, out, err = command("teachers", *iadd.flags(), distilled)
    refused(code, err, "experiments/evaluate.py")


def made_again(folder, title, capsys):
    """A page as the door of pages makes it is the one that the run made."""
    before = (folder / "report.html").read_bytes()
    assert door("report").main([f"--workdir={folder}"]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert (folder / "report.html").read_bytes() == before
    assert f"<title>{title}" in before.decode()


@pytest.mark.campaign
def test_the_door_of_pages_of_generators(d2m, capsys):
    (pretraining,) = (d2m.folder / "generators").iterdir()
    made_again(d2m.folder / "run", "Distillation report", capsys)
    made_again(pretraining, "Pre-training report", capsys)


def test_the_door_of_pages(iadd, capsys):
    made_again(iadd.folder / "run", "Distillation report", capsys)
    code = door("report").main([f"--workdir={iadd.folder / 'nowhere'}"])
    captured = capsys.readouterr()
    assert captured.out == ""
    refused(code, captured.err, "there is no run folder")


def test_scripts_are_doors():
    """None imports a sibling but launch, none is long."""
    experiments = door("iadd").launch.ROOT / "experiments"
    scripts = {path.stem: path.read_text() for path in experiments.glob("*.py")}
    assert len(scripts) > 8
    for name, text in scripts.items():
        for sibling in scripts.keys() - {"launch"}:
            assert f"\nimport {sibling}" not in text, name
        assert name == "launch" or text.count("\n") <= 80, name


def test_the_library_knows_no_command_line():
    library = door("iadd").launch.ROOT / "ddjax"
    for path in library.rglob("*.py"):
        text = path.read_text()
        for package in ("absl", "ml_collections", "configs", "experiments"):
            assert f"import {package}" not in text, path
            assert f"from {package}" not in text, path
