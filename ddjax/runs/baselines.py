"""Rows beside random real images: what can be picked without distilling.

Selections are made once, and are the same for every network that is tested.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ddjax import training
from ddjax.data import classes, preprocess, selection
from ddjax.runs import loop
from ddjax.runs.prepare import Task
from ddjax.types import Batch, Params

__all__ = ["features", "pick", "seen", "seen_at_once"]

_BY_FEATURES = {"herding": selection.herding, "k_centre": selection.k_centre}

# Images that are read and brought to a network's input at a time.
_AT_ONCE = 250
# Bytes of float64 inputs of a class that are clustered; more are thinned out.
_CLUSTERED = 1 << 29


def pick(
    names: Sequence[str],
    task: Task,
    params: Params | None,
    ipcs: Sequence[int],
) -> dict[int, dict[str, Batch]]:
    """Images per class as each of ``settings.BASELINES`` has them.

    Herding and k-centre pick real images by the features of a network that is
    there already, so nothing is trained for them. class_means are the mean of
    a class's images or, where more than one are asked for, the centres that
    k-means finds among them, in the space of network input.

    Args:
      names: of ``Evaluate.baseline_names``.
      task: data and network.
      params: of a trained network, such as a teacher's last snapshot; where
        there is none, what needs features is left out.
      ipcs: numbers of images per class.

    Returns:
      {images per class: {name: Batch of network input and one-hot labels,
      class by class}}; every class must have as many images as the largest.
    """
    needs = [] if params is None else [n for n in names if n in _BY_FEATURES]
    means = "class_means" in names
    if not needs and not means:
        return {ipc: {} for ipc in ipcs}
    found: dict[tuple[int, str], list[np.ndarray]] = {}
    labels = task.splits.train.labels
    bar = loop.progress("select", task.num_classes, unit="class")
    for label in range(task.num_classes):
        members = np.flatnonzero(labels == label)
        if needs:
            points = features(params, task, members)
        for name in needs:
            # Fewer picks are the first of more.
            chosen = members[_BY_FEATURES[name](points, max(ipcs))]
            images = _inputs(task, chosen)
            for ipc in ipcs:
                found.setdefault((ipc, name), []).append(images[:ipc])
        for ipc in ipcs if means else ():
            images = _means(task, members, ipc)
            found.setdefault((ipc, "class_means"), []).append(images)
        bar.update()
    bar.close()
    return {
        ipc: {
            name: Batch(
                np.concatenate(found[ipc, name]),
                classes.one_hot(
                    np.repeat(np.arange(task.num_classes), ipc),
                    task.num_classes,
                ),
            )
            for name in names
            if (ipc, name) in found
        }
        for ipc in ipcs
    }


def features(params: Params, task: Task, members: np.ndarray) -> np.ndarray:
    """What the head of a network sees of training images, part by part.

    Args:
      params: of the task's network.
      task: data and network.
      members: [n] indices of training images.

    Returns:
      [n d] float32: the last feature map, flattened or averaged over
      positions as the network does it.
    """
    return seen(params, task, task.splits.train.images, members)[1]


def seen(
    params: Params, task: Task, images: Any, members: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """[n k] logits of images, and [n d] features as ``features`` has them.

    Args:
      params: of the task's network.
      task: data and network.
      images: pixels [.. h w c], in memory or on disk.
      members: [n] indices of them.
    """
    parts = []
    for begin in range(0, len(members), _AT_ONCE):
        some = members[begin : begin + _AT_ONCE]
        # All parts are of one size, for which the network is compiled once.
        filled = np.resize(some, _AT_ONCE)
        found = _seen(
            params, images[filled], task.preprocessing, module=task.module
        )
        parts.append([np.asarray(part)[: len(some)] for part in found])
    logits, points = (np.concatenate(part) for part in zip(*parts))
    return logits, points


def seen_at_once(
    params: Params, images: Any, preprocessing: Any, *, module: Any
) -> tuple[jax.Array, jax.Array]:
    """``seen`` of all images together; pure, for a gradient to pixels.

    Args:
      params: of the network.
      images: pixels [n h w c].
      preprocessing: takes them to network input.
      module: the network.
    """
    inputs = preprocess.apply(preprocessing, images)
    logits, out = training.apply_fn_of(module)(params, inputs)
    last = out[max(out)]
    flat = last.reshape(len(last), -1)
    if flat.shape[1] == params["head"]["kernel"].shape[0]:
        return logits, flat
    return logits, last.mean((1, 2))


_seen = jax.jit(seen_at_once, static_argnames="module")


def _inputs(task: Task, members: np.ndarray) -> np.ndarray:
    """[n h w c] network input of training images."""
    parts = [
        np.asarray(
            preprocess.apply(
                task.preprocessing,
                task.splits.train.images[members[begin : begin + _AT_ONCE]],
            ),
            np.float32,
        )
        for begin in range(0, len(members), _AT_ONCE)
    ]
    return np.concatenate(parts)


def _means(task: Task, members: np.ndarray, count: int) -> np.ndarray:
    """[count h w c], the means that stand for a class."""
    if count == 1:  # of however many there are
        total = sum(
            _inputs(task, members[begin : begin + _AT_ONCE]).sum(
                0, dtype=np.float64, keepdims=True
            )
            for begin in range(0, len(members), _AT_ONCE)
        )
        return (total / len(members)).astype(np.float32)
    most = max(count, _CLUSTERED // (8 * math.prod(task.image_shape)))
    if len(members) > most:
        members = members[np.arange(most) * len(members) // most]
    found = selection.cluster_means(_inputs(task, members), count)
    return found.astype(np.float32)
