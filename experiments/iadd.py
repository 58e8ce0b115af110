"""IADD: distils a data set into a few images per class, and reports on it.

    python experiments/iadd.py --config=configs/tiny.py

Trains the teachers if they are missing, learns the images, evaluates them
beside real ones, and writes distilled.npz, distilled.png, eval.json and
report.html into the run's folder. A killed run goes on from its last
checkpoint to the same result; a finished one says so and does nothing.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import time
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import launch
import numpy as np
import teachers as teachers_script

from configs import common
from ddjax import (
    artifact,
    augment,
    checkpoint,
    evaluate,
    files,
    iadd,
    metrics,
    models,
    parallel,
    training,
    trajectories,
)
from ddjax import importance as importance_lib
from ddjax.data import preprocess, sources
from ddjax.pages import pictures
from ddjax.pages import report as report_page
from ddjax.types import Batch, InputError, Segment

# What each stage's key is folded with; the numbers are names.
_INITIAL, _STATE, _SEGMENTS, _LOOKS, _FINAL, _RANDOM_REAL = range(6)


def run(config, workdir: Path, shared: launch.Shared) -> None:
    """The whole pipeline of one config.

    Args:
      config: see configs/common.py.
      workdir: of this run.
      shared: where data and teachers lie.
    """
    settings = settings_of(config)
    if is_complete(config, workdir):
        check_images(config, workdir, shared.data)
        print(f"this run is complete: see {workdir / 'report.html'}")
        return
    setting = teachers_script.prepare(config, shared.data)
    initial = choose_initial(config, setting)
    settings = settings._replace(
        batch_size=settings.batch_size or len(initial.images)
    ).check(len(initial.images))
    # Only now, when the config has proved possible, is the folder taken.
    claim(config, workdir, setting.splits)
    store = teachers_script.train(config, setting, shared.teachers)
    state = distil(config, workdir, setting, settings, initial, store)
    conclude(config, workdir, setting, settings, initial, store, state)
    print(f"report: {workdir / 'report.html'}")


def settings_of(config) -> iadd.Settings:
    """What the library needs of ``config.iadd``, checked."""
    part, weight = config.iadd, config.iadd.importance
    for field in ("ipc", "iterations", "segments"):
        if part[field] < 1:
            raise InputError(
                f"iadd.{field} must be at least 1, not {part[field]}"
            )
    for group, field in (
        ("evaluate", "networks"),
        ("evaluate", "look_networks"),
        ("evaluate", "looks"),
        ("evaluate", "epochs"),
        ("evaluate", "batch_size"),
        ("log", "every"),
        ("log", "checkpoint_every"),
    ):
        if config[group][field] < 1:
            raise InputError(
                f"{group}.{field} must be at least 1, not "
                f"{config[group][field]}"
            )
    # Before the folder is taken: what is refused later would leave it taken.
    teachers_script.recipe_of(config)
    recipe_of(config)
    trajectories.check_range(part.max_start, part.span, config.teacher.epochs)
    if part.segments % jax.local_device_count():
        raise InputError(
            f"iadd.segments must be a multiple of the "
            f"{jax.local_device_count()} devices, not {part.segments}"
        )
    if config.evaluate.metric not in METRICS:
        raise InputError(
            f"evaluate.metric must be {' or '.join(METRICS)}, not "
            f"{config.evaluate.metric!r}"
        )
    for name in model_names(config):
        models.build(name, num_classes=2)
    low, high = part.learning_rate_bounds
    if not low <= part.learning_rate <= high:
        raise InputError(
            f"iadd.learning_rate must lie within its bounds {low} .. {high}, "
            f"not at {part.learning_rate}"
        )
    settings = iadd.Settings(
        inner_steps=part.inner_steps,
        batch_size=part.batch_size,
        augment=augment.parse(part.augment),
        image_step=part.image_step,
        image_momentum=part.momentum,
        learning_rate_step=part.learning_rate_step,
        label_step=part.label_step,
        importance=importance_lib.Importance(**weight.to_dict()).check(),
    )
    if part.inner_steps < 1:
        settings.check(sys.maxsize)
    return settings


def recipe_of(config) -> training.Recipe:
    """How networks are trained on distilled images."""
    part = config.evaluate
    return training.Recipe(
        epochs=part.epochs,
        batch_size=part.batch_size,
        momentum=part.momentum,
        weight_decay=part.weight_decay,
        decay_at_half=True,
        augment=augment.parse(part.augment),
    )


def model_names(config) -> list[str]:
    """The networks that results are tested on."""
    return [name.strip() for name in config.evaluate.models.split(",")]


def final_key(config) -> jax.Array:
    """What the final evaluation's networks draw from."""
    return jax.random.fold_in(jax.random.key(config.seed), _FINAL)


def is_complete(config, workdir: Path, method: str = "iadd") -> bool:
    """Whether the folder holds this config's finished run.

    Args:
      config: see configs/common.py.
      workdir: the run's folder.
      method: the fields of other methods do not matter.

    Raises:
      InputError: it holds another config's.
    """
    there = _recorded(workdir).get("config")
    if there is None:
        return False
    described = _described(config, method)
    if method == "iadd" and any(f.startswith("d2m.") for f in there):
        raise InputError(
            f"{workdir} holds a run of D2M: name another --workdir"
        )
    changed = [
        f"{field} is {there.get(field)!r} there and {value!r} here"
        for field, value in described.items()
        if there.get(field) != value
    ]
    if changed:
        raise InputError(
            f"{workdir} holds a run of another config "
            f"({'; '.join(changed[:3])}): name another --workdir"
        )
    return (workdir / "report.html").exists()


def _recorded(workdir: Path) -> dict[str, object]:
    """What config.json says, nothing where there is none."""
    path = workdir / "config.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        found["config"].keys()
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path} is damaged: remove {workdir} or name another --workdir"
        ) from None
    return found


_FOREIGN = {"iadd": ("gan.", "d2m."), "d2m": ()}
"""What a method's runs have nothing to do with; of IADD's part, D2M's runs
need what decides how long teachers are."""


def _described(config, method) -> dict[str, object]:
    """The config as JSON gives it back: tuples are lists."""
    return {
        field: json.loads(json.dumps(value))
        for field, value in common.flat(config).items()
        if not field.startswith(_FOREIGN[method])
    }


def check_images(config, workdir: Path, data_folder: Path) -> None:
    """InputError where a finished run's images are no longer the same."""
    try:
        splits, _ = teachers_script.load(config, data_folder)
    except InputError:
        return  # gone or unfit, but the run is there
    _check_same(workdir, sources.fingerprint(*splits))


def _check_same(workdir, data):
    if _recorded(workdir).get("data", data) != data:
        raise InputError(
            f"{workdir} holds a run on other images, the files behind "
            "data.data_dir have changed since: name another --workdir, or "
            "bring the old files back"
        )


def claim(
    config, workdir: Path, splits: sources.Splits, method: str = "iadd"
) -> None:
    """Makes the folder this config's, and writes down what runs in it.

    Raises:
      InputError: a run was begun there on other images.
    """
    data = sources.fingerprint(*splits)
    _check_same(workdir, data)
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_json(
        workdir / "config.json",
        {
            "config": _described(config, method),
            "data": data,
            "command": " ".join(["python", *sys.argv]),
            "versions": {
                name: metadata.version(name)
                for name in ("ddjax", "jax", "flax", "optax", "numpy")
            },
            "device": f"{jax.local_device_count()} x "
            f"{jax.devices()[0].device_kind}",
        },
    )


def choose_initial(config, setting) -> iadd.Distilled:
    """Random real images of each class, class by class."""
    train = setting.splits.train
    key = jax.random.fold_in(jax.random.key(config.seed), _INITIAL)
    chosen = sources.per_class_indices(
        key, train.labels, setting.num_classes, config.iadd.ipc
    )
    return iadd.Distilled(
        preprocess.apply(
            setting.preprocessing, jnp.asarray(train.images[chosen])
        ),
        sources.one_hot(train.labels[chosen], setting.num_classes),
        config.iadd.learning_rate,
    )


def distil(config, workdir, setting, settings, initial, store):
    """The outer loop, from the last checkpoint to the last iteration."""
    key = jax.random.key(config.seed)
    state = iadd.init_state(
        jax.random.fold_in(key, _STATE),
        initial,
        store.snapshot(0, 0),
        settings,
    )
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints")
    restored = checkpoints.restore(state)
    step = 0
    if restored is not None:
        step, state = restored
        print(f"going on from the checkpoint of update {step}")
    state = parallel.replicate(state)
    # Before the first checkpoint nothing is kept, the look at step 0 included.
    log = metrics.Metrics(workdir / "metrics.jsonl", step or -1)
    (workdir / "looks").mkdir(exist_ok=True)
    look_at = launch.look_steps(config.evaluate.looks, config.iadd.iterations)
    update = parallel.over_devices(
        functools.partial(
            iadd.update,
            apply_fn=training.apply_fn_of(setting.module),
            settings=settings,
        )
    )
    segment_key = jax.random.fold_in(key, _SEGMENTS)
    if step == 0:
        look(config, workdir, setting, settings, state, 0, log)
    spent, since = 0.0, step
    bar = launch.progress(
        "iadd", config.iadd.iterations, unit="update", initial=step
    )
    with bar:
        while step < config.iadd.iterations:
            segments = parallel.shard(
                draw_segments(
                    config, store, jax.random.fold_in(segment_key, step)
                )
            )
            begin = time.perf_counter()
            after, row = update(state, segments)
            row = {name: float(value) for name, value in row.items()}
            spent += time.perf_counter() - begin
            _guard(config, step + 1, row, checkpoints)
            state, step = after, step + 1
            bar.update()
            bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
            if step % config.log.every == 0 or step == config.iadd.iterations:
                row["seconds"] = round(spent / (step - since), 4)  # an update
                spent, since = 0.0, step
                if settings.importance.form != "none":
                    row["importance"] = weight_summary(
                        settings, state, _first(segments)
                    )
                log.write(step, row)
            if step in look_at:
                look(config, workdir, setting, settings, state, step, log)
            if (
                step % config.log.checkpoint_every == 0
                or step == config.iadd.iterations
            ):
                checkpoints.save(step, state)
    checkpoints.close()
    return state


def draw_segments(config, store, key) -> Segment:
    """``iadd.segments`` random segments, stacked."""
    drawn = [
        store.sample(
            jax.random.fold_in(key, i),
            max_start=config.iadd.max_start,
            span=config.iadd.span,
        )
        for i in range(config.iadd.segments)
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)


def _first(segments) -> Segment:
    return jax.tree.map(lambda leaf: leaf[0, 0], segments)


def _guard(config, step, row, checkpoints) -> None:
    """Stops a run that has left the numbers; its last checkpoint stays."""
    low, high = config.iadd.learning_rate_bounds
    rate = row["learning_rate"]
    broken = [
        name
        for name in ("loss", "image_gradient_norm")
        if not np.isfinite(row[name])
    ]
    if broken:
        cause = (
            f"the {broken[0].replace('_', ' ')} is {row[broken[0]]} at "
            f"learning rate {rate:.3g}; lower iadd.image_step or "
            "iadd.learning_rate"
        )
    elif not low <= rate <= high:
        cause = (
            f"the learning rate {rate:.3g} leaves its bounds {low} .. {high}; "
            "lower iadd.learning_rate_step or widen "
            "iadd.learning_rate_bounds"
        )
    else:
        return
    raise InputError(f"update {step}: {cause}; {checkpoints.kept()}")


def look(config, workdir, setting, settings, state, step, log) -> None:
    """Scores a state on held-out training images, and keeps its images."""
    data = iadd.distilled(state, settings)
    held_out = setting.splits.held_out
    images, left = teachers_script.as_input(
        held_out.images, setting.preprocessing
    )
    score = evaluate.evaluate(
        jax.random.fold_in(
            jax.random.fold_in(jax.random.key(config.seed), _LOOKS), 0
        ),
        evaluate.stored(data.images, data.labels),
        Batch(images, held_out.labels),
        setting.module,
        recipe=recipe_of(config),
        learning_rate=data.learning_rate,
        num_networks=config.evaluate.look_networks,
        test_preprocessing=left,
    )
    with files.atomic_write(workdir / "looks" / f"{step:07d}.npz") as file:
        np.savez(file, **{k: np.asarray(v) for k, v in data._asdict().items()})
    row = {}
    for metric in METRICS:
        found = by_metric(score, metric)
        row[f"held_out_{metric}"] = found.mean
        row[f"held_out_{metric}_std"] = found.std
    log.write(step, row)


METRICS = ("accuracy", "balanced_accuracy")


def by_metric(score: evaluate.EvalResult, metric: str) -> evaluate.EvalResult:
    """A result in the terms of one of ``METRICS``."""
    return score if metric == "accuracy" else evaluate.balanced(score)


def weight_summary(settings, state, segment) -> dict[str, dict[str, float]]:
    """W's spread in every tensor."""
    weights = importance_lib.weights(
        settings.importance, state.importance, segment
    )
    return {
        _name(path): {
            "mean": float(leaf.mean()),
            "std": float(leaf.std()),
            "min": float(leaf.min()),
            "max": float(leaf.max()),
        }
        for path, leaf in jax.tree_util.tree_leaves_with_path(weights)
    }


def _name(path) -> str:
    return ".".join(entry.key for entry in path)


def conclude(config, workdir, setting, settings, initial, store, state):
    """Everything after the last update; the one use of the test set."""
    rows = metrics.read(workdir / "metrics.jsonl")
    field = f"held_out_{config.evaluate.metric}"
    looks = {row["step"]: row[field] for row in rows if field in row}
    # Step 0 is only the curve's start. The earliest of equals is taken: later
    # updates bought nothing that was seen.
    del looks[0]
    selected = max(sorted(looks), key=looks.get)
    chosen = _load_look(workdir, selected)
    scores = final_scores(
        config, workdir, setting, initial, looks, selected, store.folder.parent
    )
    write_difference(config, workdir, setting, settings, store, state)
    names = setting.splits.train.class_names
    pixels = functools.partial(preprocess.invert, setting.preprocessing)
    artifact.save(
        workdir / "distilled.npz",
        artifact.Artifact(
            pixels(chosen.images),
            chosen.labels,
            float(chosen.learning_rate),
            setting.preprocessing,
            {
                "class_names": list(names),
                "method": "IADD",
                "model": config.model.to_dict(),
                "augmentation": config.iadd.augment,
                "evaluation": recipe_of(config)._asdict(),
                "selected_step": selected,
                "config": common.flat(config),
                "versions": json.loads((workdir / "config.json").read_text())[
                    "versions"
                ],
                "scores": scores,
            },
        ),
    )
    with files.atomic_write(workdir / "initial.npz") as file:
        np.savez(
            file,
            images=np.asarray(pixels(initial.images)),
            labels=np.asarray(initial.labels),
        )
    pictures.save_picture(
        workdir / "distilled.png",
        np.asarray(pixels(chosen.images)),
        np.asarray(chosen.labels).argmax(-1),
        names,
    )
    files.write_json(workdir / "eval.json", scores)
    report_page.write_page(workdir)
    for row, by_model in scores.items():
        for model, score in by_model.items():
            result = evaluate.summarise(score["accuracies"])
            print(f"{row:16} {score_line(model, result)}")


def score_line(model: str, score: evaluate.EvalResult) -> str:
    """One line for a person; one network has no interval."""
    count = len(score.accuracy)
    if count == 1:
        return f"{model:8} {100 * score.mean:6.2f} % (1 network)"
    return (
        f"{model:8} {100 * score.mean:6.2f} % +- {100 * score.ci95:.2f} "
        f"(95% interval, {count} networks)"
    )


def _load_look(workdir, step) -> iadd.Distilled:
    with np.load(
        workdir / "looks" / f"{step:07d}.npz", allow_pickle=False
    ) as file:
        return iadd.Distilled(**{name: file[name] for name in file.files})


def final_scores(
    config, workdir, setting, initial, looks, selected, teachers_dir
):
    """eval.json: {row: {model: {mean, std, ci95, accuracies, ..}}}."""
    test = setting.splits.test
    key = final_key(config)
    images, left = teachers_script.as_input(test.images, setting.preprocessing)
    score = functools.partial(
        evaluate.evaluate,
        test=Batch(images, test.labels),
        num_networks=config.evaluate.networks,
        test_preprocessing=left,
    )
    recipe = recipe_of(config)
    last = config.iadd.iterations

    def on(data, module, rate=None):
        return score(
            key,
            evaluate.stored(data.images, data.labels),
            module=module,
            recipe=recipe,
            learning_rate=data.learning_rate if rate is None else rate,
        )

    rows: dict[str, dict] = {}

    def add(row, model, result, **more):
        rows.setdefault(row, {})[model] = whole_as_json(result) | more

    names = model_names(config)
    bar = launch.progress("test", 5 * len(names), unit="row")
    for model in names:
        module = setting.network(config, model)
        at_looks = {
            step: on(_load_look(workdir, step), module)
            for step in sorted(looks)
        }
        bar.update()
        best = max(
            at_looks,
            key=lambda step: (
                by_metric(at_looks[step], config.evaluate.metric).mean
            ),
        )
        add("distilled", model, at_looks[selected])
        add("distilled_last", model, at_looks[last])
        bar.update()
        add(
            "random_real",
            model,
            random_real(
                config, setting, module, score, recipe, config.iadd.ipc
            ),
        )
        bar.update()
        add(
            "real_initial",
            model,
            on(initial, module, config.evaluate.real_learning_rate),
        )
        bar.update()
        add(
            "full_data",
            model,
            full_data(config, setting, model, module, score, teachers_dir),
        )
        bar.update()
        add(
            "best_of_looks",
            model,
            at_looks[best],
            looks=len(at_looks),
            step=best,
        )
    bar.close()
    return rows


def whole_as_json(result: evaluate.EvalResult) -> dict[str, object]:
    """A result with balanced accuracy and recalls, for eval.json."""
    return as_json(result) | {
        "balanced_accuracy": as_json(evaluate.balanced(result)),
        "recall": [
            None if np.isnan(recall) else recall
            for recall in result.recall.mean(0).tolist()
        ],
    }


def as_json(result: evaluate.EvalResult) -> dict[str, object]:
    """A result as JSON holds it."""
    return {
        "mean": result.mean,
        "std": result.std,
        "ci95": result.ci95,
        "accuracies": result.accuracy.tolist(),
    }


def full_data(config, setting, model, module, score, folder):
    """Networks trained on all training images, as the teachers are.

    They do not depend on what is distilled: a file beside the teachers shares
    them between runs.
    """
    recipe = training.Recipe(
        epochs=config.teacher.epochs,
        batch_size=config.teacher.batch_size,
        augment=augment.parse(config.teacher.augment),
    )
    shaped_by = {
        "data": sources.fingerprint(setting.splits.train, setting.splits.test),
        "preprocess": config.data.preprocess,
        "model": repr(module),
        "recipe": recipe._asdict(),
        "learning_rate": config.teacher.learning_rate,
        "seed": config.seed,
        "networks": config.evaluate.networks,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
    }
    digest = hashlib.sha256(json.dumps(shaped_by, sort_keys=True).encode())
    path = folder / f"full_data-{model}-{digest.hexdigest()[:12]}.json"
    try:
        found = json.loads(path.read_text())
        return evaluate.summarise(
            found["accuracy"], np.array(found["recall"], np.float64)
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # not there, or damaged: it can be had again
    data, left = teachers_script.whole(setting)
    result = score(
        final_key(config),
        evaluate.stored(*data) if isinstance(data, Batch) else data,
        module=module,
        recipe=recipe,
        learning_rate=config.teacher.learning_rate,
        preprocessing=left,
    )
    recall = [
        [None if np.isnan(value) else value for value in row]
        for row in result.recall.tolist()
    ]
    files.write_json(
        path,
        {
            "accuracy": result.accuracy.tolist(),
            "recall": recall,
            "shaped_by": shaped_by,
        },
    )
    return result


def random_real(config, setting, module, score, recipe, ipc):
    """As many real images; each network draws its own."""
    train = setting.splits.train
    key = jax.random.fold_in(jax.random.key(config.seed), _RANDOM_REAL)
    results = []
    for network in range(config.evaluate.networks):
        draw = jax.random.fold_in(key, network)
        chosen = sources.per_class_indices(
            draw, train.labels, setting.num_classes, ipc
        )
        result = score(
            draw,
            evaluate.stored(
                preprocess.apply(setting.preprocessing, train.images[chosen]),
                sources.one_hot(train.labels[chosen], setting.num_classes),
            ),
            module=module,
            recipe=recipe,
            learning_rate=config.evaluate.real_learning_rate,
            num_networks=1,
        )
        results.append(result)
    return evaluate.joined(results)


def write_difference(config, workdir, setting, settings, store, state):
    """How far the last student ends from its teacher, parameter by parameter.

    One segment, drawn for this purpose; at most 20,000 parameters a tensor.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), _FINAL)
    segment = store.sample(
        key, max_start=config.iadd.max_start, span=config.iadd.span
    )
    student, _ = iadd.unroll_student(
        iadd.distilled(state, settings),
        segment.start,
        key,
        apply_fn=training.apply_fn_of(setting.module),
        settings=settings,
    )
    weights = importance_lib.weights(
        settings.importance, state.importance, segment
    )
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
    with files.atomic_write(workdir / "difference.npz") as file:
        np.savez(file, **arrays)


if __name__ == "__main__":
    launch.main(run, __doc__)
