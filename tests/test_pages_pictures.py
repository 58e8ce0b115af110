"""Pictures: where the tiles are, and what is written above them."""

import numpy as np
import pytest
from PIL import Image

from ddjax.pages import pictures
from ddjax.types import InputError


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
    image = pictures.picture(flat(5), labels, ["a", "b"], scale=2)
    assert image.mode == "RGB"
    found = boxes(image, 5)
    assert {box[2:] for box in found} == {(16, 16)}
    x, y = np.array(found)[:, :2].T
    assert x[1] == x[3] < x[0] == x[2] == x[4]
    assert y[1] == y[0] < y[3] == y[2] < y[4]


def test_picture_of_one_image_per_class_is_rows_of_ten():
    labels = np.arange(12)[::-1]
    image = pictures.picture(flat(12), labels, [], scale=8)
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
    image = pictures.picture(flat(2 * per_class, side), labels, ["a", "b"])
    assert boxes(image, 2 * per_class)[0][2:] == (expected, expected)


def test_large_pictures_are_limited():
    labels = np.repeat(np.arange(10), 50)
    images = np.zeros((500, 32, 32, 1), np.float32)
    image = pictures.picture(images, labels, [])
    assert image.width * image.height < 8e6
    images = np.broadcast_to(np.float32(0), (10_000, 64, 64, 1))
    image = pictures.picture(images, np.repeat(np.arange(200), 50), [])
    assert image.width * image.height < 2.2e7


def test_picture_is_nearest_neighbour_grey_and_clipped():
    pixels = np.array([[-3.0, 0.25], [0.75, 9.0]])
    image = pictures.picture(pixels[None, :, :, None], np.array([0]), [""])
    left, top, *size = tile(image, (0, 0, 0))
    assert size == [48, 48]
    for i, grey in enumerate((0, 64, 191, 255)):
        down, right = 48 * (i // 2), 48 * (i % 2)
        box = (left + right, top + down, 48, 48)
        assert tile(image, (grey, grey, grey)) == box


def test_captions_are_drawn_and_long_ones_stay_in_their_column():
    long = "w" * 300
    blank = pictures.picture(flat(2), np.array([0, 1]), ["", long])
    long = pictures.picture(flat(2), np.array([0, 1]), [long, long])
    changed = np.argwhere((np.asarray(blank) != np.asarray(long)).any(-1))
    left, _, width, _ = boxes(blank, 2)[0]
    assert changed[:, 1].min() >= left
    assert changed[:, 1].max() < left + width
    assert np.ptp(changed[:, 1]) > width / 2


@pytest.mark.parametrize(
    "name, lines",
    [
        ("cat", ["cat"]),
        ("lung_opacity", ["lung_", "opacity"]),
        ("viral pneumonia", ["viral", "pneumonia"]),
        ("pneumonia viral", ["pneumonia", "viral"]),
        ("wwwwwwwwwwwww", ["wwwwww", "wwwww…"]),
        ("a very long name of a class", ["a very long", "name of …"]),
    ],
)
def test_captions_take_two_lines(name, lines):
    font = pictures._font(15)
    width = round(font.getlength("pneumonia") + 0.5)
    assert pictures._lines(name, font, width) == lines


def test_a_caption_of_two_lines_is_above_its_tile():
    short, long = (
        pictures.picture(flat(2), np.array([0, 1]), ["cat", name])
        for name in ("dog", "a very long name")
    )
    (_, before, *_), (_, after, *_) = (boxes(p, 2)[0] for p in (short, long))
    assert after - before == long.height - short.height > 10


def test_picture_refuses_other_shapes():
    with pytest.raises(InputError, match="at least one"):
        pictures.picture(np.zeros((0, 8, 8, 1)), np.zeros(0, int), [])
    with pytest.raises(InputError, match=r"labels of shape \(2,\)"):
        pictures.picture(flat(2), np.eye(2), [])


def test_save_picture_is_that_picture(tmp_path):
    labels = np.array([0, 1])
    path = tmp_path / "a.png"
    pictures.save_picture(path, flat(2), labels, ["a", "b"], scale=3)
    expected = pictures.picture(flat(2), labels, ["a", "b"], scale=3)
    with Image.open(path) as saved:
        assert saved.format == "PNG"
        assert np.array_equal(np.asarray(saved), np.asarray(expected))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_classes_to_a_band():
    labels = np.arange(4)
    narrow = pictures.picture(flat(4), labels, [], across=2)
    wide = pictures.picture(flat(4), labels, [])
    assert narrow.width < 0.6 * wide.width
    assert narrow.height > 1.8 * wide.height
