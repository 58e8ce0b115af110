"""Does every config run? Each one's whole pipeline on a few made images.

    python experiments/benchmarks/every_config.py
    python experiments/benchmarks/every_config.py --only=mnist,d2m

Makes data sets of noise in the form that each config reads: TFDS sets of its
own name, shape and classes, prepared as array_record; folders as Tiny
ImageNet, ImageNet and X-rays have them. Then runs every config by both methods
and in both sizes, and looks at what came out: updates, scores, files, page. A
run that is finished is not made again.

Widths, numbers of teachers, iterations, steps, networks and images that are
made are cut, and above 32 pixels the batches of the pre-training, so that a run
takes half a minute to some minutes on a CPU, most of it for compiling
(``settings_of`` has the list). All else is the config's: preprocessing, depth,
segments' reach, other batches, augmentation, layers, the generator's form.
Nothing here is learned, and no score means anything.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Compiling is what takes the time: into machine code no better than needed.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import launch
import numpy as np
from PIL import Image

from configs import common
from ddjax import artifact
from ddjax.data import imagenet
from ddjax.runs import d2m, generate, iadd
from ddjax.runs.workdir import Shared
from ddjax.settings import Settings

METHODS = {"iadd": iadd.run, "d2m": d2m.run}
IPC = {"full": 1, "small": 10}
PER_CLASS = 12  # to train, of which two are held out; ipc=10 takes the rest
# Sets of many classes have fewer images, and ipc=1 in both sizes: it is all of
# them that the student's steps take a part of.
MANY = ("cifar100", "imagenet1k", "tiny_imagenet")
PER_MANY = 3


class Case(NamedTuple):
    """A run.

    Attributes:
      config: its name.
      method: iadd or d2m.
      size: full or small; "" of a config that has none.
      ipc: distilled images per class, as behind the config's colon.
    """

    config: str
    method: str
    size: str
    ipc: int

    def __str__(self):
        return "-".join(filter(None, (self.config, self.method, self.size)))


class Made(NamedTuple):
    """Data made for a config.

    Attributes:
      shape: (h, w, c) of the images that networks are to see.
      classes: k.
      fields: of the data part, that say where it is.
      first: what stands behind the config's colon, before ipc and size.
    """

    shape: tuple[int, int, int]
    classes: int
    fields: dict[str, str]
    first: str = ""


# Data ------------------------------------------------------------------------


def picture(rng: np.random.Generator, label: int, shape) -> np.ndarray:
    """Noise around a level of the class's own: uint8 [h w c]."""
    level = 64 + 128 * (label % 7) / 7
    return np.clip(rng.normal(level, 50, shape), 0, 255).astype(np.uint8)


def _encoded(image: np.ndarray, kind: str) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, kind)
    file.seek(0)
    return file


def tfds_set(
    folder: Path, name: str, shape, classes: int, per_class: int, rng
) -> str:
    """A TFDS set of its own name and features, its images made here.

    Returns:
      data_dir.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=folder)
    if builder.is_prepared():
        return str(folder)

    def examples(per_class):
        others = {"id", "file_name", "coarse_label"} & set(
            builder.info.features
        )
        for number in range(per_class * classes):
            label = number % classes
            image = _encoded(picture(rng, label, shape), "PNG")
            more = {key: f"{number}" for key in others}
            if "coarse_label" in more:
                more["coarse_label"] = label % 20
            yield number, {"image": image, "label": label} | more

    test = "validation" if name == "imagenet2012" else "test"
    splits = {"train": examples(per_class), test: examples(1)}
    with mock.patch.object(
        type(builder), "_split_generators", lambda self, *manager: splits
    ):
        builder.download_and_prepare(file_format="array_record")
    return str(folder)


def folder_of(root: Path, parts: dict[str, int], names, rng, shapes) -> str:
    """part/class/number.jpg, of shapes that take turns.

    Returns:
      data_dir.
    """
    for part, count in parts.items():
        for label, name in enumerate(names):
            where = root / part / name
            where.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                image = picture(rng, label, shapes[number % len(shapes)])
                Image.fromarray(image.squeeze()).save(where / f"{number}.jpg")
    return str(root)


def tiny_imagenet(root: Path, rng) -> str:
    """The folder of tiny-imagenet-200.zip, of its 200 classes.

    Returns:
      data_dir.
    """
    wnids = [f"n{number:08d}" for number in range(200)]
    shape = (64, 64, 3)
    for label, wnid in enumerate(wnids):
        where = root / "train" / wnid / "images"
        where.mkdir(parents=True, exist_ok=True)
        for number in range(PER_MANY):
            Image.fromarray(picture(rng, label, shape)).save(
                where / f"{wnid}_{number}.JPEG"
            )
    where = root / "val" / "images"
    where.mkdir(parents=True, exist_ok=True)
    lines = []
    for label, wnid in enumerate(wnids):
        name = f"val_{label}.JPEG"
        Image.fromarray(picture(rng, label, shape)).save(where / name)
        lines.append(f"{name}\t{wnid}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(wnids))
    (root / "words.txt").write_text(
        "".join(f"{wnid}\tthing {wnid}, entity\n" for wnid in wnids)
    )
    return str(root)


# By config; of ImageNet-1K more classes than a batch of D2M takes, and not all.
_TFDS = {
    "cifar10": ("cifar10", (32, 32, 3), 10),
    "cifar100": ("cifar100", (32, 32, 3), 100),
    "mnist": ("mnist", (28, 28, 1), 10),
    "fashion_mnist": ("fashion_mnist", (28, 28, 1), 10),
    "svhn": ("svhn_cropped", (32, 32, 3), 10),
    "imagenet1k": ("imagenet2012", (128, 128, 3), 40),
}
CONFIGS = (
    "tiny",
    *_TFDS,
    "tiny_imagenet",
    "imagenet_subset",
    "covid19",
    "folder",
)


def make(config: str, folder: Path) -> Made:
    """Data in the form that a config reads."""
    rng = np.random.default_rng(0)
    root = folder / config
    if config == "tiny":
        return Made((8, 8, 1), 10, {})
    if config in _TFDS:
        name, shape, classes = _TFDS[config]
        given = (150, 140, 3) if config == "imagenet1k" else shape
        count = PER_MANY if config in MANY else PER_CLASS
        where = tfds_set(folder / "tfds", name, given, classes, count, rng)
        fields = {"data.data_dir": where}
        if config == "imagenet1k":
            fields["data.classes"] = ",".join(map(str, range(classes)))
        return Made(shape, classes, fields)
    if config == "tiny_imagenet":
        where = str(root) if root.exists() else tiny_imagenet(root, rng)
        return Made((64, 64, 3), 200, {"data.data_dir": where})
    if config == "imagenet_subset":
        names, _ = imagenet.subset("woof")
        parts, shapes = {"train": PER_CLASS, "val": 1}, [(150, 140, 3)]
        made = Made((128, 128, 3), 10, {"data.data_dir": str(root)}, "woof")
    elif config == "covid19":
        names = ["covid", "normal", "pneumonia"]
        parts = {"train": PER_CLASS, "test": 2}
        shapes = [(80, 90, 1), (70, 70, 3)]  # some X-rays are stored in colour
        made = Made((64, 64, 1), 3, {"data.data_dir": str(root)})
    else:
        names = ["cats", "dogs"]
        parts, shapes = (
            {"": PER_CLASS + 4},
            [(90, 70, 3), (40, 60, 3), (66, 80, 3)],
        )
        made = Made((64, 64, 3), 2, {}, str(root))
    if not root.exists():
        folder_of(root, parts, names, rng, shapes)
    return made


# Runs ------------------------------------------------------------------------


def cases() -> Iterator[Case]:
    """Every config by both methods and in both sizes.

    The full size at one image per class, the small one at ten, where steps of
    the student take a part of the images.
    """
    for config in CONFIGS:
        for method in METHODS:
            if config == "tiny":
                yield Case(config, method, "", 1)
                continue
            for size in ("full", "small"):
                ipc = 1 if config in MANY else IPC[size]
                yield Case(config, method, size, ipc)


def settings_of(case: Case, made: Made, *, cut: bool = True) -> Settings:
    """The config's, with what costs time cut; and in any case with no more
    generated images per class than there are real ones to stand beside."""
    words = [made.first] if made.first else []
    if case.size:
        words += [f"ipc={case.ipc}", f"size={case.size}"]
    get_config = importlib.import_module(f"configs.{case.config}").get_config
    config = get_config(",".join(words)) if words else get_config()
    found = common.settings_of(config).changed(made.fields)
    if not cut:
        return found.changed({"d2m.ipcs": "1", "d2m.epochs": "1"})
    attends, large = found.gan.attention > 0, made.shape[0] > 32
    cuts = {
        "model.width": 2,
        "teacher.count": 1,
        # Segments reach as far as the config's; the rest is not stored.
        "teacher.epochs": found.iadd.stored_epochs,
        "iadd.iterations": 2,
        "iadd.inner_steps": 2,
        # What teachers of noise say of alpha takes it out of its bounds.
        "iadd.learning_rate_step": 0.0,
        "gan.width": 8 if attends else 2,
        "gan.iterations": 2,
        "gan.looks": 1,
        "d2m.iterations": 2,
        "d2m.per_class": 2,
        "d2m.ipcs": "1",
        "d2m.epochs": "1",
        "d2m.stream_ipc": 1,
        "evaluate.networks": 1,
        "evaluate.epochs": 1,
        "evaluate.full_steps": 4,
        "evaluate.looks": 1,
        "evaluate.look_networks": 1,
        "log.every": 1,
    }
    if large:  # a BigGAN's batch of them takes minutes on a CPU
        cuts |= {"gan.batch_size": 4, "gan.critic_steps": 1}
    return found.changed(cuts)


def run(case: Case, made: Made, folder: Path) -> Path:
    """Makes a run.

    Args:
      case: which.
      made: its data.
      folder: of all runs and what they share.

    Returns:
      The run's folder.

    Raises:
      InputError: the config does not run.
    """
    shared = Shared(*(folder / name for name in Shared._fields))
    METHODS[case.method](
        settings_of(case, made), folder / str(case), shared, "every_config.py"
    )
    return folder / str(case)


def check(case: Case, made: Made, run: Path) -> None:
    """AssertionError where a finished run lacks something."""
    rows = [
        json.loads(line)
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert list(losses) == [1, 2], losses
    assert all(map(math.isfinite, losses.values())), losses
    table = json.loads((run / "eval.json").read_text())
    expected = {
        "iadd": {"distilled", "random_real", "full_data"},
        "d2m": {"stored/1/distilled", "stream/1/pretrained", "full_data"},
    }[case.method]
    assert expected <= set(table), sorted(table)
    for row, by_model in table.items():
        score = by_model["convnet"]
        assert (
            0 <= score["mean"] <= 1 and len(score["recall"]) == made.classes
        ), row
    page = (run / "report.html").read_text()
    assert page.rstrip().endswith("</html>") and "data:image" in page
    if case.method == "iadd":
        found = artifact.load(run / "distilled.npz")
        images, count = found.images, made.classes * case.ipc
    else:
        found = artifact.find_generator(run)
        labels = np.arange(made.classes)
        images, count = generate.images_of(found, labels), made.classes
    assert images.shape == (count, *made.shape), images.shape
    assert np.isfinite(images).all()
    assert len(found.metadata["class_names"]) == made.classes


def main(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.out)
    words = [word for word in arguments.only.split(",") if word]
    failed, before = [], ""
    for case in cases():
        if not all(word in case for word in words):
            continue
        if case.config != before:
            jax.clear_caches()  # no other config's shapes are met again
            made, before = make(case.config, folder / "made"), case.config
        begin = time.perf_counter()
        try:
            check(case, made, run(case, made, folder))
            said = "runs"
        except Exception as error:  # one config must not hide the others
            traceback.print_exc()
            failed.append(case)
            said = f"FAILS: {type(error).__name__}: {error}"
        spent = time.perf_counter() - begin
        print(f"every_config: {case!s:28} {spent:5.0f} s  {said}", flush=True)
    print(f"{len(failed)} failed: {', '.join(map(str, failed)) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", default=launch.ROOT / "runs" / "every_config")
    parser.add_argument(
        "--only", default="", help="config, method and size, joined by commas"
    )
    sys.exit(main(parser.parse_args()))
