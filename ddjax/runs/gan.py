"""Pre-training of the generator that D2M distils, shared between runs.

A class-conditional BigGAN is trained on the real images; samples are kept as
it goes, and at the end its quality is measured and report.html written beside
it. With ``gan.patience`` each look scores the generator on held-out images, the
best look is kept, and training ends when no better one comes. Runs with the
same data and ``gan`` part share the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import (
    artifact,
    evaluate,
    files,
    gan,
    hosts,
    parallel,
    training,
)
from ddjax.data import classes, preprocess, sources
from ddjax.models import biggan
from ddjax.runs import loop, prepare, protocols, scores, teachers, workdir
from ddjax.settings import Gan, Settings
from ddjax.types import Batch, InputError

__all__ = [
    "Networks",
    "artifact_of",
    "averaged",
    "classification_accuracy",
    "first_batch",
    "images_of_a_look",
    "kept_copy",
    "networks_of",
    "of_run",
    "run",
    "sample_grid",
    "train",
]

# What each stage's key is folded with; the numbers are names.
_STATE, _DATA, _SAMPLES, _QUALITY, _LOOKS = range(100, 105)


class Networks(NamedTuple):
    """The two players, in their training form."""

    generator: biggan.Generator
    critic: biggan.Critic


def networks_of(part: Gan, task: prepare.Task) -> Networks:
    """The networks for a task's images, checked.

    Raises:
      InputError: images are no squares, or larger than a BigGAN makes, or a
        batch does not divide among the processes.
    """
    if part.batch_size % hosts.count():
        raise InputError(
            f"gan.batch_size={part.batch_size} does not divide among "
            f"{hosts.count()} processes: give a multiple of {hosts.count()}"
        )
    height, width, channels = task.image_shape
    if height != width:
        raise InputError(
            f"a BigGAN makes square images, these are {height} x {width}: "
            "set data.size"
        )
    made = biggan.made_size(height)
    attending = [side for side in biggan.SIZES if side < made]
    if part.attention and part.attention not in attending:
        raise InputError(
            f"gan.attention must be 0 or one of {attending} for images of "
            f"{height} pixels, not {part.attention}"
        )
    shape = {
        "num_classes": task.num_classes,
        "size": height,
        "width": part.width,
        "attention": part.attention,
    }
    critic = biggan.Critic(**shape)
    generator = biggan.Generator(
        **shape,
        channels=channels,
        noise=part.noise,
        embedding=part.embedding,
    )
    # A layout that cannot be is refused here, before any work.
    for module in (generator, critic):
        jax.eval_shape(
            functools.partial(biggan.initialise, module, channels=channels),
            jax.random.key(0),
        )
    return Networks(generator, critic)


def run(settings: Settings, shared: workdir.Shared) -> None:
    """Pre-trains or finds the generator of a run, and says how good it is.

    Raises:
      InputError: see ``train``.
    """
    task = prepare.task(
        settings.data, settings.model, settings.seed, shared.data
    )
    folder = train(settings, task, shared)
    try:
        found = files.read_json(folder / "quality.json")
        score = evaluate.summarise(found["classification_accuracy"])
    except (OSError, ValueError, KeyError):
        raise InputError(
            f"{folder / 'quality.json'} is damaged: remove {folder} to train "
            "again"
        ) from None
    print(
        f"classification accuracy score {100 * score.mean:.1f} % +- "
        f"{100 * score.ci95:.1f}, Frechet distance "
        f"{found['frechet_distance']:.3g} on {found['features']}"
        + ("; cut: more updates would help" if found.get("cut") else "")
    )
    print(f"report: {folder / 'report.html'}")


def _shaped_by(settings: Settings, task: prepare.Task) -> dict[str, Any]:
    """All that makes a generator what it is."""
    fields = settings.flat()
    shaped_by: dict[str, Any] = {
        field: value
        for field, value in fields.items()
        if field.startswith("gan.")
    }
    if settings.gan.patience:
        # What its looks are scored by.
        shaped_by |= {
            field: value
            for field, value in fields.items()
            if field in ("evaluate.metric", "evaluate.look_networks")
            or field.startswith(("model.", "teacher."))
        }
        if not settings.gan.look_epochs:  # generators of before it was a field
            del shaped_by["gan.look_epochs"]
    else:
        for field in ("looks", "patience", "look_epochs"):
            del shaped_by[f"gan.{field}"]
    shaped_by |= {
        "data.preprocess": settings.data.preprocess,
        "seed": settings.seed,
        "data": sources.fingerprint(task.splits.train),
    }
    # Each device normalises a batch of its own, and draws its own noise.
    devices = parallel.even(settings.gan.batch_size)
    if devices > 1:
        shaped_by["devices"] = devices
    return shaped_by


def train(
    settings: Settings, task: prepare.Task, shared: workdir.Shared
) -> Path:
    """The folder of a finished pre-training.

    Args:
      settings: of the run.
      task: data and network.
      shared: where teachers and generators lie.

    Raises:
      InputError: the images do not suit a BigGAN, the folder holds another
        generator, or training has left the numbers.
    """
    networks = networks_of(settings.gan, task)
    shaped_by = _shaped_by(settings, task)
    folder = shared.generators / teachers.named_after(
        settings.data.source, shaped_by
    )
    with contextlib.ExitStack() as held:
        if hosts.writes():
            held.enter_context(
                files.alone(folder, "pre-trains a generator", print)
            )
        if hosts.from_writer((folder / "report.html").exists):
            found = artifact.load_generator(folder / "generator.npz")
            if found.metadata.get("shaped_by") != shaped_by:
                raise InputError(
                    f"the generator in {folder} was pre-trained by another "
                    f"config: remove {folder} to train it again"
                )
            return folder
        if hosts.writes():
            files.write_json(folder / "shaped_by.json", files.sealed(shaped_by))
        state = _pretrain(settings, task, networks, folder)
        found, cut = _kept(settings, task, networks, folder, state, shaped_by)
        _conclude(settings, task, folder, shared, found, cut)
    hosts.meet()
    return folder


def kept_copy(folder: Path) -> Path:
    """Where a run keeps the generator that it began with."""
    return folder / "generator" / "pretrained.npz"


def of_run(
    settings: Settings,
    folder: Path,
    task: prepare.Task,
    shared: workdir.Shared,
    given: artifact.GeneratorArtifact | None = None,
) -> artifact.GeneratorArtifact:
    """The generator that a run begins with, of which it keeps a copy.

    Args:
      settings: of the run.
      folder: of the run.
      task: data and network.
      shared: where teachers and generators lie.
      given: the generator, where it is known; else it is pre-trained, or
        found where that has been done.

    Raises:
      InputError: see ``train``.
    """
    if given is None:
        pretraining = train(settings, task, shared)
        given = artifact.load_generator(pretraining / "generator.npz")
        if hosts.writes():
            # Here, for Matplotlib takes a third of a second to import.
            from ddjax.pages import gan as page

            page.copy_pretraining(pretraining, folder)
    given = given._replace(preprocessing=task.preprocessing)
    kept = kept_copy(folder)
    if hosts.writes() and not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        artifact.save_generator(kept, given)
    return given


def _pretrain(settings, task, networks, folder):
    """From the last checkpoint to the last update; the state after it."""
    part, key = settings.gan, jax.random.key(settings.seed)
    init = jax.jit(lambda key: gan.init_state(key, *networks, part))
    data = task.splits.train
    by_class = classes.ByClass(data.labels, task.num_classes)
    data_key = jax.random.fold_in(key, _DATA)
    update = functools.partial(
        gan.update,
        generator=networks.generator,
        critic=networks.critic,
        settings=part,
    )
    if hosts.writes():
        for name in ("samples", "looks") if part.patience else ("samples",):
            (folder / name).mkdir(exist_ok=True)
    devices = parallel.even(part.batch_size)

    def look(state, step):
        apply, params = averaged(part, state, networks.generator)
        if hosts.writes():
            images, labels = sample_grid(settings.seed, apply, params)
            path = folder / "samples" / f"{step:07d}.npz"
            with files.atomic_write(path) as file:
                np.savez(file, images=images, labels=labels)
        if not part.patience:
            return None
        score = classification_accuracy(
            settings,
            task,
            apply,
            params,
            jax.random.fold_in(key, _LOOKS),
            scores.held_out(task),
        )
        if hosts.writes():
            found = artifact_of(task, apply, params, {})
            artifact.save_generator(_look_path(folder, step), found)
        return scores.held_out_row(score, task)

    def enough(step):
        return part.patience and hosts.from_writer(
            lambda: _looks_since_best(settings, folder, step) >= part.patience
        )

    return loop.run(
        init(jax.random.fold_in(key, _STATE)),
        name="gan",
        last=part.iterations,
        folder=folder,
        log=settings.log,
        draw=lambda step: _draw(
            part, data, by_class, jax.random.fold_in(data_key, step)
        ),
        update=parallel.over_devices(update, devices),
        guard=loop.finite("lower gan.generator_rate and gan.critic_rate"),
        looks=loop.look_steps(part.looks, part.iterations),
        look=look,
        enough=enough,
        place=functools.partial(parallel.replicate, devices=devices),
    )


def _look_path(folder: Path, step: int) -> Path:
    return folder / "looks" / f"{step:07d}.npz"


def _looks_since_best(settings, folder, step) -> int:
    """Looks up to a step since the one with the best score; of equals, the
    first."""
    looks = scores.looked_at(folder, settings.evaluate.metric)
    made = [looks[at] for at in sorted(looks) if at <= step]
    return len(made) - 1 - int(np.argmax(made)) if made else 0


def _kept(settings, task, networks, folder, state, shaped_by):
    """(the generator that is the result, whether its training was cut)."""
    apply, params = averaged(settings.gan, state, networks.generator)
    found = artifact_of(task, apply, params, shaped_by)
    if not settings.gan.patience:
        return found, None
    step, cut = hosts.from_writer(lambda: selected(settings, folder))
    best = artifact.load_generator(_look_path(folder, step))
    found = found._replace(params=best.params)
    found.metadata["selected_step"] = step
    return found, cut


def selected(settings: Settings, folder: Path) -> tuple[int, bool]:
    """The best look of a pre-training, and whether updates ran out before no
    better one came."""
    step, looks = scores.select(folder, settings.evaluate.metric)
    since = _looks_since_best(settings, folder, looks[-1])
    return step, since < settings.gan.patience


def artifact_of(
    task: prepare.Task,
    apply: biggan.GenApply,
    params: Any,
    shaped_by: dict[str, Any],
) -> artifact.GeneratorArtifact:
    """A pre-trained generator as its file holds it."""
    return artifact.GeneratorArtifact(
        apply,
        params,
        task.preprocessing,
        {
            "class_names": list(task.splits.train.class_names),
            "method": "GAN",
            "shaped_by": shaped_by,
        },
    )


def first_batch(settings: Settings, task: prepare.Task) -> Batch:
    """What one device sees in an update, of the form [t b ..]."""
    data = task.splits.train
    by_class = classes.ByClass(data.labels, task.num_classes)
    drawn = _draw(settings.gan, data, by_class, jax.random.key(settings.seed))
    return jax.tree.map(lambda leaf: leaf[0], drawn)


def _draw(part: Gan, data, by_class, key) -> Batch:
    """Batches of the critic's steps, for each device: [devices t b ..], those
    of this process.

    All classes are drawn alike, however many images they have.
    """
    label_key, image_key = jax.random.split(key)
    devices = parallel.even(part.batch_size)
    shape = (devices, part.critic_steps, part.batch_size // devices)
    labels = np.asarray(
        _classes(label_key, shape, by_class.num_classes), np.int32
    )
    chosen = by_class.draw(image_key, labels)
    labels, chosen = (part[parallel.own(devices)] for part in (labels, chosen))
    images = data.images[chosen.reshape(-1)]
    return Batch(images.reshape(*labels.shape, *images.shape[1:]), labels)


_classes = jax.jit(
    lambda key, shape, k: jax.random.randint(key, shape, 0, k),
    static_argnums=(1, 2),
)

_SAMPLED = 10  # images of each class in a grid
_MOST_CLASSES = 20  # in a grid


def sample_labels(num_classes: int) -> np.ndarray:
    """The classes of a grid: ten images each, of twenty classes at most."""
    classes = np.linspace(
        0, num_classes - 1, min(num_classes, _MOST_CLASSES)
    ).astype(np.int32)
    return np.repeat(np.unique(classes), _SAMPLED)


def sample_grid(
    seed: int, apply: biggan.GenApply, params: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Images of the same noise, whatever the parameters; and their classes."""
    labels = sample_labels(apply.module.num_classes)
    key = jax.random.fold_in(jax.random.key(seed), _SAMPLES)
    noise = gan.noise(key, len(labels), apply.noise_size)
    return np.asarray(jax.jit(apply)(params, noise, labels)), labels


def averaged(
    part: Gan, state: gan.GanState, generator: biggan.Generator
) -> tuple[biggan.GenApply, Any]:
    """``gan.averaged`` over batches as large as a device's in training."""
    size = part.batch_size // parallel.even(part.batch_size)
    return gan.averaged(state, generator, size)


def _features(apply_fn, params, images):
    """The last layer's features, averaged over positions: [n d]."""

    @jax.jit
    def some(params, batch):
        _, out = apply_fn(params, batch)
        return out[max(out)].mean((1, 2))

    return np.concatenate(
        [
            some(params, images[at : at + protocols.AT_ONCE])
            for at in range(0, len(images), protocols.AT_ONCE)
        ]
    )


_MEASURED = 2000  # images on each side of the Frechet distance
_HELD = 1 << 28  # values of an epoch's images, a gigabyte


def images_of_a_look(settings: Settings, task: prepare.Task) -> int:
    """Images that are made for an epoch of ``classification_accuracy``.

    As many as there are real ones, or as an epoch looks at where that is
    fewer, and as fit in a gigabyte; the same number of each class.
    """
    recipe = teachers.recipe_of(settings.teacher)
    most = len(task.splits.train.labels)
    most = min(most, _HELD // int(np.prod(task.image_shape)))
    if recipe.epoch_steps:
        most = min(most, recipe.epoch_steps * recipe.batch_size)
    k = task.num_classes
    return k * max(1, round(most / k))


def _look_recipe(settings: Settings) -> training.Recipe:
    """A teacher's, cut short where a look is."""
    recipe = teachers.recipe_of(settings.teacher)
    return recipe._replace(epochs=settings.gan.look_epochs or recipe.epochs)


def classification_accuracy(
    settings: Settings,
    task: prepare.Task,
    apply: biggan.GenApply,
    params: Any,
    key: jax.Array,
    score: scores.Score,
) -> evaluate.EvalResult:
    """The accuracy of networks that saw generated images alone.

    They are trained as long as the teachers are, or ``gan.look_epochs``, on
    fresh images for every epoch (Ravuri and Vinyals, NeurIPS 2019).

    Args:
      settings: the teacher and evaluate parts count.
      task: data and network.
      apply: of the generator.
      params: of the generator.
      key: decides the networks and their images.
      score: of ``scores.held_out``, or what tests on the test images.
    """
    count = settings.evaluate.look_networks
    return scores.on_drawn_data(
        score,
        jnp.stack([jax.random.fold_in(key, i) for i in range(count)]),
        protocols.generated_epoch(
            apply,
            params,
            task.preprocessing,
            images_of_a_look(settings, task) // task.num_classes,
        ),
        recipe=_look_recipe(settings),
        learning_rate=settings.teacher.learning_rate,
    )


def quality(
    settings: Settings,
    task: prepare.Task,
    shared: workdir.Shared,
    apply: biggan.GenApply,
    params: Any,
) -> dict[str, Any]:
    """Classification accuracy score and Frechet distance of a generator.

    The first is that of ``classification_accuracy`` on the test images. The
    second compares features of the first teacher at its last stored epoch, on
    real training images and as many generated ones.
    """
    store = teachers.train(settings, task, shared.teachers)
    train_set = task.splits.train
    key = jax.random.fold_in(jax.random.key(settings.seed), _QUALITY)
    tested = dataclasses.replace(settings.evaluate, models=settings.model.name)
    ((_, _, on_test),) = scores.tests_of(task, tested)
    score = classification_accuracy(settings, task, apply, params, key, on_test)
    epochs = _look_recipe(settings).epochs
    chosen = np.asarray(
        jax.random.choice(
            key,
            len(train_set.labels),
            (min(_MEASURED, len(train_set.labels)),),
            replace=False,
        )
    )
    labels = train_set.labels[chosen]
    fake = protocols.make(apply, params, key, labels)
    features = [
        _features(
            training.apply_fn_of(task.module),
            store.snapshot(0, store.epochs),
            preprocess.apply(task.preprocessing, pixels),
        )
        for pixels in (train_set.images[chosen], fake)
    ]
    return {
        "classification_accuracy": score.accuracy.tolist(),
        "frechet_distance": gan.frechet_distance(*features),
        "features": f"pooled last layer ({features[0].shape[1]} values) of "
        f"teacher 0 ({task.model}) at epoch {store.epochs}",
        "images": len(labels),
        "trained": f"{task.model}, {epochs} epochs",
        "of_a_teacher": epochs / settings.teacher.epochs,
    }


def _conclude(settings, task, folder, shared, found, cut):
    if hosts.writes():
        artifact.save_generator(folder / "generator.npz", found)
    told = quality(settings, task, shared, found.apply, found.params)
    told["size_in_images"] = found.size_in_images
    if cut is not None:
        told["cut"] = cut
        told["metric"] = settings.evaluate.metric
        told["selected_step"] = found.metadata["selected_step"]
    if not hosts.writes():
        return
    files.write_json(folder / "quality.json", files.sealed(told))
    # Here, for Matplotlib takes a third of a second to import.
    from ddjax.pages import gan as page

    # Last: the page is the sign that the folder is finished.
    page.write_page(folder)
