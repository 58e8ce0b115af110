"""Every dear piece of work beside PyTorch, in one table.

    pip install -e '.[bench]'
    python experiments/benchmarks/all.py [--quick] [--out=FILE.json]

A row a line: seconds of both sides, median (min-max) over the repeats; the
ratio of the medians, ours / PyTorch's, with the least and largest ratio of the
two runs of one turn; processor time, medians; peak memory; seconds of tracing
and compiling ours; and the share of the machine's peak: operations
(``rows.py`` says how they are counted) over the time and over what a product
of two large float32 matrices reaches in JAX here, the best of several at the
start and before each row. Other work on the machine lowers that, too.

The sides take turns in one process, so a change of the machine's speed meets
both, and who begins changes from turn to turn. Before anything is timed their
losses are compared. PyTorch is timed in both memory formats, and where it has
no second derivative to take, the faster of them is compiled too; the fastest of
a short trial stays. Compiling takes minutes, and is left out by ``--quick``.
Each row has a process of its own, and so has each side's peak memory, which is
that of the whole process, or on an accelerator that of its arrays.

Exit codes: 1 where a row failed, 2 where there is nothing to run on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import rows
from unroll import Placement

MATRIX = {"cpu": 2048, "gpu": 8192}
# Of a row's process, in seconds: no row is to hold up the others for ever.
PATIENCE = 3600


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, help="default 5; quick: 3")
    parser.add_argument("--quick", action="store_true", help="five rows")
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=rows.ROWS,
        metavar="ROW",
        help=", ".join(rows.ROWS),
    )
    parser.add_argument("--accelerator", action="store_true")
    parser.add_argument("--out", help="a JSON file for all figures")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        kind, request = args.child
        return print(json.dumps(CHILDREN[kind](json.loads(request))))
    names = args.rows or (rows.QUICK if args.quick else list(rows.ROWS))
    repeats = args.repeats or (3 if args.quick else 5)
    device = "gpu" if args.accelerator else "cpu"

    machine = ask("machine", dict(device=device))
    if "failed" in machine:
        print(f"error: {machine['failed']}", file=sys.stderr)
        return 2
    results = []
    for name in names:
        print(f"measuring {rows.ROWS[name].title} ..", file=sys.stderr)
        result = measure(name, repeats, machine, not args.quick)
        machine["peak"] = max(machine["peak"], result.pop("peak", 0))
        results.append({"row": name, "title": rows.ROWS[name].title, **result})
        if args.out:  # after every row: a long table is not lost at its end
            write(args.out, machine, results)
    print(describe(machine), table(results, machine), sep="\n\n")
    return 1 if any("failed" in result for result in results) else 0


def write(path, machine, results):
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"machine": machine, "rows": results}, file, indent=1)
        file.write("\n")


# --- The processes -----------------------------------------------------------


def ask(kind, request):
    """What a fresh process answers, or {"failed": the reason}.

    This process stays small, because a child's peak memory starts at that of
    the process that it was forked from.
    """
    command = [sys.executable, __file__, "--child", kind, json.dumps(request)]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    if request["device"] == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
    else:  # leaves memory to the other side
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {PATIENCE} s"}
    if done.returncode < 0:
        return {"failed": f"ended by signal {-done.returncode}"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        return {"failed": lines[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(name, repeats, machine, compiles):
    """All figures of a row."""
    common = dict(row=name, device=machine["device"])
    torch = not machine["no_torch"]
    turns = dict(repeats=repeats, torch=torch, compiles=compiles)
    result = ask("times", {**common, **turns})
    if "failed" in result:
        return result
    result["memory"] = {}
    for side in result["seconds"]:
        place = result["place"] if side == "torch" else None
        found = ask("memory", dict(common, side=side, place=place))
        if "failed" in found:
            return {"failed": f"memory of {side}: {found['failed']}"}
        result["memory"][side] = found["mib"]
    return result


def child_machine(request):
    """What there is to run on, and the peak of its matrix products."""
    import jax

    device = request["device"]
    if device == "gpu" and jax.default_backend() != "gpu":
        return {"failed": "--accelerator: JAX sees no GPU on this machine"}
    no_torch = None
    if not importlib.util.find_spec("torch"):
        no_torch = "PyTorch is not installed"
    elif device == "gpu":
        import torch

        if not torch.cuda.is_available():
            no_torch = "this PyTorch sees no GPU"
    return dict(
        device=device,
        name=jax.devices()[0].device_kind,
        threads=len(os.sched_getaffinity(0)),
        jax=jax.__version__,
        no_torch=no_torch,
        peak=matrix_peak(MATRIX[device]),
        matrix=MATRIX[device],
    )


def matrix_peak(side):
    """Operations a second of the best of ten products of square matrices."""
    import jax
    import jax.numpy as jnp

    square = jax.random.normal(jax.random.key(0), (side, side), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(square, square).block_until_ready()
    seconds = []
    for _ in range(10):
        begin = time.perf_counter()
        product(square, square).block_until_ready()
        seconds.append(time.perf_counter() - begin)
    return 2 * side**3 / min(seconds)


def child_times(request):
    """Both sides of a row in turns."""
    row = rows.ROWS[request["row"]]
    result = {"peak": matrix_peak(MATRIX[request["device"]])}
    compiling = watch_compiling()
    ours = row.ours()
    ours.run()
    result["compile"] = covered(compiling)
    sides, result["losses"] = {"jax": ours}, ours.losses()
    if request["torch"]:
        compiles = row.compiles and request["compiles"]
        sides["torch"], found = fastest(
            row, request["device"], result["losses"], compiles
        )
        result.update(found)
    return {**result, **take_turns(sides, row, request)}


def watch_compiling():
    """A list that grows by the (begin, end) of all that JAX compiles."""
    import jax

    spans = []

    def listen(event, duration, **_):
        if event.startswith("/jax/core/compile/"):
            now = time.perf_counter()
            spans.append((now - duration, now))

    jax.monitoring.register_event_duration_secs_listener(listen)
    return spans


def covered(spans):
    """The length of a union of spans: tracing is nested, and counts once."""
    total, reached = 0.0, -float("inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def fastest(row, device, losses, compiles):
    """The fastest of PyTorch's ways.

    Args:
      losses: ours, which PyTorch's must be.
      compiles: whether to try the compiler.

    Returns:
      (Side, what to say of it: its Placement, all trials, footnotes).
    """
    import torch

    if device == "gpu":  # as JAX does without being asked
        torch.set_float32_matmul_precision("high")
    best, kind = None, "cuda" if device == "gpu" else "cpu"
    footnotes, trials = [], {}

    def consider(place):
        nonlocal best
        side = row.theirs(place, False)
        check(losses, side.losses())  # which warms it up, too
        seconds = trials[way(place)] = trial(side.run)
        if best is None or seconds < best[0]:
            best = seconds, side, place

    for channels_last in (False, True):
        consider(Placement(channels_last, False, kind))
    if compiles:
        try:
            consider(best[2]._replace(compiled=True))
        except Exception as error:  # whatever a compiler finds wrong
            reason = (str(error).strip().splitlines() or [repr(error)])[0]
            footnotes.append(f"torch.compile failed and was left out: {reason}")
    return best[1], dict(place=best[2], trials=trials, footnotes=footnotes)


def check(ours, theirs):
    """sys.exit where two lists of losses are not the same but for rounding."""
    for a, b in zip(ours, theirs, strict=True):
        if not abs(a - b) <= rows.TOLERANCE * abs(b):
            sys.exit(f"the sides' losses differ: {ours} and {theirs}")


def trial(run):
    """Seconds of a run that has been warmed up; short ones three times."""
    seconds = []
    while not seconds or (len(seconds) < 3 and seconds[-1] < 2):
        seconds.append(timed(run)[0])
    return min(seconds)


def timed(run):
    """(seconds, seconds of processor) of a run and of what it left to do."""
    processor, begin = time.process_time(), time.perf_counter()
    run()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - begin, time.process_time() - processor


def take_turns(sides, row, request):
    seconds = {side: [] for side in sides}
    processor = {side: [] for side in sides}
    for turn in range(request["repeats"]):
        order = list(sides) if turn % 2 == 0 else list(sides)[::-1]
        for side in order:
            took, used = timed(sides[side].run)
            seconds[side].append(took)
            processor[side].append(used)
    operations = dict(zip(("jax", "torch"), row.operations))
    return dict(seconds=seconds, processor=processor, operations=operations)


def child_memory(request):
    """Peak MiB of one side, which runs twice and is alone."""
    row, gpu = rows.ROWS[request["row"]], request["device"] == "gpu"
    if request["side"] == "jax":
        from ddjax.runs import compiled

        compiled.return_memory_of_compiling()  # as every run does
        side = row.ours()
    else:
        side = row.theirs(Placement(*request["place"]), True)
    side.run()
    side.run()
    if not gpu:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    elif request["side"] == "jax":
        import jax

        peak = jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    else:
        import torch

        peak = torch.cuda.max_memory_allocated()
    return {"mib": peak / 2**20}


CHILDREN = {
    "machine": child_machine,
    "times": child_times,
    "memory": child_memory,
}


# --- The table ---------------------------------------------------------------

HEAD = (
    "row",
    "ours, s",
    "PyTorch, s",
    "ratio",
    "processor s",
    "peak MiB",
    "compile s",
    "share of peak",
    "PyTorch's way",
)


def describe(machine):
    return (
        f"{machine['name']}, {machine['threads']} threads, JAX "
        f"{machine['jax']}; peak {machine['peak'] / 1e9:.0f} GFLOP/s by "
        f"float32 products of {machine['matrix']} x {machine['matrix']}"
    )


def table(results, machine):
    """The rows in Markdown, and footnotes below them."""
    lines = [HEAD, *(cells(result, machine) for result in results)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    text = [
        "| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines
    ]
    notes = [
        "Where two figures stand, ours / PyTorch's. Ratio: of the medians "
        "(least-largest of a turn); below 1 ours is faster."
    ]
    if machine["no_torch"]:
        notes.append(f"{machine['no_torch']}: its columns are empty.")
    for result in results:
        if "failed" in result:
            notes.append(f"{result['title']}: {result['failed']}")
        notes += result.get("footnotes", [])
    return "\n".join([*text, "", *dict.fromkeys(notes)])


def cells(result, machine):
    """One row of the table as text."""
    if "failed" in result:
        return [result["title"], "failed", *[""] * (len(HEAD) - 2)]
    seconds, medians = result["seconds"], {}
    for side in seconds:
        medians[side] = statistics.median(seconds[side])
    shares = [
        f"{result['operations'][side] / medians[side] / machine['peak']:.2f}"
        for side in medians
    ]
    processor = [
        f"{statistics.median(used):.3g}"
        for used in result["processor"].values()
    ]
    memory = [f"{mib:.0f}" for mib in result["memory"].values()]
    return [
        result["title"],
        spread(seconds["jax"]),
        spread(seconds["torch"]) if "torch" in seconds else "",
        ratio(seconds) if "torch" in seconds else "",
        " / ".join(processor),
        " / ".join(memory),
        f"{result['compile']:.1f}",
        " / ".join(shares),
        way(result["place"]) if "torch" in seconds else "",
    ]


def spread(seconds):
    """Median (least-largest)."""
    middle = statistics.median(seconds)
    return f"{middle:.3g} ({min(seconds):.3g}-{max(seconds):.3g})"


def ratio(seconds):
    ours, theirs = seconds["jax"], seconds["torch"]
    pairs = [a / b for a, b in zip(ours, theirs)]
    middle = statistics.median(ours) / statistics.median(theirs)
    return f"{middle:.2f} ({min(pairs):.2f}-{max(pairs):.2f})"


def way(place):
    place = Placement(*place)
    order = "channels last" if place.channels_last else "channels first"
    return f"{order}, compiled" if place.compiled else order


if __name__ == "__main__":
    sys.exit(main())
