"""The supervised loop: the recipe by hand, the visits, exact counting."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddjax import models, training
from ddjax.data import classes
from ddjax.data.preprocess import Standardiser
from ddjax.data.rows import Rows
from ddjax.evaluate import stored
from ddjax.losses import cross_entropy
from ddjax.models.layers import Dense
from ddjax.training import Recipe, Stream
from ddjax.types import Batch, InputError

CLASSES = 3


class Linear(nn.Module):
    """A network with a gradient that fits on a line."""

    @nn.compact
    def __call__(self, images):
        return Dense(CLASSES, name="head")(images.reshape(len(images), -1)), {}


NETWORK = Linear()


def problem(count=9):
    """Two pixels; a class is a direction, and soft labels say so."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % CLASSES
    angles = 2 * np.pi * labels / CLASSES + rng.normal(size=count) * 0.2
    images = np.stack([np.cos(angles), np.sin(angles)], 1)[:, None, :, None]
    return jnp.float32(images), jnp.eye(CLASSES, dtype=jnp.float32)[labels]


def start():
    rng = np.random.default_rng(1)
    return {
        "head": {
            "kernel": np.float32(rng.normal(size=(2, CLASSES))),
            "bias": np.float32(rng.normal(size=CLASSES)),
        }
    }


def by_hand(images, labels, params, recipe, rate):
    """Full-batch descent in float64 NumPy: decay, momentum, rate."""
    x = np.float64(images).reshape(len(images), -1)
    p = {k: np.float64(v) for k, v in params["head"].items()}
    v = {k: np.zeros_like(q) for k, q in p.items()}
    for step in range(recipe.epochs):
        z = x @ p["kernel"] + p["bias"]
        likely = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        error = (likely - labels) / len(x)
        grads = {"kernel": x.T @ error, "bias": error.sum(0)}
        late = recipe.decay_at_half and step >= recipe.epochs // 2
        share = 0.1 if late else 1
        if recipe.cosine:
            share = (1 + np.cos(np.pi * step / recipe.epochs)) / 2
        for name, g in grads.items():
            g = g + recipe.weight_decay * p[name]
            v[name] = recipe.momentum * v[name] + g
            p[name] = p[name] - rate * share * v[name]
    return p


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(5, 9),
        Recipe(5, 100, momentum=0.9, weight_decay=0.1, decay_at_half=True),
        Recipe(5, 9, momentum=0.9, weight_decay=0.1, cosine=True),
    ],
)
def test_recipe_by_hand(recipe):
    images, labels = problem()
    found = training.train(
        jax.random.key(0),
        start(),
        stored(images, labels),
        jnp.float32(0.7),
        module=NETWORK,
        recipe=recipe,
    )
    expected = by_hand(images, labels, start(), recipe, 0.7)
    assert np.abs(expected["kernel"] - start()["head"]["kernel"]).max() > 0.1
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(
            found["head"][name], expected[name], rtol=1e-5, atol=1e-5
        )


def test_a_rate_falls_in_one_way():
    with pytest.raises(ValueError, match="one of them"):
        training.sgd(Recipe(1, 1, decay_at_half=True, cosine=True), 0.1, 1)


def test_minibatches_lower_the_loss():
    images, labels = problem(30)
    preprocessing = Standardiser(jnp.array([0.1]), jnp.array([0.5]))
    params = training.train(
        jax.random.key(0),
        start(),
        stored(images, labels),
        jnp.float32(0.5),
        module=NETWORK,
        recipe=Recipe(40, 7),
        preprocessing=preprocessing,
    )
    loss = training.supervised_loss(training.apply_fn_of(NETWORK))
    batch = Batch((images - 0.1) / 0.5, labels)
    assert loss(params, batch, jax.random.key(0)) < 0.1
    assert loss(start(), batch, jax.random.key(0)) > 1
    classes = labels.argmax(1)
    share = training.accuracy(
        params, images, classes, module=NETWORK, preprocessing=preprocessing
    )
    assert share == 1


def visits(sample_fn, batch_size, epochs=1):
    """What a loss linear in the images sums over an epoch: a step each."""
    optimizer = optax.sgd(1.0)
    params = jnp.zeros(5)
    moved, _, _ = jax.jit(
        lambda keys: training.train_epochs(
            lambda p, batch, key: jnp.sum(p * batch.images[:, 0, 0].sum(0)),
            optimizer,
            params,
            optimizer.init(params),
            sample_fn,
            keys,
            batch_size=batch_size,
        )
    )(jax.random.split(jax.random.key(0), epochs))
    return -np.asarray(moved)


def test_every_example_every_epoch():
    one_each = Batch(jnp.eye(5)[:, None, None, :], jnp.zeros((5, 1)))
    np.testing.assert_array_equal(visits(lambda key: one_each, 5), np.ones(5))
    np.testing.assert_array_equal(visits(lambda key: one_each, 9), np.ones(5))
    found = visits(lambda key: one_each, 2)  # three steps of two
    assert sorted(found) == [1, 1, 1, 1, 2]


def test_sample_is_drawn_anew_each_epoch():
    def sample(key):
        return Batch(jax.random.uniform(key, (1, 1, 1, 5)), jnp.zeros((1, 1)))

    one, two = (visits(sample, 1, epochs) for epochs in (1, 2))
    assert (two != 2 * one).all() and (two < 2).all() and (one > 0).all()


def test_loss_of_each_epoch():
    images, labels = problem()
    apply_fn = training.apply_fn_of(NETWORK)
    optimizer = optax.sgd(0.0)
    _, _, losses = jax.jit(
        functools.partial(
            training.train_epochs,
            training.supervised_loss(apply_fn),
            optimizer,
            sample_fn=stored(images, labels),
            batch_size=3,
        )
    )(
        start(),
        optimizer.init(start()),
        keys=jax.random.split(jax.random.key(0), 2),
    )
    whole = training.supervised_loss(apply_fn)(
        start(), Batch(images, labels), jax.random.key(0)
    )
    np.testing.assert_allclose(losses, [whole, whole], rtol=1e-5)


def test_predict_and_accuracy_count_exactly():
    images, _ = problem(7)
    logits, _ = NETWORK.apply({"params": start()}, images)
    expected = np.asarray(logits).argmax(1)
    for size in (1, 3, 7, 100):
        found = training.predict(
            start(), images, module=NETWORK, batch_size=size
        )
        np.testing.assert_array_equal(found, expected)
    wrong = expected.copy()
    wrong[[0, 6]] = (wrong[[0, 6]] + 1) % CLASSES
    share = training.accuracy(
        start(), images, wrong, module=NETWORK, batch_size=3
    )
    np.testing.assert_allclose(share, 5 / 7, rtol=1e-6)


def test_predict_prepares_stored_pixels():
    pixels = np.uint8([[[[0], [255]]], [[[51], [0]]]])
    preprocessing = Standardiser(jnp.array([0.2]), jnp.array([0.4]))
    found = training.predict(
        start(), pixels, module=NETWORK, preprocessing=preprocessing
    )
    x = (pixels.reshape(2, 2) / 255 - 0.2) / 0.4
    logits = x @ start()["head"]["kernel"] + start()["head"]["bias"]
    np.testing.assert_array_equal(found, logits.argmax(1))


# --- Streams -----------------------------------------------------------------


def stored_images(count=13, side=8):
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    return images, rng.integers(0, CLASSES, count)


CONVNET = models.build("convnet", num_classes=CLASSES, width=4, depth=2)
PREPARE = Standardiser(jnp.full(3, 0.4), jnp.full(3, 0.3))


def both_ways(images, labels, source, recipe, module=NETWORK, weights=None):
    """Params after training in memory, and after training from a stream."""
    params = models.init_params(module, jax.random.key(7), images.shape[1:])
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels]
    if weights is not None:
        one_hot *= weights
    arguments = {
        "module": module,
        "recipe": recipe,
        "preprocessing": PREPARE,
    }
    return tuple(
        train(jax.random.key(2), params, data, jnp.float32(0.1), **arguments)
        for train, data in (
            (training.train, stored(images, one_hot)),
            (
                training.train_streamed,
                Stream(source, labels, CLASSES, weights),
            ),
        )
    )


def assert_equal(found, expected):
    """To the last bit: on a CPU the steps are compiled to the same code."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_array_equal(a, b)


def test_stream_trains_as_in_memory(tmp_path, monkeypatch):
    """Five steps an epoch, in chunks of one, and of three and two."""
    images, labels = stored_images(17)
    np.save(tmp_path / "images.npy", images)
    recipe = Recipe(
        3,
        4,
        momentum=0.9,
        weight_decay=5e-4,
        decay_at_half=True,
        augment=("flip", "color"),
    )
    for steps in (1, 3):
        monkeypatch.setattr(training, "_CHUNK", steps * images[:4].nbytes)
        expected, found = both_ways(
            images, labels, Rows(tmp_path / "images.npy"), recipe, CONVNET
        )
        assert_equal(found, expected)
    for changed in (labels[::-1], (labels + 1) % CLASSES):
        _, other = both_ways(images, changed, images, recipe, CONVNET)
        leaves = zip(jax.tree.leaves(other), jax.tree.leaves(expected))
        assert not all(np.array_equal(a, b) for a, b in leaves)


BATCH_NORM = models.build(
    "convnet", num_classes=CLASSES, width=2, depth=1, norm="batch"
)


def test_running_statistics_by_hand():
    """At a rate of 0, of the same eight images in each of seven steps."""
    images, labels = stored_images(8)
    params = models.init_params(BATCH_NORM, jax.random.key(0), (8, 8, 3))
    trained = training.train(
        jax.random.key(1),
        params,
        stored(images, np.eye(CLASSES, dtype=np.float32)[labels]),
        jnp.float32(0),
        module=BATCH_NORM,
        recipe=Recipe(7, 8, momentum=0.9),
        preprocessing=PREPARE,
    )
    assert_equal(trained["params"], params)
    pixels = (np.float64(images) / 255 - 0.4) / 0.3
    padded = np.pad(pixels, [(0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    layer = params["conv0"]
    x = np.einsum("bhwcij,ijco->bhwo", windows, layer["kernel"])
    x += np.asarray(layer["bias"])
    left, values = 0.9**7, x.reshape(-1, 2)
    mean = (1 - left) * values.mean(0)
    variance = left + (1 - left) * values.var(0, ddof=1)
    found = trained["batch_stats"]["norm0"]
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["variance"], variance, rtol=1e-4)
    # And those are what a trained network sees images by, however few.
    x = np.maximum((x - mean) / np.sqrt(variance + 1e-5), 0)
    x = x.reshape(8, 4, 2, 4, 2, 2).mean((2, 4)).reshape(8, -1)
    logits = x @ np.asarray(params["head"]["kernel"]) + params["head"]["bias"]
    for some in (slice(8), slice(2, 3)):
        classes_ = training.predict(
            trained, images[some], module=BATCH_NORM, preprocessing=PREPARE
        )
        np.testing.assert_array_equal(classes_, logits[some].argmax(1))


def test_batch_norm_streamed(monkeypatch):
    """Its statistics go on from chunk to chunk, with augmented images."""
    images, labels = stored_images(7)
    recipe = Recipe(2, 4, momentum=0.9, augment=("flip", "color"))
    monkeypatch.setattr(training, "_CHUNK", images[:4].nbytes)
    expected, found = both_ways(images, labels, images, recipe, BATCH_NORM)
    assert_equal(found, expected)
    plain, _ = both_ways(
        images, labels, images, recipe._replace(augment=()), BATCH_NORM
    )
    statistics = expected["batch_stats"]["norm0"], plain["batch_stats"]["norm0"]
    assert (statistics[0]["mean"] != statistics[1]["mean"]).any()


def test_stream_of_an_array_and_of_few_images():
    images, labels = stored_images(3)
    recipe = Recipe(2, 100, momentum=0.9, cosine=True)
    expected, found = both_ways(images, labels, images, recipe)
    assert_equal(found, expected)


def test_balanced_weights_are_repetition():
    """A step on all images moves as if each class came equally often."""
    images, _ = stored_images(6)
    labels = np.array([0, 0, 0, 1, 1, 2])
    weights = classes.balanced_weights(labels, CLASSES)
    recipe = Recipe(1, 100)
    in_memory, streamed = both_ways(
        images, labels, images, recipe, weights=weights
    )
    assert_equal(streamed, in_memory)
    often = np.repeat(np.arange(6), [2, 2, 2, 3, 3, 6])
    repeated, _ = both_ways(images[often], labels[often], images[often], recipe)
    plain, _ = both_ways(images, labels, images, recipe)
    # The sums are of other terms in another order: float32's rounding.
    assert_near(in_memory, repeated)
    with pytest.raises(AssertionError):
        assert_near(in_memory, plain)


def assert_near(found, expected):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected))
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_chunks_compile_once(monkeypatch):
    """Twice the chunks bring no more compilations than the first epoch."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: (
            compiled.append(event) if "backend_compile" in event else None
        )
    )

    def count(images_in_all):
        images, labels = stored_images(images_in_all, side=10)
        before = len(compiled)
        training.train_streamed(
            jax.random.key(0),
            models.init_params(NETWORK, jax.random.key(0), (10, 10, 3)),
            Stream(images, labels, CLASSES),
            jnp.float32(0.1),
            module=NETWORK,
            recipe=Recipe(2, 2),
            preprocessing=PREPARE,
        )
        return len(compiled) - before

    monkeypatch.setattr(training, "_CHUNK", 2 * 2 * 300)
    training._advance.clear_cache()
    count(8)  # two chunks of two steps: and whatever is compiled once for all
    fewer, more = count(12), count(40)
    assert 0 < more <= fewer


def test_stream_is_read_in_bounded_chunks(monkeypatch):
    images, labels = stored_images(40)
    asked = []

    class Spy:
        shape = images.shape

        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            asked.append(index)
            return images[index]

    monkeypatch.setattr(training, "_CHUNK", 3 * images[:4].nbytes)
    # Ten steps: four chunks of at most three.
    expected, found = both_ways(images, labels, Spy(), Recipe(2, 4))
    steps = [index.shape for index in asked]
    assert steps == [(3, 4), (3, 4), (3, 4), (1, 4)] * 2
    for epoch in (asked[:4], asked[4:]):
        assert sorted(np.concatenate(epoch).ravel()) == list(range(40))
    assert (np.concatenate(asked[:4]) != np.concatenate(asked[4:])).any()
    assert_equal(found, expected)


@pytest.mark.parametrize(
    "labels, said",
    [
        ([0, 1], r"3 integers, one for each .* not int64 of shape \(2,\)"),
        ([0.0, 1.0, 2.0], "float64"),
        ([0, 1, CLASSES], "0..2, not 0..3"),
        ([0, -1, 1], "not -1..1"),
    ],
)
def test_wrong_streams(labels, said):
    images, _ = stored_images(3)
    with pytest.raises(InputError, match=said):
        training.train_streamed(
            jax.random.key(0),
            start(),
            Stream(images, np.array(labels), CLASSES),
            jnp.float32(0.1),
            module=NETWORK,
            recipe=Recipe(1, 1),
        )


def test_epochs_of_so_many_steps(tmp_path):
    """Also of fewer than visit every image; streamed as in memory."""
    recipe = Recipe(epochs=2, batch_size=4, epoch_steps=2)
    assert training.total_steps(recipe, 13) == 4
    plan = training.plan_epoch(jax.random.key(0), 13, 4, 2)
    assert plan.indices.shape == (2, 4)
    assert len(set(plan.indices.ravel().tolist())) == 8
    long = training.plan_epoch(jax.random.key(0), 13, 4, 9)
    assert np.bincount(long.indices.ravel(), minlength=13).min() >= 2
    images, labels = stored_images()
    streamed, kept = both_ways(images, labels, images, recipe)
    assert_equal(streamed, kept)


@pytest.mark.parametrize("flatness", [0.0, 0.05])
def test_gradient_of_a_flat_minimum(flatness):
    """Of a quadratic form: its gradient at p, moved up by rho."""
    matrix = np.array([[3.0, 1.0], [1.0, 2.0]])
    params = {"a": jnp.float32(0.7), "b": jnp.float32(-0.4)}

    def loss_fn(params, batch, key):
        p = jnp.stack([params["a"], params["b"]])
        return p @ jnp.asarray(batch) @ p / 2

    found = training.gradient(loss_fn, flatness)
    loss, grads = found(params, matrix, None)
    p = np.array([0.7, -0.4])
    there = p + flatness * matrix @ p / np.linalg.norm(matrix @ p)
    np.testing.assert_allclose(loss, p @ matrix @ p / 2, rtol=1e-6)
    np.testing.assert_allclose(
        [grads["a"], grads["b"]], matrix @ there, rtol=1e-5
    )


def test_flatness_reaches_training():
    images, labels = problem()
    ends = [
        training.train(
            jax.random.key(0),
            start(),
            stored(images, labels),
            0.5,
            module=NETWORK,
            recipe=Recipe(epochs=3, batch_size=9, flatness=flatness),
        )["head"]["kernel"]
        for flatness in (0.0, 0.5)
    ]
    assert np.abs(np.subtract(*ends)).max() > 1e-3


def grouped_problem(count, norm="instance"):
    """A small ConvNet's loss, parameters and a batch of so many images."""
    module = models.build(
        "convnet", num_classes=CLASSES, width=4, depth=1, norm=norm
    )
    params = models.init_params(module, jax.random.key(1), (4, 4, 2))
    rng = np.random.default_rng(2)
    batch = Batch(
        jnp.asarray(rng.normal(size=(count, 4, 4, 2))),
        jnp.asarray(rng.uniform(size=(count, CLASSES))),  # weighted
    )

    def loss_of(params, batch):
        logits, _ = module.apply({"params": params}, batch.images)
        return cross_entropy(logits, batch.labels)

    # In float64 where that is on.
    wide = batch.images.dtype
    return loss_of, jax.tree.map(lambda leaf: leaf.astype(wide), params), batch


@pytest.mark.parametrize(
    "count, at_once, norm",
    [(6, 2, "none"), (7, 3, "instance"), (5, 4, "layer"), (3, 1, "group")],
)
def test_groups_have_the_loss_and_gradient_of_the_batch(count, at_once, norm):
    with jax.enable_x64(True):
        loss_of, params, batch = grouped_problem(count, norm)
        grouped = training.in_groups(loss_of, at_once)
        np.testing.assert_allclose(
            grouped(params, batch), loss_of(params, batch), rtol=1e-12
        )
        found, expected = (
            jax.jit(jax.value_and_grad(loss, (0, 1)))(params, batch)
            for loss in (grouped, loss_of)
        )
    # Sums in another order, of float64.
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-13),
        found,
        expected,
    )


def test_groups_can_be_differentiated_twice():
    with jax.enable_x64(True):
        loss_of, params, batch = grouped_problem(5)

        def stepped(loss):
            def after(images):
                slopes = jax.grad(loss)(params, Batch(images, batch.labels))
                return sum(jnp.sum(s**2) for s in jax.tree.leaves(slopes))

            return jax.grad(after)(batch.images)

        found, expected = (
            stepped(training.in_groups(loss_of, 2)),
            stepped(loss_of),
        )
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-13)


def test_a_batch_of_one_group_is_left_as_it_is():
    def loss_of(params, batch):
        return (params, batch)

    data = Batch(np.zeros((3, 1, 1, 1)), np.zeros((3, 2)))
    assert training.in_groups(loss_of, 3)(None, data)[1] is data


def planned(loss, params, batch):
    """Bytes beside arguments and results that a gradient of it needs."""
    compiled = jax.jit(jax.grad(loss)).lower(params, batch, jax.random.key(0))
    return compiled.compile().memory_analysis().temp_size_in_bytes


def test_only_a_group_of_large_images_is_held():
    module = models.build("convnet", num_classes=CLASSES, width=64, depth=2)
    params = models.init_params(module, jax.random.key(1), (32, 32, 3))
    batch = Batch(jnp.ones((128, 32, 32, 3)), jnp.ones((128, CLASSES)))
    whole = training.supervised_loss(training.apply_fn_of(module))
    grouped = training.module_loss(module)
    # 16 of 128 images at once.
    assert planned(grouped, params, batch) < planned(whole, params, batch) / 3


@pytest.mark.parametrize("name", ["resnet18", "resnet18_bn"])
def test_a_norm_of_the_batch_is_not_split(name):
    module = models.build(name, num_classes=CLASSES)
    shapes = jax.eval_shape(
        lambda: models.init_params(module, jax.random.key(0), (64, 64, 3))
    )
    batch = Batch(
        jax.ShapeDtypeStruct((64, 64, 64, 3), jnp.float32),
        jax.ShapeDtypeStruct((64, CLASSES), jnp.float32),
    )
    loss = jax.make_jaxpr(training.module_loss(module))(
        shapes, batch, jax.random.key(0)
    )
    assert ("scan" in str(loss)) == (name == "resnet18")


def test_groups_keep_types_apart():
    def loss_of(weight, batch):
        return jnp.mean(batch.images.sum((1, 2, 3)) * weight)

    batch = Batch(jnp.ones((5, 1, 1, 2)), jnp.ones((5, 1)))
    loss = training.in_groups(loss_of, 2)
    slope = jax.grad(loss)(jnp.ones((), jnp.bfloat16), batch)
    assert (slope.dtype, float(slope)) == (jnp.bfloat16, 2)


@pytest.mark.parametrize("flatness", [0.0, 0.1])
def test_training_by_groups_is_training(monkeypatch, flatness):
    images, labels = problem(9)
    images = jnp.concatenate([images, 2 * images], axis=2)  # two pixels more
    params = {"head": {"kernel": jnp.ones((4, CLASSES)), "bias": jnp.zeros(3)}}
    recipe = Recipe(
        3, 7, momentum=0.5, augment=("flip", "scale"), flatness=flatness
    )

    def trained():
        jax.clear_caches()  # the group's size is no argument
        return training.train(
            jax.random.key(0),
            params,
            stored(images, labels),
            jnp.float32(0.1),
            module=NETWORK,
            recipe=recipe,
        )

    whole = trained()
    sizes = []
    monkeypatch.setattr(training, "_at_once", lambda *of: sizes.append(1) or 2)
    grouped = trained()
    assert sizes
    # Float32 sums in another order.
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        grouped,
        whole,
    )


def test_nobody_pays_for_the_gradient_of_the_images():
    loss_of, params, batch = grouped_problem(8)
    loss = training.in_groups(loss_of, 2)

    def operations(of):
        compiled = jax.jit(jax.grad(loss, of)).lower(params, batch).compile()
        return compiled.cost_analysis()["flops"]

    # The first layer's product to its input is missing.
    assert operations(0) < 0.95 * operations((0, 1))
