"""By which rule is a state selected on few held-out images? In pairs.

    python experiments/benchmarks/select_study.py --data=digits --out=runs/study
    python experiments/benchmarks/select_study.py --data=PATH --ipc=10 \
        --out=runs/study --field data.size=32 iadd.iterations=150

A seed is a whole run of ``ddjax.distill`` with its own held-out images and
teachers. What each rule selects by held-out images alone is tested on the test
images by the same networks: the best look (the earliest of equals), the latest
within one standard error of the best, and the last look. What was measured is
kept in a file per seed, so a study that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import launch
import paired

import ddjax
from ddjax import evaluate, files
from ddjax.runs import cells, prepare, scores, workdir
from ddjax.runs import iadd as iadd_run
from ddjax.settings import Settings

RULES = ("best", "latest within an error", "last")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", required=True, help="what ddjax.distill takes: digits, a path"
    )
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--looks", type=int, default=5)
    parser.add_argument("--field", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    sys.exit(launch.refusing(lambda: study(args)))


def study(args):
    """Measures what is missing, and prints the table."""
    fields = {
        "evaluate.looks": args.looks,
        "evaluate.baselines": "",
        "evaluate.full_steps": 100,
    } | dict(map(paired.field_of, args.field))
    what = f"select-{Path(args.data).stem}-ipc{args.ipc}"
    shaped_by = fields | {"data": args.data}
    kept = cells.path_of(args.out, what, shaped_by).with_suffix("")
    kept.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        path = kept / f"{seed}.json"
        if not path.exists():
            run = ddjax.distill(
                args.data,
                ipc=args.ipc,
                seed=seed,
                root=args.out,
                workdir=kept / f"run-{seed}",
                **fields,
            )
            files.write_json(path, of_run(run.path, args.out))
    report(sorted(kept.glob("*.json")))


def of_run(folder, shared):
    """{rule: test accuracy}, of one finished run."""
    settings = Settings.of(workdir.recorded(folder)["config"])
    metric = settings.evaluate.metric
    task = prepare.task(
        settings.data, settings.model, settings.seed, shared / "data"
    )
    best, looks = scores.select(folder, metric)
    late, _ = scores.latest(folder, metric)
    steps = dict(zip(RULES, (best, late, looks[-1]), strict=True))
    ((_, _, tested_on),) = scores.tests_of(task, settings.evaluate)
    tested = {}
    for step in {*steps.values()}:
        data = iadd_run.load_look(folder, step)
        tested[step] = tested_on(
            jax.random.key(settings.seed),
            evaluate.stored(data.images, data.labels),
            recipe=scores.recipe_of(settings.evaluate),
            learning_rate=data.learning_rate,
            num_networks=settings.evaluate.networks,
        )
    row = {"steps": steps, "metric": metric}
    for rule, step in steps.items():
        row[rule] = scores.by_metric(tested[step], metric).mean
    print(f"{folder}: {row}", flush=True)
    return row


def report(paths):
    """A line for each rule: mean, and the paired difference to the first."""
    rows = [json.loads(path.read_text()) for path in paths]
    for rule in RULES:
        values = [100 * row[rule] for row in rows]
        line = f"{rule:24} {sum(values) / len(values):6.2f}"
        if rule != RULES[0] and len(rows) > 1:
            pairs = [100 * (row[rule] - row[RULES[0]]) for row in rows]
            line += f"  {paired.told(pairs)}, {len(rows)} runs"
        print(line)


if __name__ == "__main__":
    main()
