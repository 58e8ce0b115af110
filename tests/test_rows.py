"""Images in a file: the same as in memory, in bounded memory, or refused."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ddjax.data import preprocess, rows, sources
from ddjax.data.rows import Rows, read_ahead
from ddjax.types import InputError

SHAPE = (23, 4, 3, 2)


def pixels(shape=SHAPE):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.fixture
def path(tmp_path):
    np.save(tmp_path / "images.npy", pixels())
    return tmp_path / "images.npy"


def sparse(path, shape):
    """A file of zeros that takes no room on the disk."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_2_0(file, header)
        file.truncate(file.tell() + int(np.prod(shape)))


def all_kinds_of_reading(images):
    """Every way of indexing, beside NumPy's own."""
    expected = pixels()
    assert images.shape == expected.shape and len(images) == len(expected)
    assert (images.dtype, images.ndim) == (np.uint8, 4)
    assert images.nbytes == expected.nbytes
    for index in (
        5,
        -1,
        np.int32(7),
        slice(None),
        slice(3, 9),
        slice(-4, None),
        slice(20, 2, -3),
        slice(9, 9),
        [],
        [4],
        np.array([[8, 3, 8], [-1, 4, 5]]),
        np.arange(23)[::-1],
        np.uint8([22, 0]),
        np.random.default_rng(1).integers(-23, 23, 200),
    ):
        found = images[index]
        assert found.dtype == np.uint8 and found.flags.writeable
        np.testing.assert_array_equal(found, expected[index])
    np.testing.assert_array_equal(np.asarray(images), expected)
    assert np.asarray(images, np.float32).dtype == np.float32
    with pytest.raises(ValueError, match="uncopied"):
        np.asarray(images, copy=False)


def test_reads_what_numpy_reads(path):
    all_kinds_of_reading(Rows(path))
    all_kinds_of_reading(Rows(str(path)))


def test_windows_smaller_than_a_read(path, monkeypatch):
    """Runs that are cut, at one image and at three a window."""
    for window in (1, 3 * 24):
        monkeypatch.setattr(rows, "_WINDOW", window)
        all_kinds_of_reading(Rows(path))


def test_without_the_calls_of_linux(path, monkeypatch):
    for name in ("preadv", "posix_fadvise"):
        monkeypatch.delattr(os, name, raising=False)
    all_kinds_of_reading(Rows(path))


def test_reads_that_come_in_pieces(path, monkeypatch):
    """The system may give fewer bytes than were asked for."""
    if not hasattr(os, "preadv"):
        pytest.skip("no preadv here")
    whole = os.preadv
    monkeypatch.setattr(
        os,
        "preadv",
        lambda fd, buffers, at: whole(fd, [buffers[0][:7]], at),
    )
    all_kinds_of_reading(Rows(path))


def test_take_composes_and_reads_nothing(path, monkeypatch):
    whole, expected = Rows(path), pixels()
    read = rows._File.read
    monkeypatch.setattr(rows._File, "read", None)
    some = whole.take([9, 2, 2, -1, 14])
    fewer = some.take(slice(None, None, 2)).take([1, 0])
    early = whole.take(slice(2, 20, 3)).take([4, 1])
    assert some.shape == (5, *SHAPE[1:]) and some.nbytes == 5 * 24
    monkeypatch.setattr(rows._File, "read", read)
    np.testing.assert_array_equal(some[:], expected[[9, 2, 2, 22, 14]])
    np.testing.assert_array_equal(fewer[:], expected[[2, 9]])
    np.testing.assert_array_equal(early[:], expected[[14, 5]])
    np.testing.assert_array_equal(Rows(path, [3, 1])[:], expected[[3, 1]])
    with pytest.raises(IndexError, match="of 5 images"):
        some[5]


def test_read_images_are_the_callers_own(path):
    images = Rows(path)
    images[3][:] = 0
    images[:][:] = 0
    np.testing.assert_array_equal(images[:], pixels())


@pytest.mark.parametrize(
    "index", [23, -24, [0, 23], 1.0, [True] * 23, None, ..., (0, 1, 2.5)]
)
def test_bad_indices(path, index):
    with pytest.raises(IndexError):
        Rows(path)[index]


def test_many_threads(path, monkeypatch):
    def check():
        images, expected = Rows(path), pixels()
        draws = np.random.default_rng(2).integers(0, 23, (40, 50))
        with ThreadPoolExecutor(8) as pool:
            for found, index in zip(pool.map(images.__getitem__, draws), draws):
                np.testing.assert_array_equal(found, expected[index])

    check()
    monkeypatch.delattr(os, "preadv", raising=False)
    check()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_bounded(tmp_path):
    def resident():
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(
            int(line.split()[1]) << 10
            for line in lines
            if line.startswith(("RssFile", "RssAnon"))
        )

    sparse(tmp_path / "large.npy", (2048, 128, 256, 3))  # 200 MB
    images = Rows(tmp_path / "large.npy")
    images[:64]
    before = resident()
    order = np.random.default_rng(0).permutation(len(images))
    for chosen in order.reshape(-1, 64):
        assert not images[chosen].any()
    assert resident() - before < 40 << 20


# --- What is refused ---------------------------------------------------------


def refuses(path, said):
    with pytest.raises(InputError, match=said) as error:
        Rows(path)
    assert str(path) in str(error.value)


def test_short_file(path):
    path.write_bytes(path.read_bytes()[:-3])
    refuses(path, "3 bytes shorter than its header says")


def test_damaged_header(path):
    content = path.read_bytes()
    for begin, end in ((0, 4), (6, 8), (8, 10), (20, 60)):
        damaged = bytearray(content)
        damaged[begin:end] = b"\x07" * (end - begin)
        path.write_bytes(damaged)
        refuses(path, "header is damaged")
    for size in (0, 5, 9, 50):
        path.write_bytes(content[:size])
        refuses(path, "header is damaged")


@pytest.mark.parametrize(
    "array, said",
    [
        (np.zeros((2, 3, 3, 1), np.float32), "holds float32"),
        (np.zeros((2, 3, 3), np.uint8), r"shape \(2, 3, 3\)"),
        (np.zeros((0, 3, 3, 1), np.uint8), r"shape \(0, 3, 3, 1\)"),
        (np.asfortranarray(pixels()), "Fortran"),
    ],
)
def test_other_arrays(tmp_path, array, said):
    np.save(tmp_path / "other.npy", array)
    refuses(tmp_path / "other.npy", said)


def test_other_files(tmp_path):
    refuses(tmp_path / "none.npy", "No such file")
    refuses(tmp_path, "directory")
    np.savez(tmp_path / "images.npz", images=pixels())
    refuses(tmp_path / "images.npz", "no .npy file")


def test_file_that_shrinks(path):
    images = Rows(path)
    os.truncate(path, path.stat().st_size - 30)
    np.testing.assert_array_equal(images[:20], pixels()[:20])
    with pytest.raises(InputError, match=r"images\.npy has become shorter"):
        images[:]


# --- Beside the rest of the data ---------------------------------------------


def test_standardiser_of_a_file(path):
    found = preprocess.fit("standardise", Rows(path))
    for a, b in zip(found, preprocess.fit("standardise", pixels())):
        np.testing.assert_array_equal(a, b)


def test_held_out_part_of_a_file_stays_there(path):
    import jax

    labels = np.arange(23, dtype=np.int32) % 2
    in_memory = sources.Dataset(pixels(), labels, ("a", "b"))
    in_file = in_memory._replace(images=Rows(path))
    key = jax.random.key(0)
    for found, expected in zip(
        sources.split_held_out(in_file, 0.2, key),
        sources.split_held_out(in_memory, 0.2, key),
    ):
        assert isinstance(found.images, Rows)
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.labels, expected.labels)


# --- Reading ahead -----------------------------------------------------------


def test_read_ahead():
    assert list(read_ahead(lambda part: part * 10, range(4))) == [
        (0, 0),
        (1, 10),
        (2, 20),
        (3, 30),
    ]
    assert list(read_ahead(lambda part: part, [])) == []


def test_read_ahead_is_one_part_ahead():
    started = [threading.Event() for _ in range(4)]

    def read(part):
        started[part].set()
        return part

    for part, _ in read_ahead(read, range(3)):
        # The next one is on its way, and the one after it is not.
        assert part == 2 or started[part + 1].wait(10)
        assert not started[min(part + 2, 3)].is_set()


def test_read_ahead_passes_errors_on():
    def read(part):
        if part == 1:
            raise InputError("no such part")
        return part

    found = read_ahead(read, range(3))
    assert next(found) == (0, 0)
    with pytest.raises(InputError, match="no such part"):
        next(found)
