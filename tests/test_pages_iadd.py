"""The report: what is on the page."""

import json
import re

import numpy as np
import pytest
from page_folders import iadd_result as result
from page_folders import make_iadd, write_eval
from read_pages import (
    cells,
    check_self_contained,
    parse,
    section,
    sections,
    summary,
)

from ddjax.pages import iadd
from ddjax.types import InputError


@pytest.fixture
def run(tmp_path):
    """A run folder with every artefact, of two classes."""
    return make_iadd(tmp_path)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The page of such a folder."""
    return page(make_iadd(tmp_path_factory.mktemp("page")))


def page(workdir):
    return iadd.write_page(workdir).read_text("utf-8")


def test_all_sections_in_order(text):
    assert sections(text) == [
        "pictures",
        "results",
        "curves",
        "importance",
        "difference",
        "files",
        "commands",
        "config",
    ]


def test_sections_of_missing_artefacts_are_left_out(run):
    for name in ("metrics.jsonl", "initial.npz", "difference.npz"):
        (run / name).unlink()
    text = page(run)
    assert sections(text) == [
        "pictures",
        "results",
        "files",
        "commands",
        "config",
    ]
    assert text.count("<img ") == 1
    assert "initial.npz" not in section(text, "files")


def test_a_plan_is_shown(run):
    path = run / "config.json"
    config = json.loads(path.read_text())
    config["config"]["minutes"] = 7.5
    assert "plan" not in sections(page(rewritten(path, config)))
    fields = {"model.width": 16, "evaluate.baselines": "herding"}
    config["plan"] = {"asked": {"model.width": 64}, "fields": fields}
    text = page(rewritten(path, config))
    assert cells(section(text, "plan")) == [
        ["model.width", "16"],
        ["evaluate.baselines", "herding"],
    ]
    assert '<a href="#plan">planned</a> for 7.5 minutes' in summary(text)


def rewritten(path, content):
    path.write_text(json.dumps(content))
    return path.parent


def test_summary_says_the_key_figures(text):
    summary = re.search(r"<p>(.*?)</p>", text, re.S)[1]
    summary = re.sub(r"</?strong>", "", summary).replace("\xa0", " ")
    for words in (
        "4 distilled images (2 per class, 2 classes, 8 &times; 8 &times; 1)",
        "train a fresh convnet to 91.2 ± 2.5% on the test set",
        "over 3 networks",
        "picked at random reach 58.3 ± 2.5%.",
        "All training data reaches 97.7%.",  # one network has no interval
        "in 50 steps, about 2 min, on cpu &lt;2&gt;.",
        "The state of step 20 was selected",
    ):
        assert words in summary


def test_results_name_the_biased_row_and_keep_unknown_ones(text):
    rows = cells(section(text, "results"))
    assert [row[1:] for row in rows] == [
        ["convnet", "91.2 ± 2.5%", "1.0", "3"],
        ["&lt;i&gt;mlp", "87.1 ± 2.5%", "1.0", "3"],
        ["convnet", "58.3 ± 2.5%", "1.0", "3"],
        ["convnet", "97.7%", "", "1"],
        ["convnet", "60.1 ± 2.5%", "1.0", "3"],
        ["convnet", "93.4 ± 2.5%", "1.0", "3"],
    ]
    assert rows[4][0] == "k&lt;means"
    assert rows[5][0] == (
        "Highest test mean of 6 looks, at step 40 "
        "(biased: chosen on the test set)"
    )
    assert not any("biased" in row[0] for row in rows[:5])


def test_everything_from_the_run_is_escaped(text):
    for raw in ("<script", "<b>", "<i>", "k<means", "a<b", "run<1>", "cpu <"):
        assert raw not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in section(text, "config")
    parse(text)


def test_page_is_self_contained(text):
    check_self_contained(text)


def test_ids_are_unique_and_references_resolve(text):
    attributes = parse(text).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 8
    for name, value in attributes:
        for target in re.findall(r"url\(#([^)]*)\)", value or ""):
            assert target in ids
        if name == "href":
            assert value[1:] in ids


def test_pictures_have_alternatives(text):
    for tag in re.findall(r"<(?:img|svg) [^>]*>", text):
        assert re.search(r'(?:alt|aria-label)="[^"]{10,}"', tag)
    # An equal ratio for all but the tensor that its teacher leaves alone.
    alt = re.search(r'aria-label="[^"]*over the start[^"]*"', text)[0]
    assert "conv0.bias teacher hardly moves" in alt
    for name in ("conv0.kernel", "norm0.scale", "&lt;i&gt;.kernel"):
        assert f"{name} 0.25" in alt


def test_same_input_same_bytes(run):
    import matplotlib

    first = iadd.write_page(run).read_bytes()
    with matplotlib.rc_context({"axes.linewidth": 9, "font.size": 20}):
        second = iadd.write_page(run).read_bytes()
    assert first == second
    assert not list(run.glob(".*"))  # no partial file stays
    write_eval(run, distilled={"convnet": result(0.5)})
    assert iadd.write_page(run).read_bytes() != first


def test_tensors_come_in_the_order_of_the_network(text):
    assert [row[0] for row in cells(section(text, "difference"))] == [
        "conv0.kernel",
        "conv0.bias",
        "norm0.scale",
        "head&#34;&gt;&lt;i&gt;.kernel",
    ]


def test_a_repeated_step_counts_once_the_later_line(run):
    with open(run / "metrics.jsonl", "w") as file:
        for loss in (9.0, 0.5):  # a run that was resumed from step 0
            for step in (1, 3):  # and logged every second step
                line = {"step": step, "loss": loss, "seconds": 10}
                file.write(json.dumps(line) + "\n")
    text = page(run)
    assert "loss from 0.5 at step 1 to 0.5 at step 3" in text
    assert "in 3 steps, about 30\xa0s" in text


@pytest.mark.parametrize("name", ["config.json", "distilled.npz", "eval.json"])
def test_missing_artefact_is_one_sentence_with_a_command(run, name):
    (run / name).unlink()
    command = {
        "config.json": "python experiments/iadd.py --config=",
        "distilled.npz": "python experiments/iadd.py --config='a<b'",
        "eval.json": "python experiments/iadd.py --config=",
    }[name]
    with pytest.raises(InputError) as error:
        iadd.write_page(run)
    message = str(error.value)
    assert str(run / name) in message
    assert command in message
    assert "\n" not in message
    assert not (run / "report.html").exists()


def test_damaged_artefacts_are_named(run):
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text("{broken\n" + lines)
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 1,"):
        iadd.write_page(run)
    (run / "metrics.jsonl").unlink()
    np.savez(run / "initial.npz", images=np.zeros((2, 8, 8, 1)), labels=[[1]])
    with pytest.raises(InputError, match="not of one run"):
        iadd.write_page(run)
    (run / "initial.npz").write_bytes(b"PK no zip")
    with pytest.raises(InputError, match=r"initial\.npz is not a whole npz"):
        iadd.write_page(run)


def unbalanced(mean, recall):
    balanced = np.mean([value for value in recall if value is not None])
    return result(
        mean, balanced_accuracy=result(float(balanced)), recall=recall
    )


def test_balanced_accuracy_has_a_column_where_it_differs(run):
    write_eval(
        run,
        distilled={"convnet": unbalanced(0.912, [0.95, 0.55])},
        random_real={"convnet": result(0.583)},  # of an older library
    )
    table = section(page(run), "results")
    assert [row[2:5] for row in cells(table)] == [
        ["91.2 ± 2.5%", "75.0 ± 2.5%", "1.0"],
        ["58.3 ± 2.5%", "", "1.0"],
    ]
    assert "Balanced accuracy is the mean of" in table
    # On a balanced test set it is the same number, up to rounding.
    write_eval(run, distilled={"convnet": unbalanced(0.7501, [0.95, 0.55])})
    table = section(page(run), "results")
    assert "Balanced" not in table
    assert [len(row) for row in cells(table)] == [5]


PICKS = ("random_real", "herding", "k_centre", "class_means")


def test_picks_stand_beside_random_images_and_are_explained(run, text):
    rows = {
        row: {"convnet": result(0.6 + 0.01 * i)} for i, row in enumerate(PICKS)
    }
    write_eval(run, full_data={"convnet": result(0.98)}, **rows)
    table = section(page(run), "results")
    assert [row[2] for row in cells(table)] == [
        f"{score} ± 2.5%" for score in ("60.0", "61.0", "62.0", "63.0", "98.0")
    ]
    sentences = ("Herding picks", "K-centre begins", "Class means are")
    for sentence in (*sentences, "Features are what the head"):
        assert sentence in table
        assert sentence not in section(text, "results")
    del rows["herding"], rows["class_means"]
    write_eval(run, **rows)
    table = section(page(run), "results")
    assert [sentence in table for sentence in sentences] == [False, True, False]


def summary_with(run, gain):
    write_eval(
        run,
        distilled={"convnet": result(0.912, gain_over_random=gain)},
        random_real={"convnet": result(0.583)},
    )
    return page(run)


def test_the_gain_over_random_images_is_told(run):
    gain = {"mean": 0.329, "low": 0.1, "high": 0.558}
    assert (
        "reach <strong>58.3 ± 2.5%</strong>. Distilling is worth +32.9 points "
        "over them (95% interval +10.0 to +55.8), beyond chance."
    ) in re.sub(r"\s+", " ", summary_with(run, gain))
    gain = {"mean": -0.329, "low": -0.558, "high": -0.1}
    assert "\N{MINUS SIGN}10.0), beyond chance" in summary_with(run, gain)
    gain = {"mean": 0.01, "low": -0.1, "high": 0.12}
    assert "+12.0), which may be chance." in summary_with(run, gain)
    gain = {"mean": 0.01, "low": None, "high": None}
    assert "worth +1.0 points over them." in summary_with(run, gain)


def test_the_gain_is_of_what_states_were_selected_by(run):
    config = json.loads((run / "config.json").read_text())
    config["config"]["evaluate.metric"] = "balanced_accuracy"
    (run / "config.json").write_text(json.dumps(config))
    found = unbalanced(0.9, [0.5, 0.7])
    for side, mean in ((found, 0.3), (found["balanced_accuracy"], 0.02)):
        side["gain_over_random"] = {"mean": mean, "low": 0.01, "high": 0.5}
    write_eval(
        run,
        distilled={"convnet": found},
        random_real={"convnet": unbalanced(0.6, [0.5, 0.5])},
    )
    text = page(run)
    assert "worth +2.0 points" in text and "+30.0" not in text


def test_the_length_of_a_training_on_the_whole_data_is_told(run, text):
    how = {"steps": 2000, "learning_rate": 0.03, "cut": False}
    short = how | {"steps": 42, "learning_rate": 0.1, "cut": True}
    networks = {"convnet": result(0.9, **how), "<i>mlp": result(0.9, **short)}
    write_eval(run, full_data=networks)
    table = section(page(run), "results")
    assert (
        "a convnet took 2,000 steps of SGD with momentum, at a rate that falls "
        "from 0.03 to 0, where doubling no longer raised"
    ) in table
    assert (
        "a &lt;i&gt;mlp took 42 steps of SGD with momentum, at a rate that "
        "falls from 0.1 to 0: no more than evaluate.full_steps allows"
    ) in table
    assert "steps of SGD" not in text  # of an older library


def test_recall_by_class_under_the_names_of_classes(run):
    write_eval(
        run,
        distilled={
            "mlp": unbalanced(0.9, [0.1, 0.1]),
            "convnet": unbalanced(0.912, [0.951, None]),
        },
        full_data={"convnet": unbalanced(0.99, [0.999, None])},
        real_initial={"convnet": unbalanced(0.5, [0.5, None])},
    )
    text = section(page(run), "results")
    text = text[text.index("<h3>Recall") :]
    parse(text.removesuffix("</section>"))
    assert re.findall(r"<th(?: [^>]*)?>(.*?)</th>", text) == [
        "Class",
        "Distilled",
        "All data",
    ]
    assert cells(text) == [
        ["&lt;b&gt;x", "95.1%", "99.9%"],
        ["dog &amp; cat", "\N{EN DASH}", "\N{EN DASH}"],
    ]
    assert "that a convnet gets right" in text
    assert "the test set has no image of the class" in text


@pytest.mark.parametrize("known", [20, 19, 5])
def test_recall_of_few_classes_is_one_table(run, known):
    recall = [i / 20 for i in range(known)]
    write_eval(run, distilled={"convnet": unbalanced(0.5, recall)})
    text = section(page(run), "results")
    assert len(cells(text[text.index("<h3>Recall") :])) == known


def test_recall_of_many_classes_is_the_worst_and_the_best(run):
    recall = [((7 * i) % 30) / 30 for i in range(30)] + [None]
    write_eval(run, distilled={"convnet": unbalanced(0.5, recall)})
    text = section(page(run), "results")
    worst, best = (
        [row[1] for row in cells(part)]
        for part in text[text.index("<h3>Recall") :].split("<h4>")[1:]
    )
    assert worst == [f"{100 * i / 30:.1f}%" for i in range(10)]
    assert best == [f"{100 * i / 30:.1f}%" for i in range(29, 19, -1)]
    assert "Of 30 classes, the 10 worst and the 10 best" in text
    # Too few of them are in the test set to speak of worst and best.
    write_eval(
        run, distilled={"convnet": unbalanced(0.5, [None] * 30 + [0.25, 1])}
    )
    text = section(page(run), "results")
    assert cells(text[text.index("<h3>Recall") :]) == [
        ["30", "25.0%"],
        ["31", "100.0%"],
    ]
    assert "no image of the other 30 classes" in text


@pytest.mark.parametrize("nested", [False, True])
def test_the_metric_of_the_selection_is_named(run, nested):
    config = json.loads((run / "config.json").read_text())
    config["config"] = (
        {"evaluate": {"metric": "balanced_accuracy"}}
        if nested
        else {"evaluate.metric": "balanced_accuracy"}
    )
    (run / "config.json").write_text(json.dumps(config))
    write_eval(
        run,
        distilled={"convnet": unbalanced(0.912, [0.95, 0.55])},
        full_data={"convnet": unbalanced(0.98, [0.99, 0.93])},
    )
    text = page(run)
    assert (
        "to a balanced accuracy of <strong>75.0 ± 2.5%</strong> on the test"
        in text
    )
    assert "All training data reaches <strong>96.0 ± 2.5%</strong>" in text
    assert "was selected by its balanced accuracy on held-out" in text
    assert "images, as the latest of all; the test set" in text
    assert "Balanced accuracy on held-out training images" in text
    assert "Held-out balanced accuracy at 2 looks" in text
    # A result without it: then all figures are accuracies.
    write_eval(
        run,
        distilled={"convnet": unbalanced(0.912, [0.95, 0.55])},
        full_data={"convnet": result(0.98)},
    )
    text = page(run)
    assert "convnet to <strong>91.2 ± 2.5%</strong>" in text
    assert "All training data reaches <strong>98.0 ± 2.5%</strong>" in text


def test_an_old_run_was_selected_by_accuracy(text):
    assert "was selected by its accuracy on held-out" in text
    assert ">Accuracy on held-out training images" in text
    assert "alanced" not in text
    assert "Recall" not in text


def test_what_was_begun_with_is_told(run):
    """Beside random real images, which herded ones are far above."""
    rows = {"distilled": 0.912, "random_real": 0.583, "real_initial": 0.846}
    write_eval(run, **{k: {"convnet": result(v)} for k, v in rows.items()})
    assert (
        "The real images that distilling began with reach "
        "<strong>84.6 ± 2.5%</strong>."
    ) in page(run)


@pytest.mark.parametrize(("beyond", "told"), [(1e-7, False), (1e-2, True)])
def test_values_outside_by_rounding_are_inside(run, beyond, told):
    path = run / "distilled.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["images"] = np.clip(arrays["images"], 0, 1) - np.float32(beyond)
    np.savez(path, **arrays)
    assert ("clipped for display" in page(run)) == told
