"""The page of a run of D2M."""

import json
import re

import numpy as np
import pytest
from page_folders import (
    make_d2m,
    make_pretraining,
    make_scores,
    result,
    write_lines,
)
from read_pages import (
    cells,
    check_self_contained,
    parse,
    section,
    sections,
    summary,
)

from ddjax import artifact
from ddjax.pages import d2m, gan, report
from ddjax.types import InputError


@pytest.fixture(scope="module")
def text(tmp_path_factory, generator):
    """The page of a run that made its generator."""
    parent = tmp_path_factory.mktemp("whole")
    workdir = make_d2m(parent, generator)
    gan.copy_pretraining(make_pretraining(parent, generator), workdir)
    return page(workdir)


@pytest.fixture
def run(tmp_path, generator):
    """A run of a generator that was given, and nothing logged."""
    workdir = make_d2m(tmp_path, generator)
    (workdir / "metrics.jsonl").unlink()
    return workdir


def page(workdir):
    return d2m.write_page(workdir).read_text("utf-8")


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


def test_a_generator_that_did_not_gain(tmp_path, generator):
    run = make_d2m(tmp_path, generator)
    path = run / "generator" / "distilled.npz"
    found = artifact.load_generator(path)
    found.metadata["selected_step"] = 0
    artifact.save_generator(path, found)
    text = page(run)
    assert (
        "pre-trained, and is what it was: distilling it by D2M in 40 steps, "
        "about 80 s, gained nothing on held-out training images, on cpu "
        "&lt;2&gt;."
    ) in summary(text)
    assert "The state of step 0 was selected" in summary(text)
    assert "before distillation; step 0 was selected" in section(text, "curves")


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


def test_picks_have_columns_and_the_whole_data_its_length(run, text):
    assert "Herding" not in text and "steps of SGD" not in text
    scores = make_scores()
    for ipc in ("1", "10", "50"):
        for what, score in (("herding", 0.61), ("class_means", 0.63)):
            scores[f"stored/{ipc}/{what}"] = {"convnet": result([score] * 3)}
    scores["full_data"]["convnet"] |= {
        "steps": 1234,
        "learning_rate": 0.1,
        "cut": True,
    }
    gain = {"mean": 0.15, "low": -0.25, "high": 0.55}
    scores["stored/10/distilled"]["convnet"]["gain_over_random"] = gain
    (run / "eval.json").write_text(json.dumps(scores))
    found = page(run)
    table = tables(section(found, "results"))[0]
    assert head(table)[5:] == ["Random real", "Herding", "Class means"]
    assert cells(table)[2][5:] == [
        "55.0 ± 0.0%",
        "61.0 ± 0.0%",
        "63.0 ± 0.0%",
    ]
    assert cells(table)[3][5:] == ["45.0 ± 0.0%", "", ""]
    assert "Herding picks" in found and "K-centre begins" not in found
    assert "took 1,234 steps" in found and "evaluate.full_steps" in found
    assert (
        "worth +15.0 points over them (95% interval \N{MINUS SIGN}25.0 to "
        "+55.0), which may be chance."
    ) in summary(found)


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


def test_one_table_where_balanced_accuracy_is_nearly_the_same(run):
    """Of what was selected by, so that the table and the lead agree."""
    scores = make_scores()
    for results in scores.values():
        for network, values in results.items():
            near = [value - 0.004 for value in values["accuracies"]]
            results[network] = values | {"balanced_accuracy": result(near)}
    (run / "eval.json").write_text(json.dumps(scores))
    config = json.loads((run / "config.json").read_text())
    for metric, shown in (
        ("accuracy", "70.0 ± 49.7%"),
        ("balanced_accuracy", "69.6 ± 49.7%"),
    ):
        config["config"]["evaluate.metric"] = metric
        (run / "config.json").write_text(json.dumps(config))
        words = page(run)
        found = tables(section(words, "results"))
        assert len(found) == 2 + 1
        assert cells(found[0])[2][2] == shown
        assert shown in summary(words)


def test_the_lead_tells_of_chosen_images(run):
    scores = make_scores()
    for side, accuracies in (
        ("distilled", [0.81, 0.82, 0.83]),
        ("pretrained", [0.71, 0.72, 0.73]),
    ):
        scores[f"stored/10/{side}_chosen"] = {"convnet": result(accuracies)}
    (run / "eval.json").write_text(json.dumps(scores))
    words = summary(page(run))
    assert "Where as many are chosen from more" in words
    assert "82.0 ± 2.5%" in words and "72.0 ± 2.5%" in words


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
    assert "python experiments/d2m.py --config=&#39;a&lt;b&#39;" in commands
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
        d2m.write_page(run)
    assert str(run / name) in str(error.value)
    assert f"make it with: {command}" in str(error.value)
    assert "\n" not in str(error.value)
    # A folder with a page counts as finished: the script would do nothing.
    (run / "report.html").touch()
    with pytest.raises(InputError, match=r"rm \S*report\.html\S* && python"):
        d2m.write_page(run)


def test_damage_of_a_run_is_named(run, pretraining):
    gan.copy_pretraining(pretraining, run)
    (run / "pretraining" / "quality.json").write_text("{}")
    with pytest.raises(InputError, match=r"quality\.json does not hold"):
        d2m.write_page(run)
    (run / "pretraining" / "quality.json").unlink()
    with pytest.raises(InputError, match=r"pretraining.quality\.json is miss"):
        d2m.write_page(run)
    np.savez(
        run / "samples.npz",
        labels=np.zeros(3),
        real=np.zeros((3, 8, 8, 1)),
        pretrained=np.zeros((2, 8, 8, 1)),
        distilled=np.zeros((3, 8, 8, 1)),
    )
    with pytest.raises(InputError, match="holds pretrained images of shape"):
        d2m.write_page(run)
    (run / "samples.npz").write_bytes(b"PK no zip")
    with pytest.raises(InputError, match=r"samples\.npz is not a whole npz"):
        d2m.write_page(run)
    (run / "eval.json").write_text('{"full_data": 3, "stored/1/x": {}}')
    with pytest.raises(InputError, match="no row stored/IPC/distilled"):
        d2m.write_page(run)
    (run / "generator" / "distilled.npz").write_bytes(b"PK")
    (run / "eval.json").write_text(json.dumps(make_scores()))
    with pytest.raises(InputError, match="is damaged or no generator"):
        d2m.write_page(run)
    with pytest.raises(InputError, match="there is no run folder"):
        d2m.write_page(run / "nowhere")


def test_what_is_in_a_folder_decides_its_page(run, pretraining):
    for folder, title in (
        (run, "Distillation report"),
        (pretraining, "Pre-training report"),
    ):
        assert report.write_page(folder) == folder / "report.html"
        assert f"<title>{title}" in (folder / "report.html").read_text()
