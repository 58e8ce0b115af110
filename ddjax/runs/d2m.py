"""D2M from settings to results: a distilled generator and its evidence.

data -> generator, teachers -> outer loop -> selection -> scores -> page
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddjax import (
    artifact,
    d2m,
    evaluate,
    files,
    hosts,
    metrics,
    models,
    parallel,
    training,
)
from ddjax.data import classes, preprocess, sources
from ddjax.pages.pictures import save_picture
from ddjax.runs import (
    baselines,
    ceiling,
    choose,
    gan,
    loop,
    plan,
    plan_d2m,
    prepare,
    protocols,
    scores,
    teachers,
    workdir,
)
from ddjax.settings import D2m, Settings
from ddjax.types import InputError, Params

__all__ = [
    "Groups",
    "check",
    "chooser",
    "distil",
    "draw_network_of",
    "own_generator",
    "run",
    "trained_network",
]

# What each stage's key is folded with; the numbers are names.
_STATE, _BATCHES, _LOOKS = range(200, 203)
_COMPARED = 204

_NETWORKS = 10  # that latents are moved by


def run(
    settings: Settings,
    folder: Path,
    shared: workdir.Shared,
    command: str = "",
    *,
    fixed: Collection[str] = (),
    plan_only: bool = False,
) -> None:
    """The whole pipeline, or what of it is still to be done.

    Args:
      settings: of the run.
      folder: of the run.
      shared: where data, teachers and generators lie.
      command: what repeats the run, for its page.
      fixed: dotted names that a plan leaves as they are.
      plan_only: print the plan of ``minutes`` and stop.

    Raises:
      InputError: the settings do not fit the data, the folder holds another
        run, or the run has left the numbers.
    """
    _check_plan(settings, plan_only)
    source, source_hash = _source(settings.d2m, folder)
    if workdir.is_complete(settings, folder, "d2m"):
        prepare.check_finished(
            workdir.as_run(settings, folder), folder, shared.data
        )
        return
    task = prepare.task(
        settings.data, settings.model, settings.seed, shared.data
    )
    fits = plan_d2m.fitting(settings, task, fixed) if settings.minutes else {}
    check(settings.changed(fits).d2m, task)
    given = own_generator(folder, task)
    if given is None and source:
        given = artifact.load_generator(source)
        check_generator(source, given, task)
        _check_source(source, given, task)
    elif given is None:
        gan.networks_of(settings.gan, task)
    asked, decided = settings, None
    if settings.minutes:
        decided = _planned(settings, folder, task, shared, fixed, plan_only)
        settings = settings.changed(decided)
    if plan_only:
        return
    # Only now, when the settings have proved possible, is the folder taken.
    with workdir.claimed(
        settings,
        folder,
        "d2m",
        task.splits,
        command,
        decided
        and {"asked": workdir.described(asked, "d2m"), "fields": decided},
        more={"generator": source_hash} if source_hash else {},
    ):
        given = gan.of_run(settings, folder, task, shared, given)
        draw_network = draw_network_of(settings, task, shared.teachers)
        distil(settings, folder, task, given, draw_network)
        conclude(settings, folder, task, given, shared.teachers)
    print(f"report: {folder / 'report.html'}")


def _check_plan(settings: Settings, plan_only: bool) -> None:
    """InputError where there is nothing to plan, or no time to fill."""
    if plan_only and not settings.minutes:
        raise InputError(
            "--plan of D2M lays out the minutes that it is given: add "
            "--config.minutes=30, or minutes=30 after the colon of folder.py"
        )
    if settings.minutes and settings.d2m.generator:
        raise InputError(
            "minutes= plans a pre-training, and d2m.generator leaves it out: "
            "give one of them, and set d2m.iterations"
        )
    if settings.minutes and settings.d2m.networks == "random":
        raise InputError(
            "minutes= plans teachers, and d2m.networks=random has none: set "
            "gan.iterations and d2m.iterations in place of minutes"
        )
    if settings.minutes:
        plan.check_one_process()


def _planned(settings, folder, task, shared, fixed, plan_only):
    """{dotted name: value}, as decided before or by measuring now."""
    decided = workdir.planned(settings, folder)
    if decided:
        print("going on by the plan in config.json")
        return decided

    def first_groups(planned, network):
        groups = Groups(planned.d2m, planned.seed, task, lambda key: network)
        return groups(0)

    kept = plan.kept_in(shared.data, settings, fixed, task.splits, "d2m")
    found = None if plan_only else plan.recall(kept, settings)
    if found:
        print("as --plan has measured")
    else:
        found = plan_d2m.decide(settings, task, first_groups, fixed)
        if plan_only:
            plan.keep(kept, found)
    print("plan", *plan_d2m.lines(found), sep="\n", flush=True)
    return found.fields


def _source(part: D2m, folder: Path) -> tuple[Path | None, str | None]:
    """The given generator's file and its checksum; None without one.

    Raises:
      InputError: it is no longer the one that the folder's run began with.
    """
    if not part.generator:
        return None, None
    source = artifact.generator_file(Path(part.generator))
    began = workdir.recorded(folder).get("generator")
    if not source.exists():
        return source, began  # a run that has begun has its own copy
    found = files.sha256(source)
    if began not in (None, found):
        raise InputError(
            f"{folder} holds a run that began with another generator than "
            f"{source} is now: name another --workdir, or bring the old file "
            "back"
        )
    return source, found


def check(part: D2m, task: prepare.Task) -> None:
    """What only the data can tell.

    Raises:
      InputError: a layer or class is not there, or a class has too few images.
    """
    train, k = task.splits.train, task.num_classes
    part.check_layers(feature_names(task.module, task.image_shape))
    if part.classes > k:
        raise InputError(
            f"d2m.classes must lie in 0..{k} (the data set's classes; 0: all), "
            f"not at {part.classes}"
        )
    classes.ByClass(train.labels, k)
    # Random real images stand beside every number of generated ones.
    classes.per_class_indices(
        jax.random.key(0),
        train.labels,
        k,
        max(part.epochs_of),
        names=train.class_names,
        field="d2m.ipcs (and give d2m.epochs as many numbers)",
    )


def feature_names(module: Any, image_shape: tuple[int, ...]) -> list[str]:
    """The names of a network's features."""
    _, out = jax.eval_shape(
        lambda images: training.apply_fn_of(module)(
            models.init_params(module, jax.random.key(0), image_shape), images
        ),
        jax.ShapeDtypeStruct((1, *image_shape), np.float32),
    )
    return sorted(out)


def own_generator(
    folder: Path, task: prepare.Task
) -> artifact.GeneratorArtifact | None:
    """What a run that was stopped goes on with; None before it began."""
    kept = gan.kept_copy(folder)
    begun = hosts.from_writer(
        lambda: bool(workdir.recorded(folder)) and kept.exists()
    )
    if not begun:
        return None
    given = artifact.load_generator(kept)
    check_generator(kept, given, task)
    return given


def check_generator(
    path: Path | str, found: artifact.GeneratorArtifact, task: prepare.Task
) -> None:
    """InputError where a generator does not make this data set's images."""
    names = task.splits.train.class_names
    made = found.apply.image_shape
    if made != task.image_shape:
        raise InputError(
            f"the generator in {path} makes images of {made}, the config's "
            f"data set has {task.image_shape}: name the config that it was "
            "made with"
        )
    if list(names) != found.metadata["class_names"]:
        raise InputError(
            f"the generator in {path} was made for the classes "
            f"{some(found.metadata['class_names'])}, the config's data set "
            f"has {some(names)}: name the config that it was made with"
        )


def _check_source(path, found, task):
    """InputError where a generator was trained on other images: they may be
    those that this run holds out, or tests on."""
    known = found.metadata.get("shaped_by", found.metadata)
    if "imported" in found.metadata:
        print(
            f"note: {path} comes from a published generator; images that this "
            "run holds out may be among those that it was trained on"
        )
        if "data" not in known:
            return
    if known.get("data") != sources.fingerprint(task.splits.train):
        raise InputError(
            f"the generator in {path} was trained on other images than this "
            "config's training images: give the same data fields and seed"
        )


def some(names: Any) -> str:
    """Names for a sentence, the first five where there are many."""
    names = list(map(str, names))
    more = f" .. ({len(names)})" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def draw_network_of(
    settings: Settings, task: prepare.Task, teachers_folder: Path
) -> Callable[[jax.Array], Any]:
    """A function of a key that gives the params of a network of the pool.

    Trained networks are the teachers' snapshots, any teacher at any stored
    epoch from d2m.first_epoch on; random ones are made as they are needed.
    """
    if settings.d2m.networks == "random":
        return jax.jit(
            lambda key: models.init_params(task.module, key, task.image_shape)
        )
    store = teachers.train(settings, task, teachers_folder)
    first = settings.d2m.first_epoch

    def draw(key):
        share = np.asarray(_two_uniform(key), np.float64)
        return store.snapshot(
            int(share[0] * store.count),
            first + int(share[1] * (store.epochs - first + 1)),
        )

    return draw


_two_uniform = jax.jit(lambda key: jax.random.uniform(key, (2,)))


def distil(
    settings: Settings,
    folder: Path,
    task: prepare.Task,
    given: artifact.GeneratorArtifact,
    draw_network: Callable[[jax.Array], Any],
) -> d2m.D2mState:
    """The updates, from the last checkpoint to the last.

    Args:
      settings: of the run.
      folder: of the run; metrics, checkpoints and looks are kept there.
      task: data and network.
      given: the generator before distillation.
      draw_network: of ``draw_network_of``.

    Returns:
      The last state.
    """
    part, last = settings.d2m, settings.d2m.iterations
    devices = parallel.spread(part.groups)
    key = jax.random.key(settings.seed)
    update = functools.partial(
        d2m.update,
        gen_apply=given.apply,
        apply_fn=training.apply_fn_of(task.module),
        preprocessing=task.preprocessing,
        settings=part,
        total=part.groups if part.groups % devices else None,
    )
    groups = Groups(part, settings.seed, task, draw_network)
    if hosts.writes():
        (folder / "looks").mkdir(exist_ok=True)
    return loop.run(
        d2m.init_state(jax.random.fold_in(key, _STATE), given.params, part),
        name="d2m",
        last=last,
        folder=folder,
        log=settings.log,
        draw=lambda step: parallel.shard(groups(step), devices),
        update=parallel.over_devices(update, devices),
        guard=loop.finite("lower d2m.rate"),
        looks={0, *loop.look_steps(settings.evaluate.looks, last)},
        look=functools.partial(look, settings, folder, task, given),
        place=functools.partial(parallel.replicate, devices=devices),
    )


class Groups:
    """What an update is made of: networks and real images, by its number."""

    def __init__(
        self,
        part: D2m,
        seed: int,
        task: prepare.Task,
        draw_network: Callable[[jax.Array], Any],
    ):
        """Keeps the networks until they are to be drawn again."""
        self._part = part
        self._key = jax.random.fold_in(jax.random.key(seed), _BATCHES)
        self._data = task.splits.train
        self._by_class = classes.ByClass(self._data.labels, task.num_classes)
        self._draw_network = draw_network
        self._networks: tuple[int, Any] = (-1, None)

    def __call__(self, step: int) -> d2m.Group:
        """The groups of one update, leaves lead with their number."""
        part = self._part
        turn = step // part.redraw_every
        if self._networks[0] != turn:
            key = jax.random.fold_in(jax.random.fold_in(self._key, 0), turn)
            drawn = [
                self._draw_network(jax.random.fold_in(key, group))
                for group in range(part.groups)
            ]
            stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
            self._networks = turn, stacked
        key = jax.random.fold_in(jax.random.fold_in(self._key, 1), step)
        class_key, image_key = jax.random.split(key)
        k = self._by_class.num_classes
        classes = part.classes or k
        # All classes need no draw: their order does not matter to the loss.
        chosen = np.tile(np.arange(k), (part.groups, 1))
        if classes < k:
            chosen = np.asarray(_shuffled(class_key, chosen))[:, :classes]
        labels = np.repeat(chosen, part.per_class, axis=1).astype(np.int32)
        rows = self._by_class.draw(image_key, labels)
        images = self._data.images[rows.reshape(-1)]
        return d2m.Group(
            self._networks[1],
            images.reshape(*labels.shape, *images.shape[1:]),
            labels,
        )


_shuffled = jax.jit(
    lambda key, rows: jax.random.permutation(
        key, rows, axis=1, independent=True
    )
)


def look(
    settings: Settings,
    folder: Path,
    task: prepare.Task,
    given: artifact.GeneratorArtifact,
    state: d2m.D2mState,
    step: int,
) -> dict[str, float]:
    """Scores a generator on held-out training images, and keeps it.

    By the stored protocol at the middle one of ``d2m.ipcs``, by size.
    """
    ipc = settings.d2m.middle_ipc
    found = protocols.stored_score(
        scores.held_out(task),
        jax.random.fold_in(jax.random.key(settings.seed), _LOOKS),
        given,
        state.average,
        ipc,
        settings.evaluate.look_networks,
        recipe=protocols.recipes_of(settings)[ipc],
        learning_rate=settings.evaluate.real_learning_rate,
    )
    if hosts.writes():
        artifact.save_generator(
            _look_path(folder, step), given._replace(params=state.average)
        )
    return scores.held_out_row(found, task)


def _look_path(folder: Path, step: int) -> Path:
    return folder / "looks" / f"{step:07d}.npz"


def conclude(
    settings: Settings,
    folder: Path,
    task: prepare.Task,
    given: artifact.GeneratorArtifact,
    teachers_folder: Path,
) -> None:
    """Everything after the last update.

    What is selected is selected before the test set is looked at; the
    generator before distillation is among it.
    """
    selected, _ = hosts.from_writer(
        lambda: scores.select(folder, settings.evaluate.metric, from_start=True)
    )
    found = artifact.load_generator(_look_path(folder, selected))
    table = final_scores(settings, task, given, found, teachers_folder)
    if not hosts.writes():
        return
    artifact.save_generator(
        folder / "generator" / "distilled.npz",
        found._replace(
            metadata={
                "class_names": list(task.splits.train.class_names),
                "method": "D2M",
                "data": sources.fingerprint(task.splits.train),
                "test_data": sources.fingerprint(task.splits.test),
                "model": dataclasses.asdict(settings.model),
                "augmentation": settings.d2m.augment,
                "evaluation": scores.recipe_of(settings.evaluate)._asdict(),
                "learning_rate": settings.evaluate.real_learning_rate,
                "selected_step": selected,
                "config": settings.flat(),
                "versions": workdir.recorded(folder)["versions"],
                "scores": table,
                **{
                    name: value
                    for name, value in given.metadata.items()
                    if name == "imported"
                },
                "metrics_rows": len(metrics.read(folder / "metrics.jsonl")),
            }
        ),
    )
    files.write_json(folder / "eval.json", table)
    _keep_samples(settings.seed, folder, task, given, found)
    # Here, for Matplotlib takes a third of a second to import.
    from ddjax.pages import d2m as page

    page.write_page(folder)
    scores.print_table(table, settings.evaluate.metric)
    if not selected:
        print(
            "distilling gained nothing on held-out images: the generator is "
            "the pre-trained one"
        )
    print(
        f"the generator has as many numbers as {found.size_in_images:.1f} "
        "images of the data set"
    )


def final_scores(
    settings: Settings,
    task: prepare.Task,
    given: artifact.GeneratorArtifact,
    found: artifact.GeneratorArtifact,
    teachers_folder: Path,
) -> dict[str, dict[str, Any]]:
    """eval.json: generated images before and after, real ones, the whole data.

    Rows are PROTOCOL/IPC/WHAT: stored/10/distilled, stored/10/pretrained,
    stored/10/distilled_chosen, stored/10/pretrained_chosen,
    stored/10/random_real, stored/10/herding and the other picks,
    stream/50/distilled, stream/50/pretrained; and full_data. With
    d2m.networks=random there are no teachers, and nothing is chosen or picked
    by their features.
    """
    part, recipes = settings.evaluate, protocols.recipes_of(settings)
    trained = trained_network(settings, task, teachers_folder)
    sides = {"distilled": found.params, "pretrained": given.params}
    unchanged = all(
        jax.tree.leaves(jax.tree.map(np.array_equal, *sides.values()))
    )
    if unchanged:
        del sides["pretrained"]
    table = protocols.generated_scores(
        settings,
        task,
        given,
        sides,
        _chosen(settings, task, teachers_folder),
    )
    if unchanged:
        # Of the same noise and first parameters, to the bit.
        table |= {
            row.replace("distilled", "pretrained"): copy.deepcopy(by_model)
            for row, by_model in table.items()
        }
    names = part.baseline_names
    picks = baselines.pick(names, task, trained, list(recipes))
    for model, module, score in scores.tests_of(task, part):

        def add(row, result, model=model, **more):
            table.setdefault(row, {})[model] = scores.as_json(result) | more

        for ipc, recipe in recipes.items():
            result = scores.random_real(settings, task, score, recipe, ipc)
            add(f"stored/{ipc}/random_real", result)
            for name, data in picks[ipc].items():
                result = scores.given_real(
                    settings, score, recipe, evaluate.stored(*data)
                )
                add(f"stored/{ipc}/{name}", result)
        whole, how = ceiling.full_data(
            settings, task, model, module, score, teachers_folder
        )
        add("full_data", whole, **how)
    scores.add_gains(table)
    return table


def trained_network(
    settings: Settings, task: prepare.Task, teachers_folder: Path
) -> Params | None:
    """The first teacher's last snapshot; None with d2m.networks=random."""
    if settings.d2m.networks != "trained":
        return None
    store = teachers.train(settings, task, teachers_folder)
    return store.snapshot(0, store.epochs)


def chooser(
    settings: Settings, task: prepare.Task, teachers_folder: Path, how: str
) -> choose.Chooser | None:
    """What chooses among generated images; None with d2m.networks=random.

    Args:
      settings: of the run.
      task: data and network.
      teachers_folder: the parent of all teachers.
      how: of ``choose.CHOICES``, other than random.
    """
    trained = trained_network(settings, task, teachers_folder)
    if trained is None:
        return None
    networks = []
    if how == "latents":
        key = jax.random.fold_in(jax.random.key(settings.seed), _COMPARED)
        draw = draw_network_of(settings, task, teachers_folder)
        networks = [draw(jax.random.fold_in(key, i)) for i in range(_NETWORKS)]
    return choose.Chooser(task, trained, how, networks)


def _chosen(settings, task, teachers_folder):
    if settings.d2m.choose == "none":
        return None
    found = chooser(settings, task, teachers_folder, settings.d2m.choose)
    return found and found.images


def load_sides(folder: Path) -> dict[str, artifact.GeneratorArtifact]:
    """A run's generator after and before distillation.

    Raises:
      InputError: one is missing or damaged.
    """
    return {
        side: artifact.load_generator(folder / "generator" / f"{side}.npz")
        for side in ("distilled", "pretrained")
    }


def test_again(
    settings: Settings,
    task: prepare.Task,
    sides: Mapping[str, artifact.GeneratorArtifact],
    teachers_folder: Path,
) -> None:
    """Prints the scores of a run's generator on any networks.

    Args:
      settings: the d2m and evaluate parts and the seed count.
      task: the data to test on.
      sides: of ``load_sides``.
      teachers_folder: the parent of all teachers.

    Raises:
      InputError: the generator makes other images.
    """
    found = sides["distilled"]
    check_generator("the run", found, task)
    scores.print_table(
        protocols.generated_scores(
            settings,
            task,
            found,
            {side: kept.params for side, kept in sides.items()},
            _chosen(settings, task, teachers_folder),
        ),
        settings.evaluate.metric,
    )


def _keep_samples(seed, folder, task, given, found):
    """Real, pre-trained and distilled images of the same classes."""
    made = {}
    for side, params in (
        ("pretrained", given.params),
        ("distilled", found.params),
    ):
        made[side], labels = gan.sample_grid(seed, given.apply, params)
    train = task.splits.train
    rows = classes.ByClass(train.labels, task.num_classes).draw(
        jax.random.key(seed), labels
    )
    made["real"] = np.asarray(preprocess.to_unit(train.images[rows]))
    with files.atomic_write(folder / "samples.npz") as file:
        np.savez(file, labels=labels, **made)
    save_picture(
        folder / "distilled.png",
        made["distilled"],
        labels,
        train.class_names,
    )
