"""The losses of IADD and D2M: pure functions of arrays.

Importing this module loads JAX, chex and jaxtyping, and nothing else.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddjax.types import Params

__all__ = ["cross_entropy", "iadd_loss"]


def cross_entropy(
    logits: Float[Array, "b k"], labels: Float[Array, "b k"]
) -> Float[Array, ""]:
    r"""Mean cross-entropy of ``softmax(logits)`` against ``labels``.

    .. math:: -\frac1b \sum_b \sum_k y_{bk} \log \mathrm{softmax}(z_b)_k

    Args:
      logits: [b k] unnormalised scores.
      labels: [b k] one-hot or soft labels.

    Returns:
      A scalar, in nats.

    >>> import jax.numpy as jnp
    >>> float(cross_entropy(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]])))
    0.6931...
    """
    chex.assert_equal_shape([logits, labels])
    return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1))


def _sum_of_squares(tree: Params) -> Float[Array, ""]:
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))


def iadd_loss(
    student: Params,
    start: Params,
    target: Params,
    importance: Params | None = None,
) -> Float[Array, ""]:
    r"""Importance-weighted distance to the teacher, in units of its path.

    .. math::
        \frac{\lVert W \odot \theta_{student} - W \odot \theta_{target}
        \rVert^2}{\lVert \theta_{start} - \theta_{target} \rVert^2}

    The weights act on both end points; the denominator is unweighted. With
    ``importance=None`` (all ones) this is the loss of MTT. It is 1 for a
    student that has not moved (when W is 1) and 0 for one that has arrived.

    Args:
      student: params, where the student ended.
      start: params, the teacher's snapshot that the student started from.
      target: params, the teacher's later snapshot.
      importance: pytree like ``student``, leaves of the same shape or
        broadcasting to it; or None for ones.

    Returns:
      A scalar without unit; not finite where ``start`` equals ``target``.

    Raises:
      AssertionError: the trees differ in structure or shape.

    >>> one, zero = {"w": jnp.ones(3)}, {"w": jnp.zeros(3)}
    >>> float(iadd_loss(one, zero, {"w": 3 * jnp.ones(3)}))
    0.444...

    References:
      Li et al., "Importance-Aware Adaptive Dataset Distillation", Neural
      Networks 172, 2024, arXiv 2401.15863. Cazenavette et al., "Dataset
      Distillation by Matching Training Trajectories", CVPR 2022.
    """
    chex.assert_trees_all_equal_shapes(student, start, target)
    gap = jax.tree.map(jnp.subtract, student, target)
    if importance is not None:
        chex.assert_trees_all_equal_structs(importance, student)
        gap = jax.tree.map(jnp.multiply, importance, gap)
    path = jax.tree.map(jnp.subtract, start, target)
    return _sum_of_squares(gap) / _sum_of_squares(path)
