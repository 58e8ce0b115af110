"""The layers that the networks share."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from ddjax.fused import NORM_EPSILON, norm_relu_pool
from ddjax.ops import conv2d


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


class Dense(nn.Module):
    """A linear layer with a bias."""

    features: int

    @nn.compact
    def __call__(self, inputs):
        fan_in = inputs.shape[-1]
        init = uniform_fan_in(fan_in)
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
    b, h, w, c = features.shape
    rows, columns = h // size, w // size
    features = features[:, : rows * size, : columns * size]
    blocks = features.reshape(b, rows, size, columns, size, c)
    return blocks.mean((2, 4))
