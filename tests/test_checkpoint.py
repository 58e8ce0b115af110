"""Checkpoints: all of a state comes back, or the one before, or a word."""

import errno
import resource
import shutil

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddjax.checkpoint import Checkpoints
from ddjax.types import InputError


@flax.struct.dataclass
class State:
    step: jax.Array
    key: jax.Array
    images: jax.Array
    importance: object
    opt_state: object


def state(step):
    images = jnp.arange(4000, dtype=jnp.float32) / 7 + step
    return State(
        jnp.int32(step),
        jax.random.key(step),
        images,
        None,
        optax.sgd(0.1, 0.5).init({"images": images * 2}),
    )


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A folder that three states were saved in."""
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest() is None
    for step in (10, 20, 30):
        checkpoints.save(step, state(step))
        assert checkpoints.latest() == step
    checkpoints.close()
    return folder


@pytest.fixture
def folder(three, tmp_path):
    return shutil.copytree(three, tmp_path / "copy")


def steps(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def truncate(folder):
    """Cuts every file below in half."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def restore(folder):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(state(0))
    finally:
        checkpoints.close()


def test_round_trip(folder):
    """Typed key, None, the optimiser's named tuples; the two latest stay."""
    step, found = restore(folder)
    assert step == 30
    assert_same(found, state(30))
    assert isinstance(found.opt_state[0], optax.TraceState)
    assert steps(folder) == [20, 30]
    draw = jax.random.uniform(found.key)
    assert draw == jax.random.uniform(jax.random.key(30))


def test_empty(tmp_path):
    assert restore(tmp_path) is None


def test_newest_is_damaged(folder, caplog):
    truncate(folder / "30")
    step, found = restore(folder)
    assert step == 20
    assert_same(found, state(20))
    assert any("30" in record.message for record in caplog.records)
    # Gone, so that the run can write it again.
    assert steps(folder) == [20]
    checkpoints = Checkpoints(folder)
    checkpoints.save(30, state(31))
    checkpoints.close()
    assert_same(restore(folder)[1], state(31))


def test_both_are_damaged(folder):
    for step in (20, 30):
        truncate(folder / str(step))
    with pytest.raises(InputError, match="can be read"):
        restore(folder)
    # Nothing is thrown away that somebody may still mend.
    assert steps(folder) == [20, 30]


def test_one_bit(folder, caplog):
    """In the values themselves, which storage has no checksum of."""
    path = max((folder / "30").rglob("d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    step, found = restore(folder)
    assert step == 20
    assert_same(found, state(20))
    assert any("30" in record.message for record in caplog.records)


def test_of_an_older_version(folder):
    """Or killed before its checksums were there."""
    (folder / "30" / "checksums.json").unlink()
    step, found = restore(folder)
    assert step == 30
    assert_same(found, state(30))


def test_lines_of_the_metrics_are_remembered(folder):
    checkpoints = Checkpoints(folder)
    assert checkpoints.rows(30) == 0
    checkpoints.save(40, state(40), 7)
    assert checkpoints.rows(40) == 7
    checkpoints.close()


def test_leftover_of_a_kill(folder):
    shutil.copytree(folder / "30", folder / "40.orbax-checkpoint-tmp")
    step, _ = restore(folder)
    assert step == 30


def test_full_disk(folder, monkeypatch):
    checkpoints = Checkpoints(folder)

    def full(*_, **__):
        raise ValueError("RESOURCE: write failed: No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(OSError) as caught:
        checkpoints.save(40, state(40))
    checkpoints.close()
    assert caught.value.errno == errno.ENOSPC
    assert str(folder) in caught.value.filename


def test_no_room_is_told_before_anything_is_written(folder, monkeypatch):
    needed = sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state(40))
    )
    checkpoints = Checkpoints(folder)
    for room, fits in ((needed, False), (needed + (1 << 20), True)):
        usage = shutil._ntuple_diskusage(1 << 30, 0, room)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        if fits:
            checkpoints.save(40, state(40))
            continue
        with pytest.raises(OSError) as caught:
            checkpoints.save(40, state(40))
        assert caught.value.errno == errno.ENOSPC
        assert steps(folder) == [20, 30]
    checkpoints.close()
    assert 40 in steps(folder)


def test_what_a_disk_refuses(folder):
    """A write that the system cuts, not one that a test says is cut."""
    checkpoints = Checkpoints(folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            checkpoints.save(40, state(40))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        checkpoints.close()
    assert caught.value.errno == errno.EFBIG
    assert_same(restore(folder)[1], state(30))


def test_other_errors_pass(folder, monkeypatch):
    checkpoints = Checkpoints(folder)

    def wrong(*_, **__):
        raise ValueError("something else")

    monkeypatch.setattr(checkpoints._manager, "save", wrong)
    with pytest.raises(ValueError, match="something else"):
        checkpoints.save(40, state(40))
    checkpoints.close()
