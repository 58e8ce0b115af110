"""Data sets that TFDS knows or has prepared, read without TensorFlow."""

from __future__ import annotations

import contextlib
import difflib
import io
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ddjax.data.cache import Records, Source, stamp_of
from ddjax.types import InputError

__all__ = ["open_tfds"]

# The first one that a set has is its test part; "validation" stands in where
# the test labels are secret, as ImageNet's are.
_TEST_SPLITS = ("test", "validation")
_WITHOUT_LABELS = {("imagenet2012", "test")}


def open_tfds(name: str, data_dir: str) -> Source:
    """A data set by its TFDS name, downloaded first if need be.

    Args:
      name: as in TFDS's catalogue, with a config after "/" where it has some.
      data_dir: the folder that holds TFDS's sets; empty for its default.

    Returns:
      Source of encoded images.

    Raises:
      InputError: TFDS does not know the name, the set is not there and cannot
        be had, or it has no images with one label each.
    """
    import tensorflow_datasets as tfds

    folder = Path(data_dir).expanduser() if data_dir else None
    if folder is not None and not folder.is_dir():
        raise InputError(
            f"data.data_dir {data_dir!r} is not a folder: name the one that "
            f"holds {name}/, or make it and {name} is downloaded into it"
        )
    try:
        builder = tfds.builder(name, data_dir=folder)
    except tfds.core.registered.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name, known, 3) or ["cifar10"]
        raise InputError(
            f"there is no folder {name!r}, and neither ddjax nor TFDS has a "
            f"data set of that name: check the path, or choose for example "
            f"{' or '.join(close)}; data.source may also be digits, folder, "
            "npz, tiny_imagenet or imagenet"
        ) from None
    except ImportError as error:
        raise InputError(
            f"TFDS opens {name!r} only with TensorFlow "
            f"({_first_line(error)}): choose a data set for image "
            "classification"
        ) from None
    except (ValueError, AttributeError, AssertionError, TypeError) as error:
        raise InputError(
            f"TFDS cannot open {name!r} ({_first_line(error)}): check the "
            "name; for a folder of images use data.source=folder"
        ) from None
    if not builder.is_prepared():
        _download(builder, name)
    image, label = _features(builder, name)
    names = list(_splits(builder, name))
    files = [
        Path(path)
        for split in names
        for path in builder.info.splits[split].filepaths
    ]
    parts = {"train": "train", _test_split(names): "test"}
    if "validation" in names and "test" in names:
        parts["validation"] = "held_out"
    feature = builder.info.features[label]
    count = getattr(feature, "num_classes", None)
    if not count:
        raise InputError(
            f"the label {label!r} of {name} is not a class: choose a data "
            "set for image classification"
        )
    return Source(
        splits={
            part: _records(builder, split, image, label)
            for split, part in parts.items()
            if split is not None
        },
        class_names=tuple(feature.names or map(str, range(count))),
        channels=builder.info.features[image].shape[-1] or 3,
        stamp=_stamp(files, builder),
        watched=tuple(files),
        upright=False,
    )


def _stamp(paths, builder) -> str:
    try:
        return stamp_of(paths)
    except OSError as error:
        raise InputError(
            f"{builder.data_path} lacks {error.filename}: prepare the set again"
        ) from None


def _splits(builder, name) -> Iterator[str]:
    for split in ("train", *_TEST_SPLITS):
        if (
            split in builder.info.splits
            and (builder.name, split) not in _WITHOUT_LABELS
        ):
            yield split
        elif split == "train":
            raise InputError(
                f"{name} has no split 'train', only "
                f"{', '.join(builder.info.splits)}: choose another data set"
            )


def _test_split(names: Sequence[str]) -> str | None:
    return next((split for split in _TEST_SPLITS if split in names), None)


def _features(builder, name) -> tuple[str, str]:
    """The names of the image and of its label."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    keys = builder.info.supervised_keys
    if keys and len(keys) == 2 and all(key in features for key in keys):
        image, label = keys
    else:
        image, label = "image", "label"
    if not (
        image in features
        and label in features
        and isinstance(features[image], tfds.features.Image)
    ):
        raise InputError(
            f"{name} has {', '.join(sorted(features))} and not one image with "
            "one label: choose a data set for image classification"
        )
    return image, label


def _records(builder, split: str, image: str, label: str) -> Records:
    import tensorflow_datasets as tfds

    decoders = {image: tfds.decode.SkipDecoding()}
    info = builder.info.splits[split]
    kind = builder.info.file_format.name

    def labelled(begin, found):
        return [
            (
                f"{split}[{begin + i}]",
                _encoded(record[image]),
                int(record[label]),
            )
            for i, record in enumerate(found)
        ]

    if kind == "TFRECORD":
        reader = _Sequential(
            [Path(path) for path in info.filepaths],
            lambda raw: builder.info.features.deserialize_example_np(
                raw, decoders=decoders
            ),
        )
        return Records(
            info.num_examples,
            lambda begin, end: labelled(begin, reader(begin, end)),
        )
    try:
        source = builder.as_data_source(split, decoders=decoders)
    except NotImplementedError:
        raise InputError(
            f"{builder.data_path} is stored as {kind.lower()}, which cannot "
            "be read without TensorFlow: prepare it again as array_record"
        ) from None

    def read(begin, end):
        try:
            found = source.__getitems__(list(range(begin, end)))
        except Exception as error:  # of protobuf, array_record and TFDS
            raise InputError(
                f"{builder.data_path} is damaged at {split}[{begin}:{end}] "
                f"({_first_line(error)}): prepare it again"
            ) from None
        return labelled(begin, found)

    return Records(len(source), read)


def _encoded(image: Any) -> Any:
    return image if isinstance(image, bytes) else bytes(image)


class _Sequential:
    """Examples of tfrecord files, read in order; a step back starts anew.

    Framing: length (8 bytes), its checksum (4), content, checksum (4). The
    checksums need a library for CRC-32C and are not looked at.
    """

    def __init__(self, paths: Sequence[Path], parse):
        self.paths, self.parse = paths, parse
        self.position, self.stream = 0, self._raw()

    def __call__(self, begin, end):
        if begin < self.position:
            self.position, self.stream = 0, self._raw()
        found = []
        for raw in self.stream:
            self.position += 1
            if self.position > begin:
                found.append(self._parsed(raw))
            if self.position == end:
                break
        if len(found) < end - begin:
            raise InputError(
                f"{self.paths[0].parent} holds {self.position} examples "
                f"where its dataset_info.json tells of more than {begin}: "
                "prepare it again"
            )
        return found

    def _parsed(self, raw):
        try:
            return self.parse(raw)
        except Exception as error:  # of protobuf and TFDS, on damaged bytes
            raise InputError(
                f"{self.paths[0].parent} is damaged at example "
                f"{self.position - 1} ({_first_line(error)}): prepare it again"
            ) from None

    def _raw(self) -> Iterator[bytes]:
        for path in self.paths:
            with open(path, "rb") as file:
                while head := file.read(12):
                    length = (
                        struct.unpack("<Q", head[:8])[0]
                        if (len(head) == 12)
                        else -1
                    )
                    # A damaged length must not ask for all of the memory.
                    if 0 <= length <= path.stat().st_size:
                        content = file.read(length)
                        if len(content) == length and len(file.read(4)) == 4:
                            yield content
                            continue
                    raise InputError(
                        f"{path} is truncated or damaged: prepare the set again"
                    )


def _download(builder, name: str) -> None:
    """Downloads and prepares a set, or says what to do instead."""
    from tensorflow_datasets.core.download import downloader

    # Eleven tries with growing pauses would keep a user without a network
    # waiting for minutes.
    tries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, 2
    where = Path(str(builder.data_path).rpartition(f"/{builder.name}/")[0])
    command = (
        'pip install tensorflow-cpu && python -c "import tensorflow_datasets '
        f"as tfds; tfds.builder('{name}', data_dir='{where}')"
        '.download_and_prepare()"'
    )
    shown = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(shown),
        ):
            warnings.simplefilter("ignore")
            builder.download_and_prepare(file_format="array_record")
    except AssertionError as error:
        if "manual" not in str(error).lower():
            raise InputError(
                f"{name} cannot be prepared ({_first_line(error)}): run: "
                f"{command}"
            ) from None
        instructions = " ".join(
            (builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split()
        )
        raise InputError(
            f"{name} has to be fetched by hand ({instructions}): put the "
            f"files into {where / 'downloads' / 'manual'} and run: {command}"
        ) from None
    except ImportError as error:
        raise InputError(
            f"{name} is not prepared under {where}, and TFDS prepares it with "
            f"TensorFlow only ({_first_line(error)}); once, in any "
            f"environment, run: {command}"
        ) from None
    except OSError as error:
        if type(error).__module__.partition(".")[0] not in (
            "requests",
            "urllib3",
        ):
            raise
        raise InputError(
            f"{name} is not prepared under {where}, and there is no network "
            "to download it from: set config.data.data_dir to a folder that "
            f"holds it, or on a machine with a network run: {command}"
        ) from None
    except _download_errors() as error:
        raise InputError(
            f"{name} cannot be downloaded ({_first_line(error)}): try again "
            f"later, or run: {command}"
        ) from None
    finally:
        downloader.MAX_RETRIES = tries


def _download_errors():
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import download_manager

    return (
        tfds.download.DownloadError,
        download_manager.NonMatchingChecksumError,
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
