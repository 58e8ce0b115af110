"""Generated images chosen, not drawn.

A good generator loses to real images of the same number for want of coverage:
what it draws by chance lies close together. Here it makes many more images than
are asked for, those that a trained network takes for another class are left
out, and of the rest some are kept by what that network sees in them, beside
what it sees in the real images. Nothing is trained. "latents" goes on from
there: it moves the noise of the images that "centres" keeps; see
``ddjax/matching.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import artifact, d2m, gan, matching
from ddjax.data import selection
from ddjax.runs import baselines, protocols
from ddjax.runs.prepare import Task
from ddjax.types import InputError, Params

__all__ = ["CHOICES", "Chooser", "centres", "check", "moments"]

CHOICES = ("random", "centres", "moments", "latents")

_TIMES = 50  # as many images are made as are kept
_MOST_VALUES = 1 << 28  # of the images made at a time, 1 GiB
_GROUPS = 10_000
_GROUP_VALUES = 1 << 24  # of the features of the groups looked at together


def check(how: str) -> None:
    """Refuses an unknown choice.

    Raises:
      InputError: ``how`` is none of ``CHOICES``.
    """
    if how not in CHOICES:
        raise InputError(
            f"unknown choice {how!r}: choose from {', '.join(CHOICES)}"
        )


def centres(real: Any, made: Any, count: int) -> np.ndarray:
    """For each cluster of the real features, the nearest made ones.

    Args:
      real: [n d] features of a class's real images, n at least ``count``.
      made: [m d] features of its generated images, m at least ``count``.
      count: of the picks, and of the clusters that k-means finds.

    Returns:
      [count] indices of ``made``, none twice.
    """
    chosen: list[int] = []
    for centre in selection.cluster_means(real, count):
        chosen.append(_nearest(made, centre, but=chosen))
    return np.array(chosen)


def _nearest(points, centre, but=()):
    distance = np.square(points - centre).sum(1)
    distance[list(but)] = np.inf
    return int(distance.argmin())


def moments(real: Any, made: Any, count: int, seed: int = 0) -> np.ndarray:
    """Of many groups drawn, the one most like the real features together.

    Mean, deviation and skewness of each feature are compared, in units of the
    real deviation; features that never vary are left out.

    Args:
      real: [n d] features of a class's real images.
      made: [m d] features of its generated images, m at least ``count``.
      count: of the images of a group.
      seed: of the draw of groups.

    Returns:
      [count] indices of ``made``, none twice.
    """
    real, made = np.asarray(real, np.float64), np.asarray(made, np.float64)
    deviation = real.std(0)
    varies = deviation > 1e-6 * max(1.0, deviation.max())
    scaled = (made - real.mean(0))[:, varies] / deviation[varies]
    real = (real - real.mean(0))[:, varies] / deviation[varies]
    wanted = _moments(real[None])[0]
    rng = np.random.default_rng(seed)
    best, chosen = np.inf, None
    each = max(len(made), count * scaled.shape[1])
    together = min(200, max(1, _GROUP_VALUES // each))
    for begin in range(0, _GROUPS, together):
        some = min(together, _GROUPS - begin)
        # Row by row the same draws, however many are looked at together.
        draws = rng.random((some, len(made)))
        groups = draws.argpartition(count - 1, 1)[:, :count]
        costs = np.square(_moments(scaled[groups]) - wanted).mean((1, 2))
        if costs.min() < best:
            best, chosen = costs.min(), groups[costs.argmin()]
    return chosen


def _moments(groups: np.ndarray) -> np.ndarray:
    """[g n d] to [g 3 d]: mean, deviation, and the cube root of the third
    central moment, all in the features' own units."""
    mean = groups.mean(1)
    central = groups - mean[:, None]
    return np.stack(
        [
            mean,
            np.sqrt(np.square(central).mean(1)),
            np.cbrt((central**3).mean(1)),
        ],
        1,
    )


_WAYS = {"centres": centres, "moments": moments, "latents": centres}

_STEPS = 200
_RATE = 0.05  # of Adam, in deviations of the noise
_MOST_REAL = 500  # images of a class that means are taken over
_TOGETHER = 100  # latents that are moved together,
_POSITIONS = 1 << 17  # and pixels of their images, of any number of channels


@functools.partial(
    jax.jit, static_argnames=("apply", "module", "steps", "rate")
)
def _matched(
    noise,
    label,
    networks,
    wanted,
    params,
    preprocessing,
    *,
    apply,
    module,
    **how,
):
    labels = jnp.full(len(noise), label)

    def features_of(network, noise):
        pixels = d2m.decode(apply, params, noise, labels)
        return baselines.seen_at_once(
            network, pixels, preprocessing, module=module
        )[1]

    return matching.match(
        noise, networks, wanted, features_of=features_of, **how
    )


class Chooser:
    """Chooses among a generator's images by the real ones of a task."""

    def __init__(
        self,
        task: Task,
        params: Params,
        how: str,
        networks: Sequence[Params] = (),
    ):
        """
        Args:
          task: data and network.
          params: of a trained network, such as a teacher's last snapshot.
          how: "centres", "moments" or "latents".
          networks: with "latents", params of those that images are moved by.
        """
        check(how)
        self._task, self._params, self._how = task, params, how
        self.networks = list(networks)
        self._real: dict[int, np.ndarray] = {}
        self._wanted: dict[tuple[int, int], np.ndarray] = {}

    def images(
        self, found: artifact.GeneratorArtifact, params: Any, labels: Any, key
    ) -> np.ndarray:
        """[n h w c] float32 pixels in 0..1, of the classes of ``labels`` [n].

        Args:
          found: the generator.
          params: of it.
          labels: class of each image.
          key: of the noise; the images of a class do not depend on which other
            classes are asked for.

        Raises:
          InputError: a class is asked for more images than it has real ones,
            or than can be made at a time.
        """
        labels = np.asarray(labels)
        result = np.zeros((len(labels), *self._task.image_shape), np.float32)
        for label in np.unique(labels):
            where = np.flatnonzero(labels == label)
            result[where] = self._of_class(
                found, params, int(label), len(where), key
            )[1]
        return result

    def noise(
        self, found: artifact.GeneratorArtifact, params: Any, labels: Any, key
    ) -> np.ndarray:
        """[n d] float32, what ``images`` makes its images of; see there."""
        labels = np.asarray(labels)
        result = np.zeros((len(labels), found.apply.noise_size), np.float32)
        for label in np.unique(labels):
            where = np.flatnonzero(labels == label)
            result[where] = self._of_class(
                found, params, int(label), len(where), key
            )[0]
        return result

    def _of_class(self, found, params, label, count, key):
        """(noise [count d], the images made of it)"""
        real = self._real_features(label)
        name = self._task.splits.train.class_names[label]
        if count > len(real):
            raise InputError(
                f"class {name!r} has {len(real)} real images to choose by, "
                f"fewer than the {count} asked for: lower --ipc, or take "
                "--choose=random"
            )
        size = int(np.prod(self._task.image_shape))
        many = min(_TIMES * count, _MOST_VALUES // size)
        if many < 2 * count:
            raise InputError(
                f"{count:,} images of class {name!r} are too many to choose: "
                "lower --ipc, or take --choose=random"
            )
        key, labels = jax.random.fold_in(key, label), np.full(many, label)
        labels = labels.astype(np.int32)
        pixels = np.asarray(protocols.make(found.apply, params, key, labels))
        logits, features = baselines.seen(
            self._params, self._task, pixels, np.arange(many)
        )
        understood = np.flatnonzero(logits.argmax(1) == label)
        if len(understood) < count:
            understood = np.arange(many)
        choice = _WAYS[self._how]
        kept = understood[choice(real, features[understood], count)]
        noise = np.asarray(gan.noise(key, many, found.apply.noise_size))[kept]
        if self._how != "latents":
            return noise, pixels[kept]
        noise = self._moved(found, params, label, noise)
        return noise, np.asarray(
            protocols.decode(found.apply, params, noise, labels[:count])
        )

    def _moved(self, found, params, label, noise):
        """Part by part towards the real clusters, in bounded memory."""
        if (label, len(noise)) not in self._wanted:
            self._wanted[label, len(noise)] = self._clusters(label, len(noise))
        wanted = self._wanted[label, len(noise)]
        height, width, _ = self._task.image_shape
        most = max(1, min(_TOGETHER, _POSITIONS // (height * width)))
        parts = np.array_split(np.arange(len(noise)), -(-len(noise) // most))
        return np.concatenate(
            [
                _matched(
                    noise[part],
                    label,
                    self._stacked,
                    wanted[:, part],
                    params,
                    self._task.preprocessing,
                    apply=found.apply,
                    module=self._task.module,
                    steps=_STEPS,
                    rate=_RATE,
                )[0]
                for part in parts
            ]
        )

    @functools.cached_property
    def _stacked(self):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *self.networks)

    def _clusters(self, label, count):
        """[m count d], what each network sees in the clusters that ``centres``
        finds: the mean over their members, or over some of many."""
        members = np.flatnonzero(self._task.splits.train.labels == label)
        real = self._real_features(label)
        some = []
        for mean, cluster in zip(*selection.clusters(real, count)):
            # Equal means leave a cluster empty.
            own = cluster if len(cluster) else [_nearest(real, mean)]
            most = max(1, _MOST_REAL // count)
            some.append(np.asarray(own)[:: -(-len(own) // most)])
        ends = np.cumsum([len(own) for own in some])
        chosen = members[np.concatenate(some)]
        return np.stack(
            [
                np.stack(
                    [
                        part.mean(0)
                        for part in np.split(
                            baselines.features(network, self._task, chosen),
                            ends[:-1],
                        )
                    ]
                )
                for network in self.networks
            ]
        )

    def _real_features(self, label):
        if label not in self._real:
            train = self._task.splits.train
            self._real[label] = baselines.features(
                self._params, self._task, np.flatnonzero(train.labels == label)
            )
        return self._real[label]
