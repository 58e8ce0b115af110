"""What distilled images and networks give away of the images behind them.

Distances to nearest neighbours, two attacks that tell which images a network
was trained on (membership inference), and how well an attack tells them. All
are functions of arrays, in float64; a higher score speaks for a member.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.special
from jaxtyping import Array, Bool, Float, Int, Key

__all__ = [
    "Estimate",
    "auc",
    "auc_interval",
    "balanced_accuracy",
    "confidence",
    "halves",
    "judge",
    "likelihood_ratio",
    "loss_score",
    "nearest",
    "offline_ratio",
    "true_positive_rate",
    "wilson",
]

FPR = 0.01
"""The false positive rate that true positives are counted at."""

POOLED_BELOW = 64
"""Shadow networks from which on each image has a variance of its own."""

_Z = float(scipy.special.ndtri(0.975))
# Distances that are held at a time.
_DISTANCES = 1 << 22


# Neighbours ------------------------------------------------------------------


def nearest(
    queries: Any, parts: Iterable[Any]
) -> tuple[Int[np.ndarray, " q"], Float[np.ndarray, " q"]]:
    """The nearest of many points, which are seen a part at a time.

    Args:
      queries: [q d].
      parts: arrays [r d] that follow each other; of equals, the first counts.

    Returns:
      (indices [q] over all parts, root mean square differences [q]: Euclidean
      distances divided by the square root of d).

    Raises:
      ValueError: there is no point.
    """
    queries = np.asarray(queries, np.float64)
    best = np.full(len(queries), np.inf)
    found = np.zeros(len(queries), np.int64)
    exact = np.full(len(queries), np.inf)
    begin = 0
    for part in parts:
        part = np.asarray(part, np.float64)
        squares = np.square(part).sum(1)
        rows = max(1, _DISTANCES // max(1, len(part)))
        for first in range(0, len(queries) if len(part) else 0, rows):
            some = slice(first, first + rows)
            # |q - p|^2 without |q|^2, which is the same for all.
            distance = squares - 2 * queries[some] @ part.T
            index = distance.argmin(1)
            least = distance[np.arange(len(index)), index]
            nearer = least < best[some]
            at = first + np.flatnonzero(nearer)
            index = index[nearer]
            best[at], found[at] = least[nearer], begin + index
            # Of a copy, the difference of large sums is not 0.
            exact[at] = np.square(queries[at] - part[index]).mean(1)
        begin += len(part)
    if not begin:
        raise ValueError("there is no point to be near to")
    return found, np.sqrt(exact)


# Attacks ---------------------------------------------------------------------


def confidence(logits: Any, labels: Any) -> Float[np.ndarray, " n"]:
    """log(p / (1 - p)) of the probability p of each image's own class.

    Args:
      logits: [n k], k at least 2.
      labels: [n] integers.

    References:
      Carlini et al., "Membership Inference Attacks From First Principles",
      S&P 2022, section V-B.
    """
    logits = np.asarray(logits, np.float64)
    own = np.arange(len(logits)), np.asarray(labels)
    others = logits.copy()
    others[own] = -np.inf
    return logits[own] - scipy.special.logsumexp(others, axis=1)


def loss_score(confidences: Any) -> np.ndarray:
    """The cross-entropy of each image, negated: members have lower losses.

    Args:
      confidences: [...] of ``confidence``.

    References:
      Yeom et al., "Privacy Risk in Machine Learning", CSF 2018.
    """
    return -np.logaddexp(0, -np.asarray(confidences, np.float64))


def halves(
    key: Key[Array, ""], shadows: int, pairs: int
) -> Bool[np.ndarray, "s n"]:
    """Which images each shadow network is trained on, one of each pair.

    Networks come in twos, of which one has what the other has not: each image
    is in half of them.

    Args:
      key: decides.
      shadows: s, even.
      pairs: n / 2; image i and image i + n / 2 are a pair.
    """
    coins = jax.random.bernoulli(key, 0.5, (shadows // 2, pairs))
    first = np.repeat(np.asarray(coins), 2, axis=0)
    first[1::2] ^= True
    return np.concatenate([first, ~first], axis=1)


def likelihood_ratio(
    observed: Any, shadows: Any, inside: Any
) -> Float[np.ndarray, "t n"]:
    """log N(x; mean_in, var_in) - log N(x; mean_out, var_out) of each image.

    Normal distributions are fitted to an image's confidences in the shadow
    networks that were trained on it, and in those that were not. With fewer
    than 64 shadow networks all images share both variances, the mean ones
    about each image's own mean.

    Args:
      observed: [t n], confidences in the t networks that are attacked.
      shadows: [s n], in the shadow networks.
      inside: [s n], whether the shadow network was trained on the image; each
        image is inside of at least two and outside of at least two.

    References:
      Carlini et al., S&P 2022, algorithm 1 and section VI-B.
    """
    inside = np.asarray(inside, bool)
    scores = [
        _log_density(observed, *_fitted(shadows, chosen))
        for chosen in (inside, ~inside)
    ]
    return scores[0] - scores[1]


def offline_ratio(observed: Any, shadows: Any) -> Float[np.ndarray, "t n"]:
    """How far an image's confidence is above that without it, in deviations.

    For shadow networks of which none was trained on the images. The
    likelihood of Carlini et al., 1 - Pr[N(mean_out, var_out) > x], is the
    normal distribution function of this score, which it orders the same.

    Args:
      observed: [t n], confidences in the t networks that are attacked.
      shadows: [s n], in the shadow networks, s at least 2.

    References:
      Carlini et al., S&P 2022, section V-C, equation 4.
    """
    mean, variance = _fitted(shadows, np.ones(np.shape(shadows), bool))
    return (np.asarray(observed, np.float64) - mean) / np.sqrt(variance)


def _fitted(values: Any, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each column's chosen values."""
    values = np.asarray(values, np.float64)
    counts = chosen.sum(0)
    mean = np.where(chosen, values, 0).sum(0) / counts
    squares = np.where(chosen, values - mean, 0) ** 2
    if len(values) < POOLED_BELOW:
        variance = np.full(len(counts), squares.sum() / (counts - 1).sum())
    else:
        variance = squares.sum(0) / (counts - 1)
    return mean, np.maximum(variance, 1e-12)


def _log_density(values, mean, variance):
    values = np.asarray(values, np.float64)
    return -((values - mean) ** 2) / (2 * variance) - np.log(variance) / 2


# How well an attack tells ----------------------------------------------------


class Estimate(NamedTuple):
    """A share with its 95% interval.

    Attributes:
      mean: of the networks that were attacked.
      low: where the interval begins.
      high: where it ends.
    """

    mean: float
    low: float
    high: float


def auc(members: Any, others: Any) -> float:
    """Area under the ROC curve: how often a member scores above another.

    Args:
      members: [m] scores.
      others: [n] scores; equal ones count half.
    """
    ordered = np.sort(others)
    ranks = [np.searchsorted(ordered, members, s) for s in ("left", "right")]
    return float(np.mean(ranks) / len(ordered))


def true_positive_rate(members: Any, others: Any, fpr: float = FPR) -> float:
    """Share of members above a threshold that so few others are above.

    Args:
      members: [m] scores.
      others: [n] scores.
      fpr: at most this share of them, below 1, is above the threshold; with
        fewer than 1 / fpr of them, none.
    """
    falling = np.sort(others)[::-1]
    return float(np.mean(members > falling[int(fpr * len(falling) + 1e-9)]))


def balanced_accuracy(members: Any, others: Any) -> tuple[float, float]:
    """Shares of members and of others that a threshold tells rightly.

    Of the images in even places the threshold is the best for those in odd
    places, and the other way round: a threshold that has seen an image would
    flatter itself.

    Args:
      members: [m] scores, m at least 2, in random order.
      others: [n] scores, the same.

    Returns:
      (true positive rate, true negative rate); their mean is the balanced
      accuracy.
    """
    sides = np.asarray(members), np.asarray(others)
    right = np.zeros(2)
    for fold in (0, 1):
        threshold = _threshold(*(side[1 - fold :: 2] for side in sides))
        told = [side[fold::2] >= threshold for side in sides]
        right += told[0].sum(), (~told[1]).sum()
    return float(right[0] / len(sides[0])), float(right[1] / len(sides[1]))


def _threshold(members: np.ndarray, others: np.ndarray) -> float:
    """The best, in the middle between two scores; the highest of equals."""
    values = np.unique(np.concatenate([members, others]))
    between = (values[1:] + values[:-1]) / 2
    tried = np.concatenate([[-np.inf], between, [np.inf]])
    missed = np.searchsorted(np.sort(members), tried) / len(members)
    refused = np.searchsorted(np.sort(others), tried) / len(others)
    gain = refused - missed
    return float(tried[len(gain) - 1 - gain[::-1].argmax()])


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95% score interval of a share (Wilson, JASA 22, 1927).

    Args:
      share: of them, 0..1.
      count: of independent draws.
    """
    square = _Z**2 / count
    middle = (share + square / 2) / (1 + square)
    spread = square * (share * (1 - share) + square / 4)
    half = float(np.sqrt(spread)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def auc_interval(area: float, members: int, others: int) -> tuple[float, float]:
    """The 95% score interval of an area under the ROC curve.

    Where |area - A| = z sqrt(var(A)) with the variance of Hanley & McNeil
    (1982) for m = n: unlike area +- z sqrt(var(area)) it has a width where the
    area is 1, and stays within 0..1.

    Args:
      area: 0..1.
      members: m, their number.
      others: n, of the others.

    References:
      Newcombe, "Confidence intervals for an effect size measure based on the
      Mann-Whitney statistic. Part 2", Statistics in Medicine 25, 2006,
      method 5.
    """

    def deviation(a):
        more = ((members + others) / 2 - 1) * ((1 - a) / (2 - a) + a / (1 + a))
        return (a * (1 - a) * (1 + more) / (members * others)) ** 0.5

    return (
        1 - _upper(1 - area, lambda a: deviation(1 - a)),
        _upper(area, deviation),
    )


def _upper(share: float, deviation: Callable[[float], float]) -> float:
    low, high = share, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if middle - share > _Z * deviation(middle):
            high = middle
        else:
            low = middle
    return high


def judge(members: Any, others: Any) -> dict[str, Estimate]:
    """How well scores tell members from others.

    Figures are means over networks. Intervals are those of one network: what
    other images of the same kind might have given. Those of the mean are not
    wider. That of the true positive rate is for the threshold that was found.

    Args:
      members: [t m] scores of t networks.
      others: [t n] scores.

    Returns:
      {"auc", "balanced_accuracy", "tpr_at_fpr_0.01"}.
    """
    pairs = list(zip(np.asarray(members), np.asarray(others)))
    m, n = len(pairs[0][0]), len(pairs[0][1])
    area = float(np.mean([auc(*pair) for pair in pairs]))
    rates = np.mean([balanced_accuracy(*pair) for pair in pairs], 0)
    # Two independent shares: squares of their half widths add up.
    ends = np.array([wilson(*side) for side in zip(rates.tolist(), (m, n))])
    low, high = np.sqrt(np.square(ends.T - rates).sum(1)) / 2
    accuracy = float(rates.mean())
    told = float(np.mean([true_positive_rate(*pair) for pair in pairs]))
    return {
        "auc": Estimate(area, *auc_interval(area, m, n)),
        "balanced_accuracy": Estimate(
            accuracy,
            max(0.0, accuracy - float(low)),
            min(1.0, accuracy + float(high)),
        ),
        f"tpr_at_fpr_{FPR}": Estimate(told, *wilson(told, m)),
    }
