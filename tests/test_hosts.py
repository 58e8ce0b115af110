"""Two processes of one run, by the script; what they may not be asked."""

import json
import os
import signal
import socket
import subprocess
import sys

import jax
import pytest
from small import IADD, QUICK, Scripts, door, refused
from test_experiments import arrays_of, finished, logged, wait_for

from ddjax import hosts
from ddjax.types import InputError

FIELDS = IADD | {
    "iadd.segments": 2,
    "iadd.iterations": 6,
    "evaluate.networks": 3,  # which two processes do not share evenly
    "evaluate.looks": 1,
    "evaluate.baselines": "",
    "evaluate.full_steps": 8,
    "log.checkpoint_every": 2,
}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def begun():
    """Processes, none of which outlives its test."""
    found = []
    yield found
    for process in found:
        process.kill()
        process.wait()


def start(begun, scripts, workdir):
    """Two processes of a run, and where their stderr goes."""
    port = free_port()
    pairs = []
    for process in range(2):
        said = scripts.folder / f"said-{process}"
        with open(said, "wb") as stderr:
            started = subprocess.Popen(
                [
                    *scripts.command("iadd.py", workdir=workdir),
                    f"--coordinator=127.0.0.1:{port}",
                    "--processes=2",
                    f"--process={process}",
                ],
                env=scripts.environment,
                cwd=scripts.folder,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        begun.append(started)
        pairs.append((started, said))
    return pairs


@pytest.mark.campaign
def test_two_processes_of_which_one_is_killed(tmp_path, begun):
    """They stop, go on, and end as one process with two devices does, to the
    byte: a sum of two does not depend on its order."""
    scripts = Scripts(tmp_path, FIELDS)
    (first, told), (second, last_word) = start(begun, scripts, "two")
    wait_for(first, logged(tmp_path, "two/metrics.jsonl", 4))
    second.send_signal(signal.SIGKILL)
    assert first.wait(60) not in (0, None)  # within a minute
    second.wait()
    again = "start all of them again with the same commands"
    assert again in told.read_text()
    assert "process 1 of 2 was killed" in last_word.read_text()
    two = tmp_path / "two"
    assert list(two.glob("checkpoints/[0-9]*"))
    assert not (two / "report.html").exists()
    for process, said in start(begun, scripts, "two"):
        assert process.wait(1200) == 0, said.read_text()

    (tmp_path / "teachers").rename(tmp_path / "of_two")
    scripts.environment["XLA_FLAGS"] = (
        f"{QUICK} --xla_force_host_platform_device_count=2"
    )
    finished(scripts.call("iadd.py", workdir="one"))
    one = tmp_path / "one"
    for name in ("distilled.npz", "initial.npz", "difference.npz"):
        assert arrays_of(two / name) == arrays_of(one / name)
    assert (two / "eval.json").read_bytes() == (one / "eval.json").read_bytes()
    for path in (tmp_path / "of_two").rglob("*.npy"):
        other = tmp_path / "teachers" / path.relative_to(tmp_path / "of_two")
        assert path.read_bytes() == other.read_bytes()
    device = json.loads((two / "config.json").read_text())["device"]
    assert device == json.loads((one / "config.json").read_text())["device"]


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    "script, flags, words",
    [
        ("iadd", ["--processes=1"], ["at least 2"]),
        ("iadd", ["--processes=two"], ["at least 2", "auto"]),
        ("iadd", ["--processes=2"], ["--coordinator=HOST:PORT"]),
        ("iadd", ["--processes=2", "--coordinator=here"], ["HOST:PORT"]),
        ("iadd", ["--processes=2", "--coordinator=a:1"], ["from 0 to 1"]),
        (
            "iadd",
            ["--processes=2", "--coordinator=a:1", "--process=2"],
            ["from 0 to 1"],
        ),
        ("iadd", ["--processes=auto", "--process=1"], ["leave out"]),
        ("iadd", ["--process=1"], ["go with --processes"]),
        (
            "iadd",
            ["--processes=2", "--coordinator=a:1", "--process=0"]
            + ["--config.minutes=3"],
            ["minutes= and --plan measure one process"],
        ),
        ("prepare", ["--processes=auto"], ["prepare.py works in one process"]),
    ],
)
def test_flags_that_do_not_go_together(
    tmp_path, monkeypatch, capsys, script, flags, words
):
    asked = Scripts(tmp_path, FIELDS).flags()
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *asked, *flags])
    module = door(script)
    many = script == "iadd"
    code = module.launch.main(
        module.run, module.__doc__, spread=many, planned=many
    )
    refused(code, capsys.readouterr().err, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "raised, words",
    [
        (ValueError("coordinator_address should be defined."), "no cluster"),
        (RuntimeError("it is full\nof words"), "did not meet.*it is full"),
    ],
)
def test_clusters_that_do_not_tell(monkeypatch, raised, words):
    def initialize(**how):
        assert "coordinator_address" not in how
        raise raised

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(InputError, match=words):
        hosts.connect("", "auto", None)


def test_a_process_that_stays_alone_says_so():
    """In a process of its own: JAX ends it."""
    program = (
        "from ddjax import hosts\n"
        "hosts._MEETING = 1\n"
        f"hosts.connect('127.0.0.1:{free_port()}', '2', 0)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        # Until the last word, too, has been said.
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert found.returncode
    last = found.stderr.splitlines()[-1]
    assert last.startswith("error: process 0 of 2 did not meet the others at")


def test_a_cluster_of_one_process_is_none(monkeypatch):
    """Nothing watches it, and nothing is said when it ends."""
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    hosts.connect("", "auto", None)
    assert hosts.count() == 1 and hosts._watcher is None
    hosts.leave(0)


def test_the_channel_between_processes_is_there():
    """It is private to JAX, which may change it in any version."""
    from jax._src.lib import _jax

    assert hosts._client() is None  # in one process
    for name in ("key_value_set", "key_value_try_get", "wait_at_barrier"):
        assert callable(getattr(_jax.DistributedRuntimeClient, name))


def test_sigterm_outside_of_an_update(capsys):
    """At once, and what handled it before does so again."""
    launch = door("iadd").launch
    before = signal.getsignal(signal.SIGTERM)

    def action():
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    assert launch.refusing(action) == 143
    assert "the same command goes on from here" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
