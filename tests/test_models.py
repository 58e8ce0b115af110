"""The networks: sizes, names, layers, refusals.

Origin of ``data/parameter_counts.json``: counted in the literature's PyTorch
networks, handed to this project as ``oracles/parameter_counts.json``, copied
unchanged; only the networks that ``models.names()`` knows are compared. What
the ConvNet computes is compared with PyTorch's in ``test_unroll.py``, what the
ResNet computes with its definition here.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ddjax import models
from ddjax.models import biggan
from ddjax.models.layers import Conv, Dense, InstanceNorm, average_pool
from ddjax.ops import conv2d
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


@pytest.mark.parametrize("size", [8, 32, 64])
def test_resnet_size(size):
    """Counted at 32 px; the same at any other."""
    network = models.build("resnet18", num_classes=10)
    assert count(network, (size, size, 3)) == COUNTS["resnet18_32x32x3_10"]


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


# --- ResNet-18 ---------------------------------------------------------------


def random_params(module, image_shape):
    """Double precision; norms and biases that are not 1 and 0."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(False):
        params = jax.eval_shape(
            lambda: models.init_params(module, jax.random.key(0), image_shape)
        )
    return jax.tree.map(
        lambda leaf: (
            rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        ),
        params,
    )


def resnet_by_hand(params, images, strides):
    """The definition: (logits, features after each stage)."""

    def conv(x, layer, stride, pad):
        return lax.conv_general_dilated(
            x,
            layer["kernel"],
            (stride, stride),
            [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def norm(x, layer):
        mean = x.mean((1, 2), keepdims=True)
        std = jnp.sqrt(((x - mean) ** 2).mean((1, 2), keepdims=True) + 1e-5)
        return (x - mean) / std * layer["scale"] + layer["bias"]

    def relu(x):
        return jnp.where(x > 0, x, 0)

    x = relu(norm(conv(images, params["stem_conv"], 1, 1), params["stem_norm"]))
    after = []
    for stage in range(4):
        for block in range(2):
            layers = params[f"stage{stage}_block{block}"]
            stride = 1 if block else strides[stage]
            y = relu(norm(conv(x, layers["conv0"], stride, 1), layers["norm0"]))
            y = norm(conv(y, layers["conv1"], 1, 1), layers["norm1"])
            if stage and not block:
                x = conv(x, layers["shortcut_conv"], stride, 0)
                x = norm(x, layers["shortcut_norm"])
            x = relu(y + x)
        after.append(x)
    head = params["head"]
    return x.mean((1, 2)) @ head["kernel"] + head["bias"], after


@pytest.mark.parametrize(
    "image, sides, strides",
    [
        ((8, 8), (8, 4, 2, 2), (1, 2, 2, 1)),
        ((9, 16), (9, 5, 3, 2), (1, 2, 2, 2)),
        ((2, 3), (2, 2, 2, 2), (1, 1, 1, 1)),
    ],
)
def test_resnet(image, sides, strides, x64):
    network = models.build("resnet18", num_classes=3, width=4)
    params = random_params(network, (*image, 2))
    images = np.random.default_rng(1).normal(size=(3, *image, 2))
    logits, out = jax.jit(network.apply)({"params": params}, images)
    expected, after = jax.jit(resnet_by_hand, static_argnums=2)(
        params, images, strides
    )
    np.testing.assert_allclose(logits, expected, rtol=1e-9)
    assert list(out) == ["stage0", "stage1", "stage2", "stage3"]
    for stage, features in enumerate(after):
        found = out[f"stage{stage}"]
        assert found.shape[1] == sides[stage]
        assert found.shape[3] == 4 * 2**stage
        np.testing.assert_allclose(found, features, rtol=1e-9, atol=1e-9)
    # Images are told apart, by a good deal more than by rounding.
    assert np.ptp(logits, axis=0).min() > 0.01


def test_resnet_gradient(x64):
    """Along the gradient the loss rises by its length; every leaf has one."""
    network = models.build("resnet18", num_classes=3, width=4)
    params = random_params(network, (8, 8, 1))
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 1)))

    @jax.jit
    def loss(params):
        logits, _ = network.apply({"params": params}, images)
        return jnp.sum(jnp.sin(logits))

    # NumPy from here on: sixty shapes would be compiled for one by one.
    grads = jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(params))
    leaves = jax.tree.leaves(grads)
    assert all((leaf != 0).any() for leaf in leaves)
    length = np.sqrt(sum(np.sum(leaf**2) for leaf in leaves))
    step = 1e-7 / length
    up, down = (
        loss(jax.tree.map(lambda p, g: p + sign * step * g, params, grads))
        for sign in (1, -1)
    )
    np.testing.assert_allclose((up - down) / 2e-7, length, rtol=1e-5)


def test_resnet_names():
    network = models.build("resnet18", num_classes=3, width=4)
    found = shapes(network, (8, 8, 1))
    assert found["stem_conv"] == {"kernel": (3, 3, 1, 4)}
    assert found["head"] == {"kernel": (32, 3), "bias": (3,)}
    assert set(found) == {
        "stem_conv",
        "stem_norm",
        "head",
        *(f"stage{s}_block{b}" for s in range(4) for b in range(2)),
    }
    norm = {"scale": (8,), "bias": (8,)}
    assert found["stage1_block0"] == {
        "conv0": {"kernel": (3, 3, 4, 8)},
        "norm0": norm,
        "conv1": {"kernel": (3, 3, 8, 8)},
        "norm1": norm,
        "shortcut_conv": {"kernel": (1, 1, 4, 8)},
        "shortcut_norm": norm,
    }
    assert set(found["stage0_block0"]) == {"conv0", "norm0", "conv1", "norm1"}
    assert set(found["stage1_block1"]) == {"conv0", "norm0", "conv1", "norm1"}


def test_resnet_of_a_single_pixel():
    network = models.build("resnet18", num_classes=3, width=4)
    with pytest.raises(InputError, match="1 x 8"):
        shapes(network, (1, 8, 1))


def test_stride_as_torch_pads():
    """A row and a column of zeros before the image; SAME has them after."""
    images = jnp.arange(1.0, 17).reshape(1, 4, 4, 1)
    # The top left tap alone: each output is the pixel up and left of it.
    kernel = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1)

    def strided(padding):
        conv = Conv(1, stride=2, padding=padding, use_bias=False)
        return conv.apply({"params": {"kernel": kernel}}, images)[0, ..., 0]

    np.testing.assert_array_equal(strided(((1, 1), (1, 1))), [[0, 0], [0, 6]])
    np.testing.assert_array_equal(strided("SAME"), [[1, 3], [9, 11]])


def test_no_bias():
    key, images = jax.random.key(0), jnp.ones((1, 4, 4, 2))
    biased = Conv(5).init(key, images)["params"]
    plain = Conv(5, use_bias=False).init(key, images)["params"]
    assert set(biased) == {"kernel", "bias"} and set(plain) == {"kernel"}
    np.testing.assert_array_equal(plain["kernel"], biased["kernel"])
    np.testing.assert_allclose(
        Conv(5).apply({"params": biased}, images),
        Conv(5, use_bias=False).apply({"params": plain}, images)
        + biased["bias"],
        rtol=1e-6,
    )


# --- Layers ------------------------------------------------------------------


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


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (8, 10)])
def test_convolutions_of_doubled_and_to_pooled_images(size, x64):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 5, 4))
    small = rng.normal(size=(2, *size, 5))
    large = rng.normal(size=(2, 2 * size[0], 2 * size[1], 5))
    for ours, plain, images in (
        (
            biggan._conv_of_doubled,
            lambda x, w: conv2d(biggan._doubled(x), w),
            small,
        ),
        (
            biggan._pooled_conv,
            lambda x, w: average_pool(conv2d(x, w)),
            large,
        ),
    ):
        found, expected = (
            jax.vjp(function, images, kernel) for function in (ours, plain)
        )
        np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
        cotangent = rng.normal(size=found[0].shape)
        for a, b in zip(found[1](cotangent), expected[1](cotangent)):
            np.testing.assert_allclose(a, b, atol=1e-5)


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
        ("nonet", {}, "convnet, mlp, resnet18"),
        ("resnet18", {"depth": 3}, "width"),
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
