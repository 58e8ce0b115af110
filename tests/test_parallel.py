"""Work is spread over devices in the order it came in."""

import functools
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import hosts, parallel
from ddjax.types import InputError


def test_shard_keeps_the_order():
    assert jax.local_device_count() == 4
    found = parallel.shard(
        {"labels": np.arange(8), "images": np.arange(24).reshape(8, 3)}
    )
    # Device after device, each with the next two: what an index that counts
    # on from the device's first one relies on.
    np.testing.assert_array_equal(
        found["labels"], [[0, 1], [2, 3], [4, 5], [6, 7]]
    )
    np.testing.assert_array_equal(
        found["images"], np.arange(24).reshape(4, 2, 3)
    )


def test_results_come_back_in_the_order_of_the_devices():
    """What each device gets is the slice of its number."""
    placed = jax.pmap(
        lambda part: (jax.lax.axis_index(parallel.AXIS), part),
        axis_name=parallel.AXIS,
    )
    numbers, parts = placed(parallel.shard(np.arange(8)))
    np.testing.assert_array_equal(parts // 2, np.stack([numbers] * 2, 1))


@pytest.mark.parametrize(
    "count, devices, expected, even",
    [
        (1, 4, 1, 1),
        (3, 4, 3, 3),
        (4, 4, 4, 4),
        (5, 4, 3, 1),  # two, two and one
        (6, 4, 3, 3),
        (9, 4, 3, 3),
        (10, 4, 4, 2),
        (3, 2, 2, 1),
        (50, 8, 8, 5),
    ],
)
def test_spread(count, devices, expected, even, monkeypatch):
    monkeypatch.setattr(parallel, "device_count", lambda: devices)
    assert parallel.spread(count) == expected
    assert parallel.even(count) == even
    shape = parallel.shard(np.arange(count), expected).shape
    assert shape == (expected, -(-count // expected))


@pytest.mark.parametrize(
    "processes, devices, count, expected, even",
    [
        (2, 2, 10, 2, 2),
        (2, 4, 10, 4, 2),
        (2, 4, 5, 4, None),  # of two, two, one and none
        (2, 8, 12, 6, 6),
        (4, 8, 12, 8, 4),
        (3, 6, 3, 3, 3),
    ],
)
def test_processes_have_as_many_devices(
    processes, devices, count, expected, even, monkeypatch
):
    monkeypatch.setattr(parallel, "device_count", lambda: devices)
    monkeypatch.setattr(hosts, "_processes", processes)
    assert parallel.spread(count) == expected
    if even:
        assert parallel.even(count) == even
    parts = []
    for process in range(processes):
        monkeypatch.setattr(hosts, "_process", process)
        parts.append(parallel.shard(np.arange(count), expected))
        with hosts.alone():
            assert parallel.own(2) == slice(2)
    assert {len(part) for part in parts} == {expected // processes}
    whole = np.concatenate(parts).reshape(-1)
    np.testing.assert_array_equal(
        whole, np.minimum(np.arange(len(whole)), count - 1)
    )


def loss(variables, group, key):
    noise = jax.random.normal(key, variables.shape)
    gap = variables * group - noise
    return jnp.sum(gap**2), {"first": gap[0]}


@pytest.mark.parametrize("count", range(1, 10))
def test_any_number_of_pieces_on_any_number_of_devices(count):
    """The mean over all of them, whoever has them, up to the
    rounding of float32 sums in another order."""
    rng = np.random.default_rng(count)
    variables = jnp.float32(rng.normal(size=3))
    pieces = np.float32(rng.normal(size=(count, 3)))
    key = jax.random.key(0)
    mean = functools.partial(
        parallel.mean_gradient, loss, metrics=("first",), key=key
    )
    grads, metrics = mean(variables, pieces)
    alone = [
        jax.value_and_grad(loss, has_aux=True)(
            variables, piece, jax.random.fold_in(key, i)
        )
        for i, piece in enumerate(pieces)
    ]
    np.testing.assert_allclose(
        grads, np.mean([grad for _, grad in alone], 0), rtol=1e-5, atol=1e-6
    )
    for devices in range(1, min(count, 4) + 1):
        total = count if count % devices else None
        spread = parallel.over_devices(
            lambda variables, pieces, axis_name, total=total: mean(
                variables, pieces, axis_name=axis_name, total=total
            ),
            devices,
        )
        found, told = spread(
            parallel.replicate(variables, devices),
            parallel.shard(pieces, devices),
        )
        np.testing.assert_allclose(found, grads, rtol=1e-5, atol=1e-6)
        for name in ("loss", "first"):
            assert float(told[name]) == pytest.approx(
                float(metrics[name]), rel=1e-5
            )


@functools.partial(jax.jit, static_argnames="factor")
def walk(inputs, offset, *, factor):
    """A walk for each key, which no other network has a part in."""
    start, keys = inputs

    def one(start, key):
        return {"end": start + factor * jax.random.normal(key, ()) + offset}

    return parallel.map_networks(one, start, keys)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_networks_are_the_same_on_any_devices(count, monkeypatch):
    keys = jax.random.split(jax.random.key(0), count)
    start = np.arange(count, dtype=np.float32)
    expected = walk((start, keys), jnp.float32(0.5), factor=3.0)["end"]
    assert expected.shape == (count,)
    for devices in (1, 2, 3, 4):
        monkeypatch.setattr(parallel, "device_count", lambda n=devices: n)
        found = parallel.spread_networks(
            walk, (start, keys), jnp.float32(0.5), factor=3.0
        )["end"]
        np.testing.assert_array_equal(found, expected)


@pytest.fixture
def one_device(monkeypatch):
    """A CPU of two cores that is one device."""
    monkeypatch.setattr(parallel, "device_count", lambda: 1)
    monkeypatch.setattr(parallel, "networks_at_once", lambda: 2)


def test_networks_train_at_the_same_time_in_threads(one_device):
    met = threading.Barrier(2)

    class Program:
        """What ``jax.jit`` returns, as far as it is used."""

        def lower(self, part, shared):
            return self

        def compile(self):
            return self

        def __call__(self, part, shared):
            met.wait(timeout=60)  # of two who never meet the first gives up
            return part * shared

    found = parallel.spread_networks(Program(), jnp.arange(6), jnp.int32(3))
    np.testing.assert_array_equal(found, [0, 3, 6, 9, 12, 15])


def test_networks_in_threads_share_a_program(one_device):
    traced = []

    @functools.partial(jax.jit, static_argnames=("power",))
    def function(networks, shared, *, power):
        traced.append(networks.shape)
        return parallel.map_networks(
            lambda one: (one @ shared) ** power, networks
        )

    shared = jnp.arange(12.0).reshape(3, 4)
    for count in (1, 2, 5):
        networks = jax.random.normal(jax.random.key(count), (count, 2, 3))
        found = parallel.spread_networks(function, networks, shared, power=2)
        np.testing.assert_allclose(
            found, (networks @ shared) ** 2, rtol=1e-5, atol=1e-6
        )
    assert traced == [(1, 2, 3)]


def test_threads_have_the_settings_of_who_calls(one_device):
    @jax.jit
    def function(networks, shared):
        return parallel.map_networks(lambda one: one + shared / 3, networks)

    with jax.enable_x64(True):
        found = parallel.spread_networks(
            function, np.zeros((3, 2)), np.ones(2, np.int64)
        )
    np.testing.assert_array_equal(found, np.full((3, 2), 1 / 3))


def test_an_error_in_a_thread_is_raised(one_device):
    class Program:
        def lower(self, part):
            return self

        def compile(self):
            return self

        def __call__(self, part):
            raise InputError("a network is too large")

    with pytest.raises(InputError, match="too large"):
        parallel.spread_networks(Program(), jnp.arange(3))


@pytest.mark.parametrize("cores, expected", [(1, 1), (2, 2), (16, 4)])
def test_as_many_networks_as_cores(cores, expected, monkeypatch):
    monkeypatch.delenv("DDJAX_THREADS", raising=False)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(
        os, "sched_getaffinity", lambda _: set(range(cores)), raising=False
    )
    assert parallel.networks_at_once() == expected
    assert parallel.side_by_side(3) == min(expected, 3)
    monkeypatch.setenv("DDJAX_THREADS", "3")
    assert parallel.networks_at_once() == 3
    monkeypatch.setenv("DDJAX_THREADS", "many")
    with pytest.raises(InputError, match="DDJAX_THREADS is 'many'"):
        parallel.networks_at_once()
    # Virtual devices have the cores already.
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    assert parallel.networks_at_once() == 1


def test_arguments_that_are_none_leave_axes_alone():
    """With as many arrays as there are arguments, of which some are None."""

    @jax.jit
    def function(networks, shared, factor, other):
        assert shared is None and other is None
        return parallel.map_networks(lambda a, b: (a + b) * factor, *networks)

    networks = jnp.arange(6.0).reshape(3, 2), jnp.ones((3, 2)), None
    found = parallel.spread_networks(
        function, networks[:2], None, jnp.float32(2), None
    )
    np.testing.assert_array_equal(found, (networks[0] + 1) * 2)
