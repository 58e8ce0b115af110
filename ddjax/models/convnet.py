"""The ConvNet of the dataset-distillation literature."""

from __future__ import annotations

from flax import linen as nn

from ddjax.models.layers import (
    ACTIVATIONS,
    POOLINGS,
    Conv,
    Dense,
    NormReluPool,
    normalised,
)
from ddjax.types import InputError


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, norm, activation and 2x2 pool.

    Depth 3 at 32 px, 4 at 64 and 5 at 128, always width 128, in the
    literature (Gidaris & Komodakis, CVPR 2018; Zhao et al., ICLR 2021).

    Attributes:
      num_classes: k.
      width: channels of every block.
      depth: number of blocks; each halves the image, where it pools.
      norm: none, batch, layer, instance or group.
      activation: relu, sigmoid or leaky_relu.
      pooling: none, max or average.
    """

    num_classes: int
    width: int = 128
    depth: int = 3
    norm: str = "instance"
    activation: str = "relu"
    pooling: str = "average"

    @nn.compact
    def __call__(self, images):
        """images [b h w c] -> (logits [b k], {"block0": [b h' w' width] ..}).

        Raises:
          InputError: fewer than one pixel would be left.
        """
        pools = self.pooling != "none"
        if pools and min(images.shape[1:3]) < 2**self.depth:
            raise InputError(
                f"a ConvNet of depth {self.depth} halves the image "
                f"{self.depth} times and needs {2**self.depth} pixels a side; "
                f"these images are {images.shape[1]} x {images.shape[2]}"
            )
        kind = self.norm, self.activation, self.pooling
        out, x = {}, images
        for block in range(self.depth):
            x = Conv(
                self.width,
                idle_bias=self.norm == "instance",
                name=f"conv{block}",
            )(x)
            if kind == ("instance", "relu", "average"):
                x = NormReluPool(name=f"norm{block}")(x)
            else:
                x = normalised(x, self.norm, f"norm{block}")
                x = POOLINGS[self.pooling](ACTIVATIONS[self.activation](x))
            out[f"block{block}"] = x
        logits = Dense(self.num_classes, name="head")(x.reshape(x.shape[0], -1))
        return logits, out
