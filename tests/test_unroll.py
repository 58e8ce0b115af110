"""The unrolled student: an oracle, differences, and closed forms.

Origin of ``data/unroll.npz``: five steps of a small ConvNet and the gradients
through them, in float64, by an independent implementation (PyTorch), handed to
this project as ``oracles/unroll.npz``, copied unchanged. No code of this
library made it.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import losses, models
from ddjax.unroll import minibatch_indices, sgd_unroll

ORACLE = np.load(pathlib.Path(__file__).parent / "data" / "unroll.npz")
STEPS = 5


def tree(prefix, dtype=np.float64):
    found = {}
    for name in ORACLE.files:
        if name.startswith(prefix + "/"):
            _, layer, leaf = name.split("/")
            found.setdefault(layer, {})[leaf] = ORACLE[name].astype(dtype)
    return found


def loss_of(variables, params, target, *, remat):
    """The oracle's problem; ``variables`` are (images, rate, importance)."""
    images, rate, importance = variables
    network = models.build("convnet", num_classes=4, width=6, depth=2)
    labels = jax.nn.one_hot(ORACLE["labels"], 4, dtype=images.dtype)

    def loss_fn(params, chosen, key):
        logits, _ = network.apply({"params": params}, images[chosen])
        return losses.cross_entropy(logits, labels[chosen])

    student, inner = sgd_unroll(
        loss_fn,
        params,
        jnp.asarray(ORACLE["batch_indices"]),
        jax.random.split(jax.random.key(0), STEPS),
        rate,
        remat=remat,
    )
    loss = losses.iadd_loss(student, params, target, importance)
    plain = losses.iadd_loss(student, params, target)
    return loss, (student, inner, plain)


def inputs(dtype):
    variables = (
        ORACLE["images"].astype(dtype),
        ORACLE["learning_rate"].astype(dtype),
        tree("importance", dtype),
    )
    return variables, tree("start", dtype), tree("target", dtype)


def solve(dtype, remat):
    function = jax.value_and_grad(loss_of, has_aux=True)
    (loss, (student, inner, plain)), grads = jax.jit(
        function, static_argnames="remat"
    )(*inputs(dtype), remat=remat)
    return {
        "iadd_loss": loss,
        "mtt_loss": plain,
        "inner_losses": inner,
        "student": student,
        "grad_images": grads[0],
        "grad_learning_rate": grads[1],
        "grad_importance": grads[2],
    }


@pytest.fixture(scope="module")
def double():
    with jax.enable_x64(True):
        return solve(np.float64, True)


RESULTS = (
    "iadd_loss",
    "mtt_loss",
    "inner_losses",
    "student",
    "grad_images",
    "grad_learning_rate",
    "grad_importance",
)


def assert_near(found, expected, rtol):
    """Largest error of any leaf against that leaf's largest entry."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())


def oracle(name):
    return ORACLE[name] if name in ORACLE.files else tree(name)


@pytest.mark.parametrize("name", RESULTS)
def test_oracle(double, name):
    # A bias before a norm does nothing: its entries, of the order 1e-17, are
    # rounding on both sides, and count by the whole result's scale.
    found, expected = double[name], oracle(name)
    if isinstance(expected, dict):
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        found, expected = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)])
            for t in (found, expected)
        )
    assert found.dtype == np.float64
    assert_near(found, expected, 1e-9)


def test_float32():
    """Rounding of 6e-8 an operation, through five steps and back.

    The forward results lose about two digits of the seven, the gradients,
    which subtract what nearly cancels in every norm, about three.
    """
    found = solve(np.float32, True)
    for name in RESULTS:
        assert all(
            leaf.dtype == np.float32 for leaf in jax.tree.leaves(found[name])
        )
        tolerance = 1e-4 if name.startswith("grad") else 1e-5
        a, b = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)])
            for t in (found[name], oracle(name))
        )
        assert_near(a, b, tolerance)


def test_remat_changes_nothing(double, x64):
    plain = solve(np.float64, False)
    for name in RESULTS:
        a, b = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)])
            for t in (double[name], plain[name])
        )
        assert_near(a, b, 1e-12)


def test_central_differences(double, x64):
    variables, start, target = inputs(np.float64)
    value = jax.jit(lambda v: loss_of(v, start, target, remat=False)[0])
    grads = (
        double["grad_images"],
        double["grad_learning_rate"],
        double["grad_importance"],
    )
    rng = np.random.default_rng(0)
    h = 1e-6
    for _ in range(3):
        along = jax.tree.map(lambda v: rng.normal(size=v.shape), variables)
        ahead, back = (
            value(jax.tree.map(lambda v, d: v + sign * h * d, variables, along))
            for sign in (1, -1)
        )
        expected = sum(
            np.sum(g * d)
            for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(along))
        )
        np.testing.assert_allclose(
            (ahead - back) / (2 * h), expected, rtol=1e-5
        )


@pytest.mark.parametrize("remat", [True, False])
def test_closed_form(remat, x64):
    """Descent on (p - b)^2 / 2 goes a share alpha of the way to each b."""
    targets = np.array([1.0, -2.0, 0.5])
    keys = jax.random.split(jax.random.key(0), 3)

    def end(p, targets, rate):
        return sgd_unroll(
            lambda p, b, key: (p - b) ** 2 / 2,
            p,
            targets,
            keys,
            rate,
            remat=remat,
        )

    start, rate = 3.0, 0.2
    path = [start]
    for b in targets:
        path.append(path[-1] - rate * (path[-1] - b))
    p, inner = end(jnp.asarray(start), targets, rate)
    np.testing.assert_allclose(p, path[-1], rtol=1e-14)
    expected = [(p - b) ** 2 / 2 for p, b in zip(path, targets)]
    np.testing.assert_allclose(inner, expected, rtol=1e-14)
    grads = jax.grad(lambda *a: end(*a)[0], (0, 1, 2))(start, targets, rate)
    left = (1 - rate) ** np.arange(3)[::-1]  # of each step, at the end
    moves = sum(-(p - b) * share for p, b, share in zip(path, targets, left))
    np.testing.assert_allclose(grads[0], (1 - rate) ** 3, rtol=1e-14)
    np.testing.assert_allclose(grads[1], rate * left, rtol=1e-14)
    np.testing.assert_allclose(grads[2], moves, rtol=1e-14)


def test_each_step_has_its_key():
    keys = jax.random.split(jax.random.key(1), 4)
    p, _ = sgd_unroll(
        lambda p, _, key: p * jax.random.uniform(key),
        jnp.asarray(0.0),
        jnp.zeros(4),
        keys,
        0.5,
    )
    draws = [float(jax.random.uniform(key)) for key in keys]
    np.testing.assert_allclose(p, -0.5 * sum(draws), rtol=1e-6)


def test_batches_and_keys_must_agree():
    with pytest.raises(AssertionError):
        sgd_unroll(
            lambda p, b, key: p,
            jnp.asarray(0.0),
            jnp.zeros(3),
            jax.random.split(jax.random.key(0), 4),
            0.1,
        )


@pytest.mark.parametrize(
    "examples, size, steps", [(7, 3, 10), (4, 4, 3), (6, 2, 3), (1, 1, 2)]
)
def test_every_example_once_a_pass(examples, size, steps):
    indices = minibatch_indices(jax.random.key(0), examples, size, steps)
    assert indices.shape == (steps, size)
    flat = np.ravel(indices)
    for begin in range(0, len(flat) - examples + 1, examples):
        found = sorted(flat[begin : begin + examples])
        assert found == list(range(examples))
    counts = np.bincount(flat, minlength=examples)
    assert counts.max() - counts.min() <= 1


def test_passes_and_keys_differ():
    def order(seed):
        return np.asarray(minibatch_indices(jax.random.key(seed), 20, 20, 2))

    np.testing.assert_array_equal(order(0), order(0))
    assert (order(0)[0] != order(0)[1]).any()
    assert (order(0) != order(1)).any()


@pytest.mark.parametrize(
    "numbers", [(0, 1, 1), (4, 0, 1), (4, 5, 1), (4, 2, 0), (4, -1, 2)]
)
def test_impossible_batches(numbers):
    with pytest.raises(ValueError, match="must be"):
        minibatch_indices(jax.random.key(0), *numbers)
