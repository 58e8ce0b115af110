"""The report: what is on the page, and where the tiles of a picture are."""

import html.parser
import importlib.util
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from ddjax import report
from ddjax.types import InputError

ROOT = pathlib.Path(__file__).parent.parent
TENSORS = {
    "norm0.scale": 4,
    "conv0.bias": 4,
    "conv0.kernel": 36,
    'head"><i>.kernel': 40,
}
VOID = {"meta", "img", "br", "link", "hr"}


def result(mean, count=3, **more):
    accuracies = [mean + 0.01 * i for i in range(-(count // 2), count // 2 + 1)]
    return {
        "mean": mean,
        "std": 0.01 if count > 1 else 0.0,
        "ci95": 0.025 if count > 1 else 0.0,
        "accuracies": accuracies,
        **more,
    }


def write_eval(workdir, **rows):
    (workdir / "eval.json").write_text(json.dumps(rows))


@pytest.fixture
def run(tmp_path):
    """A run folder with every artefact, of two classes."""
    return make_run(tmp_path)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The page of such a folder."""
    return page(make_run(tmp_path_factory.mktemp("page")))


def make_run(parent):
    rng = np.random.default_rng(0)
    workdir = parent / "run<1>"
    workdir.mkdir()
    images = rng.uniform(-0.2, 1.2, (4, 8, 8, 1)).astype(np.float32)
    labels = np.eye(2, dtype=np.float32)[[0, 0, 1, 1]]
    metadata = {
        "class_names": ["<b>x", "dog & cat"],
        "method": "iadd",
        "model": "convnet",
        "selected_step": 20,
    }
    np.savez(
        workdir / "distilled.npz",
        images=images,
        labels=labels,
        learning_rate=np.float32(0.01),
        metadata=json.dumps(metadata),
    )
    np.savez(workdir / "initial.npz", images=images**2, labels=labels)
    config = {
        "config": {"iadd": {"name": "<script>alert(1)</script>", "span": 3}},
        "command": "python experiments/iadd.py --config='a<b'",
        "versions": {"jax": "0.10.2"},
        "device": "cpu <2>",
    }
    (workdir / "config.json").write_text(json.dumps(config))
    write_eval(
        workdir,
        distilled={"convnet": result(0.912), "<i>mlp": result(0.871)},
        random_real={"convnet": result(0.583)},
        full_data={"convnet": result(0.977, count=1)},
        best_of_looks={"convnet": result(0.934, looks=6, step=40)},
        **{"k<means": {"convnet": result(0.601)}},
    )
    lines = [
        {"step": step, "loss": 1.0 / step, "learning_rate": 0.1, "seconds": 2}
        for step in range(1, 51)
    ]
    for step in (20, 40):
        lines.append(
            {"step": step, "held_out_accuracy": 0.8, "held_out_std": 0.01}
        )
        weights = {
            name: {"mean": 1.1, "std": 0.1, "min": 0.9, "max": 1.3}
            for name in TENSORS
        }
        lines.append({"step": step, "importance": weights})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text + '{"step": 51, "lo')
    difference = {}
    for name, size in TENSORS.items():
        start = rng.normal(size=size)
        if name == "conv0.bias":  # rounding and zeros, as before a norm
            start = 1e-12 * np.arange(size)
        difference[f"start_target/{name}"] = start.astype(np.float32)
        difference[f"student_target/{name}"] = (start / 4).astype(np.float32)
        difference[f"importance/{name}"] = np.exp(rng.normal(size=size)).astype(
            "f4"
        )
    np.savez(workdir / "difference.npz", **difference)
    return workdir


def page(workdir):
    return report.write_report(workdir).read_text("utf-8")


def section(text, name):
    return re.search(rf'<section id="{name}">.*?</section>', text, re.S)[0]


def sections(text):
    return re.findall(r'<section id="([^"]*)">', text)


class Parser(html.parser.HTMLParser):
    """Open tags match closed ones; attributes are collected."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(text):
    parser = Parser()
    parser.feed(text)
    assert parser.open == []
    return parser


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
    rows = re.findall(r"<tr.*?</tr>", section(text, "results"), re.S)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows[1:]]
    assert [row[1:] for row in cells] == [
        ["convnet", "91.2 ± 2.5%", "1.0", "3"],
        ["&lt;i&gt;mlp", "87.1 ± 2.5%", "1.0", "3"],
        ["convnet", "58.3 ± 2.5%", "1.0", "3"],
        ["convnet", "97.7%", "", "1"],
        ["convnet", "60.1 ± 2.5%", "1.0", "3"],
        ["convnet", "93.4 ± 2.5%", "1.0", "3"],
    ]
    assert cells[4][0] == "k&lt;means"
    assert cells[5][0] == (
        "Highest test mean of 6 looks, at step 40 "
        "(biased: chosen on the test set)"
    )
    assert not any("biased" in row[0] for row in cells[:5])


def test_everything_from_the_run_is_escaped(text):
    for raw in ("<script", "<b>", "<i>", "k<means", "a<b", "run<1>", "cpu <"):
        assert raw not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in section(text, "config")
    parse(text)


def test_page_is_self_contained(text):
    parser = parse(text)
    assert not parser.tags & {"script", "link", "iframe", "object"}
    links = [
        value
        for name, value in parser.attributes
        if name in ("src", "href", "xlink:href", "srcset", "data")
    ]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"https?://|@import|url\((?!#)", text)


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

    first = report.write_report(run).read_bytes()
    with matplotlib.rc_context({"axes.linewidth": 9, "font.size": 20}):
        second = report.write_report(run).read_bytes()
    assert first == second
    assert not list(run.glob(".*"))  # no partial file stays
    write_eval(run, distilled={"convnet": result(0.5)})
    assert report.write_report(run).read_bytes() != first


def test_tensors_come_in_the_order_of_the_network(text):
    cells = re.findall(r"<tr><td>(.*?)</td>", section(text, "difference"))
    assert cells == [
        "conv0.kernel",
        "conv0.bias",
        "norm0.scale",
        "head&quot;&gt;&lt;i&gt;.kernel",
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
        report.write_report(run)
    message = str(error.value)
    assert str(run / name) in message
    assert command in message
    assert "\n" not in message
    assert not (run / "report.html").exists()


def test_damaged_artefacts_are_named(run):
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text("{broken\n" + lines)
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 1,"):
        report.write_report(run)
    (run / "metrics.jsonl").unlink()
    np.savez(run / "initial.npz", images=np.zeros((2, 8, 8, 1)), labels=[[1]])
    with pytest.raises(InputError, match="not of one run"):
        report.write_report(run)
    (run / "initial.npz").write_bytes(b"PK no zip")
    with pytest.raises(InputError, match=r"initial\.npz is not a whole npz"):
        report.write_report(run)


def script():
    path = ROOT / "experiments" / "report.py"
    spec = importlib.util.spec_from_file_location("report_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_script_prints_the_path_or_one_sentence(run, capsys):
    main = script().main
    assert main([f"--workdir={run}"]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert main([f"--workdir={run / 'nowhere'}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "there is no run folder" in captured.err


def tile(image, color):
    """(left, top, width, height) of all pixels of one colour, which must fill
    that box."""
    found = (np.asarray(image) == color).all(-1)
    y, x = np.nonzero(found)
    box = x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1
    assert box[2] * box[3] == found.sum()
    return tuple(map(int, box))


def flat(count, side=8, channels=3):
    """Images of one colour each; image i has red 10 (i + 1)."""
    reds = 10 * np.arange(1, count + 1)
    colors = np.stack([reds, 0 * reds + 200, 0 * reds + 3], -1) / 255
    images = np.broadcast_to(
        colors[:, None, None, :channels], (count, side, side, channels)
    )
    return images.astype(np.float32)


def boxes(image, count):
    return [tile(image, (10 * (i + 1), 200, 3)) for i in range(count)]


def test_picture_has_one_column_per_class_and_keeps_the_order():
    labels = np.array([1, 0, 1, 0, 1])
    image = report.picture(flat(5), labels, ["a", "b"], scale=2)
    assert image.mode == "RGB"
    found = boxes(image, 5)
    assert {box[2:] for box in found} == {(16, 16)}
    x, y = np.array(found)[:, :2].T
    assert x[1] == x[3] < x[0] == x[2] == x[4]
    assert y[1] == y[0] < y[3] == y[2] < y[4]


def test_picture_of_one_image_per_class_is_rows_of_ten():
    labels = np.arange(12)[::-1]
    image = report.picture(flat(12), labels, [], scale=8)
    found = boxes(image, 12)[::-1]
    x, y = np.array(found)[:, :2].T
    assert (np.diff(x[:10]) > 64).all() and len(set(y[:10])) == 1
    assert list(x[10:]) == list(x[:2])
    assert y[10] == y[11] > y[0] + 64


@pytest.mark.parametrize(
    "side, per_class, expected", [(8, 1, 96), (8, 10, 96), (32, 10, 64)]
)
def test_small_images_are_shown_large(side, per_class, expected):
    labels = np.repeat([0, 1], per_class)
    image = report.picture(flat(2 * per_class, side), labels, ["a", "b"])
    assert boxes(image, 2 * per_class)[0][2:] == (expected, expected)


def test_large_pictures_are_limited():
    labels = np.repeat(np.arange(10), 50)
    images = np.zeros((500, 32, 32, 1), np.float32)
    image = report.picture(images, labels, [])
    assert image.width * image.height < 8e6
    images = np.broadcast_to(np.float32(0), (10_000, 64, 64, 1))
    image = report.picture(images, np.repeat(np.arange(200), 50), [])
    assert image.width * image.height < 2.2e7


def test_picture_is_nearest_neighbour_grey_and_clipped():
    pixels = np.array([[-3.0, 0.25], [0.75, 9.0]])
    image = report.picture(pixels[None, :, :, None], np.array([0]), [""])
    left, top, *size = tile(image, (0, 0, 0))
    assert size == [48, 48]
    for i, grey in enumerate((0, 64, 191, 255)):
        down, right = 48 * (i // 2), 48 * (i % 2)
        box = (left + right, top + down, 48, 48)
        assert tile(image, (grey, grey, grey)) == box


def test_captions_are_drawn_and_long_ones_stay_in_their_column():
    blank = report.picture(flat(2), np.array([0, 1]), ["", ""])
    long = report.picture(flat(2), np.array([0, 1]), ["w" * 300, ""])
    changed = np.argwhere((np.asarray(blank) != np.asarray(long)).any(-1))
    left, _, width, _ = boxes(blank, 2)[0]
    assert changed[:, 1].min() >= left
    assert changed[:, 1].max() < left + width
    assert np.ptp(changed[:, 1]) > width / 2


def test_picture_refuses_other_shapes():
    with pytest.raises(InputError, match="at least one"):
        report.picture(np.zeros((0, 8, 8, 1)), np.zeros(0, int), [])
    with pytest.raises(InputError, match=r"labels of shape \(2,\)"):
        report.picture(flat(2), np.eye(2), [])


def test_save_picture_is_that_picture(tmp_path):
    labels = np.array([0, 1])
    path = tmp_path / "a.png"
    report.save_picture(path, flat(2), labels, ["a", "b"], scale=3)
    expected = report.picture(flat(2), labels, ["a", "b"], scale=3)
    with Image.open(path) as saved:
        assert saved.format == "PNG"
        assert np.array_equal(np.asarray(saved), np.asarray(expected))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
