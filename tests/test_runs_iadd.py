"""IADD from settings to results, in this process."""

import errno
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small import D2M, IADD

from ddjax import artifact, evaluate, parallel, presets
from ddjax.data import preprocess
from ddjax.pages import report
from ddjax.runs import baselines, ceiling, iadd, prepare, scores, teachers
from ddjax.runs.workdir import Shared
from ddjax.settings import Settings
from ddjax.types import InputError, Segment

DIGITS = Settings.of(
    IADD
    | {
        "data.source": "digits",
        "iadd.image_step": 10.0,
        "evaluate.full_steps": 42,
    }
)


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "device_count", lambda: 1)
        yield


def shared_in(folder):
    return Shared(*(folder / n for n in ("teachers", "data", "generators")))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of runs, and how to make one in it."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name, settings=DIGITS, **fields):
        settings = settings.changed(fields)
        iadd.run(settings, folder / name, shared_in(folder), "a command")
        return folder / name

    return folder, run


@pytest.fixture(scope="module")
def first(runs):
    """A finished run, and every evaluation that was made for it: the images
    tested on, and how many were trained on."""
    tested = []
    real = evaluate.evaluate

    def spy(key, sample_fn, test, module, **kwargs):
        # Of networks on data of their own there is one for each.
        one = sample_fn[0] if isinstance(sample_fn, list) else sample_fn
        given = jax.eval_shape(one, jax.random.key(0)).images.shape[0]
        tested.append((np.array(test.images), given))
        return real(key, sample_fn, test, module, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "evaluate", spy)
        return runs[1]("run"), tested


def images_of(run):
    return artifact.load(run / "distilled.npz").images


def rows_of(run):
    text = (run / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_all_artefacts_are_there(first):
    run, _ = first
    for name in (
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "distilled.npz",
        "distilled.png",
        "eval.json",
        "report.html",
    ):
        assert (run / name).exists(), name
    table = json.loads((run / "eval.json").read_text())
    assert list(table) == [
        "distilled",
        "distilled_last",
        "distilled_png",
        "real_initial",
        "random_real",
        "herding",
        "k_centre",
        "class_means",
        "full_data",
        "best_of_looks",
    ]
    for row in table:
        score = table[row]["convnet"]
        assert len(score["accuracies"]) == 2
        assert 0 <= score["mean"] <= 1
    best = table["best_of_looks"]["convnet"]["mean"]
    assert best >= table["distilled_last"]["convnet"]["mean"]
    assert json.loads((run / "config.json").read_text())["command"] == (
        "a command"
    )


def test_the_same_images_are_trained_on_once(first):
    """At one a class k-centre's are herding's; none but they stand twice."""
    run, tested = first
    table = json.loads((run / "eval.json").read_text())
    assert table["herding"] == table["k_centre"]
    most = max(len(images) for images, _ in tested)
    on_test = [given for images, given in tested if len(images) == most]
    # Two looks, PNG, begun with, two of random real, herding, class means; all
    # data.
    assert on_test.count(10) == 8 and len(on_test) == 9


def test_the_table_says_what_distilling_is_worth(first, capsys):
    table = json.loads((first[0] / "eval.json").read_text())
    rows = [table[row]["convnet"] for row in ("distilled", "random_real")]
    for metric in (lambda row: row, lambda row: row["balanced_accuracy"]):
        distilled, real = map(metric, rows)
        gain = distilled["gain_over_random"]
        assert (
            gain
            == evaluate.difference(
                distilled["accuracies"], real["accuracies"]
            )._asdict()
        )
        assert gain["mean"] == pytest.approx(distilled["mean"] - real["mean"])
    scores.print_table(table)
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("distilled - random_real")
    assert f"{100 * (rows[0]['mean'] - rows[1]['mean']):+.2f} points" in last
    scores.print_table(table, "balanced_accuracy")
    title, *_, last = capsys.readouterr().out.splitlines()
    gain = rows[0]["balanced_accuracy"]["gain_over_random"]["mean"]
    assert title.startswith("balanced accuracy")
    assert f"{100 * gain:+.2f} points" in last
    report = (first[0] / "report.html").read_text()
    assert "Distilling is worth" in report


def test_the_whole_data_has_steps_of_its_own(first):
    """At most 42, of 64 of 1,284 images: two epochs of 21."""
    table = json.loads((first[0] / "eval.json").read_text())
    score = table["full_data"]["convnet"]
    assert score["steps"] in (21, 42)
    assert score["learning_rate"] in ceiling.RATES
    assert score["cut"] in (True, False)
    report = (first[0] / "report.html").read_text()
    assert f"took {score['steps']} steps" in report


def test_the_distilled_file_needs_numpy_alone(first):
    run, _ = first
    with np.load(run / "distilled.npz", allow_pickle=False) as file:
        assert file["images"].shape == (10, 8, 8, 1)
        assert file["images"].dtype == np.float32
        np.testing.assert_allclose(file["labels"].sum(-1), 1)
        metadata = json.loads(str(file["metadata"]))
    assert metadata["class_names"] == [str(digit) for digit in range(10)]
    assert metadata["config"]["iadd.ipc"] == 1


def test_images_have_moved_and_importance_is_logged(first):
    run, _ = first
    with np.load(run / "initial.npz") as file:
        assert np.abs(file["images"] - images_of(run)).max() > 1e-4
    rows = rows_of(run)
    weights = [row["importance"] for row in rows if "importance" in row]
    spread = weights[-1]["conv0.kernel"]
    assert spread["min"] < spread["mean"] < spread["max"]
    assert 0 < spread["std"] < spread["max"] - spread["min"]
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_states_are_selected_without_the_test_images(first, runs):
    """Looks are scored on held-out images alone, and the best one counts."""
    run, tested = first
    folder, _ = runs
    splits, _ = prepare.load(DIGITS.data, 0, folder / "data")
    assert len(splits.held_out.labels) != len(splits.test.labels)
    looks = tested[:3]  # at 0, 6 and 12 updates
    for images, given in looks:
        np.testing.assert_array_equal(images, splits.held_out.images)
        assert given == 10
    # The length of a training on the whole data is chosen so too: three
    # rates, and one that is twice as long.
    whole = [images for images, given in tested[3:] if given > 10]
    assert len(whole) == 3 + 1 + 1
    for images in whole[:-1]:
        np.testing.assert_array_equal(images, splits.held_out.images)
    np.testing.assert_array_equal(whole[-1], splits.test.images)
    for images, given in tested[3:]:
        if given == 10:
            np.testing.assert_array_equal(images, splits.test.images)
    rows = {r["step"]: r for r in rows_of(run) if "held_out_accuracy" in r}
    assert sorted(rows) == [0, 6, 12]
    half, end = (rows[step]["held_out_accuracy"] for step in (6, 12))
    error = rows[6]["held_out_accuracy_error"]
    assert 0 <= error < 0.2
    selected = artifact.load(run / "distilled.npz").metadata["selected_step"]
    assert selected == (6 if half - end > error else 12)


def test_selection(tmp_path):
    lines = [
        {"step": 0, "held_out_accuracy": 0.9, "held_out_balanced_accuracy": 1},
        {"step": 1, "loss": 3.0},
        {"step": 2, "held_out_accuracy": 0.5, "held_out_balanced_accuracy": 0},
        {"step": 4, "held_out_accuracy": 0.7, "held_out_balanced_accuracy": 0},
        {"step": 6, "held_out_accuracy": 0.7, "held_out_balanced_accuracy": 1},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert scores.select(tmp_path, "accuracy") == (4, [2, 4, 6])
    assert scores.select(tmp_path, "balanced_accuracy") == (6, [2, 4, 6])
    path.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(InputError, match="has lost its lines"):
        scores.select(tmp_path, "accuracy")


def test_the_latest_of_what_held_out_images_cannot_tell_apart(tmp_path):
    def chosen(rows, error):
        name = "held_out_accuracy"
        lines = [
            {"step": step, name: value} | error
            for step, value in enumerate(rows)
        ]
        (tmp_path / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines)
        )
        return scores.latest(tmp_path, "accuracy")

    error = {"held_out_accuracy_error": 0.03}
    # Step 0 is real images, and never among them, however good.
    assert chosen([0.9, 0.5, 0.7, 0.68], error) == (3, [1, 2, 3])
    assert chosen([0.9, 0.5, 0.7, 0.66], error) == (2, [1, 2, 3])
    assert chosen([0.9, 0.5, 0.7, 0.66, 0.69], error) == (4, [1, 2, 3, 4])
    # The error is that of the accuracy which is asked for; runs of before
    # have none.
    other = {"held_out_balanced_accuracy_error": 0.5}
    assert chosen([0.9, 0.7, 0.7, 0.69], other) == (2, [1, 2, 3])


@pytest.mark.parametrize("fit, groups", [(0, [1, 1, 1]), (2, [2, 1]), (9, [3])])
def test_networks_on_own_data_go_in_groups(fit, groups, monkeypatch):
    """As many at a time as have room, each with its own key and data."""
    monkeypatch.setattr(parallel, "device_count", lambda: 1)
    monkeypatch.setattr(parallel, "networks_at_once", lambda: 4)
    size = 4 * 6 * 4
    monkeypatch.setattr(scores, "STACKED_BYTES", fit * size)
    monkeypatch.setattr(scores, "DRAWN_BYTES", fit * size)
    sizes, made = [], []

    def sample_fn_of(key):
        made.append(key)
        images = jax.random.uniform(key, (6, 2, 2, 1))
        return evaluate.stored(images, jnp.ones((6, 2)))

    def score(keys, data, num_networks):
        assert len(keys) == num_networks
        sizes.append(num_networks)
        each = data if isinstance(data, list) else [data] * num_networks
        found = [
            float(jax.random.uniform(key))
            + 10 * float(sample(key).images.sum())
            for key, sample in zip(keys, each, strict=True)
        ]
        return evaluate.summarise(found, np.ones((num_networks, 2)))

    key = jax.random.key(3)
    found = scores.on_own_data(score, key, sample_fn_of, 3)
    assert sizes == groups and len(made) == 3  # none is made twice
    expected = []
    for i in range(3):
        own = jax.random.fold_in(key, i)
        luck = float(jax.random.uniform(jax.random.fold_in(own, 0)))
        images = jax.random.uniform(own, (6, 2, 2, 1))
        expected.append(luck + 10 * float(images.sum()))
    np.testing.assert_allclose(found.accuracy, expected, rtol=1e-6)
    # The same networks, on data that all share: drawn anew, or stored.
    same = sample_fn_of(key)
    sizes.clear()
    drawn = scores.on_drawn_data(score, scores.keys_of(key, 3), same)
    assert sizes == groups
    shared = scores.on_shared_data(score, key, same, 3)
    assert sizes == [*groups, 3]
    np.testing.assert_array_equal(drawn.accuracy, shared.accuracy)


def test_preprocessing_is_fitted_on_the_training_images(first, runs):
    run, _ = first
    splits, _ = prepare.load(DIGITS.data, 0, runs[0] / "data")
    found = artifact.load(run / "distilled.npz").preprocessing
    pixels = splits.train.images / 255
    np.testing.assert_allclose(found.mean, pixels.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.std, pixels.std(), rtol=1e-5)
    # Told apart from fits on what it must not see.
    for part in (splits.test, splits.held_out):
        other = preprocess.fit_standardise(part.images)
        assert abs(other.mean - found.mean) > 1e-4


def test_the_same_settings_elsewhere_give_the_same_bytes(first, runs):
    again = runs[1]("again")
    assert images_of(again).tobytes() == images_of(first[0]).tobytes()


def test_a_finished_run_says_so(first, runs, capsys):
    before = (first[0] / "report.html").stat().st_mtime_ns
    runs[1]("run")
    assert "complete" in capsys.readouterr().out
    assert (first[0] / "report.html").stat().st_mtime_ns == before


def test_other_settings_are_refused_and_the_run_is_kept(first, runs):
    before = (first[0] / "distilled.npz").read_bytes()
    with pytest.raises(InputError, match=r"iadd\.ipc.*--workdir"):
        runs[1]("run", **{"iadd.ipc": 2})
    assert (first[0] / "distilled.npz").read_bytes() == before


def test_tested_again(first, runs, capsys):
    """The networks of eval.json, up to the rounding of stored pixels."""
    table = json.loads((first[0] / "eval.json").read_text())
    task = prepare.task(DIGITS.data, DIGITS.model, 0, runs[0] / "data")
    found = artifact.load(first[0] / "distilled.npz")
    iadd.test_again(DIGITS, task, found)
    mean = 100 * table["distilled"]["convnet"]["mean"]
    again = float(capsys.readouterr().out.split()[2])
    assert again == pytest.approx(mean, abs=1)
    small = found._replace(images=found.images[:, :4])
    with pytest.raises(InputError, match=r"\(4, 8, 1\).*\(8, 8, 1\)"):
        iadd.test_again(DIGITS, task, small)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"iadd.ipc": 1000}, "class 0 has .* fewer than the 1000"),
        ({"data.source": "cifar11"}, "'cifar11'.*digits"),
        ({"model.depth": 9}, "depth"),
    ],
)
def test_what_only_the_data_can_tell(runs, fields, said):
    folder, run = runs
    with pytest.raises(InputError, match=said):
        run("refused", **fields)
    assert not (folder / "refused").exists()


def test_more_devices_than_segments_change_nothing(first, runs, monkeypatch):
    monkeypatch.setattr(parallel, "device_count", lambda: 4)
    other = runs[1]("on_four")
    np.testing.assert_array_equal(images_of(other), images_of(first[0]))


def test_a_damaged_teacher_is_named(first, runs):
    folder, run = runs
    path = next(folder.glob("teachers/*/teacher_0001.npy"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    try:
        with pytest.raises(InputError, match=rf"{path} is .*damaged"):
            run("damaged")
        assert path.stat().st_size == len(whole) - 100
    finally:
        path.write_bytes(whole)
    assert not (folder / "damaged").exists()


def test_what_leaves_its_bounds_stops_and_frees_the_folder(runs):
    """The command that the message recommends is taken in the same folder."""
    folder, run = runs
    with pytest.raises(InputError, match=r"learning rate .* leaves its bounds"):
        run("diverged", **{"iadd.learning_rate_step": 10.0})
    assert not (folder / "diverged").exists()
    with pytest.raises(InputError, match="there is no checkpoint yet"):
        run("diverged", **{"iadd.image_step": 1e30})
    assert not (folder / "diverged").exists()


def test_a_run_that_leaves_its_bounds_goes_on_with_smaller_steps(runs, capsys):
    run = runs[1]("mended", **{"iadd.learning_rate_step": 1e-3})
    said = capsys.readouterr().out
    assert "leaves its bounds" in said and "Going back to update" in said
    assert "left their bounds on the way" in (run / "report.html").read_text()
    rates = [row["learning_rate"] for row in rows_of(run) if "loss" in row]
    assert all(1e-6 <= rate <= 1 for rate in rates)


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(runs):
    """The first update sends the images so far that the second overflows."""
    folder, run = runs
    fields = {"iadd.image_step": 1e30, "log.checkpoint_every": 1}
    with pytest.raises(InputError, match=r"update 2.*iadd\.image_step.*kept"):
        run("exploded", **fields)
    assert list((folder / "exploded" / "checkpoints").glob("[0-9]*"))
    with pytest.raises(InputError, match="holds a run of another config"):
        run("exploded")


def test_a_full_disk_is_told(runs, monkeypatch):
    """Every file has to pass through fsync; the disk says no there."""

    def fsync(fd):
        raise OSError(errno.ENOSPC, "No space left on device", "disk")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        runs[1]("full")
    assert not (runs[0] / "full").exists()


# In latent space --------------------------------------------------------------

LATENT = DIGITS.changed(
    {name: value for name, value in D2M.items() if name.startswith("gan.")}
    | {
        "iadd.space": "latent",
        "iadd.optimizer": "adam",
        "iadd.generator_rate": 1e-3,
        "iadd.initial": "centres",
        "evaluate.baselines": "",
    }
)


@pytest.fixture(scope="module")
def in_latent_space(runs):
    return runs[1]("latent", LATENT)


def test_latents_make_the_distilled_images(in_latent_space, runs):
    run = in_latent_space
    with np.load(run / "latents.npz") as file:
        noise, labels = map(jnp.asarray, (file["noise"], file["labels"]))
    found = artifact.load_generator(run / "generator" / "distilled.npz")
    images = images_of(run)
    np.testing.assert_allclose(
        jax.jit(found.apply)(found.params, noise, labels), images, atol=1e-5
    )
    assert images.min() >= -1e-5 and images.max() <= 1 + 1e-5
    # Both have moved from what was begun with.
    begun = artifact.load_generator(run / "generator" / "pretrained.npz")
    with np.load(run / "initial.npz") as file:
        before = file["images"]
    made = np.asarray(jax.jit(begun.apply)(begun.params, noise, labels))
    assert np.abs(made - images).max() > 1e-4
    assert np.abs(made - before).max() > 1e-4
    table = json.loads((run / "eval.json").read_text())
    assert "generated_initial" in table and "real_initial" not in table
    page = (run / "report.html").read_text()
    assert "The generated images they started from" in page
    assert "latents.npz" in page
    # Not D2M's, though there is a generator.
    assert report.write_page(run).read_text() == page


def test_a_latent_run_that_was_stopped_ends_the_same(
    in_latent_space, runs, monkeypatch
):
    real = iadd.look

    def stopped(settings, folder, task, made, state, step):
        if step == 6:
            raise KeyboardInterrupt
        return real(settings, folder, task, made, state, step)

    monkeypatch.setattr(iadd, "look", stopped)
    with pytest.raises(KeyboardInterrupt):
        runs[1]("stopped", LATENT)
    monkeypatch.setattr(iadd, "look", real)
    run = runs[1]("stopped", LATENT)
    for name in ("latents.npz", "initial.npz"):
        assert (run / name).read_bytes() == (
            in_latent_space / name
        ).read_bytes()
    assert images_of(run).tobytes() == images_of(in_latent_space).tobytes()
    losses = [
        [row["loss"] for row in rows_of(folder) if "loss" in row]
        for folder in (run, in_latent_space)
    ]
    assert losses[0] == losses[1]


def test_spaces_are_not_mixed(in_latent_space, first, runs):
    for name, settings in (("latent", DIGITS), ("run", LATENT)):
        with pytest.raises(InputError, match=r"iadd\.space is .*--workdir"):
            runs[1](name, settings)
    with pytest.raises(InputError, match=r"minutes=.*iadd\.iterations"):
        runs[1]("planned", LATENT, minutes=1.0)


# A folder of the user's own ---------------------------------------------------

OWN = {
    "data.size": 8,
    "data.preprocess": "zca",
    "data.unreadable_share": 0.1,
    "iadd.image_step": 1.0,
    "teacher.batch_size": 16,
    "evaluate.metric": "balanced_accuracy",
}


@pytest.fixture(scope="module")
def own(runs):
    """Bright bars and dark ones, 24 and 16, and a file that is broken."""
    folder, run = runs
    rng = np.random.default_rng(0)
    for label, name in enumerate(("bright", "dark")):
        (folder / "set" / name).mkdir(parents=True)
        for i in range(24 - 8 * label):
            pixels = rng.integers(0, 90, (10 + i % 3, 12), dtype=np.uint8)
            pixels[2:-2, 3:6] = 250 - 200 * label
            path = folder / "set" / name / f"{i:02}.png"
            Image.fromarray(pixels).convert("P" if i % 2 else "L").save(path)
    (folder / "set" / "dark" / "cut.png").write_bytes(b"no picture")
    (folder / "set" / "notes.txt").write_text("not an image")
    settings = Settings.of(presets.own(str(folder / "set"), 1) | IADD | OWN)

    def run_own(name, **fields):
        return run(name, settings, **fields)

    return folder, run_own, settings


def test_own_folder_from_files_to_report(own, capsys):
    _, run_own, _ = own
    run = run_own("own")
    said = capsys.readouterr()
    assert "1 image cannot be read and is left out" in said.out + said.err
    assert "cut.png" in said.out + said.err
    table = json.loads((run / "eval.json").read_text())
    score = table["full_data"]["convnet"]
    assert len(score["recall"]) == 2
    np.testing.assert_allclose(
        np.mean(score["recall"]), score["balanced_accuracy"]["mean"]
    )
    with np.load(run / "distilled.npz") as file:
        metadata = json.loads(str(file["metadata"]))
        images, matrix = file["images"], file["preprocess/matrix"]
        inputs = (images - file["preprocess/mean"]).reshape(2, -1) @ matrix
    assert metadata["class_names"] == ["bright", "dark"]
    assert images.shape == (2, 8, 8, 3) and matrix.shape == (192, 192)
    assert inputs.shape == (2, 192)
    # Whitened and back, the real images they started from are uint8 again.
    with np.load(run / "initial.npz") as file:
        levels = 255 * file["images"]
    np.testing.assert_allclose(levels, np.rint(levels), atol=0.01)
    assert levels.min() >= -0.01 and 200 < levels.max() < 255.01
    report = (run / "report.html").read_text()
    assert "bright" in report and "alanced accuracy" in report


def test_own_folder_is_decoded_once_and_shown(own, capsys):
    folder, _, settings = own
    prepare.write_page(settings.data, 0, folder / "data", folder / "page")
    assert "2 classes of 8 x 8 x 3 images" in capsys.readouterr().out
    page = (folder / "page" / "data.html").read_text()
    assert "cut.png" in page and "dark" in page
    prepared = [p for p in (folder / "data").iterdir() if p.is_dir()]
    assert len(prepared) == 1


def test_adams_rate_is_in_units_of_the_input(own):
    """An own folder goes by Adam, however its images are preprocessed."""
    folder, _, settings = own
    assert settings.iadd.optimizer == "adam"
    task = prepare.task(settings.data, settings.model, 0, folder / "data")
    inputs = preprocess.apply(task.preprocessing, task.splits.train.images)
    assert task.input_spread() == pytest.approx(float(inputs.std()), rel=1e-5)
    assert task.input_spread() < 0.9  # whitened
    part = iadd.in_input_units(settings.iadd, task)
    assert part.image_rate == pytest.approx(0.1 * task.input_spread())
    sgd = settings.changed({"iadd.optimizer": "sgd"}).iadd
    assert iadd.in_input_units(sgd, task) is sgd


def test_from_disk_the_run_is_the_same(own):
    folder, run_own, _ = own
    disk = run_own("disk", **{"data.in_memory_gb": 0.0})
    np.testing.assert_allclose(
        images_of(disk), images_of(folder / "own"), atol=1e-5
    )
    tables = [
        json.loads((run / "eval.json").read_text())
        for run in (folder / "own", disk)
    ]
    for row in tables[0]:
        np.testing.assert_allclose(
            tables[0][row]["convnet"]["accuracies"],
            tables[1][row]["convnet"]["accuracies"],
        )


def test_a_run_on_a_folder_that_changed(own):
    folder, run_own, _ = own
    fields = {
        "iadd.optimizer": "sgd",
        "iadd.image_step": 1e20,
        "iadd.bound": "none",
        "log.checkpoint_every": 1,
    }
    with pytest.raises(InputError, match="update"):
        run_own("changed", **fields)
    added = folder / "set" / "bright" / "99.png"
    Image.fromarray(np.full((9, 9), 240, np.uint8)).save(added)
    try:
        with pytest.raises(InputError, match="other images"):
            run_own("changed", **fields)
        with pytest.raises(InputError, match="other images"):
            run_own("own")
    finally:
        added.unlink()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"data.data_dir": "no/where"}, "no/where"),
        ({"data.unreadable_share": 0.0}, r"cut\.png.*unreadable_share"),
        ({"data.size": 0}, r"different sizes.*config\.data\.size"),
        ({"iadd.ipc": 99}, r"lower config\.iadd\.ipc"),
    ],
)
def test_own_folder_refusals(own, changes, said):
    folder, run_own, _ = own
    with pytest.raises(InputError, match=said):
        run_own("refused", **changes)
    assert not (folder / "refused").exists()


@pytest.mark.parametrize(
    "bound, share, margin",
    [("clamp", 1.0, 0.0), ("near", 1.0, 0.25), ("soft", 0.1, 0.0)],
)
@pytest.mark.parametrize("name", ["standardise", "zca"])
def test_pixels_are_kept_by_black_and_white(runs, bound, share, margin, name):
    folder, _ = runs
    settings = DIGITS.changed(
        {"iadd.bound": bound, "data.preprocess": name, "data.per_class": 40}
    )
    task = prepare.task(settings.data, settings.model, 0, folder / "data")
    project = iadd.within_bounds(settings.iadd, task)
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-0.5, 1.5, (3, *task.image_shape)).astype(np.float32)
    there = project(preprocess.apply(task.preprocessing, pixels))
    back = preprocess.invert(task.preprocessing, there)
    beyond = pixels - pixels.clip(-margin, 1 + margin)
    np.testing.assert_allclose(back, pixels - share * beyond, atol=2e-5)
    assert iadd.within_bounds(DIGITS.iadd, task) is None


def test_a_clamped_run_is_a_picture(runs):
    """Its values end within 0..1, and the PNG's row is hardly another."""
    run = runs[1]("clamped", **{"iadd.bound": "clamp", "iadd.image_step": 1e3})
    images = images_of(run)
    assert images.min() >= -1e-5 and images.max() <= 1 + 1e-5
    with np.load(run / "initial.npz") as file:
        assert np.abs(file["images"] - images).max() > 0.1


def test_the_png_is_scored_as_it_is_stored(first, runs):
    folder, _ = runs
    task = prepare.task(DIGITS.data, DIGITS.model, 0, folder / "data")
    pixels = np.linspace(-0.3, 1.2, 64, dtype=np.float32).reshape(1, 8, 8, 1)
    inputs = preprocess.apply(task.preprocessing, pixels)
    back = preprocess.invert(task.preprocessing, iadd.as_png(task, inputs))
    levels = 255 * np.asarray(back, np.float64)
    np.testing.assert_allclose(levels, levels.round(), atol=1e-3)
    np.testing.assert_allclose(back, pixels.clip(0, 1), atol=0.5 / 255 + 1e-5)
    table = json.loads((first[0] / "eval.json").read_text())
    assert len(table["distilled_png"]["convnet"]["accuracies"]) == 2


def test_labels_of_teachers(runs):
    """The mean logits of those who are right, by hand; else the hard label."""
    folder, _ = runs
    settings = DIGITS.changed({"iadd.labels": "teachers"})
    task = prepare.task(settings.data, settings.model, 0, folder / "data")
    initial = iadd.choose_initial(settings, task)
    # Teachers are linear: a bias apiece, and images that do not matter.
    logits = {
        0: np.eye(10)[initial.labels.argmax(-1)] * 2.0,
        1: np.eye(10)[initial.labels.argmax(-1)] * 1.0,
    }
    logits[1][:4] = 0.5 * np.eye(10)[9]  # wrong of the first four
    logits[0][0] = 0.5 * np.eye(10)[8]  # nobody knows the first

    class Store:
        count, epochs = 2, 3

        def snapshot(self, teacher, epoch):
            assert epoch == 3
            return np.float32(logits[teacher])

    class Network:
        def apply(self, variables, images):
            return variables["params"], {}

    found = iadd.with_labels(
        settings, initial, task._replace(module=Network()), Store()
    )
    labels = np.asarray(found.labels)
    np.testing.assert_allclose(labels[0], initial.labels[0])
    for i in range(1, 10):
        mean = logits[0][i] if i < 4 else (logits[0][i] + logits[1][i]) / 2
        np.testing.assert_allclose(
            labels[i], np.exp(mean) / np.exp(mean).sum(), rtol=1e-5
        )
    np.testing.assert_array_equal(
        iadd.with_labels(DIGITS, initial, task, None).labels, initial.labels
    )


def test_labels_of_teachers_are_what_a_run_ends_with(runs):
    run = runs[1]("soft", **{"iadd.labels": "teachers"})
    labels = artifact.load(run / "distilled.npz").labels
    np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-5)
    assert ((labels > 0) & (labels < 1)).any()


@pytest.mark.parametrize("name", ["herding", "k_centre"])
def test_begun_with_picked_images(first, runs, name):
    """Those that the baselines show, class by class."""
    task = prepare.task(DIGITS.data, DIGITS.model, 0, runs[0] / "data")
    asked = DIGITS.changed({"iadd.initial": name, "iadd.ipc": 2})
    store = teachers.train(asked, task, runs[0] / "teachers")
    random = iadd.choose_initial(asked, task)
    found = iadd.picked(asked, random, task, store)
    seen = store.snapshot(0, store.epochs)
    picks = baselines.pick([name], task, seen, [2])[2][name]
    np.testing.assert_array_equal(found.images, picks.images)
    np.testing.assert_array_equal(found.labels, picks.labels)
    assert not np.array_equal(found.images, random.images)
    as_asked = iadd.picked(DIGITS, random, task, store)
    assert as_asked is random


def test_the_window_widens():
    """From the teachers' start to the whole of it, half-way through."""
    asked = []

    class Store:
        def sample(self, key, *, max_start, span):
            asked.append((max_start, span))
            return Segment({"w": np.zeros(1)}, {"w": np.ones(1)})

    part = Settings().changed(
        {
            "iadd.iterations": 20,
            "iadd.max_start": 8,
            "iadd.span": 3,
            "iadd.segments": 2,
        }
    )
    for widen in (0.5, 0.0):
        for step in (0, 5, 10, 19):
            found = iadd.draw_segments(
                part.changed({"iadd.widen": widen}).iadd,
                Store(),
                jax.random.key(0),
                step,
            )
            assert found.start["w"].shape == (2, 1)
    expected = [0, 0, 4, 4, 8, 8, 8, 8] + 8 * [8]
    assert asked == [(start, 3) for start in expected]
