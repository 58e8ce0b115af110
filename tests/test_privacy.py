"""Neighbours, attacks and their figures, against SciPy and scikit-learn."""

import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
import sklearn.neighbors

from ddjax import privacy


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_nearest(rng, monkeypatch):
    monkeypatch.setattr(privacy, "_DISTANCES", 60)
    points = rng.normal(size=(50, 7)) + 1e3
    points[30] = points[4]
    queries = np.concatenate([rng.normal(size=(20, 7)) + 1e3, points[[4, 49]]])
    index, distance = privacy.nearest(queries, np.split(points, [13, 13, 40]))
    found = sklearn.neighbors.NearestNeighbors(
        n_neighbors=1, algorithm="brute"
    ).fit(points - 1e3)
    theirs, near = found.kneighbors(queries - 1e3)
    np.testing.assert_allclose(
        distance, theirs[:, 0] / 7**0.5, rtol=1e-6, atol=1e-6
    )
    np.testing.assert_array_equal(index[:20], near[:20, 0])
    assert index[20] in (4, 30) and index[21] == 49
    assert distance[20] == distance[21] == 0
    with pytest.raises(ValueError, match="no point"):
        privacy.nearest(queries, [])


def test_confidence_and_loss(rng):
    logits = 30 * rng.normal(size=(40, 3))
    labels = rng.integers(3, size=40)
    logits[0], labels[0] = [0, 90, 0], 1  # p rounds to 1
    found = privacy.confidence(logits, labels)
    log_p = scipy.special.log_softmax(logits, 1)[np.arange(40), labels]
    np.testing.assert_allclose(privacy.loss_score(found), log_p, atol=1e-12)
    plain = np.abs(found) < 20
    np.testing.assert_allclose(
        found[plain], scipy.special.logit(np.exp(log_p[plain])), rtol=1e-5
    )
    assert found[0] == pytest.approx(90 - np.log(2))


def test_halves():
    found = privacy.halves(jax.random.key(0), 6, 50)
    assert found.shape == (6, 100)
    np.testing.assert_array_equal(found[:, :50], ~found[:, 50:])
    assert (found.sum(0) == 3).all() and (found.sum(1) == 50).all()
    assert 15 < found[0, :50].sum() < 35


@pytest.mark.parametrize("shadows", [6, 80])
def test_likelihood_ratios(rng, shadows):
    """With SciPy's density; few shadow networks share their variances."""
    inside = privacy.halves(jax.random.key(1), shadows, 4)
    values = rng.normal(size=(shadows, 8)) * np.arange(1, 9) + inside
    observed = rng.normal(size=(2, 8))
    expected = np.zeros((2, 8))
    for chosen, sign in ((inside, 1), (~inside, -1)):
        sides = [values[chosen[:, i], i] for i in range(8)]
        spreads = np.array([side.var(ddof=1) for side in sides])
        if shadows < 64:  # all are of one number
            spreads[:] = spreads.mean()
        for i, side in enumerate(sides):
            normal = scipy.stats.norm(side.mean(), spreads[i] ** 0.5)
            expected[:, i] += sign * normal.logpdf(observed[:, i])
    found = privacy.likelihood_ratio(observed, values, inside)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    spreads = values.var(0, ddof=1)
    if shadows < 64:
        spreads[:] = spreads.mean()
    above = scipy.stats.norm.sf(observed, values.mean(0), spreads**0.5)
    np.testing.assert_allclose(
        scipy.stats.norm.cdf(privacy.offline_ratio(observed, values)),
        1 - above,
        rtol=1e-9,
    )


def test_networks_that_all_say_the_same():
    found = privacy.offline_ratio(np.ones((1, 3)), np.zeros((4, 3)))
    assert np.isfinite(found).all() and (found > 0).all()


@pytest.mark.parametrize("counts", [(300, 250), (7, 5), (150, 99)])
def test_figures_are_those_of_scikit_learn(rng, counts):
    members = rng.normal(0.7, 1, counts[0]).round(1)  # some are equal
    others = rng.normal(0, 1, counts[1]).round(1)
    truth = np.repeat([1, 0], counts)
    scores = np.concatenate([members, others])
    assert privacy.auc(members, others) == pytest.approx(
        sklearn.metrics.roc_auc_score(truth, scores)
    )
    fpr, tpr, _ = sklearn.metrics.roc_curve(
        truth, scores, drop_intermediate=False
    )
    assert privacy.true_positive_rate(members, others) == pytest.approx(
        tpr[fpr <= 0.01].max()
    )
    told = np.zeros(len(truth), bool)
    place = np.concatenate([np.arange(count) % 2 for count in counts])
    for fold in (0, 1):
        fpr, tpr, levels = sklearn.metrics.roc_curve(
            truth[place != fold],
            scores[place != fold],
            drop_intermediate=False,
        )
        level = levels[(tpr - fpr).argmax()]
        below = scores[(place != fold) & (scores < level)]
        level = (level + below.max()) / 2 if below.size else -np.inf
        told |= (place == fold) & (scores >= level)
    assert np.mean(privacy.balanced_accuracy(members, others)) == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(truth, told)
    )


def test_wilson():
    for right, count in ((0, 10), (3, 17), (10, 10), (250, 353)):
        theirs = scipy.stats.binomtest(right, count).proportion_ci(
            method="wilson"
        )
        assert privacy.wilson(right / count, count) == pytest.approx(theirs)


def test_how_often_an_area_lies_in_its_interval(rng):
    """Of normal scores, whose area is known; and it has a width at 1."""
    for shift, m, n in ((0.0, 10, 10), (1.5, 30, 20)):
        true = scipy.stats.norm.cdf(shift / 2**0.5)
        inside = 0
        for _ in range(300):
            area = privacy.auc(rng.normal(shift, 1, m), rng.normal(0, 1, n))
            low, high = privacy.auc_interval(area, m, n)
            inside += low <= true <= high
        assert 0.92 < inside / 300 < 0.99
    low, high = privacy.auc_interval(1.0, 10, 10)
    assert 0.6 < low < 0.9 and high == 1.0
    assert privacy.auc_interval(0.0, 10, 10) == pytest.approx((0, 1 - low))


def test_what_is_judged(rng):
    """Confidences of images that differ more from each other than members
    from others: the likelihood ratio knows each image's own."""
    networks, images = 3, 400
    own = rng.normal(0, 5, images)
    inside = privacy.halves(jax.random.key(2), 16, images // 2)
    shadows = own + 2 * inside + rng.normal(size=(16, images))
    observed = own + rng.normal(size=(networks, images))
    observed[:, : images // 2] += 2

    def judged(scores):
        return privacy.judge(*np.split(scores, 2, axis=1))

    ratio = judged(privacy.likelihood_ratio(observed, shadows, inside))
    loss = judged(privacy.loss_score(observed))
    # Of known means it were 0.921: Phi(2 / sqrt 2).
    assert 0.86 < ratio["auc"].mean < 0.93
    assert loss["auc"].mean < 0.68 < ratio["auc"].low
    assert loss["balanced_accuracy"].high < ratio["balanced_accuracy"].low
    assert ratio["tpr_at_fpr_0.01"].low > loss["tpr_at_fpr_0.01"].high
    for told in (ratio, loss):
        for estimate in told.values():
            assert 0 <= estimate.low <= estimate.mean <= estimate.high <= 1
    apart = judged(np.where(np.arange(40) < 20, 1.0, 0.0)[None])
    assert apart["auc"].mean == apart["balanced_accuracy"].mean == 1
    assert apart["tpr_at_fpr_0.01"].mean == 1
    same = judged(rng.normal(size=(1, 200)))
    assert same["auc"].low < 0.5 < same["auc"].high
    assert same["balanced_accuracy"].low < 0.5 < same["balanced_accuracy"].high
