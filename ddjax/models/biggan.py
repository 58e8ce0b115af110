"""A class-conditional BigGAN: a generator, its critic, and folding.

A generator exists in two forms of one structure. In training, kernels are
divided by their largest singular value and features normalised by the
statistics of their batch, so an image depends on the images beside it. Folded
(:func:`fold`), both are absorbed into the parameters: each image depends on
its own noise and class alone, and nothing but parameters is left. Only this
file and the pre-training in ``ddjax.gan`` know batch statistics.

Source: Brock, Donahue and Simonyan, "Large Scale GAN Training for High
Fidelity Natural Image Synthesis", ICLR 2019, arXiv 1809.11096, in the layout of
the authors' PyTorch release, whose parameter counts are met: 4,304,387 for
CIFAR-10 and 70,433,988 for ImageNet at 128 pixels. 8 and 16 pixels are ours:
the layout of 32 with fewer blocks. So are all other sides up to 128: the layout
of the next larger side, of whose images a generator gives the middle, and whose
critic pads what it sees.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from ddjax.models.layers import NORM_EPSILON, average_pool
from ddjax.ops import conv2d
from ddjax.types import InputError, Params

__all__ = [
    "FOLDED",
    "SIZES",
    "Critic",
    "GenApply",
    "Generator",
    "absorb_norm",
    "fold",
    "initialise",
    "made_size",
    "multiples",
]


class _Layout(NamedTuple):
    """Channels in units of ``width``.

    Attributes:
      generator: into the first block, and out of each.
      critic: out of each block.
      halved: how many of the critic's blocks halve the image; the first ones.
    """

    generator: tuple[int, ...]
    critic: tuple[int, ...]
    halved: int


_LAYOUTS = {
    8: _Layout((4, 4), (4, 4), 1),
    16: _Layout((4, 4, 4), (4, 4, 4), 2),
    32: _Layout((4, 4, 4, 4), (4, 4, 4, 4), 2),
    64: _Layout((16, 16, 8, 4, 2), (1, 2, 4, 8, 16), 4),
    128: _Layout((16, 16, 8, 4, 2, 1), (1, 2, 4, 8, 16, 16), 5),
}
SIZES = tuple(_LAYOUTS)
"""Sides of images, in pixels, that there is a layout for."""

TRAINING, MEASURED, FOLDED = "training", "measured", "folded"
"""Forms: spectral and batch norm; batch norm alone; neither."""

_FIRST = 4  # pixels a side of the first features
_TINY = 1e-12  # keeps the length of a zero vector from dividing by zero


def made_size(size: int) -> int:
    """The side that images of ``size`` pixels are cut out of.

    Raises:
      InputError: no layout is so large.

    >>> made_size(28), made_size(32)
    (32, 32)
    """
    for made in SIZES:
        if 0 < size <= made:
            return made
    raise InputError(
        f"a BigGAN makes images of 1 to {SIZES[-1]} pixels a side, not {size}: "
        "set data.size"
    )


def _layout(size: int) -> _Layout:
    return _LAYOUTS[made_size(size)]


def multiples(size: int) -> tuple[int, ...]:
    """Channels into a generator's first block and out of each, over its width.

    >>> multiples(32)
    (4, 4, 4, 4)
    """
    return _layout(size).generator


def _middle(images, size):
    """[n H W c] -> [n size size c]; an odd rest is more below and right."""
    begin = (images.shape[1] - size) // 2
    end = begin + size
    return images[:, begin:end, begin:end]


def _framed(images, size):
    """The converse: zeros around [n h w c] up to [n size size c]."""
    rest = size - images.shape[1]
    frame = (rest // 2, rest - rest // 2)
    return jnp.pad(images, ((0, 0), frame, frame, (0, 0)))


# --- Layers -----------------------------------------------------------------


def _normal(key, shape, dtype=jnp.float32):
    """N(0, 0.02), drawn flat: a 4-d draw costs seconds of compile time."""
    flat = jax.random.normal(key, (math.prod(shape),), dtype)
    return 0.02 * flat.reshape(shape)


def _unit(vector):
    return vector * lax.rsqrt(jnp.sum(jnp.square(vector)) + _TINY)


def _power_iteration(matrix, u):
    """One step towards the first singular vectors (v, u) of a [r c] matrix."""
    v = _unit(matrix @ u)
    return v, _unit(v @ matrix)


class _Spectral(nn.Module):
    """Something with kernels that are divided by their spectral norm.

    Miyato et al., "Spectral Normalization for Generative Adversarial
    Networks", ICLR 2018: one power iteration a step, singular vectors taken
    as constants. The estimate is kept in the collection "spectral".
    """

    form: str = TRAINING

    def normalised(self, name: str, kernel: jax.Array) -> jax.Array:
        """kernel [.. c] over the norm of its [r c] matrix."""
        if self.form != TRAINING:
            return kernel
        matrix = kernel.reshape(-1, kernel.shape[-1])
        estimate = self.variable(
            "spectral",
            name,
            lambda: _unit(
                jax.random.normal(
                    self.make_rng("params"), matrix.shape[-1:], jnp.float32
                )
            ),
        )
        if self.is_initializing():
            return kernel
        v, u = _power_iteration(lax.stop_gradient(matrix), estimate.value)
        if self.is_mutable_collection("spectral"):
            estimate.value = u
        return kernel / jnp.maximum(v @ matrix @ u, _TINY)


class _Conv(_Spectral):
    features: int = 0
    taps: int = 3
    use_bias: bool = True
    apply_kernel: Callable[..., jax.Array] = conv2d

    @nn.compact
    def __call__(self, images):
        shape = (self.taps, self.taps, images.shape[-1], self.features)
        kernel = self.param("kernel", _normal, shape)
        y = self.apply_kernel(images, self.normalised("kernel", kernel))
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,))
        return y


class _Dense(_Spectral):
    features: int = 0

    @nn.compact
    def __call__(self, inputs):
        shape = (inputs.shape[-1], self.features)
        kernel = self.param("kernel", _normal, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return inputs @ self.normalised("kernel", kernel) + bias


class _Norm(_Spectral):
    """Batch norm whose scale and bias are the condition's.

    A condition is a class (a table has a row for each), a vector (linear
    maps, spectrally normalised), or None. Moments are of the batch, and are
    sown in the collection "moments" where that is mutable.
    """

    num_classes: int = 0

    @nn.compact
    def __call__(self, features, condition):
        channels = features.shape[-1]
        constant = True  # whether scale and bias have a part of their own
        scale = bias = 0.0
        if condition is not None and condition.ndim == 2:
            constant = self.form == FOLDED
            shape = (condition.shape[-1], channels)
            scale, bias = (
                condition
                @ self.normalised(name, self.param(name, _normal, shape))
                for name in ("scale_kernel", "bias_kernel")
            )
            if not constant:
                scale = 1 + scale
        if constant:
            tabled = condition is not None and condition.ndim == 1
            shape = (self.num_classes,) * tabled + (channels,)
            first = self.param(
                "scale",
                (lambda *draw: 1 + _normal(*draw))
                if tabled
                else nn.initializers.ones,
                shape,
            )
            second = self.param(
                "bias", _normal if tabled else nn.initializers.zeros, shape
            )
            if tabled:
                first, second = first[condition], second[condition]
            scale, bias = scale + first, bias + second
        if scale.ndim == 2:
            scale, bias = scale[:, None, None], bias[:, None, None]
        if self.form == FOLDED:
            return features * scale + bias
        mean = features.mean((0, 1, 2))
        centred = features - mean
        variance = jnp.square(centred).mean((0, 1, 2))
        if not self.is_initializing():
            self.sow("moments", "mean", mean)
            self.sow("moments", "variance", variance)
        return centred * (scale * lax.rsqrt(variance + NORM_EPSILON)) + bias


class _Attention(_Spectral):
    """Self-attention over positions, as SAGAN (Zhang et al., ICML 2019)."""

    @nn.compact
    def __call__(self, x):
        b, h, w, channels = x.shape

        def project(name, features, pooled):
            y = _Conv(
                self.form,
                features=features,
                taps=1,
                use_bias=False,
                name=name,
            )(x)
            if pooled:
                y = nn.max_pool(y, (2, 2), (2, 2))
            return y.reshape(b, -1, features)

        theta = project("theta", channels // 8, False)
        phi = project("phi", channels // 8, True)
        values = project("values", channels // 2, True)
        weights = nn.softmax(jnp.einsum("bqd,bkd->bqk", theta, phi))
        mixed = jnp.einsum("bqk,bkd->bqd", weights, values)
        y = _Conv(
            self.form, features=channels, taps=1, use_bias=False, name="out"
        )(mixed.reshape(b, h, w, channels // 2))
        return x + self.param("gamma", nn.initializers.zeros, ()) * y


def _doubled(images):
    """Each pixel becomes a square of four."""
    b, h, w, c = images.shape
    wide = jnp.broadcast_to(
        images[:, :, None, :, None], (b, h, 2, w, 2, c)
    )  # fmt: skip
    return wide.reshape(b, 2 * h, 2 * w, c)


_MERGED_FROM = 16  # pixels a side; below, edges eat the gain
# Of a row [output parity, input, tap]: which taps meet the same pixel.
_TAPS = np.array(
    [[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], dtype=np.float32
)


def _merged(kernel):
    """[3 3 c o] as [2 2 c 2 2 o]: taps that meet the same pixel as one."""
    return jnp.einsum(
        "ast,bur,trco->sucabo",
        _TAPS,
        _TAPS,
        kernel,
        precision=lax.Precision.HIGHEST,
    )


def _conv_of_doubled(images, kernel):
    """``conv2d(_doubled(images), kernel)`` of 3x3 taps, with 16 for 36.

    A 3x3 window of doubled pixels holds 2x2 different ones. One convolution
    makes, for each corner between four pixels, the four outputs around it.
    """
    b, h, w, channels = images.shape
    if min(h, w) < _MERGED_FROM // 2:
        return conv2d(_doubled(images), kernel)
    merged = _merged(kernel).reshape(2, 2, channels, -1)
    y = conv2d(images, merged, padding=((1, 1), (1, 1)))
    y = y.reshape(b, h + 1, w + 1, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(b, 2 * h + 2, 2 * w + 2, -1)[:, 1:-1, 1:-1]


def _pooled_conv(images, kernel):
    """``average_pool(conv2d(images, kernel))``, the transpose of that."""
    b, h, w, channels = images.shape
    if min(h, w) < _MERGED_FROM or h % 2 or w % 2:
        return average_pool(conv2d(images, kernel))
    merged = _merged(kernel / 4)[:, :, :, ::-1, ::-1]
    merged = merged.transpose(0, 1, 3, 4, 2, 5).reshape(2, 2, 4 * channels, -1)
    x = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = x.reshape(b, h // 2 + 1, 2, w // 2 + 1, 2, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(*x.shape[:2], x.shape[3], -1)
    return conv2d(x, merged, padding="VALID")


class _GeneratorBlock(nn.Module):
    features: int
    num_classes: int
    form: str

    @nn.compact
    def __call__(self, x, condition):
        norm = functools.partial(_Norm, self.form, num_classes=self.num_classes)
        conv = functools.partial(_Conv, self.form, features=self.features)
        y = nn.relu(norm(name="norm0")(x, condition))
        y = conv(apply_kernel=_conv_of_doubled, name="conv0")(y)
        y = nn.relu(norm(name="norm1")(y, condition))
        y = conv(name="conv1")(y)
        # A 1x1 kernel gives the same before the pixels are doubled as after,
        # for a quarter of the work.
        return y + _doubled(conv(taps=1, name="shortcut")(x))


class Generator(nn.Module):
    """From noise and a class to an image.

    Attributes:
      num_classes: k.
      size: side of the images in pixels, up to 128; where it is none of
        ``SIZES``, larger ones are made and their middle is given.
      channels: of the images, 1 or 3.
      width: channels of the layers are multiples of it.
      noise: length of the noise vector.
      embedding: length of an embedding of the class that all norms share, and
        with it noise is split between the blocks; 0 gives each norm a row for
        each class instead, as BigGAN does at 32 pixels.
      attention: side of the features that attend to each other; 0 for none.
      hierarchical: whether, with an embedding, noise is split between the
        blocks; otherwise all of it goes in first.
      form: TRAINING, or FOLDED where the parameters come from ``fold``.
    """

    num_classes: int
    size: int = 32
    channels: int = 3
    width: int = 64
    noise: int = 128
    embedding: int = 0
    attention: int = 0
    hierarchical: bool = True
    form: str = TRAINING

    @nn.compact
    def __call__(
        self, noise: Float[Array, "n d"], labels: Int[Array, " n"]
    ) -> Float[Array, "n h w c"]:
        """noise [n d], classes [n] -> images [n h w c] in 0..1."""
        first, *blocks = _layout(self.size).generator
        condition, conditions = labels, [labels] * len(blocks)
        if self.embedding:
            parts = len(blocks) + 1 if self.hierarchical else 1
            if self.noise % parts:
                raise InputError(
                    f"gan.noise must be a multiple of {parts} (the blocks of "
                    f"a generator of {made_size(self.size)} pixels, and one) "
                    f"where gan.embedding is not 0, not {self.noise}"
                )
            table = self.param(
                "classes", _normal, (self.num_classes, self.embedding)
            )
            noise, *rest = jnp.split(noise, parts, axis=1)
            condition = table[labels]
            conditions = [
                jnp.concatenate([condition, part], axis=1) for part in rest
            ] or [condition] * len(blocks)
        features = first * self.width
        x = _Dense(
            self.form, features=_FIRST * _FIRST * features, name="dense"
        )(noise).reshape(-1, _FIRST, _FIRST, features)
        for number, (multiple, condition) in enumerate(zip(blocks, conditions)):
            x = _GeneratorBlock(
                multiple * self.width,
                self.num_classes,
                self.form,
                name=f"block{number}",
            )(x, condition)
            if x.shape[1] == self.attention:  # once: sides only grow
                x = _Attention(self.form, name="attention")(x)
        x = nn.relu(_Norm(self.form, name="norm")(x, None))
        x = _Conv(self.form, features=self.channels, name="conv")(x)
        # Here, and not where images are used: nothing that sees images,
        # neither critic nor evaluation, ever sees what is cut off.
        x = _middle(x, self.size)
        # tanh's -1..1 as pixels.
        return nn.sigmoid(2 * x)


class _CriticBlock(nn.Module):
    features: int
    first: bool
    halved: bool

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(_Conv, features=self.features)
        pool = average_pool if self.halved else lambda y: y
        apply = _pooled_conv if self.halved else conv2d
        y = conv(name="conv0")(x if self.first else nn.relu(x))
        y = conv(apply_kernel=apply, name="conv1")(nn.relu(y))
        if self.halved or x.shape[-1] != self.features:
            # Pooled before a 1x1 kernel or after it: the same, but for cost.
            x = conv(taps=1, name="shortcut")(pool(x))
        return y + x


class Critic(nn.Module):
    """How real an image of a class looks: a projection discriminator.

    Miyato and Koyama, "cGANs with Projection Discriminator", ICLR 2018.

    Attributes:
      num_classes: k.
      size: side of the images in pixels, up to 128; where it is none of
        ``SIZES``, they are padded to the next.
      width: channels of the layers are multiples of it.
      attention: side of the features that attend to each other; 0 for none.
    """

    num_classes: int
    size: int = 32
    width: int = 64
    attention: int = 0

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], labels: Int[Array, " n"]
    ) -> Float[Array, " n"]:
        """images [n h w c] in -1..1, classes [n] -> scores [n]."""
        layout = _layout(self.size)
        # With what its convolutions pad with, mid-grey of -1..1, so that a
        # border is a border at every side. Real and generated images get the
        # same frame, after augmentation, which moves data within their own
        # side.
        x = _framed(images, made_size(self.size))
        for number, multiple in enumerate(layout.critic):
            x = _CriticBlock(
                multiple * self.width,
                number == 0,
                number < layout.halved,
                name=f"block{number}",
            )(x)
            if number < layout.halved and x.shape[1] == self.attention:
                x = _Attention(name="attention")(x)
        x = nn.relu(x).sum((1, 2))
        score = _Dense(features=1, name="head")(x)[:, 0]
        table = _Embedding(
            num_classes=self.num_classes, features=x.shape[-1], name="classes"
        )()
        return score + jnp.sum(table[labels] * x, axis=-1)


class _Embedding(_Spectral):
    num_classes: int = 0
    features: int = 0

    @nn.compact
    def __call__(self):
        shape = (self.num_classes, self.features)
        return self.normalised("kernel", self.param("kernel", _normal, shape))


# --- From one form to the other ---------------------------------------------


def initialise(
    module: Generator | Critic, key: jax.Array, channels: int
) -> tuple[Params, Params]:
    """Fresh float32 (params, spectral estimates) of a training form.

    Args:
      module: a Generator or Critic.
      key: one key.
      channels: of the images.
    """
    shape: tuple[int, ...] = (2, module.size, module.size, channels)
    if isinstance(module, Generator):
        shape = (2, module.noise)
    variables = module.lazy_init(
        key,
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct((2,), jnp.int32),
    )
    return variables["params"], variables["spectral"]


def fold(
    module: Generator,
    params: Params,
    spectral: Params,
    noise: Float[Array, "t n d"],
    labels: Int[Array, "t n"],
) -> tuple[Generator, Params]:
    """The generator whose images do not depend on each other.

    Kernels are divided by their spectral norm, found anew and exactly for
    these parameters, which may be an average of those trained. Then the
    moments of t batches are averaged and absorbed into scales and biases
    (BigGAN's standing statistics).

    Args:
      module: the training form.
      params: of it.
      spectral: its spectral estimates, for which kernels have one.
      noise: t batches to take moments over.
      labels: their classes.

    Returns:
      (module, params) of the folded form. Pure: works under jit.
    """

    measured = module.clone(form=MEASURED)
    params = _unit_norm(params, spectral)

    def moments(_, batch):
        _, found = measured.apply(
            {"params": params}, *batch, mutable=["moments"]
        )
        return None, found["moments"]

    _, found = lax.scan(moments, None, (noise, labels))
    return module.clone(form=FOLDED), _absorbed(params, found)


def _unit_norm(params, spectral):
    """Each kernel that has an estimate, over its spectral norm."""
    result = {}
    for name, value in params.items():
        if name not in spectral:
            result[name] = value
        elif isinstance(value, dict):
            result[name] = _unit_norm(value, spectral[name])
        else:
            matrix = value.reshape(-1, value.shape[-1])
            if matrix.shape[0] < matrix.shape[1]:
                matrix = matrix.T
            # A GPU's default precision would round the products to 10 bits.
            square = jnp.matmul(
                matrix.T, matrix, precision=lax.Precision.HIGHEST
            )
            square = jnp.linalg.eigvalsh(square)[-1]
            result[name] = value * lax.rsqrt(jnp.maximum(square, _TINY))
    return result


def _absorbed(params, moments):
    """Norms as scale and bias alone."""
    result = {}
    for name, value in params.items():
        found = moments.get(name) if isinstance(value, dict) else None
        if found is None:
            result[name] = value
        elif "mean" in found:
            result[name] = _norm_absorbed(value, **found)
        else:
            result[name] = _absorbed(value, found)
    return result


def _norm_absorbed(norm, mean, variance):
    (means,), (variances,) = mean, variance  # sown once, of each batch
    # Not the mean square less the squared mean, which rounds below 0.
    return absorb_norm(
        norm, means.mean(0), variances.mean(0) + means.var(0), NORM_EPSILON
    )


def absorb_norm(
    norm: Params,
    mean: Float[ArrayLike, " c"],
    variance: Float[ArrayLike, " c"],
    epsilon: float,
) -> Params:
    """A batch norm of fixed moments as scale and bias alone.

    Args:
      norm: {"scale": [.. c], "bias": [.. c]}, or {"scale_kernel": [d c],
        "bias_kernel": [d c]}, of which the scale is what they add to 1.
      mean: of the features.
      variance: of the features.
      epsilon: added to it.

    Returns:
      The folded form's parameters of the norm.
    """
    factor = lax.rsqrt(jnp.asarray(variance + epsilon))
    if "scale_kernel" not in norm:
        scale = norm["scale"] * factor
        return {"scale": scale, "bias": norm["bias"] - mean * scale}
    scale_kernel = norm["scale_kernel"] * factor
    return {
        "scale_kernel": scale_kernel,
        "scale": factor,
        "bias_kernel": norm["bias_kernel"] - mean * scale_kernel,
        "bias": -mean * factor,
    }


@dataclasses.dataclass(frozen=True)
class GenApply:
    """``gen_apply(params, noise[n d], labels[n]) -> images [n h w c]``.

    Attributes:
      module: the folded form.
    """

    module: Generator

    @property
    def noise_size(self) -> int:
        """d, the length of a noise vector."""
        return self.module.noise

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c)."""
        return self.module.size, self.module.size, self.module.channels

    def __call__(self, params, noise, labels):
        """Images in 0..1."""
        return self.module.apply({"params": params}, noise, labels)
