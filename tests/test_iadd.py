"""The outer step: every number by hand, every switch, every device."""

import functools
import logging
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from ddjax import iadd, importance, models, parallel, training
from ddjax.models.layers import Dense
from ddjax.settings import Iadd, Importance
from ddjax.types import InputError, Segment
from ddjax.unroll import minibatch_indices

CLASSES, EXAMPLES, SIZE = 3, 6, (2, 3, 1)
NETWORK = models.build("mlp", num_classes=CLASSES, width=5)
PLAIN = Iadd(
    inner_steps=2,
    batch_size=4,
    augment="none",
    image_step=2.0,
    learning_rate_step=0.05,
    importance=Importance("none"),
)
LEARNED = replace(
    PLAIN,
    importance=Importance(
        "exponential", direction="descend", step=0.1, bound=3.0
    ),
)


class Linear(nn.Module):
    """The network that compiles fastest."""

    @nn.compact
    def __call__(self, images):
        return Dense(CLASSES)(images.reshape(len(images), -1)), {}


LINEAR = Linear()


@functools.cache
def params(seed, network=NETWORK):
    return models.init_params(network, jax.random.key(seed), SIZE)


@functools.cache
def segments(count, network=NETWORK):
    """Leaves lead with count: teachers that have moved a little."""

    def one(seed):
        start, other = params(seed, network), params(seed + 100, network)
        return Segment(
            start, jax.tree.map(lambda a, b: a + 0.3 * b, start, other)
        )

    return jax.tree.map(
        lambda *leaves: np.stack(leaves), *(one(s) for s in range(count))
    )


def initial():
    rng = np.random.default_rng(0)
    return iadd.Distilled(
        np.float32(rng.normal(size=(EXAMPLES, *SIZE))),
        np.eye(CLASSES, dtype=np.float32)[np.arange(EXAMPLES) % CLASSES],
        0.3,
    )


def begin(settings, network=NETWORK):
    return iadd.init_state(
        jax.random.key(7), initial(), params(0, network), settings
    )


@functools.partial(jax.jit, static_argnames=("settings", "network"))
def update(state, segments, *, settings, network=NETWORK):
    return iadd.update(
        state,
        segments,
        apply_fn=training.apply_fn_of(network),
        settings=settings,
    )


# --- By hand, in float64, without the library's losses, loops or optimisers --


def network_by_hand(p, images):
    x = images.reshape(len(images), -1)
    for name in ("dense0", "dense1"):
        x = jnp.maximum(x @ p[name]["kernel"] + p[name]["bias"], 0)
    return x @ p["head"]["kernel"] + p["head"]["bias"]


def loss_by_hand(variables, segment, batches, settings):
    images, labels, rate, raw = variables
    if settings.label_step:
        labels = jnp.exp(labels) / jnp.exp(labels).sum(1, keepdims=True)

    def inner(p, batch):
        z = network_by_hand(p, images[batch])
        log_p = z - jnp.log(jnp.exp(z).sum(1, keepdims=True))
        return -(labels[batch] * log_p).sum() / settings.batch_size

    start, target = segment
    p = start
    for batch in batches:
        g = jax.grad(inner)(p, batch)
        p = jax.tree.map(lambda p, g: p - rate * g, p, g)

    def flat(tree):
        return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])

    p, start, target = flat(p), flat(start), flat(target)
    w = jnp.ones_like(p)
    if settings.importance.form == "exponential":
        w = jnp.exp(flat(raw))
        w = w / jnp.sqrt((w**2).mean())
    return ((w * (p - target)) ** 2).sum() / ((start - target) ** 2).sum()


def updates_by_hand(settings, count, steps):
    """(losses, images, labels, learning rate, raw weights) after ``steps``."""
    data, s = initial(), settings.importance
    labels = np.float64(data.labels)
    if settings.label_step:
        labels = np.log(labels * 0.9 + 0.1 / CLASSES)
    raw = jax.tree.map(np.zeros_like, params(0))
    values = jax.tree.map(
        np.float64, (data.images, labels, np.float32(data.learning_rate), raw)
    )
    velocity = jax.tree.map(np.zeros_like, values)
    square = jax.tree.map(np.zeros_like, values[3])
    all_segments = jax.tree.map(np.float64, segments(count))
    losses = []
    solve = jax.jit(
        jax.value_and_grad(loss_by_hand), static_argnames="settings"
    )
    for step in range(steps):
        step_key = jax.random.fold_in(jax.random.key(7), step)
        loss, grads = 0.0, []
        for index in range(count):
            order_key, _ = jax.random.split(jax.random.fold_in(step_key, index))
            batches = minibatch_indices(
                order_key, EXAMPLES, settings.batch_size, settings.inner_steps
            )
            part, grad = solve(
                values,
                jax.tree.map(lambda leaf: leaf[index], all_segments),
                batches,
                settings=settings,
            )
            loss += part / count
            grads.append(jax.tree.map(np.asarray, grad))
        grads = jax.tree.map(lambda *g: np.mean(g, 0), *grads)
        losses.append(loss)
        rates = (
            settings.image_step,
            settings.label_step,
            settings.learning_rate_step,
        )
        moved = []
        for v, g, m, rate in zip(values[:3], grads[:3], velocity[:3], rates):
            m = 0.5 * m + g
            moved.append((v - rate * m, m))
        mean = jax.tree.map(
            lambda m, g: 0.9 * m + 0.1 * g, velocity[3], grads[3]
        )
        square = jax.tree.map(
            lambda q, g: 0.999 * q + 0.001 * g**2, square, grads[3]
        )
        raw = jax.tree.map(
            lambda v, m, q: (
                v
                - s.step
                * (m / (1 - 0.9 ** (step + 1)))
                / (np.sqrt(q / (1 - 0.999 ** (step + 1))) + 1e-8)
            ),
            values[3],
            mean,
            square,
        )
        values = (*(v for v, _ in moved), raw)
        velocity = (*(m for _, m in moved), mean)
    return losses, *values


@pytest.mark.parametrize(
    "settings",
    [LEARNED, replace(PLAIN, label_step=3.0)],
    ids=["importance", "labels"],
)
def test_update_by_hand(settings):
    with jax.enable_x64(True):
        losses, images, labels, rate, raw = updates_by_hand(settings, 2, 2)
    state, found = begin(settings), []
    for step in range(2):
        assert state.step == step
        state, metrics = update(state, segments(2), settings=settings)
        found.append(metrics["loss"])
    # A hundred operations a value, each of 6e-8, the biggest of order 1.
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
    close(found, losses)
    close(state.images, images)
    close(state.labels, labels)
    close(state.learning_rate, rate)
    close(metrics["learning_rate"], rate)
    assert state.step == 2 and state.step.dtype == jnp.int32
    # The test would see nothing if nothing moved.
    assert np.abs(images - initial().images).max() > 0.01
    assert abs(rate - 0.3) > 0.005
    if settings.label_step:
        assert np.abs(labels - begin(settings).labels).max() > 0.01
        assert state.importance is None
    else:
        np.testing.assert_array_equal(state.labels, initial().labels)
        # Adam divides by the gradient: where that is rounding, so is v.
        chex.assert_trees_all_close(
            state.importance, jax.tree.map(np.float32, raw), atol=2e-3
        )


# --- In latent space ----------------------------------------------------------

LATENT = Iadd(
    space="latent",
    inner_steps=2,
    batch_size=4,
    augment="none",
    optimizer="adam",
    generator_rate=0.01,
    importance=Importance("none"),
)
GENERATOR = {"kernel": np.float32(np.random.default_rng(3).normal(size=(4, 6)))}
NOISE = np.float32(np.random.default_rng(4).normal(size=(EXAMPLES, 4)))


def decode(noise, generator):
    return jnp.tanh(noise @ generator["kernel"]).reshape(-1, *SIZE)


@functools.cache
def latent_update(settings):
    return jax.jit(
        functools.partial(
            iadd.update,
            apply_fn=training.apply_fn_of(NETWORK),
            settings=settings,
            decode=decode,
        )
    )


def begin_latent(settings):
    return iadd.init_state(
        jax.random.key(7),
        initial()._replace(images=NOISE),
        params(0),
        settings,
        GENERATOR,
    )


def test_gradients_to_latents_are_those_of_finite_differences():
    """In float64, of the loss by hand; Adam's first mean is a tenth of the
    gradient."""
    state, _ = latent_update(LATENT)(begin_latent(LATENT), segments(2))
    found = {
        field: optax.tree.get(state.opt_state.inner_states[field], "mu")[field]
        for field in ("images", "generator")
    }
    with jax.enable_x64(True):
        all_segments = jax.tree.map(np.float64, segments(2))
        orders = [
            minibatch_indices(
                jax.random.split(
                    jax.random.fold_in(
                        jax.random.fold_in(jax.random.key(7), 0), index
                    )
                )[0],
                EXAMPLES,
                4,
                2,
            )
            for index in range(2)
        ]

        @jax.jit
        def loss(noise, kernel):
            data = initial()
            images = decode(noise, {"kernel": kernel})
            values = (
                images,
                jnp.asarray(data.labels, jnp.float64),
                np.float64(np.float32(data.learning_rate)),
                None,
            )
            return sum(
                loss_by_hand(
                    values,
                    jax.tree.map(lambda leaf: leaf[index], all_segments),
                    orders[index],
                    LATENT,
                )
                for index in range(2)
            )

        at = np.float64(NOISE), np.float64(GENERATOR["kernel"])
        slopes = []
        for which in range(2):
            slope = np.zeros(at[which].shape)
            for place in np.ndindex(slope.shape):
                pair = []
                for sign in (1, -1):
                    moved = [array.copy() for array in at]
                    moved[which][place] += sign * 1e-5
                    pair.append(float(loss(*moved)) / 2)
                slope[place] = (pair[0] - pair[1]) / 2e-5
            slopes.append(slope)
    ours = found["images"], found["generator"]["kernel"]
    for mine, slope in zip(ours, slopes):
        assert np.abs(slope).max() > 0.01
        np.testing.assert_allclose(10 * mine, slope, atol=1e-5)


def test_the_generator_stays_unless_it_has_a_rate():
    fixed = replace(LATENT, generator_rate=0.0)
    moved = {}
    for settings in (LATENT, fixed):
        state, metrics = latent_update(settings)(
            begin_latent(settings), segments(2)
        )
        change = np.abs(state.generator["kernel"] - GENERATOR["kernel"]).max()
        assert (change > 0) == bool(settings.generator_rate)
        assert np.isfinite(metrics["image_gradient_norm"])
        moved[settings] = state
    np.testing.assert_allclose(
        moved[LATENT].images, moved[fixed].images, atol=1e-6
    )
    data = iadd.distilled(moved[LATENT], LATENT, decode)
    np.testing.assert_array_equal(
        data.images, decode(moved[LATENT].images, moved[LATENT].generator)
    )


def test_ascent_is_the_opposite_of_descent_and_bounded():
    bounded = replace(LEARNED.importance, step=10.0, bound=0.5)
    moved = {}
    for direction in ("descend", "ascend"):
        settings = replace(
            LEARNED, importance=replace(bounded, direction=direction)
        )
        state, _ = update(
            begin(settings, LINEAR),
            segments(1, LINEAR),
            settings=settings,
            network=LINEAR,
        )
        moved[direction] = jax.tree.leaves(state.importance)
    flat = np.concatenate([np.ravel(v) for v in moved["descend"]])
    # A step of ten goes to the bound in one, and not past it.
    assert flat.max() == 0.5 and flat.min() == -0.5
    for down, up in zip(moved["descend"], moved["ascend"]):
        np.testing.assert_array_equal(up, -down)


def test_distilled_labels():
    settings = replace(PLAIN, label_step=0.1)
    state = begin(settings)
    np.testing.assert_allclose(
        iadd.distilled(state, settings).labels,
        initial().labels * 0.9 + 0.1 / CLASSES,
        rtol=1e-5,
    )
    np.testing.assert_array_equal(
        iadd.distilled(begin(PLAIN), PLAIN).labels, initial().labels
    )


def test_initial_state():
    state = begin(LEARNED)
    assert state.images.dtype == jnp.float32
    assert state.learning_rate.dtype == jnp.float32
    assert not state.learning_rate.weak_type
    assert state.step == 0
    chex.assert_trees_all_equal(
        state.importance, jax.tree.map(jnp.zeros_like, params(0))
    )


# --- Devices -----------------------------------------------------------------


def leaves_of(state):
    return (
        state.images,
        state.learning_rate,
        state.importance,
        jax.random.key_data(state.key),
        state.step,
    )


def test_devices_agree(caplog):
    """pmap, vmap with a mean, and one device walk the same way; pmap compiles
    once."""
    assert jax.local_device_count() == 4
    settings = LEARNED
    one = functools.partial(
        iadd.update,
        apply_fn=training.apply_fn_of(LINEAR),
        settings=settings,
    )
    alone = functools.partial(update, settings=settings, network=LINEAR)
    spread = parallel.over_devices(one)
    many = jax.jit(
        jax.vmap(
            functools.partial(one, axis_name=parallel.AXIS),
            axis_name=parallel.AXIS,
            in_axes=(None, 0),
            out_axes=None,
        )
    )
    data = segments(4, LINEAR)
    on_pmap = parallel.replicate(begin(settings, LINEAR))
    on_vmap = on_one = begin(settings, LINEAR)
    sharded = parallel.shard(data)
    assert jax.tree.leaves(sharded)[0].shape[:2] == (4, 1)
    compiled = []
    for _ in range(3):
        caplog.clear()
        with caplog.at_level(logging.WARNING), jax.log_compiles(True):
            on_pmap, metrics = spread(on_pmap, sharded)
            jax.block_until_ready(on_pmap)
        compiled.append(sum("Compiling" in r.message for r in caplog.records))
        on_vmap, vmap_metrics = many(on_vmap, sharded)
        on_one, one_metrics = alone(on_one, data)
    assert compiled[0] > 0 and compiled[1:] == [0, 0]
    assert on_pmap.images.shape == on_one.images.shape
    for other, figures in ((on_vmap, vmap_metrics), (on_one, one_metrics)):
        chex.assert_trees_all_close(
            leaves_of(on_pmap), leaves_of(other), rtol=1e-4, atol=1e-4
        )
        chex.assert_trees_all_close(metrics, figures, rtol=1e-4, atol=1e-5)
    # The devices had different work: the first one's alone is another.
    grads = [
        alone(
            begin(settings, LINEAR),
            jax.tree.map(lambda leaf: leaf[np.full(4, i)], data),
        )[1]["image_gradient_norm"]
        for i in range(2)
    ]
    assert abs(grads[0] - grads[1]) > 1e-3


def test_segments_draw_by_step_and_place():
    """Equal segments, so that their batches alone tell them apart."""
    call = dict(apply_fn=training.apply_fn_of(LINEAR), settings=PLAIN)
    segment = jax.tree.map(lambda leaf: leaf[0], segments(1, LINEAR))
    data = jax.tree.map(lambda leaf: np.stack([leaf] * 8), segment)
    begun = begin(PLAIN, LINEAR)
    spread = parallel.over_devices(functools.partial(iadd.update, **call))
    loss_of = jax.jit(
        lambda key: iadd.distill_loss(
            iadd.distilled(begun, PLAIN), None, segment, key, **call
        )[0]
    )
    for step in (0, 5):
        state = begun.replace(step=jnp.asarray(step, jnp.int32))
        step_key = jax.random.fold_in(begun.key, step)
        losses = [loss_of(jax.random.fold_in(step_key, i)) for i in range(8)]
        # Any two segments that drew the same would show in the mean.
        assert np.diff(np.sort(losses)).min() > 1e-3 * np.mean(losses)
        expected = pytest.approx(float(np.mean(losses)), rel=1e-5)
        _, alone = update(state, data, settings=PLAIN, network=LINEAR)
        assert float(alone["loss"]) == expected
        _, found = spread(parallel.replicate(state), parallel.shard(data))
        assert float(found["loss"]) == expected


# --- The forms of W ----------------------------------------------------------


def raw_like(tree, per):
    rng = np.random.default_rng(3)
    return jax.tree.map(
        lambda leaf: np.float32(
            rng.normal(size=leaf.shape if per == "parameter" else ())
        ),
        tree,
    )


def mean_square(w, like):
    """Scalars count once for each of their tensor's parameters."""
    full = jax.tree.map(lambda w, p: np.broadcast_to(w, p.shape), w, like)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(full)])
    return float(np.mean(flat**2))


def one_segment():
    return jax.tree.map(lambda leaf: leaf[0], segments(1))


@pytest.mark.parametrize("per", ["parameter", "tensor"])
@pytest.mark.parametrize("form", ["free", "clipped", "exponential"])
def test_learned_forms(form, per):
    switches = Importance(form, per, bound=0.7, rescale="none")
    raw = importance.project(switches, raw_like(params(0), per))
    low, high = {
        "free": (-np.inf, np.inf),
        "clipped": (0, np.inf),
        "exponential": (-0.7, 0.7),
    }[form]
    expected = jax.tree.map(
        lambda v: np.clip(v, low, high), raw_like(params(0), per)
    )
    chex.assert_trees_all_equal(raw, expected)
    w = importance.weights(switches, raw, one_segment())
    if form == "exponential":
        expected = jax.tree.map(np.exp, expected)
    chex.assert_trees_all_close(w, expected, rtol=1e-6)
    neutral = importance.init(switches, params(0))
    w = importance.weights(switches, neutral, one_segment())
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(w))
    shape = () if per == "tensor" else (6, 5)
    assert neutral["dense0"]["kernel"].shape == shape


@pytest.mark.parametrize("per", ["parameter", "tensor"])
@pytest.mark.parametrize("form", ["free", "exponential", "displacement"])
def test_rescale(form, per):
    segment = one_segment()
    like = segment.start
    for over in ("network", "tensor"):
        switches = Importance(form, per, bound=3.0, rescale=over)
        raw = raw_like(like, per) if switches.learned else None
        w = importance.weights(switches, raw, segment)
        np.testing.assert_allclose(mean_square(w, like), 1, rtol=1e-5)
        each = [
            mean_square(a, b)
            for a, b in zip(jax.tree.leaves(w), jax.tree.leaves(like))
        ]
        # Held over each tensor, or not over each but over all.
        assert np.allclose(each, 1, rtol=1e-5) == (over == "tensor")


def test_no_importance():
    assert importance.init(Importance("none"), params(0)) is None
    assert importance.weights(Importance("none"), None, one_segment()) is None
    assert importance.init(Importance("displacement"), params(0)) is None


@pytest.mark.parametrize("per", ["parameter", "tensor"])
def test_displacement(per):
    segment = one_segment()
    switches = Importance(
        "displacement", per, bound=0.4, rescale="none", power=0.5
    )
    moves = jax.tree.map(lambda a, b: np.abs(a - b), *segment)
    flat = np.concatenate([np.ravel(m) for m in jax.tree.leaves(moves)])
    if per == "tensor":
        moves = jax.tree.map(lambda m: np.sqrt((m**2).mean()), moves)
    expected = jax.tree.map(
        lambda m: np.clip(
            np.sqrt(m / np.sqrt((flat**2).mean())), np.exp(-0.4), np.exp(0.4)
        ),
        moves,
    )
    w = importance.weights(switches, None, segment)
    chex.assert_trees_all_close(w, expected, rtol=1e-5)

    def total(segment):
        w = importance.weights(switches, None, segment)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(w))

    grads = jax.grad(total)(jax.tree.map(jnp.asarray, segment))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_displacement_of_a_parameter_that_stays():
    """Finite, and at the lower bound."""
    start, target = one_segment()
    target = {**target, "head": start["head"]}
    switches = Importance("displacement", bound=1.0, rescale="none")
    w = importance.weights(switches, None, Segment(start, target))
    np.testing.assert_allclose(w["head"]["kernel"], np.exp(-1), rtol=1e-6)


@pytest.mark.parametrize("per", ["parameter", "tensor"])
def test_high_loss_counts_the_farthest_parameters(per):
    """Of a student that is elsewhere; without one it is the start that is."""
    segment = one_segment()
    switches = Importance("high_loss", per, keep=0.3)
    student = params(5)
    w = importance.weights(switches, None, segment, student)
    gaps, kept = (
        np.concatenate(
            [
                np.ravel(np.broadcast_to(leaf, like.shape))
                for leaf, like in zip(
                    jax.tree.leaves(tree), jax.tree.leaves(student)
                )
            ]
        )
        for tree in (
            jax.tree.map(lambda a, b: np.abs(a - b), student, segment.target),
            w,
        )
    )
    assert gaps[kept == 0].size and (kept**2).mean() == pytest.approx(1)
    if per == "parameter":
        assert (kept > 0).mean() == pytest.approx(0.3, abs=2 / kept.size)
        assert gaps[kept > 0].min() >= gaps[kept == 0].max()
    else:
        # Whole tensors, those of the largest mean square.
        sizes = [leaf.size for leaf in jax.tree.leaves(student)]
        parts = np.split(np.arange(kept.size), np.cumsum(sizes)[:-1])
        of_each = [np.sqrt((gaps[part] ** 2).mean()) for part in parts]
        counted = [kept[part].max() > 0 for part in parts]
        assert counted == (of_each >= np.quantile(of_each, 0.7)).tolist()
    still = importance.weights(switches, None, segment, segment.start)
    chex.assert_trees_all_equal(
        importance.weights(switches, None, segment), still
    )


# --- Refusals ----------------------------------------------------------------


# Adam ------------------------------------------------------------------------

ADAM = replace(
    PLAIN, optimizer="adam", image_rate=0.02, alpha_rate=0.05, iterations=10
)


def after_one(settings):
    state, row = update(
        begin(settings, LINEAR),
        segments(2, LINEAR),
        settings=settings,
        network=LINEAR,
    )
    return iadd.distilled(state, settings), row


def test_adam_steps_by_its_rates_whatever_the_gradient():
    """The first step of Adam is its rate against the sign of the gradient, on
    images as they are and on alpha in its logarithm."""
    before = iadd.distilled(begin(PLAIN, LINEAR), PLAIN)
    moved, _ = after_one(
        replace(PLAIN, image_step=1.0, learning_rate_step=1.0, momentum=0.0)
    )
    gradient = np.asarray(before.images - moved.images)
    assert (np.abs(gradient) > 1e-5).all()
    found, row = after_one(ADAM)
    np.testing.assert_allclose(
        found.images - before.images,
        -ADAM.image_rate * np.sign(gradient),
        rtol=1e-3,
    )
    sign = np.sign(before.learning_rate - moved.learning_rate)
    expected = float(before.learning_rate) * np.exp(-ADAM.alpha_rate * sign)
    np.testing.assert_allclose(found.learning_rate, expected, rtol=1e-5)
    np.testing.assert_allclose(row["learning_rate"], expected, rtol=1e-5)


def test_alpha_stays_positive_under_adam():
    settings = replace(ADAM, alpha_rate=3.0)
    state, rates = begin(settings, LINEAR), []
    for _ in range(4):
        state, row = update(
            state, segments(2, LINEAR), settings=settings, network=LINEAR
        )
        rates.append(float(row["learning_rate"]))
    assert all(0 < rate < np.inf for rate in rates)
    assert np.abs(np.diff(np.log([0.3, *rates]))).max() > 1


def test_rates_fall_along_a_cosine():
    settings = replace(ADAM, final_rate=0.1)
    optimizer = iadd.make_optimizer(settings)
    variables = {
        "images": jnp.zeros(3),
        "labels": jnp.zeros(3),
        "learning_rate": jnp.zeros(()),
        "importance": None,
    }
    ones = jax.tree.map(jnp.ones_like, variables)
    state, moved = optimizer.init(variables), []
    for _ in range(12):
        step, state = optimizer.update(ones, state, variables)
        moved.append([-float(step["images"][0]), -float(step["learning_rate"])])
    share = 0.1 + 0.45 * (
        1 + np.cos(np.pi * np.minimum(np.arange(12), 10) / 10)
    )
    np.testing.assert_allclose(
        moved, share[:, None] * [[0.02, 0.05]], rtol=1e-3
    )


@pytest.mark.parametrize("settings", [PLAIN, ADAM])
def test_half_the_scale_is_half_the_step(settings):
    before = iadd.distilled(begin(settings, LINEAR), settings)
    whole, _ = after_one(settings)
    half, _ = after_one(iadd.scaled(settings, 0.5))
    np.testing.assert_allclose(
        half.images - before.images,
        0.5 * (whole.images - before.images),
        rtol=1e-4,
        atol=1e-7,
    )
    change = np.log if settings.optimizer == "adam" else np.asarray
    np.testing.assert_allclose(
        change(half.learning_rate) - change(before.learning_rate),
        0.5 * (change(whole.learning_rate) - change(before.learning_rate)),
        rtol=1e-3,
    )
    assert iadd.scaled(settings, 1.0) is settings


def test_outlier_gradients_are_shortened():
    clip = iadd.clip_to_running_norm(2.0, decay=0.5)
    state, found = clip.init(None), []
    for size in (1.0, 1.0, 100.0, 3.0, 0.1):
        step, state = clip.update({"a": jnp.array([0.6, 0.8]) * size}, state)
        found.append(float(jnp.linalg.norm(step["a"])))
    # The average is 1, 1, then 1.5 after the shortened 2; 3 is not beyond.
    np.testing.assert_allclose(found, [1, 1, 2, 3, 0.1], rtol=1e-6)
    plain = iadd.clip_to_running_norm(0.0)
    step, _ = plain.update({"a": jnp.array([1e9])}, plain.init(None))
    assert float(step["a"][0]) == 1e9


def test_images_start_where_they_are_under_adam():
    """What is stored of alpha is its logarithm, what is given is alpha."""
    state = begin(ADAM)
    assert float(state.learning_rate) == pytest.approx(np.log(0.3))
    assert float(iadd.distilled(state, ADAM).learning_rate) == pytest.approx(
        0.3
    )


def test_a_step_takes_all_images_where_they_are_fewer():
    for batch_size, taken in ((0, EXAMPLES), (4, 4), (99, EXAMPLES)):
        assert replace(PLAIN, batch_size=batch_size).batch_of(EXAMPLES) == taken


def test_images_that_are_not_finite():
    data = initial()
    data.images[1, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="finite"):
        iadd.init_state(jax.random.key(0), data, params(0), PLAIN)


# Switches of the outer loop ---------------------------------------------------


def test_bfloat16_is_near_and_only_inside():
    """Of the student's arithmetic alone: what goes out and in is float32."""
    settings = replace(PLAIN, inner_steps=5, batch_size=0)
    start, target = one_segment()
    there = iadd.Distilled(*map(jnp.asarray, initial()[:2]), 0.3)

    def gradient(dtype):
        def loss(images):
            return iadd.distill_loss(
                there._replace(images=images),
                None,
                Segment(start, target),
                jax.random.key(3),
                apply_fn=training.apply_fn_of(NETWORK),
                settings=replace(settings, dtype=dtype),
            )[0]

        return jax.value_and_grad(loss)(there.images)

    (exact, pull), (rounded, rounded_pull) = map(
        gradient, ("float32", "bfloat16")
    )
    student, inner = iadd.unroll_student(
        there,
        start,
        jax.random.key(3),
        apply_fn=training.apply_fn_of(NETWORK),
        settings=replace(settings, dtype="bfloat16"),
    )
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((student, inner, rounded))}
    assert dtypes == {jnp.dtype(jnp.float32)}
    # Eight bits: some thousandths a number, and ReLUs that turn.
    assert float(rounded) == pytest.approx(float(exact), rel=0.02)
    assert not np.array_equal(pull, rounded_pull)
    cosine = np.vdot(pull, rounded_pull) / (
        np.linalg.norm(pull) * np.linalg.norm(rounded_pull)
    )
    assert cosine > 0.97


def test_nearest_step_is_the_least_of_all_lengths():
    """Of students of one, two, .. steps, with its own gradient."""
    settings = replace(
        PLAIN, inner_steps=5, batch_size=0, learning_rate=0.3, match="nearest"
    )
    start, _ = one_segment()
    # A target that the student passes by.
    there = iadd.Distilled(*map(jnp.asarray, initial()[:2]), 0.3)
    call = dict(apply_fn=training.apply_fn_of(NETWORK))
    key = jax.random.key(3)
    beyond, _ = iadd.unroll_student(
        there, start, key, settings=replace(settings, inner_steps=2), **call
    )
    segment = Segment(start, jax.device_get(beyond))

    def loss(images, settings):
        return iadd.distill_loss(
            there._replace(images=images),
            None,
            segment,
            key,
            settings=settings,
            **call,
        )[0]

    moved = there.images + 0.1
    of_lengths = [
        loss(moved, replace(settings, inner_steps=j, match="last"))
        for j in range(1, 6)
    ]
    best = int(np.argmin(of_lengths))
    assert 0 < best < 4
    # Equal up to float32's rounding: a mean of batches in another order.
    assert float(loss(moved, settings)) == pytest.approx(
        float(of_lengths[best]), rel=1e-4
    )
    np.testing.assert_allclose(
        jax.grad(loss)(moved, settings),
        jax.grad(loss)(
            moved, replace(settings, inner_steps=best + 1, match="last")
        ),
        rtol=1e-3,
        atol=1e-6,
    )


def test_average_of_the_images():
    """Of all updates at first, then a moving one; they move on without it."""
    settings = replace(PLAIN, average=0.5)
    state, plain = begin(settings, LINEAR), begin(PLAIN, LINEAR)
    expected = np.array(state.images)
    for step in range(12):
        data = segments(2, LINEAR)
        state, _ = update(state, data, settings=settings, network=LINEAR)
        plain, _ = update(plain, data, settings=PLAIN, network=LINEAR)
        np.testing.assert_array_equal(state.images, plain.images)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * np.array(state.images)
    shown = iadd.distilled(state, settings).images
    np.testing.assert_allclose(shown, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(shown - state.images).max() > 1e-4
