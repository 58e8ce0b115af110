"""Augmentation: the maps against an oracle, the draws against their law.

Origin of ``data/dsa.npz``: float32 images and recorded draws, transformed by
an independent implementation (PyTorch, kornia) and handed to this project as
``oracles/dsa.npz``, copied unchanged. No code of this library made it.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from jaxtyping import TypeCheckError

from ddjax import augment as dsa
from ddjax.types import InputError

ORACLE = pathlib.Path(__file__).parent / "data" / "dsa.npz"
OPS = {
    "brightness": dsa.brightness,
    "saturation": dsa.saturation,
    "contrast": dsa.contrast,
    "crop": dsa.crop,
    "cutout": dsa.cutout,
    "flip": dsa.flip,
    "scale": dsa.scale,
    "rotate": dsa.rotate,
}
DRAWS = {"crop": 2, "cutout": 2, "scale": 2}  # 1 for the others

augment = jax.jit(dsa.augment, static_argnums=2)


def jit_op(name, **magnitudes):
    return jax.jit(functools.partial(OPS[name], **magnitudes))


def noise(seed, *shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def some_draws(name, b, dtype):
    rng = np.random.default_rng(7)
    if name in ("crop", "cutout"):
        return [jnp.asarray(rng.integers(-1, 3, b)) for _ in range(2)]
    count = DRAWS.get(name, 1)
    return [jnp.asarray(rng.uniform(size=b), dtype) for _ in range(count)]


# --- The maps ---------------------------------------------------------------


@pytest.mark.parametrize("name", OPS)
def test_matches_the_oracle(name):
    with np.load(ORACLE) as oracle:
        draws = [
            jnp.asarray(oracle[f"{name}/draw{i}"])
            for i in range(DRAWS.get(name, 1))
        ]
        images, expected = oracle["images"], oracle[f"{name}/output"]
    output = jit_op(name)(images, *draws)
    assert output.dtype == jnp.float32
    assert np.abs(expected - images).max() > 0.1  # the oracle does something
    # Positions in float32 are off by 1e-6 pixels, times slopes of up to 5.
    np.testing.assert_allclose(output, expected, atol=1e-5)


@pytest.mark.parametrize("name", OPS)
def test_reverse_derivatives_match_finite_differences(name):
    with jax.enable_x64(True):
        images = noise(0, 3, 6, 4, 3, dtype=np.float64)
        draws = some_draws(name, 3, np.float64)
        check_grads(
            jax.jit(lambda x: jnp.sum(jnp.sin(OPS[name](x, *draws)))),
            (images,),
            order=2,
            modes=["rev"],
        )


def sample_bilinear(image, rows, columns):
    """grid_sample with zero padding and align_corners=False, by loops."""
    h, w, _ = image.shape
    output = np.zeros_like(image)
    for i in range(h):
        for j in range(w):
            row = ((rows[i, j] + 1) * h - 1) / 2
            column = ((columns[i, j] + 1) * w - 1) / 2
            for p in range(h):
                for q in range(w):
                    weight = max(0, 1 - abs(row - p))
                    weight *= max(0, 1 - abs(column - q))
                    output[i, j] += weight * image[p, q]
    return output


@pytest.mark.parametrize("shape", [(7, 4, 1), (4, 6, 2)])
def test_warps_of_images_that_are_not_square(shape):
    h, w, _ = shape
    u, v = 0.875, 0.125
    y = ((2 * np.arange(h) + 1) / h - 1)[:, None]
    x = ((2 * np.arange(w) + 1) / w - 1)[None]
    with jax.enable_x64(True):
        image = np.asarray(noise(1, *shape, dtype=np.float64))
        images = jnp.asarray([image])
        # float32 as augment draws them: positions must be float64 all the same.
        us, vs = jnp.float32([u]), jnp.float32([v])
        turned = jit_op("rotate", degrees=30.0)(images, us)[0]
        scaled = jit_op("scale", ratio=1.5)(images, us, vs)[0]
    angle = np.deg2rad(30.0) * (2 * u - 1)
    np.testing.assert_allclose(
        turned,
        sample_bilinear(
            image,
            np.sin(angle) * x + np.cos(angle) * y,
            np.cos(angle) * x - np.sin(angle) * y,
        ),
        atol=1e-12,
    )
    x_factor, y_factor = (1 / 1.5 + t * (1.5 - 1 / 1.5) for t in (u, v))
    np.testing.assert_allclose(
        scaled,
        sample_bilinear(image, y_factor * y + 0 * x, x_factor * x + 0 * y),
        atol=1e-12,
    )


def test_magnitudes_scale_the_maps():
    images, ones = noise(2, 2, 8, 8, 3), np.ones(2, np.float32)
    middle = np.array([4, 4])
    expected = {
        ("brightness", "strength", 3.0): images + 1.5,
        ("saturation", "strength", 0.0): jnp.mean(images, 3, keepdims=True),
        ("contrast", "strength", 0.0): images,
        ("flip", "probability", 1.1): images[:, :, ::-1],
        ("scale", "ratio", 1.0): images,
        ("rotate", "degrees", 180.0): images[:, ::-1, ::-1],
        ("cutout", "ratio", 0.25): images.at[:, 3:5, 3:5].set(0.0),
    }
    for (name, magnitude, value), output in expected.items():
        draws = [middle if name == "cutout" else ones] * DRAWS.get(name, 1)
        np.testing.assert_allclose(
            jit_op(name, **{magnitude: value})(images, *draws),
            np.broadcast_to(output, images.shape),
            atol=1e-5,
            err_msg=name,
        )


def test_draws_of_another_batch_size_are_refused():
    images = noise(0, 3, 4, 4, 1)
    for name, op in OPS.items():
        # jaxtyping's, where the test run checks annotations.
        with pytest.raises((AssertionError, TypeCheckError)):
            op(images, *some_draws(name, 1, np.float32))


# --- The draws --------------------------------------------------------------


def test_siamese():
    """One key, one affine map: T(x) + T(y) = T(x + y) + T(0)."""
    x, y = noise(4, 4, 8, 8, 3), noise(5, 4, 8, 8, 3)
    for seed in range(20):
        transform = functools.partial(augment, jax.random.key(seed))
        np.testing.assert_array_equal(
            transform(x, dsa.ALL), transform(x, dsa.ALL)
        )
        np.testing.assert_allclose(
            transform(x, dsa.ALL) + transform(y, dsa.ALL),
            transform(x + y, dsa.ALL) + transform(0 * x, dsa.ALL),
            atol=1e-5,
        )
    one, other = (
        augment(jax.random.key(seed), x, ("color",)) for seed in (0, 1)
    )
    assert not np.allclose(one, other)


def test_one_group_per_call_each_as_often():
    images = noise(6, 12, 8, 8, 1)

    @jax.jit
    @jax.vmap
    def is_group(key):
        output = dsa.augment(key, images)
        alone = [dsa.augment(key, images, (name,)) for name in dsa.ALL]
        gaps = jnp.abs(jnp.stack(alone) - output[None])
        return jnp.max(gaps, axis=(1, 2, 3, 4)) < 1e-5

    is_group = is_group(jax.random.split(jax.random.key(0), 600))
    np.testing.assert_array_equal(np.sum(is_group, axis=1), 1)
    # 100 are expected, with a standard deviation of 9.
    counts = np.sum(is_group, axis=0)
    assert counts.min() > 65 and counts.max() < 135, counts


def test_flip_mirrors_half_of_the_images():
    images = jnp.broadcast_to(jnp.arange(4.0), (600, 1, 4))[..., None]
    left = augment(jax.random.key(0), images, ("flip",))[:, 0, 0, 0]
    assert set(np.unique(left)) == {0.0, 3.0}
    assert abs(jnp.mean(left == 3.0) - 0.5) < 0.08


def test_crop_draws_every_shift_within_an_eighth():
    # Each pixel holds its own number, so the middle one tells the shift.
    number = jnp.arange(16.0 * 8.0).reshape(1, 16, 8, 1)
    images = jnp.broadcast_to(number, (600, 16, 8, 1))
    middle = augment(jax.random.key(0), images, ("crop",))[:, 8, 4, 0]
    rows, columns = np.divmod(np.asarray(middle).astype(int), 8)
    values, counts = np.unique(rows, return_counts=True)
    assert list(values) == [6, 7, 8, 9, 10] and counts.min() > 80
    values, counts = np.unique(columns, return_counts=True)
    assert list(values) == [3, 4, 5] and counts.min() > 150


def test_cutout_draws_every_middle():
    images = jnp.ones((900, 8, 6, 1))
    hole = augment(jax.random.key(0), images, ("cutout",)) == 0
    # Even height 4, middles 0..8: two rows at least, four away from the edge.
    height = np.asarray(hole.any(axis=2).sum(axis=1)).ravel()
    assert sorted(set(height)) == [2, 3, 4]
    assert abs((height == 2).mean() - 2 / 9) < 0.06
    # Odd width 3, middles 0..5.
    width = np.asarray(hole.any(axis=1).sum(axis=1)).ravel()
    assert sorted(set(width)) == [2, 3]
    assert abs((width == 2).mean() - 2 / 6) < 0.06


def assert_uniform_and_independent(magnitudes):
    """For [(values [b], range), ...]: each should fill its range evenly."""
    for values, (low, high) in magnitudes:
        steps = np.sort((np.asarray(values) - low) / (high - low))
        even = (np.arange(len(steps)) + 0.5) / len(steps)
        assert np.abs(steps - even).max() < 0.08
    related = np.corrcoef([values for values, _ in magnitudes])
    assert np.abs(np.triu(np.atleast_2d(related), 1)).max() < 0.15


def test_color_draws_three_magnitudes():
    image = noise(13, 1, 4, 4, 3)
    images = jnp.broadcast_to(image, (600, 4, 4, 3))
    output = augment(jax.random.key(0), images, ("color",))
    # The mean shows brightness, grey values contrast, the rest both factors.
    grey, grey_before = output.mean(3), image.mean(3)
    contrast = grey.std((1, 2)) / grey_before.std()
    both = (output - grey[..., None]).std((1, 2, 3)) / (
        image - grey_before[..., None]
    ).std()
    assert_uniform_and_independent(
        [
            (output.mean((1, 2, 3)) - image.mean(), (-0.5, 0.5)),
            (both / contrast, (0.0, 2.0)),
            (contrast, (0.5, 1.5)),
        ]
    )


def test_scale_draws_two_factors():
    # Channels hold the row and the column, so they show where was sampled.
    ramp = jnp.stack(jnp.meshgrid(jnp.arange(8.0), jnp.arange(8.0)), -1) - 3.5
    images = jnp.broadcast_to(ramp, (600, 8, 8, 2))
    sampled = augment(jax.random.key(0), images, ("scale",))[:, 4, 4]
    assert_uniform_and_independent(
        [(2 * sampled[:, axis], (1 / 1.2, 1.2)) for axis in range(2)]
    )


def test_rotate_draws_angles_to_both_sides():
    ramp = jnp.stack(jnp.meshgrid(jnp.arange(8.0), jnp.arange(8.0)), -1) - 3.5
    images = jnp.broadcast_to(ramp, (600, 8, 8, 2))
    x, y = augment(jax.random.key(0), images, ("rotate",))[:, 4, 4].T
    degrees = jnp.rad2deg(jnp.arctan2(y, x)) - 45
    assert_uniform_and_independent([(degrees, (-15.0, 15.0))])


def test_draws_depend_neither_on_dtype_nor_on_channels():
    grey = noise(8, 4, 8, 8, 1)
    for seed in range(6):
        key = jax.random.key(seed)
        single = augment(key, grey, dsa.ALL)
        assert single.dtype == grey.dtype
        with jax.enable_x64(True):
            double = augment(key, jnp.asarray(grey, jnp.float64), dsa.ALL)
        assert double.dtype == jnp.float64
        np.testing.assert_allclose(single, double, atol=1e-5)
        three = augment(key, jnp.repeat(grey, 3, axis=3), dsa.ALL)
        np.testing.assert_allclose(three[..., :1], single, atol=1e-5)


# --- Where it is called -----------------------------------------------------


def test_double_derivative_through_checkpointed_scan():
    """A meta-gradient over every group, against finite differences."""

    def unrolled(images, keys):
        def loss(weights, key):
            augmented = dsa.augment(key, images)
            return jnp.mean(jnp.sin(jnp.sum(augmented * weights, (1, 2, 3))))

        def step(weights, key):
            return weights - 0.01 * jax.grad(loss)(weights, key), None

        step = jax.checkpoint(step, prevent_cse=False)
        start = jnp.ones((1, 8, 6, 3), images.dtype)
        return jnp.sum(jax.lax.scan(step, start, keys)[0] ** 2)

    keys = jax.random.split(jax.random.key(1), 60)  # enough for all groups
    with jax.enable_x64(True):
        images = noise(9, 3, 8, 6, 3, dtype=np.float64)
        along = noise(10, 3, 8, 6, 3, dtype=np.float64)
        value_and_grad = jax.jit(jax.value_and_grad(unrolled))
        _, grads = value_and_grad(images, keys)
        assert jnp.all(jnp.isfinite(grads))
        ahead, _ = value_and_grad(images + 1e-6 * along, keys)
        behind, _ = value_and_grad(images - 1e-6 * along, keys)
        slope = jnp.sum(grads * along)
        assert abs(slope) > 0.1
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-6)


def test_vmap_over_keys_equals_a_loop():
    keys = jax.random.split(jax.random.key(2), 12)
    images = noise(11, 4, 8, 8, 3)
    each = jax.jit(jax.vmap(dsa.augment, in_axes=(0, None)))
    np.testing.assert_allclose(
        each(keys, images),
        jnp.stack([augment(key, images, dsa.ALL) for key in keys]),
        atol=1e-5,
    )


# --- Names ------------------------------------------------------------------


def test_no_groups_leave_the_images_as_they_are():
    images = noise(12, 2, 4, 4, 3)
    assert dsa.augment(jax.random.key(0), images, ()) is images


def test_parse():
    assert dsa.parse("color_crop_cutout_flip_scale_rotate") == dsa.ALL
    assert dsa.parse("flip") == ("flip",)
    assert dsa.parse("none") == dsa.parse("") == ()


def test_unknown_names_are_refused_with_the_known_ones():
    known = "color, crop, cutout, flip, scale, rotate"
    with pytest.raises(InputError, match=f"'blur'; there are {known}"):
        dsa.augment(jax.random.key(0), jnp.ones((1, 4, 4, 1)), ("blur",))
    for wrong in ("flip_blur", "flip_", "none_flip", "Flip"):
        with pytest.raises(InputError, match=known):
            dsa.parse(wrong)
