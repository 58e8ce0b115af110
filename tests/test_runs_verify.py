"""Recorded scores are repeated, or found not to be so."""

import json

import jax
import numpy as np
import pytest
import scipy.stats
from small import D2M, IADD, door, refused

from ddjax import artifact, evaluate, parallel, training
from ddjax.data import preprocess, sources
from ddjax.models import biggan
from ddjax.runs import protocols, scores, verify
from ddjax.settings import Settings
from ddjax.types import InputError

ACCURACIES = [0.25, 0.35]


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "device_count", lambda: 1)
        yield


def example(**changes):
    """The first ten digits of a file that tells all."""
    settings = Settings.of({"data.source": "digits", **IADD})
    splits = sources.load("digits", held_out=0.1, seed=0)
    score = {"accuracies": ACCURACIES}
    recipe = training.Recipe(4, 256, 0.9, 5e-4, True)
    metadata = {
        "class_names": [str(digit) for digit in range(10)],
        "method": "IADD",
        "config": settings.flat(),
        "evaluation": recipe._asdict(),
        "test_data": sources.fingerprint(splits.test),
        "scores": {
            "distilled": {"convnet": score | {"balanced_accuracy": score}}
        },
    }
    images = preprocess.to_unit(splits.train.images[:10])
    return artifact.Artifact(
        np.asarray(images),
        np.eye(10, dtype="f")[splits.train.labels[:10]],
        0.02,
        preprocess.fit_standardise(splits.train.images),
        json.loads(json.dumps(metadata | changes)),
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """{name: Verdict}, and what was trained for it."""
    calls = []
    real = evaluate.evaluate

    def spy(key, sample_fn, **how):
        calls.append(how | {"batch": sample_fn(key)})
        return real(key, sample_fn, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "evaluate", spy)
        folder = tmp_path_factory.mktemp("data")
        return verify.verify(example(), data_folder=folder), calls


def test_networks_are_trained_by_what_the_file_says(result):
    verdicts, (call,) = result
    assert verdicts.keys() == {"convnet"}
    given = example()
    assert call["recipe"] == training.Recipe(4, 256, 0.9, 5e-4, True)
    assert call["learning_rate"] == 0.02 and call["num_networks"] == 2
    mean, std = given.preprocessing
    np.testing.assert_allclose(
        call["batch"].images, (given.images - mean) / std, rtol=1e-5
    )
    np.testing.assert_array_equal(call["batch"].labels, given.labels)
    assert len(call["test"].labels) > 300 and call["module"].width == 4


def test_the_interval(result):
    """Of a mean of m more networks, by textbook: t s sqrt(1/n + 1/m)."""
    found = result[0]["convnet"]
    assert found.same_data
    values = found.found.accuracy
    t = scipy.stats.t.ppf(0.975, len(values) - 1)
    half = t * np.std(values, ddof=1) * np.sqrt(1 / len(values) + 1 / 2)
    assert found.high - found.found.mean == pytest.approx(max(half, 1 / 363))
    assert found.found.mean - found.low == pytest.approx(max(half, 1 / 363))
    np.testing.assert_array_equal(found.recorded.accuracy, ACCURACIES)


def test_how_often_a_true_score_lies_in_it():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        recorded, now = rng.normal(0.5, 0.01, 5), rng.normal(0.5, 0.01, 10)
        found = evaluate.summarise(now)
        half = verify._half_width(found, 5)
        inside += abs(recorded.mean() - found.mean) <= half
    assert 0.935 < inside / 2000 < 0.965


def test_how_often_all_true_scores_lie_in_theirs():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        recorded, now = rng.normal(0.5, 0.01, (2, 4, 5))
        inside += all(
            abs(before.mean() - found.mean)
            <= verify._half_width(found, 5, len(recorded))
            for before, found in zip(recorded, map(evaluate.summarise, now))
        )
    assert 0.93 < inside / 1000 < 0.98


def test_what_is_said(result):
    found = result[0]["convnet"]
    for recorded, word in ((found.low, "agrees"), (0.99, "does not agree")):
        verdict = found._replace(
            recorded=evaluate.summarise([recorded] * 2), same_data=False
        )
        assert verdict.agrees == (word == "agrees")
        told = verify.lines({"convnet": verdict})
        assert told[0].startswith(f"recorded convnet   {100 * recorded:.2f} %")
        assert told[1].startswith("now      convnet")
        assert told[2].endswith(f"the recorded one {word}")
        assert "not the ones of the recorded score" in told[3]


@pytest.mark.parametrize(
    "changes, how, why",
    [
        ({"scores": {}}, {}, "records no accuracies of convnet,"),
        ({"scores": {"distilled": {"convnet": 3}}}, {}, "no accuracies"),
        (
            {"scores": {"distilled": {"convnet": {"accuracies": [9]}}}},
            {},
            "no accuracies",
        ),
        (
            {"scores": {"distilled": {"mlp": {"accuracies": [0.5]}}}},
            {},
            "no accuracies of convnet",
        ),
        ({"method": "imported"}, {}, "no score of its own images"),
        ({"config": None}, {}, "no score of its own images"),
        ({"config": {"iadd.ipcc": 1}}, {}, "did you mean iadd.ipc"),
        ({"evaluation": None}, {}, "no recipe"),
        ({"evaluation": {"epochs": 1}}, {}, "no recipe"),
        ({"evaluation": {"epochs": "1", "batch_size": 1}}, {}, "no recipe"),
        ({"evaluation": {"epochs": 0, "batch_size": 1}}, {}, "no recipe"),
        (
            {"evaluation": {"epochs": 1, "batch_size": 1, "augment": ["x"]}},
            {},
            "no recipe",
        ),
        ({"class_names": list("abcdefghij")}, {}, "other classes"),
        ({}, {"networks": 1}, "--networks must be at least 2"),
        ({}, {"seed": -1}, "--seed must lie in"),
    ],
)
def test_refusals(tmp_path, changes, how, why):
    with pytest.raises(InputError, match=why) as error:
        verify.verify(example(**changes), data_folder=tmp_path, **how)
    assert "\n" not in str(error.value)


ROWS = "stored/1/distilled", "stored/2/distilled", "stream/1/distilled"
NAMES = "convnet stored/1", "convnet stored/2", "convnet stream/1"


def generator_of(splits, **changes):
    """A generator of digits, whose file tells all."""
    module = biggan.Generator(
        num_classes=10, size=8, channels=1, width=1, noise=4, form=biggan.FOLDED
    )
    score = {"accuracies": ACCURACIES}
    metadata = {
        "class_names": [str(digit) for digit in range(10)],
        "method": "D2M",
        "config": Settings.of({"data.source": "digits", **D2M}).flat(),
        "test_data": sources.fingerprint(splits.test),
        "scores": {
            row: {"convnet": score | {"balanced_accuracy": score}}
            for row in ROWS
        },
    }
    return artifact.GeneratorArtifact(
        biggan.GenApply(module),
        "params",
        preprocess.fit_standardise(splits.train.images),
        json.loads(json.dumps(metadata | changes)),
    )


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_a_generator(monkeypatch, tmp_path, metric):
    """By both protocols as its config says, with other keys and noise than the
    run's; against what is recorded in the terms of its metric."""
    splits = sources.load("digits", held_out=0.1, seed=0)
    given = generator_of(splits)
    given.metadata["config"]["evaluate.metric"] = metric
    for row in given.metadata["scores"].values():
        row["convnet"]["balanced_accuracy"] = {"accuracies": [0.3, 0.5]}
    calls = []

    def generated_scores(settings, task, found, sides, choose=None, key=None):
        calls.append((settings, task, found, sides, key))
        result = evaluate.summarise(
            [0.3, 0.34, 0.32], np.full((3, 10), [[0.4], [0.44], [0.42]])
        )
        return {row: {"convnet": scores.as_json(result)} for row in ROWS}

    monkeypatch.setattr(verify.protocols, "generated_scores", generated_scores)
    verdicts = verify.verify(given, data_folder=tmp_path, networks=3)
    ((settings, task, found, sides, key),) = calls
    assert tuple(verdicts) == NAMES
    assert settings.evaluate.networks == 3 and found is given
    assert json.loads(json.dumps(settings.flat())) == (
        given.metadata["config"] | {"evaluate.networks": 3}
    )
    assert sides == {"distilled": "params"}
    assert sources.fingerprint(task.splits.test) == given.metadata["test_data"]
    verify.verify(given, data_folder=tmp_path, seed=1)
    again = calls[1]
    assert again[0].evaluate.networks == 2
    run = jax.random.fold_in(jax.random.key(0), protocols._FINAL)
    keys = {
        tuple(jax.random.key_data(k).tolist()) for k in (key, again[4], run)
    }
    assert len(keys) == 3
    expected = (0.3, 0.32) if metric == "accuracy" else (0.4, 0.42)
    for verdict in verdicts.values():
        means = verdict.recorded.mean, verdict.found.mean
        assert means == pytest.approx(expected)
        assert verdict.same_data and verdict.agrees
    told = verify.lines(verdicts)
    mean = f"{100 * expected[0]:.2f} %"
    assert told[0].startswith(f"recorded convnet stored/1  {mean}")
    assert len(told) == 9 and "95% for all together" in told[2]


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"scores": {}}, "no accuracies of convnet stored/1,"),
        (
            {"scores": {ROWS[0]: {"convnet": 1}}},
            "no accuracies of convnet stor",
        ),
        ({"config": None}, "no score of its own images"),
        ({"method": "IADD"}, "no score of its own images"),
        ({"class_names": list("abcdefghij")}, "other classes"),
    ],
)
def test_refusals_of_generators(tmp_path, changes, why):
    splits = sources.load("digits", held_out=0.1, seed=0)
    with pytest.raises(InputError, match=why):
        verify.verify(generator_of(splits, **changes), data_folder=tmp_path)


def test_images_of_another_size(tmp_path):
    given = example()
    with pytest.raises(InputError, match=r"\(4, 8, 1\).*\(8, 8, 1\)"):
        verify.verify(
            given._replace(images=given.images[:, :4]), data_folder=tmp_path
        )


def test_exit_codes(result, tmp_path, capsys):
    """0 where it agrees, 1 where it does not, 2 for the user's mistakes."""
    script = door("verify")
    mean = result[0]["convnet"].found.mean
    for recorded, expected in ((mean, 0), (1.0, 1)):
        score = {"accuracies": [recorded] * 2}
        scores = {"distilled": {"convnet": score}}
        path = tmp_path / f"{expected}.npz"
        artifact.save(path, example(scores=scores))
        code = script.main([f"--distilled={path}", f"--data={tmp_path}"])
        assert code == expected
        out = capsys.readouterr().out
        assert ("does not agree" in out) == bool(expected)
    code = script.main([f"--distilled={tmp_path / 'none.npz'}"])
    refused(code, capsys.readouterr().err, "there is no run or distilled file")
    (tmp_path / "0.npz").write_bytes(path.read_bytes()[:-30])
    code = script.main([f"--distilled={tmp_path / '0.npz'}"])
    refused(code, capsys.readouterr().err, "damaged")


def test_the_door_of_export(tmp_path, capsys):
    artifact.save(tmp_path / "distilled.npz", example())
    script = door("export")
    flags = [f"--distilled={tmp_path}", f"--out={tmp_path / 'out'}"]
    assert script.main([*flags, "--to=png"]) == 0
    assert "10 images" in capsys.readouterr().out
    assert (tmp_path / "out" / "README.md").exists()
    code = script.main([*flags, "--to=npz"])
    refused(code, capsys.readouterr().err, "not an empty folder")
    code = script.main([*flags[:1], f"--out={tmp_path / 'x'}", "--to=gif"])
    refused(code, capsys.readouterr().err, "no form 'gif'")
