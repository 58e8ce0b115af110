"""The losses that D2M's is compared with: who is paired with whom."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from small import ROOT

from ddjax import d2m
from ddjax.settings import D2m

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / "experiments" / "benchmarks")
    import d2m_losses

PER_CLASS, CLASSES = 4, 3
SETTINGS = D2m(per_class=PER_CLASS)


@pytest.fixture
def batch():
    """Real and generated images as a network sees them; classes mixed."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), PER_CLASS))

    def seen():
        return d2m.Seen(
            jnp.asarray(rng.normal(size=(len(labels), CLASSES)), jnp.float32),
            {
                "block0": jnp.asarray(
                    rng.normal(size=(len(labels), 2, 2, 5)), jnp.float32
                )
            },
        )

    return seen(), seen(), jnp.asarray(labels)


def test_partners_by_transport_are_scipys(batch):
    real, fake, labels = batch
    found = jax.jit(d2m_losses.transported, static_argnums=3)(
        real.logits, fake.logits, labels, PER_CLASS
    )
    for label in range(CLASSES):
        rows = np.flatnonzero(labels == label)
        gaps = cdist(real.logits[rows], fake.logits[rows], "sqeuclidean")
        _, columns = linear_sum_assignment(gaps)
        assert found[rows].tolist() == rows[columns].tolist()


def test_the_nearest_is_of_the_same_class(batch):
    real, fake, labels = batch
    found = d2m_losses.nearest(real.logits, fake.logits, labels)
    gaps = cdist(real.logits, fake.logits)
    gaps[labels[:, None] != labels[None]] = np.inf
    assert found.tolist() == gaps.argmin(1).tolist()


@pytest.mark.parametrize(
    "name",
    ["transport in features", "nearest in features", "mean and covariance"],
)
def test_features_that_are_there_cost_nothing(batch, name):
    """Whatever the order of the generated images in their class."""
    real, fake, labels = batch
    order = np.arange(len(labels))
    for label in range(CLASSES):
        rows = np.flatnonzero(labels == label)
        order[rows] = rows[::-1]
    again = jax.tree.map(lambda leaf: leaf[order], real)
    loss = jax.jit(d2m_losses.MATCHES[name], static_argnums=3)
    assert loss(real, again, labels, SETTINGS)[0] == pytest.approx(0, abs=1e-9)
    assert loss(real, fake, labels, SETTINGS)[0] > 0.1


@pytest.mark.parametrize(
    "name",
    ["nearest in logits", "transport in logits", "standardised logits"],
)
def test_predictions_that_are_there_cost_nothing(batch, name):
    real, fake, labels = batch
    loss = jax.jit(d2m_losses.MATCHES[name], static_argnums=3)
    _, terms = loss(real, real, labels, SETTINGS)
    assert terms["prediction"] == pytest.approx(0, abs=1e-6)
    assert loss(real, fake, labels, SETTINGS)[1]["prediction"] > 1e-3


def test_generated_images_that_are_one_another_cost_more(batch):
    real, fake, labels = batch
    loss = d2m_losses.MATCHES["like real, unlike each other"]

    def more(seen):
        return (
            loss(real, seen, labels, SETTINGS)[0]
            - d2m.published_match(real, seen, labels, SETTINGS)[0]
        )

    first = np.asarray([np.flatnonzero(labels == k)[0] for k in labels])
    alike = jax.tree.map(lambda leaf: leaf[first], fake)
    assert more(alike) > more(fake)
