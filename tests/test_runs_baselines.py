"""Picks beside random real images, of digits."""

import jax
import numpy as np
import pytest
from small import IADD

from ddjax import models
from ddjax.data import preprocess, selection
from ddjax.data.rows import Rows
from ddjax.runs import baselines, prepare
from ddjax.settings import BASELINES, Settings

SETTINGS = Settings.of({"data.source": "digits", **IADD})


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return prepare.task(
        SETTINGS.data, SETTINGS.model, 0, tmp_path_factory.mktemp("data")
    )


@pytest.fixture(scope="module")
def params(task):
    return models.init_params(task.module, jax.random.key(0), task.image_shape)


@pytest.fixture(scope="module")
def picks(task, params):
    return baselines.pick(BASELINES, task, params, [1, 3])


def inputs_of(task, label):
    train = task.splits.train
    images = train.images[train.labels == label]
    return np.asarray(preprocess.apply(task.preprocessing, images))


def test_forms(picks):
    for ipc, by_name in picks.items():
        assert tuple(by_name) == BASELINES
        for batch in by_name.values():
            assert batch.images.shape == (10 * ipc, 8, 8, 1)
            expected = np.repeat(np.arange(10), ipc)
            np.testing.assert_array_equal(batch.labels.argmax(1), expected)
            np.testing.assert_array_equal(batch.labels.sum(1), 1)


@pytest.mark.parametrize("name", ["herding", "k_centre"])
def test_real_images_of_their_class_are_picked(task, params, picks, name):
    """By the features of all of them, computed apart."""
    pick = {"herding": selection.herding, "k_centre": selection.k_centre}[name]
    apply = jax.jit(task.module.apply)
    for label in (0, 7):
        inputs = inputs_of(task, label)
        _, out = apply({"params": params}, inputs)
        points = np.asarray(out["block0"]).reshape(len(inputs), -1)
        expected = inputs[pick(points, 3)]
        found = picks[3][name].images[3 * label : 3 * label + 3]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_array_equal(picks[1][name].images[label], found[0])


def test_means(task, picks):
    for label in (0, 7):
        inputs = inputs_of(task, label)
        np.testing.assert_allclose(
            picks[1]["class_means"].images[label], inputs.mean(0), atol=1e-5
        )
        three = picks[3]["class_means"].images[3 * label : 3 * label + 3]
        distance = np.square(inputs[:, None] - three).sum((2, 3, 4))
        # Nearer than one mean is, and each the mean of what is nearest to it.
        alone = np.square(inputs - inputs.mean(0)).sum((1, 2, 3))
        assert distance.min(1).sum() < 0.9 * alone.sum()
        for i in range(3):
            own = inputs[distance.argmin(1) == i]
            assert np.abs(own.mean(0) - three[i]).max() < 0.2


def test_from_disk_in_parts_and_thinned_out(
    task, params, picks, tmp_path, monkeypatch
):
    """Parts of 50 images of about 130; clusters of 40 of them."""
    train = task.splits.train
    np.save(tmp_path / "images.npy", train.images)
    rows = train._replace(images=Rows(tmp_path / "images.npy"))
    disk = task._replace(splits=task.splits._replace(train=rows))
    monkeypatch.setattr(baselines, "_AT_ONCE", 50)
    found = baselines.pick(BASELINES, disk, params, [1, 3])
    for ipc, name in [(i, name) for i in (1, 3) for name in BASELINES]:
        np.testing.assert_allclose(
            found[ipc][name].images, picks[ipc][name].images, atol=1e-5
        )
    seen = []
    real = selection.cluster_means

    def spy(points, count):
        seen.append(len(points))
        return real(points, count)

    monkeypatch.setattr(selection, "cluster_means", spy)
    monkeypatch.setattr(baselines, "_CLUSTERED", 40 * 8 * 64)
    baselines.pick(["class_means"], disk, None, [3])
    assert seen == [40] * 10


def test_what_a_head_sees(task, params):
    """A ConvNet's is flat, a ResNet's the mean over positions."""
    members = np.arange(3)
    assert baselines.features(params, task, members).shape == (
        3,
        4 * 4 * 4,
    )
    module = models.build("resnet18", num_classes=10, width=2)
    params = models.init_params(module, jax.random.key(0), task.image_shape)
    found = baselines.features(params, task._replace(module=module), members)
    assert found.shape == (3, 16)
    # The head of these features gives the network's own logits.
    inputs = preprocess.apply(
        task.preprocessing, task.splits.train.images[members]
    )
    logits, _ = module.apply({"params": params}, inputs)
    head = params["head"]
    np.testing.assert_allclose(
        found @ head["kernel"] + head["bias"], logits, atol=1e-4
    )


def test_without_teachers_or_names(task, params):
    found = baselines.pick(BASELINES, task, None, [1])
    assert list(found[1]) == ["class_means"]
    assert baselines.pick([], task, params, [1, 2]) == {1: {}, 2: {}}
