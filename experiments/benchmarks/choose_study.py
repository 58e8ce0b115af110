"""Are generated images better chosen than drawn? In pairs, over seeds.

    python experiments/benchmarks/choose_study.py --data=digits --out=runs/study

A seed is a whole pre-training on digits with its own held-out images and
teachers; on other data seeds share them. Nothing is distilled, so the gain is
that of the choice alone. The same networks are trained on images drawn by
chance, on images chosen by centres and by moments, on images whose noise was
moved (latents; all in ``ddjax/runs/choose.py``), and on random real ones, all
of the same number. What was measured is kept in a file per seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import d2m_study
import jax
import launch
import paired

from ddjax import artifact, files
from ddjax.runs import choose, gan, prepare, protocols, scores
from ddjax.runs import d2m as d2m_run
from ddjax.runs.workdir import Shared

_EVALUATION = 310  # folded into the seed's key
_DRAWN, _REAL = "drawn", "random real"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", required=True, help="digits, cifar10 or an .npz file"
    )
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ipc", type=int, choices=(1, 10, 50), default=10)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--shared", type=Path, default=Path("runs"))
    args = parser.parse_args()
    sys.exit(launch.refusing(lambda: study(args)))


def study(args):
    """Measures what is missing, and prints the table."""
    what = Path(args.data).stem
    folder = args.out / f"choose-{what}-{args.iterations}-ipc{args.ipc}"
    folder.mkdir(parents=True, exist_ok=True)
    shared = Shared.below(args.shared)
    for seed in range(args.seeds):
        path = folder / f"{seed}.json"
        if not path.exists():
            rows = one(args, shared, seed)
            files.write_json(path, rows)
            print(f"seed {seed}: {rows}", flush=True)
    report([json.loads(path.read_text()) for path in folder.glob("*.json")])


def one(args, shared, seed):
    """{way: mean test accuracy} of one seed."""
    settings = d2m_study.settings_of(args.data, args.data_dir).changed(
        {"gan.iterations": args.iterations}
    )
    if args.data == "digits":
        settings = settings.changed({"seed": seed})
    task = prepare.task(
        settings.data, settings.model, settings.seed, shared.data
    )
    folder = gan.train(settings, task, shared)
    found = artifact.load_generator(folder / "generator.npz")
    settings = settings.changed(
        {"seed": seed, "evaluate.networks": args.networks}
    )
    key = jax.random.fold_in(jax.random.key(seed), _EVALUATION)
    ((_, _, score),) = scores.tests_of(task, settings.evaluate)
    recipe = protocols.recipes_of(settings)[args.ipc]
    ways = {_DRAWN: protocols.drawn_images} | {
        how: d2m_run.chooser(settings, task, shared.teachers, how).images
        for how in choose.CHOICES
        if how != "random"
    }
    rows = {
        way: protocols.stored_score(
            score,
            key,
            found,
            found.params,
            args.ipc,
            args.networks,
            make_images=make_images,
            recipe=recipe,
            learning_rate=settings.evaluate.real_learning_rate,
        ).mean
        for way, make_images in ways.items()
    }
    real = scores.random_real(settings, task, score, recipe, args.ipc)
    return {way: float(mean) for way, mean in rows.items()} | {
        _REAL: float(real.mean)
    }


def report(found):
    """A line for each way: mean, and paired differences."""
    for way in found[0]:
        values = [100 * rows[way] for rows in found]
        line = f"{way:12} {sum(values) / len(values):5.1f}"
        for beside in (_DRAWN, _REAL):
            if way != beside and len(found) > 1:
                gaps = [100 * (rows[way] - rows[beside]) for rows in found]
                line += f"  to {beside} {paired.told(gaps)}"
        print(f"{line}  {len(found)} seeds")


if __name__ == "__main__":
    main()
