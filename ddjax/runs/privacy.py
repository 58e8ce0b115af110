"""What a distilled file tells of the real images behind it: a privacy card.

Nearest neighbours: of each distilled image the nearest training image, by
pixels and by what a network sees that was trained on all training images.
Beside them, the same of held-out images, which no training has seen: an image
that is nearer to a training image than 95% of those is flagged. In pixels the
distilled images are clipped to black and white, as one sees them, which only
brings them nearer.

Membership inference: which images was a network trained on? Networks are
trained on

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
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import artifact, augment, evaluate, files, models, training
from ddjax import privacy as attacks
from ddjax.data import classes, preprocess, sources
from ddjax.pages import artefacts
from ddjax.pages import privacy as page
from ddjax.runs import baselines, ceiling, loop, matrix, prepare, scores
from ddjax.runs import workdir
from ddjax.settings import Settings
from ddjax.types import InputError, Params

__all__ = ["run"]

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

FLAGGED = 0.05
"""Share of held-out images, below which a distilled image is flagged that is
as near to a training image as they are."""

FEWEST = 20
"""Held-out and test images without which nothing can be told."""

_DATA_OF_A_FILE = (
    "data.source",
    "data.size",
    "data.crop",
    "data.channels",
    "data.classes",
    "data.per_class",
    "data.test_share",
    "data.held_out",
    "seed",
)

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


def run(
    settings: Settings,
    path: Path,
    folder: Path,
    shared: workdir.Shared,
    command: str = "",
) -> None:
    """Makes a file's privacy card, privacy.json and privacy.html, and prints
    what it says.

    Args:
      settings: the data, the model, the privacy and evaluate parts and the
        seed count.
      path: of the file, or of a run's folder.
      folder: for the networks' answers and the page; made if need be.
      shared: where data lie.
      command: what repeats this, for the page.

    Raises:
      InputError: the file is damaged or not of the config's data, or there
        are too few images to compare with.
    """
    path, found = matrix.opened(path)
    _check_config(settings, found)
    task = prepare.task(
        settings.data, settings.model, settings.seed, shared.data
    )
    prepare.check_distilled(found, task)
    before = _initial_images(path, found)
    subject = _subject(settings, found, task, before)
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    answers = Answers(subject, folder / "cells")
    table = membership(subject, answers)
    near = neighbours(subject, answers, folder / "cells")
    save_pictures(folder / "neighbours.npz", subject, near, before)
    content = {
        "file": {
            "path": str(path),
            "sha256": files.sha256(path),
            "shape": list(found.images.shape),
            "classes": list(task.splits.train.class_names),
            "method": str(found.metadata.get("method", "")),
        },
        "counts": {
            "training": len(task.splits.train.labels),
            "held_out": len(subject.strangers),
            "audited": len(subject.members),
            "own": len(subject.own),
        },
        "real": "initial" if subject.initial is not None else "random",
        "networks": settings.privacy.networks,
        "shadow_networks": settings.privacy.shadow_networks,
        "flagged_below": FLAGGED,
        "neighbours": _of_each(subject, near, before),
        "strangers": near["strangers"],
        "membership": table,
        "config": {
            name: value
            for name, value in settings.flat().items()
            if name.startswith(("data.", "model.", "evaluate.", "privacy."))
            or name == "seed"
        },
        "command": command,
        **workdir.made_with(),
    }
    content["findings"] = findings(content)
    files.write_json(folder / "privacy.json", content)
    page.write_page(folder)
    print(*lines(content), sep="\n")
    print(f"page: {folder / 'privacy.html'}")


# What is asked about ---------------------------------------------------------


def _check_config(settings: Settings, found: artifact.Artifact) -> None:
    """InputError where the file was made with other training images: members
    would be taken for none."""
    recorded = found.metadata.get("config", {})
    here = settings.flat()
    for name in _DATA_OF_A_FILE:
        if name in recorded and recorded[name] != here[name]:
            raise InputError(
                f"the distilled file was made with {name}="
                f"{recorded[name]!r}, and here it is {here[name]!r}, by which "
                "other images are for training: name its own config"
            )


def _initial_images(path: Path, found: artifact.Artifact) -> np.ndarray | None:
    """[n h w c] pixels that distilled images began with, of initial.npz beside
    the file."""
    beside = path.parent / "initial.npz"
    if not beside.exists():
        return None
    images = artefacts.read_npz(beside, "images")["images"]
    if images.shape != found.images.shape:
        raise InputError(
            f"{beside} holds images of shape {images.shape}, the distilled "
            f"file of {found.images.shape}: they are not of one run"
        )
    return images.astype(np.float32)


def _subject(
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
    index, distance = attacks.nearest(flat, _pixels(train.images))
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
    """Some of two sets of images, as a Stream reads them."""

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
        path = _cell(self._folder, f"{kind}-{number}", how)
        answer = _kept(path, "confidences")
        if answer is None or len(answer) != len(self.labels):
            answer = self._confidences(train()).tolist()
            files.write_json(
                path, files.sealed({"confidences": answer, "shaped_by": how})
            )
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


def _cell(folder: Path, name: str, how: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode())
    return folder / f"{name}-{digest.hexdigest()[:12]}.json"


def _kept(path: Path, name: str) -> Any:
    """What a cell holds; None where it is not there, or damaged."""
    try:
        return files.read_json(path)[name]
    except (FileNotFoundError, ValueError, KeyError):
        return None


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


# Neighbours ------------------------------------------------------------------


def _pixels(images: Any) -> Iterator[np.ndarray]:
    """[r d] pixels in 0..1, some images at a time."""
    rows = max(1, _PART // (8 * int(np.prod(images.shape[1:]))))
    for begin in range(0, len(images), rows):
        part = images[begin : begin + rows]
        yield part.reshape(len(part), -1) / 255.0


def neighbours(
    subject: Subject, answers: Answers, folder: Path
) -> dict[str, Any]:
    """The nearest training images, by pixels and by features.

    Args:
      subject: what is looked into.
      answers: which has the network whose features are compared.
      folder: where they are kept.

    Returns:
      {"pixels": {"index": [n], "distance": [n]}, "features": the same,
      "strangers": {"pixels": [q], "features": [q]}}, distances as of
      ``ddjax.privacy.nearest``.
    """
    task, found = subject.task, subject.found
    how, _ = answers.training("full_data", 0)
    how = answers.asked | how
    how |= {
        "file": matrix.digest_of(found.images),
        "strangers": matrix.digest_of(subject.strangers),
    }
    path = _cell(folder, "neighbours", how)
    kept = _kept(path, "nearest")
    if kept is not None:
        return kept
    train, held_out = task.splits.train.images, task.splits.held_out.images
    strangers = held_out[subject.strangers]
    count = len(found.images)
    told: dict[str, Any] = {"strangers": {}}

    def seen(images, begin=0, end=None):
        places = np.arange(begin, len(images) if end is None else end)
        return baselines.seen(answers.seeing, task, images, places)[1]

    def features():
        rows = 1000
        for begin in range(0, len(train), rows):
            yield seen(train, begin, min(begin + rows, len(train)))

    clipped = np.clip(found.images, 0, 1).reshape(count, -1)
    real = strangers.reshape(len(strangers), -1) / 255.0
    for name, queries, parts in (
        ("pixels", [clipped, real], _pixels(train)),
        ("features", [seen(found.images), seen(strangers)], features()),
    ):
        index, distance = attacks.nearest(np.concatenate(queries), parts)
        told[name] = {
            "index": index[:count].tolist(),
            "distance": distance[:count].tolist(),
        }
        told["strangers"][name] = distance[count:].tolist()
    files.write_json(path, files.sealed({"nearest": told, "shaped_by": how}))
    return told


def _of_each(
    subject: Subject, near: dict[str, Any], before: np.ndarray | None
) -> list[dict[str, Any]]:
    """What privacy.json says of each distilled image."""
    found, train = subject.found, subject.task.splits.train
    shown = np.clip(found.images, 0, 1)
    rows = []
    for i, label in enumerate(found.labels.argmax(-1).tolist()):
        row: dict[str, Any] = {"class": label}
        for by in ("pixels", "features"):
            distance = near[by]["distance"][i]
            nearer = np.mean(np.array(near["strangers"][by]) <= distance)
            index = near[by]["index"][i]
            row[by] = {
                "index": index,
                "class": int(train.labels[index]),
                "distance": distance,
                "strangers_as_near": float(nearer),
                "flagged": bool(nearer < FLAGGED),
            }
        if before is not None:
            difference = np.square(shown[i] - before[i], dtype=np.float64)
            row["initial"] = {
                "index": None
                if subject.initial is None
                else int(subject.initial[i]),
                "distance": float(np.sqrt(difference.mean())),
            }
        rows.append(row)
    return rows


def save_pictures(
    path: Path,
    subject: Subject,
    near: dict[str, Any],
    before: np.ndarray | None,
) -> None:
    """Writes the images that the page shows beside each other.

    Args:
      path: of the file, with uint8 images [n h w c] by name.
      subject: what is looked into.
      near: of ``neighbours``.
      before: [n h w c] pixels that distilled images began with, or None.
    """
    train = subject.task.splits.train.images
    shown = {"distilled": subject.found.images}
    if before is not None:
        shown["initial"] = before
    arrays = {
        name: np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)
        for name, images in shown.items()
    }
    for by in ("pixels", "features"):
        arrays[by] = train[np.array(near[by]["index"])]
    with files.atomic_write(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


# What it says ----------------------------------------------------------------


def findings(content: dict[str, Any]) -> list[dict[str, str]]:
    """What is found, what that shows, and what it does not show.

    Args:
      content: of privacy.json.
    """
    near, count = content["neighbours"], len(content["neighbours"])
    flagged = [
        sum(row[by]["flagged"] for row in near) for by in ("pixels", "features")
    ]
    told = [
        {
            "found": (
                f"{flagged[0]} of {count} distilled images are nearer to a "
                "training image than 95% of held-out images in pixels, "
                f"{flagged[1]} in features."
            ),
            "shows": (
                "Those resemble one training image more than a real image "
                "that was never seen usually does: look at them. One in 20 "
                "real images would be flagged too."
            ),
            "does_not_show": (
                "That the others hide anything: shifted, blended, inverted or "
                "partial copies are far away by either distance."
            ),
        }
    ]
    if near and "initial" in near[0]:
        moved = [row["initial"]["distance"] for row in near]
        back = sum(
            row["initial"]["index"] == row["pixels"]["index"] for row in near
        )
        told.append(
            {
                "found": (
                    f"They are {min(moved):.3f} to {max(moved):.3f} of the "
                    "pixel range from what they began with"
                    + (
                        f"; of {back} of {count}, the nearest training image "
                        "is that one."
                        if content["real"] == "initial"
                        else "."
                    )
                ),
                "shows": (
                    "Where the nearest image is the first one, the distilled "
                    "image leads back to a real one."
                ),
                "does_not_show": (
                    "That a larger distance removes it: an image that began "
                    "as a real one may show it, however far it was moved."
                ),
            }
        )
    for row in content["membership"]:
        if row["trained_on"] != "distilled":
            continue
        area = row["auc"]
        above = area["low"] > 0.5
        told.append(
            {
                "found": (
                    f"Attack {row['attack']} on networks trained on the file, "
                    f"{_ASKED[row['members']]}: AUC {_interval(area)}."
                ),
                "shows": (
                    "The networks give members away."
                    if above
                    else "This attack, of this strength, was not seen to do "
                    "better than chance."
                ),
                "does_not_show": (
                    "How much a stronger attack would find: shadow networks "
                    f"were {content['shadow_networks']}, and none was trained "
                    "on a distilled set of its own."
                    if above
                    else "Privacy: a low AUC proves none. Other attacks, more "
                    "shadow networks, single images at risk and the distilled "
                    "images themselves are left."
                ),
            }
        )
    told.append(
        {
            "found": "No noise was added that is calibrated to anything.",
            "shows": "Nothing here is differentially private.",
            "does_not_show": (
                "Any bound: no figure on this card limits what can be learned "
                "of an image, and whoever has the file has its images."
            ),
        }
    )
    return told


_ASKED = {
    "training": "training images against test images",
    "initial": "the images that it began with against test images",
    "own": "the images that they saw against test images",
    "unseen": "training images that they did not see against test images",
}


def _interval(found: dict[str, float]) -> str:
    return f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def lines(content: dict[str, Any]) -> list[str]:
    """What a person reads of a card.

    Args:
      content: of privacy.json.
    """
    told = [row["found"] for row in content["findings"][:1]]
    told.append("membership inference, with 95% intervals")
    for row in content["membership"]:
        rate = row[f"tpr_at_fpr_{attacks.FPR}"]
        told.append(
            f"{row['trained_on']:9}  {row['members']:8}  {row['attack']:16}  "
            f"AUC {_interval(row['auc'])}  balanced accuracy "
            f"{_interval(row['balanced_accuracy'])}  TPR at FPR 1% "
            f"{_interval(rate)}"
        )
    told.append("a low AUC proves no privacy; nothing here is private by proof")
    return told
