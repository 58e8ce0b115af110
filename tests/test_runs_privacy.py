"""A privacy card where the answers are known, what is kept, and refusals."""

import json

import browser
import numpy as np
import pytest
from small import IADD, door, refused

from ddjax import artifact, parallel, privacy
from ddjax.data import preprocess
from ddjax.data.rows import Rows
from ddjax.pages import report
from ddjax.runs import membership, prepare, workdir
from ddjax.runs import privacy as card
from ddjax.settings import Settings
from ddjax.types import InputError

NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "device_count", lambda: 1)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Noise with random labels, which a network can only know by heart."""
    root = tmp_path_factory.mktemp("privacy")
    rng = np.random.default_rng(0)
    arrays = {"class_names": np.array(NAMES)}
    for part, count in (("train", 180), ("test", 90)):
        arrays[f"{part}_images"] = rng.integers(
            0, 256, (count, 8, 8, 1), np.uint8
        )
        arrays[f"{part}_labels"] = np.arange(count) % 3
    np.savez(root / "noise.npz", **arrays)
    return root


@pytest.fixture(scope="module")
def settings(root):
    return Settings.of(
        IADD
        | {
            "data.source": "npz",
            "data.data_dir": str(root / "noise.npz"),
            "data.held_out": 0.15,
            "model.name": "mlp",
            "model.width": 64,
            "evaluate.real_learning_rate": 0.1,
            "privacy.networks": 2,
            "privacy.shadow_networks": 4,
            "privacy.epochs": 40,
            "privacy.full_epochs": 60,
            "privacy.audited": 40,
        }
    )


@pytest.fixture(scope="module")
def splits(settings, root):
    return prepare.load(settings.data, 0, root / "data")[0]


def saved(root, splits, name="file", each=12, **change):
    """The first images of each class as a distilled file."""
    labels = splits.train.labels
    chosen = np.concatenate(
        [np.flatnonzero(labels == k)[:each] for k in range(3)]
    )
    images = np.float32(splits.train.images[chosen] / 255)
    found = artifact.Artifact(
        images,
        np.eye(3, dtype=np.float32)[labels[chosen]],
        0.1,
        preprocess.fit_standardise(splits.train.images),
        {"class_names": NAMES, "method": "<b>"},
    )._replace(**change)
    (root / name).mkdir(exist_ok=True)
    artifact.save(root / name / "distilled.npz", found)
    return chosen, images


def run(root, settings, name="file", out="card"):
    card.run(
        settings, root / name, root / out, workdir.Shared.below(root), "again"
    )
    return json.loads((root / out / "privacy.json").read_text())


@pytest.fixture(scope="module")
def content(root, settings, splits):
    """Of a file of which half are real images, and the rest other noise."""
    chosen, images = saved(root, splits)
    np.savez(root / "file" / "initial.npz", images=images)
    moved = images.copy()
    rng = np.random.default_rng(1)
    moved[::2] = rng.uniform(-0.5, 1.5, moved[::2].shape)
    saved(root, splits, images=np.float32(moved))
    return run(root, settings), chosen, moved


def row(content, trained_on, members, attack):
    (found,) = (
        row
        for row in content["membership"]
        if (row["trained_on"], row["members"], row["attack"])
        == (trained_on, members, attack)
    )
    return found


def test_neighbours(content, splits, root):
    content, chosen, moved = content
    flat = splits.train.images.reshape(len(splits.train.labels), -1) / 255
    clipped = np.clip(moved, 0, 1).reshape(len(moved), -1)
    apart = np.square(clipped[:, None] - flat).mean(-1) ** 0.5
    held_out = splits.held_out.images.reshape(-1, 64) / 255
    strange = (np.square(held_out[:, None] - flat).mean(-1) ** 0.5).min(1)
    np.testing.assert_allclose(
        sorted(content["strangers"]["pixels"]), np.sort(strange)
    )
    for i, found in enumerate(content["neighbours"]):
        near = found["pixels"]
        assert near["index"] == apart[i].argmin()
        assert near["distance"] == pytest.approx(apart[i].min(), abs=1e-6)
        share = np.mean(strange <= apart[i].min())
        assert near["strangers_as_near"] == pytest.approx(share)
        assert near["flagged"] == (share < 0.05)
        assert found["initial"]["index"] == chosen[i]
        if i % 2:  # a copy
            assert near["index"] == chosen[i] and near["flagged"]
            assert found["features"]["index"] == chosen[i]
            assert found["features"]["flagged"]
            assert found["initial"]["distance"] < 1e-6
        else:
            assert found["initial"]["distance"] > 0.2
    with np.load(root / "card" / "neighbours.npz") as file:
        np.testing.assert_array_equal(
            file["pixels"][1], splits.train.images[chosen[1]]
        )
        assert file["distilled"].dtype == np.uint8


def test_attacks_where_the_answer_is_known(content):
    """Networks know what they saw by heart, and nothing of the rest."""
    content = content[0]
    assert content["real"] == "initial"
    for trained_on, members, attack, count in (
        ("full_data", "training", "loss", 40),
        ("full_data", "training", "likelihood_ratio", 40),
        ("real", "own", "loss", 36),
        ("real", "own", "likelihood_ratio", 36),
    ):
        found = row(content, trained_on, members, attack)
        assert found["images"] == [count, count]
        assert found["auc"]["mean"] > 0.95, found
        assert found["balanced_accuracy"]["mean"] > 0.85
    for attack in ("loss", "offline_ratio"):
        for trained_on, members in (
            ("real", "unseen"),
            ("distilled", "training"),
        ):
            found = row(content, trained_on, members, attack)
            for name in ("auc", "balanced_accuracy"):
                told = found[name]
                # Of eight intervals of 95%: all, at 99.8%.
                low = told["mean"] - 1.6 * (told["mean"] - told["low"])
                high = told["mean"] + 1.6 * (told["high"] - told["mean"])
                assert low < 0.5 < high, found
    # Half of the file are the images themselves.
    for attack in ("loss", "likelihood_ratio"):
        found = row(content, "distilled", "initial", attack)
        assert found["auc"]["low"] > 0.5
    assert "differentially private" in content["findings"][-1]["shows"]
    told = [found["shows"] for found in content["findings"]]
    assert "The networks give members away." in told
    assert any("was not seen to do better" in text for text in told)


@pytest.mark.parametrize("in_memory", [4.0, 0.0])
def test_shadow_networks_see_half(content, settings, splits, root, in_memory):
    """Of full_data, as many images as it has, with half of each side."""
    settings = settings.changed({"data.in_memory_gb": in_memory})
    found = artifact.load(root / "file" / "distilled.npz")
    task = prepare.task(settings.data, settings.model, 0, root / "data")
    subject = membership.draw(settings, found, task, None)
    assert subject.initial is None and len(subject.own) == 36
    assert np.bincount(splits.train.labels[subject.own]).tolist() == [12] * 3
    np.testing.assert_array_equal(
        splits.train.labels[subject.own], splits.test.labels[subject.twins]
    )
    assert not set(subject.members) & set(subject.own)
    assert not set(subject.others) & set(subject.twins)
    streams = []

    def train(key, params, stream, rate, **how):
        streams.append(stream)

    answers = membership.Answers(subject, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(membership.training, "train_streamed", train)
        for kind in ("full_data", "shadow_full_data", "shadow_full_data"):
            answers.training(kind, len(streams) // 2)[1]()
    count = len(splits.train.labels)
    whole, first, second = streams
    np.testing.assert_array_equal(
        whole.images[np.arange(count)], splits.train.images
    )
    inside = answers.inside("shadow_full_data")
    asked = answers.images[:80]
    assert isinstance(task.splits.train.images, Rows) == (not in_memory)
    np.testing.assert_allclose(
        np.concatenate(list(membership.pixels(task.splits.train.images))),
        splits.train.images.reshape(count, -1) / 255,
    )
    for number, stream in ((0, first), (1, second)):
        assert len(stream.images) == len(stream.labels) == count
        images = stream.images[np.arange(count)]
        seen = {image.tobytes() for image in images}
        assert len(seen) == count
        told = [image.tobytes() in seen for image in asked]
        np.testing.assert_array_equal(told, inside[number])
        by_image = dict(zip((i.tobytes() for i in images), stream.labels))
        for image, label in zip(asked[told], answers.labels[:80][told]):
            assert by_image[image.tobytes()] == label
    # Read through any shape of indices.
    assert first.images[np.zeros((2, 3), int)].shape == (2, 3, 8, 8, 1)


def test_cells_are_kept(content, root, settings, monkeypatch):
    calls = []
    real = membership.training.train

    def spy(key, params, sample_fn, rate, **how):
        calls.append((sample_fn(key), float(rate), how["recipe"]))
        return real(key, params, sample_fn, rate, **how)

    monkeypatch.setattr(card.page, "write_page", lambda folder: folder)
    monkeypatch.setattr(membership.training, "train", spy)
    monkeypatch.setattr(membership.training, "train_streamed", None)
    assert run(root, settings) == content[0] and calls == []
    (path,) = (root / "card" / "cells").glob("distilled-1-*.json")
    path.write_text(path.read_text().replace("0", "1", 1))
    assert run(root, settings) == content[0]
    # The file's own images, labels, preprocessing and rate.
    ((batch, rate, recipe),) = calls
    found = artifact.load(root / "file" / "distilled.npz")
    mean, std = found.preprocessing
    np.testing.assert_allclose(
        batch.images, (content[2] - mean) / std, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(batch.labels, found.labels)
    assert (rate, recipe.epochs) == (pytest.approx(0.1), 40)
    # Another number of epochs is another network.
    with pytest.raises(TypeError):
        run(root, settings.changed({"privacy.full_epochs": 61}))


@browser.needed
def test_the_page_in_a_browser(root, content, tmp_path):
    (text,) = browser.texts(tmp_path, report.write_page(root / "card"))
    assert "Does not show" in text and "flagged" in text


def test_page(content, root):
    path = report.write_page(root / "card")
    text = path.read_text()
    assert path.name == "privacy.html"
    assert "&lt;b&gt;" in text and "<script" not in text
    assert "Nothing here is differentially private" in text
    assert text.count("<strong>flagged</strong>") >= 18
    assert "With fewer than 100 test images (36 here)" in text
    assert report.write_page(root / "card").read_text() == text
    broken = root / "broken"
    broken.mkdir()
    (broken / "neighbours.npz").write_bytes(
        (root / "card" / "neighbours.npz").read_bytes()
    )
    (broken / "privacy.json").write_text(
        json.dumps(content[0] | {"neighbours": []})
    )
    with pytest.raises(InputError, match=r"privacy\.json is not what"):
        report.write_page(broken)


@pytest.mark.parametrize(
    "files, fields, said",
    [
        ({"images": np.zeros((36, 9, 9, 1), np.float32)}, {}, r"\(9, 9, 1\)"),
        ({"labels": np.eye(36, dtype=np.float32)}, {}, "of 36 classes"),
        ({}, {"data.held_out": 0.1}, "18 held-out images.*data.held_out"),
        ({"each": 24}, {}, "18 test images beside.*test_share"),
        (
            {"metadata": {"config": {"seed": 3}}},
            {},
            "made with seed=3, and here it is 0",
        ),
        ({"each": 31}, {}, "class a has 30 test images"),
    ],
)
def test_refusals(root, settings, splits, files, fields, said):
    names = NAMES
    if "labels" in files:
        names = [str(i) for i in range(36)]
    metadata = {"class_names": names} | files.get("metadata", {})
    saved(root, splits, "wrong", **files | {"metadata": metadata})
    with pytest.raises(InputError, match=said):
        run(root, settings.changed(fields), "wrong", "refused")
    assert not (root / "refused").exists()


def test_initial_images_of_another_run(root, settings, splits):
    saved(root, splits, "mixed")
    for images, said in (
        (np.zeros((2, 8, 8, 1), np.float32), "not of one run"),
        (np.full((36, 8, 8, 1), np.nan, np.float32), "no pixels"),
    ):
        np.savez(root / "mixed" / "initial.npz", images=images)
        with pytest.raises(InputError, match=said):
            run(root, settings, "mixed", "refused")
    for fields in ({"privacy.networks": 0}, {"privacy.shadow_networks": 5}):
        with pytest.raises(InputError, match="must be"):
            settings.changed(fields)


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
def test_door(root, monkeypatch, capsys):
    script = door("privacy")
    flags = ["privacy.py", "--config=configs/tiny.py", "--compiled=none"]
    for more, said in (
        ([], "no distilled file"),
        ([f"--distilled={root / 'nowhere'}"], "no distilled file"),
        (["--distilled=x", "--config.privacy.networks=0"], "at least 1"),
        (["--distilled=x", "--processes=2"], "one process"),
        (["--distilled="], "names no file or folder"),
    ):
        monkeypatch.setattr("sys.argv", flags + more)
        code = script.launch.main(script.run, script.__doc__, tests=True)
        refused(code, capsys.readouterr().err, said)


def test_intervals_are_of_the_library(content):
    """What is written is what the figures' own functions give."""
    found = row(content[0], "real", "unseen", "loss")["auc"]
    ends = privacy.auc_interval(found["mean"], 40, 40)
    assert (found["low"], found["high"]) == pytest.approx(ends)
