"""Devices, and the threads of a CPU: the only file that knows them."""

from __future__ import annotations

import concurrent.futures
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import hosts
from ddjax.types import InputError

AXIS = "devices"

# Each has memory of its own for a step.
_MOST_THREADS = 4
_THREADS = "DDJAX_THREADS"

__all__ = [
    "AXIS",
    "device_count",
    "even",
    "map_networks",
    "mean_gradient",
    "networks_at_once",
    "over_devices",
    "over_processes",
    "own",
    "replicate",
    "shard",
    "side_by_side",
    "spread",
    "spread_networks",
    "that_fit",
]


def networks_at_once() -> int:
    """How many small networks to train side by side on a device.

    On a CPU one a core, up to four, each in a thread, or one where there are
    several processes: the operations of a small network are too short to be
    shared out. Under one vmap their convolutions
    would become grouped ones, eight times slower each. Elsewhere ten, enough to
    fill an accelerator with the literature's ConvNet without holding ten times
    ten activations.

    Raises:
      InputError: the environment's DDJAX_THREADS, which says another number
        for a CPU, is none.
    """
    if not _in_a_loop():
        return 10
    if jax.local_device_count() > 1:
        return 1  # virtual devices, which share the cores
    if os.environ.get(_THREADS):
        return _asked_threads(os.environ[_THREADS])
    if jax.process_count() > 1:
        return 1  # they may share the cores
    return min(_cores(), _MOST_THREADS)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def cores_of_a_network() -> int:
    """Of a CPU, for each network that goes side by side with others.

    The same however many go, so that their number changes no byte.
    """
    cores = _cores()
    return cores // min(cores, _MOST_THREADS)


def _asked_threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(
            f"the environment's {_THREADS} is {text!r}: give the number of "
            "networks to train side by side, at least 1"
        )
    return int(text)


def _in_a_loop() -> bool:
    """Whether networks in one program go one after another."""
    return jax.default_backend() == "cpu"


def map_networks(function: Callable[..., Any], *inputs: Any) -> Any:
    """``function`` of every slice of ``inputs``: one network each.

    A loop inside the computation on a CPU, a vmap elsewhere; works under jit.

    Args:
      function: of one slice of each input.
      *inputs: pytrees whose leaves lead with the number of networks.

    Returns:
      The results, stacked.
    """
    if _in_a_loop():
        return jax.lax.map(lambda slices: function(*slices), inputs)
    return jax.vmap(function)(*inputs)


def side_by_side(count: int | None = None) -> int:
    """How many small networks all devices train at the same time.

    Args:
      count: of those that there are; as many as one likes by default.
    """
    most = networks_at_once() * device_count()
    return most if count is None else min(most, count)


def that_fit(size: int, room: int) -> int:
    """How many networks to train side by side, at least one on every device.

    Args:
      size: bytes that each of them holds.
      room: bytes for all.
    """
    return max(device_count(), side_by_side(room // max(size, 1)))


def device_count() -> int:
    """How many devices work is spread over, of all processes."""
    return hosts.count() * jax.local_device_count()


def spread(count: int) -> int:
    """How many devices so many pieces of work are for.

    No more than take a piece each, and none that would be left without one
    when the others have as many as the first; as many of every process, where
    that leaves some without.

    Args:
      count: of the pieces, at least 1.
    """
    each = -(-count // min(count, device_count()))
    devices = -(-count // each)
    return -(-devices // hosts.count()) * hosts.count()


def even(count: int) -> int:
    """The most devices that so many pieces of work divide evenly among; as
    many of every process.

    Args:
      count: of the pieces, a multiple of the number of processes.
    """
    each, most = hosts.count(), min(count, device_count())
    return max(n for n in range(each, most + 1, each) if count % n == 0)


def over_devices(
    update: Callable[..., Any], devices: int | None = None
) -> Callable[..., Any]:
    """``update(state, data, axis_name=...)`` on several devices at once.

    The state is unstacked, the same on every device; the data's leading axis
    is the devices'. The update must ``pmean`` whatever it returns, or the
    first device's value is taken without a word. Every process calls it, with
    the state and its own part of the data, as ``replicate`` and ``shard`` give
    them.

    Args:
      update: of one device.
      devices: how many of all processes; by default all.
    """
    everywhere = _everywhere(devices)
    if hosts.count() > 1:
        # They get to know each other now: compiling takes one longer than
        # another.
        hosts.barrier()
        greet = jax.pmap(
            lambda one: jax.lax.psum(one, AXIS), AXIS, devices=everywhere
        )
        jax.block_until_ready(greet(np.ones(len(_local(devices)))))
    return jax.pmap(
        functools.partial(update, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        devices=everywhere,
    )


def _local(devices: int | None) -> list[Any]:
    """This process's part of so many."""
    devices = devices or device_count()
    return jax.local_devices()[: devices // hosts.count()]


def _everywhere(devices: int | None) -> list[Any]:
    """As many of every process, process by process."""
    if hosts.count() == 1:
        return _local(devices)
    return [
        device
        for process in range(hosts.count())
        for device in jax.local_devices(process)[: len(_local(devices))]
    ]


def over_processes(function: Callable[..., Any], networks: Any) -> Any:
    """``function(networks)``, each process with a part of them.

    Inside, work is the process's own. What a network becomes must not depend
    on those beside it.

    Args:
      function: of networks; what it returns is led by their number.
      networks: pytree whose leaves lead with the number of networks.

    Returns:
      What ``function`` returns of all networks.
    """
    if hosts.count() == 1:
        return function(networks)
    count = jax.tree.leaves(networks)[0].shape[0]
    each = -(-count // hosts.count())
    # The last is made once more where they do not divide evenly.
    place = np.minimum(np.arange(each) + hosts.index() * each, count - 1)
    with hosts.alone():
        part = function(jax.tree.map(lambda leaf: leaf[place], networks))
    return jax.tree.map(lambda leaf: leaf[:count], hosts.gather(part))


def spread_networks(
    function: Callable[..., Any], networks: Any, *shared: Any, **static: Any
) -> Any:
    """``function(networks, *shared, **static)``, on all devices at once.

    What a network becomes does not depend on those beside it, so the result is
    that of one device.

    Args:
      function: of networks side by side, jitted, whose keywords are static.
      networks: pytree whose leaves lead with the number of networks.
      *shared: by all of them.
      **static: the keywords.

    Returns:
      What ``function`` returns, its leaves led by the number of networks.
    """
    return over_processes(
        lambda part: _spread_networks(function, part, *shared, **static),
        networks,
    )


def _spread_networks(function, networks, *shared, **static):
    """The same on the devices of this process."""
    count = jax.tree.leaves(networks)[0].shape[0]
    devices = spread(count)
    if devices == 1:
        if _in_a_loop():
            return _in_threads(function, networks, shared, static)
        return function(networks, *shared, **static)
    each = -(-count // devices)
    # The last is trained once more where they do not divide evenly.
    place = np.minimum(np.arange(devices * each), count - 1)
    place = place.reshape(devices, each)
    # From one device and to it: what lies on several cannot be cut anew. Keys
    # have to be placed by hand.
    first = jax.local_devices()[0]
    parts = jax.tree.map(lambda x: jax.device_put(x, first)[place], networks)
    parts = jax.device_put(parts, _sharding(devices, AXIS))
    shared = replicate(shared, devices)
    on_all = _on_all(function, devices, tuple(sorted(static.items())))
    both = {"networks": parts, "shared": shared}
    return jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:])[:count],
        jax.device_put(on_all(both), first),
    )


def _in_threads(function, networks, shared, static):
    """One network after another, as many at a time as there are cores.

    All take one program, whatever their number.
    """
    count = jax.tree.leaves(networks)[0].shape[0]
    parts = [_only(networks, i) for i in range(count)]
    # Here, for settings of JAX that the caller has are not a thread's.
    shared = jax.device_put(shared)
    program = function.lower(parts[0], *shared, **static).compile()

    def run(part):
        return jax.block_until_ready(program(part, *shared))

    with concurrent.futures.ThreadPoolExecutor(networks_at_once()) as pool:
        return _joined(list(pool.map(run, parts)))


@jax.jit
def _only(networks, i):
    """One of them, as the only one."""
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, i, 1), networks
    )


@jax.jit
def _joined(parts):
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


@functools.lru_cache(maxsize=64)
def _on_all(function, devices, static):
    """Kept, because every pmap compiles anew."""

    def part(both):
        return function(both["networks"], *both["shared"], **dict(static))

    # A dict, and not arguments: pmap takes the axes of these for those of
    # their leaves where there are as many, some arguments being None.
    return jax.pmap(
        part,
        axis_name=AXIS,
        in_axes=({"networks": 0, "shared": None},),
        devices=_local(devices),
    )


def mean_gradient(
    loss_fn: Callable[..., Any],
    variables: Any,
    groups: Any,
    key: jax.Array,
    *,
    metrics: Sequence[str],
    axis_name: str | None = None,
    total: int | None = None,
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
      total: groups of all devices that count, the first so many, where the
        last are there only to give every device as many; None: all count.

    Returns:
      (gradient like variables, metrics and "loss": means over the groups).
    """
    count = jax.tree.leaves(groups)[0].shape[0]
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count

    def add(sums, inputs):
        group, index = inputs
        (loss, terms), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            variables, group, jax.random.fold_in(key, index)
        )
        found = (grads, {"loss": loss, **terms})
        if total is not None:
            found = jax.tree.map(
                lambda leaf: jnp.where(index < total, leaf, 0), found
            )
        return jax.tree.map(jnp.add, sums, found), None

    zeros = (
        jax.tree.map(jnp.zeros_like, variables),
        dict.fromkeys(("loss", *metrics), jnp.zeros((), jnp.float32)),
    )
    sums, _ = jax.lax.scan(add, zeros, (groups, first + jnp.arange(count)))
    if total is not None and axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
        return jax.tree.map(lambda leaf: leaf / total, sums)
    mean = jax.tree.map(lambda leaf: leaf / (total or count), sums)
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


def replicate(tree: Any, devices: int | None = None) -> Any:
    """Places arrays on several devices, as ``over_devices`` returns them.

    A state that is not placed so is compiled for twice: once for the first
    call, once for what comes back from it.

    Args:
      tree: of arrays.
      devices: how many of all processes; by default all. It lies on those of
        this one.
    """
    return jax.device_put(tree, _sharding(devices))


def _sharding(devices: int | None, *axes: str) -> jax.sharding.Sharding:
    """As pmap has it: by the leading axis, or of the whole on every device."""
    local = _local(devices)
    mesh = jax.make_mesh(
        (len(local),),
        (AXIS,),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=local,
    )
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def shard(data: Any, devices: int | None = None) -> Any:
    """Splits the leading axis m into (devices, m / devices), rounded up.

    Where that does not go evenly the last piece is repeated: the ``total`` of
    ``mean_gradient`` leaves what was added out.

    Args:
      data: pytree whose leaves lead with m.
      devices: how many of all processes; by default all.

    Returns:
      The part of this process's devices.
    """
    devices = devices or device_count()

    def split(leaf):
        each = -(-leaf.shape[0] // devices)
        missing = devices * each - leaf.shape[0]
        if missing:
            last = np.repeat(np.asarray(leaf[-1:]), missing, axis=0)
            leaf = np.concatenate([np.asarray(leaf), last])
        return leaf.reshape(devices, each, *leaf.shape[1:])[own(devices)]

    return jax.tree.map(split, data)


def own(devices: int) -> slice:
    """Which of so many devices, of all processes, are this one's."""
    if hosts.count() == 1:
        return slice(devices)
    here = devices // hosts.count()
    return slice(hosts.index() * here, (hosts.index() + 1) * here)
