"""The convolution: every derivative against XLA's own, and its form."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxtyping import TypeCheckError

from ddjax import filtering, ops
from ddjax.ops import conv2d

# kernel, stride, padding, channels, image. Both sides of 16 channels, where
# the kernel gradient changes its way, odd and even images.
CASES = {
    "1x1 crops": ((1, 1), 1, ((0, 2), (1, 0)), 17, (4, 5)),
    "1x1 stride 2": ((1, 1), 2, "VALID", 17, (5, 6)),
    "3x3 narrow": ((3, 3), 1, "SAME", 3, (7, 5)),
    "3x3 wide": ((3, 3), 1, "SAME", 16, (5, 6)),
    "3x3 asymmetric": ((3, 3), 1, ((2, 0), (1, 3)), 17, (5, 4)),
    "3x3 stride 2": ((3, 3), 2, "SAME", 17, (7, 6)),
    "3x3 leftover": ((3, 3), 2, "VALID", 3, (6, 7)),
    "3x3 on 2x2": ((3, 3), 1, "SAME", 17, (2, 2)),
    "3x3 on 1x2": ((3, 3), 1, ((1, 1), (2, 0)), 3, (1, 2)),
    "3x3 stride 2 on 2x2": ((3, 3), 2, ((1, 1), (1, 1)), 17, (2, 2)),
    "3x3 stride 2 to 2x2": ((3, 3), 2, ((1, 1), (1, 1)), 17, (4, 4)),
    "5x5": ((5, 5), 1, "VALID", 17, (7, 6)),
    "5x5 stride 2": ((5, 5), 2, ((1, 3), (2, 0)), 3, (7, 7)),
    "2x3": ((2, 3), 1, "SAME", 17, (5, 5)),
    "2x3 mixed": ((2, 3), (1, 2), ((1, 0), (0, 2)), 3, (5, 7)),
}


def stock(x, w, *, stride=1, padding="SAME"):
    strides = (stride, stride) if isinstance(stride, int) else stride
    return lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def operands(kernel, channels, image, *, lead=(), features=2):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*lead, 2, *image, channels))
    w = rng.normal(size=(*lead, *kernel, channels, features)) / 5
    return x, w


def derivatives(conv, x, w):
    """Value, two steps of descent in a scan, and the gradient through it."""

    def loss(x, w):
        y = conv(x, w)
        return jnp.sum(jnp.sin(y) * jnp.linspace(0, 1, y.size).reshape(y.shape))

    def step(carry, _):
        grads = jax.grad(loss, (0, 1))(*carry)
        return jax.tree.map(lambda p, g: p - 0.3 * g, carry, grads), None

    def descend(carry):
        after, _ = lax.scan(
            jax.checkpoint(step, prevent_cse=False), carry, length=2
        )
        return jnp.sum(jnp.cos(after[0])) + jnp.sum(jnp.sin(after[1])), after

    (_, after), grads = jax.value_and_grad(descend, has_aux=True)((x, w))
    return conv(x, w), after, grads


def assert_close(found, expected, rtol):
    """Largest error against the largest entry, leaf by leaf."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for a, b in pairs:
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())


@pytest.mark.parametrize("case", CASES)
def test_derivatives(case, x64):
    kernel, stride, padding, channels, image = CASES[case]
    x, w = operands(kernel, channels, image)

    def both(x, w):
        return [
            derivatives(
                lambda x, w: conv(x, w, stride=stride, padding=padding), x, w
            )
            for conv in (conv2d, stock)
        ]

    found, expected = jax.jit(both)(x, w)
    assert_close(found, expected, 1e-12)


def double(conv, x, w):
    """The gradient of the size of the gradients, to both operands."""

    def size(x, w):
        grads = jax.grad(lambda *xw: jnp.sum(jnp.sin(conv(*xw))), (0, 1))(x, w)
        return sum(jnp.sum(g**2) for g in grads)

    return jax.grad(size, (0, 1))(x, w)


@pytest.mark.parametrize("channels, features", [(64, 16), (16, 64)])
@pytest.mark.parametrize("padding", ["VALID", ((1, 1), (1, 0))])
def test_many_channels_beside_few(channels, features, padding, x64):
    """Where a product for all taps is smaller than the image, or larger."""
    x, w = operands((2, 2), channels, (4, 5), features=features)

    def both(x, w):
        return [
            derivatives(lambda x, w: conv(x, w, padding=padding), x, w)
            for conv in (conv2d, stock)
        ]

    found, expected = jax.jit(both)(x, w)
    assert_close(found, expected, 1e-12)


def test_third_order(x64):
    x, w = operands((3, 3), 3, (4, 5))

    def third(x, w):
        def along(f):
            return lambda x, w: sum(
                jnp.sum(jnp.sin(g)) for g in jax.grad(f, (0, 1))(x, w)
            )

        return [
            jax.grad(
                along(along(lambda x, w: jnp.sum(jnp.sin(conv(x, w))))), (0, 1)
            )(x, w)
            for conv in (conv2d, stock)
        ]

    assert_close(*jax.jit(third)(x, w), 1e-12)


def test_vmap_and_map(x64):
    x, w = operands((3, 3), 16, (4, 5), lead=(3,))

    def mapped(x, w):
        def of(x, w):
            return double(conv2d, x, w)

        return (
            jax.vmap(of, (0, None))(x, w[0]),
            jax.vmap(of, (None, 0))(x[0], w),
            jax.vmap(of)(x, w),
            lax.map(lambda xw: of(*xw), (x, w)),
        )

    one = jax.jit(lambda x, w: double(stock, x, w))

    def stacked(xs, ws):
        return jax.tree.map(
            lambda *leaves: np.stack(leaves),
            *(one(x, w) for x, w in zip(xs, ws)),
        )

    pairs = stacked(x, w)
    expected = (
        stacked(x, [w[0]] * 3),
        stacked([x[0]] * 3, w),
        pairs,
        pairs,
    )
    assert_close(jax.jit(mapped)(x, w), expected, 1e-12)


def test_pmap(x64):
    x, w = operands((3, 3), 16, (4, 5), lead=(2,))
    found = jax.pmap(lambda x, w: double(conv2d, x, w))(x, w)
    one = jax.jit(lambda x, w: double(stock, x, w))
    for device in range(2):
        expected = one(x[device], w[device])
        assert_close([leaf[device] for leaf in found], expected, 1e-12)


@pytest.mark.parametrize("case", ["3x3 wide", "3x3 stride 2", "2x3 mixed"])
def test_kernels_for_other_platforms(case, x64):
    """What a GPU or TPU would run, run here."""
    kernel, stride, padding, channels, image = CASES[case]
    x, w = operands(kernel, channels, image)
    strides = (stride, stride) if isinstance(stride, int) else stride
    if padding == "SAME":
        padding = lax.padtype_to_pads(image, kernel, strides, padding)
    geometry = ops._Geometry(image, kernel, strides, tuple(padding))

    def both(x, w):
        g = jnp.sin(ops._plain(x, w, geometry))
        return (
            (
                ops._input_gradient_default(g, w, geometry),
                ops._kernel_gradient_default(x, g, geometry),
            ),
            (
                ops._input_gradient_cpu(g, w, geometry),
                ops._kernel_gradient_cpu(x, g, geometry),
            ),
        )

    assert_close(*jax.jit(both)(x, w), 1e-12)


def convolution_forms(conv, stride, image=(5, 6)):
    """How XLA has laid out each convolution of a double gradient."""
    x, w = operands((3, 3), 16, image)
    padding = ((1, 1), (1, 1))

    def function(x, w):
        def step(carry, _):
            return double(
                lambda x, w: conv(x, w, stride=stride, padding=padding), *carry
            ), None

        return lax.scan(step, (x, w), length=2)[0]

    compiled = jax.jit(function).lower(np.float32(x), np.float32(w)).compile()
    return set(re.findall(r"dim_labels=(\w+->\w+)", compiled.as_text()))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("image", [(5, 6), (4, 4), (2, 2)])
def test_only_canonical_convolutions(image, stride):
    """Any other form runs a hundred times slower inside a loop on a CPU."""
    canonical = {"b01f_01io->b01f"}
    assert convolution_forms(conv2d, stride, image) <= canonical
    # The labels are still where this test looks for them.
    assert convolution_forms(stock, stride, image) - canonical


def test_float32_keeps_its_type():
    x, w = (np.float32(a) for a in operands((3, 3), 16, (5, 6)))
    found = jax.jit(lambda x, w: double(conv2d, x, w))(x, w)
    expected = jax.jit(lambda x, w: double(stock, x, w))(x, w)
    # Sums of 16 x 9 products, three deep: some tens of roundings of 6e-8.
    assert_close(found, expected, 1e-5)


def test_default_is_same_padding_and_stride_one():
    x, w = operands((3, 3), 3, (4, 5))
    assert conv2d(jnp.float32(x), jnp.float32(w)).shape == (2, 4, 5, 2)


@pytest.mark.parametrize("stride", [0, -1, (1, 0), (1, 1, 1), ()])
def test_bad_stride(stride):
    with pytest.raises(ValueError, match="stride"):
        conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), stride=stride)


@pytest.mark.parametrize(
    "padding", ["NEITHER", ((1, 1),), ((1, 1), (1, 1), (1, 1))]
)
def test_bad_padding(padding):
    with pytest.raises((ValueError, RuntimeError), match=r"[Pp]adding"):
        conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), padding=padding)


@pytest.mark.parametrize(
    "x, w", [((1, 4, 4, 2), (3, 3, 1, 1)), ((4, 4, 1), (3, 3, 1, 1))]
)
def test_operands_that_do_not_fit(x, w):
    with pytest.raises((AssertionError, TypeCheckError)):
        conv2d(jnp.ones(x), jnp.ones(w))


GEOMETRY = ops._Geometry((8, 8), (3, 3), (1, 1), ((1, 1), (1, 1)))
FILTERED = {
    "whole tiles": ("SAME", (8, 6)),
    "rows beyond the last tile": ("SAME", (7, 9)),
    "valid": ("VALID", (9, 5)),
    "asymmetric": (((2, 1), (0, 2)), (7, 6)),
    "cropped": (((1, -1), (-1, 1)), (8, 9)),
}


@pytest.mark.parametrize("case", FILTERED)
def test_filtered_rows(case, x64, monkeypatch):
    """Minimal filtering: every derivative against XLA's own."""
    monkeypatch.setattr(ops, "_FILTERED_GRADIENT_NUMBERS", 1)
    padding, image = FILTERED[case]
    x, w = operands((3, 3), 32, image, features=64)
    w = w / 10  # sines of large numbers would enlarge every rounding

    def both(x, w):
        return [
            (
                conv(x, w, padding=padding),
                double(partial(conv, padding=padding), x, w),
            )
            for conv in (conv2d, stock)
        ]

    taken = []
    for name in ("convolve", "kernel_products"):
        way = getattr(filtering, name)
        monkeypatch.setattr(
            filtering,
            name,
            lambda *xw, name=name, way=way: taken.append(name) or way(*xw),
        )
    found, expected = jax.jit(both)(x, w)
    assert_close(found, expected, 1e-12)
    assert set(taken) == {"convolve", "kernel_products"}


@pytest.mark.parametrize("images", [4, 5])  # 5 leaves an uneven last group
def test_filtered_kernel_gradient_in_groups(monkeypatch, images):
    monkeypatch.setattr(ops, "_FILTERED_GRADIENT_NUMBERS", 1)
    rng = np.random.default_rng(0)
    x, g = (
        jnp.asarray(rng.normal(size=(images, 8, 8, c)), jnp.float32)
        for c in (16, 17)
    )
    whole = ops._kernel_gradient_cpu(x, g, GEOMETRY)
    # Room for two images: six points of three copies of a quarter of g, and
    # of a quarter of x.
    numbers = 64 * (17 * 18 + 16 * 6) / 4
    monkeypatch.setattr(ops, "_CACHED", int(2.5 * 4 * numbers))
    taken = []
    way = filtering.kernel_products

    def products(x, g, padding):
        taken.append(len(x))
        return way(x, g, padding)

    monkeypatch.setattr(filtering, "kernel_products", products)
    grouped = ops._kernel_gradient_cpu(x, g, GEOMETRY)
    assert set(taken) == {2}
    # Sums of 320 products, in float32 and in another order.
    np.testing.assert_allclose(grouped, whole, atol=2e-4)


def test_no_images_and_integers():
    """What a filter is not for goes through as it did."""
    x, w = jnp.ones((0, 8, 8, 32)), jnp.ones((3, 3, 32, 64))
    assert ops._convolve_cpu(x, w, GEOMETRY).shape == (0, 8, 8, 64)
    x, w = jnp.ones((1, 8, 8, 32), int), jnp.ones((3, 3, 32, 64), int)
    assert ops._convolve_cpu(x, w, GEOMETRY).max() == 9 * 32


def test_filtered_rounding():
    """As near to float64 as a plain sum is, within a factor of five."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(4, 16, 16, 64)), rng.normal(size=(3, 3, 64, 64))
    g = rng.normal(size=x.shape)
    padding = ((1, 1), (1, 1))

    def distances(found, plain, exact):
        return [np.linalg.norm(a - exact) for a in (found, plain)]

    with jax.enable_x64(True):
        exact, pull = jax.vjp(lambda w: stock(x, w), w)
        (exact_gradient,) = pull(jnp.asarray(g))
    x, w, g = (jnp.float32(a) for a in (x, w, g))
    plain, pull = jax.vjp(lambda w: stock(x, w), w)
    filtered, direct = distances(
        filtering.convolve(x, w, padding), plain, np.asarray(exact)
    )
    assert 0 < filtered < 5 * direct  # 2.3 is the expected factor
    filtered, direct = distances(
        filtering.kernel_gradient(filtering.kernel_products(x, g, padding)),
        pull(g)[0],
        np.asarray(exact_gradient),
    )
    assert 0 < filtered < 5 * direct


@pytest.mark.parametrize(
    "dtype, kernel, rows, pays",
    [
        (jnp.float32, (3, 3), 8, True),
        (jnp.float32, (3, 3), 7, True),
        (jnp.float64, (3, 3), 3, True),
        (jnp.float32, (3, 3), 5, False),  # the second tile is nearly empty
        (jnp.float32, (3, 1), 8, False),
        (jnp.bfloat16, (3, 3), 8, False),
    ],
)
def test_filtering_where_it_pays(dtype, kernel, rows, pays):
    assert filtering.pays(dtype, kernel, rows) == pays


@pytest.mark.parametrize("images", [6, 7])  # 7 leaves an uneven last group
@pytest.mark.parametrize("channels", [3, 16])
def test_kernel_gradient_in_groups(monkeypatch, images, channels):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(images, 8, 8, channels)), jnp.float32)
    g = jnp.asarray(rng.normal(size=(images, 8, 8, 4)), jnp.float32)
    geometry = ops._Geometry((8, 8), (3, 3), (1, 1), ((1, 1), (1, 1)))
    whole = ops._kernel_gradient_cpu(x, g, geometry)
    copied = g if ops._shifts_gradient(x, g, geometry) else x
    # Room for the shifted copies of two images.
    monkeypatch.setattr(ops, "_CACHED", 2 * 9 * 4 * copied[0].size)
    jaxpr = str(
        jax.make_jaxpr(
            lambda x, g: ops._kernel_gradient_cpu(x, g, geometry)
        )(x, g)
    )  # fmt: skip
    assert "scan" in jaxpr
    grouped = ops._kernel_gradient_cpu(x, g, geometry)
    # Sums of up to 448 products, in float32 and in another order.
    np.testing.assert_allclose(grouped, whole, atol=1e-4)
