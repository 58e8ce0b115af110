"""Devices: the only file that knows them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

AXIS = "devices"

__all__ = [
    "AXIS",
    "map_networks",
    "networks_at_once",
    "over_devices",
    "replicate",
    "shard",
]


def networks_at_once() -> int:
    """How many small networks to train side by side on this backend.

    One on a CPU, where the convolutions of several would become grouped ones,
    eight times slower each; ten elsewhere, enough to fill an accelerator with
    the literature's ConvNet without holding ten times ten activations.
    """
    return 1 if jax.default_backend() == "cpu" else 10


def map_networks(function: Callable[..., Any], *inputs: Any) -> Any:
    """``function`` of every slice of ``inputs``: one network each.

    A loop inside the computation on a CPU, a vmap elsewhere; works under jit.

    Args:
      function: of one slice of each input.
      *inputs: pytrees whose leaves lead with the number of networks.

    Returns:
      The results, stacked.
    """
    if networks_at_once() == 1:
        return jax.lax.map(lambda slices: function(*slices), inputs)
    return jax.vmap(function)(*inputs)


def over_devices(update: Callable[..., Any]) -> Callable[..., Any]:
    """``update(state, data, axis_name=...)`` on all local devices at once.

    The state is unstacked, the same on every device; the data's leading axis
    is the devices'. The update must ``pmean`` whatever it returns, or the
    first device's value is taken without a word.
    """
    return jax.pmap(
        functools.partial(update, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
    )


def replicate(tree: Any) -> Any:
    """Places arrays on all local devices, as ``over_devices`` returns them.

    A state that is not placed so is compiled for twice: once for the first
    call, once for what comes back from it.
    """
    mesh = jax.make_mesh(
        (jax.local_device_count(),),
        (AXIS,),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.local_devices(),
    )
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(tree, everywhere)


def shard(data: Any) -> Any:
    """Splits the leading axis m into (devices, m / devices)."""
    devices = jax.local_device_count()

    def split(leaf):
        return leaf.reshape(devices, leaf.shape[0] // devices, *leaf.shape[1:])

    return jax.tree.map(split, data)
