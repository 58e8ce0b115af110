"""Runs of several processes on this machine beside runs of one.

    python experiments/benchmarks/processes.py --processes=4
    python experiments/benchmarks/processes.py --processes=2 --method=d2m
    python experiments/benchmarks/processes.py --virtual=8

The first distils the digits for a few updates by one process with so many CPU
devices, and by so many processes with one device each, and tells how far what
they made is apart, and the seconds of an update; --method is iadd, latent
(IADD in latent space) or d2m, and the last two begin with a pre-training. The
last tells whether 2, 4 .. virtual devices of one process that is pinned to one
core come to an end.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SCRIPTS = Path(__file__).parents[1]
CONFIG = SCRIPTS.parent / "configs" / "tiny.py"
FIELDS = {
    "model.width": 8,
    "model.depth": 1,
    "teacher.count": 4,
    "teacher.epochs": 3,
    "iadd.iterations": 6,
    "iadd.inner_steps": 4,
    "iadd.span": 1,
    "iadd.max_start": 2,
    "evaluate.epochs": 4,
    "evaluate.networks": 4,
    "evaluate.looks": 1,
    "evaluate.baselines": "",
    "evaluate.full_steps": 8,
    "log.every": 1,
}
GENERATOR = {
    "gan.width": 1,
    "gan.noise": 4,
    "gan.iterations": 4,
    "gan.looks": 2,
    "gan.critic_steps": 1,
    "gan.batch_size": 24,
}
METHODS = {
    "iadd": FIELDS,
    "latent": FIELDS
    | GENERATOR
    | {
        "iadd.space": "latent",
        "iadd.optimizer": "adam",
        "iadd.generator_rate": 1e-4,
    },
    "d2m": FIELDS
    | GENERATOR
    | {
        "d2m.iterations": 6,
        "d2m.per_class": 2,
        "d2m.ipcs": "1",
        "d2m.epochs": "4",
        "d2m.stream_ipc": 1,
        "evaluate.networks": 2,
    },
}
_LIMIT = 1800  # seconds

# Two sums over devices, behind products that take a while.
_PINNED = """
import sys
import jax, jax.numpy as jnp, numpy as np

def update(weights, inputs):
    def loss(weights):
        step = lambda x, _: (jnp.tanh(x @ weights), None)
        return (jax.lax.scan(step, inputs, None, length=50)[0] ** 2).sum()
    return jax.lax.pmean(jax.grad(loss)(weights), "devices")

count, size = jax.local_device_count(), int(sys.argv[1])
spread = jax.pmap(update, "devices", in_axes=(None, 0), out_axes=None)
weights = np.eye(size, dtype=np.float32)
for _ in range(2):
    weights = spread(weights, np.ones((count, size, size), np.float32))
jax.block_until_ready(weights)
"""


def main() -> None:
    """Prints the comparison that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--method", choices=METHODS, default="iadd")
    parser.add_argument("--virtual", type=int, default=0)
    asked = parser.parse_args()
    if asked.processes:
        compare(asked.processes, asked.method)
    count = 2
    while count <= asked.virtual:
        for size in (32, 256):
            pinned(count, size)
        count *= 2


def compare(count: int, method: str) -> None:
    """One process of so many devices beside so many processes of one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, processes in (("one", 1), ("many", count)):
            begin = time.perf_counter()
            distil(folder / what, method, processes, count // processes)
            log = folder / what / "run" / "metrics.jsonl"
            rows = map(json.loads, log.read_text().splitlines())
            row = [row for row in rows if "seconds" in row][-1]
            print(
                f"{processes} processes of {count // processes} devices: "
                f"{time.perf_counter() - begin:.0f} s, "
                f"an update {row['seconds']} s",
                flush=True,
            )
        one, many = (numbers(folder / what) for what in ("one", "many"))
        for name in one:
            same = one[name].tobytes() == many[name].tobytes()
            apart = np.abs(one[name] - many[name]).max()
            print(f"{name}: {'same bytes' if same else f'{apart:.1e} apart'}")


def numbers(folder: Path) -> dict[str, np.ndarray]:
    """All numbers of the states that were looked at and of the results, of a
    generator where there is one, and of all scores: {file: [n]}."""
    found = {}
    for path in sorted(folder.rglob("*.npz")):
        with np.load(path) as file:
            parts = [file[name] for name in sorted(file.files)]
        found[str(path.relative_to(folder))] = np.concatenate(
            [p.reshape(-1) for p in parts if np.issubdtype(p.dtype, np.number)]
        )
    scores = json.loads((folder / "run" / "eval.json").read_text())
    found["eval.json"] = np.array(
        [
            accuracy
            for row in scores.values()
            for score in row.values()
            for accuracy in score["accuracies"]
        ]
    )
    return found


def distil(folder: Path, method: str, processes: int, devices: int) -> None:
    """A run, by its processes; SystemExit where one fails."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [
        sys.executable,
        str(SCRIPTS / ("d2m.py" if method == "d2m" else "iadd.py")),
        f"--config={CONFIG}",
        f"--workdir={folder / 'run'}",
        f"--teachers={folder / 'teachers'}",
        f"--data={folder / 'data'}",
        f"--generators={folder / 'generators'}",
        f"--config.iadd.segments={processes * devices}",
        f"--config.d2m.groups={processes * devices}",
        *(
            f"--config.{field}={value}"
            for field, value in METHODS[method].items()
        ),
    ]
    started = []
    for process in range(processes):
        flags = [
            f"--coordinator=127.0.0.1:{port}",
            f"--processes={processes}",
            f"--process={process}",
        ]
        started.append(
            subprocess.Popen(
                command + (flags if processes > 1 else []),
                env=environment(devices),
                stdout=subprocess.DEVNULL,
            )
        )
    if any([process.wait(_LIMIT) for process in started]):
        raise SystemExit("a process failed")


def pinned(count: int, size: int) -> None:
    """So many virtual devices on core 0, with products of ``size``."""
    begin = time.perf_counter()
    try:
        found = subprocess.run(
            ["taskset", "-c", "0", sys.executable, "-c", _PINNED, str(size)],
            env=environment(count),
            timeout=_LIMIT,
        )
        told = "ends" if found.returncode == 0 else "fails"
    except subprocess.TimeoutExpired:
        told = "does not end"
    print(
        f"{count} virtual devices on one core, products of {size}: {told} "
        f"({time.perf_counter() - begin:.0f} s)",
        flush=True,
    )


def environment(devices: int) -> dict[str, str]:
    """Of a process with so many CPU devices."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }


if __name__ == "__main__":
    main()
