"""Which images networks were trained on: membership inference, row by row.

Networks are of the config's kind (``model``), trained on

    full_data    all training images
    distilled    the file, at its learning rate
    real         as many real images: those that the distilled ones began with,
                 where the run's folder tells them, or random ones

and asked about

    training     training images, for full_data and distilled
    initial      the real images that the distilled ones began with
    own          the real images of real
    unseen       training images that real has not seen: a control, for which
                 no attack can do better than chance

against test images, which nothing has seen. The attacks are those of
``ddjax.privacy``, with one query an image. Shadow networks of the likelihood
ratio attack are trained on as many images as what they stand for: for
full_data on all training images, where each of the images asked about is in
half of them; for the others on one of each pair of a real image and a test
image of its class. Those have seen no image of training and unseen, so that
its offline form is used there; and they stand for networks trained on
distilled images, of which shadows would take a distillation each. An attacker
who makes those is stronger.

A network's answers are a file, written as it is done, so that a run that was
stopped goes on; whatever shapes them is in the file's name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import artifact, augment, evaluate, models, training
from ddjax import privacy as attacks
from ddjax.data import classes, preprocess, sources
from ddjax.runs import (
    baselines,
    ceiling,
    cells,
    loop,
    matrix,
    prepare,
    scores,
)
from ddjax.settings import Settings
from ddjax.types import InputError, Params

__all__ = [
    "FEWEST",
    "Answers",
    "Subject",
    "draw",
    "membership",
    "pixels",
]

# What keys are folded with; the numbers are names.
_PRIVACY = 401
_AUDIT, _OWN, _HALVES = 1, 2, 3
_KINDS = {
    "full_data": 11,
    "distilled": 12,
    "real": 13,
    "shadow_full_data": 14,
    "shadow_real": 15,
}

FEWEST = 20
"""Held-out and test images without which nothing can be told."""

# Bytes of float64 values of training images that are compared at a time.
_PART = 1 << 26


class Subject(NamedTuple):
    """What is looked into.

    Attributes:
      settings: of the card.
      found: the distilled file.
      task: the data, preprocessed as the file has it.
      initial: [n] training images that the distilled ones began with; None
        where that is not known, or they were none.
      own: [j] training images of the networks of real.
      twins: [j] test images, each of the class of its image in ``own``.
      members: [m] further training images that are asked about.
      others: [m] further test images.
      strangers: [q] held-out images.
    """

    settings: Settings
    found: artifact.Artifact
    task: prepare.Task
    initial: np.ndarray | None
    own: np.ndarray
    twins: np.ndarray
    members: np.ndarray
    others: np.ndarray
    strangers: np.ndarray

    def key(self, name: int) -> jax.Array:
        """A key of the card's own."""
        key = jax.random.fold_in(jax.random.key(self.settings.seed), _PRIVACY)
        return jax.random.fold_in(key, name)


# What is asked about ---------------------------------------------------------


def draw(
    settings: Settings,
    found: artifact.Artifact,
    task: prepare.Task,
    before: np.ndarray | None,
) -> Subject:
    """Draws the images that are asked about.

    Raises:
      InputError: there are too few.
    """
    splits, k = task.splits, task.num_classes
    part = settings.privacy
    key = jax.random.fold_in(jax.random.key(settings.seed), _PRIVACY)
    count = len(splits.held_out.labels)
    if count < FEWEST:
        raise InputError(
            f"there are {count} held-out images, and to tell what is near "
            f"takes at least {FEWEST}: raise config.data.held_out"
        )
    own = initial = _real_of(before, splits.train)
    if own is None:
        own = classes.per_class_indices(
            jax.random.fold_in(key, _OWN),
            splits.train.labels,
            k,
            max(1, round(len(found.images) / k)),
            field="privacy",
            names=splits.train.class_names,
        )
    keys = jax.random.split(jax.random.fold_in(key, _AUDIT), 4)
    twins = _twins(keys[0], splits, own)
    left = [
        np.setdiff1d(np.arange(len(split.labels)), taken)
        for split, taken in ((splits.train, own), (splits.test, twins))
    ]
    audited = min(part.audited, *map(len, left))
    if audited < FEWEST:
        raise InputError(
            f"there are {len(left[0])} training and {len(left[1])} test "
            "images beside those that stand for the distilled ones, and an "
            f"attack is judged by at least {FEWEST} of each: raise "
            "config.data.test_share or take a data set with more"
        )
    members, others = (
        np.asarray(jax.random.permutation(key, images))[:audited]
        for key, images in zip(keys[1:3], left)
    )
    strangers = np.asarray(jax.random.permutation(keys[3], count))
    return Subject(
        settings,
        found,
        task._replace(preprocessing=found.preprocessing),
        initial,
        own,
        twins,
        members,
        others,
        strangers[: max(FEWEST, part.audited)],
    )


def _real_of(
    before: np.ndarray | None, train: sources.Dataset
) -> np.ndarray | None:
    """[n] the training images that these are; None where one is none, or two
    are the same."""
    if before is None:
        return None
    flat = before.reshape(len(before), -1)
    index, distance = attacks.nearest(flat, pixels(train.images))
    # They were standardised and back, in float32.
    real = distance.max() < 0.25 / 255
    return index if real and len(set(index.tolist())) == len(index) else None


def _twins(
    key: jax.Array, splits: sources.Splits, own: np.ndarray
) -> np.ndarray:
    """[j] test images, each of the class of one of ``own``, none twice."""
    labels = splits.train.labels[own]
    names = splits.train.class_names
    twins = np.zeros(len(own), np.int64)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        there = np.flatnonzero(splits.test.labels == label)
        if len(there) < len(places):
            raise InputError(
                f"class {names[label]} has {len(there)} test images, fewer "
                f"than the {len(places)} distilled ones that they are "
                "compared with: take a data set with more"
            )
        order = jax.random.permutation(
            jax.random.fold_in(key, int(label)), there
        )
        twins[places] = np.asarray(order)[: len(places)]
    return twins


# Networks and their answers --------------------------------------------------


class _Joined:
    """Some of two sets of images, read as they are asked for.

    The first set may be ``Rows``; ``chosen`` counts through both.
    """

    def __init__(self, first: Any, second: np.ndarray, chosen: np.ndarray):
        self._first, self._second, self._chosen = first, second, chosen
        self.shape = (len(chosen), *first.shape[1:])

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        at = self._chosen[index]
        out = np.empty((*at.shape, *self.shape[1:]), np.uint8)
        inside = at < len(self._first)
        out[inside] = self._first[at[inside]]
        out[~inside] = self._second[at[~inside] - len(self._first)]
        return out


class Answers:
    """What networks say of the images that are asked about.

    Those are, in this order: ``members``, ``others``, ``own``, ``twins``.
    """

    def __init__(self, subject: Subject, folder: Path):
        """Answers of a subject's networks.

        Args:
          subject: what is looked into.
          folder: where answers are kept.
        """
        self.subject, self._folder = subject, folder
        self._found: dict[str, np.ndarray] = {}
        train, _, test = subject.task.splits
        of_train = np.concatenate([subject.members, subject.own])
        of_test = np.concatenate([subject.others, subject.twins])
        m = len(subject.members)
        images = train.images[of_train], test.images[of_test]
        labels = train.labels[of_train], test.labels[of_test]
        self.images = np.concatenate(_interleaved(*images, m))
        self.labels = np.concatenate(_interleaved(*labels, m))
        # What answers are answers to.
        self.asked = {
            "data": sources.fingerprint(*subject.task.splits),
            "asked": matrix.digest_of(self.images, self.labels),
            "network": repr(subject.task.module),
            "preprocess": matrix.digest_of(
                *preprocess.arrays(subject.found.preprocessing).values()
            ),
            "seed": subject.settings.seed,
            "jax": jax.__version__,
            "backend": jax.default_backend(),
        }
        part = subject.settings.privacy
        self._bar = loop.progress(
            "train",
            3 * part.networks + 2 * part.shadow_networks,
            unit="network",
        )

    def inside(self, kind: str) -> np.ndarray:
        """[s 2j] which of their images shadow networks are trained on."""
        subject = self.subject
        pairs = subject.own if kind == "shadow_real" else subject.members
        return attacks.halves(
            subject.key(_HALVES + _KINDS[kind]),
            subject.settings.privacy.shadow_networks,
            len(pairs),
        )

    def of(self, kind: str) -> np.ndarray:
        """[t 2m+2j] confidences in the networks of a kind.

        Args:
          kind: of ``_KINDS``.
        """
        part = self.subject.settings.privacy
        shadow = kind.startswith("shadow")
        count = part.shadow_networks if shadow else part.networks
        if kind not in self._found:
            found = [self._answer(kind, i) for i in range(count)]
            self._found[kind] = np.stack(found)
        return self._found[kind]

    def _answer(self, kind: str, number: int) -> np.ndarray:
        how, train = self.training(kind, number)
        how = self.asked | how | {"kind": kind, "number": number}
        path = cells.path_of(self._folder, f"{kind}-{number}", how)
        answer = (cells.read(path) or {}).get("confidences")
        if answer is None or len(answer) != len(self.labels):
            answer = self._confidences(train()).tolist()
            cells.write(path, {"confidences": answer}, how)
        self._bar.update()
        return np.array(answer)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()

    def _confidences(self, params: Params) -> np.ndarray:
        logits, _ = baselines.seen(
            params, self.subject.task, self.images, np.arange(len(self.images))
        )
        return attacks.confidence(logits, self.labels)

    @functools.cached_property
    def seeing(self) -> Params:
        """A network that was trained on all training images."""
        return self.training("full_data", 0)[1]()

    def training(
        self, kind: str, number: int
    ) -> tuple[dict[str, Any], Callable[[], Params]]:
        """What shapes a network, JSON-able, and what trains it."""
        subject = self.subject
        key = jax.random.fold_in(subject.key(_KINDS[kind]), number)
        if kind.endswith("full_data"):
            return self._on_many(key, kind, number)
        train, _, test = subject.task.splits
        part, k = subject.settings.evaluate, subject.task.num_classes
        epochs = subject.settings.privacy.epochs or part.epochs
        recipe = scores.recipe_of(part)._replace(epochs=epochs)
        rate = part.real_learning_rate
        if kind == "distilled":
            images, labels = subject.found.images, subject.found.labels
            rate = subject.found.learning_rate
        else:
            images, labels = (
                train.images[subject.own],
                train.labels[subject.own],
            )
            if kind == "shadow_real":
                first = self.inside(kind)[number, : len(images)]
                images, labels = (
                    np.where(first.reshape(-1, *[1] * (x.ndim - 1)), x, y)
                    for x, y in (
                        (images, test.images[subject.twins]),
                        (labels, test.labels[subject.twins]),
                    )
                )
            labels = classes.one_hot(labels, k)

        def fitted():
            inputs = preprocess.apply(subject.found.preprocessing, images)
            init_key, train_key = jax.random.split(key)
            return training.train(
                train_key,
                _init(subject.task.module, init_key, inputs.shape[1:]),
                evaluate.stored(inputs, labels),
                jnp.float32(rate),
                module=subject.task.module,
                recipe=recipe,
            )

        return {
            "trained_on": matrix.digest_of(images, labels),
            "recipe": recipe._asdict(),
            "rate": rate,
        }, fitted

    def _on_many(
        self, key: jax.Array, kind: str, number: int
    ) -> tuple[dict[str, Any], Callable[[], Params]]:
        """The same on all training images, or on as many."""
        subject = self.subject
        train, _, test = subject.task.splits
        chosen = np.arange(len(train.labels))
        if kind == "shadow_full_data":
            first, second = np.split(self.inside(kind)[number], 2)
            left_out = subject.members[~first]
            added = len(chosen) + np.flatnonzero(second)
            chosen = np.append(np.setdiff1d(chosen, left_out), added)
        recipe = training.Recipe(
            epochs=subject.settings.privacy.full_epochs,
            batch_size=ceiling.BATCH,
            momentum=0.9,
            weight_decay=5e-4,
            augment=augment.parse(subject.settings.evaluate.augment),
            cosine=True,
        )

        def fitted():
            labels = np.append(train.labels, test.labels[subject.others])
            stream = training.Stream(
                _Joined(train.images, test.images[subject.others], chosen),
                labels[chosen],
                subject.task.num_classes,
            )
            init_key, train_key = jax.random.split(key)
            return training.train_streamed(
                train_key,
                _init(subject.task.module, init_key, subject.task.image_shape),
                stream,
                jnp.float32(ceiling.RATES[0]),
                module=subject.task.module,
                recipe=recipe,
                preprocessing=subject.found.preprocessing,
            )

        return {
            "trained_on": matrix.digest_of(chosen),
            "recipe": recipe._asdict(),
            "rate": ceiling.RATES[0],
        }, fitted


def _interleaved(
    of_train: np.ndarray, of_test: np.ndarray, count: int
) -> list[np.ndarray]:
    """members, others, own, twins."""
    return [
        of_train[:count],
        of_test[:count],
        of_train[count:],
        of_test[count:],
    ]


def _init(module: Any, key: jax.Array, shape: Sequence[int]) -> Params:
    return _init_jitted(key, module=module, shape=tuple(shape))


@functools.partial(jax.jit, static_argnames=("module", "shape"))
def _init_jitted(key, *, module, shape):
    return models.init_params(module, key, shape)


# Membership ------------------------------------------------------------------


def membership(subject: Subject, answers: Answers) -> list[dict[str, Any]]:
    """How well each attack tells, a row for each.

    Args:
      subject: what is looked into.
      answers: of its networks.
    """
    m = len(subject.members)
    far, near = np.arange(2 * m), np.arange(2 * m, len(answers.labels))
    small = answers.of("shadow_real")
    half = answers.inside("shadow_real")

    def online(observed):
        return attacks.likelihood_ratio(observed, small[:, near], half)

    def offline(observed):
        return attacks.offline_ratio(observed, small[:, far])

    def large(observed):
        return attacks.likelihood_ratio(
            observed,
            answers.of("shadow_full_data")[:, far],
            answers.inside("shadow_full_data"),
        )

    asked = [
        ("full_data", "training", far, "likelihood_ratio", large),
        ("distilled", "training", far, "offline_ratio", offline),
        ("distilled", "initial", near, "likelihood_ratio", online),
        ("real", "own", near, "likelihood_ratio", online),
        ("real", "unseen", far, "offline_ratio", offline),
    ]
    if subject.initial is None:
        del asked[2]
    rows = []
    for kind, what, places, name, ratio in asked:
        observed = answers.of(kind)[:, places]
        for attack, score in (
            ("loss", attacks.loss_score(observed)),
            (name, ratio(observed)),
        ):
            members, others = np.split(score, 2, axis=1)
            judged = attacks.judge(members, others)
            rows.append(
                {
                    "trained_on": kind,
                    "members": what,
                    "attack": attack,
                    "images": [members.shape[1], others.shape[1]],
                }
                | {name: told._asdict() for name, told in judged.items()}
            )
    answers.close()
    return rows


def pixels(images: Any) -> Iterator[np.ndarray]:
    """[r d] pixels in 0..1, some images at a time."""
    rows = max(1, _PART // (8 * int(np.prod(images.shape[1:]))))
    for begin in range(0, len(images), rows):
        part = images[begin : begin + rows]
        yield part.reshape(len(part), -1) / 255.0
