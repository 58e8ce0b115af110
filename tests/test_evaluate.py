"""Evaluation: fresh networks, a fair interval, the same twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ddjax import evaluate, models, parallel, training
from ddjax.data.preprocess import Standardiser
from ddjax.data.rows import Rows
from ddjax.training import Recipe, Stream
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


def test_batch_norm_of_enlarged_images():
    """As training and counting apart, with the statistics of training."""
    inner = models.build(
        "convnet", num_classes=3, width=2, depth=1, norm="batch"
    )
    module = models.Enlarged(inner, 2)
    images, labels = blobs(jax.random.key(0), 12, 1.0)
    test = Batch(*blobs(jax.random.key(1), 50, 1.0))
    data = evaluate.stored(images, jax.nn.one_hot(labels, 3))
    recipe = Recipe(epochs=20, batch_size=12)
    found = run(
        sample_fn=data, test=test, module=module, recipe=recipe, num_networks=2
    )
    for i, accuracy in enumerate(found.accuracy):
        first, second = jax.random.split(
            jax.random.fold_in(jax.random.key(0), i)
        )
        trained = training.train(
            second,
            models.init_params(module, first, images.shape[1:]),
            data,
            jnp.float32(0.1),
            module=module,
            recipe=recipe,
        )
        assert set(trained) == {"params", "batch_stats"}
        # One by one: the statistics are not those of the tested images.
        alone = [
            training.predict(
                trained, test.images[j : j + 1], module=module, batch_size=1
            )[0]
            for j in range(50)
        ]
        assert accuracy == pytest.approx(
            np.mean(np.array(alone) == test.labels)
        )
    assert found.mean > 0.5


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


def test_difference_is_welchs():
    first, second = [0.9, 0.91, 0.93, 0.9, 0.92], [0.7, 0.8, 0.6]
    found = evaluate.difference(first, second)
    expected = scipy.stats.ttest_ind(first, second, equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert found.mean == pytest.approx(0.912 - 0.7)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)
    assert found.low < 0 < found.mean  # three networks say little


def test_a_contrast_of_three():
    """Welch's and Satterthwaite's, written out for weights 1, -1/2, -1/2."""
    sides = [0.5, 0.6, 0.7], [0.2, 0.4], [0.9, 0.8, 0.8, 0.9]
    weights = 1.0, -0.5, -0.5
    found = evaluate.contrast(*zip(weights, sides))
    parts = [w**2 * np.var(x, ddof=1) / len(x) for w, x in zip(weights, sides)]
    freedom = sum(parts) ** 2 / (
        parts[0] ** 2 / 2 + parts[1] ** 2 / 1 + parts[2] ** 2 / 3
    )
    half = scipy.stats.t.ppf(0.975, freedom) * sum(parts) ** 0.5
    assert found.mean == pytest.approx(0.6 - 0.15 - 0.425)
    assert found.high - found.mean == pytest.approx(half)
    assert found.mean - found.low == pytest.approx(half)


def test_difference_without_spread_or_networks():
    assert evaluate.difference([0.5], [0.25, 0.5]) == (0.125, None, None)
    assert evaluate.difference([0.5, 0.5], [0.25] * 3) == (0.25,) * 3


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


# --- Recall ------------------------------------------------------------------


def uneven():
    """Fifty test images of two of the three classes, mostly of one."""
    images, labels = blobs(jax.random.key(1), 150, 2.0)
    chosen = np.concatenate(
        [np.flatnonzero(labels == 0)[:42], np.flatnonzero(labels == 2)[:8]]
    )
    return Batch(np.asarray(images)[chosen], np.asarray(labels)[chosen])


def test_recall():
    test = uneven()
    found = run(test=test)
    assert found.recall.shape == (3, 3)
    assert np.isnan(found.recall[:, 1]).all()
    right = found.recall[:, [0, 2]] * [42, 8]
    np.testing.assert_allclose(right, np.rint(right), atol=1e-9)
    assert (right[:, 1] % 8 != 0).any() and (right[:, 0] % 42 != 0).any()
    np.testing.assert_allclose(right.sum(1) / 50, found.accuracy, rtol=1e-12)
    # Each class by itself.
    for label in (0, 2):
        alone = test.labels == label
        only = run(test=Batch(test.images[alone], test.labels[alone]))
        np.testing.assert_array_equal(only.accuracy, found.recall[:, label])


def test_balanced():
    found = run(test=uneven())
    even = evaluate.balanced(found)
    expected = (found.recall[:, 0] + found.recall[:, 2]) / 2
    np.testing.assert_allclose(even.accuracy, expected, rtol=1e-12)
    assert even.mean == pytest.approx(expected.mean())
    assert even.ci95 == pytest.approx(evaluate.summarise(expected).ci95)
    assert abs(even.mean - found.mean) > 0.01
    with pytest.raises(InputError, match="recall"):
        evaluate.balanced(evaluate.summarise([0.5, 0.6]))


# --- Data in files -----------------------------------------------------------


@pytest.fixture
def in_files(tmp_path):
    """run()'s arguments with pixels in memory, and the same from files."""
    pixels = Standardiser(jnp.array([0.5]), jnp.array([0.2]))
    images, labels = blobs(jax.random.key(0), 12, 2.0)
    test = uneven()

    def stored(name, images):
        images = np.clip(np.asarray(images) * 51 + 127, 0, 255)
        np.save(tmp_path / name, images.astype(np.uint8))
        return images.astype(np.uint8), Rows(tmp_path / name)

    train_images, train_rows = stored("train.npy", images)
    test_images, test_rows = stored("test.npy", test.images)
    fixed = {"preprocessing": pixels, "test_preprocessing": pixels}
    memory = {
        "sample_fn": evaluate.stored(train_images, jax.nn.one_hot(labels, 3)),
        "test": test._replace(images=test_images),
    }
    files = {
        "sample_fn": Stream(train_rows, np.asarray(labels), 3),
        "test": test._replace(images=test_rows),
    }
    return memory | fixed, files | fixed


def test_from_files_as_in_memory(in_files, monkeypatch):
    memory, files = in_files
    expected = run(**memory)
    assert len(set(expected.accuracy)) > 1
    # In seven parts, the last of two images; in two chunks an epoch.
    monkeypatch.setattr(evaluate, "_PART", 8 * 3)
    monkeypatch.setattr(training, "_CHUNK", 2 * 4 * 3)
    for changes in (
        files,
        memory | {"test": files["test"]},
        memory | {"sample_fn": files["sample_fn"]},
    ):
        found = run(**changes)
        np.testing.assert_array_equal(found.accuracy, expected.accuracy)
        np.testing.assert_array_equal(found.recall, expected.recall)


def test_test_images_are_read_in_parts(in_files, monkeypatch):
    memory, files = in_files
    asked = []
    read = Rows.__getitem__

    def spy(self, index):
        asked.append(len(read(self, index)))
        return read(self, index)

    monkeypatch.setattr(Rows, "__getitem__", spy)
    monkeypatch.setattr(evaluate, "_PART", 20 * 3)
    run(**(memory | {"test": files["test"]}))
    assert asked == [20, 20, 10]


@pytest.mark.parametrize(
    "labels, said",
    [
        ([0] * 49, r"50 integers, one for each .* not int64 of shape \(49,\)"),
        ([0.0] * 50, "float64"),
        ([0] * 49 + [3], "0..2, not 0..3"),
        ([-1] * 50, "not -1..-1"),
    ],
)
def test_wrong_test_labels(labels, said, monkeypatch):
    """Told before anything is trained."""
    monkeypatch.setattr(evaluate, "_train", None)
    with pytest.raises(InputError, match=said):
        run(test=uneven()._replace(labels=np.array(labels)))


@pytest.mark.parametrize("balance", [False, True])
def test_standard_error_is_how_far_scores_on_other_images_spread(balance):
    """Each class has its own share of images that every network gets right;
    networks differ by luck of their own."""
    draws = np.random.default_rng(0)
    numbers, share = np.array([40, 10, 0, 25]), np.array([0.9, 0.5, 0, 0.7])

    def drawn():
        right = draws.binomial(numbers, share)
        luck = draws.normal(0, 0.05, (3, 1))
        with np.errstate(invalid="ignore"):
            recall = right / numbers + luck  # NaN where there are none
        accuracy = (np.nan_to_num(recall) * numbers).sum(1) / numbers.sum()
        return evaluate.summarise(accuracy, recall)

    found = [drawn() for _ in range(4000)]
    means = [(evaluate.balanced(r) if balance else r).mean for r in found]
    errors = [
        evaluate.standard_error(r, numbers, balance=balance) for r in found
    ]
    # Of 4,000 draws a spread is known to 1.1 %; three networks know their own
    # badly, and a class of ten underestimates its by a tenth.
    assert np.mean(np.square(errors)) ** 0.5 == pytest.approx(
        np.std(means), rel=0.08
    )


@pytest.mark.parametrize("where", ["devices", "threads", "vmap"])
def test_networks_on_data_of_their_own(where, monkeypatch):
    """Each is what it is alone, and has the key that is given for it."""
    if where != "devices":
        monkeypatch.setattr(parallel, "device_count", lambda: 1)
    if where == "threads":
        monkeypatch.setattr(parallel, "networks_at_once", lambda: 2)
    if where == "vmap":
        monkeypatch.setattr(parallel, "_in_a_loop", lambda: False)
    for function in (evaluate._train, evaluate._right):
        function.clear_cache()
    samples = []
    for seed in (2, 3, 4):
        images, labels = blobs(jax.random.key(seed), 12, 2.0)
        samples.append(evaluate.stored(images, jax.nn.one_hot(labels, 3)))
    keys = jnp.stack(
        [jax.random.fold_in(jax.random.key(9), i) for i in range(3)]
    )
    arguments = {
        "test": Batch(*blobs(jax.random.key(1), 50, 2.0)),
        "module": NETWORK,
        "recipe": RECIPE,
        "learning_rate": 0.1,
    }
    together = evaluate.evaluate(keys, samples, **arguments)
    assert len(set(together.accuracy)) > 1
    for i in range(3):
        alone = evaluate.evaluate(keys[i][None], samples[i], **arguments)
        np.testing.assert_array_equal(alone.recall[0], together.recall[i])
    # Folded keys of one are the same networks.
    folded = evaluate.evaluate(
        jax.random.key(9), samples[0], num_networks=2, **arguments
    )
    shared = evaluate.evaluate(keys[:2], samples[0], **arguments)
    np.testing.assert_array_equal(folded.recall, shared.recall)
    with pytest.raises(InputError, match=r"2 sets of .* for 3 networks"):
        evaluate.evaluate(keys, samples[:2], **arguments)
    for function in (evaluate._train, evaluate._right):
        function.clear_cache()
