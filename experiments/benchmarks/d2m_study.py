"""Does D2M gain, and by what: the generator against itself before distillation.

    python experiments/benchmarks/d2m_study.py --data=digits --out=runs/study
    python experiments/benchmarks/d2m_study.py --data=digits --out=runs/study \
        --variants=ablations
    python experiments/benchmarks/d2m_study.py --data=digits --out=runs/study \
        --variants=losses --ipcs=10 --choose=latents
    python experiments/benchmarks/d2m_study.py --data=cifar10 --out=runs/study \
        --data_dir=FOLDER_OF_TFDS

A seed is a whole run on digits: held-out images, teachers, generator and
distillation; on other data, where pre-training takes most of the time, seeds
share data, teachers and generator, and differ in distillation and evaluation.
The losses (``d2m_losses.py``) start from 1,000 updates of pre-training.
Both sides of a difference have the same noise and the same first parameters,
their test accuracy is the mean over ``--networks`` networks, and the interval
is Student's t over seeds. Nothing is selected: the state after the last update
counts. What was measured is kept in a file per seed and variant, so a study
that was stopped goes on, and more seeds can be added; the table is printed
from all that is there.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import d2m_losses
import jax
import launch
import paired

from configs import cifar10, common, tiny
from ddjax import artifact, checkpoint, d2m, files, training
from ddjax import gan as gan_lib
from ddjax.runs import choose, gan, loop, prepare, protocols, scores
from ddjax.runs import d2m as d2m_run
from ddjax.runs.workdir import Shared
from ddjax.settings import Settings
from ddjax.types import InputError


class Variant(NamedTuple):
    """What is measured under one name.

    Attributes:
      fields: settings that differ.
      match: of ``d2m_losses.MATCHES``.
    """

    fields: dict[str, Any]
    match: str = "published"


ABLATIONS = {
    "T = 1": {"d2m.temperature": 1.0},
    "T = 16": {"d2m.temperature": 16.0},
    "4 of each class": {"d2m.per_class": 4},
    "64 of each class": {"d2m.per_class": 64},
    "balance 1": {"d2m.balance": 1.0},
    "balance 100": {"d2m.balance": 100.0},
    "random networks": {"d2m.networks": "random"},
    "embedding only": {"d2m.balance": 0.0},
    "prediction only": {"d2m.embedding": 0.0},
}
LONG = {"gan.iterations": 1000}


def variants_of(settings: Settings) -> dict[str, dict[str, Variant]]:
    """{--variants: {name: Variant}} of a study that starts from these."""
    stored = settings.iadd.max_start + settings.iadd.span
    late = {"d2m.first_epoch": 2 * stored // 3 + 1}
    slow = {"d2m.rate": settings.d2m.rate / 4}
    return {
        "main": {"published": Variant({})},
        "ablations": {
            name: Variant(fields) for name, fields in ABLATIONS.items()
        },
        "longer": {"published, longer pre-training": Variant(LONG)},
        "losses": {
            **{
                f"loss: {name}": Variant(LONG, name)
                for name in d2m_losses.MATCHES
            },
            "a quarter of the rate": Variant(LONG | slow),
            "networks of the end": Variant(LONG | late),
        },
        "pairings": {
            f"from a poor generator: {name}": Variant({}, name)
            for name in d2m_losses.PAIRINGS
        },
    }


GROUPS = ("main", "ablations", "longer", "losses", "pairings")
# All seeds and variants make as many updates, few enough for a study.
_CUT = {"gan.iterations": 300, "gan.patience": 0}
# Of an .npz file, beside what digits have.
_OWN = {"teacher.epochs": 12, "iadd.max_start": 4, "d2m.first_epoch": 1}
_EVALUATION = 300  # folded into the seed's key


def settings_of(data: str, data_dir: str) -> Settings:
    """What a study starts from."""
    if data == "digits" or data.endswith(".npz"):
        settings = common.settings_of(tiny.get_config()).changed(_CUT)
        if data == "digits":
            return settings
        return settings.changed(
            {"data.source": "npz", "data.data_dir": data, **_OWN}
        )
    if data != "cifar10":
        raise InputError(
            f"--data must be digits, cifar10 or an .npz file, not {data!r}"
        )
    config = cifar10.get_config("ipc=10,size=small")
    config.data.data_dir = data_dir
    return common.settings_of(config)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", required=True, help="digits, cifar10 or an .npz file"
    )
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", choices=GROUPS, default="main")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--ipcs", default="", help="1,10,50 or fewer")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument(
        "--choose",
        choices=choose.CHOICES,
        default="random",
        help="chosen images, too",
    )
    parser.add_argument("--resnet18", type=int, default=0, metavar="EPOCHS")
    parser.add_argument("--shared", type=Path, default=Path("runs"))
    args = parser.parse_args()
    sys.exit(launch.refusing(lambda: study(args)))


def study(args):
    """Measures what is missing, and prints the table."""
    folder = args.out / Path(args.data).stem
    folder.mkdir(parents=True, exist_ok=True)
    shared = Shared.below(args.shared)
    base = settings_of(args.data, args.data_dir)
    groups = variants_of(base)
    asked = groups[args.variants]
    if unknown := set(args.only) - set(asked):
        raise InputError(
            f"--variants={args.variants} has no {sorted(unknown)}: choose of "
            f"{list(asked)}"
        )
    # All of them now: what is impossible should not show after hours.
    settings = {
        name: base.changed(variant.fields)
        for name, variant in asked.items()
        if not args.only or name in args.only
    }
    if args.choose != "random" and any(
        found.d2m.networks == "random" for found in settings.values()
    ):
        raise InputError(
            "random networks choose nothing: leave out --choose, or name "
            "others by --only"
        )
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        kept = {}  # what the generators have before distillation
        for name, found in settings.items():
            path = folder / f"{name} {seed}.json"
            one(found, base, asked[name].match, args, shared, seed, path, kept)
    for name in [n for group in groups.values() for n in group]:
        report(name, sorted(folder.glob(f"{name} [0-9]*.json")))


def one(settings, base, match, args, shared, seed, path, kept):
    """One variant of one seed, as far as it has not been measured.

    Images are chosen by the networks of ``base``, whatever the variant's, so
    that what there was before distillation is the same for all.
    """
    rows = json.loads(path.read_text()) if path.exists() else {}
    recipes = protocols.recipes_of(settings)
    own = settings.model.name
    asked = {
        f"stored/{ipc}/{own}": (ipc, own, recipe, "random")
        for ipc, recipe in recipes.items()
        if not args.ipcs or str(ipc) in args.ipcs.split(",")
    }
    if args.choose != "random":
        asked |= {
            f"{row}, {args.choose}": (*what[:3], args.choose)
            for row, what in asked.items()
        }
    if args.stream:
        recipe = protocols.stream_recipe(settings)
        asked[f"stream/{settings.d2m.stream_ipc}/{own}"] = (
            0,
            own,
            recipe,
            "random",
        )
    if args.resnet18:
        recipe = recipes[10]._replace(epochs=args.resnet18)
        asked[f"stored/10/resnet18 {args.resnet18} epochs"] = (
            10,
            "resnet18",
            recipe,
            "random",
        )
    made_by = {
        "config": json.loads(json.dumps(settings.flat())),
        "match": match,
        "networks": args.networks,
    }
    # What older files do not name was at its default.
    before = {"match": match} | rows.get("made_by", made_by)
    before["config"] = (
        json.loads(json.dumps(Settings().flat())) | before["config"]
    )
    if before != made_by:
        raise InputError(
            f"{path} was measured with other settings: name another --out"
        )
    rows["made_by"] = made_by
    missing = {name: what for name, what in asked.items() if name not in rows}
    if not missing:
        return
    if args.data == "digits":
        settings = settings.changed({"seed": seed})
    task = prepare.task(
        settings.data, settings.model, settings.seed, shared.data
    )
    d2m_run.check(settings.d2m, task)
    pretrained = gan.train(settings, task, shared)
    found = artifact.load_generator(pretrained / "generator.npz")
    quality = json.loads((pretrained / "quality.json").read_text())
    draw_network = d2m_run.draw_network_of(settings, task, shared.teachers)
    settings = settings.changed({"seed": seed})
    params = distilled(settings, task, found, draw_network, match, pretrained)
    key = jax.random.fold_in(jax.random.key(seed), _EVALUATION)
    for name, (ipc, model, recipe, how_chosen) in missing.items():
        tested = settings.changed({"evaluate.models": model})
        ((_, _, score),) = scores.tests_of(task, tested.evaluate)
        how = {
            "recipe": recipe,
            "learning_rate": settings.evaluate.real_learning_rate,
        }
        networks = 1 if model == "resnet18" else args.networks
        sides = {}
        for side, p in (("before", found.params), ("after", params)):
            if side == "before" and (settings.gan, name) in kept:
                sides[side] = kept[settings.gan, name]
                continue
            if ipc:
                make_images = protocols.drawn_images
                if how_chosen != "random":
                    by = settings.changed(
                        {"d2m.first_epoch": base.d2m.first_epoch}
                    )
                    make_images = d2m_run.chooser(
                        by, task, shared.teachers, how_chosen
                    ).images
                result = protocols.stored_score(
                    score,
                    key,
                    found,
                    p,
                    ipc,
                    networks,
                    make_images=make_images,
                    **how,
                )
            else:
                sample_fn = protocols.generated_epoch(
                    found.apply,
                    p,
                    task.preprocessing,
                    settings.d2m.stream_ipc,
                )
                result = score(key, sample_fn, num_networks=networks, **how)
            sides[side] = result.accuracy.tolist()
        kept[settings.gan, name] = sides["before"]
        rows[name] = sides
        rows["quality"] = quality
        files.write_json(path, rows)
        gain = [
            100 * sum(sides[side]) / networks for side in ("before", "after")
        ]
        print(f"{path.stem}: {name} {gain[0]:.1f} -> {gain[1]:.1f}", flush=True)


def distilled(settings, task, found, draw_network, match, pretrained):
    """The average generator after the last update."""
    key = jax.random.fold_in(jax.random.key(settings.seed), 0)
    state = d2m.init_state(key, found.params, settings.d2m)
    what = {
        "gen_apply": found.apply,
        "apply_fn": training.apply_fn_of(task.module),
        "preprocessing": task.preprocessing,
    }
    compare = d2m_losses.MATCHES[match]
    if compare is d2m_losses.adversarial:
        networks = gan.networks_of(settings.gan, task)
        begun = gan_lib.init_state(key, *networks, settings.gan)
        checkpoints = checkpoint.Checkpoints(pretrained / "checkpoints")
        last = checkpoints.restore(begun)
        checkpoints.close()
        if last is None:
            raise InputError(
                f"{pretrained} has lost its checkpoints and with them the "
                "critic: remove the folder, and it is trained again"
            )
        trained = last[1]
        state = d2m_losses.Judged(
            state,
            trained.critic,
            trained.critic_spectral,
            trained.critic_opt,
        )
        update = functools.partial(
            d2m_losses.update_with_critic,
            critic=networks[1],
            settings=settings,
            **what,
        )
    else:
        update = functools.partial(
            d2m.update, settings=settings.d2m, match=compare, **what
        )
    ended = loop.run(
        state,
        name="d2m",
        last=settings.d2m.iterations,
        draw=d2m_run.Groups(settings.d2m, settings.seed, task, draw_network),
        update=jax.jit(update),
        guard=loop.finite("this variant cannot be measured"),
    )
    return getattr(ended, "made", ended).average


def report(name, paths):
    """A line for each protocol, number of images and network."""
    found = [json.loads(path.read_text()) for path in paths]
    rows = [row for rows in found for row in rows if row.startswith("st")]
    for row in dict.fromkeys(rows):
        pairs = [rows[row] for rows in found if row in rows]
        before, after = (
            [100 * sum(pair[side]) / len(pair[side]) for pair in pairs]
            for side in ("before", "after")
        )
        gains = [b - a for a, b in zip(before, after)]
        print(
            f"{name:36} {row:28} {sum(before) / len(pairs):5.1f} -> "
            f"{sum(after) / len(pairs):5.1f}  gain {paired.told(gains)}, "
            f"{len(pairs)} seeds"
        )


if __name__ == "__main__":
    main()
