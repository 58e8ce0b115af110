"""Evaluation: fresh networks, a fair interval, the same twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ddjax import evaluate, models
from ddjax.data.preprocess import Standardiser
from ddjax.training import Recipe
from ddjax.types import Batch, InputError

NETWORK = models.build("mlp", num_classes=3, width=4)
RECIPE = Recipe(epochs=3, batch_size=4)


def blobs(key, count, spread):
    """Three classes, each bright in a pixel of its own."""
    labels = jnp.arange(count) % 3
    noise = jax.random.normal(key, (count, 3)).reshape(count, 1, 3, 1)
    images = jax.nn.one_hot(labels, 3)[:, None, :, None] * 3 + spread * noise
    return images, labels


def run(seed=0, *, spread=2.0, **changes):
    images, labels = blobs(jax.random.key(0), 12, spread)
    test = Batch(*blobs(jax.random.key(1), 50, spread))
    arguments = {
        "sample_fn": evaluate.stored(images, jax.nn.one_hot(labels, 3)),
        "test": test,
        "module": NETWORK,
        "recipe": RECIPE,
        "learning_rate": 0.1,
        "num_networks": 3,
    } | changes
    return evaluate.evaluate(jax.random.key(seed), **arguments)


@pytest.fixture(scope="module")
def result():
    return run()


def test_result(result):
    assert result.accuracy.shape == (3,)
    shares = np.float64(result.accuracy) * 50
    np.testing.assert_allclose(shares, np.rint(shares), atol=1e-4)
    assert len(set(result.accuracy)) > 1
    assert result.mean == pytest.approx(np.mean(result.accuracy))
    assert result.std == pytest.approx(np.std(result.accuracy, ddof=1))


def test_deterministic_and_decided_by_the_key(result):
    again = run()
    np.testing.assert_array_equal(again.accuracy, result.accuracy)
    assert (run(1).accuracy != result.accuracy).any()


def test_network_does_not_depend_on_their_number(result):
    fewer = run(num_networks=2)
    np.testing.assert_array_equal(fewer.accuracy, result.accuracy[:2])


def test_summary():
    accuracy = [0.5, 0.7, 0.6, 0.65]
    found = evaluate.summarise(accuracy)
    low, high = scipy.stats.t.interval(
        0.95, 3, loc=np.mean(accuracy), scale=scipy.stats.sem(accuracy)
    )
    assert found.ci95 == pytest.approx((high - low) / 2, rel=1e-9)
    assert found.mean == pytest.approx((high + low) / 2, rel=1e-9)


def test_summary_of_one():
    found = evaluate.summarise([0.25])
    assert (found.mean, found.std, found.ci95) == (0.25, 0.0, 0.0)


@pytest.mark.parametrize("networks", [0, -1])
def test_no_networks(networks):
    with pytest.raises(InputError, match=r"evaluate\.networks"):
        run(num_networks=networks)


def test_stream_of_fresh_data():
    """A sample_fn that draws new images every epoch."""

    def draw(key):
        images, labels = blobs(key, 12, 0.5)
        return Batch(images, jax.nn.one_hot(labels, 3))

    stream = run(
        sample_fn=draw,
        spread=0.5,
        recipe=Recipe(epochs=60, batch_size=12),
        learning_rate=0.3,
    )
    assert stream.mean > 0.95


def test_preprocessings_are_each_their_own(result):
    """Stored data come out as if they had been prepared before."""
    shift = Standardiser(jnp.array([2.0]), jnp.array([4.0]))
    images, labels = blobs(jax.random.key(0), 12, 2.0)
    test = Batch(*blobs(jax.random.key(1), 50, 2.0))
    found = run(
        sample_fn=evaluate.stored(images * 4 + 2, jax.nn.one_hot(labels, 3)),
        test=test._replace(images=test.images * 8 + 1),
        preprocessing=shift,
        test_preprocessing=Standardiser(jnp.array([1.0]), jnp.array([8.0])),
    )
    np.testing.assert_allclose(found.accuracy, result.accuracy, atol=0.021)
