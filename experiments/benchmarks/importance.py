"""Which importance weights gain? Every form beside W = 1, in paired runs.

    python experiments/benchmarks/importance.py --data=digits --ipc=1
    python experiments/benchmarks/importance.py --data=cifar10 --ipc=1 \
        --data_dir=FOLDER_OF_TFDS

A pair shares everything but the form: teachers, initial images, segments,
batches, augmentation, evaluation networks. Every run is one line of
``runs/importance/<data>-ipc<n>.jsonl``; runs that are there already are not
repeated, so the study can be stopped and continued. The table gives, for each
form, the mean test accuracy over seeds and the mean paired difference to
W = 1 with its 95% interval (Student's t over seeds), in percentage points.

A form also changes the gradient's size, so a control runs W = 1 with twice the
image step. The student's learning rate hardly moves here (a step of 1e-7, MTT's
at one image per class): where it is free to, a form can gain or lose by its
learning rate alone. No augmentation; the last state of each run is scored, on
the test set. The settings below were set by such scores too: exploration. With
several forms in one table, an interval that just excludes zero is weak
evidence: the table marks with * what survives Bonferroni's correction for
their number.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from ddjax import evaluate, iadd, models, training
from ddjax.data import classes, preprocess, sources
from ddjax.runs import teachers
from ddjax.settings import Iadd, Importance
from ddjax.types import Batch, Segment

EXPONENTIAL = Importance("exponential", direction="descend")
FORMS = {
    "none (MTT)": Importance("none"),
    "exp parameter descend": replace(EXPONENTIAL, bound=1.0),
    "exp parameter ascend": replace(EXPONENTIAL, bound=3.0, direction="ascend"),
    "exp tensor descend": replace(EXPONENTIAL, per="tensor"),
    "exp tensor ascend": replace(EXPONENTIAL, per="tensor", direction="ascend"),
    "exp parameter ascend, rescaled per tensor": replace(
        EXPONENTIAL, bound=3.0, direction="ascend", rescale="tensor"
    ),
    "displacement tensor ^-1/2": Importance(
        "displacement", per="tensor", power=-0.5
    ),
    "displacement parameter ^1/2": Importance("displacement", power=0.5),
    "control: none, image step x 2": Importance("none"),
    "displacement parameter ^1/2, image step x 2": Importance(
        "displacement", power=0.5
    ),
}
STUDIES = {
    ("digits", 1): dict(steps=20, batch=10, rate=0.02, iterations=300),
    ("digits", 10): dict(steps=20, batch=50, rate=0.02, iterations=200),
    ("cifar10", 1): dict(steps=10, batch=10, rate=0.02, iterations=120),
    ("cifar10", 10): dict(steps=10, batch=20, rate=0.02, iterations=60),
}
SETS = {
    "digits": dict(
        depth=2,
        teachers=20,
        epochs=22,
        max_start=20,
        batch=64,
        train=None,
        image_step=10.0,
    ),
    "cifar10": dict(
        depth=3,
        teachers=10,
        epochs=8,
        max_start=6,
        batch=256,
        train=20000,
        image_step=100.0,
    ),
}
SPAN = 2
WIDTH = 32


def prepare(name, data_dir, folder):
    """The parts of a study that all of its runs share."""
    chosen = SETS[name]
    splits = sources.load(name, data_dir=data_dir, held_out=0.1, seed=0)
    train = splits.train
    if chosen["train"]:
        train = sources.take(train, np.arange(chosen["train"]))
    module = models.build(
        "convnet", num_classes=10, width=WIDTH, depth=chosen["depth"]
    )
    standardiser = preprocess.fit_standardise(train.images)
    recipe = training.Recipe(
        epochs=chosen["epochs"], batch_size=chosen["batch"]
    )
    store = teachers.record(
        folder / f"teachers-{name}",
        jax.random.key(0),
        Batch(train.images, classes.one_hot(train.labels, 10)),
        module,
        count=chosen["teachers"],
        recipe=recipe,
        learning_rate=0.01,
        preprocessing=standardiser,
        shaped_by={"study": name},
    )
    return train, splits.test, module, standardiser, store


def one_run(name, ipc, seed, form, shared, image_step_factor=1.0):
    """Accuracies of one form with one seed."""
    train, test, module, standardiser, store = shared
    study, chosen = STUDIES[name, ipc], SETS[name]
    key = jax.random.key(1000 + seed)
    picked = classes.per_class_indices(key, train.labels, 10, ipc)
    settings = Iadd(
        inner_steps=study["steps"],
        batch_size=study["batch"],
        augment="none",
        learning_rate=study["rate"],
        image_step=chosen["image_step"] * image_step_factor,
        learning_rate_step=1e-7,
        importance=form,
    )
    initial = iadd.Distilled(
        preprocess.apply(standardiser, jnp.asarray(train.images[picked])),
        classes.one_hot(train.labels[picked], 10),
        study["rate"],
    )
    state = iadd.init_state(
        jax.random.fold_in(key, 1), initial, store.snapshot(0, 0), settings
    )
    step = _update(module, settings)
    for iteration in range(study["iterations"]):
        segment = store.sample(
            jax.random.fold_in(jax.random.fold_in(key, 2), iteration),
            max_start=chosen["max_start"],
            span=SPAN,
        )
        segment = Segment(*jax.tree.map(lambda leaf: leaf[None], segment))
        state, metrics = step(state, segment)
    result = iadd.distilled(state, settings)
    recipe = training.Recipe(
        epochs=300 if ipc == 1 else 100,
        batch_size=256,
        momentum=0.9,
        weight_decay=5e-4,
        decay_at_half=True,
    )
    scores = evaluate.evaluate(
        jax.random.fold_in(key, 3),
        evaluate.stored(result.images, result.labels),
        Batch(test.images, test.labels),
        module,
        recipe=recipe,
        learning_rate=result.learning_rate,
        num_networks=5 if ipc == 1 else 3,
        test_preprocessing=standardiser,
    )
    return scores, float(metrics["loss"]), float(result.learning_rate)


@functools.cache
def _update(module, settings):
    return jax.jit(
        functools.partial(
            iadd.update,
            apply_fn=training.apply_fn_of(module),
            settings=settings,
        )
    )


def interval(differences, comparisons=1):
    """Half width of the interval of a mean at 1 - 0.05 / comparisons."""
    count = len(differences)
    t = scipy.special.stdtrit(count - 1, 1 - 0.025 / comparisons)
    return t * np.std(differences, ddof=1) / count**0.5


def table(path):
    """The results in a file as Markdown."""
    scores = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        scores.setdefault(row["form"], {})[row["seed"]] = row["mean"] * 100
    base = scores["none (MTT)"]
    print(f"\n{path.stem}\n")
    print("| form | seeds | mean % | paired difference | 95% interval |")
    print("|---|---|---|---|---|")
    others = [form for form in scores if form != "none (MTT)"]
    for form, by_seed in scores.items():
        seeds = sorted(set(by_seed) & set(base))
        mean = np.mean([by_seed[seed] for seed in seeds])
        cells = f"| {form} | {len(seeds)} | {mean:.2f} |"
        if form in others and len(seeds) > 1:
            gaps = [by_seed[seed] - base[seed] for seed in seeds]
            gap, half = np.mean(gaps), interval(gaps)
            star = "*" if abs(gap) > interval(gaps, len(others)) else ""
            cells += (
                f" {gap:+.2f}{star} | {gap - half:+.2f} .. {gap + half:+.2f} |"
            )
        else:
            cells += " | |"
        print(cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(SETS), default="digits")
    parser.add_argument("--ipc", type=int, choices=(1, 10), default=1)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--forms", nargs="+", default=list(FORMS))
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--out", type=Path, default=Path("runs/importance"))
    parser.add_argument("--table", action="store_true", help="only print it")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{args.data}-ipc{args.ipc}.jsonl"
    if args.table:
        return table(path)
    done = set()
    if path.exists():
        for line in path.read_text().splitlines():
            row = json.loads(line)
            done.add((row["form"], row["seed"]))
    shared = prepare(args.data, args.data_dir, args.out)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in args.forms:
            if (name, seed) in done:
                continue
            begin = time.perf_counter()
            scores, loss, rate = one_run(
                args.data,
                args.ipc,
                seed,
                FORMS[name],
                shared,
                2.0 if "image step x 2" in name else 1.0,
            )
            row = {
                "form": name,
                "seed": seed,
                "mean": scores.mean,
                "std": scores.std,
                "loss": loss,
                "learning_rate": rate,
                "seconds": round(time.perf_counter() - begin, 1),
            }
            with open(path, "a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
    table(path)


if __name__ == "__main__":
    main()
