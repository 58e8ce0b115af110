"""Picks of a class: against brute force, and by hand."""

import warnings

import numpy as np
import pytest

from ddjax.data import selection


def points(count=12, size=3, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size)) + 0.3


@pytest.fixture(params=[None, 7], ids=["whole", "in chunks"], autouse=True)
def chunks(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(selection, "_CHUNK_VALUES", request.param)


# --- Herding -----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_herding_by_brute_force(seed):
    """Each pick brings the mean of the picks nearest to the mean of all."""
    x = points(seed=seed)
    found = selection.herding(x, 12).tolist()
    assert sorted(found) == list(range(12))
    for step, pick in enumerate(found):
        before = found[:step]

        def distance(i):
            return np.linalg.norm(x[before + [i]].mean(0) - x.mean(0))

        others = [i for i in range(12) if i not in before]
        assert pick == min(others, key=distance)


def test_herding_by_hand():
    """Mean 2: after 1, the pair's mean is best with 3."""
    line = np.array([[-5.0], [1.0], [3.0], [9.0]])
    assert selection.herding(line, 3).tolist()[:2] == [1, 2]
    # What is picked does not depend on how many are.
    x = points()
    np.testing.assert_array_equal(
        selection.herding(x, 4), selection.herding(x, 9)[:4]
    )


def test_herding_is_nearer_to_the_mean_than_chance():
    x = points(200, 8)
    rng = np.random.default_rng(1)

    def distance(chosen):
        return np.linalg.norm(x[chosen].mean(0) - x.mean(0))

    chance = [distance(rng.choice(200, 10, False)) for _ in range(50)]
    assert distance(selection.herding(x, 10)) < min(chance) / 2


# --- K-centre ----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_k_centre_by_brute_force(seed):
    x = points(seed=seed)
    found = selection.k_centre(x, 12).tolist()
    assert sorted(found) == list(range(12))
    distance = np.linalg.norm(x[:, None] - x[None], axis=-1)
    to_mean = np.linalg.norm(x - x.mean(0), axis=1)
    assert found[0] == to_mean.argmin()
    for step in range(1, 12):
        others = [i for i in range(12) if i not in found[:step]]
        cover = {i: distance[i, found[:step]].min() for i in others}
        assert found[step] == max(others, key=cover.get)


def test_k_centre_by_hand():
    """Nearest to the mean 3.6, then the far end, then the other one."""
    line = np.array([[0.0], [1.0], [4.0], [4.0], [9.0]])
    assert selection.k_centre(line, 3).tolist() == [2, 4, 0]
    np.testing.assert_array_equal(
        selection.k_centre(line, 2), selection.k_centre(line, 5)[:2]
    )


@pytest.mark.parametrize("pick", [selection.herding, selection.k_centre])
def test_equal_points_are_picked_once_each(pick):
    same = np.ones((4, 2), np.float32)
    assert pick(same, 4).tolist() == [0, 1, 2, 3]


# --- Means -------------------------------------------------------------------


def test_the_mean_of_a_class_keeps_its_shape():
    x = points(10, 12).reshape(10, 2, 3, 2).astype(np.float32)
    found = selection.cluster_means(x, 1)
    assert found.shape == (1, 2, 3, 2)
    np.testing.assert_allclose(found[0], x.astype(np.float64).mean(0))


def test_clusters_are_found():
    middles = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    rng = np.random.default_rng(0)
    x = middles[np.arange(60) % 3] + rng.normal(size=(60, 2)) * 0.1
    found = selection.cluster_means(x.reshape(60, 2, 1), 3)
    assert found.shape == (3, 2, 1)
    expected = [x[i::3].mean(0) for i in range(3)]
    np.testing.assert_allclose(
        sorted(found[..., 0].tolist()), sorted(map(list, expected))
    )


def test_the_same_means_twice():
    x = points(3000, 40)
    first = selection.cluster_means(x, 7)
    for _ in range(3):
        np.testing.assert_array_equal(selection.cluster_means(x, 7), first)
    # Each the mean of the points that are nearest to it.
    nearest = np.linalg.norm(x[:, None] - first, axis=-1).argmin(1)
    moved = [x[nearest == i].mean(0) for i in range(7)]
    assert np.abs(moved - first).max() < 0.2


def test_fewer_different_points_than_means():
    x = np.repeat([[0.0], [1.0]], 3, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = selection.cluster_means(x, 4)
    assert set(found.ravel()) == {0.0, 1.0}


@pytest.mark.parametrize(
    "pick", [selection.herding, selection.k_centre, selection.cluster_means]
)
@pytest.mark.parametrize("count", [0, 13])
def test_more_than_there_are(pick, count):
    with pytest.raises(ValueError, match=f"{count} of 12"):
        pick(points(), count)
