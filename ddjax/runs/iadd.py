"""IADD from settings to results: distilled images and the evidence beside them.

data -> teachers -> outer loop -> selection -> scores -> report.html

In latent space the images are a generator's; see ``ddjax/runs/latent.py``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import (
    artifact,
    evaluate,
    files,
    hosts,
    iadd,
    metrics,
    parallel,
    training,
    trajectories,
)
from ddjax import importance as importance_lib
from ddjax.data import preprocess, sources
from ddjax.pages.pictures import save_picture
from ddjax.runs import (
    baselines,
    ceiling,
    latent,
    loop,
    plan,
    prepare,
    scores,
    teachers,
    workdir,
)
from ddjax.settings import Iadd, Settings
from ddjax.types import InputError, Segment

__all__ = ["choose_initial", "distil", "run"]

# What each stage's key is folded with; the numbers are names.
_INITIAL, _STATE, _SEGMENTS, _LOOKS, _FINAL = range(5)


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
      shared: where data and teachers lie.
      command: what repeats the run, for its page.
      fixed: dotted names that a plan leaves as they are.
      plan_only: print the plan and stop.

    Raises:
      InputError: the settings do not fit the data, the folder holds another
        run, or the run has left the numbers.
    """
    if workdir.is_complete(settings, folder, "iadd"):
        prepare.check_finished(
            workdir.as_run(settings, folder), folder, shared.data
        )
        return

    def load(settings):
        return prepare.task(
            settings.data, settings.model, settings.seed, shared.data
        )

    in_latent_space = settings.iadd.space == "latent"
    if in_latent_space and plan_only:
        raise InputError(
            "--plan is of runs in pixels: leave it out with iadd.space=latent"
        )
    task = load(settings)
    if in_latent_space:
        latent.check(settings, task)
    # Too few images of a class are told before anything is measured.
    initial = choose_initial(settings, task)
    asked, decided = settings, None
    if settings.minutes or plan_only:
        plan.check_one_process()
        decided = settings.minutes and workdir.planned(settings, folder)
        if decided:
            print("going on by the plan in config.json")
        else:
            found, kept = None, None
            if settings.minutes:
                kept = plan.kept_in(shared.data, settings, fixed, task.splits)
                found = None if plan_only else plan.recall(kept, settings)
            if found:
                print("as --plan has measured")
            elif kept:
                found, task = plan.decide(settings, task, fixed, load)
                if plan_only:
                    plan.keep(kept, found)
            else:
                found = plan.estimate(settings, task)
            decided = found.fields
            print("plan", *plan.lines(found), sep="\n", flush=True)
        settings = settings.changed(decided)
        if task.image_shape[0] != (settings.data.size or task.image_shape[0]):
            task = load(settings)
        task = prepare.with_model(task, settings.model)
        initial = choose_initial(settings, task)
    if plan_only:
        return
    # Only now, when the settings have proved possible, is the folder taken.
    with workdir.claimed(
        settings,
        folder,
        "iadd",
        task.splits,
        command,
        decided
        and {"asked": workdir.described(asked, "iadd"), "fields": decided},
    ):
        store = teachers.train(settings, task, shared.teachers)
        made = None
        if in_latent_space:
            trained = store.snapshot(0, store.epochs)
            made = latent.begin(settings, folder, task, shared, trained)
            initial = made.initial(settings.iadd.learning_rate)
        else:
            initial = picked(settings, initial, task, store)
        initial = with_labels(settings, initial, task, store)
        state = distil(settings, folder, task, initial, store, made)
        conclude(
            settings,
            folder,
            task,
            initial,
            store,
            state,
            shared.teachers,
            made,
        )
    print(f"report: {folder / 'report.html'}")


def choose_initial(settings: Settings, task: prepare.Task) -> iadd.Distilled:
    """Random real images of each class, class by class.

    Raises:
      InputError: a class has too few.
    """
    key = jax.random.fold_in(jax.random.key(settings.seed), _INITIAL)
    return iadd.Distilled(
        *task.real_images(key, settings.iadd.ipc), settings.iadd.learning_rate
    )


def picked(
    settings: Settings,
    initial: iadd.Distilled,
    task: prepare.Task,
    store: trajectories.Teachers,
) -> iadd.Distilled:
    """With the real images that ``iadd.initial`` asks for, in place of random
    ones; they are picked by what the first teacher sees in them at its end."""
    part = settings.iadd
    if part.initial == "random":
        return initial
    trained = store.snapshot(0, store.epochs)
    found = baselines.pick([part.initial], task, trained, [part.ipc])
    images = found[part.ipc][part.initial].images
    return initial._replace(images=jnp.asarray(images))


def with_labels(
    settings: Settings,
    initial: iadd.Distilled,
    task: prepare.Task,
    store: Any,
) -> iadd.Distilled:
    """With the labels that ``iadd.labels`` asks for.

    What teachers say of an image is the softmax of their mean logits, of those
    that get its class right at the end of their stored run; where none does
    its label stays hard (after Guo et al., "DATM", ICLR 2024).
    """
    if settings.iadd.labels == "hard":
        return initial
    apply = jax.jit(training.apply_fn_of(task.module))
    hard = np.asarray(initial.labels)
    total, voices = np.zeros_like(hard), np.zeros((len(hard), 1))
    for teacher in range(store.count):
        params = store.snapshot(teacher, store.epochs)
        logits = np.asarray(apply(params, initial.images)[0])
        right = logits.argmax(-1) == hard.argmax(-1)
        total += logits * right[:, None]
        voices += right[:, None]
    soft = jax.nn.softmax(total / np.maximum(voices, 1))
    return initial._replace(labels=np.where(voices > 0, soft, hard))


def distil(
    settings: Settings,
    folder: Path,
    task: prepare.Task,
    initial: iadd.Distilled,
    store: trajectories.Teachers,
    made: latent.Latent | None = None,
) -> iadd.IaddState:
    """The outer loop, from the last checkpoint to the last update.

    Args:
      settings: of the run.
      folder: of the run; metrics, checkpoints and looks are kept there.
      task: data and network.
      initial: what the images start from.
      store: the teachers.
      made: of a run in latent space.

    Returns:
      The last state.
    """
    generator = None
    if made is not None:
        initial = initial._replace(images=made.noise)
        generator = made.found.params
    part, last = in_input_units(settings.iadd, task), settings.iadd.iterations
    key = jax.random.key(settings.seed)
    segment_key = jax.random.fold_in(key, _SEGMENTS)
    apply_fn = training.apply_fn_of(task.module)
    devices = parallel.spread(part.segments)

    @functools.cache
    def update_at(scale):
        return parallel.over_devices(
            functools.partial(
                iadd.update,
                apply_fn=apply_fn,
                settings=iadd.scaled(part, scale),
                project=within_bounds(part, task),
                decode=made and made.decode,
                total=part.segments if part.segments % devices else None,
            ),
            devices,
        )

    if hosts.writes():
        (folder / "looks").mkdir(exist_ok=True)
    return loop.run(
        iadd.init_state(
            jax.random.fold_in(key, _STATE),
            initial,
            store.snapshot(0, 0),
            part,
            generator,
        ),
        name="iadd",
        last=last,
        folder=folder,
        log=settings.log,
        draw=lambda step: parallel.shard(
            draw_segments(
                part, store, jax.random.fold_in(segment_key, step), step
            ),
            devices,
        ),
        update=lambda state, segments: update_at(float(state.scale))(
            state, segments
        ),
        guard=functools.partial(guard, part),
        detail=_importance_detail(part),
        looks={0, *loop.look_steps(settings.evaluate.looks, last)},
        look=functools.partial(look, settings, folder, task, made),
        place=functools.partial(parallel.replicate, devices=devices),
        recover=halved,
    )


_SOFT_SHARE = 0.1
_NEAR = 0.25


def within_bounds(
    part: Iadd, task: prepare.Task
) -> Callable[[jax.Array], jax.Array] | None:
    """What keeps network inputs between black and white, by ``iadd.bound``.

    Pictures are looked at and stored as PNG, which ends there. Clamping is a
    projection after every step; the near bound is one to a wider range; the
    soft bound pulls back and lets an image leave for a while. A generator's
    images cannot leave.
    """
    if part.bound == "none" or part.space == "latent":
        return None
    share = _SOFT_SHARE if part.bound == "soft" else 1.0
    margin = _NEAR if part.bound == "near" else 0.0

    def project(inputs):
        pixels = preprocess.invert(task.preprocessing, inputs)
        beyond = pixels - jnp.clip(pixels, -margin, 1 + margin)
        return preprocess.apply(task.preprocessing, pixels - share * beyond)

    return project


_LEAST_SCALE = 1 / 8


def halved(state: iadd.IaddState) -> iadd.IaddState | None:
    """The same with half the steps; None after three times."""
    if float(state.scale) <= _LEAST_SCALE:
        return None
    return state.replace(scale=state.scale / 2)


def in_input_units(part: Iadd, task: prepare.Task) -> Iadd:
    """With Adam's rate on images in the units of the network's input; noise
    has a deviation of 1."""
    if part.optimizer != "adam" or part.space == "latent":
        return part
    return dataclasses.replace(
        part, image_rate=part.image_rate * task.input_spread()
    )


def draw_segments(part: Iadd, store: Any, key: jax.Array, step: int) -> Segment:
    """``iadd.segments`` random segments for an update, stacked.

    With ``iadd.widen`` the first updates see early segments only, which are
    the easier to follow (after Guo et al., "DATM", ICLR 2024).
    """
    max_start = part.max_start
    if part.widen:
        share = min(1, step / (part.widen * part.iterations))
        max_start = round(share * max_start)
    drawn = [
        store.sample(
            jax.random.fold_in(key, i),
            max_start=max_start,
            span=part.span,
        )
        for i in range(part.segments)
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)


_IMAGE_STEP = {"sgd": "image_step", "adam": "image_rate"}
_ALPHA_STEP = {"sgd": "learning_rate_step", "adam": "alpha_rate"}


def guard(part: Iadd, row: dict[str, float]) -> str | None:
    """Figures that are finite, and a learning rate within its bounds."""
    rate, (low, high) = row["learning_rate"], part.learning_rate_bounds
    found = loop.finite(
        f"the learning rate was {rate:.3g}: lower "
        f"iadd.{_IMAGE_STEP[part.optimizer]} or iadd.learning_rate"
    )(row)
    if found or low <= rate <= high:
        return found
    widen = "" if rate < low else " or widen iadd.learning_rate_bounds"
    return (
        f"the learning rate {rate:.3g} leaves its bounds {low} .. {high}; "
        f"lower iadd.{_ALPHA_STEP[part.optimizer]} tenfold{widen}"
    )


def _importance_detail(
    part: Iadd,
) -> Callable[[iadd.IaddState, Segment], dict[str, Any]]:
    """What a line of metrics.jsonl says of the weights W.

    Returns:
      (state, segments, leaves [devices m ...]) -> {"importance": {tensor:
      {"mean", "std", "min", "max"}}}, of the first segment; {} without weights.
    """
    if part.importance.form == "none":
        return lambda state, segments: {}

    @jax.jit  # each of its dozens of operations would be compiled by itself
    def spread(raw, first):
        return {
            _name(path): {
                "mean": leaf.mean(),
                "std": leaf.std(),
                "min": leaf.min(),
                "max": leaf.max(),
            }
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                importance_lib.weights(part.importance, raw, first)
            )
        }

    def detail(state: iadd.IaddState, segments: Segment):
        first = jax.tree.map(lambda leaf: leaf[0, 0], segments)
        found = jax.device_get(spread(state.importance, first))
        return {"importance": jax.tree.map(float, found)}

    return detail


def _name(path) -> str:
    return ".".join(entry.key for entry in path)


def look(
    settings: Settings,
    folder: Path,
    task: prepare.Task,
    made: latent.Latent | None,
    state: iadd.IaddState,
    step: int,
) -> dict[str, float]:
    """Scores a state on held-out training images, and keeps its images, in
    latent space with what makes them."""
    data = distilled(settings, state, made)
    key = jax.random.fold_in(jax.random.key(settings.seed), _LOOKS)
    score = scores.held_out(task)(
        jax.random.fold_in(key, 0),
        evaluate.stored(data.images, data.labels),
        recipe=scores.recipe_of(settings.evaluate),
        learning_rate=data.learning_rate,
        num_networks=settings.evaluate.look_networks,
    )
    if not hosts.writes():
        return scores.held_out_row(score, task)
    path = _look_path(folder, step)
    with files.atomic_write(path) as file:
        np.savez(file, **{k: np.asarray(v) for k, v in data._asdict().items()})
    if made is not None:
        moved = state.generator if settings.iadd.generator_rate else None
        noise = state.images if state.average is None else state.average
        latent.keep_look(path, made, noise, moved)
    return scores.held_out_row(score, task)


def distilled(
    settings: Settings, state: iadd.IaddState, made: latent.Latent | None
) -> iadd.Distilled:
    """``iadd.distilled`` of a state, in either space."""
    if made is None:
        return iadd.distilled(state, settings.iadd)
    return iadd.distilled(state, settings.iadd, jax.jit(made.decode))


def _look_path(folder: Path, step: int) -> Path:
    return folder / "looks" / f"{step:07d}.npz"


def load_look(folder: Path, step: int) -> iadd.Distilled:
    """The distilled images of a run's look, in network input.

    Raises:
      InputError: the file is damaged or gone.
    """
    path = _look_path(folder, step)
    try:
        return iadd.Distilled(**files.read_npz(path))
    except (FileNotFoundError, files.DamagedFile, TypeError):
        raise InputError(
            f"{path} is damaged or gone: remove {folder} and run the same "
            "command to start again"
        ) from None


def conclude(
    settings: Settings,
    folder: Path,
    task: prepare.Task,
    initial: iadd.Distilled,
    store: trajectories.Teachers,
    state: iadd.IaddState,
    teachers_folder: Path,
    made: latent.Latent | None = None,
) -> None:
    """Everything after the last update; the one use of the test set."""
    selected, looks = hosts.from_writer(
        lambda: scores.latest(folder, settings.evaluate.metric)
    )
    chosen = load_look(folder, selected)
    at_looks = {step: load_look(folder, step) for step in looks}
    table = final_scores(
        settings, task, initial, at_looks, selected, store, teachers_folder
    )
    if not hosts.writes():
        return
    data = distilled(settings, state, made)
    write_difference(settings, folder, task, store, state, data)
    if made is not None:
        latent.keep_selected(
            settings, folder, task, _look_path(folder, selected)
        )
    names = task.splits.train.class_names
    pixels = functools.partial(preprocess.invert, task.preprocessing)
    artifact.save(
        folder / "distilled.npz",
        artifact.Artifact(
            pixels(chosen.images),
            chosen.labels,
            float(chosen.learning_rate),
            task.preprocessing,
            {
                "class_names": list(names),
                "method": "IADD",
                "model": dataclasses.asdict(settings.model),
                "augmentation": settings.iadd.augment,
                "evaluation": scores.recipe_of(settings.evaluate)._asdict(),
                "selected_step": selected,
                "selected_as": "latest within a standard error of the best",
                "test_data": sources.fingerprint(task.splits.test),
                "config": settings.flat(),
                "versions": workdir.recorded(folder)["versions"],
                "scores": table,
                "metrics_rows": len(metrics.read(folder / "metrics.jsonl")),
            },
        ),
    )
    with files.atomic_write(folder / "initial.npz") as file:
        np.savez(
            file,
            images=np.asarray(pixels(initial.images)),
            labels=np.asarray(initial.labels),
        )
    save_picture(
        folder / "distilled.png",
        np.asarray(pixels(chosen.images)),
        np.asarray(chosen.labels).argmax(-1),
        names,
    )
    files.write_json(folder / "eval.json", table)
    # Here, for Matplotlib takes a third of a second to import.
    from ddjax.pages import iadd as page

    page.write_page(folder)
    scores.print_table(table, settings.evaluate.metric)


def test_again(
    settings: Settings, task: prepare.Task, found: artifact.Artifact
) -> None:
    """Prints the score of distilled images on any networks.

    With a run's own settings these are the networks of its eval.json, up to
    the rounding of the stored pixels.

    Args:
      settings: the evaluate part and the seed count.
      task: the data to test on.
      found: the distilled images.

    Raises:
      InputError: they are of another shape than the test images, or of other
        classes.
    """
    prepare.check_distilled(found, task)
    key = jax.random.fold_in(jax.random.key(settings.seed), _FINAL)
    for name, _, score in scores.tests_of(
        task, settings.evaluate, found.preprocessing
    ):
        result = score(
            key,
            evaluate.stored(
                preprocess.apply(found.preprocessing, found.images),
                scores.labels_of(found.labels, settings.evaluate),
            ),
            recipe=scores.recipe_of(settings.evaluate),
            learning_rate=found.learning_rate,
            num_networks=settings.evaluate.networks,
        )
        metric = settings.evaluate.metric
        print(
            f"{metric.replace('_', ' ')}: "
            + scores.line(name, scores.by_metric(result, metric))
        )


_INITIAL_ROW = {"pixels": "real_initial", "latent": "generated_initial"}


def final_scores(
    settings: Settings,
    task: prepare.Task,
    initial: iadd.Distilled,
    looks: dict[int, iadd.Distilled],
    selected: int,
    store: trajectories.Teachers,
    teachers_folder: Path,
) -> dict[str, dict[str, Any]]:
    """eval.json: the selected state, the last, and what they stand beside."""
    part = settings.evaluate
    key = jax.random.fold_in(jax.random.key(settings.seed), _FINAL)
    recipe = scores.recipe_of(part)
    table: dict[str, dict[str, Any]] = {}
    ipc = settings.iadd.ipc
    trained = store.snapshot(0, store.epochs)
    picks = baselines.pick(part.baseline_names, task, trained, [ipc])[ipc]
    rows = (6 + len(picks)) * len(part.model_names)
    bar = loop.progress("test", rows, unit="row")
    for model, module, score in scores.tests_of(task, part):
        tested: list[tuple[iadd.Distilled, evaluate.EvalResult]] = []

        def on(data, rate=None, score=score, tested=tested):
            if rate is not None:
                data = iadd.Distilled(data.images, data.labels, rate)
            # Herded images are what a run begins with, and stand beside it.
            for other, result in tested:
                if all(map(np.array_equal, data, other)):
                    return result
            result = score(
                key,
                evaluate.stored(data.images, data.labels),
                recipe=recipe,
                learning_rate=data.learning_rate,
                num_networks=part.networks,
            )
            tested.append((data, result))
            return result

        def add(row, result, model=model, **more):
            table.setdefault(row, {})[model] = scores.as_json(result) | more

        at_looks = {step: on(data) for step, data in looks.items()}
        bar.update()
        best = max(
            at_looks,
            key=lambda step: scores.by_metric(at_looks[step], part.metric).mean,
        )
        add("distilled", at_looks[selected])
        add("distilled_last", at_looks[max(looks)])
        chosen = looks[selected]
        add(
            "distilled_png",
            on(chosen._replace(images=as_png(task, chosen.images))),
        )
        bar.update()
        bar.update()
        add(
            _INITIAL_ROW[settings.iadd.space],
            on(initial, part.real_learning_rate),
        )
        bar.update()
        add(
            "random_real",
            scores.random_real(settings, task, score, recipe, ipc),
        )
        bar.update()
        for name, data in picks.items():
            add(name, on(data, part.real_learning_rate))
            bar.update()
        whole, how = ceiling.full_data(
            settings, task, model, module, score, teachers_folder
        )
        add("full_data", whole, **how)
        bar.update()
        add("best_of_looks", at_looks[best], looks=len(at_looks), step=best)
    bar.close()
    scores.add_gains(table)
    return table


def as_png(task: prepare.Task, images: Any) -> Any:
    """Network inputs [n h w c] as they come back from 8-bit pictures."""
    pixels = jnp.clip(preprocess.invert(task.preprocessing, images), 0, 1)
    return preprocess.apply(task.preprocessing, jnp.rint(255 * pixels) / 255)


def write_difference(
    settings: Settings,
    folder: Path,
    task: prepare.Task,
    store: trajectories.Teachers,
    state: iadd.IaddState,
    data: iadd.Distilled,
) -> None:
    """How far the last student ends from its teacher, parameter by parameter.

    One segment, drawn for this purpose; at most 20,000 parameters a tensor.
    """
    part = settings.iadd
    key = jax.random.fold_in(jax.random.key(settings.seed), _FINAL)
    segment = store.sample(key, max_start=part.max_start, span=part.span)
    student, _ = iadd.unroll_student(
        data,
        segment.start,
        key,
        apply_fn=training.apply_fn_of(task.module),
        settings=part,
    )
    weights = importance_lib.weights(part.importance, state.importance, segment)
    arrays = {}
    for group, tree in (
        ("student_target", jax.tree.map(jnp.subtract, student, segment.target)),
        (
            "start_target",
            jax.tree.map(np.subtract, segment.start, segment.target),
        ),
        ("importance", weights or {}),
    ):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            values = np.ravel(np.asarray(leaf, np.float32))
            stride = -(-values.size // 20_000)
            arrays[f"{group}/{_name(path)}"] = values[::stride]
    with files.atomic_write(folder / "difference.npz") as file:
        np.savez(file, **arrays)
