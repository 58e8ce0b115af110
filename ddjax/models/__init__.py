"""Networks by name. Each returns ``(logits, out)`` with named features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ddjax.models.convnet import ConvNet
from ddjax.models.mlp import MLP
from ddjax.models.resnet import ResNet18
from ddjax.types import InputError, Params

__all__ = ["MLP", "ConvNet", "ResNet18", "build", "init_params", "names"]

_NETWORKS: dict[str, type[nn.Module]] = {
    "convnet": ConvNet,
    "mlp": MLP,
    "resnet18": ResNet18,
}


def names() -> list[str]:
    """The networks that ``build`` knows."""
    return sorted(_NETWORKS)


def build(name: str, *, num_classes: int, **kwargs: Any) -> nn.Module:
    """A network, not yet initialised.

    Args:
      name: one of ``names()``.
      num_classes: k, at least 2.
      **kwargs: the network's own fields, such as ``width`` and ``depth``.

    Returns:
      A Flax module; ``module.apply({"params": params}, images[b h w c])``
      gives ``(logits[b k], out)``.

    Raises:
      InputError: unknown name or field, or a number that makes no network.

    >>> build("convnet", num_classes=10, width=8, depth=2).width
    8
    """
    if name not in _NETWORKS:
        raise InputError(
            f"unknown network {name!r}: choose one of {', '.join(names())}"
        )
    if num_classes < 2:
        raise InputError(
            f"a network needs 2 classes or more, not {num_classes}"
        )
    network = _NETWORKS[name]
    fields = [
        field
        for field in network.__dataclass_fields__
        if field not in ("parent", "name", "num_classes")
    ]
    for field, value in kwargs.items():
        if field not in fields:
            raise InputError(
                f"network {name!r} has no field {field!r}: "
                f"choose from {', '.join(fields)}"
            )
        if isinstance(value, int) and value < 1:
            raise InputError(
                f"{field} of network {name!r} must be at least 1, not {value}"
            )
    return network(num_classes=num_classes, **kwargs)


def init_params(
    module: nn.Module, key: jax.Array, image_shape: Sequence[int]
) -> Params:
    """Fresh float32 parameters.

    Args:
      module: from ``build``.
      key: one key.
      image_shape: (h, w, c).

    Returns:
      A plain dict of dicts of arrays.

    Raises:
      InputError: the image is empty, or too small for the network.
    """
    if min(image_shape) < 1:
        raise InputError(f"there are no images of shape {tuple(image_shape)}")
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return module.lazy_init(key, images)["params"]
