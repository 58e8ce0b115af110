"""Files are whole or not there."""

import errno
import hashlib
import json
import os

import pytest

from ddjax import files


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


def test_sha256(path):
    assert files.sha256(path) == hashlib.sha256(b"old").hexdigest()
