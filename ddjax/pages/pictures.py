"""Images as one picture: a grid of tiles under their class names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont

from ddjax.files import atomic_write
from ddjax.pages import page
from ddjax.types import InputError

__all__ = ["picture", "save_picture", "tile"]

_GAP = 4
_BACKGROUND, _TEXT = (242, 242, 242), (32, 32, 32)
_COMFORTABLE = 6_000_000  # pixels; beyond, tiles are made smaller
_LARGEST = 16_000_000  # beyond, fewer images are shown
EDGE = 108
"""Pixels of the largest ``tile``; eight and a name are as wide as the page."""
_BAND = 360  # pixels: a phone's width, and a third of the page's
_CLASSES = 20  # in a picture of a few images of each


def picture(
    images: Any,
    labels: Any,
    class_names: Sequence[str],
    *,
    scale: int | None = None,
    across: int | None = None,
) -> Image.Image:
    """Images as a grid of tiles, with class names.

    One column per class, in the order of the classes; within a column, the
    order of ``images``. Ten classes to a band, twenty where tiles are small;
    with one image per class that is simply rows of ten.

    Args:
      images: [n h w c] floats, 0 black to 1 white; clipped for display. Three
        channels are a colour, any other number is shown as its mean, grey.
      labels: [n] integers.
      class_names: label i is captioned ``class_names[i]``, or i beyond them.
      scale: edge of the square that a pixel becomes. By default tiles of at
        least 64 pixels (96 for images up to 16 pixels and for one image per
        class), less where the whole would be very large; where it is too
        large at scale 1, the first images of each class, and a line saying
        so.
      across: classes to a band instead of ten or twenty.

    Returns:
      An RGB picture.

    Raises:
      InputError: shapes that are not as above, or no image.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or not images.size:
        raise InputError(
            f"a picture needs images [n h w c], at least one, not an array "
            f"of shape {images.shape}"
        )
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"a picture of {len(images)} images needs labels of shape "
            f"({len(images)},), not {labels.shape}"
        )
    height, width = images.shape[1:3]
    columns = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    most = rows = max(map(len, columns))
    if scale is None:
        scale = _scale(height, width, len(columns), rows)
        column_pixels = len(columns) * height * width * scale**2
        rows = max(1, min(rows, _LARGEST // column_pixels))
    tile_w, tile_h = scale * width, scale * height
    across = min(len(columns), across or (10 if tile_w >= 48 else 20))
    bands = math.ceil(len(columns) / across)
    font = _font(max(10, min(15, tile_w // 6)))
    line = math.ceil(1.5 * font.size)
    names = [_name(class_names, int(labels[i])) for i, *_ in columns]
    names = [_lines(name, font, tile_w) for name in names]
    head = line * max(map(len, names))
    band_h = head + rows * (tile_h + _GAP) + _GAP
    cut = rows < most
    size = (
        across * (tile_w + _GAP) + 3 * _GAP,
        bands * band_h + 2 * _GAP + (line if cut else 0),
    )
    canvas = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for i, column in enumerate(columns):
        x = 2 * _GAP + i % across * (tile_w + _GAP)
        y = _GAP + i // across * band_h
        for row, text in enumerate(names[i]):
            # The last line stands on the tile.
            up = line * (len(names[i]) - row - 0.5)
            middle = (x + tile_w / 2, y + head - up)
            draw.text(middle, text, _TEXT, font, anchor="mm")
        for row, index in enumerate(column[:rows]):
            tile = Image.fromarray(_bytes(images[index]))
            tile = tile.resize((tile_w, tile_h), Image.Resampling.NEAREST)
            canvas.paste(tile, (x, y + head + row * (tile_h + _GAP)))
    if cut:
        place = (2 * _GAP, canvas.height - line / 2 - _GAP)
        note = f"The first {rows} of {most} images of each class"
        draw.text(place, note, _TEXT, font, anchor="lm")
    return canvas


def _name(class_names: Sequence[str], label: int) -> str:
    name = class_names[label] if label < len(class_names) else label
    return " ".join(str(name).split())


def _scale(height: int, width: int, columns: int, rows: int) -> int:
    side = max(height, width)
    wanted = 96 if side <= 16 or rows == 1 else 64
    scale = max(1, round(wanted / side), math.ceil(64 / side))
    pixels = columns * rows * height * width
    return max(1, min(scale, math.isqrt(_COMFORTABLE // pixels)))


def _bytes(image: np.ndarray) -> np.ndarray:
    image = image if image.shape[-1] == 3 else image.mean(-1, keepdims=True)
    image = np.clip(np.nan_to_num(image.astype(np.float32)), 0, 1)
    pixels = np.round(255 * image).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy()


def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    # Matplotlib's own copy: the same letters on every machine, and more of
    # them than in Pillow's default.
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(path), size)


def _lines(name: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The name in one line or two; what is longer is cut."""
    if font.getlength(name) <= width:
        return [name]
    first = name
    while first and font.getlength(first) > width:
        first = first[:-1]
    if not name[len(first) :].startswith(" "):
        # After a word, where one ends.
        end = max(map(first.rfind, " _-")) + 1
        first = first[:end] or first
    rest = name[len(first) :].strip()
    return [first.strip(), _fit(rest, font, width)]


def _fit(name: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(name + "…") > width:
        name = name[:-1]
    return name + "…"


def save_picture(
    path: Path,
    images: Any,
    labels: Any,
    class_names: Sequence[str],
    *,
    scale: int | None = None,
) -> None:
    """Writes ``picture(...)`` as a PNG file, whole or not at all."""
    image = picture(images, labels, class_names, scale=scale)
    with atomic_write(path) as file:
        image.save(file, "PNG", optimize=True)


def titled(
    title: str, images: Any, labels: Any, names: Sequence[str], **layout: Any
) -> tuple[str, Markup]:
    """(title, ``picture(...)``) for a page; ``layout`` are its options."""
    alt = (
        f"{title}: {len(images)} images of {len(np.unique(labels))} classes, "
        "one column per class"
    )
    return title, page.image(picture(images, labels, names, **layout), alt)


def for_phones(side: int, tile: int = 64) -> dict[str, int]:
    """A layout in which class names can be read on a phone, for images of
    that side and tiles of about that size, in pixels."""
    scale = max(1, round(tile / side))
    across = max(2, round(_BAND / (scale * side + _GAP)))
    return {"scale": scale, "across": across}


def few_of_each(labels: np.ndarray, *, each: int = 0, shown: int = 0) -> Any:
    """Indices of the first ``each`` images of each class, or of three to ten
    for about so many ``shown``; of many classes, of some spread over all."""
    classes = np.unique(labels)
    if len(classes) > _CLASSES:
        spread = np.linspace(0, len(classes) - 1, _CLASSES).astype(int)
        classes = classes[spread]
    each = each or min(10, max(3, shown // len(classes)))
    return np.concatenate(
        [np.flatnonzero(labels == label)[:each] for label in classes]
    )


def tile(pixels: np.ndarray) -> Image.Image:
    """[h w c] as a picture that one can see, and that is not too large."""
    shown = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    side = max(shown.size)
    if side > EDGE:
        shown.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
        return shown
    scale = -(-(96 if side <= 16 else 64) // side)
    return shown.resize(
        (scale * shown.width, scale * shown.height), Image.Resampling.NEAREST
    )
