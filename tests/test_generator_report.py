"""The pages of a generator's pre-training and of its distillation."""

import importlib.util
import json
import math
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import cells, check_self_contained, parse, section, sections

from ddjax import artifact, generator_report
from ddjax.data import preprocess
from ddjax.models import biggan
from ddjax.types import InputError

ROOT = pathlib.Path(__file__).parent.parent
NAMES = ["<b>x", "dog & cat", "z"]
SELECTED = 20
T2 = 4.302652729911275  # Student's t: 97.5% of 2 degrees of freedom


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """A generator's file, of three classes."""
    module = biggan.Generator(
        num_classes=3,
        size=8,
        channels=1,
        width=4,
        noise=6,
        form=biggan.FOLDED,
    )
    shapes = jax.eval_shape(
        module.init,
        jax.random.key(0),
        jnp.zeros((1, 6)),
        jnp.zeros(1, jnp.int32),
    )["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes
    )
    path = tmp_path_factory.mktemp("generator") / "generator.npz"
    artifact.save_generator(
        path,
        artifact.GeneratorArtifact(
            biggan.GenApply(module),
            params,
            preprocess.Standardiser(np.zeros(1, "f4"), np.ones(1, "f4")),
            {
                "class_names": NAMES,
                "method": "D2M",
                "model": {"name": "convnet"},
                "selected_step": SELECTED,
            },
        ),
    )
    return path


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_pretraining(parent, generator):
    folder = parent / "digits-<0>"
    (folder / "samples").mkdir(parents=True)
    shutil.copy(generator, folder / "generator.npz")
    shaped_by = {"gan.width": 4, "gan.augment": "<script>", "data": "abc"}
    (folder / "shaped_by.json").write_text(json.dumps(shaped_by))
    write_lines(
        folder / "metrics.jsonl",
        [
            {
                "step": step,
                "generator_loss": -step / 10,
                "critic_loss": 2.0,
                "real_score": 0.5,
                "fake_score": -0.5,
                "seconds": 2.0,
            }
            for step in range(10, 61, 10)
        ],
    )
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(3, dtype=np.int32), 10)
    for step in (30, 60):
        np.savez(
            folder / "samples" / f"{step:07d}.npz",
            images=rng.uniform(size=(30, 8, 8, 1)).astype(np.float32),
            labels=labels,
        )
    quality = {
        "classification_accuracy": [0.8, 0.9, 0.7],
        "frechet_distance": 0.01234,
        "features": "layer <i> of teacher 0",
        "images": 1284,
        "size_in_images": 7.5,
    }
    (folder / "quality.json").write_text(json.dumps(quality))
    return folder


def result(accuracies, **more):
    mean, std = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
    ci95 = T2 * std / math.sqrt(3)
    return {
        "mean": mean,
        "std": std,
        "ci95": ci95,
        "accuracies": accuracies,
        **more,
    }


BEFORE, AFTER, REAL = [0.6, 0.7, 0.5], [0.7, 0.9, 0.5], [0.55, 0.55, 0.55]


def make_scores():
    """Two numbers of images per class, two networks."""
    scores = {}
    for ipc, shift in (("1", -0.2), ("10", 0.0), ("50", 0.05)):
        for what, values in (
            ("distilled", AFTER),
            ("pretrained", BEFORE),
            ("random_real", REAL),
        ):
            scores[f"stored/{ipc}/{what}"] = {
                "convnet": result([value + shift for value in values]),
                "<i>mlp": result([value + shift - 0.1 for value in values]),
            }
    for what, values in (("distilled", AFTER), ("pretrained", BEFORE)):
        scores[f"stream/77/{what}"] = {
            "convnet": result([value + 0.08 for value in values])
        }
    scores["full_data"] = {"convnet": result([0.97, 0.98, 0.99])}
    return scores


def make_run(parent, generator):
    workdir = parent / "run<1>"
    (workdir / "generator").mkdir(parents=True)
    for name in ("pretrained", "distilled"):
        shutil.copy(generator, workdir / "generator" / f"{name}.npz")
    config = {
        "config": {"evaluate.metric": "accuracy", "d2m.rate": "<script>1"},
        "command": "python experiments/d2m.py --config='a<b'",
        "versions": {"jax": "0.10.2"},
        "device": "cpu <2>",
    }
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "eval.json").write_text(json.dumps(make_scores()))
    lines = [
        {
            "step": step,
            "loss": 1.0 / step,
            "embedding": 0.1,
            "prediction": 0.2,
            "gradient_norm": 3.0,
            "seconds": 2.0,
        }
        for step in range(1, 41)
    ]
    for step, score in ((0, 0.61), (20, 0.72), (40, 0.7)):
        for metric in ("accuracy", "balanced_accuracy"):
            lines.append(
                {
                    "step": step,
                    f"held_out_{metric}": score,
                    f"held_out_{metric}_std": 0.01,
                }
            )
    write_lines(workdir / "metrics.jsonl", lines)
    rng = np.random.default_rng(2)
    np.savez(
        workdir / "samples.npz",
        labels=np.repeat(np.arange(3), 10),
        **{
            kind: rng.uniform(size=(30, 8, 8, 1)).astype(np.float32)
            for kind in ("real", "pretrained", "distilled")
        },
    )
    return workdir


@pytest.fixture
def pretraining(tmp_path, generator):
    """Nothing logged: drawing curves takes most of a page's time."""
    folder = make_pretraining(tmp_path, generator)
    (folder / "metrics.jsonl").write_text("")
    return folder


@pytest.fixture
def run(tmp_path, generator):
    """A run of a generator that was given, and nothing logged."""
    workdir = make_run(tmp_path, generator)
    (workdir / "metrics.jsonl").unlink()
    return workdir


@pytest.fixture(scope="module")
def whole(tmp_path_factory, generator):
    """Folders of a pre-training and of a run that made it."""
    parent = tmp_path_factory.mktemp("whole")
    folders = make_pretraining(parent, generator), make_run(parent, generator)
    generator_report.copy_pretraining(*folders)
    return folders


@pytest.fixture(scope="module")
def gan_text(whole):
    """The page of the pre-training."""
    return generator_report.write_gan_report(whole[0]).read_text("utf-8")


@pytest.fixture(scope="module")
def text(whole):
    """The page of the run."""
    return page(whole[1])


def page(workdir):
    return generator_report.write_d2m_report(workdir).read_text("utf-8")


def summary(text):
    text = re.search(r"<p>(.*?)</p>", text, re.S)[1]
    return re.sub(r"</?strong>", "", text).replace("\xa0", " ")


# Pre-training ---------------------------------------------------------------


def test_the_page_of_a_pretraining(gan_text, generator):
    assert sections(gan_text) == [
        "pictures",
        "quality",
        "looks",
        "curves",
        "files",
        "commands",
        "config",
    ]
    check_self_contained(gan_text)
    found = artifact.load_generator(generator)
    count = sum(leaf.size for leaf in jax.tree.leaves(found.params))
    assert f"A generator of {count:,} parameters" in summary(gan_text)
    assert f"{count / 64:.0f} images of the data set" in summary(gan_text)
    assert "in 60 steps, about 2 min." in summary(gan_text)
    # 0.1 * t / sqrt(3)
    assert "80.0 ± 24.8%" in summary(gan_text)
    quality = section(gan_text, "quality")
    assert "80.0 ± 24.8%" in quality
    assert "<strong>0.0123</strong>, between 1,284 real" in quality
    assert "layer &lt;i&gt; of teacher 0" in quality
    looks = section(gan_text, "looks")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", looks)
    assert captions == ["Step 30", "Step 60"]
    assert 'alt="Step 60: 6 images of 3 classes' in looks
    assert "30 images of 3 classes" in section(gan_text, "pictures")
    assert "critic from 2 at step 10 to 2 at step 60" in gan_text
    commands = section(gan_text, "commands")
    assert "--config.gan.width=4 --config.gan.augment=" in commands
    assert "--config.data=" not in commands
    assert "<script" not in gan_text


def test_what_a_run_keeps_of_a_pretraining(run, pretraining):
    generator_report.copy_pretraining(pretraining, run)
    generator_report.copy_pretraining(pretraining, run)  # a run that goes on
    kept = run / "pretraining"
    assert sorted(path.name for path in kept.iterdir()) == [
        "metrics.jsonl",
        "quality.json",
        "samples.npz",
    ]
    for name in ("metrics.jsonl", "quality.json"):
        assert (kept / name).read_bytes() == (pretraining / name).read_bytes()
    with np.load(kept / "samples.npz") as samples:
        assert samples["steps"].tolist() == [30, 60]
        assert samples["labels"].tolist() == [0, 0, 1, 1, 2, 2]
        assert samples["images"].shape == (2, 6, 8, 8, 1)
        assert samples["images"].dtype == np.float32
        with np.load(pretraining / "samples" / "0000060.npz") as last:
            rows = [0, 1, 10, 11, 20, 21]
            assert np.array_equal(samples["images"][1], last["images"][rows])


def test_of_many_classes_twenty_are_kept(run, pretraining):
    for path in (pretraining / "samples").iterdir():
        np.savez(
            path,
            images=np.zeros((150, 8, 8, 1)),
            labels=np.repeat(np.arange(50), 3),
        )
    generator_report.copy_pretraining(pretraining, run)
    with np.load(run / "pretraining" / "samples.npz") as samples:
        assert samples["images"].shape == (2, 40, 8, 8, 1)
        assert len(set(samples["labels"].tolist())) == 20
        assert {0, 49} <= set(samples["labels"].tolist())


@pytest.mark.parametrize(
    "name", ["shaped_by.json", "generator.npz", "quality.json", "samples"]
)
def test_what_a_pretraining_lacks_is_named(pretraining, name):
    path = pretraining / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError) as error:
        generator_report.write_gan_report(pretraining)
    assert str(path) in str(error.value)
    assert "python experiments/gan.py --config=" in str(error.value)
    assert not (pretraining / "report.html").exists()


def test_damage_of_a_pretraining_is_named(run, pretraining):
    (pretraining / "quality.json").write_text('{"images": 3}')
    with pytest.raises(InputError, match=r"quality\.json does not hold"):
        generator_report.write_gan_report(pretraining)
    np.savez(
        pretraining / "samples" / "0000060.npz",
        images=np.zeros((30, 8, 8, 3)),
        labels=np.zeros(30),
    )
    with pytest.raises(InputError, match=r"0000060\.npz is not of one"):
        generator_report.copy_pretraining(pretraining, run)
    for path in (pretraining / "samples").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="holds no samples"):
        generator_report.copy_pretraining(pretraining, run)
    assert not (run / "pretraining").exists()


# Distillation ---------------------------------------------------------------


def test_sections_of_a_run(text, run):
    everything = [
        "pictures",
        "results",
        "curves",
        "pretraining",
        "files",
        "commands",
        "config",
    ]
    assert sections(text) == everything
    everything.remove("pretraining")
    everything.remove("curves")
    assert sections(page(run)) == everything


def test_summary_is_of_the_middle_number_of_images(text):
    words = summary(text)
    for part in (
        "by D2M in 40 steps, about 80 s, on cpu &lt;2&gt;.",
        "With 10 images per class from it, stored, a fresh convnet reaches "
        "70.0 ± 49.7% on the test set (mean and 95% interval over 3 networks)",
        "images of the same noise reach 60.0 ± 24.8%; the gain is "
        "+10.0 ± 24.8 points.",
        "picked at random reach 55.0 ± 0.0%.",
        "All training data reaches 98.0 ± 2.5%.",
        "The state of step 20 was selected by its accuracy with 10 images",
        "the test set played no part in it. There it reached 72.0%, before "
        "distillation 61.0%.",
    ):
        assert part in words


def tables(text):
    return re.findall(r"<table>.*?</table>", text, re.S)


def head(table):
    return re.findall(r"<th(?: [^>]*)?>(.*?)</th>", table)


def test_protocols_stand_in_tables_of_their_own(text):
    stored, stream, full = tables(section(text, "results"))
    assert head(stored) == [
        "Images per class",
        "Network",
        "Distilled",
        "Before distillation",
        "Gain, points",
        "Random real",
    ]
    # Differences 0.1, 0.2, 0: mean 0.1, interval t * 0.1 / sqrt(3); that of
    # two independent means would be 0.55.
    assert cells(stored)[2:4] == [
        [
            "10",
            "convnet",
            "70.0 ± 49.7%",
            "60.0 ± 24.8%",
            "+10.0 ± 24.8",
            "55.0 ± 0.0%",
        ],
        [
            "10",
            "&lt;i&gt;mlp",
            "60.0 ± 49.7%",
            "50.0 ± 24.8%",
            "+10.0 ± 24.8",
            "45.0 ± 0.0%",
        ],
    ]
    assert [row[0] for row in cells(stored)] == ["1"] * 2 + ["10"] * 2 + [
        "50"
    ] * 2
    assert head(stream) == [
        "Images per class",
        "Distilled",
        "Before distillation",
        "Gain, points",
    ]
    assert cells(stream) == [
        ["77", "78.0 ± 49.7%", "68.0 ± 24.8%", "+10.0 ± 24.8"]
    ]
    assert cells(full) == [["convnet", "98.0 ± 2.5%"]]
    results = section(text, "results")
    assert "same images in every epoch" in results
    assert "new images per class for every epoch" in results


def test_a_loss_is_a_loss_and_no_pairs_no_gain(run):
    scores = make_scores()
    scores["stored/10/distilled"]["convnet"] = result([0.5, 0.6, 0.4])
    scores["stored/10/pretrained"]["<i>mlp"]["accuracies"].pop()
    for what in ("distilled", "pretrained"):  # 0.04 points less
        values = [0.5 - 0.0004 * (what == "distilled")]
        scores[f"stored/1/{what}"]["convnet"] = {
            "mean": values[0],
            "std": 0.0,
            "ci95": 0.0,
            "accuracies": values,
        }
    (run / "eval.json").write_text(json.dumps(scores))
    rows = cells(tables(section(page(run), "results"))[0])
    gains = {(row[0], row[1]): row[4] for row in rows}
    assert gains["10", "convnet"] == "\N{MINUS SIGN}10.0 ± 0.0"
    assert gains["10", "&lt;i&gt;mlp"] == ""
    assert gains["1", "convnet"] == "+0.0"
    assert "the gain is \N{MINUS SIGN}10.0 ± 0.0 points" in summary(page(run))


def test_balanced_accuracy_where_it_differs(run):
    scores = make_scores()
    for row, results in scores.items():
        for network, values in results.items():
            shift = 0.3 if "distilled" in row else 0.2
            results[network] = values | {
                "balanced_accuracy": result(
                    [value - shift for value in values["accuracies"]]
                ),
                "recall": [0.25, 0.5, None],
            }
    (run / "eval.json").write_text(json.dumps(scores))
    text = section(page(run), "results")
    assert "Balanced accuracy is the mean of" in text
    found = tables(text)
    assert len(found) == 2 * 2 + 1 + 1
    assert cells(found[0])[2][2:5] == [
        "70.0 ± 49.7%",
        "60.0 ± 24.8%",
        "+10.0 ± 24.8",
    ]
    assert cells(found[1])[2][2:5] == [
        "40.0 ± 49.7%",
        "40.0 ± 24.8%",
        "+0.0 ± 24.8",
    ]
    assert cells(found[4]) == [["convnet", "98.0 ± 2.5%", "78.0 ± 2.5%"]]
    assert cells(found[5])[1] == ["dog &amp; cat", *["50.0%"] * 4]
    assert "stored, 10 images per class" in text
    # What was selected by comes first, and is what the summary speaks of.
    config = json.loads((run / "config.json").read_text())
    config["config"]["evaluate.metric"] = "balanced_accuracy"
    (run / "config.json").write_text(json.dumps(config))
    words = page(run)
    assert "reaches a balanced accuracy of 40.0 ± 49.7% on" in summary(words)
    assert "by its balanced accuracy with 10 images" in summary(words)
    assert cells(tables(section(words, "results"))[0])[2][2] == "40.0 ± 49.7%"


def test_curves_begin_before_distillation(text):
    curves = section(text, "curves")
    assert (
        "Held-out accuracy at 2 looks, highest 72.0% at step 20; 61.0% at "
        "step 0, before distillation; step 20 was selected"
    ) in curves
    for words in (
        "Loss: loss from 1 at step 1 to 0.025 at step 40",
        "Embedding matching: embedding from 0.1",
        "Prediction matching: prediction from 0.2",
    ):
        assert words in curves


def test_pictures_of_three_kinds_and_of_the_pretraining(text):
    pictures = section(text, "pictures")
    assert re.findall(r"<figcaption>(.*?)</figcaption>", pictures) == [
        "Real",
        "Pre-trained: before distillation",
        "Distilled",
    ]
    assert pictures.count("30 images of 3 classes, one column") == 3
    told = section(text, "pretraining")
    assert "Step 30" in told and "Step 60" in told
    assert "<strong>80.0 ± 24.8%</strong>" in told
    assert "layer &lt;i&gt; of teacher 0" in told
    for tag in re.findall(r"<(?:img|svg) [^>]*>", text):
        assert re.search(r'(?:alt|aria-label)="[^"]{10,}"', tag)


def test_files_and_commands_of_a_run(text):
    files = [row[0] for row in cells(section(text, "files"))]
    assert files == [
        "config.json",
        "metrics.jsonl",
        "pretraining/",
        "generator/pretrained.npz",
        "generator/distilled.npz",
        "samples.npz",
        "eval.json",
    ]
    commands = section(text, "commands")
    assert "python experiments/d2m.py --config=&#x27;a&lt;b&#x27;" in commands
    assert re.search(
        r"generate\.py --generator=\S*run&lt;1&gt;\S* --ipc=50 --seed=0 --out",
        commands,
    )
    assert "experiments/report.py --workdir=" in commands


def test_the_page_of_a_run_is_self_contained_and_escaped(text):
    check_self_contained(text)
    for raw in ("<script", "<b>", "<i>", "a<b", "run<1>", "cpu <"):
        assert raw not in text
    attributes = parse(text).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 8


def test_same_artefacts_same_bytes(run):
    write_lines(run / "metrics.jsonl", [{"step": 1, "loss": 0.5}])
    assert page(run) == page(run)
    assert not list(run.glob(".*"))  # no partial file stays


@pytest.mark.parametrize(
    "name",
    ["config.json", "samples.npz", "eval.json", "generator/distilled.npz"],
)
def test_what_a_run_lacks_is_named_with_a_command(run, name):
    (run / name).unlink()
    command = "python experiments/d2m.py --config="
    with pytest.raises(InputError) as error:
        generator_report.write_d2m_report(run)
    assert str(run / name) in str(error.value)
    assert f"make it with: {command}" in str(error.value)
    assert "\n" not in str(error.value)
    # A folder with a page counts as finished: the script would do nothing.
    (run / "report.html").touch()
    with pytest.raises(InputError, match=r"rm \S*report\.html\S* && python"):
        generator_report.write_d2m_report(run)


def test_damage_of_a_run_is_named(run, pretraining):
    generator_report.copy_pretraining(pretraining, run)
    (run / "pretraining" / "quality.json").write_text("{}")
    with pytest.raises(InputError, match=r"quality\.json does not hold"):
        generator_report.write_d2m_report(run)
    (run / "pretraining" / "quality.json").unlink()
    with pytest.raises(InputError, match=r"pretraining.quality\.json is miss"):
        generator_report.write_d2m_report(run)
    np.savez(
        run / "samples.npz",
        labels=np.zeros(3),
        real=np.zeros((3, 8, 8, 1)),
        pretrained=np.zeros((2, 8, 8, 1)),
        distilled=np.zeros((3, 8, 8, 1)),
    )
    with pytest.raises(InputError, match="holds pretrained images of shape"):
        generator_report.write_d2m_report(run)
    (run / "samples.npz").write_bytes(b"PK no zip")
    with pytest.raises(InputError, match=r"samples\.npz is not a whole npz"):
        generator_report.write_d2m_report(run)
    (run / "eval.json").write_text('{"full_data": 3, "stored/1/x": {}}')
    with pytest.raises(InputError, match="no row stored/IPC/distilled"):
        generator_report.write_d2m_report(run)
    (run / "generator" / "distilled.npz").write_bytes(b"PK")
    (run / "eval.json").write_text(json.dumps(make_scores()))
    with pytest.raises(InputError, match="is damaged or no generator"):
        generator_report.write_d2m_report(run)
    with pytest.raises(InputError, match="there is no run folder"):
        generator_report.write_d2m_report(run / "nowhere")


def test_the_script_writes_what_the_folder_is_of(run, pretraining, capsys):
    path = ROOT / "experiments" / "report.py"
    spec = importlib.util.spec_from_file_location("report_script", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for folder, title in (
        (run, "Distillation report"),
        (pretraining, "Pre-training report"),
    ):
        assert script.main([f"--workdir={folder}"]) == 0
        assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
        assert f"<title>{title}" in (folder / "report.html").read_text()
