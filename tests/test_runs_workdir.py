"""A run's folder: who holds it, and what is left of a run that did not."""

import json
from errno import EACCES, EIO, ENOSPC

import numpy as np
import pytest

from ddjax import files
from ddjax.data.sources import Dataset, Splits
from ddjax.runs import workdir
from ddjax.settings import Settings
from ddjax.types import InputError

SETTINGS = Settings()


def splits(value=0):
    images = np.full((2, 2, 2, 1), value, np.uint8)
    part = Dataset(images, np.arange(2, dtype=np.int32), ("a", "b"))
    return Splits(part, part, part)


def claim(folder, settings=SETTINGS, method="iadd", data=None, inside=None):
    if workdir.is_complete(settings, folder, method):
        return "complete"
    with workdir.claimed(
        settings, folder, method, data or splits(), "python x.py"
    ):
        if inside:
            inside()
    return "run"


def checkpoint(folder, step=3):
    (folder / "checkpoints" / str(step)).mkdir(parents=True)


def stop():
    raise InputError("update 6: stopped")


def test_what_is_written_down(tmp_path):
    claim(tmp_path / "run")
    found = json.loads((tmp_path / "run" / "config.json").read_text())
    assert found["config"]["iadd.ipc"] == 1
    assert found["config"]["iadd.learning_rate_bounds"] == [1e-6, 1.0]
    assert not any(f.startswith(("gan.", "d2m.")) for f in found["config"])
    assert found["command"] == "python x.py"
    claim(tmp_path / "other", method="d2m")
    found = json.loads((tmp_path / "other" / "config.json").read_text())
    assert "gan.width" in found["config"] and "d2m.rate" in found["config"]


def test_a_run_that_stops_early_keeps_nothing(tmp_path):
    folder = tmp_path / "run"

    def begun():
        (folder / "looks").mkdir()
        (folder / "metrics.jsonl").write_text("{}")
        stop()

    with pytest.raises(InputError, match="stopped"):
        claim(folder, inside=begun)
    assert not folder.exists()
    # What a user keeps there stays.
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="stopped"):
        claim(folder, inside=begun)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert claim(folder, SETTINGS.changed({"iadd.ipc": 2})) == "run"


def test_a_run_with_a_checkpoint_holds_its_folder(tmp_path):
    folder = tmp_path / "run"

    def begun():
        checkpoint(folder)
        stop()

    with pytest.raises(InputError, match="stopped"):
        claim(folder, inside=begun)
    before = (folder / "config.json").read_bytes()
    said = "iadd.ipc is 1 there and 2 here.*name another --workdir"
    with pytest.raises(InputError, match=said):
        claim(folder, SETTINGS.changed({"iadd.ipc": 2}))
    with pytest.raises(InputError, match="holds a run on other images"):
        claim(folder, data=splits(1))
    assert (folder / "config.json").read_bytes() == before
    assert claim(folder) == "run"
    # Another method's fields do not matter, its folder does.
    assert claim(folder, SETTINGS.changed({"d2m.rate": 1.0})) == "run"


def test_a_killed_run_without_a_checkpoint_holds_nothing(tmp_path):
    folder = tmp_path / "run"
    claim(folder)  # and no more: as a kill leaves it
    (folder / "metrics.jsonl").write_text("{}")
    (folder / "looks").mkdir()
    (folder / "looks" / "0000000.npz").write_bytes(b"")
    (folder / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)
    assert claim(folder, SETTINGS.changed({"iadd.ipc": 2})) == "run"
    assert [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "name", ["config.json", "checkpoints/best.pt", "generator/net.py"]
)
def test_what_is_not_of_a_run_is_never_touched(tmp_path, name):
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    said = f"{name.split('/')[0]} is not of a run: name another"
    with pytest.raises(InputError, match=said):
        claim(tmp_path / "mine")
    assert path.read_text() == "{}"
    assert not (tmp_path / "mine" / ".lock").exists()


def test_images_of_a_generator_are_not_overwritten(tmp_path):
    (tmp_path / "distilled.npz").write_bytes(b"images")
    with pytest.raises(InputError, match="damaged or not of a run"):
        claim(tmp_path)
    assert (tmp_path / "distilled.npz").read_bytes() == b"images"


def test_one_process_at_a_time(tmp_path):
    folder = tmp_path / "run"

    def second():
        with pytest.raises(InputError, match="another process works in"):
            claim(folder)
        assert (folder / "config.json").exists()

    assert claim(folder, inside=second) == "run"
    assert not (folder / ".lock").exists()


def test_finished_runs(tmp_path):
    folder = tmp_path / "run"
    claim(folder, method="d2m")
    checkpoint(folder)
    (folder / "report.html").touch()
    assert claim(folder, method="d2m") == "complete"
    with pytest.raises(InputError, match="holds a run of D2M"):
        claim(folder)
    claim(tmp_path / "other")
    checkpoint(tmp_path / "other")
    with pytest.raises(InputError, match="holds a run of IADD"):
        claim(tmp_path / "other", method="d2m")


def test_the_same_images_may_have_moved(tmp_path):
    folder = tmp_path / "run"
    claim(folder, SETTINGS.changed({"data.data_dir": "photos"}))
    checkpoint(folder)
    moved = SETTINGS.changed({"data.data_dir": "/elsewhere/photos"})
    assert claim(folder, moved) == "run"
    with pytest.raises(InputError, match="on other images"):
        claim(folder, moved, data=splits(1))


def test_a_field_that_an_older_version_did_not_have_was_at_its_default(
    tmp_path,
):
    folder = tmp_path / "run"
    claim(folder)
    checkpoint(folder)
    path = folder / "config.json"
    found = files.read_json(path)
    del found["config"]["iadd.ipc"]
    path.write_text(json.dumps(found))
    assert claim(folder) == "run"
    path.write_text(json.dumps(found))
    with pytest.raises(InputError, match=r"iadd\.ipc is 1 there and 2 here"):
        claim(folder, SETTINGS.changed({"iadd.ipc": 2}))


def test_a_plan_of_an_older_version_is_found(tmp_path):
    folder = tmp_path / "run"
    asked = SETTINGS.changed({"minutes": 3.0})
    claim(folder, asked, "d2m")
    path = folder / "config.json"
    found = files.read_json(path)
    described = dict(found["config"])
    del described["d2m.pairing"]
    found["plan"] = {"asked": described, "fields": {"d2m.iterations": 5}}
    path.write_text(json.dumps(found))
    assert workdir.planned(asked, folder) == {"d2m.iterations": 5}
    other = asked.changed({"d2m.pairing": "nearest"})
    assert workdir.planned(other, folder) is None


def test_a_folder_whose_images_are_gone_is_named(tmp_path):
    """Their side is then another, and with it the config."""
    folder = tmp_path / "run"
    own = {"data.source": "folder", "data.data_dir": "photos"}
    claim(folder, Settings.of(own | {"data.size": 28}))
    (folder / "report.html").touch()
    with pytest.raises(InputError, match=r"28 there.* images in photos"):
        claim(folder, Settings.of(own | {"data.size": 64}))
    with pytest.raises(InputError, match=r"1 there.*another --workdir$"):
        claim(folder, Settings.of(own | {"data.size": 28, "iadd.ipc": 2}))


def test_a_damaged_config_of_a_held_folder_is_told(tmp_path):
    folder = tmp_path / "run"
    claim(folder)
    checkpoint(folder)
    for content in ("{cut", "[]", "{}", '{"config": 3}'):
        (folder / "config.json").write_text(content)
        with pytest.raises(InputError, match=r"config\.json is damaged"):
            claim(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        claim(folder)


def test_what_a_disk_refuses():
    for code, said in (
        (ENOSPC, "the disk is full .here.: free some space"),
        (EACCES, "cannot use here: no; name another folder"),
    ):
        with pytest.raises(InputError, match=said), workdir.refusals():
            raise OSError(code, "no", "here")
    with pytest.raises(OSError, match="broken"), workdir.refusals():
        raise OSError(EIO, "broken")


@pytest.mark.parametrize(
    "argument, name",
    [
        ("", "iadd-folder"),
        ("photos/,ipc=10", "iadd-folder-photos-ipc-10"),
        ("../my pictures", "iadd-folder-my-pictures"),
    ],
)
def test_names_of_folders(argument, name):
    assert workdir.name_of("iadd", "folder", argument) == name
