"""Gradient descent as a pure function that can itself be differentiated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Key

from ddjax import ops
from ddjax.types import LossFn, Params

__all__ = ["minibatch_indices", "sgd_unroll"]

_GRADIENT = "ddjax_inner_gradient"


def minibatch_indices(
    key: Key[Array, ""], num_examples: int, batch_size: int, num_steps: int
) -> Int[Array, "t b"]:
    """Batches that walk through random permutations of the examples.

    Each pass visits every example once, in a fresh order; where the batch
    size does not divide the number of examples, a batch runs on into the next
    pass, so nothing is dropped and no example falls behind by more than one
    visit (MTT instead cuts the last batch of a pass short, which would give
    the scan batches of two sizes).

    Args:
      key: one key.
      num_examples: n, at least 1.
      batch_size: b, 1 to n.
      num_steps: t, at least 1.

    Returns:
      [t b] integers in 0..n-1.

    Raises:
      ValueError: a number is out of range.

    >>> minibatch_indices(jax.random.key(0), 4, 4, 3).shape
    (3, 4)
    """
    if num_examples < 1 or num_steps < 1:
        raise ValueError(
            "num_examples and num_steps must be at least 1, not "
            f"{num_examples} and {num_steps}"
        )
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"batch_size must be 1 to {num_examples} (the number of "
            f"examples), not {batch_size}"
        )
    total = num_steps * batch_size
    passes = -(-total // num_examples)
    keys = jax.random.split(key, passes)
    # A map, not vmap: the batched sort of all passes compiles no faster and
    # would hold every pass's sort keys at once.
    orders = jax.lax.map(
        lambda k: jax.random.permutation(k, num_examples), keys
    )
    return orders.reshape(-1)[:total].reshape(num_steps, batch_size)


def sgd_unroll(
    loss_fn: LossFn,
    params: Params,
    batches: Any,
    keys: Key[Array, " t"],
    learning_rate: Float[Array, ""] | float,
    *,
    remat: bool = True,
    observe: Callable[[Params], Any] | None = None,
) -> tuple[Params, Any]:
    r"""Plain gradient descent, differentiable in all its inputs.

    .. math:: \theta_{j+1} = \theta_j - \alpha \nabla_\theta
        \ell(\theta_j, batch_j, key_j)

    One ``lax.scan``. ``jax.grad`` through it is exact: to the parameters, the
    batches, the learning rate, and whatever ``loss_fn`` closes over. With
    ``remat`` the backward pass keeps the parameters and the gradient of each
    step, and the outputs and input gradients of its wider convolutions, and
    recomputes the rest, so memory grows slowly with t.

    Args:
      loss_fn: ``loss_fn(params, batch, key) -> scalar``.
      params: pytree, the starting point.
      batches: pytree whose leaves lead with t; one slice goes to each step.
        Indices are as good as images, if ``loss_fn`` looks them up.
      keys: [t] keys, one per step.
      learning_rate: scalar alpha.
      remat: recompute each step in the backward pass.
      observe: where given, what to keep of the params after each step.

    Returns:
      (params after t steps, [t] losses before each step); in place of the
      losses (losses, [t ...] what was observed), where that is asked for.

    Raises:
      AssertionError: the leading axes of batches and keys differ.

    References:
      The exact form of the inner loop of MTT (Cazenavette et al., CVPR 2022);
      rematerialisation as in Chen et al., arXiv 1604.06174.
    """
    chex.assert_equal_shape_prefix([keys, *jax.tree.leaves(batches)], 1)

    def step(params, inputs):
        batch, key = inputs
        loss, grads = jax.value_and_grad(loss_fn)(params, batch, key)
        grads = checkpoint_name(grads, _GRADIENT)
        params = jax.tree.map(
            lambda p, g: p - (learning_rate * g).astype(p.dtype), params, grads
        )
        if observe is not None:
            return params, (loss, observe(params))
        return params, loss

    if remat:
        # Inside a scan the loop itself keeps XLA from merging the recomputed
        # step with the first one; without the barriers more fuses. The
        # gradient is kept because only the derivative to the learning rate
        # needs it: recomputing it for that is a tenth of the whole iteration.
        # So are the convolutions that are kept, forward and back, at half the
        # memory of all outputs: the first layer's, the largest, is not kept.
        step = jax.checkpoint(
            step,
            prevent_cse=False,
            policy=jax.checkpoint_policies.save_only_these_names(
                _GRADIENT, ops.KEPT
            ),
        )
    return jax.lax.scan(step, params, (batches, keys))
