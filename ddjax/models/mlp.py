"""A multi-layer perceptron, the literature's smallest network."""

from __future__ import annotations

from flax import linen as nn

from ddjax.models.layers import Dense


class MLP(nn.Module):
    """Two hidden layers with ReLU.

    Attributes:
      num_classes: k.
      width: units of each hidden layer.
    """

    num_classes: int
    width: int = 128

    @nn.compact
    def __call__(self, images):
        """images [b h w c] -> (logits [b k], {"hidden0": [b 1 1 d], ..})."""
        out, x = {}, images.reshape(images.shape[0], -1)
        for layer in range(2):
            x = nn.relu(Dense(self.width, name=f"dense{layer}")(x))
            out[f"hidden{layer}"] = x[:, None, None, :]
        return Dense(self.num_classes, name="head")(x), out
