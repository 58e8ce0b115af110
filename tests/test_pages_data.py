"""The page about a data set: what is on it, and how little it reads."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from read_pages import cells, check_self_contained, parse, section, sections

from ddjax.data.sources import Dataset
from ddjax.pages import data
from ddjax.types import InputError

NAMES = ("<b>cat", "dog & cow", "z" * 300)


class Lazy:
    """Images that are read when asked for, and only a few at a time."""

    dtype = np.dtype(np.uint8)

    def __init__(self, images, most=8):
        self.shape, self.images, self.most = images.shape, images, most

    def __len__(self):
        return len(self.images)

    def __getitem__(self, indices):
        assert isinstance(indices, np.ndarray), "not by a slice or a number"
        assert indices.dtype.kind == "i" and 0 < indices.size <= self.most
        return self.images[indices]

    def __array__(self, *args, **kwargs):
        raise AssertionError("the whole was read")


def dataset(*counts, side=8, channels=3, names=NAMES):
    """As many images of each class; image i has the value i everywhere."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    values = (np.arange(len(labels)) % 256).astype(np.uint8)
    shape = (len(labels), side, side, channels)
    images = np.broadcast_to(values[:, None, None, None], shape)
    return Dataset(Lazy(images), labels, tuple(names))


def write(path, **changes):
    arguments = {
        "title": "<Data>",
        "facts": {"Source": "folder", "Folder": "/a/<b>"},
        "splits": {
            "train": dataset(20, 4, 10),
            "test": dataset(5, 1, 2, channels=3),
        },
        "sizes": {"500 x 375": 3, "<1> x 1": 7},
        "unreadable": [("a/<x>.jpg", "not an image & empty")],
        "mean": [0.1, 0.25, 0.5],
        "std": [0.2, 0.3, 0.4],
        **changes,
    }
    return data.write_page(path, **arguments)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.html"


@pytest.fixture
def page(path):
    """The text of a page, with changed arguments if wanted."""
    return lambda **changes: write(path, **changes).read_text("utf-8")


def pictures(text):
    """{alternative: picture} of all samples."""
    found = {}
    for code, alt in re.findall(
        r'<img src="data:image/png;base64,([^"]*)" alt="([^"]*)"', text
    ):
        with Image.open(io.BytesIO(base64.b64decode(code))) as image:
            found[alt] = np.asarray(image)
    return found


def samples(text, name):
    """The alternatives of the samples of one split, class by class."""
    part = section(text, "samples").split(f"<h3>{name}</h3>")[1]
    rows = part.split("<h3>")[0].split('<div class="class">')[1:]
    return [re.findall(r'alt="([^"]*)"', row) for row in rows]


def test_what_is_on_the_page(page):
    text = page()
    assert sections(text) == [
        "facts",
        "counts",
        "samples",
        "sizes",
        "channels",
        "unreadable",
    ]
    assert (
        "<strong>42 images</strong> of 3 classes, 8 &times; 8 pixels, "
        "colour: 34 in train, 8 in test." in text
    )
    assert cells(section(text, "facts"))[0] == ["Source", "folder"]
    assert cells(section(text, "channels")) == [
        ["Red", "0.1000", "0.2000"],
        ["Green", "0.2500", "0.3000"],
        ["Blue", "0.5000", "0.4000"],
    ]


def test_empty_parts_are_left_out(page):
    grey = {"train": dataset(2, 2, 2, channels=1)}
    text = page(
        facts={}, sizes={}, unreadable=[], splits=grey, mean=[0.5], std=[0.1]
    )
    assert sections(text) == ["counts", "samples", "channels"]
    assert cells(section(text, "channels")) == [["Grey", "0.5000", "0.1000"]]
    assert "pixels, grey: 6 in train." in text


def test_counts_of_each_class_and_split(page):
    overview, of_classes = re.findall(
        r"<table>.*?</table>", section(page(), "counts"), re.S
    )
    assert cells(overview)[0] == [
        "train",
        "34",
        "4 (dog &amp; cow)",
        "20 (&lt;b&gt;cat)",
    ]
    rows = cells(of_classes)
    assert [row[0] for row in rows[:2]] == ["&lt;b&gt;cat", "dog &amp; cow"]
    assert [(row[1], row[3]) for row in rows] == [
        ("20", "5"),
        ("4", "1"),
        ("10", "2"),
    ]
    widths = [re.search(r"width:([\d.]+)rem", row[2])[1] for row in rows]
    assert [float(width) for width in widths] == [6.0, 1.2, 3.0]


def test_everything_is_escaped_and_inside(page):
    text = page()
    for raw in ("<b>", "<x>", "<Data>", "<1>", "dog & cow", "image & empty"):
        assert raw not in text
    check_self_contained(text)
    attributes = parse(text).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {v[1:] for name, v in attributes if name == "href"} <= set(ids)


def warning(text):
    found = re.findall(r'<p class="warning">(.*?)</p>', text, re.S)
    assert len(found) <= 1
    return found[0] if found else None


def test_unbalanced_classes_are_warned_of(page):
    even = {"train": dataset(20, 4, 10), "test": dataset(5, 1, 2)}
    assert warning(page(splits=even, unreadable=[])) is None
    uneven = {"train": dataset(21, 4, 10), "test": dataset(1, 1, 1)}
    assert warning(page(splits=uneven, unreadable=[])).startswith(
        "The classes of train are unbalanced: &lt;b&gt;cat has 21 images, "
        "dog &amp; cow only 4. Accuracy then tells little"
    )


def test_empty_classes_are_warned_of(page):
    text = page(
        splits={"train": dataset(3, 3, 3), "test": dataset(0, 2, 2)},
        unreadable=[],
    )
    assert warning(text) == "test has no image of &lt;b&gt;cat."
    assert list(map(len, samples(text, "test"))) == [0, 2, 2]


def test_samples_are_evenly_spaced_and_few(page):
    text = page(splits={"train": dataset(15, 3, 8), "test": dataset(5, 1, 4)})
    train, test = samples(text, "train"), samples(text, "test")
    assert train[0] == [
        f"&lt;b&gt;cat, number {i}" for i in (0, 2, 4, 6, 8, 10, 12, 14)
    ]
    assert list(map(len, train)) == [8, 3, 8]
    assert test[0] == [f"&lt;b&gt;cat, number {i}" for i in (0, 2, 4)]
    assert list(map(len, test)) == [3, 1, 3]


def test_many_classes_are_sampled_and_folded(page):
    names = [f"class {i}" for i in range(99)]
    splits = {"train": dataset(*[2] * 99, names=names)}
    text = page(splits=splits)
    rows = samples(text, "train")
    assert [row[0] for row in rows] == [
        f"class {i}, number {2 * i}" for i in range(0, 99, 2)
    ]
    assert "50 of 99 classes are shown" in text
    folded = re.search(r"<details>.*?</details>", text, re.S)[0]
    assert len(cells(folded)) == 99
    assert "shown, evenly" not in page() and "<details>" not in page()


@pytest.mark.parametrize(
    "side, edge", [(8, 96), (28, 84), (32, 64), (64, 64), (100, 100)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_are_shown_large_pixel_by_pixel(
    page, side, edge, channels
):
    pixels = np.random.default_rng(0).integers(
        0, 256, (3, side, side, channels), np.uint8
    )
    train = Dataset(Lazy(pixels), np.arange(3, dtype=np.int32), NAMES)
    text = page(splits={"train": train})
    tile = pictures(text)["dog &amp; cow, number 1"].reshape(edge, edge, -1)
    large = pixels[1].repeat(edge // side, 0).repeat(edge // side, 1)
    assert np.array_equal(tile, large)


def test_large_images_are_shown_smaller_and_it_is_said(page):
    text = page(splits={"train": dataset(1, 1, 1, side=256)})
    assert pictures(text)["dog &amp; cow, number 1"].shape == (108, 108, 3)
    assert "They are shrunk to 108 pixels" in text
    assert "shrunk" not in page()


def test_common_sizes_come_first(page):
    sizes = {f"{i} x 9": 100 - i for i in range(12)} | {"b": 100, "a": 100}
    rows = cells(section(page(sizes=sizes), "sizes"))
    assert [row[0] for row in rows[:4]] == ["0 x 9", "a", "b", "1 x 9"]
    assert rows[10][:2] == ["4 others", "362"]
    assert len(rows) == 11
    sizes = {f"{i} x 9": 1 for i in range(11)}
    rows = cells(section(page(sizes=sizes), "sizes"))
    assert rows[-1][:2] == ["1 other", "1"]


def test_unreadable_files_are_listed(page):
    text = page()
    assert warning(text) == (
        '<a href="#unreadable">1 file was left out</a>: it could not be read.'
    )
    files = [(f"{i}.jpg", "no") for i in range(1060)]
    text = page(unreadable=files)
    assert len(cells(section(text, "unreadable"))) == 50
    assert "And 1,010 more." in section(text, "unreadable")
    assert "1,060 files were left out" in warning(text)
    assert "more." not in section(page(unreadable=files[:50]), "unreadable")


def test_same_data_same_bytes(tmp_path):
    first, second = (write(tmp_path / name) for name in ("a.html", "b.html"))
    assert first == tmp_path / "a.html"
    assert first.read_bytes() == second.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_other_images_are_refused(page, path):
    with pytest.raises(InputError, match=r"not \[n 8 8 4\]"):
        page(splits={"train": dataset(1, 1, 1, channels=4)})
    with pytest.raises(InputError, match="at least one split"):
        page(splits={})
    assert not path.exists()
