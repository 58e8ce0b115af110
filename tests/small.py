"""The smallest runs that pass through every stage, and how they are started."""

import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Nearly all of the tests' time goes into compiling, most of it into machine
# code better than tiny arrays need: the fusion emitters alone treble the time
# of a large gradient. XLA stops at a flag that it does not know, and later
# versions do not know this one.
QUICK = "--xla_backend_optimization_level=0"
if metadata.version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"

IADD = {
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
    "evaluate.full_steps": 21,  # an epoch of the digits: no longer training
    "log.every": 2,
    "log.checkpoint_every": 4,
}
D2M = IADD | {
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


class Scripts:
    """The scripts as commands, all of whose runs share one folder."""

    def __init__(self, folder, fields):
        self.folder, self.fields = folder, fields
        # One device.
        self.environment = os.environ | {
            "XLA_FLAGS": QUICK,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def flags(self, workdir="run", config="configs/tiny.py", **fields):
        shared = {
            name: self.folder / name
            for name in ("teachers", "data", "generators")
        }
        return [
            f"--config={ROOT / config}",
            f"--workdir={self.folder / workdir}",
            *(f"--{name}={path}" for name, path in shared.items()),
            *(
                f"--config.{name}={value}"
                for name, value in (self.fields | fields).items()
            ),
        ]

    def command(self, script, *arguments, **kwargs):
        return [
            sys.executable,
            str(ROOT / "experiments" / script),
            *(arguments or self.flags(**kwargs)),
        ]

    def start(self, script, **kwargs):
        """A process of its own."""
        return subprocess.Popen(
            self.command(script, **kwargs),
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def call(self, script, *arguments, **kwargs):
        """A finished process, with what it said."""
        return subprocess.run(
            self.command(script, *arguments, **kwargs),
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.folder,
        )


def door(name):
    """A script as a module, for a run in this process."""
    path = ROOT / "experiments" / f"{name}.py"
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(f"door_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refused(code, stderr, *words):
    """One sentence on stderr, exit code 2, no traceback."""
    assert code == 2, stderr
    lines = [line for line in stderr.splitlines() if line.startswith("error")]
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    for word in words:
        assert word in lines[0]
