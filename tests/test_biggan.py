"""The generator and critic: sizes, forms, and what they compute.

The parameter counts are those of the authors' PyTorch release of BigGAN, as
its training scripts print them (32 px: 4.3 M; ImageNet at 128 px: 70,433,988
and 87,982,370).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax.models import biggan
from ddjax.types import InputError

IMAGENET = dict(num_classes=1000, size=128, width=96, attention=64)
SHARED = dict(embedding=6, attention=8)


def count(module, channels=3):
    params, _ = jax.eval_shape(
        lambda: biggan.initialise(module, jax.random.key(0), channels)
    )
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def test_parameter_counts():
    assert count(biggan.Generator(num_classes=10)) == 4_304_387
    large = biggan.Generator(noise=120, embedding=128, **IMAGENET)
    assert count(large) == 70_433_988
    assert count(biggan.Critic(**IMAGENET)) == 87_982_370


@pytest.mark.parametrize("size", [*biggan.SIZES, 5, 28, 33, 100])
def test_every_size_makes_images_of_that_size(size):
    made = biggan.made_size(size)
    assert made in biggan.SIZES and made // 2 < max(size, 5) <= made
    blocks = int(np.log2(made)) - 2
    generator = biggan.Generator(
        num_classes=3,
        size=size,
        width=8,
        noise=4 * (blocks + 1),
        embedding=5,
        attention=made // 2 if made > 8 else 0,
    )
    critic = biggan.Critic(
        num_classes=3,
        size=size,
        width=8,
        attention=8 if made > 8 else 0,  # a side that several blocks have
    )

    def both(key):
        params, spectral = biggan.initialise(generator, key, 3)
        images = generator.apply(
            {"params": params, "spectral": spectral},
            jnp.ones((2, generator.noise)),
            jnp.array([0, 2]),
        )
        params, spectral = biggan.initialise(critic, key, 3)
        return images, critic.apply(
            {"params": params, "spectral": spectral},
            images,
            jnp.array([0, 2]),
        )

    images, scores = jax.eval_shape(both, jax.random.key(0))
    assert images.shape == (2, size, size, 3)
    assert scores.shape == (2,)


@pytest.mark.parametrize("size, begin", [(5, 1), (6, 1)])
def test_other_sides_are_cut_out_of_the_next(size, begin):
    """The same parameters as of the next size, and its images' middle."""
    module, params, noise, labels = small_folded()
    images = module.apply({"params": params}, noise, labels)
    cut = module.clone(size=size).apply({"params": params}, noise, labels)
    some = slice(begin, begin + size)
    np.testing.assert_allclose(cut, images[:, some, some], atol=1e-6)
    framed = biggan._framed(cut, 8)
    assert framed.shape == images.shape
    np.testing.assert_array_equal(biggan._middle(framed, size), cut)
    # The frame is all there is to a critic of another side.
    critic = biggan.Critic(num_classes=3, size=8, width=2)
    params, spectral = jax.jit(
        lambda key: biggan.initialise(critic, key, 1)
    )(jax.random.key(0))  # fmt: skip
    end = 8 - size - begin
    around = ((0, 0), (begin, end), (begin, end), (0, 0))
    variables = {"params": params, "spectral": spectral}
    np.testing.assert_allclose(
        critic.clone(size=size).apply(variables, cut, labels),
        critic.apply(variables, jnp.pad(cut, around), labels),
        rtol=1e-5,
    )


@functools.cache
def small(seed=0, **fields):
    """A generator with parameters that are nothing special."""
    module = biggan.Generator(
        num_classes=3, size=8, channels=1, width=2, noise=4, **fields
    )
    params, spectral = jax.jit(
        lambda key: biggan.initialise(module, key, 1)
    )(jax.random.key(seed))  # fmt: skip
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape).astype("f"),
        params,
    )
    noise = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    return module, params, spectral, noise, jnp.array([0, 1, 2, 2, 1, 0])


@functools.cache
def small_folded():
    """(module, params, noise, labels): folded on the batch that goes along."""
    module, params, spectral, noise, labels = small()
    modules = []  # no array: it does not come out of jit

    @jax.jit
    def fold(noise, labels):
        folded, params_after = biggan.fold(
            module, params, spectral, noise, labels
        )
        modules.append(folded)
        return params_after

    gen_params = fold(noise[None], labels[None])
    return modules[0], gen_params, noise, labels


@pytest.mark.parametrize("fields", [{}, dict(embedding=6)])
def test_folded_generator_repeats_the_batch_it_was_measured_on(fields):
    module, params, spectral, noise, labels = small(**fields)
    # The estimates of training come near the exact norms only step by step.
    step = jax.jit(
        lambda spectral: module.apply(
            {"params": params, "spectral": spectral},
            noise,
            labels,
            mutable=["spectral"],
        )
    )
    for _ in range(200):
        images, after = step(spectral)
        spectral = after["spectral"]
    gen_params = jax.jit(
        lambda noise, labels: biggan.fold(
            module, params, spectral, noise, labels
        )[1]
    )(noise[None], labels[None])
    folded = module.clone(form=biggan.FOLDED)
    again = folded.apply({"params": gen_params}, noise, labels)
    # Float32 sums in another order, through two norms and a sigmoid.
    np.testing.assert_allclose(again, images, atol=2e-5)


def test_folded_images_do_not_depend_on_each_other():
    module, params, noise, labels = small_folded()
    apply = jax.jit(biggan.GenApply(module))
    together = apply(params, noise, labels)
    alone = apply(params, noise[2:3], labels[2:3])
    np.testing.assert_allclose(together[2:3], alone, atol=1e-6)
    assert biggan.GenApply(module).noise_size == 4
    assert float(together.min()) >= 0 and float(together.max()) <= 1
    # Noise and class both matter.
    other = apply(params, noise, (labels + 1) % 3)
    assert np.abs(other - together).max() > 1e-3
    assert np.abs(together[0] - together[5]).max() > 1e-3


def test_spectral_norm_is_one_after_folding():
    _, folded, _, _ = small_folded()
    kernel = np.asarray(folded["block0"]["conv0"]["kernel"], np.float64)
    norm = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]))[1][0]
    assert norm == pytest.approx(1, abs=1e-5)


def test_folded_moments_are_those_of_all_batches():
    """Of batches that differ: the spread between them is part of the whole."""
    module, params, spectral, _, _ = small()
    rng = np.random.default_rng(7)
    offsets = np.array([-2.0, 0.0, 3.0])[:, None, None]
    noise = np.float32(rng.normal(size=(3, 4, 4)) + offsets)
    labels = jnp.asarray(rng.permutation(12).reshape(3, 4) % 3)
    folded = jax.jit(
        lambda noise: biggan.fold(module, params, spectral, noise, labels)[1]
    )(noise)
    # The first norm sees the dense layer's features, whatever their class.
    dense = jax.tree.map(np.float64, params["dense"])
    kernel = dense["kernel"] / np.linalg.norm(dense["kernel"], 2)
    features = noise.reshape(12, 4) @ kernel + dense["bias"]
    features = features.reshape(-1, 8)  # 16 positions of 8 channels
    norm = params["block0"]["norm0"]
    scale = norm["scale"] / np.sqrt(features.var(0) + 1e-5)
    found = folded["block0"]["norm0"]
    np.testing.assert_allclose(found["scale"], scale, rtol=1e-4)
    np.testing.assert_allclose(
        found["bias"], norm["bias"] - features.mean(0) * scale, atol=1e-4
    )


def test_norm_uses_the_batch_in_training_and_reports_its_moments():
    norm = biggan._Norm(num_classes=2)
    rng = np.random.default_rng(0)
    features = rng.normal(3, 2, size=(4, 2, 2, 3)).astype("f")
    labels = np.array([0, 1, 1, 0])
    scale, bias = rng.normal(size=(2, 2, 3)).astype("f")
    out, sown = norm.apply(
        {"params": {"scale": scale, "bias": bias}},
        features,
        labels,
        mutable=["moments"],
    )
    wide = features.astype(np.float64)
    mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    expected = (wide - mean) / np.sqrt(var + 1e-5)
    expected = expected * scale[labels][:, None, None]
    expected = expected + bias[labels][:, None, None]
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(sown["moments"]["mean"][0], mean, rtol=1e-5)
    np.testing.assert_allclose(sown["moments"]["variance"][0], var, rtol=1e-5)


def test_attention_by_hand():
    module = biggan._Attention(biggan.FOLDED)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 2, 2, 8))
    shapes = {"theta": (8, 1), "phi": (8, 1), "values": (8, 4), "out": (4, 8)}
    kernels = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    params = {
        name: {"kernel": jnp.asarray(kernel[None, None], jnp.float32)}
        for name, kernel in kernels.items()
    }
    out = module.apply(
        {"params": params | {"gamma": jnp.asarray(0.5)}},
        jnp.asarray(x, jnp.float32),
    )
    flat = x.reshape(4, 8)
    # Keys and values are pooled 2x2: one of each is left.
    value = (flat @ kernels["values"]).max(0)
    expected = x + 0.5 * (value @ kernels["out"])
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(size=129), "1 to 128 pixels a side, not 129"),
        (dict(size=0), "1 to 128 pixels a side, not 0"),
        (dict(size=8, embedding=4, noise=5), "multiple of 2"),
    ],
)
def test_refusals(fields, words):
    with pytest.raises(InputError, match=words):
        count(biggan.Generator(num_classes=3, **fields))
