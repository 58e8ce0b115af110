"""The losses against a few lines of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from ddjax.losses import cross_entropy, iadd_loss


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
