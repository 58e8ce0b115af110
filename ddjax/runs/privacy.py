"""What a distilled file tells of the real images behind it: a privacy card.

Nearest neighbours: of each distilled image the nearest training image, by
pixels and by what a network sees that was trained on all training images.
Beside them, the same of held-out images, which no training has seen: an image
that is nearer to a training image than 95% of those is flagged. In pixels the
distilled images are clipped to black and white, as one sees them, which only
brings them nearer.

Membership inference: which images a network was trained on, see
``runs.membership``. Members are the training images of the config: a file that
does not say its config is taken at its word that it was made of those.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ddjax import artifact, files
from ddjax import privacy as attacks
from ddjax.pages import artefacts
from ddjax.pages import privacy as page
from ddjax.runs import (
    baselines,
    cells,
    matrix,
    membership,
    prepare,
    workdir,
)
from ddjax.settings import Settings
from ddjax.types import InputError

__all__ = ["run"]

FLAGGED = 0.05
"""Share of held-out images, below which a distilled image is flagged that is
as near to a training image as they are."""

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
    subject = membership.draw(settings, found, task, before)
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    answers = membership.Answers(subject, folder / "cells")
    table = membership.membership(subject, answers)
    near = neighbours(subject, answers, folder / "cells")
    save_pictures(folder / "neighbours.npz", subject, near, before)
    content = {
        "file": matrix.describe(path, found),
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


# The file --------------------------------------------------------------------


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
    if images.dtype.kind != "f" or not np.isfinite(images).all():
        raise InputError(
            f"{beside} holds values that are no pixels: take the file of the "
            "run, or leave it out"
        )
    return images.astype(np.float32)


# Neighbours ------------------------------------------------------------------


def neighbours(
    subject: membership.Subject, answers: membership.Answers, folder: Path
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
    path = cells.path_of(folder, "neighbours", how)
    kept = (cells.read(path) or {}).get("nearest")
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
        ("pixels", [clipped, real], membership.pixels(train)),
        ("features", [seen(found.images), seen(strangers)], features()),
    ):
        index, distance = attacks.nearest(np.concatenate(queries), parts)
        told[name] = {
            "index": index[:count].tolist(),
            "distance": distance[:count].tolist(),
        }
        told["strangers"][name] = distance[count:].tolist()
    cells.write(path, {"nearest": told}, how)
    return told


def _of_each(
    subject: membership.Subject, near: dict[str, Any], before: np.ndarray | None
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
    subject: membership.Subject,
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
                "That the others hold no real image: shifted, blended, "
                "inverted or partial copies are far away by either distance."
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
                        f"; for {back} of {count} that is still the nearest "
                        "training image in pixels."
                        if content["real"] == "initial"
                        else "."
                    )
                ),
                "shows": (
                    "An image whose nearest is still its first one leads "
                    "back to it."
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
                    f"The {_ATTACKS[row['attack']]} attack on networks "
                    f"trained on the file tells {_ASKED[row['members']]} from "
                    f"test images with an AUC of {_interval(area)}."
                ),
                "shows": (
                    "The networks give members away."
                    if above
                    else "This attack, at this strength, was not seen to do "
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
            "found": "No part of distillation or of training is randomised "
            "to hide an image.",
            "shows": "Nothing here is differentially private.",
            "does_not_show": (
                "Any bound: no figure on this card limits what can be learned "
                "of an image, and whoever has the file has its images."
            ),
        }
    )
    return told


_ASKED = {
    "training": "training images",
    "initial": "the images that it began with",
}
_ATTACKS = {
    "loss": "loss",
    "likelihood_ratio": "likelihood ratio",
    "offline_ratio": "offline likelihood ratio",
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
    told.append(
        "a low AUC proves no privacy; nothing here is differentially private"
    )
    return told
