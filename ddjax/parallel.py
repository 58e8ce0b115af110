"""Devices: the only file that knows them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ddjax.types import InputError

AXIS = "devices"

__all__ = [
    "AXIS",
    "check_spread",
    "device_count",
    "map_networks",
    "mean_gradient",
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


def device_count() -> int:
    """How many devices work is spread over."""
    return jax.local_device_count()


def check_spread(field: str, count: int) -> None:
    """InputError where so many pieces of work leave devices uneven.

    Args:
      field: that says how many, for the message.
      count: of the pieces.
    """
    if count % device_count():
        raise InputError(
            f"{field} must be a multiple of the {device_count()} devices, not "
            f"{count}"
        )


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


def mean_gradient(
    loss_fn: Callable[..., Any],
    variables: Any,
    groups: Any,
    key: jax.Array,
    *,
    metrics: Sequence[str],
    axis_name: str | None = None,
) -> tuple[Any, dict[str, jax.Array]]:
    """Gradient of the mean loss of several groups, on all devices.

    Group i of all devices' groups draws from ``fold_in(key, i)``, so the
    result does not depend on how they are spread over devices, beyond the
    rounding of their mean. One group's gradient is in memory at a time.

    Args:
      loss_fn: (variables, group, key) -> (loss, {metric: scalar}).
      variables: pytree that the gradient is taken to; the same everywhere.
      groups: pytree whose leaves lead with m, this device's groups.
      key: of the update.
      metrics: the names that ``loss_fn`` gives beside its loss.
      axis_name: of the enclosing pmap or vmap over devices, or None.

    Returns:
      (gradient like variables, metrics and "loss": means over the groups).
    """
    count = jax.tree.leaves(groups)[0].shape[0]
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count

    def add(total, inputs):
        group, index = inputs
        (loss, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            variables, group, jax.random.fold_in(key, index)
        )
        found = (grads, {"loss": loss, **terms})
        return jax.tree.map(jnp.add, total, found), None

    zeros = (
        jax.tree.map(jnp.zeros_like, variables),
        dict.fromkeys(("loss", *metrics), jnp.zeros((), jnp.float32)),
    )
    total, _ = jax.lax.scan(add, zeros, (groups, first + jnp.arange(count)))
    mean = jax.tree.map(lambda leaf: leaf / count, total)
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


def replicate(tree: Any) -> Any:
    """Places arrays on all local devices, as ``over_devices`` returns them.

    A state that is not placed so is compiled for twice: once for the first
    call, once for what comes back from it.
    """
    mesh = jax.make_mesh(
        (device_count(),),
        (AXIS,),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.local_devices()[: device_count()],
    )
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(tree, everywhere)


def shard(data: Any) -> Any:
    """Splits the leading axis m into (devices, m / devices)."""
    devices = device_count()

    def split(leaf):
        return leaf.reshape(devices, leaf.shape[0] // devices, *leaf.shape[1:])

    return jax.tree.map(split, data)
