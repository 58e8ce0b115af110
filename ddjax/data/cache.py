"""Decode once: encoded images to a checked file of pixels.

A cache is one folder:

    manifest.json                 what it was made from, how, and checksums
    train_images.npy              [n h w c] uint8, read as a whole or by Rows
    train_labels.npy              [n] int32
    test_*.npy, held_out_*.npy    where the source has these parts

It is made in ``<folder>.partial`` and renamed when it is whole, so a folder
without ``.partial`` is complete; an interrupted preparation goes on where its
last saved progress was, and of two processes that prepare the same one waits
for the other.
"""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import itertools
import os
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np

from ddjax import files
from ddjax.data import decode
from ddjax.types import InputError

__all__ = [
    "Cache",
    "Form",
    "Records",
    "Source",
    "class_numbers",
    "open_cache",
    "prepare",
]

_FORMAT = 1
_KEYS = {
    "class_names",
    "files",
    "original_sizes",
    "splits",
    "stamp",
    "unreadable",
    "watched",
}
_HEADER = 128  # bytes of NumPy's header before arrays such as these
_BLOCK = 64 << 20  # bytes behind one checksum
_CHUNK = 64 << 20  # bytes of pixels decoded between two writes
_CHECKED_WHOLE = 1 << 30  # larger files are checked by samples when opened
_SAMPLED_BLOCKS = 16
_SAVE_EVERY = 5.0  # seconds between two saves of the progress


class Form(NamedTuple):
    """The form that images are brought into.

    Attributes:
      size: side in pixels; 0 keeps the images' own, which must be equal.
      crop: "center" (shorter side resized, the middle kept) or "stretch".
      channels: 1 grey, 3 colour, 0 what the source has.
    """

    size: int = 0
    crop: str = "center"
    channels: int = 0


AS_THEY_ARE = Form()


class Records(NamedTuple):
    """One part of a source, read in order.

    Attributes:
      count: n.
      read: (begin, end) -> [(name, encoded, label)]; encoded is a Path, the
        bytes of an image file, or [h w c] uint8 pixels.
    """

    count: int
    read: Callable[[int, int], Sequence[tuple[str, Any, int]]]


class Source(NamedTuple):
    """Labelled images as they lie somewhere.

    Attributes:
      splits: "train" and, where the source has them, "test" and "held_out".
      class_names: k names.
      channels: 1 or 3; 0 where every image has to be looked at.
      stamp: changes when the files do.
      watched: the files whose sizes and times make the stamp; None where only
        opening the source again can tell.
      ignored: files that are no images.
      upright: turn photographs as their EXIF data says.
    """

    splits: dict[str, Records]
    class_names: tuple[str, ...]
    channels: int
    stamp: str
    watched: tuple[Path, ...] | None = None
    ignored: int = 0
    upright: bool = True


class Cache(NamedTuple):
    """A prepared cache.

    Attributes:
      folder: where it is.
      manifest: what manifest.json says.
    """

    folder: Path
    manifest: dict[str, Any]

    def images_path(self, split: str) -> Path:
        """The file of a split's pixels."""
        return self.folder / f"{split}_images.npy"

    def labels(self, split: str) -> np.ndarray:
        """[n] int32."""
        return np.load(self.folder / f"{split}_labels.npy", allow_pickle=False)


def stamp_of(paths: Sequence[Path]) -> str:
    """A digest of the names, sizes and times of some files.

    Raises:
      OSError: one is not there.
    """
    digest = hashlib.sha256()
    for path in paths:
        found = path.stat()
        digest.update(
            f"{path.name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode()
        )
    return digest.hexdigest()


def prepare(
    folder: Path,
    open_source: Callable[[], Source],
    *,
    identity: dict[str, Any],
    form: Form,
    classes: Sequence[str] = (),
    unreadable_share: float = 0.01,
    thorough: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Cache:
    """Opens a cache; makes it first where it is missing, changed or damaged.

    Args:
      folder: of the cache.
      open_source: called where the files have to be looked at.
      identity: JSON-able, what the folder was named after; kept in the
        manifest.
      form: of the images.
      classes: names or numbers of those to keep, in the order of their new
        labels; empty for all.
      unreadable_share: more unreadable images than this share of all are
        refused.
      thorough: check all of a large cache, not a sample.
      progress: told (images done, images in all).
      say: told in a sentence what a user should know.

    Returns:
      Cache.

    Raises:
      InputError: the source is missing or unfit, or too much of it cannot be
        read.
    """
    source = None
    if not (folder.exists() or _partial(folder).exists()):
        # A wrong path is refused before anything is made.
        source = _chosen(open_source(), classes)
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(f"{folder}.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        say(f"another process is preparing {folder}: waiting for it")
        lock.acquire()
    except OSError:
        if not (folder / "manifest.json").exists():
            raise
        # Someone else's, which can only be read.
        return open_cache(folder, thorough=thorough)
    try:
        _tidy(folder)
        found, again = _usable(folder, open_source, identity, thorough, say)
        if found is None:
            found = _make(
                folder,
                source or _chosen(again or open_source(), classes),
                identity,
                form,
                unreadable_share,
                progress,
                say,
            )
    finally:
        lock.release()
    _check_share(found.manifest, folder, unreadable_share)
    if found.manifest["unreadable"]:
        say(_left_out(found.manifest, folder))
    return found


def open_cache(folder: Path, *, thorough: bool = False) -> Cache:
    """Opens a cache and checks it.

    Args:
      folder: of ``prepare``.
      thorough: read all of it; files of more than 1 GiB are otherwise
        checked by their length and sixteen blocks.

    Raises:
      InputError: it is missing, truncated or changed; the file is named.
    """
    path = folder / "manifest.json"
    mend = f"remove {folder}, it will be prepared again"
    try:
        manifest = files.read_json(path)
        if manifest["format"] != _FORMAT or not _KEYS <= manifest.keys():
            raise KeyError("format")
        for name, entry in manifest["files"].items():
            _check_file(folder / name, entry, thorough, mend)
    except FileNotFoundError as error:
        raise InputError(
            f"there is no {error.filename}: prepare the data first"
        ) from None
    except (
        files.DamagedFile,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
    ):
        raise InputError(f"{path} is damaged: {mend}") from None
    return Cache(folder, manifest)


def _check_file(path, entry, thorough, mend):
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise InputError(
            f"{path} has {size:,} bytes instead of {entry['bytes']:,}: {mend}"
        )
    blocks = range(len(entry["sha256"]))
    if size > _CHECKED_WHOLE and not thorough:
        blocks = np.linspace(0, len(blocks) - 1, _SAMPLED_BLOCKS).astype(int)
    with open(path, "rb") as file:
        for block in blocks:
            file.seek(int(block) * _BLOCK)
            if _digest(file.read(_BLOCK)) != entry["sha256"][block]:
                raise InputError(f"{path} is damaged: {mend}")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _usable(folder, open_source, identity, thorough, say):
    """(cache or None, source or None): None where it has to be made."""
    if not (folder / "manifest.json").exists():
        if folder.exists():
            _check_is_cache(folder)
        return None, None
    source = None
    try:
        found = open_cache(folder, thorough=thorough)
    except InputError as error:
        say(f"{error.args[0].split(': remove')[0]}: preparing it again")
        return None, None
    watched = found.manifest["watched"]
    try:
        if watched is None:
            source = open_source()
            stamp = source.stamp
        else:
            stamp = stamp_of([Path(path) for path in watched])
    except (InputError, OSError):
        if watched is None and Path(identity["data_dir"]).exists():
            raise  # it is there, and something is wrong with it
        say(f"the source of {folder} is gone: using the cache")
        return found, None
    if stamp != found.manifest["stamp"]:
        say(f"the files behind {folder} have changed: preparing them again")
        return None, source
    return found, None


def _chosen(source: Source, classes: Sequence[str]) -> Source:
    """The source with some classes only, labelled anew from 0."""
    names = source.class_names
    kept = class_numbers(classes, names)
    number = {old: new for new, old in enumerate(kept)}

    def only(split, records):
        def read(begin, end):
            chosen = []
            for name, encoded, label in records.read(begin, end):
                if not 0 <= label < len(names):
                    raise InputError(
                        f"{split} image {name} has the label {label}, "
                        f"outside 0..{len(names) - 1}: mend the labels"
                    )
                if label in number:
                    chosen.append((name, encoded, number[label]))
            return chosen

        return records._replace(read=read)

    return source._replace(
        class_names=tuple(names[old] for old in kept),
        splits={
            split: only(split, records)
            for split, records in source.splits.items()
        },
    )


def class_numbers(classes: Sequence[str], names: Sequence[str]) -> list[int]:
    """The classes that words name, in their order; all for no words.

    Raises:
      InputError: an unknown class, one named twice, or fewer than two.
    """
    kept = [_class_number(word, names) for word in classes]
    kept = kept or list(range(len(names)))
    counted = collections.Counter(kept)
    twice = [number for number, times in counted.items() if times > 1]
    if twice:
        raise InputError(
            f"data.classes names {names[twice[0]]!r} twice: name each class "
            "once"
        )
    if len(kept) < 2:
        raise InputError(
            f"one class only ({names[kept[0]]!r}): a classifier needs at "
            "least two"
        )
    return kept


def _class_number(word: str, names: Sequence[str]) -> int:
    """A class by its name or, where no class is called so, its number."""
    if word in names:
        return names.index(word)
    if word.isdecimal() and int(word) < len(names):
        return int(word)
    known = ", ".join(names[:10]) + (", .." if len(names) > 10 else "")
    raise InputError(
        f"data.classes names {word!r}, which the data lacks: use names "
        f"({known}) or numbers 0..{len(names) - 1}, joined by commas"
    )


def _make(folder, source, identity, form, unreadable_share, progress, say):
    """Decodes a source into a new cache, which takes the old one's place."""
    partial = _partial(folder)
    workers = _workers()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        channels = form.channels or source.channels
        if not channels:
            channels = _most_channels(source, pool, say)
        form = form._replace(channels=channels)
        saved = _Progress.open(partial, source.stamp, form)
        total = sum(records.count for records in source.splits.values())
        done = sum(part["next"] for part in saved.splits.values())
        progress(done, total)
        for split, records in source.splits.items():
            done = _write_split(
                partial, split, records, source, form, saved, pool,
                lambda count: progress(count, total), done,
            )  # fmt: skip
    _check_classes(source, saved)
    manifest = {
        "format": _FORMAT,
        "identity": identity,
        "form": form._asdict(),
        "stamp": source.stamp,
        "watched": source.watched and [str(path) for path in source.watched],
        "class_names": list(source.class_names),
        "splits": {split: part["rows"] for split, part in saved.splits.items()},
        "original_sizes": dict(sorted(saved.sizes.items())),
        "unreadable": saved.unreadable,
        "ignored": source.ignored,
        "files": {
            path.name: _describe(path) for path in sorted(partial.glob("*.npy"))
        },
    }
    try:
        _check_share(manifest, partial, unreadable_share)
    except InputError:
        # Mended, or only readable again, files may keep their times.
        (partial / _Progress.NAME).unlink()
        raise
    files.write_json(partial / "manifest.json", files.sealed(manifest))
    if folder.exists():
        _check_is_cache(folder)
        folder.rename(_aside(folder))
    partial.rename(folder)
    _tidy(folder)
    return Cache(folder, manifest)


def _partial(folder: Path) -> Path:
    """Where a cache is made."""
    return folder.with_name(f"{folder.name}.partial")


def _aside(folder: Path) -> Path:
    """Where an old cache waits until the new one is in its place."""
    return folder.with_name(f"{folder.name}.old")


def _tidy(folder: Path) -> None:
    """Ends what a process that was killed while it replaced a cache began."""
    partial = _partial(folder)
    if not folder.exists() and (partial / "manifest.json").exists():
        partial.rename(folder)
    if folder.exists():
        shutil.rmtree(_aside(folder), ignore_errors=True)
        (folder / _Progress.NAME).unlink(missing_ok=True)


def _check_is_cache(folder: Path) -> None:
    """Refuses to replace a folder that is something else."""
    others = [
        path.name
        for path in folder.iterdir()
        if path.suffix != ".npy"
        and path.name not in ("manifest.json", _Progress.NAME)
    ]
    if others:
        raise InputError(
            f"{folder} is to become a cache but holds {others[0]}: name "
            "another folder"
        )


def _workers() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _most_channels(source, pool, say) -> int:
    """1 where every image is grey, 3 where any has colours."""
    grey = False

    def look(record):
        try:
            return decode.header(record[1], upright=source.upright).channels
        except decode.Unreadable:
            return 0  # of neither kind; reported when it is decoded

    for records in source.splits.values():
        for begin in range(0, records.count, 10_000):
            chunk = records.read(begin, min(begin + 10_000, records.count))
            channels = list(pool.map(look, chunk))
            grey |= 1 in channels
            if 3 in channels:
                if grey:
                    say(
                        f"{chunk[channels.index(3)][0]} is in colour and "
                        "other images are grey: all are read in colour, "
                        "config.data.channels=1 reads all in grey"
                    )
                return 3
    return 1


class _Progress:
    """How far a preparation has come; saved after what it tells of."""

    NAME = "progress.json"

    def __init__(self, folder, stamp, form):
        self.folder = folder
        self.made_from = [_FORMAT, stamp, *form]
        self.splits: dict[str, dict[str, Any]] = {}
        self.sizes: collections.Counter[str] = collections.Counter()
        self.unreadable: list[list[str]] = []

    @classmethod
    def open(cls, folder, stamp, form):
        try:
            found = cls(folder, stamp, form)
            there = files.read_json(folder / cls.NAME)
            if there["made_from"] == found.made_from:
                found.splits = there["splits"]
                found.sizes.update(there["sizes"])
                found.unreadable = there["unreadable"]
                if all(map(found._is_there, found.splits)):
                    return found
        except (OSError, ValueError, KeyError, TypeError):
            pass
        # Nothing there, less than was told, or pixels of something else.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return cls(folder, stamp, form)

    def _is_there(self, split):
        """Whether the files hold all that is told of a split."""
        part = self.splits[split]
        row = int(np.prod(part["shape"] or [0]))
        return all(
            _crc32(self.folder / f"{split}_{kind}.npy", part["rows"] * size)
            == part["crc32"][kind]
            for kind, size in (("images", row), ("labels", 4))
        )

    def save(self):
        content = {
            "made_from": self.made_from,
            "splits": self.splits,
            "sizes": self.sizes,
            "unreadable": self.unreadable,
        }
        files.write_json(self.folder / self.NAME, files.sealed(content))


def _crc32(path, count):
    """Of so many bytes behind a file's header; None where it has fewer."""
    found = 0
    with open(path, "rb") as file:
        file.seek(_HEADER)
        while count:
            block = file.read(min(count, _BLOCK))
            if not block:
                return None
            found, count = zlib.crc32(block, found), count - len(block)
    return found


def _write_split(
    folder, split, records, source, form, saved, pool, progress, done
):
    """Appends the images of a split that are not there yet."""
    part = saved.splits.setdefault(
        split,
        {
            "next": 0,
            "rows": 0,
            "shape": None,
            "classes": {},
            "crc32": {"images": 0, "labels": 0},
        },
    )

    def pixels(record):
        name, encoded, _ = record
        try:
            return name, *_pixels(encoded, form, source.upright)
        except decode.Unreadable as error:
            return name, None, str(error)

    def group_of(records):
        return [pixels(record) for record in records]

    images = _Appended(folder / f"{split}_images.npy", np.uint8)
    labels = _Appended(folder / f"{split}_labels.npy", np.int32)
    with images, labels:
        images.truncate(part["rows"], part["shape"] or [0, 0, 0])
        labels.truncate(part["rows"], [])
        last_save = time.monotonic()
        while part["next"] < records.count:
            size = _chunk_size(part["shape"], form)
            end = min(part["next"] + size, records.count)
            chunk = records.read(part["next"], end)
            # In groups: handing over one small image costs as much as its
            # decoding.
            groups = [chunk[i : i + 32] for i in range(0, len(chunk), 32)]
            decoded = itertools.chain.from_iterable(pool.map(group_of, groups))
            for record, (name, array, more) in zip(chunk, decoded):
                if array is None:
                    saved.unreadable.append([name, more])
                    continue
                saved.sizes[more] += 1
                _check_shape(part, array.shape, name)
                crc32 = part["crc32"]
                crc32["images"] = images.append(array, crc32["images"])
                crc32["labels"] = labels.append(record[2], crc32["labels"])
                label = str(record[2])
                part["classes"][label] = part["classes"].get(label, 0) + 1
                part["rows"] += 1
            done += end - part["next"]
            part["next"] = end
            progress(done)
            if time.monotonic() - last_save > _SAVE_EVERY:
                images.flush()
                labels.flush()
                saved.save()
                last_save = time.monotonic()
        images.finish(part["rows"], part["shape"] or [0, 0, 0])
        labels.finish(part["rows"], [])
    saved.save()
    return done


def _chunk_size(shape, form):
    """Images to decode between two writes."""
    if shape is None and form.size:
        shape = (form.size, form.size, form.channels)
    if shape is None:
        return 8  # they may be photographs of any size
    return max(1, min(1024, _CHUNK // max(1, int(np.prod(shape)))))


def _pixels(encoded, form, upright):
    """([h w c] uint8, "width x height" before)."""
    if isinstance(encoded, np.ndarray):
        return encoded, f"{encoded.shape[1]} x {encoded.shape[0]}"
    header = decode.header(encoded, upright=upright)
    array = decode.decode(
        encoded,
        channels=form.channels,
        size=form.size,
        crop=form.crop,
        upright=upright,
    )
    return array, f"{header.width} x {header.height}"


def _check_shape(part, shape, name):
    if part["shape"] is None:
        part["shape"] = list(shape)
    elif part["shape"] != list(shape):
        height, width, _ = part["shape"]
        raise InputError(
            f"the images have different sizes ({name} is {shape[1]} x "
            f"{shape[0]}, the ones before {width} x {height}): set "
            "config.data.size to the side in pixels that all shall have"
        )


def _check_classes(source, saved):
    for split, part in saved.splits.items():
        for label, name in enumerate(source.class_names):
            if str(label) not in part["classes"]:
                raise InputError(
                    f"class {name!r} has no readable {split} images: add "
                    "some, number labels from 0 without gaps, or leave the "
                    "class out by config.data.classes"
                )
    shapes = {
        split: tuple(part["shape"]) for split, part in saved.splits.items()
    }
    if len(set(shapes.values())) > 1:
        raise InputError(
            f"the parts have images of different shapes ({shapes}): set "
            "config.data.size to the side in pixels that all shall have"
        )


def _check_share(manifest, folder, limit):
    count, found = sum(manifest["splits"].values()), manifest["unreadable"]
    if len(found) > limit * (count + len(found)):
        listed = "; ".join(f"{name}: {why}" for name, why in found[:3])
        raise InputError(
            f"{len(found)} of {count + len(found)} images cannot be read "
            f"({listed}{'; ..' if len(found) > 3 else ''}), more than the "
            f"share {limit:g} that config.data.unreadable_share allows: mend "
            "or remove them, or raise it"
        )


def _left_out(manifest, folder) -> str:
    found = manifest["unreadable"]
    name, why = found[0]
    if len(found) == 1:
        return f"1 image cannot be read and is left out: {name} ({why})"
    return (
        f"{len(found)} images cannot be read and are left out: {name} ({why}) "
        f"and those in {folder / 'manifest.json'}"
    )


def _describe(path) -> dict[str, Any]:
    digests = []
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digests.append(_digest(block))
    return {"bytes": path.stat().st_size, "sha256": digests}


class _Appended:
    """An .npy file that grows row by row; its header is written last."""

    def __init__(self, path, dtype):
        self.dtype = np.dtype(dtype)
        self.file = open(path, "r+b" if path.exists() else "w+b")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def _header(self, rows, shape):
        self.file.seek(0)
        np.lib.format.write_array_header_1_0(
            self.file,
            {
                "descr": np.lib.format.dtype_to_descr(self.dtype),
                "fortran_order": False,
                "shape": (rows, *shape),
            },
        )
        return self.file.tell()

    def truncate(self, rows, shape):
        # NumPy pads the header and leaves room for the rows to grow in
        # number, so it keeps its length; ``finish`` makes sure.
        self.begin = self._header(rows, shape)
        self.file.truncate(
            self.begin + rows * int(np.prod(shape)) * self.dtype.itemsize
        )
        self.file.seek(0, os.SEEK_END)

    def append(self, row, crc32):
        """The checksum of all rows, of that before this one."""
        content = np.ascontiguousarray(row, self.dtype).tobytes()
        self.file.write(content)
        return zlib.crc32(content, crc32)

    def flush(self):
        self.file.flush()
        os.fsync(self.file.fileno())

    def finish(self, rows, shape):
        if self._header(rows, shape) != self.begin:
            raise AssertionError("the header outgrew its place")
        self.flush()
