"""Published BigGANs: their images, and what is no BigGAN.

tests/data/biggan was written by experiments/benchmarks/torch_biggan.py, an
independent BigGAN in PyTorch, whose own images stand there beside its
checkpoints.
"""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from small import door

from ddjax import tensors
from ddjax.models import published
from ddjax.types import InputError

STORED = Path(__file__).parent / "data" / "biggan"
FILES = {
    "brock32": "brock32.pth",
    "brock128": "brock128.old.pth",
    "studio32": "studio32.pth",
    "studio128": "studio128.safetensors",
}
SHAPES = {
    "brock32": dict(noise=6, embedding=0, attention=0, size=32, width=2),
    "brock128": dict(noise=12, embedding=3, attention=16, size=128, width=1),
    "studio32": dict(noise=16, embedding=5, attention=16, size=32, width=2),
    "studio128": dict(noise=12, embedding=3, attention=16, size=128, width=1),
}


@functools.partial(jax.jit, static_argnums=0)
def images_of(module, params, noise, labels):
    return module.apply({"params": params}, noise, labels)


def state_of(name):
    found = tensors.read(STORED / FILES[name])
    return found.get("state_dict", found)


@pytest.fixture(scope="module")
def expected():
    with np.load(STORED / "expected.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", FILES)
def test_images_are_those_of_pytorch(name, expected):
    found = published.generator(tensors.read(STORED / FILES[name]))
    for field, value in SHAPES[name].items():
        assert getattr(found.module, field) == value, field
    assert found.layout.lower().startswith(name[:5])
    noise, labels = (expected[f"{name}/{key}"] for key in ("noise", "labels"))
    images = np.asarray(images_of(found.module, found.params, noise, labels))
    assert images.std() > 0.05
    for part, made in {
        "pixels": images[:, ::4, ::4],
        "rows": images.mean(1),
        "columns": images.mean(2),
    }.items():
        np.testing.assert_allclose(made, expected[f"{name}/{part}"], atol=4e-6)


def test_classes_are_rows_in_the_order_asked_for(expected):
    for name in ("brock32", "studio32"):
        state = state_of(name)
        whole = published.generator(state)
        part = published.with_classes(whole, [2, 0])
        assert part.module.num_classes == 2
        noise = expected[f"{name}/noise"]
        there = images_of(whole.module, whole.params, noise, np.array([0, 2]))
        here = images_of(part.module, part.params, noise, np.array([1, 0]))
        np.testing.assert_allclose(here, there, atol=1e-6)


@pytest.fixture(scope="module")
def oracle():
    pytest.importorskip("torch")
    return door("benchmarks/torch_biggan")


LIVE = {
    # Of the shapes above, so that nothing is compiled anew.
    **{name: {} for name in FILES},
    # The embedding in all norms, and all of the noise in the first layer.
    "brock32 together": dict(embedding=5, split=False, attention=16),
}


@pytest.mark.parametrize("name", LIVE)
def test_images_are_those_of_pytorch_now(oracle, name, tmp_path):
    import torch

    case = oracle.CASES[name.split()[0]]._replace(**LIVE[name])
    model = oracle.made(case, seed=7)
    path = tmp_path / case.file
    oracle.save(case, model, path)
    noise, labels = oracle.noise_of(case, 2), torch.tensor([1, 0])
    found = published.generator(tensors.read(path))
    images = images_of(
        found.module, found.params, noise.numpy(), labels.numpy()
    )
    np.testing.assert_allclose(
        images, oracle.images_of(model, noise, labels), atol=4e-6
    )
    assert found.module.hierarchical == (case.split or not case.embedding)


def same(one, other):
    assert one.module == other.module
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        one.params,
        other.params,
    )


def test_other_ways_to_store_the_same():
    state = state_of("brock32")
    whole = published.generator(state)
    same(
        published.generator({f"module.{k}": v for k, v in state.items()}), whole
    )
    # Sums of moments over five batches, as while they are accumulated.
    summed = {}
    for name, value in state.items():
        place, _, last = name.rpartition(".")
        if last.startswith("stored_"):
            summed[f"{place}.bn.{last}"] = 5 * value
            summed[f"{place}.bn.accumulation_counter"] = np.full(1, 5.0, "f4")
        else:
            summed[name] = value
    same(published.generator(summed), whole)
    # Kernels that are divided already.
    state = state_of("studio32")
    whole = published.generator(state)
    plain, later = {}, {}
    for name, value in state.items():
        place, _, last = name.rpartition(".")
        if last == "weight_orig":
            u, v = (state[f"{place}.weight_{each}"] for each in "uv")
            norm = u @ value.reshape(len(value), -1) @ v
            plain[f"{place}.weight"] = value / norm
            later[f"{place}.parametrizations.weight.original"] = value
            later[f"{place}.parametrizations.weight.0._u"] = u
            later[f"{place}.parametrizations.weight.0._v"] = v
        elif last not in ("weight_u", "weight_v"):
            plain[name] = later[name] = value
    same(published.generator(later), whole)
    same(published.generator(plain), whole)


def without(name):
    return lambda state: state.pop(name)


def put(name, *shape, dtype="f4"):
    return lambda state: state.update({name: np.ones(shape, dtype)})


def twice(state):
    for name in list(state):
        if name.startswith("blocks.2.0."):
            state[name.replace("blocks.2.0.", "blocks.5.0.")] = state[name]


def more_blocks(state):
    for name in list(state):
        if name.startswith("blocks.0.0."):
            for number in range(7, 12):
                other = name.replace("blocks.0.", f"blocks.{number}.")
                state[other] = state[name]


@pytest.mark.parametrize(
    "change, sentence",
    [
        (without("bn4.running_var"), r"no tensor bn4\.running_var"),
        (without("conv2d5.weight_u"), r"no tensor conv2d5\.weight_u"),
        (
            without("blocks.1.0.bn2.gain.weight_v"),
            r"no tensor blocks\.1\.0\.bn2\.gain\.weight_v",
        ),
        (put("blocks.0.0.conv2d4.bias", 3), r"no place.*: blocks.*conv2d4"),
        (put("linear0.bias", 3), r"linear0\.bias is float32 of shape \(3,\)"),
        (put("bn4.bias", 8, dtype="i4"), r"bn4\.bias is int32"),
        (put("shared.weight", 3, 6), "take 9 numbers, and its embedding has 6"),
        (put("blocks.1.0.conv2d1.weight_orig", 8, 9, 3, 3), r"shape \(81\)"),
        (put("conv2d5.bias", 0), r"conv2d5\.bias is float32 of shape \(0,\)"),
        (
            lambda state: state["linear0.weight_v"].fill(0),
            "linear0 has a spectral norm of 0",
        ),
        (twice, "more than one place"),
        (more_blocks, "8 blocks, which make images of 1024 pixels"),
        (lambda state: state.clear(), "no dict of named tensors"),
        (put("step", dtype="f4"), r"no place .*: step"),
    ],
)
def test_what_is_no_biggan_is_refused(change, sentence):
    state = dict(state_of("studio32"))
    change(state)
    with pytest.raises(InputError, match=sentence):
        published.generator(state)


def test_other_checkpoints_are_refused():
    for checkpoint, sentence in (
        (np.ones(3), "no dict of named tensors"),
        ({"a": 1}, "no dict of named tensors"),
        ({"a": np.ones(3)}, "of no known layout"),
        ({"generator.gen_z.weight_orig": np.ones(3)}, "is a BigGAN-deep"),
    ):
        with pytest.raises(InputError, match=sentence):
            published.generator(checkpoint)
    found = published.generator(state_of("brock32"))
    for rows, sentence in (
        ([0, 3], r"class 3 is wrong in --classes: .*0\.\.2"),
        ([1, 1], "class 1 is twice in --classes"),
    ):
        with pytest.raises(InputError, match=sentence):
            published.with_classes(found, rows)


def test_channels_of_another_biggan():
    state = dict(state_of("brock128"))
    # The layout of 32 pixels has no halving.
    for name in list(state):
        if name.startswith(("blocks.3.", "blocks.4.")):
            del state[name]
    with pytest.raises(InputError, match=r"have \[16, 16, 8, 4\] channels"):
        published.generator(state)
