"""Choosing among generated images: by hand, and against brute force."""

import itertools

import numpy as np
import pytest

from ddjax.runs import choose
from ddjax.types import InputError


def test_centres_take_the_nearest_to_each_cluster():
    real = np.array([[0.0], [0.2], [10.0], [10.2]])
    made = np.array([[5.0], [10.3], [-1.0], [0.3], [30.0]])
    chosen = choose.centres(real, made, 2)
    assert sorted(chosen) == [1, 3]
    # One image for two equal centres: the second takes the next one.
    chosen = choose.centres(np.zeros((3, 1)), made, 3)
    assert sorted(chosen) == [0, 2, 3]


def test_centres_cover_a_class_where_chance_does_not():
    """Nine of ten made images lie at one of three places."""
    rng = np.random.default_rng(0)
    places = np.array([[0.0, 0], [9, 0], [0, 9]])
    real = places[rng.integers(0, 3, 60)] + rng.normal(0, 0.1, (60, 2))
    made = places[rng.choice(3, 200, p=[0.9, 0.05, 0.05])]
    made = made + rng.normal(0, 0.1, made.shape)
    kept = made[choose.centres(real, made, 3)]
    assert sorted(np.square(kept[:, None] - places).sum(2).argmin(1)) == [
        0,
        1,
        2,
    ]


def test_moments_find_the_best_group(monkeypatch):
    """Of six images in threes, of which there are twenty, ten thousand draws
    see all: the winner is the one of brute force."""
    rng = np.random.default_rng(1)
    real, made = rng.normal(size=(50, 2)), rng.normal(1, 2, (6, 2))

    def cost(group):
        def three(x):
            x = (x - real.mean(0)) / real.std(0)
            central = x - x.mean(0)
            third = (central**3).mean(0)
            return np.concatenate(
                [
                    x.mean(0),
                    x.std(0),
                    np.sign(third) * np.abs(third) ** (1 / 3),
                ]
            )

        return np.square(three(made[list(group)]) - three(real)).sum()

    best = min(itertools.combinations(range(6), 3), key=cost)
    chosen = choose.moments(real, made, 3)
    assert tuple(sorted(chosen)) == best
    monkeypatch.setattr(choose, "_GROUP_VALUES", 50)  # a few at a time
    np.testing.assert_array_equal(chosen, choose.moments(real, made, 3))


def test_moments_leave_out_what_never_varies():
    rng = np.random.default_rng(2)
    real = np.concatenate([rng.normal(size=(9, 1)), np.ones((9, 1))], 1)
    made = rng.normal(size=(5, 2))
    chosen = choose.moments(real, made, 2)
    np.testing.assert_array_equal(
        chosen, choose.moments(real[:, :1], made[:, :1], 2)
    )


def test_an_unknown_choice_is_refused():
    with pytest.raises(InputError, match="random, centres, moments"):
        choose.check("best")
