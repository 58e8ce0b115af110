"""One encoded image, a file or bytes, to uint8 pixels.

Any number of threads may decode, and Pillow lets go of the interpreter while it
does. They share one lock: very large images, of which a file of some hundred
kilobytes can declare one, are decoded one at a time.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ddjax.types import InputError

__all__ = ["Header", "Unreadable", "check_crop", "decode", "header"]

MAX_PIXELS = 64_000_000
_LARGE = 8_000_000  # pixels; up to 20 bytes each while they are converted
_one_at_a_time = threading.Lock()
CROPS = ("center", "stretch")


class Unreadable(Exception):
    """These bytes give no picture; the message is the reason, without a path.

    One file among many is no mistake of the user's: the caller decides
    whether to leave it out or to stop.
    """


class Header(NamedTuple):
    """What an image says of itself before its pixels.

    Attributes:
      width: columns, once it stands upright if that was asked for.
      height: rows, likewise.
      channels: 1 for grey, 3 for colour; a palette counts as colour.
    """

    width: int
    height: int
    channels: int


def check_crop(crop: str) -> None:
    """Refuses what ``decode`` would not know.

    Raises:
      InputError: neither "center" nor "stretch".
    """
    if crop not in CROPS:
        raise InputError(f"unknown crop {crop!r}: choose {' or '.join(CROPS)}")


def header(image: Path | bytes, *, upright: bool = True) -> Header:
    """Size and kind of an image, at the cost of opening it.

    Args:
      image: a file, or what one holds.
      upright: sizes are those after the turn that its EXIF asks for.

    Raises:
      Unreadable: no image that ``decode`` would begin with.
    """
    with _opened(image) as opened:
        width, height = opened.size
        if upright and _turn(opened) in _ON_THE_SIDE:
            width, height = height, width
        return Header(width, height, 1 if _is_grey(opened) else 3)


def decode(
    image: Path | bytes,
    *,
    channels: int,
    size: int = 0,
    crop: str = "center",
    upright: bool = True,
) -> np.ndarray:
    """The pixels of an image, of its first frame if it has several.

    What is transparent shows white, as it does on the pages that such images
    are made for; the colour stored beneath it, often black, was never meant
    to be seen. Colours are taken as sRGB, whatever profile is embedded; grey of
    16 bits is divided by 257 and rounded, of such colour Pillow keeps the
    upper byte.

    Args:
      image: a file, or what one holds.
      channels: 1 for grey (Pillow's L: .299 red, .587 green, .114 blue), 3 for
        colour.
      size: height and width of the result; 0 keeps those of the image.
      crop: "center" brings the shorter side to ``size`` and keeps the middle
        of the longer; "stretch" brings both to ``size``. Bilinear, and every
        pixel of the image counts where it shrinks.
      upright: turned as its EXIF asks, as viewers show it. Without, the pixels
        as stored; a TIFF, however, Pillow always turns.

    Returns:
      [h w c] uint8.

    Raises:
      Unreadable: broken, of an unknown format, with too many pixels, or of a
        kind whose white is not known.
      InputError: unknown crop.
    """
    check_crop(crop)
    with _opened(image) as opened:
        turn = _turn(opened) if upright else None
        extent = _reduce(opened, size) if size else opened.size
        # After the reduction, which a JPEG has done while it is read.
        is_large = math.prod(opened.size) > _LARGE
        with _one_at_a_time if is_large else contextlib.nullcontext():
            picture = _on_white(opened).convert("L" if channels == 1 else "RGB")
            if size:
                picture = _fit(picture, extent, size, crop)
    if turn is not None:
        picture = picture.transpose(turn)
    pixels = np.array(picture)
    return pixels[..., None] if channels == 1 else pixels


# --- Opening -----------------------------------------------------------------

# By their first bytes. Image.open would try further formats, of which some
# start programs (EPS) and none is common in data sets; and it warns of large
# images through `warnings`, whose filters belong to the whole process and
# cannot be set for one thread.
_FORMATS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"GIF87a", GifImagePlugin.GifImageFile),
    (b"GIF89a", GifImagePlugin.GifImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II*\0", TiffImagePlugin.TiffImageFile),
    (b"MM\0*", TiffImagePlugin.TiffImageFile),
    (b"II+\0", TiffImagePlugin.TiffImageFile),  # beyond 4 GB
    (b"MM\0+", TiffImagePlugin.TiffImageFile),
    *((b"P%d" % kind, PpmImagePlugin.PpmImageFile) for kind in range(1, 7)),
)


# These say nothing of the image: the same file may be read in a minute.
_MACHINES_FAULT = {
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETIMEDOUT,
}


@contextlib.contextmanager
def _opened(image: Path | bytes) -> Iterator[ImageFile.ImageFile]:
    """An image of a bearable size, not decoded yet.

    Whatever goes wrong within the ``with`` is Unreadable: on broken bytes
    Pillow raises nearly every kind of exception that there is.
    """
    try:
        if isinstance(image, bytes):
            file = io.BytesIO(image)
        else:
            file = open(image, "rb")
    except OSError as error:
        if error.errno in _MACHINES_FAULT:
            raise
        raise Unreadable(f"cannot be opened: {error.strerror}") from None
    try:
        with file:
            yield _open(file)
    except (Unreadable, MemoryError):
        raise
    except Exception as error:
        if getattr(error, "errno", None) in _MACHINES_FAULT:
            raise
        raise Unreadable(_reason(error)) from error


def _open(file) -> ImageFile.ImageFile:
    start = file.read(16)
    file.seek(0)
    if not start:
        raise Unreadable("empty")
    for prefix, kind in _FORMATS:
        if start.startswith(prefix):
            opened = kind(file)
            break
    else:
        raise Unreadable("no image format that ddjax reads")
    width, height = opened.size
    if width * height > MAX_PIXELS:
        raise Unreadable(
            f"declares {width:,} x {height:,} pixels, more than the "
            f"{MAX_PIXELS // 10**6} million allowed"
        )
    return opened


def _reason(error: Exception) -> str:
    """In a few words, what Pillow's exception says of the file."""
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"declares more than the {MAX_PIXELS // 10**6} million pixels "
            "allowed"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    said = str(error).partition("\n")[0][:80]
    # Pillow wraps what it met while it read the header.
    first = error.__cause__ or error
    if isinstance(first, (EOFError, struct.error)) or "truncat" in said.lower():
        return "truncated"
    if not any(letter.isalpha() for letter in said):
        said = f"{type(first).__name__} {said}".strip()
    return f"damaged ({said})"


# --- Turning -----------------------------------------------------------------

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_THE_SIDE = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}
_ORIENTATION = 0x0112


def _turn(opened: ImageFile.ImageFile) -> Image.Transpose | None:
    """What EXIF says is to be done before the image stands upright.

    Read here since Pillow's getexif decodes a PNG's pixels first, and warns of
    the broken EXIF that many old photographs have. A broken one asks nothing.
    """
    exif = opened.info.get("exif")
    if not isinstance(exif, bytes):
        return None
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, at)
        for entry in range(entries):
            tag, _, _, value = struct.unpack_from(
                f"{order}HHIH", exif, at + 2 + 12 * entry
            )
            if tag == _ORIENTATION:
                return _TURNS.get(value)
    except struct.error:
        pass
    return None


# --- Pixels ------------------------------------------------------------------


def _is_sixteen(opened: ImageFile.ImageFile) -> bool:
    """Grey in 16 bits; older Pillows call it I where newer ones say I;16."""
    return opened.mode.startswith("I;16") or (
        opened.mode == "I" and opened.format in ("PNG", "PPM")
    )


def _is_grey(opened: ImageFile.ImageFile) -> bool:
    # Pillow opens grey with alpha in 16 bits as RGBA.
    raw = str(opened.tile[0][3]) if opened.tile else ""
    return (
        opened.mode in ("1", "L", "LA", "I", "F")
        or raw == "LA;16B"
        or _is_sixteen(opened)
    )


def _on_white(opened: ImageFile.ImageFile) -> Image.Image:
    """The image as L or RGB: opaque, eight bits, without a palette."""
    if _is_sixteen(opened):
        levels = np.asarray(opened).astype(np.uint32)
        grey = (levels + 128) // 257
        if "transparency" in opened.info:
            grey[levels == opened.info["transparency"]] = 255
        return Image.fromarray(grey.astype(np.uint8))
    if opened.mode in ("I", "F"):
        kind = "floating-point" if opened.mode == "F" else "32-bit"
        raise Unreadable(
            f"{kind} pixels (mode {opened.mode}) have no known white"
        )
    if opened.has_transparency_data:
        picture = opened.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    if opened.mode in ("1", "L"):
        return opened.convert("L")
    # By way of RGB to grey: Pillow knows no shorter one from LAB or HSV.
    return opened.convert("RGB")


def _reduce(opened: ImageFile.ImageFile, size: int) -> tuple:
    """Lets a large JPEG be decoded at a half, a quarter or an eighth.

    The decoder then leaves out the fine detail instead of computing it for
    the resize to average away: 500x400 to 128 takes two thirds of the time or
    less (3.0 ms, not 4.3), to 64 half (2.1 ms, not 3.8), and levels differ by
    less than one of 255 on average. Never to less than ``size`` on the
    shorter side.

    Returns:
      width and height of the image, in pixels as they will be decoded: with a
      fraction where the last one is only partly covered.
    """
    reduced = None
    if isinstance(opened, JpegImagePlugin.JpegImageFile):
        reduced = opened.draft(None, (size, size))
    return reduced[1][2:] if reduced else opened.size


def _fit(
    picture: Image.Image, extent: tuple, size: int, crop: str
) -> Image.Image:
    """Resizes to ``size`` by ``size``.

    The centre crop is one resize of the part that stays: a strip of 60,000x1
    would otherwise grow with its shorter side before it is cropped.
    """
    left_top, right_bottom = [], []
    for side in extent:
        # The length of this side once the shorter one is `size`.
        length = size
        if crop == "center":
            length = round(side * size / min(extent))
        margin = (length - size) // 2
        left_top.append(margin * side / length)
        right_bottom.append((margin + size) * side / length)
    return picture.resize(
        (size, size),
        Image.Resampling.BILINEAR,
        box=(*left_top, *right_bottom),
    )
