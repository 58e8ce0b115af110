"""D2M from settings to results, in this process."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from small import D2M

import ddjax
from ddjax import artifact, evaluate, hosts, parallel
from ddjax.data import classes, selection
from ddjax.runs import (
    baselines,
    d2m,
    gan,
    generate,
    prepare,
    protocols,
    scores,
)
from ddjax.runs.workdir import Shared
from ddjax.settings import Settings
from ddjax.types import InputError

DIGITS = Settings.of({"data.source": "digits", **D2M})


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "device_count", lambda: 1)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of runs, and how to make one in it."""
    folder = tmp_path_factory.mktemp("runs")
    shared = Shared(*(folder / n for n in ("teachers", "data", "generators")))

    def run(name, **fields):
        d2m.run(DIGITS.changed(fields), folder / name, shared, "a command")
        return folder / name

    return folder, run, shared


@pytest.fixture(scope="module")
def told():
    """What the process that made the first run told the others, in order."""
    return []


@pytest.fixture(scope="module")
def first(runs, told):
    """A finished run, and the test images of every evaluation for it."""
    tested = []
    real, from_writer = evaluate.evaluate, hosts.from_writer

    def telling(function):
        told.append(json.dumps(from_writer(function)))
        return json.loads(told[-1])

    def spy(key, sample_fn, test, module, **kwargs):
        # Of networks on data of their own there is one for each.
        one = sample_fn[0] if isinstance(sample_fn, list) else sample_fn
        key_of_one = jax.random.key(0)
        data = jax.eval_shape(lambda draw, key: draw(key), one, key_of_one)
        tested.append((len(test.labels), len(data.labels)))
        return real(key, sample_fn, test, module, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "evaluate", spy)
        patch.setattr(hosts, "from_writer", telling)
        return runs[1]("run"), tested


@pytest.fixture(scope="module")
def task(runs):
    return prepare.task(DIGITS.data, DIGITS.model, 0, runs[2].data)


def table_of(run):
    return json.loads((run / "eval.json").read_text())


def test_all_artefacts_and_rows_are_there(first, runs):
    run, _ = first
    for name in (
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "generator/pretrained.npz",
        "generator/distilled.npz",
        "pretraining/quality.json",
        "eval.json",
        "distilled.png",
        "report.html",
    ):
        assert (run / name).exists(), name
    assert set(table_of(run)) == {
        "full_data",
        *(
            f"stored/{ipc}/{what}"
            for ipc in (1, 2)
            for what in (
                "distilled",
                "pretrained",
                "distilled_chosen",
                "pretrained_chosen",
                "random_real",
                "herding",
                "k_centre",
                "class_means",
            )
        ),
        "stream/1/distilled",
        "stream/1/pretrained",
    }
    assert list(runs[0].glob("generators/*/report.html"))


def test_states_are_selected_without_the_test_images(first, task):
    """Looks are scored on held-out images, before any test image is used."""
    held_out, test = (
        len(part.labels) for part in (task.splits.held_out, task.splits.test)
    )
    assert held_out != test
    _, found = first
    tested = [images for images, _ in found]
    # The pre-training's quality is measured before, and decides nothing.
    assert tested[:4] == [test, held_out, held_out, held_out]
    # Nor is the rate of a training on the whole data, of three.
    whole = len(task.splits.train.labels)
    assert [n for n, given in found[4:] if given == whole] == (
        [held_out] * 3 + [test]
    )
    assert {n for n, given in found[4:] if given < whole} == {test}


def test_a_second_process_writes_nothing(first, told, runs, monkeypatch):
    """It hears all that the first one said, in the same order."""
    folder, run, _ = runs
    pages = [first[0] / "report.html", *folder.glob("generators/*/report.html")]
    finished = {page: page.read_bytes() for page in pages}

    def there():
        return {
            path: path.stat().st_mtime_ns
            for path in folder.rglob("*")
            if path not in finished
        }

    heard = iter(told)
    monkeypatch.setattr(hosts, "_process", 1)
    monkeypatch.setattr(
        hosts, "from_writer", lambda function: json.loads(next(heard))
    )
    try:
        for page in finished:
            page.unlink()
        before = there()
        run("run")
        assert there() == before
        assert not any(page.exists() for page in finished)
    finally:
        for page, content in finished.items():
            page.write_bytes(content)
    assert list(heard) == []


def test_a_look_trains_as_long_as_a_teacher_or_shorter():
    whole = gan._look_recipe(DIGITS)
    short = gan._look_recipe(DIGITS.changed({"gan.look_epochs": 1}))
    assert whole.epochs == DIGITS.teacher.epochs > short.epochs == 1


def test_pre_training_ends_where_no_look_is_better(runs, tmp_path, monkeypatch):
    scored = iter([0.4, 0.6, 0.5, 0.55, 0.55])

    def score(*_):
        value = np.array([next(scored)])
        return evaluate.summarise(value, np.tile(value, (1, 10)))

    monkeypatch.setattr(gan, "classification_accuracy", score)
    shared = runs[2]._replace(generators=tmp_path)
    settings = DIGITS.changed({"gan.looks": 6, "gan.patience": 1})
    task = prepare.task(DIGITS.data, DIGITS.model, 0, shared.data)
    made = gan.train(settings, task, shared)

    def result():
        found = json.loads((made / "quality.json").read_text())
        return found, artifact.load_generator(made / "generator.npz")

    quality, generator = result()
    assert quality["selected_step"] == 2 and quality["cut"] is False
    assert quality["classification_accuracy"] == [0.55]
    assert [int(p.stem) for p in sorted(made.glob("samples/*"))] == [1, 2, 3]
    best = artifact.load_generator(made / "looks" / "0000002.npz")
    jax.tree.map(np.testing.assert_array_equal, generator.params, best.params)
    # Killed before it was concluded, it ends there again.
    for name in ("report.html", "quality.json", "generator.npz"):
        (made / name).unlink()
    assert gan.train(settings, task, shared) == made
    again, other = result()
    assert again == quality
    jax.tree.map(np.testing.assert_array_equal, generator.params, other.params)
    assert len(list(made.glob("samples/*"))) == 3
    # Where updates have run out first, it counts as cut.
    rows = (made / "metrics.jsonl").read_text().splitlines()
    kept = [row for row in rows if json.loads(row)["step"] < 3]
    (made / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    assert gan.selected(settings, made) == (2, True)


def test_what_was_before_distillation_can_be_selected(tmp_path):
    rows = [(0, 0.7), (4, 0.6), (8, 0.7)]
    lines = [
        json.dumps({"step": step, "held_out_accuracy": value})
        for step, value in rows
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = scores.select(tmp_path, "accuracy", from_start=True)
    assert found == (0, [4, 8])
    assert scores.select(tmp_path, "accuracy") == (8, [4, 8])


def test_what_has_not_changed_is_tested_once(first, runs, task, monkeypatch):
    tested = []

    def generated_scores(settings, task, found, sides, choose):
        tested.append(list(sides))
        return {f"stored/1/{side}": {"convnet": {}} for side in sides}

    monkeypatch.setattr(protocols, "generated_scores", generated_scores)
    monkeypatch.setattr(scores, "tests_of", lambda *_: [])
    monkeypatch.setattr(baselines, "pick", lambda *_: {})
    given = artifact.load_generator(first[0] / "generator" / "pretrained.npz")
    moved = given._replace(params=jax.tree.map(lambda p: p + 1, given.params))
    for found, sides in (
        (given, ["distilled"]),
        (moved, ["distilled", "pretrained"]),
    ):
        table = d2m.final_scores(DIGITS, task, given, found, runs[2].teachers)
        assert tested.pop() == sides
        assert list(table) == ["stored/1/distilled", "stored/1/pretrained"]


def test_a_finished_run_says_so(first, runs, capsys):
    runs[1]("run")
    assert "complete" in capsys.readouterr().out


def test_pre_training_is_shared_and_says_how_good_it_is(first, runs, capsys):
    before = sorted(runs[0].glob("generators/*/*"))
    gan.run(DIGITS, runs[2])
    said = capsys.readouterr().out
    assert "classification accuracy score" in said
    assert "Frechet distance" in said and "report.html" in said
    assert sorted(runs[0].glob("generators/*/*")) == before


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"d2m.layers": "block0,block9"}, "'block9'.*block0"),
        ({"d2m.ipcs": "1000"}, r"1000.*lower config\.d2m\.ipcs"),
        ({"gan.attention": 20, "gan.width": 8}, r"gan\.attention.*0 or one"),
        ({"d2m.classes": 11}, r"d2m\.classes.*0\.\.10"),
        ({"d2m.generator": "no.npz"}, r"no generator.*no\.npz"),
    ],
)
def test_what_only_the_data_can_tell(runs, fields, said):
    folder, run, _ = runs
    with pytest.raises(InputError, match=said):
        run("refused", **fields)
    assert not (folder / "refused").exists()


def test_devices_share_a_batch_evenly(task, monkeypatch):
    """Ten images on four devices: five on each of two."""
    monkeypatch.setattr(parallel, "device_count", lambda: 4)
    data = task.splits.train
    found = gan._draw(
        DIGITS.gan,
        data,
        classes.ByClass(data.labels, task.num_classes),
        jax.random.key(0),
    )
    assert found.images.shape[:3] == (2, DIGITS.gan.critic_steps, 5)
    assert found.labels.shape[:3] == (2, DIGITS.gan.critic_steps, 5)


def test_processes_share_a_batch(task, monkeypatch):
    """Behind one another, what they draw is what one process draws."""
    data = task.splits.train
    by_class = classes.ByClass(data.labels, task.num_classes)
    monkeypatch.setattr(parallel, "device_count", lambda: 2)
    draw = functools.partial(
        gan._draw, DIGITS.gan, data, by_class, jax.random.key(0)
    )
    together = draw()
    monkeypatch.setattr(hosts, "_processes", 2)
    parts = []
    for process in range(2):
        monkeypatch.setattr(hosts, "_process", process)
        parts.append(draw())
    jax.tree.map(
        lambda whole, *part: np.testing.assert_array_equal(
            whole, np.concatenate(part)
        ),
        together,
        *parts,
    )
    settings = DIGITS.changed({"gan.batch_size": 9})
    with pytest.raises(InputError, match="give a multiple of 2"):
        gan.networks_of(settings.gan, task)


def test_a_rate_that_explodes_stops_the_run(first, runs):
    _, run, _ = runs
    fields = {"d2m.rate": 1e30, "log.checkpoint_every": 1}
    with pytest.raises(
        InputError, match=r"update \d of d2m: .*lower d2m\.rate"
    ):
        run("exploded", **fields)


def test_a_run_that_stops_early_keeps_nothing(first, runs):
    folder, run, _ = runs
    with pytest.raises(InputError, match="there is no checkpoint yet"):
        run("early", **{"d2m.rate": 1e30, "log.checkpoint_every": 99})
    assert not (folder / "early").exists()


@pytest.fixture(scope="module")
def given(first, runs):
    """A run of a generator that was given, on random networks, where there
    are no teachers."""
    folder, _, shared = runs
    fields = {"d2m.generator": str(first[0]), "d2m.networks": "random"}
    apart = shared._replace(teachers=folder / "none")
    d2m.run(DIGITS.changed(fields), folder / "given", apart)
    return folder / "given"


def test_a_given_generator_needs_no_pre_training(first, given):
    ours = artifact.load_generator(given / "generator" / "pretrained.npz")
    theirs = artifact.find_generator(first[0])
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert not (given / "pretraining").exists()


def test_no_teachers_are_needed_for_random_networks(given, runs):
    assert (given / "report.html").exists()
    # Nor for picks by their features, which are left out.
    assert not list((runs[0] / "none").glob("*/teacher_*"))
    rows = {row.rpartition("/")[2] for row in table_of(given)}
    assert "class_means" in rows and not {"herding", "k_centre"} & rows


def test_generators_that_do_not_fit_are_refused(first, runs, tmp_path):
    folder, run, _ = runs
    given = {"d2m.generator": str(first[0])}
    with pytest.raises(InputError, match="made for the classes"):
        run("refused", **given, **{"data.classes": "1,2,3"})
    with pytest.raises(InputError, match="was trained on other images"):
        run("refused", **given, seed=1)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 4)
    split = rng.integers(0, 256, (40, 16, 16, 1), dtype=np.uint8), labels
    names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez(tmp_path / "large.npz", **dict(zip(names, split * 2)))
    large = {
        "data.source": "npz",
        "data.data_dir": str(tmp_path / "large.npz"),
    }
    with pytest.raises(InputError, match=r"\(8, 8, 1\).*\(16, 16, 1\)"):
        run("refused", **given, **large)
    # A folder of pre-training that is not what its name says.
    (kept,) = (folder / "generators").iterdir()
    path = kept / "generator.npz"
    before = path.read_bytes()
    other = first[0] / "generator" / "distilled.npz"
    path.write_bytes(other.read_bytes())
    try:
        with pytest.raises(InputError, match=rf"{kept} .*another config"):
            run("refused")
    finally:
        path.write_bytes(before)
    assert not (folder / "refused").exists()


def test_tested_again(first, runs, task, capsys):
    run, _ = first
    d2m.test_again(DIGITS, task, d2m.load_sides(run), runs[2].teachers)
    said = capsys.readouterr().out.splitlines()
    for row in (
        "stored/2/distilled",
        "stored/2/pretrained_chosen",
        "stream/1/pretrained",
    ):
        mean = f"{100 * table_of(run)[row]['convnet']['mean']:.2f} %"
        assert any(row in line and mean in line for line in said)


# Sides that no generator has -------------------------------------------------


def arrays_of(path, height, width):
    """Fields for a set of noise, ten grey images of each of two classes."""
    rng = np.random.default_rng(0)
    named = {}
    for part in ("train", "test"):
        shape = (20, height, width, 1)
        named[f"{part}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        named[f"{part}_labels"] = np.arange(20) % 2
    np.savez(path, **named)
    return {"data.source": "npz", "data.data_dir": str(path)}


@pytest.mark.campaign
def test_images_of_any_side(runs, tmp_path):
    """12 pixels, as MNIST has 28: no other side is seen after the generator."""
    fields = arrays_of(tmp_path / "noise.npz", 12, 12)
    fields |= {"d2m.iterations": 2, "d2m.ipcs": "1", "evaluate.looks": 1}
    fields |= {"evaluate.baselines": "", "gan.looks": 1, "d2m.choose": "none"}
    run = runs[1]("side12", **fields)
    assert set(table_of(run)) > {"stored/1/distilled", "stream/1/pretrained"}
    assert (run / "report.html").exists()
    with np.load(run / "samples.npz") as file:
        sides = {name: file[name].shape[1:3] for name in file.files}
    del sides["labels"]
    assert set(sides.values()) == {(12, 12)} and len(sides) == 3
    for path in run.glob("pretraining/samples/*.npz"):
        assert np.load(path)["images"].shape[1:] == (12, 12, 1)
    generate.run(run, tmp_path / "made", ipc="2")
    made = ddjax.load(tmp_path / "made").images
    assert made.shape == (4, 12, 12, 1)
    opened = ddjax.load(run)
    assert "12 x 12 x 1" in repr(opened)
    again = opened.generate([0, 0, 1, 1])
    np.testing.assert_array_equal(again, made)
    # It is made of a larger image, whose middle it is; nothing but the side
    # in the file says so, and the file of a side that there is says the same
    # fields as ever.
    path = run / "generator" / "distilled.npz"
    found = artifact.load_generator(path)
    assert found.apply.module.size == 12
    whole = found._replace(
        apply=dataclasses.replace(
            found.apply, module=found.apply.module.clone(size=16)
        )
    )
    artifact.save_generator(tmp_path / "whole.npz", whole)
    with np.load(tmp_path / "whole.npz") as file:
        said = json.loads(str(file["metadata"]))["generator"]
    assert said == {
        "num_classes": 2,
        "size": 16,
        "channels": 1,
        "width": 1,
        "noise": 4,
        "embedding": 0,
        "attention": 0,
        "hierarchical": True,
    }
    larger = ddjax.load(tmp_path / "whole.npz").generate([0, 0, 1, 1])
    assert larger.shape == (4, 16, 16, 1)
    np.testing.assert_allclose(larger[:, 2:14, 2:14], again, atol=1e-5)


@pytest.mark.parametrize(
    "sides, said",
    [
        ((130, 130), "1 to 128 pixels a side, not 130: set data.size"),
        ((28, 24), "square images, these are 28 x 24"),
    ],
)
def test_sides_that_are_refused(runs, tmp_path, sides, said):
    fields = arrays_of(tmp_path / "noise.npz", *sides)
    before = sorted(runs[0].glob("teachers/*"))
    with pytest.raises(InputError, match=said):
        runs[1]("refused", **fields)
    assert sorted(runs[0].glob("teachers/*")) == before
    assert not (runs[0] / "refused").exists()


# Generated images ------------------------------------------------------------


def test_generate_makes_what_is_asked_for(first, tmp_path):
    out = tmp_path / "made"
    generate.run(first[0], out, ipc="3,1", seed=5, classes="7,2")
    with np.load(out / "distilled.npz", allow_pickle=False) as file:
        labels, images = file["labels"].argmax(-1), file["images"]
        metadata = json.loads(str(file["metadata"]))
        assert "preprocess/mean" in file.files
    assert labels.tolist() == [7, 7, 7, 2]
    assert images.shape == (4, 8, 8, 1)
    assert 0 <= images.min() and images.max() <= 1
    assert metadata["class_names"][7] == "7"
    assert (out / "distilled.png").exists()
    found = artifact.find_generator(first[0])
    again = generate.images_of(found, np.array([7, 7, 7, 2]), 5)
    np.testing.assert_array_equal(images, again)
    for where, words in (
        (out, "already"),
        (first[0], "is a run"),
    ):
        with pytest.raises(InputError, match=words):
            generate.run(first[0], where, ipc="1")
    with pytest.raises(InputError, match="holds images"):
        generate.run(out, tmp_path / "other", ipc="1")


@pytest.mark.parametrize("how", ["centres", "moments"])
def test_generate_chooses(first, runs, task, tmp_path, how):
    """Images that the generator makes, of all that it does the ones that
    stand for the real ones; the Python call chooses the same."""
    run = first[0]
    generate.run(
        run,
        tmp_path / "a",
        ipc="3,1",
        classes="7,2",
        choose=how,
        shared=runs[2],
    )
    with np.load(tmp_path / "a" / "distilled.npz") as file:
        images, metadata = file["images"], json.loads(str(file["metadata"]))
    assert metadata["choose"] == how
    opened = ddjax.load(run)
    np.testing.assert_array_equal(
        images, opened.generate([7, 7, 7, 2], choose=how)
    )
    # The images of a class do not depend on the order of those asked for.
    mixed = opened.generate([7, 2, 7, 7], choose=how)
    np.testing.assert_array_equal(images[[0, 3, 1, 2]], mixed)
    found = artifact.find_generator(run)
    key = jax.random.fold_in(jax.random.key(0), 7)
    many = np.asarray(
        protocols.make(
            found.apply, found.params, key, np.full(150, 7, np.int32)
        )
    )
    for image in images[:3]:
        assert np.square(many - image).sum((1, 2, 3)).min() == 0
    assert len(np.unique(images[:3], axis=0)) == 3


def test_latents_go_on_from_centres(first, runs, task):
    """Each image nearer to what a network sees in its cluster of real ones
    than where it began; the same each time, whatever else is asked for."""
    found = artifact.find_generator(first[0])
    key, labels = jax.random.key(3), np.full(5, 7, np.int32)
    made = {
        how: d2m.chooser(DIGITS, task, runs[2].teachers, how)
        for how in ("centres", "latents")
    }
    images = {
        how: chooser.images(found, found.params, labels, key)
        for how, chooser in made.items()
    }
    trained = d2m.trained_network(DIGITS, task, runs[2].teachers)
    members = np.flatnonzero(task.splits.train.labels == 7)
    real = baselines.features(trained, task, members)
    centres = selection.cluster_means(real, 5)
    member = np.square(real[:, None] - centres).sum(2).argmin(1)

    def apart(how):
        """By the networks that move, from the means of the clusters."""
        total = 0.0
        for network in made["latents"].networks:
            real = baselines.features(network, task, members)
            wanted = np.stack([real[member == i].mean(0) for i in range(5)])
            _, seen = baselines.seen(network, task, images[how], np.arange(5))
            total += np.square(seen - wanted).sum() / np.square(wanted).sum()
        return total

    # A generator of six updates does not reach far.
    assert apart("latents") < 0.95 * apart("centres")
    mixed = np.array([7, 2, 7, 7, 7, 7], np.int32)
    again = made["latents"].images(found, found.params, mixed, key)
    np.testing.assert_array_equal(again[mixed == 7], images["latents"])


def test_generate_refuses_to_choose_without_data(first, runs, tmp_path):
    run, (_, _, shared) = first[0], runs
    how = {"ipc": "1", "choose": "centres", "shared": shared}
    for generator, more, said in (
        (run / "generator" / "pretrained.npz", {}, "run of .*d2m.py"),
        (run, {"ipc": "1000"}, "real images to choose by.*lower --ipc"),
        (run, {"choose": "best"}, "random, centres, moments"),
    ):
        with pytest.raises(InputError, match=said):
            generate.run(generator, tmp_path / "out", **how | more)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "how, said",
    [
        ({"ipc": "0"}, "--ipc.*at least 1"),
        ({"ipc": "1", "classes": "7,eleven"}, r"'eleven'.*0\.\.9"),
        ({"ipc": "1", "classes": "7,7"}, "twice"),
        ({"ipc": "1,2,3"}, "10"),
        ({"ipc": "1000000000"}, "GiB.*--ipc"),
        ({"ipc": "1", "seed": -1}, "--seed"),
    ],
)
def test_generate_refuses(first, tmp_path, how, said):
    out = tmp_path / "refused"
    with pytest.raises(InputError, match=said):
        generate.run(first[0], out, **how)
    assert not out.exists()


def test_folders_without_a_generator(runs, first, tmp_path):
    with pytest.raises(InputError, match="holds no generator"):
        generate.run(runs[0] / "teachers", tmp_path / "out", ipc="1")
    damaged = tmp_path / "generator.npz"
    whole = (first[0] / "generator" / "distilled.npz").read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        generate.run(damaged, tmp_path / "out", ipc="1")
