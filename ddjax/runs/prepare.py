"""From settings to what every stage works on: data, preprocessing, network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import artifact, hosts, models, training
from ddjax.data import cache, classes, preprocess, sources
from ddjax.data.rows import Rows
from ddjax.runs.loop import progress
from ddjax.runs.workdir import check_same_data
from ddjax.settings import Data, Model, Settings
from ddjax.types import Batch, InputError

__all__ = [
    "Task",
    "as_input",
    "check_distilled",
    "check_finished",
    "check_fits",
    "load",
    "task",
    "with_model",
    "write_page",
]


class Task(NamedTuple):
    """What every stage after the data has in common.

    Attributes:
      splits: the data.
      preprocessing: pixels to network input, fitted on splits.train.
      model: the name of the network.
      module: the network.
    """

    splits: sources.Splits
    preprocessing: preprocess.Standardiser | preprocess.Whitener
    model: str
    module: Any

    @property
    def num_classes(self) -> int:
        return len(self.splits.train.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(h, w, c)."""
        return tuple(self.splits.train.images.shape[1:])

    def network(self, name: str, resize: int = 0) -> Any:
        """The task's own network, or another one as it is built alone.

        Args:
          name: of ``models.names()``.
          resize: side of the images that a network sees which does not take
            them as they are; 0 for none.

        Raises:
          InputError: the images do not fit the network.
        """
        if name == self.model:
            return self.module
        module = models.build(name, num_classes=self.num_classes)
        try:
            check_fits(module, self.image_shape)
        except InputError as error:
            if not resize:
                raise InputError(
                    f"{error}: leave {name} out of evaluate.models, or "
                    "enlarge the images for it with evaluate.resize"
                ) from None
            module = models.Enlarged(module, resize)
            check_fits(module, self.image_shape)
        return module

    def real_images(
        self, key: jax.Array, count: int
    ) -> tuple[jax.Array, np.ndarray]:
        """Random training images of each class, class by class.

        Args:
          key: one key.
          count: images of each class.

        Returns:
          (network input [k * count h w c], one-hot labels).

        Raises:
          InputError: a class has too few.
        """
        train, k = self.splits.train, self.num_classes
        chosen = classes.per_class_indices(
            key, train.labels, k, count, names=train.class_names
        )
        return (
            preprocess.apply(
                self.preprocessing, jnp.asarray(train.images[chosen])
            ),
            classes.one_hot(train.labels[chosen], k),
        )

    def input_spread(self) -> float:
        """Standard deviation of what networks see of the training images; of
        the first thousand."""
        pixels = np.asarray(self.splits.train.images[:1000])
        return float(preprocess.apply(self.preprocessing, pixels).std())

    def training_data(
        self, class_weights: str = "none"
    ) -> tuple[Batch | training.Stream, Any]:
        """The training images, on the device or read as they are used, and
        what preprocessing is left to do.

        Args:
          class_weights: "none" or "balanced"; a weight multiplies the labels
            of its class, and with them the images' loss.
        """
        data, k = self.splits.train, self.num_classes
        weights = None
        if class_weights == "balanced":
            weights = classes.balanced_weights(data.labels, k)
        images, left = as_input(data.images, self.preprocessing)
        if isinstance(images, Rows):
            return training.Stream(images, data.labels, k, weights), left
        labels = classes.one_hot(data.labels, k)
        if weights is not None:
            labels *= weights
        return Batch(images, labels), left


def as_input(images: Any, preprocessing: Any) -> tuple[Any, Any]:
    """(images, preprocessing) for training and testing, ready where it pays.

    Whitening is a product with a large matrix for each image, dear beside a
    narrow network's step: where the images are in memory it is done once, and
    nothing is left to do batch by batch.

    Args:
      images: [n h w c] uint8, an array or Rows.
      preprocessing: takes pixels to network input.
    """
    if isinstance(images, Rows) or not isinstance(
        preprocessing, preprocess.Whitener
    ):
        return images, preprocessing
    apply = jax.jit(preprocess.apply)
    inputs = np.empty(images.shape, np.float32)
    for begin in range(0, len(images), 1000):
        some = slice(begin, begin + 1000)
        inputs[some] = apply(preprocessing, images[some])
    return inputs, None


def load(
    data: Data, seed: int, folder: Path, *, thorough: bool = False
) -> tuple[sources.Splits, cache.Cache | None]:
    """The data, from its cache or prepared now.

    Args:
      data: which, and in what form.
      seed: decides what is held out.
      folder: the parent of all caches.
      thorough: check all of a large cache, not samples.

    Returns:
      (splits, the cache), which is None for what is bundled.

    Raises:
      InputError: the data are missing or unfit.
    """
    found: list[cache.Cache] = []
    with progress("prepare", 0, unit="image") as bar:

        def tell(done, total):
            bar.total = total
            bar.update(done - bar.n)

        splits = sources.load(
            data.source,
            data_dir=data.data_dir,
            held_out=data.held_out,
            seed=seed,
            classes=data.classes,
            class_names=data.class_names,
            per_class=data.per_class,
            test_share=data.test_share,
            in_memory_gb=data.in_memory_gb,
            form=sources.Form(data.size, data.crop, data.channels),
            unreadable_share=data.unreadable_share,
            cache_dir=folder,
            thorough=thorough,
            progress=tell,
            say=bar.write,
            opened=found.append,
        )
    return splits, (found or [None])[0]


def task(data: Data, model: Model, seed: int, folder: Path) -> Task:
    """Loads the data, builds the network, and fits the preprocessing.

    Args:
      data: which, and in what form.
      model: the network.
      seed: decides what is held out.
      folder: the parent of all caches.

    Raises:
      InputError: the data are missing or unfit, or the network does not fit
        the images.
    """
    with hosts.first():
        splits, _ = load(data, seed, folder)
        module = _network(model, splits)
        kept_in, name = None, data.preprocess
        if name == "zca" or isinstance(splits.train.images, Rows):
            found = sources.fingerprint(splits.train)[:12]
            kept_in = folder / f"{name}-{found}.npz"
        preprocessing = preprocess.fit(
            name, splits.train.images, kept_in=kept_in
        )
    return Task(splits, preprocessing, model.name, module)


def with_model(task: Task, model: Model) -> Task:
    """The same data with another network of its own.

    Raises:
      InputError: the network does not fit the images.
    """
    return task._replace(model=model.name, module=_network(model, task.splits))


def _network(model: Model, splits: sources.Splits) -> Any:
    known = models.fields(model.name)
    kwargs = {
        name: getattr(model, name)
        for name in ("width", "depth")
        if name in known
    }
    module = models.build(
        model.name, num_classes=len(splits.train.class_names), **kwargs
    )
    check_fits(module, splits.train.images.shape[1:])
    return module


def check_fits(module: Any, image_shape: Sequence[int]) -> None:
    """InputError where a network does not take such images; before any work."""
    jax.eval_shape(
        lambda: models.init_params(module, jax.random.key(0), image_shape)
    )


def check_distilled(found: artifact.Artifact, task: Task) -> None:
    """InputError where distilled images are not of a task's data.

    Args:
      found: the images.
      task: what they are to be tested on.
    """
    if found.images.shape[1:] != task.image_shape:
        raise InputError(
            f"the distilled images are of {found.images.shape[1:]}, the "
            f"config's data set of {task.image_shape}: name the config that "
            "they were made with"
        )
    if found.labels.shape[1] != task.num_classes:
        raise InputError(
            f"the distilled labels are of {found.labels.shape[1]} classes, the "
            f"config's data set has {task.num_classes}: name the config that "
            "they were made with"
        )
    here = list(task.splits.train.class_names)
    there = list(found.metadata["class_names"])
    if here != there and sorted(here) == sorted(there):
        raise InputError(
            "the distilled file has the classes in another order "
            f"({', '.join(there[:3])} ..) than the config's data set "
            f"({', '.join(here[:3])} ..): bring its labels into that order"
        )


def check_finished(settings: Settings, folder: Path, data: Path) -> None:
    """Says that a run is complete.

    Args:
      settings: of the run.
      folder: of the run.
      data: the parent of all caches.

    Raises:
      InputError: its images are no longer the same.
    """
    try:
        with hosts.first():
            splits, _ = load(settings.data, settings.seed, data)
    except InputError:
        pass  # gone or unfit, but the run is there
    else:
        check_same_data(folder, splits)
    print(f"this run is complete: see {folder / 'report.html'}")


def write_page(data: Data, seed: int, folder: Path, workdir: Path) -> None:
    """Prepares the data, writes the page that shows them, and says where both
    are.

    Args:
      data: which, and in what form.
      seed: decides what is held out.
      folder: the parent of all caches.
      workdir: for ``data.html``.

    Raises:
      InputError: the data are missing or unfit.
    """
    splits, found = load(data, seed, folder, thorough=True)
    manifest = {} if found is None else found.manifest
    fitted = preprocess.fit_standardise(splits.train.images)
    workdir.mkdir(parents=True, exist_ok=True)
    facts = {"Source": data.source}
    if data.data_dir:
        facts["Where"] = data.data_dir
    if found is not None:
        facts["Prepared in"] = str(found.folder)
        facts["Ignored files"] = str(manifest["ignored"])
    height, width, channels = splits.train.images.shape[1:]
    sizes = {f"{width} x {height}": sum(len(part.labels) for part in splits)}
    parts = {
        name.replace("_", "-"): part for name, part in splits._asdict().items()
    }
    # Here, for Matplotlib takes a third of a second to import.
    from ddjax.pages import data as data_page

    path = data_page.write_page(
        workdir / "data.html",
        title=f"Data: {workdir.name.removeprefix('prepare-')}",
        facts=facts,
        splits=parts,
        sizes=manifest.get("original_sizes", sizes),
        unreadable=[tuple(pair) for pair in manifest.get("unreadable", [])],
        mean=fitted.mean.tolist(),
        std=fitted.std.tolist(),
    )
    counts = ", ".join(
        f"{len(part.labels):,} {name}" for name, part in parts.items()
    )
    print(
        f"{len(splits.train.class_names)} classes of {height} x {width} x "
        f"{channels} images: {counts}"
    )
    if found is not None:
        print(f"prepared in {found.folder}")
    print(f"page: {path}")
