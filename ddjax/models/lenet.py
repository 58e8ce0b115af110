"""The LeNet of the dataset-distillation literature."""

from __future__ import annotations

from flax import linen as nn

from ddjax.models.layers import Conv, Dense, check_size, max_pool


class LeNet(nn.Module):
    """Two 5x5 convolutions with max pooling, two hidden layers, ReLU.

    LeCun et al. (Proceedings of the IEEE, 1998) as the literature has it: grey
    images get a margin of two pixels, so that 28 pixels count as 32. The first
    hidden layer takes whatever number of positions is left.

    Attributes:
      num_classes: k.
    """

    num_classes: int

    @nn.compact
    def __call__(self, images):
        """images [b h w c] -> (logits [b k], {"block0": .., "hidden1": ..}).

        Raises:
          InputError: fewer than 12 pixels a side of grey images, or 16.
        """
        grey = images.shape[-1] == 1
        check_size(images, 12 if grey else 16, "a LeNet")
        margin = (2, 2) if grey else (0, 0)
        out, x = {}, images
        for block, (features, padding) in enumerate(
            ((6, (margin, margin)), (16, "VALID"))
        ):
            x = Conv(features, taps=5, padding=padding, name=f"conv{block}")(x)
            x = max_pool(nn.relu(x))
            out[f"block{block}"] = x
        x = x.reshape(x.shape[0], -1)
        for layer, features in enumerate((120, 84)):
            x = nn.relu(Dense(features, name=f"dense{layer}")(x))
            out[f"hidden{layer}"] = x[:, None, None, :]
        return Dense(self.num_classes, name="head")(x), out
