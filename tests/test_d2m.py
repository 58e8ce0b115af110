"""D2M: the loss by hand, updates, devices, images, and refusals."""

import functools
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import artifact, d2m, losses, models, parallel, training
from ddjax.augment import augment
from ddjax.data import preprocess
from ddjax.models import biggan
from ddjax.settings import D2m
from ddjax.types import InputError

MODULE = biggan.Generator(
    num_classes=3, size=8, channels=1, width=2, noise=4, form=biggan.FOLDED
)
APPLY = biggan.GenApply(MODULE)
NETWORK = models.build("convnet", num_classes=3, width=4, depth=2)
SCALE = preprocess.Standardiser(jnp.array([0.4]), jnp.array([0.3]))
SETTINGS = D2m(rate=1e-3, average=0.9, augment="crop_scale")
CALL = dict(
    gen_apply=APPLY,
    apply_fn=training.apply_fn_of(NETWORK),
    preprocessing=SCALE,
)


@pytest.fixture(scope="module")
def gen_params():
    params = jax.jit(
        lambda key: MODULE.init(
            key, jnp.zeros((1, 4)), jnp.zeros(1, jnp.int32)
        )["params"]
    )(jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype("f"),
        params,
    )


@pytest.fixture(scope="module")
def groups():
    """Four batches of six images, each with a network of its own."""
    rng = np.random.default_rng(0)
    networks = jax.jit(
        jax.vmap(lambda key: models.init_params(NETWORK, key, (8, 8, 1)))
    )(jax.vmap(jax.random.key)(jnp.arange(4)))
    return d2m.Group(
        networks,
        jnp.asarray(rng.integers(0, 256, (4, 6, 8, 8, 1)), jnp.uint8),
        jnp.tile(jnp.repeat(jnp.arange(3), 2), (4, 1)),
    )


def first(groups):
    return jax.tree.map(lambda leaf: leaf[0], groups)


def updater(settings=SETTINGS, **kwargs):
    return functools.partial(d2m.update, settings=settings, **CALL, **kwargs)


def close(ours, theirs, atol=1e-6):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=atol), ours, theirs
    )


def test_loss_is_the_sum_of_its_terms(gen_params, groups):
    group, key = first(groups), jax.random.key(5)
    loss, terms = jax.jit(
        lambda params: d2m.distill_loss(
            params, group, key, settings=SETTINGS, **CALL
        )
    )(gen_params)

    @jax.jit
    def by_hand(params):
        noise_key, augment_key = jax.random.split(key)
        fake = d2m.generate(APPLY, params, noise_key, group.labels)

        def seen(pixels):
            inputs = augment(
                augment_key, (pixels - 0.4) / 0.3, ("crop", "scale")
            )
            return NETWORK.apply({"params": group.network}, inputs)

        (real_logits, real), (fake_logits, made) = (
            seen(jnp.asarray(group.images) / 255.0),
            seen(fake),
        )
        embedding = losses.embedding_matching_loss(
            real, made, jax.nn.one_hot(group.labels, 3), power=4
        )
        return embedding, losses.prediction_matching_loss(
            real_logits, fake_logits, temperature=4.0
        )

    embedding, prediction = by_hand(gen_params)
    assert float(terms["embedding"]) == pytest.approx(
        float(embedding), rel=1e-4
    )
    assert float(terms["prediction"]) == pytest.approx(
        float(prediction), rel=1e-4
    )
    assert float(loss) == pytest.approx(
        float(embedding + 10 * prediction), rel=1e-4
    )


def test_pairing_by_the_nearest(gen_params, groups):
    """By hand: the published loss of generated images in another order."""
    rng = np.random.default_rng(3)
    labels = jnp.array([0, 0, 1, 1, 2, 2])
    layer = {"block0": jnp.asarray(rng.random((6, 2, 2, 4)), jnp.float32)}
    real, fake = (
        d2m.Seen(jnp.asarray(rng.normal(size=(6, 3)), jnp.float32), layer)
        for _ in range(2)
    )
    order = [
        min(
            np.flatnonzero(labels == labels[i]),
            key=lambda j: np.sum((real.logits[i] - fake.logits[j]) ** 2),
        )
        for i in range(6)
    ]
    assert order != list(range(6))
    paired = fake._replace(logits=fake.logits[np.array(order)])
    found, _ = d2m.matching_loss(
        real, fake, labels, replace(SETTINGS, pairing="nearest")
    )
    wanted, _ = d2m.matching_loss(real, paired, labels, SETTINGS)
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    state = d2m.init_state(jax.random.key(0), gen_params, SETTINGS)
    by_chance, nearest = (
        jax.jit(updater(replace(SETTINGS, pairing=pairing)))(state, groups)[1]
        for pairing in ("chance", "nearest")
    )
    assert nearest["prediction"] < by_chance["prediction"]
    assert nearest["embedding"] == pytest.approx(
        float(by_chance["embedding"]), rel=1e-5
    )


def test_another_match_is_asked_and_its_terms_told(gen_params, groups):
    def match(real, fake, labels, settings):
        assert settings is SETTINGS
        gap = jnp.mean(jnp.square(fake.logits - real.logits))
        return 2 * gap, {"gap": gap, "classes": labels.max().astype(float)}

    state = d2m.init_state(jax.random.key(0), gen_params, SETTINGS)
    after, told = jax.jit(updater(match=match, terms=("gap", "classes")))(
        state, groups
    )
    assert set(told) == {"loss", "gap", "classes", "gradient_norm"}
    assert told["loss"] == pytest.approx(2 * float(told["gap"]), rel=1e-6)
    assert told["classes"] == 2
    assert told["gradient_norm"] > 0 and after.step == 1
    with pytest.raises(InputError, match=r"the terms \['classes', 'gap'\]"):
        jax.eval_shape(updater(match=match), state, groups)


def test_a_generator_that_repeats_the_real_images_has_no_loss(groups):
    """Siamese: the same augmentation on both sides, or this would not be 0."""
    group = first(groups)
    pixels = jnp.asarray(group.images) / 255.0
    loss, _ = d2m.distill_loss(
        (),
        group,
        jax.random.key(0),
        settings=SETTINGS,
        **CALL | {"gen_apply": _Repeats(pixels)},
    )
    assert float(loss) == pytest.approx(0, abs=1e-10)


class _Repeats:
    noise_size = 1

    def __init__(self, pixels):
        self.pixels = pixels

    def __call__(self, params, noise, labels):
        return self.pixels


def test_updates_lower_the_loss(gen_params, groups):
    settings = replace(SETTINGS, augment="none", rate=5e-3)
    state = d2m.init_state(jax.random.key(0), gen_params, settings)
    step = jax.jit(
        chex.assert_max_traces(lambda *args: updater(settings)(*args), n=1)
    )
    found = []
    for _ in range(25):
        state, metrics = step(state, groups)
        found.append(float(metrics["loss"]))
    assert np.mean(found[-5:]) < 0.8 * np.mean(found[:5])
    assert int(state.step) == 25
    # The average lags behind.
    gaps = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), state.params, state.average
    )
    assert max(jax.tree.leaves(gaps)) > 0


def test_devices_do_not_change_the_result(gen_params, groups):
    state = d2m.init_state(jax.random.key(0), gen_params, SETTINGS)
    alone, metrics = jax.jit(updater())(state, groups)
    assert jax.local_device_count() == 4
    spread, same = parallel.over_devices(updater())(
        parallel.replicate(state), parallel.shard(groups)
    )
    assert float(metrics["loss"]) == pytest.approx(
        float(same["loss"]), rel=1e-5
    )
    # Adam divides by the gradient's size: compare what it was given.
    close(alone.opt_state[0].mu, spread.opt_state[0].mu, atol=1e-5)
    assert int(spread.step) == 1


class _Blobs:
    """A generator of two numbers an image, which compiles at once."""

    noise_size = 2

    def __call__(self, params, noise, labels):
        return jax.nn.sigmoid(params["scale"] * noise).reshape(-1, 2, 1, 1)


def _scores(params, images):
    return images.reshape(len(images), -1) @ params, {"block0": images}


def test_groups_draw_by_step_and_place():
    """Equal groups, so that their noise alone tells them apart."""
    call = dict(
        gen_apply=_Blobs(),
        apply_fn=_scores,
        preprocessing=SCALE,
        settings=D2m(augment="none"),
    )
    group = d2m.Group(
        jnp.array([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0]]),
        jnp.linspace(0, 1, 6).reshape(3, 2, 1, 1),
        jnp.arange(3),
    )
    groups = jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), group)
    begun = d2m.init_state(
        jax.random.key(0), {"scale": jnp.ones(2)}, D2m(augment="none")
    )
    alone = jax.jit(functools.partial(d2m.update, **call))
    spread = parallel.over_devices(functools.partial(d2m.update, **call))
    loss_of = jax.jit(
        lambda key: d2m.distill_loss(begun.params, group, key, **call)[0]
    )
    for step in (0, 5):
        state = begun.replace(step=jnp.asarray(step, jnp.int32))
        step_key = jax.random.fold_in(begun.key, step)
        losses = [loss_of(jax.random.fold_in(step_key, i)) for i in range(8)]
        # Any two groups that drew the same would show in the mean.
        assert np.diff(np.sort(losses)).min() > 1e-3 * np.mean(losses)
        expected = pytest.approx(float(np.mean(losses)), rel=1e-5)
        assert float(alone(state, groups)[1]["loss"]) == expected
        found = spread(parallel.replicate(state), parallel.shard(groups))[1]
        assert float(found["loss"]) == expected


LEFT_OUT = {
    field: replace(SETTINGS, **{field: 0.0}, augment="none")
    for field in ("embedding", "balance")
}


@pytest.fixture(scope="module")
def losses_of_one_term(gen_params, groups):
    """{what is left out: (loss, terms)}, compiled as one."""

    @jax.jit
    def both(params):
        return {
            field: d2m.distill_loss(
                params,
                first(groups),
                jax.random.key(0),
                settings=settings,
                **CALL,
            )
            for field, settings in LEFT_OUT.items()
        }

    return both(gen_params)


@pytest.mark.parametrize("field", LEFT_OUT)
def test_a_term_of_weight_zero_is_left_out(losses_of_one_term, field):
    other = {"embedding": "prediction", "balance": "embedding"}[field]
    loss, terms = losses_of_one_term[field]
    settings = LEFT_OUT[field]
    weight = settings.balance if other == "prediction" else settings.embedding
    assert float(loss) == pytest.approx(weight * float(terms[other]))


def test_generate_is_pure_and_jittable(gen_params):
    labels = jnp.array([2, 0, 1, 1])
    make = jax.jit(d2m.generate, static_argnums=0)
    images = make(APPLY, gen_params, jax.random.key(3), labels)
    assert images.shape == (4, 8, 8, 1)
    close(
        images, d2m.generate(APPLY, gen_params, jax.random.key(3), labels), 1e-5
    )
    other = make(APPLY, gen_params, jax.random.key(4), labels)
    assert np.abs(other - images).max() > 1e-3
    # The same class, other noise.
    assert np.abs(images[2] - images[3]).max() > 1e-3
    parts = d2m.generate(
        APPLY, gen_params, jax.random.key(3), labels, at_once=3
    )
    close(parts, images, 1e-5)
    with pytest.raises(InputError, match="integers"):
        d2m.generate(
            APPLY, gen_params, jax.random.key(0), jax.nn.one_hot(labels, 3)
        )
    with pytest.raises(InputError, match="noise_size"):
        d2m.generate(lambda *_: None, gen_params, jax.random.key(0), labels)


def test_layers_that_are_not_there():
    D2m(layers="block1, block0").check_layers(["block0", "block1"])
    with pytest.raises(InputError, match=r"'block7'.*block0, block1"):
        D2m(layers="block7").check_layers(["block1", "block0"])


def test_a_generator_file_gives_the_same_images(gen_params, tmp_path):
    path = tmp_path / "generator.npz"
    kept = artifact.GeneratorArtifact(
        APPLY, gen_params, SCALE, {"class_names": ["a", "b", "c"]}
    )
    artifact.save_generator(path, kept)
    found = artifact.load_generator(path)
    assert found.apply == APPLY
    assert found.metadata["class_names"] == ["a", "b", "c"]
    numbers = sum(leaf.size for leaf in jax.tree.leaves(gen_params))
    assert found.size_in_images == numbers / 64
    jax.tree.map(np.testing.assert_array_equal, found.params, gen_params)
    np.testing.assert_allclose(found.preprocessing.mean, SCALE.mean)


@pytest.mark.parametrize("damage", ["half", "text", "shape", "names", "flip"])
def test_a_damaged_generator_file_is_refused(gen_params, tmp_path, damage):
    path = tmp_path / "generator.npz"
    names = ["a", "b"] if damage == "names" else ["a", "b", "c"]
    params = gen_params
    if damage == "shape":
        params = params | {"conv": {"kernel": jnp.zeros((3, 3, 1, 1))}}
    artifact.save_generator(
        path,
        artifact.GeneratorArtifact(
            APPLY, params, SCALE, {"class_names": names}
        ),
    )
    raw = bytearray(path.read_bytes())
    if damage == "half":
        path.write_bytes(raw[: len(raw) // 2])
    elif damage == "text":
        path.write_text("no generator")
    elif damage == "flip":
        # In a tensor's values: of the archive's own fields some are not read.
        leaf = max(jax.tree.leaves(gen_params), key=lambda leaf: leaf.size)
        raw[raw.index(np.asarray(leaf).tobytes()) + 5] ^= 255
        path.write_bytes(raw)
    with pytest.raises(InputError, match=r"is (damaged or )?no generator"):
        artifact.load_generator(path)


def test_a_missing_or_broken_generator(gen_params, tmp_path):
    with pytest.raises(InputError, match="there is no generator"):
        artifact.load_generator(tmp_path / "generator.npz")
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, gen_params)
    with pytest.raises(InputError, match="not finite"):
        artifact.save_generator(
            tmp_path / "generator.npz",
            artifact.GeneratorArtifact(
                APPLY, broken, SCALE, {"class_names": ["a", "b", "c"]}
            ),
        )
    assert not (tmp_path / "generator.npz").exists()
