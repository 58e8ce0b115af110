"""The losses of IADD and D2M: pure functions of arrays.

Importing this module loads JAX, chex and jaxtyping, and nothing else.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ddjax.types import InputError, Params

__all__ = [
    "channel_attention",
    "cross_entropy",
    "embedding_matching_loss",
    "iadd_loss",
    "nearest_of_class",
    "prediction_matching_loss",
]


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


def channel_attention(
    features: Float[Array, "b h w c"], *, power: float | int
) -> Float[Array, "b c"]:
    r"""How strongly each channel of a layer answers to each image.

    .. math:: A_{bc} = \sum_{h,w} |f_{bhwc}|^p

    Args:
      features: [b h w c], of one layer.
      power: p, at least 1; a larger one lets the strongest pixels decide.

    Returns:
      [b c], at least 0, in the features' unit to the power p. Features of
      1e10 to the 4th are beyond float32: scale them first, as
      ``embedding_matching_loss`` does.

    Raises:
      AssertionError: the features have the wrong rank.
      InputError: the power is below 1, where the gradient at 0 is infinite.

    >>> features = jnp.array([1.0, -2.0]).reshape(1, 2, 1, 1)
    >>> float(channel_attention(features, power=4)[0, 0])
    17.0

    References:
      Sajedi et al., "DataDAM: Efficient Dataset Distillation with Attention
      Matching", ICCV 2023, and "Data-to-Model Distillation: Data-Efficient
      Learning Framework", ECCV 2024, arXiv 2411.12841.
    """
    chex.assert_rank(features, 4)
    _check_power(power)
    # jnp.abs has slope 1 at 0; this has 0, whichever the power.
    size = features * jnp.sign(features)
    # A whole number multiplies instead of taking logarithms.
    whole = int(power) if power == int(power) else power
    return jnp.sum(size**whole, axis=(1, 2))


def _check_power(power):
    if not 1 <= power < float("inf"):
        raise InputError(f"the power of attention must be >= 1, not {power}")


def _unit_attention(features, power):
    """Channel attention of length 1 [b c]; zeros where all features are 0."""
    # The length takes any factor out again, so dividing by the largest
    # feature changes nothing but the range, and no gradient is due to it.
    largest = jnp.abs(features).max((1, 2, 3), keepdims=True)
    largest = jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1))
    attention = channel_attention(features / largest, power=power)
    # At least 1 unless all features are 0, where the root has no gradient.
    squared = jnp.sum(jnp.square(attention), axis=-1, keepdims=True)
    return attention * jax.lax.rsqrt(jnp.where(squared > 0, squared, 1))


def _class_mean_distance(real, fake, labels):
    """Mean over present classes of ||mean of real - mean of fake||^2."""
    total = labels.sum(0)
    present = total > 0
    # In full precision: an accelerator's usual product would drown the
    # difference of two means that are nearly the same.
    gap = jnp.einsum(
        "bk,bc->kc", labels, real - fake, precision=jax.lax.Precision.HIGHEST
    )
    gap = gap / jnp.where(present, total, 1)[:, None]
    squared = jnp.where(present, jnp.sum(jnp.square(gap), axis=-1), 0)
    return squared.sum() / jnp.maximum(present.sum(), 1)


def embedding_matching_loss(
    real: dict[str, Float[Array, "b _ _ _"]],
    fake: dict[str, Float[Array, "b _ _ _"]],
    labels: Float[Array, "b k"],
    *,
    power: float | int,
    last: str | None = None,
) -> Float[Array, ""]:
    r"""How far the features of generated images are from those of real ones.

    .. math::
        \sum_l \frac1{|C|} \sum_{c \in C} \left\lVert
        \frac{\sum_b y_{bc} (a^l_b(real) - a^l_b(fake))}{\sum_b y_{bc}}
        \right\rVert^2

    C are the classes that the labels hold. In inner layers a is each image's
    ``channel_attention``, scaled to length 1; a layer adds 2 at most. In the
    last layer a is the mean of the raw features over h and w; its term is in
    the features' unit squared. Only class means count, so the order of the
    images within a class does not matter.

    No gradient flows to ``real``. Value and gradient are finite where a class
    is missing or features are all 0, and inner layers bear features of any
    size: each image is divided by its largest before the power is taken,
    which the scaling to length 1 makes exact.

    Args:
      real: {layer: [b h w c]}, features of real images.
      fake: the same of generated images.
      labels: [b k] one-hot or soft, of the real and of the generated images.
      power: p of the attention, at least 1; 4 in D2M, as far as known.
      last: the name of the network's last layer; where it is not among
        those given, all are inner ones. None takes the last in sorted order,
        the order in which ``jax.jit`` hands dicts on whatever theirs was:
        right for block0 .. block9, wrong where block10 follows.

    Returns:
      A scalar.

    Raises:
      AssertionError: real and fake differ in names or shapes, or the labels
        in number.
      InputError: the power is below 1, or there is no layer.

    >>> real = {"block0": jnp.ones((1, 2, 2, 3)), "block1": jnp.zeros((1,) * 4)}
    >>> fake = {**real, "block1": 3 * jnp.ones((1, 1, 1, 1))}
    >>> float(embedding_matching_loss(real, fake, jnp.ones((1, 1)), power=4))
    9.0

    References:
      Sajedi et al., "Data-to-Model Distillation: Data-Efficient Learning
      Framework", ECCV 2024, arXiv 2411.12841, which matches features of
      intermediate layers and has no public code. The power, the scaling to
      length 1 and the raw last layer are the best-supported choices, after
      the same authors' DataDAM (ICCV 2023).
    """
    chex.assert_trees_all_equal_shapes(real, fake)
    _check_power(power)
    if not real:
        raise InputError("embedding matching needs a layer or more, not none")
    last = max(real) if last is None else last
    chex.assert_rank(list(real.values()), 4)
    chex.assert_rank(labels, 2)
    chex.assert_equal_shape_prefix([labels, *real.values()], 1)

    def term(layer):
        sides = jax.lax.stop_gradient(real[layer]), fake[layer]
        if layer == last:
            sides = [features.mean((1, 2)) for features in sides]
        else:
            sides = [_unit_attention(features, power) for features in sides]
        return _class_mean_distance(*sides, labels)

    # Sorted, so that rounding does not depend on the dict's order either.
    return sum(term(layer) for layer in sorted(real))


def nearest_of_class(
    real: Float[Array, "b c"], fake: Float[Array, "m c"], labels: Array
) -> Array:
    r"""For each real row the generated one of its class that is nearest to it.

    .. math:: \mathrm{argmin}_{m: y_m = y_b} \lVert r_b - f_m \rVert^2

    One row may be the nearest of several. Matched so, a generator has to come
    near to every real image, where a pairing by chance asks it for the mean
    of a class.

    Args:
      real: [b c], such as a network's logits of real images.
      fake: [m c], the same of generated ones; m is b.
      labels: [b] classes of both, integers.

    Returns:
      [b] rows of ``fake``; no gradient flows through them.

    Raises:
      AssertionError: the shapes differ.

    >>> real, fake = jnp.array([[0.0], [5.0]]), jnp.array([[4.0], [9.0]])
    >>> nearest_of_class(real, fake, jnp.array([0, 0])).tolist()
    [0, 0]

    References:
      Li and Malik, "Implicit Maximum Likelihood Estimation", 2018, arXiv
      1809.09087.
    """
    chex.assert_equal_shape([real, fake])
    chex.assert_equal_shape_prefix([real, labels], 1)
    real, fake = jax.lax.stop_gradient((real, fake))
    # In full precision: the near ones are what matters.
    products = jnp.matmul(real, fake.T, precision=jax.lax.Precision.HIGHEST)
    gaps = jnp.sum(fake**2, axis=1)[None] - 2 * products
    same = labels[:, None] == labels[None]
    return jnp.where(same, gaps, jnp.inf).argmin(1)


def prediction_matching_loss(
    real_logits: Float[Array, "b k"],
    fake_logits: Float[Array, "b k"],
    *,
    temperature: ArrayLike,
) -> Float[Array, ""]:
    r"""Kullback-Leibler divergence of generated images' softened predictions.

    .. math::
        \frac1b \sum_b \sum_k p_{bk} \log \frac{p_{bk}}{q_{bk}}, \quad
        p = \mathrm{softmax}(z^{real} / T), \quad
        q = \mathrm{softmax}(z^{fake} / T)

    Without the factor T^2 of knowledge distillation; 0 for equal logits. No
    gradient flows to ``real_logits``.

    Args:
      real_logits: [b k], the network's scores of real images.
      fake_logits: [b k], of generated images with the same labels.
      temperature: T, above 0; 4 in D2M, as far as known. An array's value
        is not looked at.

    Returns:
      A scalar, in nats.

    Raises:
      AssertionError: the shapes differ.
      InputError: the temperature is a number that is not above 0.

    >>> logits = jnp.array([[1.0, 2.0]])
    >>> float(prediction_matching_loss(logits, logits, temperature=4))
    0.0

    References:
      Sajedi et al., "Data-to-Model Distillation: Data-Efficient Learning
      Framework", ECCV 2024, arXiv 2411.12841, which has no public code: the
      direction, the temperature and the missing T^2 are the best-supported
      choices.
    """
    chex.assert_rank([real_logits, fake_logits], 2)
    chex.assert_equal_shape([real_logits, fake_logits])
    if isinstance(temperature, float | int) and not temperature > 0:
        raise InputError(f"the temperature must be above 0, not {temperature}")
    real_log, fake_log = (
        jax.nn.log_softmax(logits / temperature)
        for logits in (jax.lax.stop_gradient(real_logits), fake_logits)
    )
    gap = jnp.exp(real_log) * (real_log - fake_log)
    return jnp.mean(jnp.sum(gap, axis=-1))
