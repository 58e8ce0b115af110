"""Latents moved towards features: against central differences in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import matching

RNG = np.random.default_rng(0)
NETWORKS = {"kernel": np.float32(RNG.normal(size=(3, 6, 4)))}
IMAGES = np.float32(RNG.normal(size=(4, 6)))  # of a linear generator
NOISE = np.float32(RNG.normal(size=(5, 4)))


def features_of(network, noise):
    return jnp.tanh(jnp.tanh(noise @ IMAGES) @ network["kernel"])


def in_numpy(noise, wanted, kernel):
    features = np.tanh(np.tanh(noise @ np.float64(IMAGES)) @ kernel)
    return np.square(features - wanted).mean() / np.square(wanted).mean()


# What the networks see in the images of other noise.
WANTED = np.stack(
    [
        np.asarray(features_of({"kernel": kernel}, NOISE[::-1] + 0.5))
        for kernel in NETWORKS["kernel"]
    ]
)


@pytest.fixture(scope="module")
def match():
    return jax.jit(
        functools.partial(matching.match, features_of=features_of),
        static_argnames=("steps", "rate"),
    )


def test_the_first_step_is_adams_down_the_distance(match):
    """Adam's first step has the rate's size, against the gradient's sign."""
    moved, apart = match(
        jnp.asarray(NOISE), NETWORKS, jnp.asarray(WANTED), steps=1, rate=0.01
    )
    distance = functools.partial(
        in_numpy,
        wanted=np.float64(WANTED[0]),
        kernel=np.float64(NETWORKS["kernel"][0]),
    )
    np.testing.assert_allclose(apart[0], distance(NOISE), rtol=1e-4)
    slope = np.zeros(NOISE.shape)
    for at in np.ndindex(NOISE.shape):
        step = np.zeros(NOISE.shape)
        step[at] = 1e-5
        up, down = distance(NOISE + step), distance(NOISE - step)
        slope[at] = (up - down) / 2e-5
    clear = np.abs(slope) > 1e-4
    assert clear.mean() > 0.9
    np.testing.assert_allclose(
        (moved - NOISE)[clear], -0.01 * np.sign(slope)[clear], rtol=0.01
    )


def test_noise_comes_nearer_for_every_network_and_the_same_each_time(match):
    def run():
        return match(
            jnp.asarray(NOISE),
            NETWORKS,
            jnp.asarray(WANTED),
            steps=60,
            rate=0.1,
        )[0]

    def all_networks(noise):
        return np.array(
            [
                in_numpy(noise, np.float64(wanted), np.float64(kernel))
                for wanted, kernel in zip(WANTED, NETWORKS["kernel"])
            ]
        )

    moved = run()
    assert (all_networks(moved) < 0.3 * all_networks(NOISE)).all()
    np.testing.assert_array_equal(moved, run())
