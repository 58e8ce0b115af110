"""The losses against a few lines of NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from ddjax.losses import (
    channel_attention,
    cross_entropy,
    embedding_matching_loss,
    iadd_loss,
    prediction_matching_loss,
)
from ddjax.types import InputError


def trees(seed=0):
    """Student, start, target and positive weights, float64."""
    rng = np.random.default_rng(seed)

    def tree():
        return {
            "a": {
                "kernel": rng.normal(size=(2, 3)),
                "bias": rng.normal(size=(3,)),
            },
            "b": rng.normal(size=(4,)),
        }

    return tree(), tree(), tree(), jax.tree.map(np.abs, tree())


def by_hand(student, start, target, importance):
    def flat(tree):
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])

    student, start, target, w = map(flat, (student, start, target, importance))
    return np.sum((w * student - w * target) ** 2) / np.sum(
        (start - target) ** 2
    )


def ones(tree):
    return jax.tree.map(np.ones_like, tree)


def test_iadd_loss(x64):
    for seed in range(3):
        arguments = trees(seed)
        np.testing.assert_allclose(
            iadd_loss(*arguments), by_hand(*arguments), rtol=1e-14
        )


def test_no_importance_is_ones(x64):
    *params, _ = trees()
    expected = by_hand(*params, ones(params[0]))
    np.testing.assert_allclose(iadd_loss(*params), expected, rtol=1e-14)
    np.testing.assert_allclose(
        iadd_loss(*params, ones(params[0])), expected, rtol=1e-14
    )


def test_zero_at_the_target_and_one_at_the_start(x64):
    _, start, target, w = trees()
    assert iadd_loss(target, start, target, w) == 0
    assert iadd_loss(start, start, target) == 1


def test_one_weight_a_tensor(x64):
    *params, w = trees()
    scalars = jax.tree.map(np.mean, w)
    full = jax.tree.map(lambda s, like: np.full_like(like, s), scalars, w)
    np.testing.assert_allclose(
        iadd_loss(*params, scalars), by_hand(*params, full), rtol=1e-14
    )


def test_trees_that_differ():
    student, start, target, w = trees()
    reshaped = {**start, "b": start["b"][:, None]}
    lacking = {"a": start["a"]}
    for bad in (
        (student, reshaped, target),
        (student, start, lacking),
        (student, start, target, {"a": w["a"]}),
    ):
        with pytest.raises(AssertionError):
            iadd_loss(*bad)


def test_cross_entropy(x64):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 4)) * 3
    labels = rng.dirichlet(np.ones(4), size=5)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.mean(np.sum(labels * np.log(p), 1))
    found = cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_cross_entropy_of_huge_logits():
    logits = jnp.array([[1e4, 0.0], [0.0, 1e4]])
    assert cross_entropy(logits, jnp.array([[1.0, 0], [0, 1]])) == 0
    assert cross_entropy(logits, jnp.array([[0.0, 1], [1, 0]])) == 1e4


def test_cross_entropy_of_shapes_that_differ():
    with pytest.raises((AssertionError, TypeCheckError)):
        cross_entropy(jnp.ones((2, 3)), jnp.ones((2, 1)))


# --- D2M ---------------------------------------------------------------------

ROWS, CLASSES = 6, 4
SHAPES = {"block0": (4, 3, 5), "block1": (2, 2, 3), "block2": (2, 1, 4)}


def features(seed, shapes=SHAPES, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(scale * rng.normal(size=(ROWS, *shape)))
        for name, shape in shapes.items()
    }


def one_hot(classes=(0, 1, 3, 1, 0, 1)):
    """Of class 2 there is no image."""
    return jnp.asarray(np.eye(CLASSES)[list(classes)])


def soft_labels():
    rng = np.random.default_rng(5)
    return jnp.asarray(rng.dirichlet(np.ones(CLASSES), size=ROWS))


def embedding(power=4, last=None):
    """The loss and its gradients, compiled."""
    return _compiled(power, last)


@functools.cache
def _compiled(power, last):
    def loss(real, fake, labels):
        return embedding_matching_loss(
            real, fake, labels, power=power, last=last
        )

    return jax.jit(loss), jax.jit(jax.value_and_grad(loss, (0, 1)))


def embedding_by_hand(real, fake, labels, power, last="block2"):
    """The formula, one number at a time."""

    def description(layer, image):
        height, width, channels = image.shape
        found = np.zeros(channels)
        for row in range(height):
            for column in range(width):
                for channel in range(channels):
                    value = image[row, column, channel]
                    if layer == last:
                        found[channel] += value / (height * width)
                    else:
                        found[channel] += abs(value) ** power
        return found if layer == last else found / np.sqrt(np.sum(found**2))

    def mean(layer, images, weights):
        found = [description(layer, image) for image in images]
        return sum(w * a for w, a in zip(weights, found)) / sum(weights)

    total = 0.0
    for layer in real:
        distances = []
        for k in range(labels.shape[1]):
            weights = np.asarray(labels)[:, k]
            if sum(weights) == 0:
                continue
            gap = mean(layer, np.asarray(real[layer]), weights) - mean(
                layer, np.asarray(fake[layer]), weights
            )
            distances.append(np.sum(gap**2))
        total += np.mean(distances)
    return total


def test_channel_attention(x64):
    x = features(0)["block0"]
    for power in (1, 2, 2.5, 4):
        np.testing.assert_allclose(
            channel_attention(x, power=power),
            np.sum(np.abs(np.asarray(x)) ** power, (1, 2)),
            rtol=1e-13,
        )
    # p |f|^(p-1) sign f, and 0 at 0.
    x = jnp.array([0.0, -2.0, 3.0]).reshape(1, 3, 1, 1)
    for power, expected in ((1, (0, -1, 1)), (4, (0, -32, 108))):
        grad = jax.grad(lambda x: channel_attention(x, power=power).sum())(x)
        np.testing.assert_allclose(grad.ravel(), expected, rtol=1e-14)


@pytest.mark.parametrize("power", [1, 2.5, 4])
@pytest.mark.parametrize("labels", [one_hot, soft_labels])
def test_embedding_matching(power, labels, x64):
    real, fake, labels = features(0), features(1), labels()
    expected = embedding_by_hand(real, fake, labels, power)
    loss, _ = embedding(power)
    np.testing.assert_allclose(loss(real, fake, labels), expected, rtol=1e-12)
    # One layer is the last.
    alone = [{"block2": side["block2"]} for side in (real, fake)]
    np.testing.assert_allclose(
        loss(*alone, labels),
        embedding_by_hand(*alone, labels, power),
        rtol=1e-12,
    )


def test_embedding_matching_in_single_precision():
    real, fake, labels = features(0), features(1), one_hot()
    assert labels.dtype == jnp.float32
    found = embedding()[0](real, fake, labels)
    expected = embedding_by_hand(
        *(
            {name: np.float64(x) for name, x in side.items()}
            for side in (real, fake)
        ),
        labels,
        4,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_embedding_gradient(x64):
    """Against differences, also through the scaling by the largest."""
    real, fake, labels = features(0), features(1), soft_labels()
    loss, with_grads = embedding()
    _, (_, grads) = with_grads(real, fake, labels)
    for name in SHAPES:
        largest = np.unravel_index(
            np.argmax(np.abs(fake[name])), fake[name].shape
        )
        for entry in (largest, (0, 0, 0, 0), (3, 1, 0, 2)):
            step = jnp.zeros_like(fake[name]).at[entry].set(1e-6)
            up, down = (
                loss(real, {**fake, name: fake[name] + sign * step}, labels)
                for sign in (1, -1)
            )
            np.testing.assert_allclose(
                grads[name][entry], (up - down) / 2e-6, rtol=1e-6, atol=1e-9
            )


def test_equal_features_have_nothing_to_match():
    real = features(0)
    for labels in (one_hot(), soft_labels()):
        assert embedding_matching_loss(real, real, labels, power=4) == 0
        # Compiled, the two sides may be rounded apart.
        found, (_, grads) = embedding()[1](real, real, labels)
        assert 0 <= found < 1e-12
        assert all((np.abs(leaf) < 1e-5).all() for leaf in grads.values())


def test_order_within_a_class_is_free(x64):
    real, fake, labels = features(0), features(1), one_hot()

    def loss(order):
        turned = {name: x[jnp.array(order)] for name, x in fake.items()}
        return float(embedding()[0](real, turned, labels))

    there = loss(range(ROWS))
    # Rows 0 and 4 are of one class, 1, 3 and 5 of another.
    np.testing.assert_allclose(loss([4, 3, 2, 5, 0, 1]), there, rtol=1e-13)
    # Across classes it is not.
    assert abs(loss([1, 0, 2, 3, 4, 5]) / there - 1) > 1e-3


def test_order_of_the_layers_is_free():
    real, fake, labels = features(0), features(1), one_hot()
    there = embedding_matching_loss(real, fake, labels, power=4)
    turned = [dict(reversed(side.items())) for side in (real, fake)]
    assert list(turned[0]) != list(real)
    for arguments in (turned, (turned[0], fake)):
        assert there == embedding_matching_loss(*arguments, labels, power=4)
    # jit sorts a dict; the last layer stays the same.
    jitted, _ = embedding()
    np.testing.assert_allclose(jitted(*turned, labels), there, rtol=1e-6)


def test_last_layer_by_name(x64):
    # Sorted, block10 comes before block2.
    shapes = {"block2": (2, 2, 3), "block10": (2, 1, 4)}
    real, fake = features(0, shapes), features(1, shapes)
    labels = one_hot()
    for last in (*shapes, "head"):  # no such layer: all are inner ones
        np.testing.assert_allclose(
            embedding(last=last)[0](real, fake, labels),
            embedding_by_hand(real, fake, labels, 4, last),
            rtol=1e-12,
        )
    sorted_last = embedding_by_hand(real, fake, labels, 4, "block2")
    other = embedding_by_hand(real, fake, labels, 4, "block10")
    np.testing.assert_allclose(
        embedding()[0](real, fake, labels), sorted_last, rtol=1e-12
    )
    assert abs(other / sorted_last - 1) > 0.1


def test_an_inner_layer_adds_two_at_most(x64):
    last = {"z": jnp.zeros((ROWS, 1, 1, 1))}
    for seed in range(20):
        real, fake = (
            {"a": features(seed + side)["block0"] ** 9, **last}
            for side in (0, 100)
        )
        assert 0.1 < embedding()[0](real, fake, one_hot()) < 2
    # Reached where one side has all in one channel, the other in another.
    real, fake = (
        {"a": jnp.zeros((ROWS, 3, 3, 2)).at[..., channel].set(-7.0), **last}
        for channel in (0, 1)
    )
    found, _ = embedding()[1](real, fake, one_hot())
    np.testing.assert_allclose(found, 2, rtol=1e-14)


def test_last_layer_is_raw():
    """Known means: 3 apart in one of two classes, sqrt(2) in the other."""
    real = {"z": jnp.zeros((2, 2, 1, 2))}
    fake = {"z": jnp.array([[[[1.0, 0]], [[5, 0]]], [[[-1, 1]], [[-1, 1]]]])}
    found = embedding_matching_loss(real, fake, jnp.eye(2), power=4)
    assert found == (9 + 2) / 2


@pytest.mark.parametrize("power", [1, 1.5, 4])
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1.0, 1e12])
def test_inner_layers_bear_any_size(scale, power):
    """Single precision; class 2 is missing, and one row is all zero."""

    def side(seed, scale):
        made = features(seed, scale=scale)
        made = {name: x.at[1].set(0) for name, x in made.items()}
        return {**made, "block2": features(seed)["block2"]}

    def loss(fake):
        found, (_, grads) = embedding(power)[1](side(0, 1.0), fake, one_hot())
        return found, grads

    found, grads = loss(side(1, scale))
    assert np.isfinite(found)
    assert all(np.isfinite(leaf).all() for leaf in grads.values())
    if scale:
        # The scale has no say in inner layers, and divides the gradient.
        expected, unscaled = loss(side(1, 1.0))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        for name in ("block0", "block1"):
            largest = np.abs(unscaled[name]).max()
            assert largest > 1e-3
            np.testing.assert_allclose(
                np.float64(grads[name]) * scale,
                unscaled[name],
                atol=1e-4 * largest,
            )


def test_features_that_are_all_zero_or_huge():
    zero = features(0, scale=0.0)
    assert all((leaf == 0).all() for leaf in zero.values())
    for scale in (0.0, 1e-12, 1e12):
        fake = features(1, scale=scale)
        found, (_, grads) = embedding()[1](zero, fake, one_hot())
        assert np.isfinite(found) and (found > 0) == (scale > 0)
        assert all(np.isfinite(leaf).all() for leaf in grads.values())


def test_no_label_at_all():
    none = jnp.zeros((ROWS, CLASSES))
    found, (_, grads) = embedding()[1](features(0), features(1), none)
    assert found == 0
    assert all((leaf == 0).all() for leaf in grads.values())


def test_not_finite_stays_not_finite():
    bad = features(1)
    for name in SHAPES:
        fake = {**bad, name: bad[name].at[0, 0, 0, 0].set(jnp.nan)}
        assert np.isnan(embedding()[0](features(0), fake, one_hot()))


def test_nothing_flows_to_the_real_side():
    _, grads = embedding()[1](features(0), features(1), one_hot())
    assert all((leaf == 0).all() for leaf in grads[0].values())
    assert all((leaf != 0).any() for leaf in grads[1].values())
    logits = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0]])
    to_real, to_fake = jax.grad(
        lambda *z: prediction_matching_loss(*z, temperature=2.0), (0, 1)
    )(*logits)
    assert (to_real == 0).all() and (to_fake != 0).all()


def test_features_that_differ_in_shape():
    real, labels = features(0), one_hot()
    lacking = {name: real[name] for name in ("block0", "block1")}
    reshaped = {**real, "block1": real["block1"][:, :1]}
    renamed = {**lacking, "block3": real["block2"]}
    fewer = {name: x[1:] for name, x in real.items()}
    flat = {**real, "block1": real["block1"].reshape(ROWS, -1)}
    for bad in (
        (real, lacking, labels),
        (real, reshaped, labels),
        (real, renamed, labels),
        (real, {}, labels),
        (real, fewer, labels),
        (fewer, fewer, labels),
        (flat, flat, labels),
        (real, real, labels[:, 0]),
    ):
        with pytest.raises((AssertionError, TypeCheckError)):
            embedding_matching_loss(*bad, power=4)


def test_refusals_of_embedding_matching():
    real, labels = features(0), one_hot()
    for power in (0, 0.99, -4, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"power.*" + str(power)):
            embedding_matching_loss(real, real, labels, power=power)
        with pytest.raises(InputError, match="power"):
            channel_attention(real["block0"], power=power)
    with pytest.raises(InputError, match="a layer or more"):
        embedding_matching_loss({}, {}, labels, power=4)


def logits_pair(scale=3.0):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(5, 4)) * scale) for _ in range(2)]


def prediction_by_hand(real, fake, temperature):
    def softmax(row):
        found = np.exp(row / temperature)
        return found / np.sum(found)

    total = 0.0
    for z_real, z_fake in zip(np.float64(real), np.float64(fake)):
        for p, q in zip(softmax(z_real), softmax(z_fake)):
            total += p * np.log(p / q)
    return total / len(real)


@pytest.mark.parametrize("temperature", [0.5, 1, 4.0])
def test_prediction_matching(temperature, x64):
    real, fake = logits_pair()
    expected = prediction_by_hand(real, fake, temperature)
    for given in (temperature, jnp.asarray(float(temperature))):
        found = prediction_matching_loss(real, fake, temperature=given)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    # Not symmetric; an offset of a whole row does not matter.
    back = prediction_matching_loss(fake, real, temperature=temperature)
    assert abs(back / expected - 1) > 1e-3
    moved = prediction_matching_loss(real + 9, fake, temperature=temperature)
    np.testing.assert_allclose(moved, expected, rtol=1e-12)


def test_prediction_matching_in_single_precision():
    real, fake = logits_pair()
    assert real.dtype == jnp.float32
    found = jax.jit(prediction_matching_loss)(real, fake, temperature=4.0)
    np.testing.assert_allclose(
        found, prediction_by_hand(real, fake, 4), rtol=1e-5
    )


def test_prediction_matching_of_known_logits():
    """At T = 2: shares of 3/4 and 1/4 against 1/2 and 1/2."""
    real = jnp.array([[2 * np.log(3.0), 0.0], [1.0, 1.0]], jnp.float32)
    found = prediction_matching_loss(real, jnp.zeros((2, 2)), temperature=2)
    expected = (0.75 * np.log(1.5) + 0.25 * np.log(0.5)) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_prediction_matching_at_its_ends():
    real, _ = logits_pair()
    assert prediction_matching_loss(real, real, temperature=4) == 0
    huge = jnp.array([[1e4, 0.0]])
    found, grad = jax.value_and_grad(
        lambda fake: prediction_matching_loss(huge, fake, temperature=1)
    )(-huge)
    assert found == 1e4
    np.testing.assert_array_equal(grad, [[-1.0, 1.0]])


def test_refusals_of_prediction_matching():
    real, fake = logits_pair()
    for temperature in (0, 0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="temperature"):
            prediction_matching_loss(real, fake, temperature=temperature)
    for bad in ((real, fake[:, :1]), (real[:1], fake), (real[0], fake[0])):
        with pytest.raises((AssertionError, TypeCheckError)):
            prediction_matching_loss(*bad, temperature=4)
