"""From another project's distilled images to a distilled file of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp

from ddjax import artifact, files, foreign
from ddjax.data import preprocess
from ddjax.pages.pictures import save_picture
from ddjax.runs import prepare
from ddjax.settings import Settings
from ddjax.types import InputError

__all__ = ["run"]


def run(
    source: Path,
    out: Path,
    *,
    learning_rate: float | None = None,
    settings: Settings | None = None,
    data_folder: Path = Path("runs/data"),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    class_names: Sequence[str] = (),
    values: str = "",
    labels: str = "probabilities",
    number: int = 0,
) -> None:
    """Writes ``distilled.npz`` and ``distilled.png`` to a folder.

    Args:
      source: a file or folder; see ``ddjax.foreign``.
      out: the folder to make.
      learning_rate: for the training that uses the images; has to be given.
      settings: name the data set, whose classes and preprocessing, fitted on
        its training images, are taken.
      data_folder: the parent of all prepared data.
      mean: [c] in pixel space, 0 black to 1 white; in place of the data set's.
      std: [c], likewise.
      class_names: k names, where no settings are given.
      values: of ``foreign.VALUES``, what the images' numbers are; by default
        tensors are standardised, and all else pixels.
      labels: of ``foreign.KINDS``, what soft labels are.
      number: which set, of a file with several.

    Raises:
      InputError: something is missing or does not fit, or the folder holds
        something.
    """
    given = foreign.read(source, number)
    preprocessing = _scale(mean, std) if mean or std else None
    if settings is not None:
        task = prepare.task(
            settings.data, settings.model, settings.seed, data_folder
        )
        if given.images.shape[1:] != task.image_shape:
            raise InputError(
                f"the images of {source} are of {given.images.shape[1:]}, the "
                f"config's data set of {task.image_shape}: name the config "
                "that they were made with"
            )
        if class_names:
            raise InputError("give --config or --class_names, not both")
        class_names = task.splits.train.class_names
        preprocessing = preprocessing or task.preprocessing
    found = foreign.as_artifact(
        given,
        learning_rate=learning_rate,
        preprocessing=preprocessing,
        class_names=class_names,
        values=values,
        labels=labels,
    )
    with files.atomic_folder(out) as folder:
        artifact.save(folder / "distilled.npz", found)
        save_picture(
            folder / "distilled.png",
            found.images,
            found.labels.argmax(-1),
            found.metadata["class_names"],
        )
    print(
        f"{len(found.images)} images of {found.labels.shape[1]} classes: "
        f"{out / 'distilled.npz'}"
    )


def _scale(
    mean: Sequence[float], std: Sequence[float]
) -> preprocess.Standardiser:
    if len(mean) != len(std) or not all(value > 0 for value in std):
        raise InputError(
            "--mean and --std must be given together, a number for each "
            "channel, and deviations must be positive"
        )
    return preprocess.Standardiser(
        jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    )
