"""The Python call: what it makes, goes on with, opens and refuses."""

import json
import shlex
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from small import D2M, IADD, door

import ddjax
from ddjax import api, artifact, parallel
from ddjax.data import preprocess, sources
from ddjax.runs import generate
from ddjax.types import InputError

# Of ml_collections, which loads a config file so.
pytestmark = pytest.mark.filterwarnings(
    "ignore:the load_module:DeprecationWarning"
)
SMALL = IADD | {
    "evaluate.networks": 1,
    "evaluate.looks": 1,
    "evaluate.baselines": "",
}
BARS = {
    "iadd.image_step": 1.0,
    "iadd.learning_rate_step": 1e-9,
    "teacher.batch_size": 8,
}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "device_count", lambda: 1)
        yield


def arrays(count=20):
    """Bright and dark images, as floats, their labels texts."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    images = rng.uniform(0, 0.4, (count, 8, 8)) + 0.5 * labels[:, None, None]
    return images, np.array(["dark", "bright"])[labels]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where everything of this file happens."""
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def run(folder):
    """A run on arrays."""
    return ddjax.distill(
        arrays(), test=arrays(6), root=folder / "runs", **SMALL, **BARS
    )


def test_arrays_from_call_to_images(run, folder):
    assert run.path.parent == folder / "runs"
    assert run.path.name.startswith("iadd-arrays-")
    assert run.images.shape == (2, 8, 8, 1) and run.labels.shape == (2, 2)
    assert run.class_names == ["bright", "dark"]
    assert run.scores == json.loads((run.path / "eval.json").read_text())
    assert len(run.scores["distilled"]["convnet"]["recall"]) == 2
    assert run.report == run.path / "report.html" and run.report.exists()
    np.testing.assert_allclose(
        run.inputs, preprocess.apply(run.preprocessing, run.images), rtol=1e-6
    )
    # All that was given for testing is tested on, and nothing else.
    config = json.loads((run.path / "config.json").read_text())["config"]
    kept = sources.load(
        "npz",
        data_dir=config["data.data_dir"],
        held_out=0.1,
        seed=0,
        cache_dir=folder / "runs" / "data",
    )
    assert len(kept.test.labels) == 6
    images, labels = arrays(6)
    np.testing.assert_array_equal(
        kept.test.images[..., 0], np.rint(255 * images)
    )
    assert [run.class_names[i] for i in kept.test.labels] == labels.tolist()


def test_a_finished_call_opens_what_is_there(run, folder, capsys):
    before = (run.path / "report.html").stat().st_mtime_ns
    again = ddjax.distill(
        arrays(), test=arrays(6), root=folder / "runs", **SMALL, **BARS
    )
    assert again.path == run.path
    assert (run.path / "report.html").stat().st_mtime_ns == before
    np.testing.assert_array_equal(again.images, run.images)


def test_runs_show_themselves(run, folder):
    picture = run.show()
    assert picture.width > 100 and picture.mode == "RGB"
    html = run._repr_html_()
    assert "<img src=" in html
    assert "Distilled images, state selected on held-out images" in html
    assert "biased: chosen on the test set" in html
    assert str(run.path / "report.html") in html
    assert repr(run) == (
        f"<ddjax run '{run.path}': 2 images of 8 x 8 x 1, 2 classes>"
    )
    assert "&lt;ddjax run" in html  # a path could hold anything


def test_a_file_alone_is_opened_too(run, tmp_path):
    path = tmp_path / "sent.npz"
    path.write_bytes((run.path / "distilled.npz").read_bytes())
    found = ddjax.load(path)
    np.testing.assert_array_equal(found.images, run.images)
    assert found.report is None and "page of the run" not in found._repr_html_()


def loaders():
    """The three of artifact's docstring: NumPy's, JAX's, PyTorch's."""
    parts = artifact.__doc__.split("::\n\n")[1:]
    found = [part.partition("\n\n")[0] for part in parts]
    return dict(zip(("numpy", "jax", "torch"), found))


@pytest.mark.parametrize("package", loaders())
def test_three_lines_load_it(run, package, monkeypatch):
    pytest.importorskip(package)
    monkeypatch.chdir(run.path)
    names = {}
    exec(textwrap.dedent(loaders()[package]), names)
    inputs = np.asarray(names["inputs"])
    if package == "torch":
        inputs = inputs.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(inputs, run.inputs, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(names["labels"]), run.labels)
    assert type(names["labels"]).__module__.split(".")[0] in (package, "jaxlib")


def test_a_run_is_exported_and_verified(run, tmp_path):
    out = run.export("npz", str(tmp_path / "out"))
    with np.load(out / "train.npz") as file:
        levels = np.rint(255 * np.clip(run.images, 0, 1))
        np.testing.assert_array_equal(file["train_images"], levels)
    with pytest.raises(InputError, match="no form 'gif'"):
        run.export("gif", tmp_path / "other")
    (verdict,) = run.verify().values()
    agrees = "agrees" if verdict.agrees else "does not agree"
    assert repr(verdict).endswith(f"%: {agrees}>")
    assert verdict.same_data
    recorded = run.scores["distilled"]["convnet"]["accuracies"]
    np.testing.assert_array_equal(verdict.recorded.accuracy, recorded)
    assert len(verdict.found.accuracy) == 2


def test_the_command_makes_the_same_run(run, folder, monkeypatch, capsys):
    """The one that the call wrote down, in another folder."""
    config = json.loads((run.path / "config.json").read_text())
    words = shlex.split(config["command"])
    assert words[:2] == ["python", "experiments/iadd.py"]
    script = door("iadd")
    other = folder / "by-command"
    argv = [
        word.replace("configs/", f"{script.launch.ROOT}/configs/", 1)
        for word in words[1:]
    ]
    monkeypatch.setattr(sys, "argv", [*argv, f"--workdir={other}"])
    assert script.launch.main(script.run, "") == 0, capsys.readouterr().err
    for name in ("distilled.npz", "initial.npz"):
        with np.load(run.path / name) as a, np.load(other / name) as b:
            assert a["images"].tobytes() == b["images"].tobytes()
    assert (run.path / "eval.json").read_bytes() == (
        other / "eval.json"
    ).read_bytes()


def test_calls_and_commands_name_their_folders_alike(
    folder, monkeypatch, tmp_path
):
    """distill(PATH, ipc=2) is iadd.py --config=configs/folder.py:PATH,ipc=2."""
    launch = door("iadd").launch
    found = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(
        api._METHODS, "iadd", lambda *args, **how: found.append(args)
    )
    monkeypatch.setattr(api, "load", lambda folder: folder)
    config = launch.ROOT / "configs" / "folder.py"
    for ipc, argument in ((None, "my/photos"), (2, "my/photos,ipc=2")):
        ddjax.distill("my/photos", ipc=ipc)
        asked = launch.asked(["iadd.py", f"--config={config}:{argument}"])
        assert tuple(found[-1][:3]) == (
            asked.settings,
            asked.workdir,
            asked.shared,
        )


def test_a_call_that_was_stopped_goes_on(folder, monkeypatch):
    from ddjax.runs import scores

    call = {"root": folder / "stopped", **SMALL, **BARS}

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scores, "select", stop)
        ddjax.distill(arrays(), workdir=folder / "stopped" / "run", **call)
    with pytest.raises(InputError, match="is not finished"):
        ddjax.load(folder / "stopped" / "run")
    found = ddjax.distill(arrays(), workdir=folder / "stopped" / "run", **call)
    assert found.images.shape == (2, 8, 8, 1)
    # Without images to test on, a share of the data is for that.
    assert found.scores["full_data"]["convnet"]["mean"] >= 0


def test_labels_are_texts_in_any_form(folder):
    images, labels = arrays()
    expected = api._checked((images, labels), None, None)
    for form in (labels.astype(object), labels.astype("S"), labels.tolist()):
        found = api._checked((images, form), None, None)
        assert api._digest(found) == api._digest(expected)
    named = api._checked((images, labels), None, ["dark", "bright"])
    assert named["train_labels"][:2].tolist() == [0, 1]


def test_what_a_call_asks_for(folder, monkeypatch):
    """Without running it: the settings, the folder, the command."""
    found = []
    for method in ("iadd", "d2m"):
        monkeypatch.setitem(
            api._METHODS, method, lambda *args, **how: found.append(args)
        )
    monkeypatch.setattr(api, "load", lambda folder: folder)
    root = folder / "asked"
    for ipc in (None, 2):
        ddjax.distill(arrays(), ipc=ipc, root=root)
    names = [args[1].name for args in found]
    assert names[0].startswith("iadd-arrays-")
    assert names[1] == f"{names[0]}-ipc-2"
    ddjax.distill("digits", ipc=3, method="d2m", root=root)
    settings, *_, command = found[-1]
    assert settings.d2m.epochs_of == {3: 150} and settings.iadd.ipc == 3
    assert "--config.d2m.ipcs=3" in shlex.split(command)
    ddjax.distill("mnist_corrupted/spatter", root=root)
    assert found[-1][0].data.source == "mnist_corrupted/spatter"
    ddjax.distill("digits", workdir="~/x", root=root)
    assert found[-1][1] == Path("~/x").expanduser()


@pytest.mark.campaign
def test_a_generator_makes_images(folder, tmp_path):
    fields = D2M | {
        "evaluate.networks": 1,
        "evaluate.baselines": "",
        "gan.iterations": 2,
        "gan.looks": 1,
        "d2m.choose": "none",
        "d2m.iterations": 2,
    }
    run = ddjax.distill("digits", method="d2m", root=folder / "runs", **fields)
    assert run.path.name == "d2m-folder-digits"
    # The middle one of d2m.ipcs=1,2.
    assert run.images.shape == (20, 8, 8, 1)
    np.testing.assert_array_equal(run.labels.argmax(-1), np.arange(20) // 2)
    images = run.generate([3, 3, 7], seed=5)
    assert images.shape == (3, 8, 8, 1)
    generate.run(run.path, tmp_path / "made", ipc="2,1", seed=5, classes="3,7")
    made = ddjax.load(tmp_path / "made")
    np.testing.assert_array_equal(images, made.images)
    assert "stored/2/distilled" in run._repr_html_()
    assert "a generator of 8 x 8 x 1, 10 classes" in repr(run)
    for labels in ([10], [-1], [0.5], [[1]], []):
        with pytest.raises(InputError, match="labels must be"):
            run.generate(labels)
    verdicts = run.verify()
    names = [f"convnet {by}" for by in ("stored/1", "stored/2", "stream/1")]
    assert list(verdicts) == names
    for name, verdict in verdicts.items():
        row = name.removeprefix("convnet ") + "/distilled"
        score = run.scores[row]["convnet"]["balanced_accuracy"]
        recorded = score["accuracies"]
        assert verdict.recorded.accuracy.tolist() == recorded
        # Of one recorded network there is no spread.
        assert len(recorded) == 1 and len(verdict.found.accuracy) == 2
        assert verdict.same_data and verdict.low < verdict.high
    with pytest.raises(InputError, match="no score of its own images"):
        made.verify()
    run.export("npz", tmp_path / "shown")
    with pytest.raises(InputError, match="images and no generator"):
        made.generate([1])


@pytest.mark.parametrize(
    "data, how, said",
    [
        ("digits", {"method": "mtt"}, "method must be iadd or d2m"),
        ("digits", {"iadd.ipcc": 3}, "did you mean iadd.ipc"),
        ("digits", {"ipc": 0}, "iadd.ipc must be at least 1"),
        ("no/where", {}, "no/where"),
        ("nowhere.npz", {}, "no file nowhere.npz"),
        ("nowhere", {}, "there is no folder 'nowhere'"),
        (None, {}, "data must be given"),
        ("digits", {"ipc": 2, "iadd.ipc": 2}, "either ipc or iadd.ipc"),
        ("digits", {"iterations": 2}, "did you mean iadd.iterations or gan"),
        ("digits", {"seed": -1}, "seed must lie in"),
        (arrays(), {"class_names": "ab"}, "must be a list of texts"),
        ((arrays()[0], np.eye(2)[np.arange(20) % 2]), {}, r"labels\.argmax"),
        ((np.zeros((4, 8, 8, 4)), np.arange(4) % 2), {}, "transparency"),
        ((np.zeros((4, 3, 8, 8)), np.arange(4) % 2), {}, r"transpose\(0, 2"),
        (
            (np.zeros((4, 8, 8)), np.arange(4)),
            {"class_names": ["a", "b"]},
            "class_names has 2 names",
        ),
        ("digits", {"test": arrays()}, "test and class_names are for"),
        (3, {}, r"or \(images, labels\)"),
        ((np.zeros((4, 8, 8)),), {}, r"or \(images, labels\)"),
        (arrays(), {"test": arrays()[0]}, r"and test \(images, labels\)"),
        (arrays(), {"class_names": ["dark"]}, "'bright' is none of the class"),
        ((np.zeros((4, 8, 8)), np.zeros(4)), {}, "4 integers"),
        ((np.full((4, 8, 8), np.nan), np.arange(4) % 2), {}, "NaN"),
        (([[1], [1, 2]], [0, 1]), {}, "train images must be one array"),
    ],
)
def test_refusals(tmp_path, monkeypatch, data, how, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said) as error:
        ddjax.distill(data, **how)
    assert "\n" not in str(error.value)
    # Nothing of a refused call stays.
    assert not list(tmp_path.glob("runs/*/*.npz"))
    assert not list(tmp_path.glob("runs/*/config.json"))


def test_nothing_to_open(tmp_path):
    with pytest.raises(InputError, match="there is no run"):
        ddjax.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no run"):
        ddjax.load(tmp_path)
    (tmp_path / "bad.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="damaged"):
        ddjax.load(tmp_path / "bad.npz")


def test_minutes_leave_alone_what_is_given(monkeypatch, tmp_path):
    found = {}
    monkeypatch.setitem(
        api._METHODS,
        "iadd",
        lambda *args, **how: found.update(how, command=args[3]),
    )
    monkeypatch.setattr(api, "load", lambda folder: folder)
    fields = {"minutes": 3, "model.width": 8}
    folder = api.distill("digits", ipc=2, root=tmp_path, **fields)
    # As the command has it.
    assert folder.name == "iadd-folder-digits-ipc-2-minutes-3"
    assert "folder.py:digits,ipc=2,minutes=3 " in found["command"]
    assert found["fixed"] == ("model.width",)
    monkeypatch.setitem(
        api._METHODS,
        "d2m",
        lambda *args, **how: found.update(how, settings=args[0]),
    )
    # The command names them, too.
    api.distill("digits", ipc=3, method="d2m", minutes=3, root=tmp_path)
    assert found["fixed"] == ("d2m.ipcs", "d2m.epochs")
    assert not found["plan_only"]
    # What is planned is what the same call then makes.
    asked = dict(found)
    ddjax.plan("digits", ipc=3, method="d2m", minutes=3, root=tmp_path)
    assert found == asked | {"plan_only": True}
