"""The ResNet-18 of the dataset-distillation literature."""

from __future__ import annotations

from flax import linen as nn

from ddjax.models.layers import Conv, Dense, normalised
from ddjax.types import InputError

# PyTorch's. XLA's SAME pads an even image for stride 2 at the end alone, which
# shifts every strided layer by one pixel.
_PADDING = ((1, 1), (1, 1))


class Block(nn.Module):
    """Two 3x3 convolutions and a way round them.

    Attributes:
      width: channels of both.
      stride: of the first, and of the way round.
      norm: after every convolution.
    """

    width: int
    stride: int
    norm: str

    @nn.compact
    def __call__(self, images):
        """images [b h w c] -> [b h' w' width]."""
        x = images
        for layer, stride in enumerate((self.stride, 1)):
            x = nn.relu(x) if layer else x
            x = Conv(
                self.width,
                stride=stride,
                padding=_PADDING,
                use_bias=False,
                name=f"conv{layer}",
            )(x)
            x = normalised(x, self.norm, f"norm{layer}")
        if self.stride > 1 or images.shape[-1] != self.width:
            images = Conv(
                self.width,
                taps=1,
                stride=self.stride,
                padding="VALID",
                use_bias=False,
                name="shortcut_conv",
            )(images)
            images = normalised(images, self.norm, "shortcut_norm")
        return nn.relu(x + images)


class ResNet18(nn.Module):
    """A 3x3 stem without pooling, four stages of two blocks, a linear head.

    He et al. (CVPR 2016) in its form for small images, by default with
    instance norm for batch norm, and the mean over all pixels before the head.
    Stages after the first double the channels and halve the image, as long as
    2 pixels a side are left: instance norm makes a single pixel 0 whatever it
    was, so that an image of 8 px, halved three times, would leave a network
    that gives every image the same logits. From 9 px on nothing differs from
    the literature's; parameters are the same at every size.

    Attributes:
      num_classes: k.
      width: channels of the first stage.
      norm: none, batch, layer, instance or group.
    """

    num_classes: int
    width: int = 64
    norm: str = "instance"

    @nn.compact
    def __call__(self, images):
        """images [b h w c] -> (logits [b k], {"stage0": [b h w width] ..}).

        Raises:
          InputError: the image is a single pixel high or wide.
        """
        if min(images.shape[1:3]) < 2:
            raise InputError(
                "a ResNet-18 needs 2 pixels a side, or instance norm leaves "
                f"nothing of an image; these images are {images.shape[1]} x "
                f"{images.shape[2]}"
            )
        x = Conv(
            self.width, padding=_PADDING, use_bias=False, name="stem_conv"
        )(images)
        x = nn.relu(normalised(x, self.norm, "stem_norm"))
        out = {}
        for stage in range(4):
            width = self.width * 2**stage
            # 3 pixels become 2, as the padding has it.
            stride = 2 if stage and min(x.shape[1:3]) > 2 else 1
            x = Block(width, stride, self.norm, name=f"stage{stage}_block0")(x)
            x = Block(width, 1, self.norm, name=f"stage{stage}_block1")(x)
            out[f"stage{stage}"] = x
        return Dense(self.num_classes, name="head")(x.mean((1, 2))), out
