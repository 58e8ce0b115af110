"""What kills, damage, full disks, company and lost rights do to a run.

    python experiments/benchmarks/faults.py --out=runs/faults

The smallest whole runs of IADD and D2M, on images that it draws itself, must
end with the same bytes whatever happens on the way, or say in one sentence
what to do. Parts (``--parts=kills,damage``):

    kills     SIGKILL at random moments of every stage, and the same command
    damage    files cut, zeroed and bit-flipped: each kind read as a run does,
              and whole runs that go on beside a damaged file
    full      a disk that is full in the midst of a write: each kind of file
              under a limit of its size, whole runs on a small tmpfs
    company   two runs in one folder, two that make the same shared files
    rights    a read-only disk, another user, a folder that moves

A part that is done is kept in OUT/<part>.json and not done again; kills go on
after the last whole trial. Mounting and other users need root and are left
out without it. Processes are forked from one that has imported everything, so
that an interrupted start costs no imports; Linux only.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "experiments"), str(Path(__file__).parent)]

IADD = {
    "data.source": "folder",
    "data.size": 8,
    "model.width": 4,
    "model.depth": 1,
    "teacher.count": 2,
    "teacher.epochs": 3,
    "teacher.augment": "none",
    "iadd.iterations": 6,
    "iadd.inner_steps": 2,
    "iadd.span": 1,
    "iadd.max_start": 2,
    "iadd.augment": "crop",
    "evaluate.epochs": 2,
    "evaluate.networks": 1,
    "evaluate.look_networks": 1,
    "evaluate.looks": 1,
    "evaluate.augment": "none",
    "evaluate.full_steps": 8,
    "evaluate.baselines": "",
    "log.every": 1,
    "log.checkpoint_every": 2,
}
D2M = IADD | {
    "gan.width": 1,
    "gan.noise": 4,
    "gan.iterations": 4,
    "gan.critic_steps": 1,
    "gan.batch_size": 10,
    "gan.looks": 1,
    "d2m.iterations": 4,
    "d2m.per_class": 2,
    "d2m.augment": "crop",
    "d2m.ipcs": "1",
    "d2m.epochs": "2",
    "d2m.stream_ipc": 1,
    "d2m.choose": "none",
}
FIELDS = {"iadd": IADD, "d2m": D2M}

# What is there when a stage has ended, in their order.
STAGES = {
    "iadd": {
        "prepare": "run/config.json",
        "teachers": "teachers/*/manifest.json",
        "iadd": "run/checkpoints/6",
        "evaluation": "run/eval.json",
        "page": "run/report.html",
    },
    "d2m": {
        "prepare": "run/config.json",
        "pre-training": "generators/*/generator.npz",
        "teachers": "teachers/*/manifest.json",
        "its quality": "generators/*/report.html",
        "d2m": "run/checkpoints/4",
        "evaluation": "run/eval.json",
        "page": "run/report.html",
    },
}
ENDS = (
    "run/distilled.npz",
    "run/initial.npz",
    "run/difference.npz",
    "run/samples.npz",
    "run/eval.json",
    "run/generator/*.npz",
    "generators/*/generator.npz",
    "generators/*/quality.json",
    "teachers/*/*.npy",
    "data/*/*.npy",
)


# Processes -------------------------------------------------------------------


class Child(NamedTuple):
    """A run in a process of its own.

    Attributes:
      pid: of the process.
      said: the file of its output.
    """

    pid: int
    said: Path

    def ended(self) -> bool:
        """Whether it has, without waiting for it."""
        info = os.waitid(
            os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
        )
        return info is not None

    def wait(self) -> tuple[int, str]:
        """(exit code, output); minus the signal where one ended it."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code, self.said.read_text(errors="replace")

    def kill(self) -> bool:
        """Whether it was still running."""
        running = not self.ended()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return running


class Lab(NamedTuple):
    """Where runs are made.

    Attributes:
      out: results, images, compiled programs.
      doors: the scripts as modules.
    """

    out: Path
    doors: dict[str, Any]

    def arguments(self, method: str, root: Path, run: Path | None) -> list[str]:
        shared = ("teachers", "data", "generators")
        return [
            f"experiments/{method}.py",
            f"--config={ROOT / 'configs/tiny.py'}",
            f"--workdir={run or root / 'run'}",
            *(f"--{name}={root / name}" for name in shared),
            f"--config.data.data_dir={self.out / 'images'}",
            *(f"--config.{k}={v}" for k, v in FIELDS[method].items()),
        ]

    def start(
        self,
        method: str,
        root: Path,
        *,
        run: Path | None = None,
        said: Path | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> Child:
        """The command of a method, whose shared folders lie in ``root``.

        Args:
          method: "iadd" or "d2m".
          root: of the run and all that it shares.
          run: its folder; in the root by default.
          said: for its output; beside the root by default.
          before: called first in the process.
        """
        root.mkdir(parents=True, exist_ok=True)
        said = said or root.with_name(f"{root.name}.txt")
        pid = os.fork()
        if pid:
            return Child(pid, said)
        code = 1
        try:
            file = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.argv = self.arguments(method, root, run)
            before()
            door = self.doors[method]
            code = door.launch.main(door.run, door.__doc__, planned=True)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def whole(self, method: str, root: Path, **how: Any) -> tuple[int, str]:
        return self.start(method, root, **how).wait()

    def apart(self, work: Callable[[], Any]) -> Any:
        """Calls something that needs JAX in a process of its own."""
        path = self.out / "apart.json"
        path.unlink(missing_ok=True)
        pid = os.fork()
        if not pid:
            try:
                path.write_text(json.dumps(work()))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(0)
        os.waitpid(pid, 0)
        return json.loads(path.read_text())


def open_lab(out: Path) -> Lab:
    """Images, and everything imported but no device touched."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(400):
        label = number % 4
        path = out / "images" / f"class{label}" / f"{number:04d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 128, (8, 8), np.uint8)
            pixels[label : label + 3, label : label + 3] += 127
            Image.fromarray(pixels).save(path)
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(out / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "OPENBLAS_NUM_THREADS": "1",
    }
    doors = {}
    for method in FIELDS:
        path = ROOT / "experiments" / f"{method}.py"
        spec = importlib.util.spec_from_file_location(f"door_{method}", path)
        doors[method] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(doors[method])
    return Lab(out, doors)


def ends(root: Path) -> dict[str, bytes]:
    """What must be the same: every result of the runs in a folder."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for pattern in ENDS
        for path in sorted(root.glob(pattern))
    }


def undisturbed(lab: Lab, method: str) -> dict[str, bytes]:
    """The ends of a run that nothing happened to."""
    root = lab.out / f"whole-{method}"
    if not (root / "run" / "report.html").exists():
        code, said = lab.whole(method, root)
        if code:
            raise SystemExit(f"the undisturbed run of {method} failed:\n{said}")
    return ends(root)


def judged(code: int, said: str, root: Path, expected: dict[str, bytes]) -> str:
    """What came of a run: "same", "refused", or what must not be."""
    if "Traceback" in said:
        return f"TRACEBACK: {said.strip().splitlines()[-1]}"
    if code == 2:
        errors = [x for x in said.splitlines() if x.startswith("error: ")]
        return "refused" if len(errors) == 1 else f"WRONG: {said[-300:]}"
    if code:
        return f"WRONG: exit code {code}: {said[-300:]}"
    found = ends(root)
    other = [name for name in expected if found.get(name) != expected[name]]
    return f"WRONG: other bytes in {', '.join(other)}" if other else "same"


def fresh(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    return path


# Kills -----------------------------------------------------------------------


def kills(lab: Lab, seed: int, trials: int) -> list[list[str]]:
    """Rows (method, stage at the kill, what came of the trial)."""
    path = lab.out / "kills-so-far.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    done = {(row[0], row[1]) for row in rows}
    for method in FIELDS:
        expected = undisturbed(lab, method)
        usual = None
        for trial in range(trials):
            if (method, trial) in done:
                continue
            usual = usual or _paces(lab, method)
            rng = np.random.default_rng([seed, trial])
            root = fresh(lab.out / f"killed-{method}")
            struck = [
                _struck(lab, method, root, stage, usual, rng)
                for stage in STAGES[method]
            ]
            code, said = lab.whole(method, root)
            result = judged(code, said, root, expected)
            rows += [[method, trial, s, result] for s in struck if s]
            path.write_text(json.dumps(rows))
            print(f"{method} {trial}: killed in {struck}: {result}", flush=True)
    return [[method, stage, result] for method, _, stage, result in rows]


def _reached(method: str, root: Path) -> int:
    """The number of stages that have ended."""
    count = 0
    for number, pattern in enumerate(STAGES[method].values(), 1):
        if any(root.glob(pattern)):
            count = number
    return count


def _paces(lab: Lab, method: str) -> dict[str, tuple[float, float]]:
    """{stage: (seconds from the start to it, seconds that it takes)}, with
    compiled programs at hand."""
    root = fresh(lab.out / f"paced-{method}")
    begin, child = time.monotonic(), lab.start(method, root)
    times = [0.0]
    while not child.ended():
        while len(times) <= _reached(method, root):
            times.append(time.monotonic() - begin)
        time.sleep(0.002)
    child.wait()
    times += [time.monotonic() - begin] * (len(STAGES[method]) + 1 - len(times))
    return {
        stage: (times[i], times[i + 1] - times[i])
        for i, stage in enumerate(STAGES[method])
    }


def _struck(lab, method, root, stage, usual, rng) -> str:
    """Starts a run, kills it in a stage, and tells in which; "" where it had
    ended before."""
    names = list(STAGES[method])
    number = names.index(stage)
    resumed = number and _reached(method, root) >= number
    child = lab.start(method, root)
    while not child.ended() and _reached(method, root) < number:
        time.sleep(0.002)
    # A run that goes on comes by the data first, whatever was done before.
    start = usual["prepare"][1] if resumed else 0.0
    time.sleep(start + rng.uniform(0, usual[stage][1]))
    reached = _reached(method, root)
    if not child.kill():
        return ""
    return names[min(reached, len(names) - 1)]


# Damage ----------------------------------------------------------------------


def _in_kinds(what: str, out: Path, cases: int, seed: int) -> list[list[str]]:
    import fault_kinds

    rows = []
    for number, (name, kind) in enumerate(fault_kinds.KINDS.items()):
        rng = np.random.default_rng([seed, number])
        work = getattr(fault_kinds, what)
        for how, result in work(kind, out / "kinds", cases, rng):
            rows.append([name, how, result])
    return rows


def damage(lab: Lab, seed: int, cases: int, runs: int) -> list[list[str]]:
    """Rows (kind of file, what was done, what came of it)."""
    import fault_kinds

    rows = lab.apart(lambda: _in_kinds("damaged", lab.out, cases, seed))
    rng = np.random.default_rng([seed, 99])
    for method in FIELDS:
        expected = undisturbed(lab, method)
        stopped = _stopped(lab, method)
        files = [
            path.relative_to(stopped)
            for path in sorted(stopped.rglob("*"))
            if path.is_file() and not path.name.endswith(".lock")
        ]
        for case in range(runs):
            root = fresh(lab.out / f"damaged-{method}")
            shutil.copytree(stopped, root)
            path = root / files[int(rng.integers(len(files)))]
            how = fault_kinds.damage(path, fault_kinds.DAMAGE[case % 3], rng)
            result = judged(*lab.whole(method, root), root, expected)
            rows.append([f"whole runs of {method}", how, result])
            print(*rows[-1], flush=True)
    return rows


def _stopped(lab: Lab, method: str) -> Path:
    """The folder of a run that was killed after its first checkpoint."""
    root = fresh(lab.out / f"stopped-{method}")
    child = lab.start(method, root)
    while not child.ended() and not any(
        path.name.isdecimal() for path in root.glob("run/checkpoints/*")
    ):
        time.sleep(0.002)
    if not child.kill():
        raise SystemExit(f"{method} ended before its first checkpoint")
    return root


# Full disks ------------------------------------------------------------------


def _mount(*arguments: Any) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def _unmount(path: Path) -> None:
    subprocess.run(["umount", str(path)], check=True)


def full(lab: Lab, seed: int, cases: int, runs: int) -> list[list[str]]:
    """Rows (kind of file, room, what came of it)."""
    rows = lab.apart(lambda: _in_kinds("full", lab.out, cases, seed))
    if os.geteuid():
        return [*rows, ["whole runs", "", "left out: tmpfs needs root"]]
    rng = np.random.default_rng([seed, 98])
    for method in FIELDS:
        expected = undisturbed(lab, method)
        taken = sum(
            -(-path.stat().st_size // 4096) * 4
            for path in (lab.out / f"whole-{method}").rglob("*")
        )
        for _ in range(runs):
            room = int(taken * rng.uniform(0.02, 0.98))
            disk = fresh(lab.out / "disk")
            disk.mkdir()
            _mount("-t", "tmpfs", "-o", f"size={room}k", "tmpfs", disk)
            try:
                result = _on_small_disk(lab, method, disk / "root", expected)
            finally:
                _unmount(disk)
            rows.append([f"whole runs of {method}", f"{room} KiB", result])
            print(*rows[-1], flush=True)
    return rows


def _on_small_disk(lab, method, root, expected) -> str:
    outside = lab.out / "said.txt"
    code, said = lab.whole(method, root, said=outside)
    first = judged(code, said, root, expected)
    if first != "refused":
        return "fitted" if first == "same" else first
    if "the disk is full" not in said:
        return f"WRONG: {said[-300:]}"
    _mount("-o", "remount,size=1g", root.parent)
    code, said = lab.whole(method, root, said=outside)
    result = judged(code, said, root, expected)
    return (
        "told, then the same" if result == "same" else f"WRONG: {said[-300:]}"
    )


# Company ---------------------------------------------------------------------


def company(lab: Lab) -> list[list[str]]:
    """Rows (method, what two runs share, what came of it)."""
    rows = []
    for method in FIELDS:
        expected = undisturbed(lab, method)
        root = fresh(lab.out / "company")
        first = lab.start(method, root)
        while not first.ended() and not (root / "run/config.json").exists():
            time.sleep(0.01)
        code, said = lab.whole(method, root, said=lab.out / "second.txt")
        second = "refused" if code == 2 and "another process" in said else said
        result = judged(*first.wait(), root, expected)
        rows.append([method, "one folder", f"second {second}, first {result}"])

        root = fresh(lab.out / "company")
        pair = [
            lab.start(
                method,
                root,
                run=root / name / "run",
                said=lab.out / f"{name}.txt",
            )
            for name in ("a", "b")
        ]
        told = [child.wait() for child in pair]
        waited = sum("waiting for it" in said for _, said in told)
        results = []
        for (code, said), name in zip(told, ("a", "b")):
            for path in root.glob("*"):
                if path.name not in ("a", "b"):
                    link = root / name / path.name
                    link.symlink_to(path)
            results.append(judged(code, said, root / name, expected))
        rows.append(
            [
                method,
                "teachers" if method == "iadd" else "generator, teachers",
                f"{waited} waited, {results[0]} and {results[1]}",
            ]
        )
    return rows


# Rights ----------------------------------------------------------------------

_NOBODY = 65534


def rights(lab: Lab) -> list[list[str]]:
    """Rows (method, what happened, what came of it)."""
    rows = []
    for method in FIELDS:
        expected = undisturbed(lab, method)
        stopped = _stopped(lab, method)
        root = fresh(lab.out / "moved" / "before")
        shutil.copytree(stopped, root)
        moved = fresh(lab.out / "moved" / "after")
        root.rename(moved)
        result = judged(*lab.whole(method, moved), moved, expected)
        rows.append([method, "moved, then the same command there", result])
        if os.geteuid():
            rows.append([method, "no rights", "left out: needs root to take"])
            continue
        outside = lab.out / "said.txt"
        disk = fresh(lab.out / "disk")
        disk.mkdir()
        _mount("-t", "tmpfs", "tmpfs", disk)
        try:
            root = disk / "root"
            shutil.copytree(stopped, root)
            _mount("-o", "remount,ro", disk)
            code, said = lab.whole(method, root, said=outside)
            first = judged(code, said, root, expected)
            _mount("-o", "remount,rw", disk)
            code, said = lab.whole(method, root, said=outside)
            then = judged(code, said, root, expected)
            rows.append([method, "read-only disk", f"{first}, then {then}"])
            _mount("-o", "remount,ro", disk)
            code, said = lab.whole(method, root, said=outside)
            told = "this run is complete" in said and code == 0
            result = "told" if told else f"WRONG: {said[-300:]}"
            rows.append([method, "a finished run, read-only", result])
        finally:
            _unmount(disk)
        root = fresh(lab.out / "moved" / "others")
        shutil.copytree(stopped, root)
        outside.touch()
        outside.chmod(0o666)
        code, said = lab.whole(
            method, root, said=outside, before=lambda: os.setuid(_NOBODY)
        )
        result = judged(code, said, root, expected)
        rows.append([method, "a folder of another user", result])
    return rows


# The table -------------------------------------------------------------------


def table(parts: dict[str, list[list[str]]]) -> Iterator[str]:
    """A line for each kind of thing that happened, with counts."""
    for part, rows in parts.items():
        yield f"{part}: {len(rows)}"
        counted: dict[str, collections.Counter[str]] = {}
        for row in rows:
            key = row[0] if part in ("damage", "full") else ", ".join(row[:2])
            counted.setdefault(key, collections.Counter())[row[-1]] += 1
        for key, results in counted.items():
            told = ", ".join(f"{n} {what}" for what, n in results.items())
            yield f"  {key:32} {told}"


def failed(parts: dict[str, list[list[str]]]) -> list[list[str]]:
    """Rows of what must not be."""
    return [
        row
        for rows in parts.values()
        for row in rows
        if "WRONG" in row[-1] or "TRACEBACK" in row[-1]
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Does the parts that are still to be done; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default="kills,damage,full,company,rights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=5, help="of kills")
    parser.add_argument("--cases", type=int, default=45, help="of each file")
    parser.add_argument("--runs", type=int, default=4, help="whole ones")
    args = parser.parse_args(argv)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    lab = open_lab(args.out)
    work = {
        "kills": lambda: kills(lab, args.seed, args.trials),
        "damage": lambda: damage(lab, args.seed, args.cases, args.runs),
        "full": lambda: full(lab, args.seed, args.cases // 4, args.runs),
        "company": lambda: company(lab),
        "rights": lambda: rights(lab),
    }
    parts = {}
    for part in args.parts.split(","):
        path = args.out / f"{part}.json"
        if not path.exists():
            path.write_text(json.dumps(work[part]()))
        parts[part] = json.loads(path.read_text())
    print(*table(parts), sep="\n")
    return 1 if failed(parts) else 0


if __name__ == "__main__":
    sys.exit(main())
