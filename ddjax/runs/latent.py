"""IADD in latent space: distilled images are those of a generator.

The generator is the run's pre-trained one, as of D2M. What the outer loop
moves is the noise that its images are made of, and where asked its weights;
the class that it is told stays. ``latents.npz`` has the noise and the classes
of the selected state: with ``generator/distilled.npz`` where the weights have
moved, else with ``generator/pretrained.npz``, they make its images again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import artifact, d2m, files, gan, iadd
from ddjax.data import classes, preprocess, sources
from ddjax.runs import choose, prepare, protocols, workdir
from ddjax.runs import d2m as d2m_run
from ddjax.runs import gan as gan_run
from ddjax.settings import Settings
from ddjax.types import InputError, Params

__all__ = ["Latent", "begin", "check"]

# What the key of the first noise is folded with; the number is a name.
_NOISE = 400


class Latent(NamedTuple):
    """What a run in latent space has beside one in pixels.

    Attributes:
      found: the generator before the first update.
      noise: [n d], what is begun with.
      labels: [n] int32, the class of each image.
      decode: (noise, the generator's params) to network input.
    """

    found: artifact.GeneratorArtifact
    noise: np.ndarray
    labels: np.ndarray
    decode: iadd.Decode

    def initial(self, learning_rate: float) -> iadd.Distilled:
        """The distilled data set that is begun with."""
        return iadd.Distilled(
            jax.jit(self.decode)(jnp.asarray(self.noise), self.found.params),
            classes.one_hot(self.labels, self.found.apply.module.num_classes),
            learning_rate,
        )


def check(settings: Settings, task: prepare.Task) -> None:
    """What only the data can tell.

    Raises:
      InputError: the images do not suit a BigGAN, or a plan is asked for.
    """
    if settings.minutes:
        raise InputError(
            "minutes= plans runs in pixels: with iadd.space=latent, set "
            "gan.iterations and iadd.iterations"
        )
    gan_run.networks_of(settings.gan, task)


def begin(
    settings: Settings,
    folder: Path,
    task: prepare.Task,
    shared: workdir.Shared,
    trained: Params,
) -> Latent:
    """The run's generator, and the noise that is begun with.

    Args:
      settings: of the run.
      folder: of the run.
      task: data and network.
      shared: where teachers and generators lie.
      trained: params of a trained network, by which ``iadd.initial=centres``
        chooses.

    Raises:
      InputError: the generator does not make these images, or a class has too
        few real ones to choose by.
    """
    given = d2m_run.own_generator(folder, task)
    found = gan_run.of_run(settings, folder, task, shared, given)
    labels = protocols.balanced_labels(task.num_classes, settings.iadd.ipc)
    key = jax.random.fold_in(jax.random.key(settings.seed), _NOISE)
    if settings.iadd.initial == "centres":
        chooser = choose.Chooser(task, trained, "centres")
        noise = chooser.noise(found, found.params, labels, key)
    else:
        noise = np.asarray(gan.noise(key, len(labels), found.apply.noise_size))
    return Latent(found, noise, labels, decoder(found, task, labels))


def decoder(
    found: artifact.GeneratorArtifact, task: prepare.Task, labels: np.ndarray
) -> iadd.Decode:
    """Noise to network input, some images at a time.

    Args:
      found: the generator's apply.
      task: its preprocessing.
      labels: [n] the class of each image.
    """

    def decode(noise, params):
        return preprocess.apply(
            task.preprocessing,
            d2m.decode(
                found.apply, params, noise, labels, at_once=protocols.AT_ONCE
            ),
        )

    return decode


def keep_look(path: Path, latent: Latent, noise: Any, params: Params) -> None:
    """Writes a look's noise beside its images, and its generator where that
    has moved.

    Args:
      path: of the look's images.
      latent: of the run.
      noise: [n d] of the look.
      params: of the look's generator; None where it has not moved.
    """
    with files.atomic_write(_noise_path(path)) as file:
        np.savez(file, noise=np.asarray(noise), labels=latent.labels)
    if params is not None:
        artifact.save_generator(
            _generator_path(path), latent.found._replace(params=params)
        )


def _noise_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}-latents.npz")


def _generator_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}-generator.npz")


def keep_selected(
    settings: Settings, folder: Path, task: prepare.Task, path: Path
) -> None:
    """Writes what makes the selected images again.

    Args:
      settings: of the run.
      folder: of the run.
      task: data and network.
      path: of the selected look's images.
    """
    with files.atomic_write(folder / "latents.npz") as file:
        file.write(_noise_path(path).read_bytes())
    if not settings.iadd.generator_rate:
        return
    found = artifact.load_generator(_generator_path(path))
    artifact.save_generator(
        folder / "generator" / "distilled.npz",
        found._replace(
            metadata={
                "class_names": list(task.splits.train.class_names),
                "method": "IADD",
                "data": sources.fingerprint(task.splits.train),
                "config": settings.flat(),
            }
        ),
    )
