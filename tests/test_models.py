"""The networks: sizes, names, layers, refusals.

Origin of ``data/parameter_counts.json``: counted in the literature's PyTorch
networks, handed to this project as ``oracles/parameter_counts.json``, copied
unchanged; only the networks that ``models.names()`` knows are compared. What
the ConvNet computes is compared with PyTorch's in ``test_unroll.py``.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import models
from ddjax.models.layers import Conv, Dense, InstanceNorm, average_pool
from ddjax.types import InputError

COUNTS = json.loads(
    (
        pathlib.Path(__file__).parent / "data" / "parameter_counts.json"
    ).read_text()
)


def shapes(module, image_shape):
    """{layer: {name: shape}}, without computing anything."""
    params = jax.eval_shape(
        lambda: models.init_params(module, jax.random.key(0), image_shape)
    )
    return jax.tree.map(lambda leaf: leaf.shape, params)


def count(module, image_shape):
    leaves = jax.tree.leaves(
        shapes(module, image_shape), is_leaf=lambda s: isinstance(s, tuple)
    )
    return sum(int(np.prod(shape)) for shape in leaves)


@pytest.mark.parametrize(
    "name, depth, size, classes",
    [
        ("convnet3_32x32x3_10", 3, 32, 10),
        ("convnet3_32x32x3_100", 3, 32, 100),
        ("convnet4_64x64x3_200", 4, 64, 200),
        ("convnet5_128x128x3_10", 5, 128, 10),
    ],
)
def test_convnet_size(name, depth, size, classes):
    network = models.build("convnet", num_classes=classes, depth=depth)
    assert count(network, (size, size, 3)) == COUNTS[name]


def test_mlp_size():
    network = models.build("mlp", num_classes=10)
    assert count(network, (32, 32, 3)) == COUNTS["mlp_32x32x3_10"]


def test_convnet_names():
    network = models.build("convnet", num_classes=3, width=4, depth=2)
    assert shapes(network, (9, 8, 1)) == {
        "conv0": {"kernel": (3, 3, 1, 4), "bias": (4,)},
        "norm0": {"scale": (4,), "bias": (4,)},
        "conv1": {"kernel": (3, 3, 4, 4), "bias": (4,)},
        "norm1": {"scale": (4,), "bias": (4,)},
        "head": {"kernel": (2 * 2 * 4, 3), "bias": (3,)},
    }
    logits, out = jax.eval_shape(
        lambda images: network.init_with_output(jax.random.key(0), images)[0],
        jnp.zeros((5, 9, 8, 1)),
    )
    assert logits.shape == (5, 3)
    assert {name: leaf.shape for name, leaf in out.items()} == {
        "block0": (5, 4, 4, 4),
        "block1": (5, 2, 2, 4),
    }


def test_mlp():
    network = models.build("mlp", num_classes=3, width=4)
    params = models.init_params(network, jax.random.key(0), (2, 3, 1))
    assert set(params) == {"dense0", "dense1", "head"}
    images = np.random.default_rng(0).normal(size=(5, 2, 3, 1))
    logits, out = network.apply({"params": params}, np.float32(images))

    def dense(x, name):
        return x @ np.float64(params[name]["kernel"]) + params[name]["bias"]

    hidden0 = np.maximum(dense(images.reshape(5, -1), "dense0"), 0)
    hidden1 = np.maximum(dense(hidden0, "dense1"), 0)
    np.testing.assert_allclose(
        logits, dense(hidden1, "head"), rtol=1e-4, atol=1e-5
    )
    assert set(out) == {"hidden0", "hidden1"}
    np.testing.assert_allclose(
        out["hidden0"], hidden0[:, None, None, :], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        out["hidden1"], hidden1[:, None, None, :], rtol=1e-4, atol=1e-5
    )


def test_start_is_torch_default():
    """Uniform within 1 / sqrt(fan in), kernels and biases; norms at 1, 0."""
    key = jax.random.key(0)
    conv = Conv(50).init(key, jnp.zeros((1, 4, 4, 3)))["params"]
    dense = Dense(50).init(key, jnp.zeros((1, 27)))["params"]
    bound = 1 / np.sqrt(27)
    for leaf in (*conv.values(), *dense.values()):
        assert 0.9 * bound < np.abs(leaf).max() <= bound
        assert np.min(leaf) < -0.8 * bound and np.max(leaf) > 0.8 * bound
    norm = InstanceNorm().init(key, jnp.zeros((1, 4, 4, 3)))["params"]
    assert (norm["scale"] == 1).all() and (norm["bias"] == 0).all()


def test_key_decides_the_start():
    network = models.build("mlp", num_classes=3, width=4)

    def kernel(seed):
        params = models.init_params(network, jax.random.key(seed), (2, 2, 1))
        return np.asarray(params["dense0"]["kernel"])

    np.testing.assert_array_equal(kernel(0), kernel(0))
    assert (kernel(0) != kernel(1)).any()


def test_instance_norm(x64):
    rng = np.random.default_rng(0)
    x, scale, bias = (rng.normal(size=s) for s in ((2, 4, 5, 3), 3, 3))
    params = {"params": {"scale": scale, "bias": bias}}
    found = InstanceNorm().apply(params, jnp.asarray(x) + 7)
    mean = x.mean((1, 2), keepdims=True)
    std = np.sqrt(x.var((1, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(
        found, (x - mean) / std * scale + bias, rtol=1e-10
    )


def test_average_pool():
    x = np.arange(2 * 5 * 7 * 2, dtype=np.float32).reshape(2, 5, 7, 2)
    found = average_pool(jnp.asarray(x))
    assert found.shape == (2, 2, 3, 2)
    for row in range(2):
        for column in range(3):
            block = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_allclose(
                found[:, row, column], block.mean((1, 2)), rtol=1e-6
            )


@pytest.mark.parametrize(
    "name, fields, said",
    [
        ("nonet", {}, "convnet, mlp"),
        ("convnet", {"wdith": 3}, "width"),
        ("mlp", {"depth": 3}, "width"),
        ("convnet", {"width": -1}, "width"),
        ("convnet", {"depth": 0}, "depth"),
    ],
)
def test_refusals(name, fields, said):
    with pytest.raises(InputError, match=said):
        models.build(name, num_classes=3, **fields)


def test_one_class_is_no_classification():
    with pytest.raises(InputError, match="classes"):
        models.build("mlp", num_classes=1)


def test_image_too_small():
    network = models.build("convnet", num_classes=3, width=2, depth=3)
    assert shapes(network, (8, 8, 1))["head"]["kernel"] == (2, 3)
    with pytest.raises(InputError, match="7 x 8"):
        shapes(network, (7, 8, 1))
