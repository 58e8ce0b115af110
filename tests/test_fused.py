"""Norm, ReLU and pooling in one, beside the three in turn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ddjax.fused import norm_relu_pool
from ddjax.models.layers import average_pool, instance_norm


def in_turn(features, scale, bias):
    return average_pool(nn.relu(instance_norm(features, scale, bias)))


def problem(dtype=np.float64, shape=(3, 4, 6, 5)):
    rng = np.random.default_rng(0)
    arrays = (
        rng.normal(1, 2, shape),
        rng.normal(size=shape[-1]),
        rng.normal(size=shape[-1]),
    )
    return tuple(jnp.asarray(array, dtype) for array in arrays)


def derivatives(function, arguments, order):
    """A scalar of the function, and of its gradient ``order`` times over."""

    def scalar(*a):
        return jnp.sum(jnp.sin(3 * function(*a)))

    for level in range(order):
        previous = scalar
        weights = [
            np.random.default_rng(level).normal(size=a.shape) for a in arguments
        ]

        def scalar(*a, previous=previous, weights=weights):
            gradient = jax.grad(previous, (0, 1, 2))(*a)
            return sum((w * g).sum() for w, g in zip(weights, gradient))

    return jax.jit(jax.grad(scalar, (0, 1, 2)))(*arguments)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_derivatives_of_three_orders(order):
    with jax.enable_x64(True):
        arguments = problem()
        np.testing.assert_allclose(
            norm_relu_pool(*arguments), in_turn(*arguments), atol=1e-14
        )
        found = derivatives(norm_relu_pool, arguments, order)
        expected = derivatives(in_turn, arguments, order)
    for one, other in zip(found, expected):
        # Rounding of float64, grown by the second and third derivative.
        tolerance = 1e-12 * max(1, np.abs(other).max())
        np.testing.assert_allclose(one, other, atol=tolerance)


def test_second_derivative_beside_finite_differences():
    with jax.enable_x64(True):
        arguments = problem()
        along = problem(shape=(3, 4, 6, 5))[0] * 0.1

        def square(z):
            return jnp.sum(jnp.square(norm_relu_pool(z, *arguments[1:])))

        gradient = jax.grad(square)
        weights = jnp.cos(arguments[0])
        step = 1e-6
        expected = sum(
            sign
            * (weights * gradient(arguments[0] + sign * step * along)).sum()
            for sign in (1, -1)
        ) / (2 * step)
        found = jax.grad(lambda z: (weights * gradient(z)).sum())(arguments[0])
        # The difference quotient is good to step squared and 1e-16 / step.
        np.testing.assert_allclose((found * along).sum(), expected, rtol=1e-6)


def test_scale_of_zero_has_a_second_derivative():
    """No division by the scale: where it is 0, its cotangent still counts."""
    with jax.enable_x64(True):
        features, scale, bias = problem()
        arguments = features, jnp.zeros_like(scale), jnp.abs(bias)
        found = derivatives(norm_relu_pool, arguments, 1)
        expected = derivatives(in_turn, arguments, 1)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_float32_under_vmap():
    arguments = problem(np.float32, (2, 8, 8, 16))
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), arguments)

    def gradient(f):
        square = jax.grad(lambda *a: jnp.sum(jnp.square(f(*a))), (0, 1, 2))
        return jax.vmap(square)(*stacked)

    for one, other in zip(gradient(norm_relu_pool), gradient(in_turn)):
        # Sums of 64 numbers in another order: some units of 6e-8 of the
        # largest.
        tolerance = 1e-5 * np.abs(other).max()
        np.testing.assert_allclose(one, other, atol=tolerance)


def test_odd_sides_are_refused():
    with pytest.raises(ValueError, match="even height and width, not 5 x 4"):
        norm_relu_pool(jnp.ones((1, 5, 4, 2)), jnp.ones(2), jnp.ones(2))
