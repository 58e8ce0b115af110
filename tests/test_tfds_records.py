"""TFDS folders without TensorFlow: both formats, and every way to lack one."""

import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from PIL import Image

from ddjax.data import decode, tfds_records
from ddjax.types import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 5, 4, 3), np.uint8)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    file.seek(0)
    return file


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """Nine pictures: six to train, one held out, two for testing."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(5, 4, 3)),
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, manager):
        return {
            "train": self._generate_examples(0, 6),
            "validation": self._generate_examples(6, 7),
            "test": self._generate_examples(7, 9),
        }

    def _generate_examples(self, begin, end):
        for i in range(begin, end):
            yield i, {"image": png(PIXELS[i]), "label": i % 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data_dir that holds tiny_pictures as array_record."""
    folder = tmp_path_factory.mktemp("tfds")
    TinyPictures(
        data_dir=folder, file_format="array_record"
    ).download_and_prepare(file_format="array_record")
    return folder


@pytest.fixture
def as_tfrecord(prepared, tmp_path):
    """The same examples in the format that most users have."""
    old = prepared / "tiny_pictures" / "1.0.0"
    new = tmp_path / "tiny_pictures" / "1.0.0"
    new.mkdir(parents=True)
    info = json.loads((old / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        split["filepathTemplate"] = (
            "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        )
    (new / "dataset_info.json").write_text(json.dumps(info))
    (new / "features.json").write_bytes((old / "features.json").read_bytes())
    (new / "label.labels.txt").write_bytes(
        (old / "label.labels.txt").read_bytes()
    )
    builder = tfds.builder_from_directory(old)
    for split, details in builder.info.splits.items():
        source = builder.as_data_source(split)
        name = f"tiny_pictures-{split}.tfrecord-00000-of-00001"
        with open(new / name, "wb") as file:
            for i in range(details.num_examples):
                raw = source.data_source[i]
                head = struct.pack("<Q", len(raw))
                file.write(head + bytes(4) + raw + bytes(4))
    return tmp_path


def everything(source, split):
    records = source.splits[split]
    found = records.read(0, records.count)
    return (
        np.stack([decode.decode(raw, channels=3) for _, raw, _ in found]),
        [label for _, _, label in found],
    )


def check(source):
    assert source.class_names == ("cat", "dog")
    assert source.channels == 3 and not source.upright
    # The order within a split is TFDS's own, the same every time.
    seen = set()
    for split, size in (("train", 6), ("held_out", 1), ("test", 2)):
        pixels, labels = everything(source, split)
        assert len(pixels) == size
        for picture, label in zip(pixels, labels):
            number = next(i for i in range(9) if (PIXELS[i] == picture).all())
            assert label == number % 2
            seen.add((split, number))
    assert {number for _, number in seen} == set(range(9))


def test_array_record(prepared):
    check(tfds_records.open_tfds("tiny_pictures", str(prepared)))


def test_tfrecord(as_tfrecord):
    source = tfds_records.open_tfds("tiny_pictures", str(as_tfrecord))
    check(source)
    records = source.splits["train"]
    whole = records.read(0, 6)
    # In pieces, after a jump and again from the start.
    assert records.read(0, 2) + records.read(2, 6) == whole
    assert records.read(1, 3) == whole[1:3]
    assert records.read(4, 5) == whole[4:5]


REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "tfds"


@pytest.mark.skipif(not REAL.is_dir(), reason="no real data beside the project")
def test_real_cifar10():
    source = tfds_records.open_tfds("cifar10", str(REAL))
    assert {s: r.count for s, r in source.splits.items()} == {
        "train": 50_000,
        "test": 10_000,
    }
    assert source.class_names[0] == "airplane"
    assert len(source.class_names) == 10
    found = source.splits["test"].read(9_900, 10_000)
    pixels = [decode.decode(raw, channels=3) for _, raw, _ in found]
    assert np.shape(pixels) == (100, 32, 32, 3)
    assert 80 < np.mean(pixels) < 160
    assert {label for _, _, label in found} == set(range(10))


def test_stamp_follows_the_files(as_tfrecord):
    first = tfds_records.open_tfds("tiny_pictures", str(as_tfrecord))
    path = next(p for p in first.watched if "train" in p.name)
    path.write_bytes(path.read_bytes() + b"x")
    again = tfds_records.open_tfds("tiny_pictures", str(as_tfrecord))
    assert again.stamp != first.stamp
    # Of the same size: the time alone tells.
    later = path.stat().st_mtime_ns + 1_000
    os.utime(path, ns=(later, later))
    touched = tfds_records.open_tfds("tiny_pictures", str(as_tfrecord))
    assert touched.stamp not in (first.stamp, again.stamp)


@pytest.mark.parametrize("kept", [-3, 5, 40])
def test_truncated_tfrecord(as_tfrecord, kept):
    source = tfds_records.open_tfds("tiny_pictures", str(as_tfrecord))
    path = next(p for p in source.watched if "train" in p.name)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"train\.tfrecord.* is truncated"):
        source.splits["train"].read(0, 6)


def test_tfrecord_that_lacks_examples(as_tfrecord):
    source = tfds_records.open_tfds("tiny_pictures", str(as_tfrecord))
    path = next(p for p in source.watched if "train" in p.name)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="prepare it again"):
        source.splits["train"].read(0, 6)


def test_array_record_that_is_damaged(prepared, tmp_path):
    copied = tmp_path / "tiny_pictures" / "1.0.0"
    copied.mkdir(parents=True)
    for path in (prepared / "tiny_pictures" / "1.0.0").iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    for path in copied.glob("*train*array_record*"):
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="tiny_pictures"):
        source = tfds_records.open_tfds("tiny_pictures", str(tmp_path))
        source.splits["train"].read(0, 6)


def test_unknown_name(tmp_path):
    with pytest.raises(
        InputError, match=r"'cifar11'.*choose for example .*cifar10"
    ):
        tfds_records.open_tfds("cifar11", str(tmp_path))


def test_unknown_config(tmp_path):
    with pytest.raises(InputError, match="TFDS cannot open 'mnist/large'"):
        tfds_records.open_tfds("mnist/large", str(tmp_path))


def test_missing_folder(tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        tfds_records.open_tfds("mnist", str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "name, error, said",
    [
        (
            "mnist",
            requests.exceptions.ConnectionError("no route"),
            "no network to download it from.*pip install tensorflow-cpu",
        ),
        (
            "mnist",
            ImportError("no module tensorflow"),
            "TensorFlow only.*pip install tensorflow-cpu.*'mnist'",
        ),
        (
            "mnist",
            tfds.download.DownloadError("404"),
            r"cannot be downloaded \(404\)",
        ),
        (
            "imagenet2012",
            AssertionError("Manual directory is empty"),
            "ILSVRC2012_img_train.tar.*downloads/manual and run",
        ),
    ],
)
def test_set_that_cannot_be_had(tmp_path, monkeypatch, name, error, said):
    def fail(self, **kwargs):
        raise error

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(InputError, match=said) as refusal:
        tfds_records.open_tfds(name, str(tmp_path))
    assert "\n" not in str(refusal.value)


def test_set_without_one_label(prepared, tmp_path):
    # Under a name that no code in this process is registered for.
    where = tmp_path / "captioned" / "1.0.0"
    where.mkdir(parents=True)
    for path in (prepared / "tiny_pictures" / "1.0.0").iterdir():
        (where / path.name).write_bytes(path.read_bytes())
    features = json.loads((where / "features.json").read_text())
    parts = features["featuresDict"]["features"]
    parts["caption"] = parts.pop("label")
    (where / "features.json").write_text(json.dumps(features))
    with pytest.raises(InputError, match="caption, image and not one image"):
        tfds_records.open_tfds("captioned", str(tmp_path))


def test_set_that_needs_tensorflow(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ImportError("No module named 'tensorflow'")

    monkeypatch.setattr(tfds, "builder", fail)
    with pytest.raises(InputError, match="only with TensorFlow"):
        tfds_records.open_tfds("coco_captions", str(tmp_path))
