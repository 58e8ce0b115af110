"""Which outer optimiser needs no tuning? SGD beside candidates, in pairs.

    python experiments/benchmarks/outer.py --data=digits --out=runs/outer
    python experiments/benchmarks/outer.py --data=cifar10 --ipc=10 \
        --data_dir=FOLDER_OF_TFDS --out=runs/outer
    python experiments/benchmarks/outer.py --data=folder --ipc=10 \
        --data_dir=FOLDER_OF_IMAGES --out=runs/outer \
        --candidates "by hand, all of it" "own sets' recipe" \
        --against "by hand, all of it" --field model.width=16 teacher.count=5

A pair shares everything but the optimiser: teachers, initial images, segments,
batches, augmentation, evaluation networks; whitened and flat ones have
teachers of their own, who saw whitened images or were led to flat minima.
SGD's steps are those that were found by hand for the set; the candidates have
the same numbers on all sets. "own sets' recipe" is what ``--data=folder`` has
by itself, whole. A run that leaves its bounds counts with the
accuracy of the images it started from, and is marked. The last state of each
run is scored, by held-out and by test images; settings are to be chosen by the
first. What was measured is kept in a file per candidate and seed, so a study
that was stopped goes on; the table is printed from all that is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import launch
import paired

from configs import cifar10, common, folder, tiny
from ddjax import evaluate, files, iadd, training
from ddjax.data import preprocess
from ddjax.runs import cells, loop, prepare, scores, teachers
from ddjax.runs import iadd as iadd_run
from ddjax.runs.workdir import Shared
from ddjax.types import InputError

ADAM = {"iadd.optimizer": "adam"}
FREE = ADAM | {"iadd.final_rate": 0.1, "iadd.clip": 2.0}
# Before there was one recipe for all sets: SGD from random real images,
# unbounded, towards teachers who count every image the same.
HAND = {
    "iadd.optimizer": "sgd",
    "iadd.final_rate": 1.0,
    "iadd.clip": 0.0,
    "iadd.bound": "none",
    "iadd.initial": "random",
    "teacher.class_weights": "none",
}
CANDIDATES = {
    "sgd, by hand": {"iadd.optimizer": "sgd"},
    "by hand, all of it": HAND,
    "own sets' recipe": {},
    "adam": ADAM,
    "adam, cosine": ADAM | {"iadd.final_rate": 0.1},
    "adam, cosine, clip": FREE,
    "adam 0.03, cosine, clip": FREE | {"iadd.image_rate": 0.03},
    "adam, cosine, clip, clamp": FREE | {"iadd.bound": "clamp"},
    "adam, cosine, clip, near": FREE | {"iadd.bound": "near"},
    "adam, cosine, clip, soft": FREE | {"iadd.bound": "soft"},
    "the same, teachers' labels": FREE | {"iadd.labels": "teachers"},
    "the same, labels learned": FREE
    | {"iadd.labels": "teachers", "iadd.label_step": 1.0},
    "the same, two segments": FREE | {"iadd.segments": 2},
    "the same, flat teachers": FREE | {"teacher.flatness": 0.05},
    "the same, herding": FREE | {"iadd.initial": "herding"},
    "the same, window widens": FREE | {"iadd.widen": 0.5},
    "the same, nearest step": FREE | {"iadd.match": "nearest"},
    "the same, average": FREE | {"iadd.average": 0.99},
    "the same, high loss": FREE | {"iadd.importance.form": "high_loss"},
    "whitened": FREE | {"data.preprocess": "zca", "iadd.bound": "none"},
    "whitened, near": FREE | {"data.preprocess": "zca", "iadd.bound": "near"},
}
_EVALUATION = 400  # folded into the seed's key


def settings_of(args):
    """What a study starts from; teachers and data are of seed 0."""
    if args.data == "digits":
        config = tiny.get_config()
        config.iadd.ipc = args.ipc
        if args.ipc > 1:
            config.iadd.batch_size = 50
            config.evaluate.epochs = 150
    elif args.data == "cifar10":
        config = cifar10.get_config(f"ipc={args.ipc},size=small")
        config.data.data_dir = args.data_dir
    else:
        config = folder.get_config(f"{args.data_dir},ipc={args.ipc}")
    if args.iterations:
        config.iadd.iterations = args.iterations
    if args.preprocess:
        config.data.preprocess = args.preprocess
    common.change(config, dict(map(paired.field_of, args.field)))
    return common.settings_of(config)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", choices=("digits", "cifar10", "folder"), required=True
    )
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--preprocess", choices=("standardise", "zca"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=0)
    parser.add_argument("--field", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES)
    )
    parser.add_argument("--against", choices=CANDIDATES, default="sgd, by hand")
    parser.add_argument("--shared", type=Path, default=Path("runs"))
    args = parser.parse_args()
    sys.exit(launch.refusing(lambda: study(args)))


def study(args):
    """Measures what is missing, and prints the table."""
    shared = Shared(args.shared / "teachers", args.shared / "data")
    settings = settings_of(args)
    what = f"{args.data}-ipc{args.ipc}"
    kept = cells.path_of(args.out, what, settings.flat()).with_suffix("")
    kept.mkdir(parents=True, exist_ok=True)

    @functools.cache
    def made(data, teacher):
        part = dataclasses.replace(settings, data=data, teacher=teacher)
        task = prepare.task(data, part.model, 0, shared.data)
        return task, teachers.train(part, task, shared.teachers)

    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in args.candidates:
            path = kept / f"{name} {seed}.json"
            if path.exists():
                continue
            begin = time.perf_counter()
            chosen = settings.changed(CANDIDATES[name] | {"seed": seed})
            row = one(chosen, *made(chosen.data, chosen.teacher))
            row["seconds"] = round(time.perf_counter() - begin, 1)
            files.write_json(path, row)
            print(f"{path.stem}: {row}", flush=True)
    report(kept, settings.evaluate.metric, args.against)


def one(settings, task, store):
    """The scores of one candidate with one seed."""
    part = iadd_run.in_input_units(settings.iadd, task)
    initial = iadd_run.choose_initial(settings, task)
    initial = iadd_run.picked(settings, initial, task, store)
    initial = iadd_run.with_labels(settings, initial, task, store)
    key = jax.random.key(settings.seed)
    update = functools.partial(
        iadd.update,
        apply_fn=training.apply_fn_of(task.module),
        settings=part,
        project=iadd_run.within_bounds(part, task),
    )
    segment_key = jax.random.fold_in(key, 1)
    begun = iadd.init_state(
        jax.random.fold_in(key, 2), initial, store.snapshot(0, 0), part
    )
    stopped = ""
    try:
        state = loop.run(
            begun,
            name="outer",
            last=part.iterations,
            draw=lambda step: iadd_run.draw_segments(
                part, store, jax.random.fold_in(segment_key, step), step
            ),
            update=jax.jit(update),
            guard=functools.partial(iadd_run.guard, part),
        )
    except InputError as error:
        state, stopped = begun, str(error)
    found = iadd.distilled(state, part)
    pixels = preprocess.invert(task.preprocessing, found.images)
    row = {
        "stopped": stopped,
        "learning_rate": float(found.learning_rate),
        "outside": float(((pixels < 0) | (pixels > 1)).mean()),
    }
    ((_, _, tested),) = scores.tests_of(task, settings.evaluate)
    for where, score in (("held_out", scores.held_out(task)), ("test", tested)):
        result = score(
            jax.random.fold_in(key, _EVALUATION),
            evaluate.stored(found.images, found.labels),
            recipe=scores.recipe_of(settings.evaluate),
            learning_rate=found.learning_rate,
            num_networks=settings.evaluate.networks,
        )
        row[where] = {
            "accuracy": result.mean,
            "balanced_accuracy": evaluate.balanced(result).mean,
        }
    return row


def report(kept, metric, against):
    """A line for each candidate: means, and differences to one of them."""
    found = {name: {} for name in CANDIDATES}
    for path in kept.glob("*.json"):
        name, _, seed = path.stem.rpartition(" ")
        if name in found and seed.isdecimal():
            found[name][int(seed)] = json.loads(path.read_text())
    found = {name: rows for name, rows in found.items() if rows}
    for where in ("held_out", "test"):
        print(f"{kept.name}, {where}, {metric}")
        for name, rows in found.items():
            values = {s: 100 * row[where][metric] for s, row in rows.items()}
            stopped = sum(bool(row["stopped"]) for row in rows.values())
            outside = [row.get("outside", 0) for row in rows.values()]
            line = (
                f"  {name:26} {sum(values.values()) / len(values):6.2f} "
                f"({len(values)} seeds, {stopped} stopped, "
                f"{100 * sum(outside) / len(outside):.0f} % of values outside)"
            )
            first = found.get(against, {})
            pairs = [
                values[s] - 100 * first[s][where][metric]
                for s in values
                if s in first and name != against
            ]
            if pairs:
                line += f"  {paired.told(pairs)}"
            print(line)


if __name__ == "__main__":
    main()
