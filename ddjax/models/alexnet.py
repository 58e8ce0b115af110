"""The AlexNet of the dataset-distillation literature."""

from __future__ import annotations

from flax import linen as nn

from ddjax.models.layers import Conv, Dense, check_size, max_pool

# (channels in units of the width, taps, whether pooled after)
_BLOCKS = (
    (2, 5, True),
    (3, 5, True),
    (4, 3, False),
    (3, 3, False),
    (3, 3, True),
)


class AlexNet(nn.Module):
    """Five convolutions, three max pools and a linear head, without a norm.

    Krizhevsky et al. (NeurIPS 2012) in the literature's form for 32 pixels.
    Grey images get two more pixels of margin, so that 28 count as 32.

    Attributes:
      num_classes: k.
      width: half the channels of the first block.
    """

    num_classes: int
    width: int = 64

    @nn.compact
    def __call__(self, images):
        """images [b h w c] -> (logits [b k], {"block0": [b h' w' 2w], ..}).

        Raises:
          InputError: fewer than 4 pixels a side of grey images, or 8.
        """
        grey = images.shape[-1] == 1
        check_size(images, 4 if grey else 8, "an AlexNet")
        out, x = {}, images
        for block, (times, taps, pools) in enumerate(_BLOCKS):
            margin = taps // 2 + (2 if grey and not block else 0)
            x = Conv(
                times * self.width,
                taps=taps,
                padding=((margin, margin), (margin, margin)),
                name=f"conv{block}",
            )(x)
            x = max_pool(nn.relu(x)) if pools else nn.relu(x)
            out[f"block{block}"] = x
        return Dense(self.num_classes, name="head")(
            x.reshape(x.shape[0], -1)
        ), out
