"""The losses that D2M's is compared with: who is paired with whom."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from small import ROOT, door

from ddjax import d2m, gan, losses, models, training
from ddjax.data import preprocess
from ddjax.models import biggan
from ddjax.settings import D2m, Settings
from ddjax.types import InputError

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
    found = losses.nearest_of_class(real.logits, fake.logits, labels)
    gaps = cdist(real.logits, fake.logits)
    gaps[labels[:, None] != labels[None]] = np.inf
    assert found.tolist() == gaps.argmin(1).tolist()


def backwards(labels):
    """An order in which the images of each class are turned round."""
    order = np.arange(len(labels))
    for label in range(CLASSES):
        rows = np.flatnonzero(labels == label)
        order[rows] = rows[::-1]
    return order


@pytest.mark.parametrize(
    "name",
    ["transport in features", "nearest in features", "mean and covariance"],
)
def test_features_that_are_there_cost_nothing(batch, name):
    """Whatever the order of the generated images in their class."""
    real, fake, labels = batch
    order = backwards(labels)
    again = jax.tree.map(lambda leaf: leaf[order], real)
    loss = jax.jit(d2m_losses.MATCHES[name], static_argnums=3)
    assert loss(real, again, labels, SETTINGS)[0] == pytest.approx(0, abs=1e-9)
    assert loss(real, fake, labels, SETTINGS)[0] > 0.1


@pytest.mark.parametrize("name", ["nearest in logits", "transport in logits"])
def test_predictions_that_are_there_cost_nothing(batch, name):
    """In another order of the class's images, which the published loss sees."""
    real, fake, labels = batch
    order = backwards(labels)
    again = jax.tree.map(lambda leaf: leaf[order], real)

    def prediction(match, made):
        return jax.jit(match, static_argnums=3)(real, made, labels, SETTINGS)[
            1
        ]["prediction"]

    match = d2m_losses.MATCHES[name]
    assert prediction(match, again) == pytest.approx(0, abs=1e-6)
    assert prediction(d2m.matching_loss, again) > 1e-3
    assert prediction(match, fake) > 1e-3


def test_standardised_logits_have_no_scale(batch):
    real, fake, labels = batch
    loss = jax.jit(d2m_losses.MATCHES["standardised logits"], static_argnums=3)
    sharper = real._replace(logits=3 * real.logits + 5)
    assert loss(real, sharper, labels, SETTINGS)[1]["prediction"] < 1e-6
    assert loss(real, fake, labels, SETTINGS)[1]["prediction"] > 1e-3


def test_generated_images_that_are_one_another_cost_more(batch):
    real, fake, labels = batch
    loss = d2m_losses.MATCHES["like real, unlike each other"]

    def more(seen):
        return (
            loss(real, seen, labels, SETTINGS)[0]
            - d2m.matching_loss(real, seen, labels, SETTINGS)[0]
        )

    first = np.asarray([np.flatnonzero(labels == k)[0] for k in labels])
    alike = jax.tree.map(lambda leaf: leaf[first], fake)
    assert more(alike) > more(fake)


@pytest.fixture(scope="module")
def judged():
    """A generator and its critic, one batch, and an update of both."""
    form = {"num_classes": 2, "size": 8, "width": 2}
    made = biggan.Generator(channels=1, noise=4, form=biggan.FOLDED, **form)
    critic = biggan.Critic(**form)
    network = models.build("convnet", num_classes=2, width=4, depth=1)
    settings = Settings(d2m=D2m(augment="crop", rate=1e-3))
    params = made.init(
        jax.random.key(0), jnp.zeros((1, 4)), jnp.zeros(1, jnp.int32)
    )["params"]
    judge, spectral = biggan.initialise(critic, jax.random.key(1), 1)
    state = d2m_losses.Judged(
        d2m.init_state(jax.random.key(2), params, settings.d2m),
        judge,
        spectral,
        gan.adam(settings.gan.critic_rate).init(judge),
    )
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)
    group = d2m.Group(
        models.init_params(network, jax.random.key(3), (8, 8, 1)),
        jnp.asarray(images),
        jnp.arange(12) % 2,
    )
    groups = jax.tree.map(lambda leaf: leaf[None], group)
    how = {
        "gen_apply": biggan.GenApply(made),
        "apply_fn": training.apply_fn_of(network),
        "preprocessing": preprocess.Standardiser(
            jnp.array([0.4]), jnp.array([0.3])
        ),
    }
    alone = functools.partial(d2m.update, settings=settings.d2m, **how)
    both = functools.partial(
        d2m_losses.update_with_critic, critic=critic, settings=settings, **how
    )
    return state, groups, alone, both, jax.jit(both), critic


def test_without_weight_a_critic_changes_nothing(judged, monkeypatch):
    state, groups, alone, both, step, _ = judged
    wanted, told = jax.jit(alone)(state.made, groups)
    moved, _ = step(state, groups)
    monkeypatch.setattr(d2m_losses, "_CRITIC_WEIGHT", 0.0)
    found, metrics = jax.jit(lambda *drawn: both(*drawn))(state, groups)
    close = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(close, found.made.params, wanted.params)
    assert float(metrics["prediction"]) == pytest.approx(
        float(told["prediction"]), rel=1e-4
    )
    gaps = jax.tree.map(
        lambda ours, theirs: float(jnp.abs(ours - theirs).max()),
        moved.made.params,
        wanted.params,
    )
    assert max(jax.tree.leaves(gaps)) > 1e-4


def test_a_critic_goes_on_learning(judged):
    begun, groups, _, both, step, critic = judged
    images, labels = groups.images[0], groups.labels[0]

    def gap(state):
        """How much more real it finds the real images."""
        fake = d2m.generate(
            both.keywords["gen_apply"],
            state.made.params,
            jax.random.key(9),
            labels,
        )
        real, made = (
            critic.apply(
                {"params": state.params, "spectral": state.spectral},
                2 * preprocess.to_unit(side) - 1,
                labels,
            ).mean()
            for side in (images, fake)
        )
        return float(real - made)

    state = begun
    for _ in range(20):
        state, _ = step(state, groups)
    assert gap(state) > gap(begun) + 0.1


def test_the_study_knows_all_losses_and_refuses_the_impossible():
    study = door("benchmarks/d2m_study")
    for data in ("digits", "own.npz", "cifar10"):
        base = study.settings_of(data, "")
        groups = study.variants_of(base)
        assert tuple(groups) == study.GROUPS
        for variants in groups.values():
            for variant in variants.values():
                base.changed(variant.fields)
                assert variant.match in d2m_losses.MATCHES
    with pytest.raises(InputError, match="must be digits, cifar10 or an"):
        study.settings_of("digit", "")


def test_differences_are_told_with_their_interval_where_there_is_one():
    paired = door("benchmarks/paired")
    assert paired.told([1.0, 2.0, 3.0]) == "+2.00 (-0.48 .. +4.48)"
    assert paired.told([1.0]) == "+1.00"
