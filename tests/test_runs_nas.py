"""Networks ranked by a distilled file: the grid, ranks, cells, refusals."""

import collections
import json

import browser
import jax
import numpy as np
import pytest
import scipy.stats
from read_pages import cells, check_self_contained, section, sections
from small import IADD

from ddjax import artifact, evaluate
from ddjax.data import preprocess
from ddjax.pages import report
from ddjax.runs import matrix, nas, prepare, scores, workdir
from ddjax.settings import Nas, Settings
from ddjax.types import InputError

SETTINGS = Settings.of(
    IADD
    | {
        "data.source": "digits",
        "model.name": "mlp",
        "nas.widths": "2",
        "nas.depths": "1,4",
        "nas.norms": "none,batch",
        "nas.activations": "relu",
        "nas.poolings": "max",
        "nas.networks": 2,
        "nas.seeds": 2,
        "nas.epochs": 3,
        "nas.proxies": "class_means,random_real",
        "nas.full_steps": 25,
    }
)
SOURCES = ["distilled", "random_real", "class_means", "full_data"]


# The grid --------------------------------------------------------------------


def test_the_grid_of_the_field():
    found = nas.grid(Nas())
    assert len(found) == len(set(found)) == 720
    assert len({network.name for network in found}) == 720
    assert found[0] == (32, 1, "none", "sigmoid", "none")
    assert found[-1].name == "w256-d4-group-leaky_relu-average"
    assert len(nas.grid(Nas(widths="8", norms="batch, none"))) == 72


@pytest.mark.parametrize("seed", [0, 1])
def test_picks_are_even(seed):
    """Each value as often as each other, and each pair, by one at most."""
    networks = nas.grid(Nas())
    found = nas.pick(networks, 60, jax.random.key(seed))
    assert len(set(found)) == 60 and set(found) <= set(networks)
    for i in range(5):
        counts = collections.Counter(network[i] for network in found)
        assert set(counts.values()) == {60 // len(counts)}
    counts = collections.Counter((n.norm, n.pooling) for n in found)
    assert len(counts) == 15 and max(counts.values()) <= 5
    assert nas.pick(networks, 60, jax.random.key(seed)) == found
    assert nas.pick(networks, 12, jax.random.key(seed)) == found[:12]
    assert nas.pick(networks, 60, jax.random.key(7)) != found


def test_picks_of_an_uneven_grid():
    """In proportion, where some combinations are missing."""
    networks = [
        network
        for network in nas.grid(Nas())
        if network.depth < 4 or network.pooling == "none"
    ]
    found = nas.pick(networks, 60, jax.random.key(0))
    counts = collections.Counter(network.depth for network in found)
    for depth, share in ((1, 18), (2, 18), (3, 18), (4, 6)):
        assert abs(counts[depth] - share) <= 1
    every = nas.pick(networks, 1000, jax.random.key(0))
    assert len(every) == 600 and set(every) == set(networks)


# Ranks -----------------------------------------------------------------------


def test_spearman():
    random = np.random.default_rng(0)
    first = random.integers(0, 6, (4, 11))  # many are equal
    second = first + random.normal(size=(4, 11))
    for a, b, found in zip(first, second, nas.spearman(first, second)):
        np.testing.assert_allclose(found, scipy.stats.spearmanr(a, b)[0])
    assert np.isnan(nas.spearman([1, 1, 1], [1, 2, 3]))
    assert nas.spearman([3, 1, 2], [9, 1, 2]) == pytest.approx(1)


def test_intervals():
    random = np.random.default_rng(0)
    full = random.normal(size=30)
    close, far = full + 0.3 * random.normal(size=(2, 30)) * [[1], [9]]
    table = {
        "distilled": {"test": list(close)},
        "random_real": {"test": list(far)},
        "full_data": {"test": list(full)},
    }

    def found(seed, best=(5, 30)):
        return nas.correlations(jax.random.key(seed), table, best)

    rows = found(0)
    assert rows == found(0)
    assert [row["networks"] for row in rows] == [30, 30, 5, 5]
    assert [row["best"] for row in rows] == [False, False, True, True]
    other = found(1)
    assert other[0]["rho"] == rows[0]["rho"] and other[0] != rows[0]
    # SciPy's bootstrap of the same statistic, by its own draws.
    theirs = scipy.stats.bootstrap(
        (close, full),
        lambda a, b: scipy.stats.spearmanr(a, b)[0],
        paired=True,
        vectorized=False,
        n_resamples=400,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    np.testing.assert_allclose(
        (rows[0]["low"], rows[0]["high"]), theirs, atol=0.05
    )
    less = rows[1]["less"]
    assert less["rho"] == pytest.approx(rows[0]["rho"] - rows[1]["rho"])
    assert less["low"] < less["rho"] < less["high"]
    best = np.argsort(-full)[:5]
    expected = scipy.stats.spearmanr(close[best], full[best])[0]
    assert rows[2]["rho"] == pytest.approx(expected)


def test_nothing_to_correlate():
    table = {
        "distilled": {"test": [0.1, 0.1, 0.1]},
        "full_data": {"test": [0.1, 0.2, 0.3]},
    }
    (row,) = nas.correlations(jax.random.key(0), table)
    assert (row["rho"], row["low"], row["high"]) == (None, None, None)


# A search --------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("nas")


@pytest.fixture(scope="module")
def task(root):
    return prepare.task(SETTINGS.data, SETTINGS.model, 0, root / "data")


@pytest.fixture(scope="module")
def written(root, task):
    inputs, labels = task.real_images(jax.random.key(5), 1)
    found = artifact.Artifact(
        np.asarray(preprocess.invert(task.preprocessing, inputs)),
        np.float32(labels),
        0.02,
        preprocess.Standardiser(np.float32([0.5]), np.float32([0.25])),
        {"class_names": list(task.splits.train.class_names), "method": "<b>"},
    )
    artifact.save(root / "theirs.npz", found)
    return found


def run(root, settings=SETTINGS, name="found", path="theirs.npz"):
    folder = root / name
    nas.run(
        settings, root / path, folder, workdir.Shared.below(root), "a command"
    )
    return json.loads((folder / "nas.json").read_text())


@pytest.fixture(scope="module")
def content(root, written):
    return run(root)


def test_a_search(content):
    # Depth 4 halves 8 pixels once too often.
    assert content["grid"] == {"networks": 4, "too_deep": 2}
    assert {row["norm"] for row in content["networks"]} == {"none", "batch"}
    for row in content["networks"]:
        assert list(row)[-4:] == SOURCES
        for source in SOURCES:
            assert 0 < row[source]["test"] < 1
            assert row[source]["seconds"]["compile"] > 0
    assert [row["by"] for row in content["picks"]] == [*SOURCES, "best"]
    full = [row["full_data"]["test"] for row in content["networks"]]
    assert content["picks"][-1]["test"] == max(full)
    for row in content["picks"]:
        assert row["test"] in full
        assert row["rank"] == 1 + (row["test"] < max(full))
    for source in SOURCES:
        spent = content["costs"][source]["seconds"]
        assert spent["compile"] == pytest.approx(
            sum(r[source]["seconds"]["compile"] for r in content["networks"])
        )


def test_a_cell_is_what_evaluate_says(content, written, task):
    """Chunks of test images and kept programs change nothing."""
    row = content["networks"][0]
    subject = matrix.Subject(SETTINGS, written, task, None)
    *_, score = next(
        scores.tests_of(task, SETTINGS.evaluate, written.preprocessing)
    )
    module = nas._build(task, nas.Network(*list(row.values())[1:6]))
    result = evaluate.evaluate(
        jax.random.fold_in(jax.random.key(0), nas._TRAIN),
        evaluate.stored((written.images - 0.5) / 0.25, written.labels),
        score.keywords["test"],
        module,
        recipe=scores.recipe_of(SETTINGS.evaluate)._replace(epochs=3),
        learning_rate=0.02,
        num_networks=2,
        test_preprocessing=subject.as_file.preprocessing,
    )
    assert row["distilled"]["test"] == pytest.approx(result.mean, abs=1e-9)


def timeless(content):
    """Without what the clock says."""
    content = json.loads(json.dumps(content))
    del content["costs"]
    for row in content["networks"]:
        for source in SOURCES:
            for clock in nas.CLOCKS:
                del row[source][clock]
    return content


def test_a_search_goes_on(root, content, monkeypatch):
    """From what is there, to the same result."""
    made = []
    filled = nas._filled

    def spy(subject, source, programs):
        made.append(source.recipe)
        return filled(subject, source, programs)

    monkeypatch.setattr(nas, "_filled", spy)
    folder = root / "found" / "cells"
    name = content["networks"][-1]["name"]
    assert len(list(folder.iterdir())) == 8
    (path,) = folder.glob(f"full_data-{name}-*.json")
    path.unlink()
    (damaged,) = folder.glob(f"distilled-{name}-*.json")
    damaged.write_text(damaged.read_text()[:-9])
    assert timeless(run(root)) == timeless(content)
    assert [recipe.epochs for recipe in made] == [3, 1]
    assert made[1].epoch_steps == 21  # 25 steps are one epoch of 1,284 images


def test_the_page(root, content):
    path = report.write_page(root / "found")
    text = path.read_text()
    assert path == root / "found" / "nas.html"
    check_self_contained(text)
    assert sections(text) == [
        "scatter",
        "correlations",
        "picks",
        "costs",
        "files",
        "commands",
        "config",
    ]
    assert "10 distilled images (by &lt;b&gt;)" in text
    assert section(text, "scatter").count("<svg") == 3
    assert "2 of the grid of 4, 2 of which" in section(text, "scatter")
    first = cells(section(text, "picks"))[0]
    pick = content["picks"][0]
    assert first[:2] == ["The file", pick["network"]]
    assert first[3] == f"{100 * pick['test']:.1f}%"
    names = [row[0] for row in cells(section(text, "costs"))]
    assert names[0] == "The file" and names[-1] == "All training data"
    assert "nas.networks" in text and "iadd.ipc" not in text
    assert report.write_page(root / "found").read_text() == text


@browser.needed
def test_the_page_in_a_browser(root, content, tmp_path):
    (text,) = browser.texts(tmp_path, report.write_page(root / "found"))
    assert content["networks"][0]["name"] in text


@pytest.mark.parametrize(
    "change", [{"networks": []}, {"costs": 3}, {"picks": [{}]}, {"file": {}}]
)
def test_what_is_no_search(tmp_path, content, change):
    (tmp_path / "nas.json").write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=r"nas\.json is not what nas\.py"):
        report.write_page(tmp_path)


# What is refused -------------------------------------------------------------


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("nas.norms", "batch,weight", "nas.norms must be some of none, batch"),
        ("nas.activations", "", "some of relu, sigmoid, leaky_relu"),
        ("nas.poolings", "max,max", "nas.poolings must be some of none, max"),
        ("nas.widths", "0,8", "widths must be numbers of at least 1"),
        ("nas.depths", "1,1", "nas.depths must differ"),
        ("nas.networks", 0, "nas.networks must be at least 1, not 0"),
        ("nas.proxies", "kmeans", "random_real, herding, k_centre, class_m"),
        ("nas.best", "0", "must be numbers of at least 1"),
    ],
)
def test_impossible_grids(field, value, said):
    with pytest.raises(InputError, match=said):
        Settings.of({field: value})


@pytest.mark.parametrize(
    "change, fields, said",
    [
        ({"images": np.zeros((10, 9, 9, 1), np.float32)}, {}, r"\(9, 9, 1\)"),
        ({"labels": np.eye(10, 20, dtype=np.float32)}, {}, "of 20 classes"),
        ({}, {"nas.depths": "4,5"}, "none of the 4 .* smaller numbers"),
    ],
)
def test_refusals(root, written, change, fields, said):
    labels = change.get("labels", written.labels)
    wrong = written._replace(
        images=change.get("images", written.images),
        labels=labels,
        metadata={"class_names": [str(i) for i in range(labels.shape[1])]},
    )
    artifact.save(root / "wrong.npz", wrong)
    with pytest.raises(InputError, match=said):
        run(root, SETTINGS.changed(fields), "refused", "wrong.npz")
    assert not (root / "refused").exists()


def test_runs_do_not_depend_on_the_grid():
    settings = Settings.of({"nas.networks": 3})
    for method in ("iadd", "d2m"):
        found = workdir.described(settings, method)
        assert not any(field.startswith("nas.") for field in found)
    assert workdir.described(settings, "nas")["nas.networks"] == 3
