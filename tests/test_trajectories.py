"""Teachers: what is stored is what was trained, and damage is told."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ddjax import models, parallel, training, trajectories
from ddjax.data.preprocess import Standardiser
from ddjax.data.rows import Rows
from ddjax.runs import loop
from ddjax.runs import teachers as teachers_run
from ddjax.runs.teachers import record
from ddjax.settings import check_range
from ddjax.training import Recipe, Stream
from ddjax.trajectories import Teachers, sample_segment
from ddjax.types import Batch, InputError

EPOCHS, COUNT = 3, 3
NETWORK = models.build("mlp", num_classes=3, width=4)
RECIPE = Recipe(epochs=EPOCHS, batch_size=5, momentum=0.5)
RATE = 0.1
KEY = jax.random.key(5)
KIND = {"teachers": "of the tests"}


def data(size=12):
    rng = np.random.default_rng(0)
    labels = np.eye(3, dtype=np.float32)[np.arange(size) % 3]
    images = rng.normal(size=(size, 2, 2, 1)) + labels[:, :1, None, None]
    return Batch(np.float32(images), labels)


def make(folder, **changes):
    arguments = {
        "count": COUNT,
        "recipe": RECIPE,
        "learning_rate": RATE,
        "shaped_by": KIND,
    }
    return record(folder, KEY, data(), NETWORK, **(arguments | changes))


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "device_count", lambda: 1)
        yield


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return make(tmp_path_factory.mktemp("teachers"))


@pytest.fixture
def copied(recorded, tmp_path):
    """A folder of teachers that a test may damage."""
    for path in recorded.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def contents(folder):
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name != ".lock"
    }


def in_memory(count=COUNT, recipe=RECIPE):
    keys = jnp.stack([jax.random.fold_in(KEY, i) for i in range(count)])
    batch = Batch(*map(jnp.asarray, data()))
    how = {"recipe": recipe, "learning_rate": RATE}
    carries = [trajectories.begin(keys, (2, 2, 1), NETWORK, **how)]
    for epoch in range(EPOCHS):
        carries.append(
            trajectories.advance(
                carries[-1], keys, epoch, batch, NETWORK, **how
            )
        )
    return [params for params, _ in carries]


def assert_same(found, expected, rtol):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def test_stored_is_what_was_trained(recorded):
    assert (recorded.count, recorded.epochs) == (COUNT, EPOCHS)
    trained = in_memory()
    assert len(trained) == EPOCHS + 1
    for teacher in range(COUNT):
        for epoch in range(EPOCHS + 1):
            expected = jax.tree.map(lambda leaf: leaf[teacher], trained[epoch])
            assert_same(recorded.snapshot(teacher, epoch), expected, 1e-6)
    # Every one of them is another.
    rows = np.concatenate(recorded._rows)
    assert len(np.unique(rows, axis=0)) == COUNT * (EPOCHS + 1)


def test_every_epoch_has_an_order_of_its_own():
    """Epoch by epoch from where the one before it ended, with its own key."""
    recipe = RECIPE._replace(momentum=0.0)
    key, batch = jax.random.fold_in(KEY, 0), Batch(*map(jnp.asarray, data()))
    snapshots = [
        jax.tree.map(lambda leaf: leaf[0], params)
        for params in in_memory(1, recipe)
    ]
    optimizer = training.sgd(recipe, RATE, 1)

    @jax.jit
    def epoch(params, key):
        after, *_ = training.train_epochs(
            training.supervised_loss(
                training.apply_fn_of(NETWORK), recipe.augment
            ),
            optimizer,
            params,
            optimizer.init(params),
            lambda key: batch,
            key[None],
            batch_size=recipe.batch_size,
        )
        return after

    _, order_key = jax.random.split(key)
    for number in range(EPOCHS):
        found = epoch(snapshots[number], jax.random.fold_in(order_key, number))
        assert_same(found, snapshots[number + 1], 1e-6)


def test_bfloat16(recorded, tmp_path):
    narrow = make(tmp_path, dtype="bfloat16")
    for teacher, epoch in ((0, 0), (2, EPOCHS)):
        expected = jax.tree.map(
            lambda leaf: leaf.astype(ml_dtypes.bfloat16).astype(np.float32),
            recorded.snapshot(teacher, epoch),
        )
        assert_same(narrow.snapshot(teacher, epoch), expected, 0)
    assert narrow._rows[0].nbytes * 2 == recorded._rows[0].nbytes


def test_more_teachers_later(recorded, tmp_path, monkeypatch):
    """Only what is missing is trained, and to the same bytes."""
    groups, bars = [], []
    begin, progress = trajectories.begin, loop.progress

    def spy(keys, *args, **kwargs):
        groups.append(len(keys))
        return begin(keys, *args, **kwargs)

    def bar(*args, **kwargs):
        bars.append(progress(*args, **kwargs))
        return bars[-1]

    monkeypatch.setattr(trajectories, "begin", spy)
    monkeypatch.setattr(loop, "progress", bar)
    make(tmp_path, count=2)
    assert groups == [1, 1]
    make(tmp_path)
    assert groups == [1, 1, 1]
    assert [(b.initial, b.n, b.total) for b in bars] == [
        (0, 2 * EPOCHS, 2 * EPOCHS),
        (2 * EPOCHS, COUNT * EPOCHS, COUNT * EPOCHS),
    ]
    make(tmp_path)
    assert groups == [1, 1, 1]
    assert contents(tmp_path) == contents(recorded.folder)
    assert make(tmp_path, count=2).count == 2


def test_kill_in_the_middle(recorded, tmp_path, monkeypatch):
    epochs = []
    advance = trajectories.advance

    def kill(*args, **kwargs):
        epochs.append(0)
        if len(epochs) == EPOCHS + 2:
            raise KeyboardInterrupt
        return advance(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trajectories, "advance", kill)
        make(tmp_path)
    assert set(contents(tmp_path)) == {"manifest.json", "teacher_0000.npy"}
    make(tmp_path)
    assert contents(tmp_path) == contents(recorded.folder)


def test_side_by_side_in_threads(recorded, tmp_path, monkeypatch):
    """Two at once, to the byte: each runs the program of one."""
    monkeypatch.setattr(parallel, "networks_at_once", lambda: 2)
    make(tmp_path)
    assert contents(tmp_path) == contents(recorded.folder)


@pytest.fixture
def accelerator(monkeypatch):
    """Networks side by side under vmap, as on an accelerator."""
    monkeypatch.setattr(parallel, "_in_a_loop", lambda: False)
    for function in (trajectories._epoch, training._advance):
        function.clear_cache()
    yield
    for function in (trajectories._epoch, training._advance):
        function.clear_cache()


def test_side_by_side_under_vmap(recorded, tmp_path, accelerator):
    """Up to rounding."""
    together = make(tmp_path, count=2)
    for teacher in range(2):
        assert_same(
            together.snapshot(teacher, EPOCHS),
            recorded.snapshot(teacher, EPOCHS),
            1e-5,
        )


def test_groups_are_as_large_as_their_snapshots_allow(monkeypatch):
    monkeypatch.setattr(parallel, "side_by_side", lambda most: min(most, 4))
    params = models.init_params(NETWORK, KEY, (2, 2, 1))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
    size = 4 * numbers * (EPOCHS + 1)
    for room, expected in ((size - 1, 1), (3 * size, 3), (9 * size, 4)):
        monkeypatch.setattr(teachers_run, "_GROUP_BYTES", room)
        assert teachers_run._that_fit(NETWORK, data(), EPOCHS) == expected


@pytest.mark.parametrize("devices", [2, 4])
def test_on_several_devices(recorded, tmp_path, monkeypatch, devices):
    """The same files, to the byte: each device trains whole teachers."""
    monkeypatch.setattr(parallel, "device_count", lambda: devices)
    make(tmp_path)
    assert contents(tmp_path) == contents(recorded.folder)


# --- Streams -----------------------------------------------------------------


def stored(folder):
    """Pixels in memory with one-hot labels, and the same from a file."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (12, 2, 2, 1), np.uint8)
    np.save(folder / "images.npy", images)
    labels = np.arange(12) % 3
    return (
        Batch(images, np.eye(3, dtype=np.float32)[labels]),
        Stream(Rows(folder / "images.npy"), labels, 3),
    )


def record_of(folder, source, **changes):
    """Resumed once, on the way."""
    for count in (1, 3):
        teachers = record(
            folder,
            KEY,
            source,
            NETWORK,
            count=count,
            recipe=RECIPE._replace(augment=("flip", "color")),
            learning_rate=RATE,
            preprocessing=Standardiser(jnp.array([0.5]), jnp.array([0.3])),
            shaped_by=KIND,
            **changes,
        )
    return teachers


def test_streamed_teachers(tmp_path, monkeypatch):
    """The same files, byte by byte, at two of three steps a chunk."""
    monkeypatch.setattr(training, "_CHUNK", 2 * 5 * 4)
    folders = tmp_path / "memory", tmp_path / "stream"
    for folder, source in zip(folders, stored(tmp_path)):
        record_of(folder, source)
    assert contents(folders[0]) == contents(folders[1])


def test_streamed_teachers_under_vmap(tmp_path, monkeypatch, request):
    """Each has an order of its own; up to rounding."""
    in_memory, stream = stored(tmp_path)
    alone = record_of(tmp_path / "alone", in_memory)
    request.getfixturevalue("accelerator")
    monkeypatch.setattr(training, "_CHUNK", 2 * 2 * 5 * 4)
    together = record_of(tmp_path / "together", stream, at_once=2)
    for teacher in range(3):
        assert_same(
            together.snapshot(teacher, EPOCHS),
            alone.snapshot(teacher, EPOCHS),
            1e-5,
        )


def test_stream_with_wrong_labels(tmp_path):
    _, stream = stored(tmp_path)
    with pytest.raises(InputError, match=r"0\.\.1"):
        record_of(tmp_path / "teachers", stream._replace(num_classes=2))


def test_reading_maps_the_file(recorded):
    assert all(isinstance(rows, np.memmap) for rows in recorded._rows)
    snapshot = recorded.snapshot(1, 2)
    snapshot["head"]["bias"][:] = 7.0  # the caller's own
    assert (recorded.snapshot(1, 2)["head"]["bias"] != 7.0).all()


# --- Damage ------------------------------------------------------------------


def refuses(folder, said):
    for attempt in (lambda: Teachers(folder), lambda: make(folder)):
        with pytest.raises(InputError, match=said):
            attempt()


def test_truncated_file(copied):
    path = copied / "teacher_0001.npy"
    path.write_bytes(path.read_bytes()[:-8])
    refuses(copied, r"teacher_0001\.npy is truncated or damaged")


def test_flipped_byte(copied):
    path = copied / "teacher_0002.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    refuses(copied, r"teacher_0002\.npy is truncated or damaged")


def test_missing_file_and_its_remedy(recorded, copied):
    name = "teacher_0001.npy"
    (copied / name).unlink()
    with pytest.raises(InputError, match=rf"{name} is missing"):
        Teachers(copied)
    # What the message says to do.
    make(copied)
    assert contents(copied) == contents(recorded.folder)


def test_changed_manifest(copied):
    """It is JSON still, and would make another teacher the first."""
    path = copied / "manifest.json"
    for old, new in (('"1": {', '"0": {'), ('"kernel"', '"bias"')):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        refuses(copied, r"manifest\.json is damaged")
        path.write_text(text)


def test_manifest_of_an_older_version(recorded, copied):
    path = copied / "manifest.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    path.write_text(json.dumps(content))
    assert Teachers(copied).count == recorded.count


@pytest.mark.parametrize(
    "content", [b'{"format": 1, "dt', b"[]", b"{}", b"\xff\xfe", b""]
)
def test_damaged_manifest(copied, content):
    (copied / "manifest.json").write_bytes(content)
    refuses(copied, r"manifest\.json is damaged")


def test_teachers_of_another_kind(copied):
    before = contents(copied)
    for changes in ({"shaped_by": {"other": 1}}, {"dtype": "bfloat16"}):
        with pytest.raises(InputError, match="another kind"):
            make(copied, **changes)
    assert contents(copied) == before


def test_folder_without_teachers(tmp_path, recorded):
    with pytest.raises(InputError, match="no teachers"):
        Teachers(tmp_path)
    with pytest.raises(InputError, match="holds 3 teachers, not 4"):
        Teachers(recorded.folder, 4)
    with pytest.raises(InputError, match="not 0"):
        Teachers(recorded.folder, 0)


def test_diverged_teacher(tmp_path):
    said = "epoch 1 of teachers 0: the largest parameter is (nan|inf)"
    with pytest.raises(InputError, match=said):
        make(tmp_path, learning_rate=1e38)
    assert contents(tmp_path) == {}


# --- Segments ----------------------------------------------------------------


def test_sample(recorded, monkeypatch):
    """Every teacher, every start up to max_start and none beyond; the target
    is the same teacher's, span epochs later."""
    read = []
    snapshot = Teachers.snapshot

    def spy(self, teacher, epoch):
        read.append((int(teacher), int(epoch)))
        return snapshot(self, teacher, epoch)

    monkeypatch.setattr(Teachers, "snapshot", spy)
    for seed in range(60):
        recorded.sample(jax.random.key(seed), max_start=1, span=2)
    starts, targets = read[::2], read[1::2]
    assert set(starts) == {(t, s) for t in range(COUNT) for s in (0, 1)}
    assert targets == [(teacher, start + 2) for teacher, start in starts]


def test_sample_gives_the_snapshots(recorded):
    key = jax.random.key(1)
    segment = recorded.sample(key, max_start=0, span=EPOCHS)
    again = recorded.sample(key, max_start=0, span=EPOCHS)
    matches = [
        teacher
        for teacher in range(COUNT)
        if np.array_equal(
            segment.start["head"]["kernel"],
            recorded.snapshot(teacher, 0)["head"]["kernel"],
        )
    ]
    assert len(matches) == 1
    assert_same(segment.target, recorded.snapshot(matches[0], EPOCHS), 0)
    assert_same(again, segment, 0)


def test_sample_segment():
    trajectory = {"w": np.arange(10.0, dtype=np.float32).reshape(5, 2)}
    before = trajectory["w"].copy()
    draw = jax.jit(
        lambda key: sample_segment(key, trajectory, max_start=2, span=2)
    )
    starts = set()
    for seed in range(30):
        start, target = draw(jax.random.key(seed))
        epoch = int(start["w"][0]) // 2
        np.testing.assert_array_equal(start["w"], before[epoch])
        np.testing.assert_array_equal(target["w"], before[epoch + 2])
        starts.add(epoch)
    assert starts == {0, 1, 2}
    np.testing.assert_array_equal(trajectory["w"], before)


@pytest.mark.parametrize(
    "max_start, span, said",
    [
        (0, 0, "span"),
        (-1, 1, "max_start"),
        (EPOCHS, 1, "beyond"),
        (0, EPOCHS + 1, "beyond"),
    ],
)
def test_ranges(recorded, max_start, span, said):
    trajectory = {"w": jnp.zeros((EPOCHS + 1, 2))}
    for attempt in (
        lambda: check_range(max_start, span, EPOCHS),
        lambda: recorded.sample(KEY, max_start=max_start, span=span),
        lambda: sample_segment(KEY, trajectory, max_start=max_start, span=span),
    ):
        with pytest.raises(InputError, match=said):
            attempt()


def test_whole_range_is_allowed():
    check_range(EPOCHS - 1, 1, EPOCHS)
    check_range(0, EPOCHS, EPOCHS)
