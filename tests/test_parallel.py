"""Work is spread over devices in the order it came in."""

import jax
import numpy as np

from ddjax import parallel


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
