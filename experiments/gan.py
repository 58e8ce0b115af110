"""Pre-trains the generator that D2M distils, or goes on where it stopped.

    python experiments/gan.py --config=configs/tiny.py

A class-conditional BigGAN is trained on the real images of the config's
``gan`` part. Samples are kept as it goes; at the end its quality is measured
and report.html written beside it. ``experiments/d2m.py`` calls this by itself;
runs with the same data and ``gan`` part share the folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

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
    d2m,
    evaluate,
    files,
    gan,
    metrics,
    parallel,
    training,
    trajectories,
)
from ddjax.data import preprocess, sources
from ddjax.models import biggan
from ddjax.pages import report as report_page
from ddjax.types import Batch, InputError

_STATE, _DATA, _SAMPLES, _QUALITY = range(100, 104)
_SHAPED_BY = (
    "data.preprocess",
    "gan.width",
    "gan.noise",
    "gan.embedding",
    "gan.attention",
    "gan.iterations",
    "gan.critic_steps",
    "gan.batch_size",
    "gan.generator_rate",
    "gan.critic_rate",
    "gan.average",
    "gan.augment",
    "seed",
)


class Networks(NamedTuple):
    """The two players, in their training form."""

    generator: biggan.Generator
    critic: biggan.Critic


def networks_of(config, image_shape, num_classes: int) -> Networks:
    """What a config's ``gan`` part names, checked.

    Raises:
      InputError: images are not squares of a size that a BigGAN makes.
    """
    part = config.gan
    height, width, channels = image_shape
    if height != width:
        raise InputError(
            f"a BigGAN makes square images, these are {height} x {width}: "
            "set data.size"
        )
    attending = [side for side in (8, 16, 32, 64) if side < height]
    if part.attention and part.attention not in attending:
        raise InputError(
            f"gan.attention must be 0 or one of {attending} for images of "
            f"{height} pixels, not {part.attention}"
        )
    if part.attention and part.width < 8:
        raise InputError(
            "gan.width must be at least 8 where gan.attention is not 0, not "
            f"{part.width}"
        )
    critic = biggan.Critic(
        num_classes=num_classes,
        size=height,
        width=part.width,
        attention=part.attention,
    )
    generator = biggan.Generator(
        num_classes=num_classes,
        size=height,
        channels=channels,
        width=part.width,
        noise=part.noise,
        embedding=part.embedding,
        attention=part.attention,
    )
    # A layout that cannot be is refused here, before any work.
    for module in (generator, critic):
        jax.eval_shape(
            functools.partial(biggan.initialise, module, channels=channels),
            jax.random.key(0),
        )
    return Networks(generator, critic)


def settings_of(config) -> gan.Settings:
    """What the library needs of ``config.gan``, checked with what the
    measurements at the end need."""
    part = config.gan
    teachers_script.recipe_of(config)
    trajectories.check_range(
        config.iadd.max_start, config.iadd.span, config.teacher.epochs
    )
    for group, field in (
        ("log", "every"),
        ("log", "checkpoint_every"),
        ("evaluate", "look_networks"),
    ):
        if config[group][field] < 1:
            raise InputError(
                f"{group}.{field} must be at least 1, not "
                f"{config[group][field]}"
            )
    for field in (
        "width",
        "noise",
        "iterations",
        "critic_steps",
        "batch_size",
        "looks",
    ):
        if part[field] < 1:
            raise InputError(
                f"gan.{field} must be at least 1, not {part[field]}"
            )
    for field in ("embedding", "attention"):
        if part[field] < 0:
            raise InputError(
                f"gan.{field} must not be negative, not {part[field]}"
            )
    if part.batch_size % jax.local_device_count():
        raise InputError(
            f"gan.batch_size must be a multiple of the "
            f"{jax.local_device_count()} devices, not {part.batch_size}"
        )
    return gan.Settings(
        generator_rate=part.generator_rate,
        critic_rate=part.critic_rate,
        average=part.average,
        augment=augment.parse(part.augment),
    ).check()


def run(config, workdir: Path, shared: launch.Shared) -> None:
    """Pre-trains or finds the generator of a config.

    Args:
      config: see configs/common.py.
      workdir: not used; generators are shared between runs.
      shared: where data, teachers and generators lie.
    """
    setting = teachers_script.prepare(config, shared.data)
    folder = train(config, setting, shared)
    try:
        quality = json.loads((folder / "quality.json").read_text())
        score = evaluate.summarise(quality["classification_accuracy"])
    except (OSError, ValueError, KeyError):
        raise InputError(
            f"{folder / 'quality.json'} is damaged: remove {folder} to train "
            "again"
        ) from None
    print(
        f"classification accuracy score {100 * score.mean:.1f} % +- "
        f"{100 * score.ci95:.1f}, Frechet distance "
        f"{quality['frechet_distance']:.3g} on {quality['features']}"
    )
    print(f"report: {folder / 'report.html'}")


def folder_of(config, setting, generators: Path) -> tuple[Path, dict[str, Any]]:
    """Where the generator of a config lies, and all that shapes it."""
    values = common.flat(config)
    shaped_by: dict[str, Any] = {name: values[name] for name in _SHAPED_BY}
    # Each device normalises a batch of its own, and draws its own noise.
    if jax.local_device_count() > 1:
        shaped_by["devices"] = jax.local_device_count()
    shaped_by["data"] = sources.fingerprint(setting.splits.train)
    digest = hashlib.sha256(json.dumps(shaped_by, sort_keys=True).encode())
    name = config.data.source.replace("/", "_")
    return generators / f"{name}-{digest.hexdigest()[:12]}", shaped_by


def train(config, setting, shared: launch.Shared) -> Path:
    """The folder of a finished pre-training."""
    settings = settings_of(config)
    train_set = setting.splits.train
    networks = networks_of(
        config, train_set.images.shape[1:], setting.num_classes
    )
    folder, shaped_by = folder_of(config, setting, shared.generators)
    if (folder / "report.html").exists():
        found = artifact.load_generator(folder / "generator.npz")
        if found.metadata.get("shaped_by") != shaped_by:
            raise InputError(
                f"the generator in {folder} was pre-trained by another config: "
                f"remove {folder} to train it again"
            )
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "shaped_by.json", shaped_by)
    state = _pretrain(config, setting, settings, networks, folder)
    _conclude(config, setting, networks, folder, shared, state, shaped_by)
    return folder


def _pretrain(config, setting, settings, networks, folder):
    """From the last checkpoint to the last update."""
    key = jax.random.key(config.seed)
    state = jax.jit(
        lambda key: gan.init_state(key, *networks, settings),
    )(jax.random.fold_in(key, _STATE))
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
    restored = checkpoints.restore(state)
    step = 0
    if restored is not None:
        step, state = restored
        print(f"pre-training goes on from the checkpoint of update {step}")
    state = parallel.replicate(state)
    log = metrics.Metrics(folder / "metrics.jsonl", step)
    (folder / "samples").mkdir(exist_ok=True)
    update = parallel.over_devices(
        functools.partial(
            gan.update,
            generator=networks.generator,
            critic=networks.critic,
            settings=settings,
        )
    )
    data = setting.splits.train
    by_class = sources.ByClass(data.labels, setting.num_classes)
    look_at = launch.look_steps(config.gan.looks, config.gan.iterations)
    spent, since = 0.0, step
    with launch.progress(
        "gan", config.gan.iterations, unit="update", initial=step
    ) as bar:
        while step < config.gan.iterations:
            begin = time.perf_counter()
            batches = _draw(
                config,
                data,
                by_class,
                jax.random.fold_in(jax.random.fold_in(key, _DATA), step),
            )
            after, row = update(state, batches)
            row = {name: float(value) for name, value in row.items()}
            spent += time.perf_counter() - begin
            guard(
                "gan",
                step + 1,
                row,
                checkpoints,
                "gan.generator_rate and gan.critic_rate",
            )
            state, step = after, step + 1
            bar.update()
            last = step == config.gan.iterations
            if step % config.log.every == 0 or last:
                row["seconds"] = round(spent / (step - since), 4)
                spent, since = 0.0, step
                log.write(step, row)
            if step in look_at:
                _keep_samples(config, networks.generator, state, folder, step)
            if step % config.log.checkpoint_every == 0 or last:
                checkpoints.save(step, state)
    checkpoints.close()
    return state


def _draw(config, data, by_class, key) -> Batch:
    """Batches of the critic's steps, for each device: [devices t b ..].

    All classes are drawn alike, however many images they have.
    """
    label_key, image_key = jax.random.split(key)
    devices = jax.local_device_count()
    shape = (
        devices,
        config.gan.critic_steps,
        config.gan.batch_size // devices,
    )
    labels = np.asarray(
        _classes(label_key, shape, by_class.num_classes), np.int32
    )
    chosen = by_class.draw(image_key, labels)
    images = data.images[chosen.reshape(-1)]
    return Batch(images.reshape(*shape, *images.shape[1:]), labels)


_classes = jax.jit(
    lambda key, shape, k: jax.random.randint(key, shape, 0, k),
    static_argnums=(1, 2),
)


def guard(group, step, row, checkpoints, rates) -> None:
    """Stops a run that has left the numbers; its last checkpoint stays."""
    broken = [name for name, value in row.items() if not np.isfinite(value)]
    if broken:
        raise InputError(
            f"update {step} of {group}: the {broken[0].replace('_', ' ')} is "
            f"{row[broken[0]]}; lower {rates}; {checkpoints.kept()}"
        )


_SAMPLED = 10  # images of each class in a grid
_MOST_CLASSES = 20  # in a grid


def sample_labels(num_classes: int) -> np.ndarray:
    """The classes of a grid: ten images each, of twenty classes at most."""
    classes = np.linspace(
        0, num_classes - 1, min(num_classes, _MOST_CLASSES)
    ).astype(np.int32)
    return np.repeat(np.unique(classes), _SAMPLED)


def sample_grid(config, apply, params):
    """Images of the same noise, whatever the parameters; and their classes."""
    labels = sample_labels(apply.module.num_classes)
    key = jax.random.fold_in(jax.random.key(config.seed), _SAMPLES)
    noise = gan.noise(key, len(labels), apply.noise_size)
    return np.asarray(jax.jit(apply)(params, noise, labels)), labels


def _averaged(config, state, generator):
    """``gan.averaged`` over batches as large as a device's in training."""
    size = config.gan.batch_size // jax.local_device_count()
    return gan.averaged(state, generator, size)


def _keep_samples(config, generator, state, folder, step):
    apply, params = _averaged(config, state, generator)
    images, labels = sample_grid(config, apply, params)
    with files.atomic_write(folder / "samples" / f"{step:07d}.npz") as file:
        np.savez(file, images=images, labels=labels)


def generated_epoch(apply, params, preprocessing, ipc):
    """A sample_fn for the stream protocol: fresh images for every epoch."""
    return jax.tree_util.Partial(_epoch_of(apply, ipc), params, preprocessing)


@functools.cache
def _epoch_of(apply, ipc):
    # The same object for the same arguments: jit compares it by identity.
    return functools.partial(_epoch, apply, ipc)


def make(apply, params, key, labels):
    """``d2m.generate``, some images at a time."""
    return d2m.generate(apply, params, key, labels, at_once=250)


def _epoch(apply, ipc, params, preprocessing, key):
    k = apply.module.num_classes
    labels = jnp.repeat(jnp.arange(k), ipc)
    return Batch(
        preprocess.apply(preprocessing, make(apply, params, key, labels)),
        jax.nn.one_hot(labels, k, dtype=jnp.float32),
    )


def _features(apply_fn, params, images):
    """The last layer's features, averaged over positions: [n d]."""

    @jax.jit
    def some(params, batch):
        _, out = apply_fn(params, batch)
        return out[max(out)].mean((1, 2))

    parts = range(0, len(images), 250)
    return np.concatenate([some(params, images[at : at + 250]) for at in parts])


_MEASURED = 2000  # images on each side of the Frechet distance
_HELD = 1 << 28  # values of an epoch's images, a gigabyte


def quality(config, setting, shared, apply, params) -> dict[str, Any]:
    """Classification accuracy score and Frechet distance of a generator.

    The first is the test accuracy of networks trained as long as the teachers
    are, on as many images (as fit in a gigabyte), all generated, fresh ones
    for every epoch (Ravuri and Vinyals, NeurIPS 2019). The second compares
    features of the first teacher at its last stored epoch, on real training
    images and as many generated ones.
    """
    store = teachers_script.train(config, setting, shared.teachers)
    train_set, test = setting.splits.train, setting.splits.test
    key = jax.random.fold_in(jax.random.key(config.seed), _QUALITY)
    k = setting.num_classes
    size = int(np.prod(train_set.images.shape[1:]))
    most = min(len(train_set.labels), _HELD // size)
    images, left = teachers_script.as_input(test.images, setting.preprocessing)
    score = evaluate.evaluate(
        key,
        generated_epoch(
            apply,
            params,
            setting.preprocessing,
            max(1, round(most / k)),
        ),
        Batch(images, test.labels),
        setting.module,
        recipe=training.Recipe(
            epochs=config.teacher.epochs,
            batch_size=config.teacher.batch_size,
            augment=augment.parse(config.teacher.augment),
        ),
        learning_rate=config.teacher.learning_rate,
        num_networks=config.evaluate.look_networks,
        test_preprocessing=left,
    )
    chosen = np.asarray(
        jax.random.choice(
            key,
            len(train_set.labels),
            (min(_MEASURED, len(train_set.labels)),),
            replace=False,
        )
    )
    labels = train_set.labels[chosen]
    fake = jax.jit(make, static_argnums=0)(apply, params, key, labels)
    epoch = store.epochs
    features = [
        _features(
            training.apply_fn_of(setting.module),
            store.snapshot(0, epoch),
            preprocess.apply(setting.preprocessing, pixels),
        )
        for pixels in (train_set.images[chosen], fake)
    ]
    return {
        "classification_accuracy": score.accuracy.tolist(),
        "frechet_distance": gan.frechet_distance(*features),
        "features": f"pooled last layer ({features[0].shape[1]} values) of "
        f"teacher 0 ({config.model.name}) at epoch {epoch}",
        "images": len(labels),
        "trained": f"{config.model.name}, {config.teacher.epochs} epochs",
    }


def _conclude(config, setting, networks, folder, shared, state, shaped_by):
    apply, params = _averaged(config, state, networks.generator)
    found = artifact.GeneratorArtifact(
        apply,
        params,
        setting.preprocessing,
        {
            "class_names": list(setting.splits.train.class_names),
            "method": "GAN",
            "shaped_by": shaped_by,
        },
    )
    artifact.save_generator(folder / "generator.npz", found)
    files.write_json(
        folder / "quality.json",
        quality(config, setting, shared, apply, params)
        | {"size_in_images": found.size_in_images},
    )
    # Last: the page is the sign that the folder is finished.
    report_page.write_page(folder)


if __name__ == "__main__":
    launch.main(run, __doc__)
