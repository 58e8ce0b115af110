"""Pre-training: losses, one step by hand, the average, distances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddjax import gan
from ddjax.models import biggan
from ddjax.settings import Gan
from ddjax.types import Batch, InputError

GENERATOR = biggan.Generator(
    num_classes=3, size=8, channels=1, width=2, noise=4
)
CRITIC = biggan.Critic(num_classes=3, size=8, width=2)
SETTINGS = Gan(
    generator_rate=1e-3, critic_rate=2e-3, average=0.9, augment="crop"
)


@pytest.fixture(scope="module")
def begun():
    """A state, and batches of two critic steps."""
    state = jax.jit(
        lambda key: gan.init_state(key, GENERATOR, CRITIC, SETTINGS)
    )(jax.random.key(0))
    rng = np.random.default_rng(0)
    batches = Batch(
        jnp.asarray(rng.integers(0, 256, (2, 4, 8, 8, 1)), jnp.uint8),
        jnp.asarray(rng.integers(0, 3, (2, 4)), jnp.int32),
    )
    return state, batches


@pytest.fixture(scope="module")
def update():
    return jax.jit(
        functools.partial(
            gan.update, generator=GENERATOR, critic=CRITIC, settings=SETTINGS
        )
    )


def test_losses_by_hand():
    real, fake = jnp.array([2.0, 0.5]), jnp.array([-3.0, 1.0])
    assert float(gan.critic_loss(real, fake)) == 0.25 + 1.0
    assert float(gan.generator_loss(fake)) == 1.0


def test_one_update_is_what_the_formulas_say(begun, update):
    """The same step, written out with plain optax and no scan."""
    state, batches = begun
    after, metrics = update(state, batches)
    keys = jax.random.split(jax.random.fold_in(state.key, state.step), 3)

    def made(params, key, labels):
        return GENERATOR.apply(
            {"params": params, "spectral": state.generator_spectral},
            gan.noise(key, 4, 4),
            labels,
            mutable=["spectral"],
        )

    def judged(params, spectral, images, labels):
        return CRITIC.apply(
            {"params": params, "spectral": spectral},
            images,
            labels,
            mutable=["spectral"],
        )

    def critic_loss(params, spectral, key, images, labels):
        real_key, fake_key, noise_key = jax.random.split(key, 3)
        real = gan._seen(real_key, images, ("crop",))
        fake, _ = made(state.generator, noise_key, labels)
        fake = gan._seen(fake_key, fake, ("crop",))
        scores, found = judged(
            params,
            spectral,
            jnp.concatenate([real, fake]),
            jnp.concatenate([labels, labels]),
        )
        hinge = jax.nn.relu(1 - scores[:4]).mean()
        return hinge + jax.nn.relu(1 + scores[4:]).mean(), found

    adam = optax.adam(2e-3, b1=0.0, b2=0.999)
    opt = jax.jit(adam.init)(state.critic)

    @jax.jit
    def step_critic(critic, spectral, opt, *inputs):
        (loss, found), grads = jax.value_and_grad(critic_loss, has_aux=True)(
            critic, spectral, *inputs
        )
        updates, opt = adam.update(grads, opt)
        critic = optax.apply_updates(critic, updates)
        return critic, found["spectral"], opt, loss

    critic, spectral = state.critic, state.critic_spectral
    losses = []
    for key, images, labels in zip(keys, *batches):
        critic, spectral, opt, loss = step_critic(
            critic, spectral, opt, key, images, labels
        )
        losses.append(float(loss))
    assert float(metrics["critic_loss"]) == pytest.approx(
        np.mean(losses), rel=1e-4
    )
    # Adam's first step has the gradient's sign alone: where that is nearly
    # zero, rounding decides, so a few parameters may differ by a whole step.
    for ours, theirs in zip(
        jax.tree.leaves(after.critic), jax.tree.leaves(critic)
    ):
        assert np.mean(np.abs(ours - theirs) > 1e-4) < 0.02

    def loss_of(params):
        seen_key, noise_key = jax.random.split(keys[2])
        fake, _ = made(params, noise_key, batches.labels[-1])
        scores, _ = judged(
            after.critic,
            after.critic_spectral,
            gan._seen(seen_key, fake, ("crop",)),
            batches.labels[-1],
        )
        return -scores.mean()

    loss, grads = jax.jit(jax.value_and_grad(loss_of))(state.generator)
    assert float(metrics["generator_loss"]) == pytest.approx(
        float(loss), rel=1e-4
    )
    # With a first beta of 0 Adam's mean is the gradient itself. A bias before
    # a batch norm has none: its parameter moves by the sign of rounding.
    for ours, theirs in zip(
        jax.tree.leaves(after.generator_opt[0].mu), jax.tree.leaves(grads)
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for moved, average, before in zip(
        *map(jax.tree.leaves, (after.generator, after.average, state.generator))
    ):
        assert 0 < np.abs(moved - before).max() < 1.01e-3
        # The first decay is (1 + 0) / (10 + 0).
        np.testing.assert_allclose(
            average, 0.1 * before + 0.9 * moved, atol=1e-6
        )


@pytest.fixture(scope="module")
def on_two_devices(begun):
    """(state, batches of one critic step each, state after, metrics).

    Under vmap as under pmap, and cheaper to compile.
    """
    state, batches = begun
    # The first device's batch is the first one, the second's is the second.
    batches = jax.tree.map(lambda leaf: leaf[:, None], batches)
    after, metrics = jax.jit(
        jax.vmap(
            functools.partial(
                gan.update,
                generator=GENERATOR,
                critic=CRITIC,
                settings=SETTINGS,
                axis_name="d",
            ),
            in_axes=(None, 0),
            axis_name="d",
        )
    )(state, batches)
    return state, batches, after, metrics


def test_two_devices_average_their_gradients(on_two_devices):
    _, _, after, metrics = on_two_devices
    for name in ("critic", "generator", "average"):
        for leaf in jax.tree.leaves(getattr(after, name)):
            np.testing.assert_allclose(leaf[0], leaf[1], atol=1e-6)
    # Images and noise are each device's own: the losses that went into the
    # means differ, and the means do not.
    assert float(metrics["critic_loss"][0]) == float(metrics["critic_loss"][1])


def test_devices_draw_noise_of_their_own(on_two_devices):
    state, batches, _, metrics = on_two_devices

    @jax.jit
    def fake_score(augment_key, key, labels):
        """What the critic says before its first step, as the formulas do."""
        images = GENERATOR.apply(
            {"params": state.generator, "spectral": state.generator_spectral},
            gan.noise(key, 4, 4),
            labels,
        )
        scores = CRITIC.apply(
            {"params": state.critic, "spectral": state.critic_spectral},
            gan._seen(augment_key, images, ("crop",)),
            labels,
        )
        return scores.mean()

    step_key = jax.random.fold_in(state.key, state.step)
    found = []
    for device in range(2):
        keys = jax.random.split(jax.random.fold_in(step_key, device))
        _, *fake_keys = jax.random.split(keys[0], 3)
        found.append(fake_score(*fake_keys, batches.labels[device, 0]))
    np.testing.assert_allclose(metrics["fake_score"], np.mean(found), rtol=1e-4)


def test_averaged_generator_is_folded_and_repeatable(begun):
    state, _ = begun
    apply, params = gan.averaged(state, GENERATOR, 4)
    again, same = gan.averaged(state, GENERATOR, 4)
    assert apply == again and apply.module.form == biggan.FOLDED
    jax.tree.map(np.testing.assert_array_equal, params, same)
    # The last parameters have no part in it, the average has.
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, state.generator)
    _, same = gan.averaged(state.replace(generator=broken), GENERATOR, 4)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    _, other = gan.averaged(state.replace(average=broken), GENERATOR, 4)
    assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(other))


@pytest.mark.parametrize("batch_size", [2, 5])
def test_moments_are_of_many_batches_and_of_every_class(
    begun, monkeypatch, batch_size
):
    """Fewer images in a batch than classes, and more."""
    monkeypatch.setattr(
        biggan,
        "fold",
        lambda module, params, spectral, noise, labels: (
            module,
            {"noise": noise, "labels": labels},
        ),
    )
    # Of this test alone: what is compiled for it folds nothing.
    generator = GENERATOR.clone(width=3)
    _, given = gan.averaged(begun[0], generator, batch_size)
    noise, labels = (np.asarray(given[name]) for name in ("noise", "labels"))
    assert noise.shape == (16, batch_size, 4)
    assert labels.shape == (16, batch_size)
    counts = np.bincount(labels.ravel(), minlength=3)
    assert counts.max() - counts.min() <= 1
    # Batches mix the classes as training does, and no noise comes twice.
    if batch_size >= 3:
        assert all(set(batch) == {0, 1, 2} for batch in labels.tolist())
    assert len(np.unique(noise)) == noise.size


def test_frechet_distance():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(500, 4))
    # Shifted by 2 in one direction: the covariances agree.
    shifted = a + np.array([2.0, 0, 0, 0])
    assert gan.frechet_distance(a, shifted) == pytest.approx(4, abs=1e-6)
    assert gan.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    # Diagonal Gaussians: sum of (s1 - s2)^2, from the covariances found.
    scaled = a * 3
    by_hand = np.square(2 * np.sqrt(np.linalg.eigvalsh(np.cov(a.T)))).sum()
    mean = np.square(a.mean(0) * 2).sum()
    assert gan.frechet_distance(a, scaled) == pytest.approx(by_hand + mean)
    with pytest.raises(InputError, match="two images"):
        gan.frechet_distance(a[:1], a)
