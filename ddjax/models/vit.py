"""A vision transformer of the size called Tiny."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from ddjax.models.layers import Conv, Dense, TokenNorm, flat_normal
from ddjax.types import InputError

_STD = 0.02
_HEAD = 64  # values a head of attention, in all of the family


class Block(nn.Module):
    """Attention and a perceptron, each after a norm and with a way round it.

    Attributes:
      width: values of a token.
    """

    width: int

    @nn.compact
    def __call__(self, tokens):
        """tokens [b n d] -> [b n d]."""
        b, n, _ = tokens.shape
        heads = max(1, self.width // _HEAD)
        x = TokenNorm(name="norm0")(tokens)
        x = Dense(3 * self.width, std=_STD, name="queries_keys_values")(x)
        x = x.reshape(b, n, 3, heads, self.width // heads)
        queries, keys, values = (x[:, :, i] for i in range(3))
        scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys)
        weights = jax.nn.softmax(scores * queries.shape[-1] ** -0.5)
        x = jnp.einsum("bhqk,bkhd->bqhd", weights, values)
        x = Dense(self.width, std=_STD, name="joined")(x.reshape(b, n, -1))
        tokens = tokens + x
        x = TokenNorm(name="norm1")(tokens)
        x = Dense(4 * self.width, std=_STD, name="dense0")(x)
        x = nn.gelu(x, approximate=False)
        return tokens + Dense(self.width, std=_STD, name="dense1")(x)


class ViT(nn.Module):
    """Patches as tokens, a class token, twelve blocks, a linear head.

    Dosovitskiy et al. (ICLR 2021) in the size Tiny (Touvron et al., ICML
    2021), whose patches are 16 pixels of 224; here they are 4, of 32 and of
    every other size, so that a position means as much.

    Attributes:
      num_classes: k.
      width: values of a token; a head of attention has 64 of them.
      blocks: of attention and perceptron.
      patch: side of a patch in pixels.
    """

    num_classes: int
    width: int = 192
    blocks: int = 12
    patch: int = 4

    @nn.compact
    def __call__(self, images):
        """images [b h w c] -> (logits [b k], {"block00": [b h' w' d], ..,
        "token": [b 1 1 d]}), what the head sees last.

        Raises:
          InputError: the patches do not fill the image, or the heads do not
            fill the width.
        """
        b, h, w, _ = images.shape
        if h % self.patch or w % self.patch:
            raise InputError(
                f"a ViT cuts images into patches of {self.patch} x "
                f"{self.patch} pixels, and these images are {h} x {w}"
            )
        if self.width > _HEAD and self.width % (self.width // _HEAD):
            raise InputError(
                f"the width of a ViT must be a multiple of {_HEAD}, the values "
                f"of a head, and not {self.width}"
            )
        x = Conv(
            self.width,
            taps=self.patch,
            stride=self.patch,
            padding="VALID",
            name="patches",
        )(images)
        rows, columns = x.shape[1:3]
        first = self.param("token", flat_normal(_STD), (1, 1, self.width))
        x = jnp.concatenate(
            [
                jnp.broadcast_to(first, (b, 1, self.width)),
                x.reshape(b, rows * columns, self.width),
            ],
            axis=1,
        )
        x += self.param("positions", flat_normal(_STD), (1, *x.shape[1:]))
        out = {}
        for block in range(self.blocks):
            x = Block(self.width, name=f"block{block:02d}")(x)
            patches = x[:, 1:].reshape(b, rows, columns, self.width)
            out[f"block{block:02d}"] = patches
        x = TokenNorm(name="norm")(x[:, 0])
        out["token"] = x[:, None, None, :]
        return Dense(self.num_classes, std=_STD, name="head")(x), out
