"""D2M: distils a data set into a conditional generator, and reports on it.

    python experiments/d2m.py --config=configs/tiny.py

Pre-trains the generator and trains the teachers if they are missing, distils
the generator by matching features and predictions of real and generated
images, evaluates what it makes at several numbers of images per class, and
writes generator/, eval.json and report.html into the run's folder. A killed
run goes on from its last checkpoint to the same result; a finished one says so
and does nothing. ``experiments/generate.py`` makes images of the result.
"""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import gan as gan_script
import iadd as iadd_script
import jax
import launch
import numpy as np
import teachers as teachers_script

from configs import common
from ddjax import (
    artifact,
    augment,
    checkpoint,
    d2m,
    evaluate,
    files,
    metrics,
    models,
    parallel,
    training,
    trajectories,
)
from ddjax.data import preprocess, sources
from ddjax.pages import gan as gan_page
from ddjax.pages import pictures
from ddjax.pages import report as report_page
from ddjax.types import Batch, InputError

_STATE, _BATCHES, _LOOKS, _FINAL = range(200, 204)
_CHECKED = (
    ("d2m", "iterations"),
    ("d2m", "per_class"),
    ("d2m", "groups"),
    ("d2m", "redraw_every"),
    ("evaluate", "look_networks"),
    ("evaluate", "looks"),
    ("log", "every"),
    ("log", "checkpoint_every"),
)
_TESTED = (
    ("d2m", "stream_ipc"),
    ("evaluate", "networks"),
    ("evaluate", "batch_size"),
)


def run(config, workdir: Path, shared: launch.Shared) -> None:
    """The whole pipeline of one config.

    Args:
      config: see configs/common.py.
      workdir: of this run.
      shared: where data, teachers and generators lie.
    """
    settings = settings_of(config)
    if iadd_script.is_complete(config, workdir, "d2m"):
        iadd_script.check_images(config, workdir, shared.data)
        print(f"this run is complete: see {workdir / 'report.html'}")
        return
    setting = teachers_script.prepare(config, shared.data)
    check(config, setting, settings)
    given, kept = None, workdir / "generator" / "pretrained.npz"
    if kept.exists():  # of a run that was stopped: it goes on with its own
        given = artifact.load_generator(kept)
        check_generator(kept, given, setting)
    elif config.d2m.generator:
        given = load_generator(Path(config.d2m.generator))
        check_generator(config.d2m.generator, given, setting)
        check_source(config.d2m.generator, given, setting)
    # Only now, when the config has proved possible, is the folder taken.
    iadd_script.claim(config, workdir, setting.splits, "d2m")
    if given is None:
        folder = gan_script.train(config, setting, shared)
        given = artifact.load_generator(folder / "generator.npz")
        gan_page.copy_pretraining(folder, workdir)
    given = given._replace(preprocessing=setting.preprocessing)
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        artifact.save_generator(kept, given)
    draw_networks = networks_of(config, setting, shared)
    distil(config, workdir, setting, settings, given, draw_networks)
    conclude(config, workdir, setting, settings, given, shared)
    print(f"report: {workdir / 'report.html'}")


def settings_of(config) -> d2m.Settings:
    """What the library needs of ``config.d2m``; what numbers alone can tell
    is checked."""
    part = config.d2m
    for group, field in _CHECKED:
        if config[group][field] < 1:
            raise InputError(
                f"{group}.{field} must be at least 1, not "
                f"{config[group][field]}"
            )
    if part.groups % jax.local_device_count():
        raise InputError(
            f"d2m.groups must be a multiple of the "
            f"{jax.local_device_count()} devices, not {part.groups}"
        )
    if part.networks not in ("trained", "random"):
        raise InputError(
            f"d2m.networks must be trained or random, not {part.networks!r}"
        )
    teachers_script.recipe_of(config)
    trajectories.check_range(
        config.iadd.max_start, config.iadd.span, config.teacher.epochs
    )
    stored = config.iadd.max_start + config.iadd.span
    if part.networks == "trained" and not 0 <= part.first_epoch <= stored:
        raise InputError(
            f"d2m.first_epoch must lie in 0..{stored}, the last epoch that "
            "teachers store (iadd.max_start + iadd.span), not at "
            f"{part.first_epoch}"
        )
    check_evaluation(config)
    if not part.generator:
        gan_script.settings_of(config)
    return d2m.Settings(
        rate=part.rate,
        average=part.average,
        augment=augment.parse(part.augment),
        layers=tuple(filter(None, map(str.strip, part.layers.split(",")))),
        power=part.power,
        temperature=part.temperature,
        embedding=part.embedding,
        balance=part.balance,
    )


def check_evaluation(config) -> None:
    """InputError where results cannot be tested as the config says."""
    for group, field in _TESTED:
        if config[group][field] < 1:
            raise InputError(
                f"{group}.{field} must be at least 1, not "
                f"{config[group][field]}"
            )
    if config.evaluate.metric not in iadd_script.METRICS:
        raise InputError(
            f"evaluate.metric must be {' or '.join(iadd_script.METRICS)}, not "
            f"{config.evaluate.metric!r}"
        )
    recipes_of(config)
    for name in iadd_script.model_names(config):
        models.build(name, num_classes=2)


def recipes_of(config) -> dict[int, training.Recipe]:
    """{images per class: how networks are trained on them}, checked."""
    ipcs = numbers(config.d2m.ipcs, "d2m.ipcs")
    epochs = numbers(config.d2m.epochs, "d2m.epochs")
    if len(epochs) == 1:
        epochs *= len(ipcs)
    if len(set(ipcs)) != len(ipcs):
        raise InputError(
            f"d2m.ipcs must be different numbers, not {config.d2m.ipcs!r}"
        )
    if len(epochs) != len(ipcs):
        raise InputError(
            f"d2m.epochs must be one number, or one for each of d2m.ipcs="
            f"{config.d2m.ipcs}, not {config.d2m.epochs!r}"
        )
    recipe = iadd_script.recipe_of(config)
    return {
        ipc: recipe._replace(epochs=count) for ipc, count in zip(ipcs, epochs)
    }


def numbers(joined: str, what: str) -> list[int]:
    """ "1,10" as [1, 10]; InputError where one is no positive number."""
    words = [word.strip() for word in str(joined).split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise InputError(
            f"{what} must be numbers of at least 1 joined by commas, not "
            f"{joined!r}"
        )
    return [int(word) for word in words]


def check(config, setting, settings) -> None:
    """What only the data can tell: layers, classes, enough images."""
    train = setting.splits.train
    shape, k = train.images.shape[1:], setting.num_classes
    settings.check(feature_names(setting.module, shape))
    if not config.d2m.generator:
        gan_script.networks_of(config, shape, k)
    if not 0 <= config.d2m.classes <= k:
        raise InputError(
            f"d2m.classes must lie in 0..{k} (the data set's classes; 0: all), "
            f"not at {config.d2m.classes}"
        )
    sources.ByClass(train.labels, k)
    # Random real images stand beside every number of generated ones.
    sources.per_class_indices(
        jax.random.key(0),
        train.labels,
        k,
        max(recipes_of(config)),
        field="d2m.ipcs",
    )


def feature_names(module, image_shape) -> list[str]:
    """The names of a network's features."""
    _, out = jax.eval_shape(
        lambda images: training.apply_fn_of(module)(
            models.init_params(module, jax.random.key(0), image_shape), images
        ),
        jax.ShapeDtypeStruct((1, *image_shape), np.float32),
    )
    return sorted(out)


def load_generator(path: Path) -> artifact.GeneratorArtifact:
    """The generator of a file, of a pre-training's folder, or of a run's.

    Raises:
      InputError: there is none, or it is damaged.
    """
    for inside in ("generator/distilled.npz", "generator.npz", "distilled.npz"):
        if (path / inside).exists():
            path = path / inside
            break
    else:
        if path.is_dir():
            raise InputError(
                f"{path} holds no generator: name the folder of a finished "
                "run of experiments/d2m.py or experiments/gan.py, or the .npz "
                "file"
            )
    return artifact.load_generator(path)


def check_generator(path, found, setting) -> None:
    """InputError where a generator does not make this data set's images."""
    train = setting.splits.train
    module = found.apply.module
    made = (module.size, module.size, module.channels)
    if made != train.images.shape[1:]:
        raise InputError(
            f"the generator in {path} makes images of {made}, the config's "
            f"data set has {train.images.shape[1:]}: name the config that it "
            "was made with"
        )
    if list(train.class_names) != found.metadata["class_names"]:
        raise InputError(
            f"the generator in {path} was made for the classes "
            f"{some(found.metadata['class_names'])}, the config's data set "
            f"has {some(train.class_names)}: name the config that it was made "
            "with"
        )


def check_source(path, found, setting) -> None:
    """InputError where a generator was trained on other images: they may be
    those that this run holds out, or tests on."""
    known = found.metadata.get("shaped_by", found.metadata)
    if known.get("data") != sources.fingerprint(setting.splits.train):
        raise InputError(
            f"the generator in {path} was trained on other images than this "
            "config's training images: give the same data fields and seed"
        )


def some(names) -> str:
    """Names for a sentence, the first five where there are many."""
    names = list(map(str, names))
    more = f" .. ({len(names)})" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def networks_of(config, setting, shared):
    """A function of a key that gives the params of a network of the pool.

    Trained networks are the teachers' snapshots, any teacher at any stored
    epoch from d2m.first_epoch on; random ones are made as they are needed.
    """
    if config.d2m.networks == "random":
        shape = setting.splits.train.images.shape[1:]
        return jax.jit(
            lambda key: models.init_params(setting.module, key, shape)
        )
    store = teachers_script.train(config, setting, shared.teachers)
    first = config.d2m.first_epoch

    def draw(key):
        share = np.asarray(_two_uniform(key), np.float64)
        return store.snapshot(
            int(share[0] * store.count),
            first + int(share[1] * (store.epochs - first + 1)),
        )

    return draw


_two_uniform = jax.jit(lambda key: jax.random.uniform(key, (2,)))


def distil(config, workdir, setting, settings, given, draw_network) -> None:
    """The updates, from the last checkpoint to the last iteration."""
    key = jax.random.key(config.seed)
    state = d2m.init_state(
        jax.random.fold_in(key, _STATE), given.params, settings
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
    if step == 0:
        look(config, workdir, setting, given, state.average, 0, log)
    update = parallel.over_devices(
        functools.partial(
            d2m.update,
            gen_apply=given.apply,
            apply_fn=training.apply_fn_of(setting.module),
            preprocessing=setting.preprocessing,
            settings=settings,
        )
    )
    draw = Groups(config, setting, draw_network)
    last = config.d2m.iterations
    look_at = launch.look_steps(config.evaluate.looks, last)
    spent, since = 0.0, step
    with launch.progress("d2m", last, unit="update", initial=step) as bar:
        while step < last:
            begin = time.perf_counter()
            groups = parallel.shard(draw(step))
            after, row = update(state, groups)
            row = {name: float(value) for name, value in row.items()}
            spent += time.perf_counter() - begin
            gan_script.guard("d2m", step + 1, row, checkpoints, "d2m.rate")
            state, step = after, step + 1
            bar.update()
            bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
            if step % config.log.every == 0 or step == last:
                row["seconds"] = round(spent / (step - since), 4)  # an update
                spent, since = 0.0, step
                log.write(step, row)
            if step in look_at:
                look(config, workdir, setting, given, state.average, step, log)
            if step % config.log.checkpoint_every == 0 or step == last:
                checkpoints.save(step, state)
    checkpoints.close()


class Groups:
    """What an update is made of: networks and real images, by its number."""

    def __init__(self, config, setting, draw_network):
        """Keeps the networks until they are to be drawn again."""
        self._part = config.d2m
        self._key = jax.random.fold_in(jax.random.key(config.seed), _BATCHES)
        self._data = setting.splits.train
        self._by_class = sources.ByClass(self._data.labels, setting.num_classes)
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


def balanced_labels(num_classes: int, ipc: int) -> np.ndarray:
    """Class by class, as many of each: [ipc * k]."""
    return np.repeat(np.arange(num_classes, dtype=np.int32), ipc)


make = jax.jit(gan_script.make, static_argnums=0)


def stored_score(
    recipe, key, found, params, ipc, score, count
) -> evaluate.EvalResult:
    """The stored protocol: images drawn once, the same in every epoch.

    Each network draws its own images; two generators are given the same noise
    and the same first parameters.
    """
    k = found.apply.module.num_classes
    labels = balanced_labels(k, ipc)
    results = []
    for network in range(count):
        draw = jax.random.fold_in(key, network)
        pixels = make(found.apply, params, draw, labels)
        result = score(
            draw,
            evaluate.stored(
                preprocess.apply(found.preprocessing, pixels),
                sources.one_hot(labels, k),
            ),
            recipe=recipe,
            num_networks=1,
        )
        results.append(result)
    return evaluate.joined(results)


def look(config, workdir, setting, given, params, step, log) -> None:
    """Scores a generator on held-out training images, and keeps it.

    By the stored protocol at the middle one of ``d2m.ipcs``, by size.
    """
    recipes = recipes_of(config)
    ipc = sorted(recipes)[len(recipes) // 2]
    held_out = setting.splits.held_out
    images, left = teachers_script.as_input(
        held_out.images, setting.preprocessing
    )
    score = functools.partial(
        evaluate.evaluate,
        test=Batch(images, held_out.labels),
        module=setting.module,
        learning_rate=config.evaluate.real_learning_rate,
        test_preprocessing=left,
    )
    found = stored_score(
        recipes[ipc],
        jax.random.fold_in(jax.random.key(config.seed), _LOOKS),
        given,
        params,
        ipc,
        score,
        config.evaluate.look_networks,
    )
    artifact.save_generator(
        _look_path(workdir, step), given._replace(params=params)
    )
    row = {}
    for metric in iadd_script.METRICS:
        by_metric = iadd_script.by_metric(found, metric)
        row[f"held_out_{metric}"] = by_metric.mean
        row[f"held_out_{metric}_std"] = by_metric.std
    log.write(step, row)


def _look_path(workdir: Path, step: int) -> Path:
    return workdir / "looks" / f"{step:07d}.npz"


def conclude(config, workdir, setting, settings, given, shared) -> None:
    """Everything after the last update; what is selected is selected before
    the test set is looked at."""
    rows = metrics.read(workdir / "metrics.jsonl")
    field = f"held_out_{config.evaluate.metric}"
    looks = {row["step"]: row[field] for row in rows if field in row}
    # Step 0 is the generator before distillation. The earliest of equals is
    # taken: later updates bought nothing that was seen.
    looks.pop(0, None)
    if not looks:
        raise InputError(
            f"{workdir / 'metrics.jsonl'} has lost its lines: remove {workdir} "
            "and run the same command to start again"
        )
    selected = max(sorted(looks), key=looks.get)
    found = artifact.load_generator(_look_path(workdir, selected))
    scores = final_scores(config, setting, given, found, shared.teachers)
    names = setting.splits.train.class_names
    described = json.loads((workdir / "config.json").read_text())
    artifact.save_generator(
        workdir / "generator" / "distilled.npz",
        found._replace(
            metadata={
                "class_names": list(names),
                "method": "D2M",
                "data": sources.fingerprint(setting.splits.train),
                "model": config.model.to_dict(),
                "augmentation": config.d2m.augment,
                "evaluation": iadd_script.recipe_of(config)._asdict(),
                "learning_rate": config.evaluate.real_learning_rate,
                "selected_step": selected,
                "config": common.flat(config),
                "versions": described["versions"],
                "scores": scores,
            }
        ),
    )
    files.write_json(workdir / "eval.json", scores)
    _keep_samples(config, workdir, setting, given, found)
    report_page.write_page(workdir)
    print_scores(scores)
    print(
        f"the generator has as many numbers as {found.size_in_images:.1f} "
        "images of the data set"
    )


def print_scores(scores) -> None:
    """A line for each row and network."""
    for row, by_model in scores.items():
        for model, score in by_model.items():
            result = evaluate.summarise(score["accuracies"])
            print(f"{row:24} {iadd_script.score_line(model, result)}")


def final_scores(config, setting, given, found, teachers_dir):
    """eval.json: {row: {model: {mean, std, ci95, accuracies, ..}}}.

    Rows are PROTOCOL/IPC/WHAT: stored/10/distilled, stored/10/pretrained,
    stored/10/random_real, stream/50/distilled, stream/50/pretrained; and
    full_data.
    """
    rows = generated_scores(
        config,
        setting,
        given,
        {"distilled": found.params, "pretrained": given.params},
    )
    for model, rated, module in tests_of(config, setting):
        rated = functools.partial(rated, num_networks=config.evaluate.networks)
        for ipc, recipe in recipes_of(config).items():
            result = iadd_script.random_real(
                config, setting, module, rated, recipe, ipc
            )
            rows.setdefault(f"stored/{ipc}/random_real", {})[model] = (
                iadd_script.whole_as_json(result)
            )
        result = iadd_script.full_data(
            config, setting, model, module, rated, teachers_dir
        )
        rows.setdefault("full_data", {})[model] = iadd_script.whole_as_json(
            result
        )
    return rows


def tests_of(config, setting):
    """(name, evaluate.evaluate on the test images, module) of each network."""
    test = setting.splits.test
    images, left = teachers_script.as_input(test.images, setting.preprocessing)
    for model in iadd_script.model_names(config):
        module = setting.network(config, model)
        yield (
            model,
            functools.partial(
                evaluate.evaluate,
                test=Batch(images, test.labels),
                test_preprocessing=left,
            ),
            module,
        )


def generated_scores(config, setting, found, sides):
    """The rows of ``final_scores`` that generated images make.

    Args:
      config: see configs/common.py.
      setting: the data.
      found: the generator's apply and preprocessing.
      sides: {what: generator's params}.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), _FINAL)
    recipes, ipc_stream = recipes_of(config), config.d2m.stream_ipc
    count = config.evaluate.networks
    rows: dict[str, dict] = {}
    total = len(iadd_script.model_names(config)) * len(sides)
    bar = launch.progress("test", total * (len(recipes) + 1), unit="row")
    for model, rated, module in tests_of(config, setting):
        score = functools.partial(
            rated,
            module=module,
            learning_rate=config.evaluate.real_learning_rate,
        )

        def add(row, result, model=model):
            whole = iadd_script.whole_as_json(result)
            rows.setdefault(row, {})[model] = whole
            bar.update()

        for ipc, recipe in recipes.items():
            for side, params in sides.items():
                result = stored_score(
                    recipe, key, found, params, ipc, score, count
                )
                add(f"stored/{ipc}/{side}", result)
        for side, params in sides.items():
            sample_fn = gan_script.generated_epoch(
                found.apply, params, found.preprocessing, ipc_stream
            )
            # One after another: each holds an epoch's images of its own.
            result = evaluate.joined(
                [
                    score(
                        jax.random.fold_in(key, network),
                        sample_fn,
                        recipe=stream_recipe(config),
                        num_networks=1,
                    )
                    for network in range(count)
                ]
            )
            add(f"stream/{ipc_stream}/{side}", result)
    bar.close()
    return rows


def stream_recipe(config) -> training.Recipe:
    """As long as on the largest stored set."""
    recipes = recipes_of(config)
    return recipes[max(recipes)]


def _keep_samples(config, workdir, setting, given, found):
    """Real, pre-trained and distilled images of the same classes."""
    made = {}
    for side, params in (
        ("pretrained", given.params),
        ("distilled", found.params),
    ):
        made[side], labels = gan_script.sample_grid(config, given.apply, params)
    train = setting.splits.train
    rows = sources.ByClass(train.labels, setting.num_classes).draw(
        jax.random.key(config.seed), labels
    )
    made["real"] = np.asarray(preprocess.to_unit(train.images[rows]))
    with files.atomic_write(workdir / "samples.npz") as file:
        np.savez(file, labels=labels, **made)
    pictures.save_picture(
        workdir / "distilled.png",
        made["distilled"],
        labels,
        setting.splits.train.class_names,
    )


if __name__ == "__main__":
    launch.main(run, __doc__)
