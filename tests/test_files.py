"""Files are whole or not there."""

import contextlib
import errno
import hashlib
import json
import os
import pickle
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ddjax import files
from ddjax.types import InputError


@pytest.fixture
def path(tmp_path):
    (tmp_path / "kept.txt").write_text("old")
    return tmp_path / "kept.txt"


def only_the_old_is_there(path):
    return path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_new_takes_the_place_of_the_old(path):
    with files.atomic_write(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_writer_that_raises(path):
    with (
        pytest.raises(RuntimeError, match="stop"),
        files.atomic_write(path, "w") as file,
    ):
        file.write("half")
        raise RuntimeError("stop")
    assert only_the_old_is_there(path)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk(path, monkeypatch, step):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with (
        pytest.raises(OSError) as caught,
        files.atomic_write(path, "w") as file,
    ):
        file.write("new")
    assert caught.value.errno == errno.ENOSPC
    assert only_the_old_is_there(path)


def test_data_are_on_the_disk_before_the_name(path, monkeypatch):
    calls = []
    for step in ("fsync", "replace"):
        real = getattr(os, step)
        monkeypatch.setattr(
            os,
            step,
            lambda *a, step=step, real=real: (calls.append(step), real(*a)),
        )
    with files.atomic_write(path, "w") as file:
        file.write("new")
    assert calls == ["fsync", "replace"]


def test_json(path):
    files.write_json(path, {"a": [1, None]})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1, None]}


def test_sealed_json(path):
    files.write_json(path, files.sealed({"b": (1, 2), "a": {"0": None}}))
    assert files.read_json(path) == {"b": [1, 2], "a": {"0": None}}
    text = path.read_text()
    for old, new in (("1", "3"), ('"a"', '"c"'), ("checksum", "checksun")):
        path.write_text(text.replace(old, new, 1))
        if old == "checksum":  # as of an older version, with a field more
            assert files.read_json(path)["b"] == [1, 2]
            continue
        with pytest.raises(files.DamagedFile, match="has changed"):
            files.read_json(path)
    path.write_text('{"a": 1}')
    assert files.read_json(path) == {"a": 1}
    for content in ("[]", "{", "[" * 100_000, "\x00"):
        path.write_text(content)
        with pytest.raises(files.DamagedFile):
            files.read_json(path)


def test_one_waits_for_the_other(tmp_path):
    said, done = [], []

    def work():
        with files.alone(tmp_path / "new", "works", said.append):
            done.append("second")

    with files.alone(tmp_path / "new", "works", said.append):
        thread = threading.Thread(target=work)
        thread.start()
        while not said:
            time.sleep(0.01)
        done.append("first")
    thread.join()
    assert done == ["first", "second"]
    assert said == [
        f"another process works in {tmp_path / 'new'}: waiting for it"
    ]


def test_a_folder_that_can_only_be_read_is_not_waited_for(
    tmp_path, monkeypatch
):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.filelock.FileLock, "acquire", refuse)
    with files.alone(tmp_path, "works", pytest.fail):
        pass


def test_sha256(path):
    assert files.sha256(path) == hashlib.sha256(b"old").hexdigest()


# --- Arrays ------------------------------------------------------------------


def test_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", some=np.arange(3), text=np.array("é"))
    found = files.read_npz(tmp_path / "a.npz")
    assert sorted(found) == ["some", "text"]
    np.testing.assert_array_equal(found["some"], np.arange(3))
    assert str(found["text"]) == "é"


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def objects_in_npz(path, trap):
    # The harmless one first: it must not be needed to refuse the file.
    np.savez(path, fine=np.zeros(2), bad=np.array([trap], object))


def objects_in_npy(path, trap):
    with open(path, "wb") as file:  # np.save would add a suffix
        np.save(file, np.array([trap], object))


def bare_pickle(path, trap):
    path.write_bytes(pickle.dumps(trap))


@pytest.mark.parametrize("write", [objects_in_npz, objects_in_npy, bare_pickle])
def test_pickles_are_refused_unopened(tmp_path, write):
    path, trace = tmp_path / "a.npz", tmp_path / "opened"
    write(path, Trap(trace))
    with pytest.raises(files.DamagedFile):
        files.read_npz(path)
    assert not trace.exists()
    # The trap is one: whoever lets pickles in springs it.
    with contextlib.suppress(Exception):
        np.load(path, allow_pickle=True)["bad"]
    assert trace.exists()


def test_what_members_declare_is_checked_before_it_is_taken(
    tmp_path, monkeypatch
):
    path = tmp_path / "file.npz"

    def write(name, content):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)

    def header(shape):
        text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
        text = text.ljust(117) + "\n"
        return b"\x93NUMPY\x01\x00\x76\x00" + text.encode()

    write("a.npy", header((3,)) + b"abc")
    np.testing.assert_array_equal(files.read_npz(path)["a"], list(b"abc"))
    for name, content, said in (
        ("a.npy", header((10**12,)) + b"abc", "declares 1000000000000 bytes"),
        ("a.npy", header((2,)) + b"abc", "declares 2 bytes and holds 3"),
        ("a.txt", b"no array at all", "magic string"),
    ):
        write(name, content)
        with pytest.raises(files.DamagedFile, match=said):
            files.read_npz(path)
    np.savez_compressed(path, a=np.zeros(1000, np.uint8))
    assert files.read_npz(path)["a"].size == 1000
    monkeypatch.setattr(files, "memory", lambda: 999)
    with pytest.raises(files.DamagedFile, match="1000 bytes"):
        files.read_npz(path)


# Folders ---------------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_there_when_it_is_whole(tmp_path, there):
    out = tmp_path / "deep" / "out"
    if there:
        out.mkdir(parents=True)
    with files.atomic_folder(out) as folder:
        (folder / "a").write_text("a")
        assert not (out / "a").exists()
    assert [path.name for path in out.iterdir()] == ["a"]
    assert list(out.parent.iterdir()) == [out]


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), files.atomic_folder(tmp_path / "out") as made:
        (made / "a").write_text("a")
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_no_folder_is_overwritten(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("a")
    (tmp_path / "file").write_text("b")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("full", "file", "link"):
        with (
            pytest.raises(InputError, match="nothing is overwritten"),
            files.atomic_folder(tmp_path / name),
        ):
            raise AssertionError
    with (
        pytest.raises(InputError, match="nothing is overwritten"),
        files.atomic_folder(Path(".")),
    ):
        raise AssertionError
    assert (tmp_path / "full" / "a").read_text() == "a"
    assert len(list(tmp_path.iterdir())) == 3
