"""Decoding: what is shown is what the file means, or a reason why not."""

import io
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from ddjax.data import decode as module
from ddjax.data.decode import Header, Unreadable, check_crop, decode, header
from ddjax.types import InputError


def pattern(height=4, width=6, channels=3, seed=0):
    shape = (height, width, channels)[: 2 + (channels > 1)]
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height, width):
    """Something of a photograph: no detail that a JPEG would lose."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 60 + 1), np.cos(y / 45), np.sin(x / 80 + y / 70)]
    return np.uint8(128 + 100 * np.stack(waves, -1))


def encoded(image, kind, **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, body):
    check = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)


def png(pixels, bits, colour, *, size=None, extra=b""):
    """A PNG by hand: pixels [h w] or [h w c] of 8 or 16 bits."""
    pixels = np.asarray(pixels, ">u2" if bits == 16 else "u1")
    height, width = size or pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(
            b"IHDR",
            struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0),
        )
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def equal(found, expected):
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


# --- Formats -----------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, options",
    [
        ("PNG", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats(kind, options, tmp_path):
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    image = pattern()
    content = encoded(image, kind, **options)
    equal(decode(content, channels=3), image)
    assert header(content) == Header(6, 4, 3)
    # A file is read by what it holds, not by its name.
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    equal(decode(path, channels=3), image)
    assert header(path) == Header(6, 4, 3)


def test_grey():
    image = pattern(channels=1)
    content = encoded(image, "PNG")
    assert header(content) == Header(6, 4, 1)
    equal(decode(content, channels=1), image[..., None])
    equal(decode(content, channels=3), np.stack([image] * 3, -1))


def test_colour_to_grey():
    primaries = np.uint8([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]])
    found = decode(encoded(primaries, "PNG"), channels=1)
    equal(found, [[[76], [150], [29]]])


def test_one_bit():
    image = Image.fromarray(np.array([[0, 255, 255], [255, 0, 0]], np.uint8))
    content = encoded(image.convert("1"), "PNG")
    assert header(content) == Header(3, 2, 1)
    equal(decode(content, channels=1)[..., 0], np.asarray(image))


def test_jpeg():
    image = smooth(40, 50)
    content = encoded(image, "JPEG", quality=95)
    assert header(content) == Header(50, 40, 3)
    assert np.abs(decode(content, channels=3) - np.float32(image)).max() < 8
    assert header(encoded(image[..., 0], "JPEG")).channels == 1


# v/257 rounded: 128/257 is just below a half, 129/257 just above it.
LEVELS = np.uint16([[0, 128, 129], [257, 32768, 65535]])
BYTES = np.uint8([[0, 0, 1], [1, 128, 255]])


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF", "big-endian TIFF"])
def test_sixteen_bits_of_grey(kind):
    image = Image.fromarray(LEVELS)
    if kind.startswith("big"):
        swapped = LEVELS.astype(">u2").tobytes()
        image = Image.frombytes("I;16B", (3, 2), swapped)
    content = encoded(image, kind.split()[-1])
    assert header(content) == Header(3, 2, 1)
    equal(decode(content, channels=1)[..., 0], BYTES)
    equal(decode(content, channels=3), np.stack([BYTES] * 3, -1))


def test_sixteen_bits_of_colour_and_alpha():
    colours = np.stack([LEVELS, LEVELS[::-1], LEVELS[:, ::-1]], -1)
    found = decode(png(colours, 16, 2), channels=3)
    # Pillow keeps the upper byte.
    equal(found, colours >> 8)
    content = png(np.stack([LEVELS, [[0, 0, 0], [65535] * 3]], -1), 16, 4)
    assert header(content) == Header(3, 2, 1)
    equal(decode(content, channels=1)[..., 0], [[255] * 3, LEVELS[1] >> 8])


# --- Transparency ------------------------------------------------------------


def over_white(colour, alpha):
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_over_white(kind, channels):
    image = pattern(channels=channels)
    image[0, :, -1], image[1, :, -1] = 0, 255
    content = encoded(image, kind)
    stored = image[..., :-1] if channels == 4 else image[..., :1]
    assert header(content).channels == stored.shape[-1]
    found = decode(content, channels=stored.shape[-1])
    expected = over_white(np.float64(stored), image[..., -1])
    assert np.abs(found - expected).max() <= 1
    equal(found[0], np.full_like(stored[0], 255))
    equal(found[1], stored[1])


def test_palette():
    image = Image.fromarray(np.uint8([[0, 1, 2]]), "P")
    image.putpalette([255, 0, 0, 10, 20, 30, 0, 0, 99])
    colours = [[[255, 0, 0], [10, 20, 30], [0, 0, 99]]]
    for kind in ("PNG", "GIF", "BMP"):
        assert header(encoded(image, kind)).channels == 3
        equal(decode(encoded(image, kind), channels=3), colours)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_a_transparent_entry(kind):
    image = Image.fromarray(np.uint8([[0, 1, 2]]), "P")
    image.putpalette([255, 0, 0, 10, 20, 30, 0, 0, 99])
    found = decode(encoded(image, kind, transparency=1), channels=3)
    equal(found, [[[255, 0, 0], [255, 255, 255], [0, 0, 99]]])


def test_palette_with_alpha():
    image = Image.fromarray(np.uint8([[0, 1, 2]]), "P")
    image.putpalette([255, 0, 0, 10, 20, 30, 0, 0, 99])
    content = encoded(image, "PNG", transparency=bytes([255, 0, 51]))
    found = decode(content, channels=3)
    equal(found, [[[255, 0, 0], [255, 255, 255], [204, 204, 224]]])
    equal(decode(content, channels=1)[0, :2, 0], [76, 255])


@pytest.mark.parametrize(
    "pixels, bits, colour, clear",
    [
        (np.uint8([[7, 8]]), 8, 0, (7,)),
        (np.uint8([[[7, 1, 2], [8, 1, 2]]]), 8, 2, (7, 1, 2)),
        (np.uint16([[700, 8 * 257]]), 16, 0, (700,)),
    ],
)
def test_a_transparent_level(pixels, bits, colour, clear):
    extra = chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear))
    content = png(pixels, bits, colour, extra=extra)
    found = decode(content, channels=3)
    equal(found[0, 0], [255] * 3)
    equal(found[0, 1], pixels[0, 1] if colour else [8] * 3)


# --- Other colours -----------------------------------------------------------

CMYK = {(0, 255, 255, 0): (255, 0, 0), (255, 0, 0, 128): (0, 127, 127)}


@pytest.mark.parametrize("ink, colour", CMYK.items())
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(ink, colour, kind):
    content = encoded(Image.new("CMYK", (8, 8), ink), kind)
    found = decode(content, channels=3)
    assert np.abs(np.int32(found) - colour).max() <= 2


def test_ycck():
    # The same samples, said to be luma and chroma (and black) in Adobe's
    # marker: 2 at its end. As Adobe does, Pillow stores ink inverted.
    content = encoded(Image.new("CMYK", (8, 8), (155, 127, 127, 0)), "JPEG")
    at = content.index(b"Adobe") + 11
    assert content[at] == 0
    content = content[:at] + b"\2" + content[at + 1 :]
    # Y 100, no chroma: inverted ink 155, inverted again 100... of each.
    found = decode(content, channels=3)
    assert np.abs(np.int32(found) - 155).max() <= 2


def test_lab():
    lab = Image.new("LAB", (2, 2), (255, 128, 128))
    content = encoded(lab, "TIFF")
    assert decode(content, channels=3).min() >= 253
    assert decode(content, channels=1).min() >= 253


@pytest.mark.parametrize(
    "dtype, said",
    [
        (np.float32, r"floating-point pixels \(mode F\) have no known white"),
        (np.int32, r"32-bit pixels \(mode I\) have no known white"),
    ],
)
def test_pixels_without_a_known_white(dtype, said):
    content = encoded(np.ones((2, 3), dtype), "TIFF")
    assert header(content) == Header(3, 2, 1)
    with pytest.raises(Unreadable, match=said):
        decode(content, channels=1)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "MPO"])
def test_first_frame(kind):
    frames = [Image.new("L", (8, 8), level) for level in (200, 10, 90)]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(content)) as opened:
        assert opened.n_frames == 3
    equal(decode(content, channels=1), np.full((8, 8, 1), 200))


# --- Turning -----------------------------------------------------------------


def turned(image, kind, orientation, **options):
    exif = Image.Exif()
    exif[0x0110] = "camera"  # an entry before it
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize(
    "kind, options",
    [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {}), ("TIFF", {})],
)
def test_orientation(orientation, kind, options):
    content = turned(pattern(16, 24), kind, orientation, **options)
    with Image.open(io.BytesIO(content)) as opened:
        stored = np.asarray(opened)
    expected = np.asarray(
        ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    )
    found = decode(content, channels=3)
    equal(found, expected)
    assert header(content) == Header(found.shape[1], found.shape[0], 3)
    if kind != "TIFF":
        equal(decode(content, channels=3, upright=False), stored)
        assert header(content, upright=False) == Header(24, 16, 3)


def test_a_camera_on_its_side():
    image = pattern()
    found = decode(turned(image, "PNG", 6), channels=3)
    equal(found, np.rot90(image, -1))
    # The same of a crop: turned, then cropped.
    found = decode(turned(image, "PNG", 6), channels=3, size=4)
    equal(found, np.rot90(image, -1)[1:5])


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_in_either_byte_order(order):
    image = pattern()
    exif = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(
        f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, 3, 0, 0
    )
    content = png(image, 8, 2, extra=chunk(b"eXIf", exif))
    equal(decode(content, channels=3), image[::-1, ::-1])


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"none",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff\x10\x01",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x07\x07\0\0",
    ],
    ids=repr,
)
def test_broken_exif_asks_nothing(exif):
    content = png(pattern(), 8, 2, extra=chunk(b"eXIf", exif))
    equal(decode(content, channels=3), pattern())
    assert header(content) == Header(6, 4, 3)


# --- Size --------------------------------------------------------------------


def test_centre_crop_is_exact():
    image = pattern(4, 10)
    equal(decode(encoded(image, "PNG"), channels=3, size=4), image[:, 3:7])
    tall = image.swapaxes(0, 1)
    equal(decode(encoded(tall, "PNG"), channels=3, size=4), tall[3:7])
    # One too many: it goes at the end.
    equal(
        decode(encoded(image[:, :9], "PNG"), channels=3, size=4), image[:, 2:6]
    )


@pytest.mark.parametrize("height, width", [(40, 63), (63, 40), (37, 37)])
@pytest.mark.parametrize("size", [16, 37, 50])
@pytest.mark.parametrize("channels", [1, 3])
def test_centre_crop_is_resize_then_crop(height, width, size, channels):
    image = Image.fromarray(pattern(height, width, channels))
    shorter = min(height, width)
    wide, high = (round(s * size / shorter) for s in (width, height))
    resized = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = (wide - size) // 2, (high - size) // 2
    expected = resized.crop((left, top, left + size, top + size))
    found = decode(encoded(image, "PNG"), channels=channels, size=size)
    expected = np.int32(expected).reshape(size, size, channels)
    assert found.shape == (size, size, channels)
    assert np.abs(found - expected).max() <= 1


def test_stretch():
    image = Image.fromarray(pattern(20, 31))
    found = decode(encoded(image, "PNG"), channels=3, size=8, crop="stretch")
    equal(found, image.resize((8, 8), Image.Resampling.BILINEAR))


def test_shrinking_counts_every_pixel():
    # A chequerboard is grey from afar; without antialias, black or white.
    board = np.uint8(255 * (np.indices((64, 64)).sum(0) % 2))
    found = decode(encoded(board, "PNG"), channels=1, size=8)
    assert np.abs(np.int32(found) - 128).max() <= 2


def test_a_long_strip():
    found = decode(png(np.full((1, 60000), 9), 8, 0), channels=1, size=32)
    equal(found, np.full((32, 32, 1), 9))


@pytest.mark.parametrize("size", [0, 5])
def test_the_result_is_the_callers(size):
    found = decode(encoded(pattern(), "PNG"), channels=3, size=size)
    assert found.flags.writeable and found.flags.c_contiguous


@pytest.mark.parametrize(
    "height, width, size, decoded",
    [
        (400, 500, 128, (167, 134)),
        (400, 500, 200, (250, 200)),
        (400, 500, 201, (500, 400)),
        (401, 501, 200, (251, 201)),
        (400, 500, 16, (63, 50)),
        (30, 20, 64, (20, 30)),
    ],
)
def test_reduced_decoding_keeps_enough(height, width, size, decoded):
    content = encoded(smooth(height, width), "JPEG")
    with module._opened(content) as opened:
        extent = module._reduce(opened, size)
        scale = width / extent[0]
        assert extent == (width / scale, height / scale)
        assert min(opened.size) >= min(size, height, width)
        if scale in (1, 2, 4, 8) and size != 128:
            assert opened.size == decoded
        assert scale == {128: 2, 200: 2, 201: 1, 16: 8, 64: 1}[size]


@pytest.mark.parametrize("crop", ["center", "stretch"])
@pytest.mark.parametrize("height, width", [(401, 333), (203, 407)])
def test_reduced_decoding_looks_the_same(crop, height, width, monkeypatch):
    content = turned(smooth(height, width), "JPEG", 6, quality=95)
    quick = decode(content, channels=3, size=48, crop=crop)
    monkeypatch.setattr(module, "_reduce", lambda opened, size: opened.size)
    whole = decode(content, channels=3, size=48, crop=crop)
    assert np.abs(np.int32(quick) - whole).max() <= 3


def test_unknown_crop():
    check_crop("center")
    check_crop("stretch")
    for check in (check_crop, lambda c: decode(b"", channels=3, crop=c)):
        with pytest.raises(InputError, match="'middle': choose center or str"):
            check("middle")


# --- What cannot be read -----------------------------------------------------


@pytest.mark.parametrize(
    "height, width",
    [
        (50_000, 50_000),  # where Pillow refuses
        (10_000, 10_000),  # where Pillow warns
        (8_000, 8_001),
        (1, 2**31 - 1),
    ],
)
def test_bombs_are_not_decoded(height, width):
    content = png(np.zeros((1, 4)), 8, 2, size=(height, width))
    said = f"^declares {width:,} x {height:,} pixels, more than the 64 million"
    for attempt in (header, lambda c: decode(c, channels=3, size=8)):
        with pytest.raises(Unreadable, match=said):
            attempt(content)


def test_as_many_pixels_as_allowed():
    content = png(np.zeros((1, 4)), 8, 2, size=(8_000, 8_000))
    assert header(content) == Header(8000, 8000, 3)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "^empty$"),
        (b"<html>not found</html>", "no image format that ddjax reads"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "no image format"),
        (b"RIFF____WAVEfmt ", "damaged"),
    ],
)
def test_what_is_no_image(content, said):
    for attempt in (header, lambda c: decode(c, channels=3)):
        with pytest.raises(Unreadable, match=said):
            attempt(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "PPM"])
def test_truncated(kind, tmp_path):
    path = tmp_path / "image.png"
    content = encoded(pattern(40, 40), kind)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(Unreadable) as caught:
        decode(path, channels=3)
    assert "truncated" in str(caught.value)
    assert "image.png" not in str(caught.value)


@pytest.mark.parametrize("length", [9, 20, 30])
def test_truncated_in_the_header(length):
    with pytest.raises(Unreadable) as caught:
        header(encoded(pattern(), "PNG")[:length])
    assert str(caught.value) == "truncated"


@pytest.mark.parametrize(
    "error, reason",
    [
        (EOFError(), "truncated"),
        (KeyError(28), "damaged (KeyError 28)"),
        (ZeroDivisionError(), "damaged (ZeroDivisionError)"),
        (OSError(5, "Input/output error"), "cannot be read: Input/output err"),
        (ValueError("a\nb"), "damaged (a)"),
        (
            Image.DecompressionBombError("Image size exceeds"),
            "declares more than the 64 million pixels allowed",
        ),
    ],
)
def test_reasons(error, reason):
    assert module._reason(error).startswith(reason)


SAMPLES = {
    "PNG": {},
    "JPEG": {},
    "GIF": {},
    "BMP": {},
    "WEBP": {},
    "PPM": {},
    "TIFF": {},
    "TIFF lzw": {"compression": "tiff_lzw"},
}


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.filterwarnings("ignore")
def test_nothing_but_unreadable_is_raised(kind):
    content = turned(pattern(), kind.split()[0], 6, **SAMPLES[kind])
    rng = np.random.default_rng(0)
    broken = [content[:length] for length in range(0, len(content), 3)]
    for _ in range(150):
        bytes_ = np.frombuffer(content, np.uint8).copy()
        where = rng.integers(0, min(len(content), 400), 3)
        bytes_[where] = rng.integers(0, 256, 3)
        broken.append(bytes_.tobytes())
    unreadable = 0
    for content in broken:
        for attempt in (
            header,
            lambda c: decode(c, channels=3, size=4),
        ):
            try:
                attempt(content)
            except Unreadable as reason:
                unreadable += 1
                assert 0 < len(str(reason)) < 120 and "\n" not in str(reason)
                assert "Type-check" not in str(reason)
    assert unreadable


def test_files_that_cannot_be_opened(tmp_path):
    for path in (tmp_path / "gone.png", tmp_path):
        for attempt in (header, lambda p: decode(p, channels=1)):
            with pytest.raises(Unreadable) as caught:
                attempt(path)
            assert str(caught.value).startswith("cannot be opened: ")
            assert str(tmp_path) not in str(caught.value)


def test_no_permission(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "/secret/a.png")

    monkeypatch.setattr(module, "open", refuse, raising=False)
    with pytest.raises(Unreadable) as caught:
        header(tmp_path / "a.png")
    assert str(caught.value) == "cannot be opened: Permission denied"


# --- Threads -----------------------------------------------------------------


def test_threads():
    images = [pattern(30 + i, 40, seed=i) for i in range(24)]
    kinds = ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]
    contents = [
        encoded(image, kinds[i % len(kinds)]) for i, image in enumerate(images)
    ]
    contents.append(contents[0][:99])
    contents.append(png(np.zeros((1, 4)), 8, 2, size=(10_000, 10_000)))
    together = threading.Barrier(8)

    def attempt(content):
        try:
            return decode(content, channels=3, size=16).tobytes()
        except Unreadable as reason:
            return str(reason)

    def work(_):
        together.wait()
        return [attempt(content) for content in contents]

    alone = [attempt(content) for content in contents]
    assert len(set(alone)) == len(contents)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [alone] * 8


def test_large_images_are_decoded_one_at_a_time(monkeypatch):
    """So that so many threads do not take so many times the memory."""
    monkeypatch.setattr(module, "_LARGE", 50)
    contents = [
        encoded(pattern(side, side, seed=side), "PNG") for side in (7, 8, 9, 10)
    ] * 3
    inside, most = [], []

    def slowly(opened):
        inside.append(opened.size)
        large = [size for size in inside if size != (7, 7)]
        most.append((len(large), len(inside)))
        time.sleep(0.01)
        try:
            return on_white(opened)
        finally:
            inside.remove(opened.size)

    on_white = module._on_white
    alone = [decode(content, channels=3, size=4) for content in contents]
    monkeypatch.setattr(module, "_on_white", slowly)
    with ThreadPoolExecutor(6) as pool:
        found = list(
            pool.map(lambda c: decode(c, channels=3, size=4), contents)
        )
    np.testing.assert_array_equal(found, alone)
    assert max(large for large, _ in most) == 1
    assert max(all_of_them for _, all_of_them in most) > 1
