"""Networks by name. Each returns ``(logits, out)`` with named features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ddjax.models import layers
from ddjax.models.alexnet import AlexNet
from ddjax.models.convnet import ConvNet
from ddjax.models.lenet import LeNet
from ddjax.models.mlp import MLP
from ddjax.models.resnet import ResNet18
from ddjax.models.vgg import VGG11
from ddjax.models.vit import ViT
from ddjax.types import InputError, Params

__all__ = [
    "MLP",
    "VGG11",
    "AlexNet",
    "ConvNet",
    "Enlarged",
    "LeNet",
    "ResNet18",
    "ViT",
    "build",
    "fields",
    "has_batch_norm",
    "init_params",
    "names",
]


class _Network(NamedTuple):
    """A name's module, and which of its fields the name decides."""

    module: type[nn.Module]
    fixed: Mapping[str, Any] = MappingProxyType({})


_NETWORKS = {
    "alexnet": _Network(AlexNet),
    "convnet": _Network(ConvNet),
    "lenet": _Network(LeNet),
    "mlp": _Network(MLP),
    "resnet18": _Network(ResNet18),
    "resnet18_bn": _Network(ResNet18, {"norm": "batch"}),
    "vgg11": _Network(VGG11),
    "vit": _Network(ViT),
}

_CHOICES = {
    "norm": layers.NORMS,
    "activation": layers.ACTIVATIONS,
    "pooling": layers.POOLINGS,
}


def names() -> list[str]:
    """The networks that ``build`` knows."""
    return sorted(_NETWORKS)


def fields(name: str) -> list[str]:
    """What can be said of a network beside its number of classes.

    Raises:
      InputError: unknown name.
    """
    if name not in _NETWORKS:
        raise InputError(
            f"unknown network {name!r}: choose one of {', '.join(names())}"
        )
    module, fixed = _NETWORKS[name]
    return [
        field
        for field in module.__dataclass_fields__
        if field not in ("parent", "name", "num_classes", *fixed)
    ]


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
    known = fields(name)
    if num_classes < 2:
        raise InputError(
            f"a network needs 2 classes or more, not {num_classes}"
        )
    for field, value in kwargs.items():
        if field not in known:
            choose = (
                f"choose from {', '.join(known)}" if known else "it has none"
            )
            raise InputError(
                f"network {name!r} has no field {field!r}: {choose}"
            )
        if isinstance(value, int) and value < 1:
            raise InputError(
                f"{field} of network {name!r} must be at least 1, not {value}"
            )
        if field in _CHOICES and value not in _CHOICES[field]:
            raise InputError(
                f"{field} of network {name!r} must be one of "
                f"{', '.join(_CHOICES[field])}, not {value!r}"
            )
    module, fixed = _NETWORKS[name]
    return module(num_classes=num_classes, **fixed, **kwargs)


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a network keeps statistics that only ``ddjax.training`` moves."""
    return getattr(module, "norm", "") == "batch"


class Enlarged(nn.Module):
    """A network that sees its images at another size.

    Interpolated linearly between pixels, as a part of the network: whatever
    is done to images before it is done at their own size.

    Attributes:
      network: from ``build``.
      side: of what it sees, in pixels; the shorter of an oblong image.
    """

    network: nn.Module
    side: int

    @property
    def norm(self) -> str:
        """The network's."""
        return getattr(self.network, "norm", "")

    @nn.compact
    def __call__(self, images):
        """images [b h w c] -> the network's (logits [b k], out)."""
        b, h, w, c = images.shape
        height, width = (
            round(self.side * length / min(h, w)) for length in (h, w)
        )
        return self.network(
            jax.image.resize(images, (b, height, width, c), "linear")
        )


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
