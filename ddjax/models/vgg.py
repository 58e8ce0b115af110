"""The VGG-11 of the dataset-distillation literature."""

from __future__ import annotations

from flax import linen as nn

from ddjax.models.layers import Conv, Dense, check_size, max_pool, normalised

# Channels of each block's convolutions, in units of the width.
_BLOCKS = ((1,), (2,), (4, 4), (8, 8), (8, 8))


class VGG11(nn.Module):
    """Eight 3x3 convolutions with a norm and ReLU, five max pools, a head.

    Simonyan & Zisserman (ICLR 2015), configuration A, with the literature's
    instance norm and one linear layer at the end. Grey images get two more
    pixels of margin, so that 28 count as 32. Of fewer, the last instance norm
    would see a single pixel and leave nothing of it.

    Attributes:
      num_classes: k.
      width: channels of the first block.
      norm: none, batch, layer, instance or group.
    """

    num_classes: int
    width: int = 64
    norm: str = "instance"

    @nn.compact
    def __call__(self, images):
        """images [b h w c] -> (logits [b k], {"block0": [b h' w' w], ..}).

        Raises:
          InputError: fewer than 28 pixels a side of grey images, or 32.
        """
        grey = images.shape[-1] == 1
        check_size(images, 28 if grey else 32, "a VGG-11")
        out, x = {}, images
        layer = 0
        for block, widths in enumerate(_BLOCKS):
            for times in widths:
                margin = 3 if grey and not layer else 1
                x = Conv(
                    times * self.width,
                    padding=((margin, margin), (margin, margin)),
                    idle_bias=self.norm == "instance",
                    name=f"conv{layer}",
                )(x)
                x = nn.relu(normalised(x, self.norm, f"norm{layer}"))
                layer += 1
            x = max_pool(x)
            out[f"block{block}"] = x
        return Dense(self.num_classes, name="head")(
            x.reshape(x.shape[0], -1)
        ), out
