"""The layers that the networks share."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from ddjax.fused import NORM_EPSILON, norm_relu_pool
from ddjax.ops import conv2d
from ddjax.types import InputError

_GROUPS = 4  # of group norm, the literature's


def uniform_fan_in(fan_in: int):
    """Uniform in +-1/sqrt(fan_in), for kernels and biases alike.

    PyTorch's default for convolutions and linear layers, so the start of the
    literature's teachers and students. Drawn flat and reshaped: a 4-d draw
    costs seconds of compile time on a CPU and gives the same values.
    """
    bound = 1.0 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        flat = jax.random.uniform(
            key, (math.prod(shape),), dtype, -bound, bound
        )
        return flat.reshape(shape)

    return init


class Conv(nn.Module):
    """A square convolution by ``ops.conv2d``, whose paddings it takes.

    Before an instance norm, which takes the mean out, a bias changes nothing
    and its gradient is zero: ``idle_bias`` holds it, for the literature's
    count of parameters, and saves the sweep over the features that adds it.
    """

    features: int
    taps: int = 3
    stride: int = 1
    padding: str | tuple[tuple[int, int], tuple[int, int]] = "SAME"
    use_bias: bool = True
    idle_bias: bool = False

    @nn.compact
    def __call__(self, images):
        channels = images.shape[-1]
        init = uniform_fan_in(self.taps * self.taps * channels)
        kernel = self.param(
            "kernel", init, (self.taps, self.taps, channels, self.features)
        )
        images = conv2d(
            images, kernel, stride=self.stride, padding=self.padding
        )
        if not self.use_bias:
            return images
        bias = self.param("bias", init, (self.features,))
        return images if self.idle_bias else bias + images


def flat_normal(std: float):
    """Normal draws with mean 0, drawn flat; see ``uniform_fan_in``."""

    def init(key, shape, dtype=jnp.float32):
        drawn = jax.random.normal(key, (math.prod(shape),), dtype)
        return (std * drawn).reshape(shape)

    return init


class Dense(nn.Module):
    """A linear layer with a bias.

    Attributes:
      features: of the output.
      std: of a normal start with biases at 0; 0 for PyTorch's default.
    """

    features: int
    std: float = 0.0

    @nn.compact
    def __call__(self, inputs):
        fan_in = inputs.shape[-1]
        init = uniform_fan_in(fan_in)
        if self.std:
            kernel = self.param(
                "kernel", flat_normal(self.std), (fan_in, self.features)
            )
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            return inputs @ kernel + bias
        kernel = self.param("kernel", init, (fan_in, self.features))
        bias = self.param("bias", init, (self.features,))
        return inputs @ kernel + bias


class InstanceNorm(nn.Module):
    """Each image's channels to mean 0 and variance 1, then scale and bias.

    Group norm with one channel a group, the norm of the literature's ConvNet
    (Ulyanov et al., arXiv 1607.08022).
    """

    @nn.compact
    def __call__(self, features):
        channels = features.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return instance_norm(features, scale, bias)


def instance_norm(features, scale, bias):
    """``InstanceNorm`` with these parameters."""
    mean = features.mean((1, 2), keepdims=True)
    centred = features - mean
    variance = jnp.square(centred).mean((1, 2), keepdims=True)
    return centred * (scale * lax.rsqrt(variance + NORM_EPSILON)) + bias


class GroupNorm(nn.Module):
    """Each image's groups of channels to mean 0 and variance 1, then affine.

    Four groups, or as many as divide the channels (Wu & He, ECCV 2018).
    """

    @nn.compact
    def __call__(self, features):
        b, h, w, channels = features.shape
        groups = math.gcd(_GROUPS, channels)
        x = features.reshape(b, h, w, groups, channels // groups)
        x = _standardised(x, (1, 2, 4)).reshape(features.shape)
        return _affine(self, x, (channels,))


class LayerNorm(nn.Module):
    """Each image to mean 0 and variance 1, then a scale and bias a value.

    Over all pixels and channels, as the literature's ConvNet has it (Ba et
    al., arXiv 1607.06450).
    """

    @nn.compact
    def __call__(self, features):
        x = _standardised(features, (1, 2, 3))
        return _affine(self, x, features.shape[1:])


class TokenNorm(nn.Module):
    """Each vector of the last axis to mean 0 and variance 1, then affine."""

    @nn.compact
    def __call__(self, tokens):
        return _affine(self, _standardised(tokens, (-1,)), tokens.shape[-1:])


BATCH_DECAY = 0.9
"""Of batch norm's running statistics, PyTorch's."""


class BatchNorm(nn.Module):
    """Each channel of a batch to mean 0 and variance 1, then scale and bias.

    The batch's own statistics, unless running ones are given; those of the
    collection "batch_stats" move where it is mutable. ``ddjax.training`` alone
    does both (Ioffe & Szegedy, ICML 2015).
    """

    @nn.compact
    def __call__(self, features):
        channels = features.shape[-1]
        moves = self.is_mutable_collection("batch_stats")
        given = self.has_variable("batch_stats", "mean")
        mean = features.mean((0, 1, 2))
        variance = jnp.square(features - mean).mean((0, 1, 2))
        if moves or given:
            running_mean = self.variable(
                "batch_stats", "mean", jnp.zeros, channels
            )
            running_variance = self.variable(
                "batch_stats", "variance", jnp.ones, channels
            )
        if moves and given:
            count = features.size // channels
            # Unbiased, as PyTorch has it.
            unbiased = variance * (count / max(1, count - 1))
            for running, found in (
                (running_mean, mean),
                (running_variance, unbiased),
            ):
                running.value += (1 - BATCH_DECAY) * (found - running.value)
        elif given:
            mean, variance = running_mean.value, running_variance.value
        x = (features - mean) * lax.rsqrt(variance + NORM_EPSILON)
        return _affine(self, x, (channels,))


def _standardised(x, axes):
    centred = x - x.mean(axes, keepdims=True)
    variance = jnp.square(centred).mean(axes, keepdims=True)
    return centred * lax.rsqrt(variance + NORM_EPSILON)


def _affine(module, x, shape):
    scale = module.param("scale", nn.initializers.ones, shape)
    return x * scale + module.param("bias", nn.initializers.zeros, shape)


NORMS = {
    "none": None,
    "batch": BatchNorm,
    "layer": LayerNorm,
    "instance": InstanceNorm,
    "group": GroupNorm,
}
"""By the names that networks take; each a module without fields."""


def normalised(features, norm: str, name: str):
    """Features [b h w c] after one of ``NORMS`` of that parameter name."""
    return features if norm == "none" else NORMS[norm](name=name)(features)


def leaky_relu(features):
    """Negative values times 0.01."""
    return nn.leaky_relu(features, 0.01)


ACTIVATIONS = {
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "leaky_relu": leaky_relu,
}


class NormReluPool(nn.Module):
    """Instance norm, ReLU and 2 x 2 means, with the norm's parameters."""

    @nn.compact
    def __call__(self, features):
        channels = features.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        # A last row or column that pooling drops still counts for the norm.
        if features.shape[1] % 2 or features.shape[2] % 2:
            return average_pool(nn.relu(instance_norm(features, scale, bias)))
        return norm_relu_pool(features, scale, bias)


def average_pool(features, size: int = 2):
    """Means of size x size blocks; an odd last row or column is dropped."""
    return _blocks(features, size).mean((2, 4))


def max_pool(features, size: int = 2):
    """The largest of size x size blocks; odd last rows are dropped."""
    return _blocks(features, size).max((2, 4))


def _blocks(features, size):
    b, h, w, c = features.shape
    rows, columns = h // size, w // size
    features = features[:, : rows * size, : columns * size]
    return features.reshape(b, rows, size, columns, size, c)


POOLINGS = {
    "none": lambda features: features,
    "max": max_pool,
    "average": average_pool,
}


def check_size(images, least: int, network: str) -> None:
    """InputError where images [b h w c] have fewer pixels a side."""
    if min(images.shape[1:3]) < least:
        kind = "grey" if images.shape[-1] == 1 else "colour"
        raise InputError(
            f"{network} needs {least} pixels a side of {kind} images; these "
            f"images are {images.shape[1]} x {images.shape[2]}"
        )
