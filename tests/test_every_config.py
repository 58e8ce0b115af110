"""Every config fits its data, its networks and both methods.

Compiled, all of their pipelines take half an hour, and are left to
experiments/benchmarks/every_config.py. Here data are read and prepared, all
that a run checks before its first update is checked, and updates are traced and
not computed, at the config's own sizes. One run is made, cut as there.
"""

import functools

import jax
import numpy as np
import pytest
from small import door

import ddjax
from ddjax import d2m, gan, iadd, models, parallel, training
from ddjax.models import biggan
from ddjax.runs import d2m as d2m_run
from ddjax.runs import gan as gan_run
from ddjax.runs import iadd as iadd_run
from ddjax.runs import prepare
from ddjax.types import Batch, Segment

every = door("benchmarks/every_config")
CASES = {str(case): case for case in every.cases()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "device_count", lambda: 1)
        yield tmp_path_factory.mktemp("every")


@functools.cache
def made(config, folder):
    return every.make(config, folder / "made")


def shapes(function, *args):
    return jax.eval_shape(function, *args)


def stacked(tree, *lead):
    """The shapes of so many of these."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype),
        tree,
    )


def check_update(update, state, *data):
    """An update gives what it takes, and scalars."""
    after, metrics = shapes(update, state, *data)
    same = jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), after, state
    )
    assert all(jax.tree.leaves(same))
    assert metrics and all(leaf.shape == () for leaf in metrics.values())


# Ten seconds each to fit, and the same for all that ask for it.
_WHITENED = "cifar10-iadd-full"


def check_iadd(case, settings, task, params):
    part = iadd_run.in_input_units(settings.iadd, task)
    initial = iadd_run.choose_initial(settings, task)
    assert len(initial.images) == part.ipc * task.num_classes
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, "f"), params)
    state = iadd.init_state(jax.random.key(0), initial, zeros, part)
    update = functools.partial(
        iadd.update, apply_fn=training.apply_fn_of(task.module), settings=part
    )
    segments = stacked(Segment(params, params), part.segments)
    check_update(update, state, segments)


def check_gan(part, networks, image_shape):
    init = functools.partial(gan.init_state, settings=part)
    state = shapes(lambda key: init(key, *networks), jax.random.key(0))
    steps, size = part.critic_steps, part.batch_size
    batches = Batch(
        jax.ShapeDtypeStruct((steps, size, *image_shape), np.uint8),
        jax.ShapeDtypeStruct((steps, size), np.int32),
    )
    update = functools.partial(
        gan.update,
        generator=networks.generator,
        critic=networks.critic,
        settings=part,
    )
    check_update(update, state, batches)


# Whose updates are traced: of generators by class and by an embedding, at a
# side that has a layout and at one that has none. The others differ from these
# in numbers only, which are checked before.
_GAN = ("tiny-d2m", "mnist-d2m-small")
_D2M = (
    *_GAN,
    "cifar100-d2m-full",
    "tiny_imagenet-d2m-small",
    "imagenet1k-d2m-full",
)


def check_d2m(case, settings, task, params):
    part = settings.d2m
    d2m_run.check(part, task)
    networks = gan_run.networks_of(settings.gan, task)
    if str(case) in _GAN:
        check_gan(settings.gan, networks, task.image_shape)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, "f"), params)
    groups = d2m_run.Groups(part, 0, task, lambda key: zeros)(0)
    assert groups.labels.shape == (
        part.groups,
        part.per_class * (part.classes or task.num_classes),
    )
    if str(case) not in _D2M:
        return
    module = networks.generator.clone(form=biggan.FOLDED)
    noise = jax.ShapeDtypeStruct((1, module.noise), np.float32)
    label = jax.ShapeDtypeStruct((1,), np.int32)
    gen_params = shapes(module.init, jax.random.key(0), noise, label)["params"]
    apply = biggan.GenApply(module)
    made = shapes(apply, gen_params, noise, label)
    assert made.shape == (1, *task.image_shape)
    init = functools.partial(d2m.init_state, settings=part)
    update = functools.partial(
        d2m.update,
        gen_apply=apply,
        apply_fn=training.apply_fn_of(task.module),
        preprocessing=task.preprocessing,
        settings=part,
    )
    check_update(update, shapes(init, jax.random.key(0), gen_params), groups)


# The full sizes take three quarters of the time.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.campaign)
        if name.endswith("-full")
        else name
        for name in CASES
    ],
)
def test_updates_of_every_config(name, folder):
    case = CASES[name]
    data = made(case.config, folder)
    settings = every.settings_of(case, data, cut=False)
    if name != _WHITENED:
        settings = settings.changed({"data.preprocess": "standardise"})
    task = prepare.task(settings.data, settings.model, 0, folder / "data")
    assert task.image_shape == data.shape
    assert task.num_classes == data.classes
    init = functools.partial(
        models.init_params, task.module, image_shape=task.image_shape
    )
    params = shapes(init, jax.random.key(0))
    check = {"iadd": check_iadd, "d2m": check_d2m}[case.method]
    check(case, settings, task, params)


@pytest.mark.campaign
def test_a_whole_run(folder):
    """Where steps of the student take a part of the images."""
    case = CASES["mnist-iadd-small"]
    data = made(case.config, folder)
    run = every.run(case, data, folder)
    every.check(case, data, run)
    assert ddjax.load(run).images.shape == (100, 28, 28, 1)
