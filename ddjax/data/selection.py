"""Which real images stand for a class: cheap picks, without training.

Pure functions of one class's points, in float64, the same for the same input.
Each takes any number of the class's n points; of equals, the first.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

__all__ = ["cluster_means", "clusters", "herding", "k_centre"]

# Values of float64 that are made of a class's points at a time.
_CHUNK_VALUES = 1 << 23


def herding(points: Any, count: int) -> Int[np.ndarray, " count"]:
    """Points whose mean stays as near as can be to the mean of all.

    One by one, each the point that brings the mean of those picked nearest to
    the class's, none twice (Welling, ICML 2009; in the form of iCaRL, Rebuffi
    et al., CVPR 2017, without its division by each point's norm). Fewer picks
    are the first of more.

    Args:
      points: [n d], features of a class.
      count: of the picks.

    Returns:
      [count] indices, in the order that they were picked in.

    Raises:
      ValueError: there are fewer points, or none is asked for.
    """
    points = _checked(points, count)
    mean = points.mean(0, dtype=np.float64)
    squares = np.concatenate(
        [np.square(chunk).sum(1) for chunk in _chunks(points)]
    )
    chosen: list[int] = []
    left = np.zeros_like(mean)  # of the sum of j means, after j picks
    for _ in range(count):
        left = left + mean
        # |left - x|^2 without |left|^2, which is the same for all.
        distance = squares - 2 * np.concatenate(
            [chunk @ left for chunk in _chunks(points)]
        )
        distance[chosen] = np.inf
        best = int(distance.argmin())
        chosen.append(best)
        left = left - points[best]
    return np.array(chosen)


def k_centre(points: Any, count: int) -> Int[np.ndarray, " count"]:
    """Points that leave no point of the class far from all of them.

    Greedily: first the point nearest to the mean, then each time the one that
    is farthest from those picked, none twice, which covers the class within
    twice the smallest radius (Gonzalez, 1985; Sener & Savarese, ICLR 2018,
    who start from what is labelled already). Fewer picks are the first of
    more.

    Args:
      points: [n d], features of a class.
      count: of the picks.

    Returns:
      [count] indices, in the order that they were picked in.

    Raises:
      ValueError: there are fewer points, or none is asked for.
    """
    points = _checked(points, count)
    first = _squared(points, points.mean(0, dtype=np.float64)).argmin()
    chosen = [int(first)]
    nearest = np.full(len(points), np.inf)
    for _ in range(count - 1):
        nearest = np.minimum(nearest, _squared(points, points[chosen[-1]]))
        # Below the 0 of a point that equals one of them.
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return np.array(chosen)


def cluster_means(points: Any, count: int) -> Float[np.ndarray, "count ..."]:
    """The mean of all, or the means of the clusters that k-means finds.

    Args:
      points: [n ...], images or features of a class.
      count: of the means.

    Returns:
      [count ...] float64.

    Raises:
      ValueError: there are fewer points, or none is asked for.
    """
    return clusters(points, count)[0]


def clusters(
    points: Any, count: int
) -> tuple[Float[np.ndarray, "count ..."], list[np.ndarray]]:
    """``cluster_means``, and the indices of each cluster's members.

    Args:
      points: [n ...], images or features of a class.
      count: of the clusters; some are empty where there are fewer different
        points.

    Raises:
      ValueError: there are fewer points, or none is asked for.
    """
    points = _checked(points, count)
    if count == 1:
        mean = points.mean(0, dtype=np.float64, keepdims=True)
        return mean, [np.arange(len(points))]
    # Loaded where it is used: an update needs none of it.
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    flat = points.reshape(len(points), -1).astype(np.float64)
    # Several threads would sum up in the order in which they finish.
    with threadpool_limits(1), warnings.catch_warnings():
        # Said where there are fewer different points than clusters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(count, n_init=1, max_iter=100, random_state=0).fit(flat)
    return (
        found.cluster_centers_.reshape(count, *points.shape[1:]),
        [np.flatnonzero(found.labels_ == i) for i in range(count)],
    )


def _checked(points: Any, count: int) -> np.ndarray:
    points = np.asarray(points)
    if not 1 <= count <= len(points):
        raise ValueError(f"{count} of {len(points)} points cannot be picked")
    return points


def _chunks(points: np.ndarray) -> Iterator[np.ndarray]:
    """Some points at a time, in float64."""
    rows = max(1, _CHUNK_VALUES // points[0].size)
    for begin in range(0, len(points), rows):
        yield points[begin : begin + rows].astype(np.float64)


def _squared(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """[n] squared distances to a point [d]."""
    return np.concatenate(
        [np.square(chunk - centre).sum(1) for chunk in _chunks(points)]
    )
