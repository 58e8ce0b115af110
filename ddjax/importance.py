r"""Importance weights: what each parameter counts for in the IADD loss.

The paper lets a weight W per parameter be optimised with the images. Written
down literally that collapses: the loss divides by an unweighted distance, so
descending on W alone drives W, and the images' gradient with it, to zero. All
of the forms that were tried are here, as one table of switches:

    form       "none"          W = 1, the loss of MTT
               "free"          W = v                        (can collapse)
               "clipped"       W = max(v, 0)                (can collapse)
               "exponential"   W = exp(v), \|v\| <= bound
               "displacement"  W = (how far the teacher moves)^power, not
                               learned, within e^-bound .. e^bound
               "high_loss"     W = 1 for the share ``keep`` of parameters in
                               which the student ends farthest from its
                               target, 0 for the others (after Li et al.,
                               "Prioritize Alignment in Dataset Distillation",
                               arXiv 2408.03360)
    per        "parameter" | "tensor"
    rescale    "none" | "network" | "tensor": what mean(W^2) = 1 is held over
    direction  "descend" | "ascend" on the loss
    step       of Adam on v

[paper] W per parameter, optimised together with the images and the learning
rate (Li et al., arXiv 2401.15863). The bounded forms, the rescaling, the
direction and the displacement form are this project's. BUILD_NOTES.md has the
study that compares them; its choice is the default in ``ddjax.settings``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ddjax.settings import Importance
from ddjax.types import Params, Segment

__all__ = ["init", "project", "weights"]


def init(importance: Importance, params: Params) -> Params | None:
    """The raw weights v at which W = 1, or None where nothing is learned.

    Args:
      importance: the switches.
      params: pytree whose shapes W has (``per`` = "parameter") or whose
        leaves get one weight each.
    """
    if not importance.learned:
        return None
    neutral = 0.0 if importance.form == "exponential" else 1.0
    return jax.tree.map(
        lambda leaf: jnp.full(
            leaf.shape if importance.per == "parameter" else (),
            neutral,
            leaf.dtype,
        ),
        params,
    )


def project(importance: Importance, raw: Params | None) -> Params | None:
    """The nearest raw weights within the form's bounds."""
    if importance.form == "exponential":
        low, high = -importance.bound, importance.bound
    elif importance.form == "clipped":
        low, high = 0.0, jnp.inf
    else:
        return raw
    return jax.tree.map(lambda leaf: jnp.clip(leaf, low, high), raw)


def weights(
    importance: Importance,
    raw: Params | None,
    segment: Segment,
    student: Params | None = None,
) -> Params | None:
    """W as ``losses.iadd_loss`` takes it, differentiable in ``raw``.

    Args:
      importance: the switches.
      raw: from ``init``, as optimised since.
      segment: the segment about to be matched; its shapes, and for the
        displacement form its distances, enter.
      student: where it ended, for the high_loss form; by default where it
        starts.

    Returns:
      pytree like params, leaves of the same shape or scalars; or None for 1.
    """
    if importance.form == "none":
        return None
    if importance.form == "displacement":
        w = _displacement(importance, segment)
    elif importance.form == "high_loss":
        ended = segment.start if student is None else student
        w = _high_loss(importance, ended, segment.target)
    elif importance.form == "exponential":
        w = jax.tree.map(jnp.exp, raw)
    else:
        w = raw
    return _rescale(importance.rescale, w, segment.start)


def _displacement(importance: Importance, segment: Segment) -> Params:
    """(|move| / rms move of the network)^power, bounded, no gradient."""
    move = jax.tree.map(
        lambda a, b: jnp.abs(jax.lax.stop_gradient(a - b)), *segment
    )
    mean_square = _mean_square(move, segment.start)
    if importance.per == "tensor":
        move = jax.tree.map(lambda leaf: _rms(leaf), move)
    low, high = np.exp(-importance.bound), np.exp(importance.bound)
    tiny = np.finfo(np.float32).tiny
    ratio = jax.tree.map(lambda leaf: leaf / jnp.sqrt(mean_square) + tiny, move)
    return jax.tree.map(
        lambda leaf: jnp.clip(leaf**importance.power, low, high), ratio
    )


def _high_loss(
    importance: Importance, student: Params, target: Params
) -> Params:
    """1 where |student - target| is among the largest, 0 elsewhere."""
    gap = jax.tree.map(
        lambda a, b: jnp.abs(jax.lax.stop_gradient(a - b)), student, target
    )
    if importance.per == "tensor":
        gap = jax.tree.map(lambda leaf: _rms(leaf), gap)
    every = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(gap)])
    least = jnp.quantile(every, 1 - importance.keep)
    return jax.tree.map(lambda leaf: (leaf >= least).astype(leaf.dtype), gap)


def _rms(leaf):
    return jnp.sqrt(jnp.mean(jnp.square(leaf)))


def _mean_square(w: Params, like: Params):
    """mean(w^2) over the network's parameters; scalars count for all."""
    sizes = jax.tree.map(lambda leaf: leaf.size, like)
    total = sum(
        size * jnp.mean(jnp.square(leaf))
        for leaf, size in zip(jax.tree.leaves(w), jax.tree.leaves(sizes))
    )
    return total / sum(jax.tree.leaves(sizes))


def _rescale(over: str, w: Params, like: Params) -> Params:
    if over == "none":
        return w
    if over == "tensor":
        return jax.tree.map(lambda leaf: leaf / _rms(leaf), w)
    scale = jax.lax.rsqrt(_mean_square(w, like))
    return jax.tree.map(lambda leaf: leaf * scale, w)
