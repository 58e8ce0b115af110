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
import scipy.special
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


@pytest.mark.parametrize("name", ["lenet", "alexnet", "vgg11"])
def test_sizes_of_the_literature(name):
    network = models.build(name, num_classes=10)
    assert count(network, (32, 32, 3)) == COUNTS[f"{name}_32x32x3_10"]


def test_batch_norm_has_as_many():
    vgg = models.build("vgg11", num_classes=10, norm="batch")
    assert count(vgg, (32, 32, 3)) == COUNTS["vgg11bn_32x32x3_10"]
    resnet = models.build("resnet18_bn", num_classes=10)
    assert count(resnet, (32, 32, 3)) == COUNTS["resnet18_32x32x3_10"]


def test_vit_size():
    """Summed from the paper's table: 12 layers of 192, 3 heads, MLP 768."""
    block = 2 * 2 * 192 + 192 * 3 * 192 + 3 * 192 + 192 * 192 + 192
    block += 192 * 768 + 768 + 768 * 192 + 192
    patches, tokens = 4 * 4 * 3 * 192 + 192, (1 + 65) * 192
    total = patches + tokens + 12 * block + 2 * 192 + 192 * 10 + 10
    network = models.build("vit", num_classes=10)
    assert count(network, (32, 32, 3)) == total


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


# --- The literature's other networks -----------------------------------------


def conv_by_hand(x, layer, pad, stride=1):
    x = lax.conv_general_dilated(
        x,
        layer["kernel"],
        (stride, stride),
        [(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return x + layer["bias"]


def pool_by_hand(x):
    """XLA's own pooling."""
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )


def dense_by_hand(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def lenet_by_hand(p, x, grey):
    x = pool_by_hand(jnp.maximum(conv_by_hand(x, p["conv0"], 2 * grey), 0))
    x = pool_by_hand(jnp.maximum(conv_by_hand(x, p["conv1"], 0), 0))
    for layer in ("dense0", "dense1"):
        x = jnp.maximum(dense_by_hand(x.reshape(len(x), -1), p[layer]), 0)
    return dense_by_hand(x, p["head"])


def alexnet_by_hand(p, x, grey):
    for layer, (pad, pools) in enumerate(
        ((2 + 2 * grey, True), (2, True), (1, False), (1, False), (1, True))
    ):
        x = jnp.maximum(conv_by_hand(x, p[f"conv{layer}"], pad), 0)
        x = pool_by_hand(x) if pools else x
    return dense_by_hand(x.reshape(len(x), -1), p["head"])


def vgg_by_hand(p, x, grey):
    for layer in range(8):
        x = conv_by_hand(x, p[f"conv{layer}"], 1 if layer else 1 + 2 * grey)
        x = x - x.mean((1, 2), keepdims=True)
        x = x / jnp.sqrt((x**2).mean((1, 2), keepdims=True) + 1e-5)
        norm = p[f"norm{layer}"]
        x = jnp.maximum(x * norm["scale"] + norm["bias"], 0)
        x = pool_by_hand(x) if layer in (0, 1, 3, 5, 7) else x
    return dense_by_hand(x.reshape(len(x), -1), p["head"])


@pytest.mark.parametrize(
    "name, fields, by_hand, shape",
    [
        ("lenet", {}, lenet_by_hand, (12, 13, 1)),
        ("lenet", {}, lenet_by_hand, (16, 17, 2)),
        ("alexnet", {"width": 2}, alexnet_by_hand, (4, 9, 1)),
        ("alexnet", {"width": 2}, alexnet_by_hand, (8, 9, 3)),
        ("vgg11", {"width": 2}, vgg_by_hand, (28, 29, 1)),
        ("vgg11", {"width": 2}, vgg_by_hand, (32, 33, 2)),
    ],
)
def test_definitions(name, fields, by_hand, shape, x64):
    """At the smallest sides they take; a pixel less is refused."""
    network = models.build(name, num_classes=3, **fields)
    params = random_params(network, shape)
    images = np.random.default_rng(1).normal(size=(2, *shape))
    logits, out = jax.jit(network.apply)({"params": params}, images)
    expected = jax.jit(by_hand, static_argnums=2)(
        params, images, shape[-1] == 1
    )
    np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-9)
    assert np.ptp(logits, axis=0).max() > 1e-3
    # The last by name is what the head sees.
    last = np.asarray(out[max(out)]).reshape(2, -1)
    np.testing.assert_allclose(dense_by_hand(last, params["head"]), logits)
    with pytest.raises(
        InputError, match=f"{shape[0]} pixels .* {shape[0] - 1} x"
    ):
        shapes(network, (shape[0] - 1, *shape[1:]))


def test_vit(x64):
    """Attention head by head and token by token, in NumPy."""
    network = models.build("vit", num_classes=3, width=128, blocks=1, patch=2)
    params = random_params(network, (4, 6, 1))
    images = np.random.default_rng(1).normal(size=(2, 4, 6, 1))
    logits, out = jax.jit(network.apply)({"params": params}, images)
    assert set(out) == {"block00", "token"}
    assert out["block00"].shape == (2, 2, 3, 128)

    def norm(x, layer):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(
            x.var(-1, keepdims=True) + 1e-5
        )
        return x * layer["scale"] + layer["bias"]

    def gelu(x):
        return x * scipy.special.ndtr(x)

    block = params["block00"]
    for image, found in zip(images, np.asarray(logits)):
        patches = [
            image[r : r + 2, c : c + 2].reshape(-1)
            for r in (0, 2)
            for c in (0, 2, 4)
        ]
        kernel = params["patches"]["kernel"].reshape(-1, 128)
        x = np.array([p @ kernel + params["patches"]["bias"] for p in patches])
        x = np.concatenate([params["token"][0], x]) + params["positions"][0]
        both = dense_by_hand(
            norm(x, block["norm0"]), block["queries_keys_values"]
        )
        queries, keys, values = np.split(both, 3, axis=-1)
        heads = []
        for head in (slice(64), slice(64, 128)):
            weights = scipy.special.softmax(
                queries[:, head] @ keys[:, head].T / 8, axis=-1
            )
            heads.append(weights @ values[:, head])
        x = x + dense_by_hand(np.concatenate(heads, -1), block["joined"])
        hidden = gelu(dense_by_hand(norm(x, block["norm1"]), block["dense0"]))
        x = x + dense_by_hand(hidden, block["dense1"])
        expected = dense_by_hand(norm(x[0], params["norm"]), params["head"])
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_vit_refusals():
    network = models.build("vit", num_classes=3)
    with pytest.raises(InputError, match=r"4 x 4 pixels, .* 10 x 8"):
        shapes(network, (10, 8, 1))
    network = models.build("vit", num_classes=3, width=200)
    with pytest.raises(InputError, match="multiple of 64"):
        shapes(network, (8, 8, 1))


@pytest.mark.parametrize(
    "norm, activation, pooling",
    [
        ("none", "sigmoid", "max"),
        ("layer", "leaky_relu", "none"),
        ("group", "relu", "average"),
        ("batch", "relu", "none"),
        ("instance", "relu", "max"),
    ],
)
def test_convnet_options(norm, activation, pooling, x64):
    kind = dict(norm=norm, activation=activation, pooling=pooling)
    network = models.build("convnet", num_classes=3, width=8, depth=1, **kind)
    params = random_params(network, (4, 5, 2))
    images = np.random.default_rng(1).normal(size=(3, 4, 5, 2))
    logits, _ = jax.jit(network.apply)({"params": params}, images)
    x = np.asarray(conv_by_hand(images, params["conv0"], 1))
    axes = {"batch": (0, 1, 2), "layer": (1, 2, 3), "instance": (1, 2)}
    if norm == "group":
        x = x.reshape(3, 4, 5, 4, 2)
    if norm != "none":
        over = axes.get(norm, (1, 2, 4))
        std = np.sqrt(x.var(over, keepdims=True) + 1e-5)
        x = ((x - x.mean(over, keepdims=True)) / std).reshape(3, 4, 5, 8)
        x = x * params["norm0"]["scale"] + params["norm0"]["bias"]
    x = {
        "relu": np.maximum(x, 0),
        "sigmoid": 1 / (1 + np.exp(-x)),
        "leaky_relu": np.where(x > 0, x, 0.01 * x),
    }[activation]
    if pooling != "none":
        x = x[:, :, :4].reshape(3, 2, 2, 2, 2, 8)
        x = x.max((2, 4)) if pooling == "max" else x.mean((2, 4))
    expected = dense_by_hand(x.reshape(3, -1), params["head"])
    np.testing.assert_allclose(logits, expected, rtol=1e-9)
    if norm == "layer":
        assert params["norm0"]["scale"].shape == (4, 5, 8)


def test_enlarged():
    """As the network has it of images that were enlarged before."""
    inner = models.build("mlp", num_classes=3, width=4)
    network = models.Enlarged(inner, 4)
    assert not models.has_batch_norm(network)
    params = models.init_params(network, jax.random.key(0), (2, 3, 1))
    ramp = np.float32([[0, 1, 2], [4, 5, 6]])[None, ..., None]
    found, _ = network.apply({"params": params}, ramp)
    # Linear between the centres of pixels, constant beyond them.
    down, along = np.float32([0, 1, 3, 4]), np.float32([0, 0.25, 0.75, 1.25])
    along = np.concatenate([along, 2 - along[1::-1]])
    larger = (down[:, None] + along)[None, ..., None]
    expected, _ = inner.apply({"params": params["network"]}, larger)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    batch = models.build("resnet18_bn", num_classes=3)
    assert models.has_batch_norm(models.Enlarged(batch, 8))


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
        ("nonet", {}, "convnet, lenet, mlp, resnet18, resnet18_bn"),
        ("resnet18", {"depth": 3}, "width"),
        ("convnet", {"wdith": 3}, "width"),
        ("mlp", {"depth": 3}, "width"),
        ("convnet", {"width": -1}, "width"),
        ("convnet", {"depth": 0}, "depth"),
        ("convnet", {"norm": "bach"}, "none, batch, layer, instance, group"),
        ("resnet18_bn", {"norm": "none"}, "choose from width"),
        ("lenet", {"width": 3}, "it has none"),
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
