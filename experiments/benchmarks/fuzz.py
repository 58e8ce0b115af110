"""Whatever a user may bring: it works, or one sentence says what is wrong.

    python experiments/benchmarks/fuzz.py --cases=2000

Hypothesis draws settings, shapes, labels, image files and artefact bytes, as
many cases of each. ``tests/test_fuzz.py`` draws a few of the same. Prints how
many worked and how many were refused, and the smallest case of what did
neither.
"""

from __future__ import annotations

import argparse
import collections
import functools
import io
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import fault_kinds
import hypothesis.configuration
import jax
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ddjax import api, models
from ddjax.data import classes, decode
from ddjax.data.arrays import check_arrays
from ddjax.settings import Settings, fields
from ddjax.types import InputError

# Or it leaves a folder wherever it is called.
hypothesis.configuration.set_hypothesis_home_dir(
    Path(tempfile.gettempdir()) / f"ddjax-hypothesis-{os.getuid()}"
)

REFUSED, WORKED = "refused", "worked"


def told(action: Callable[[], None]) -> str:
    """Does something: "worked", or "refused" in one sentence.

    Raises:
      AssertionError: the refusal is none for a person.
    """
    try:
        with warnings.catch_warnings(action="error"):
            action()
    except (InputError, decode.Unreadable) as error:
        sentence = str(error)
        assert sentence.strip(), "a refusal without a word"
        assert "Traceback" not in sentence, sentence
        assert len(sentence) < 2000, sentence
        return REFUSED
    return WORKED


# Settings --------------------------------------------------------------------

_ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 70),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=3))),
    st.tuples(st.floats(), st.floats()),
)


@st.composite
def _values(draw):
    found = {}
    for field in draw(
        st.lists(st.sampled_from(fields()), min_size=1, max_size=4)
    ):
        value = st.one_of(st.just(field.default), _ANYTHING)
        if isinstance(field.default, str):
            known = ["accuracy", "zca", "1,2", "crop", "mlp,mlp", "a,a", ","]
            value = st.one_of(value, st.sampled_from(known))
        found[field.name] = draw(value)
    if draw(st.integers(0, 9)) == 9:
        found[draw(st.text(max_size=8))] = draw(_ANYTHING)
    return found


def check_settings(values: dict[str, Any]) -> str:
    """What is let through means the same when it comes back from a file."""

    def action():
        made = Settings.of(values)
        hash(made)
        flat = json.loads(json.dumps(made.flat()))
        assert json.loads(json.dumps(Settings.of(flat).flat())) == flat

    return told(action)


# Labels ----------------------------------------------------------------------

_DTYPES = st.one_of(
    st.sampled_from(["u1", "f4", "f8", "i4", "i8", "u8", "f2", "?"]),
    st.sampled_from(["c8", "U3", "S2", "M8[s]", "O"]),
)


def _arrays(most_axes):
    shapes = hnp.array_shapes(
        min_dims=0, max_dims=most_axes, min_side=0, max_side=4
    )
    kinds = _DTYPES.filter(lambda kind: kind != "O")
    return kinds.flatmap(lambda kind: hnp.arrays(kind, shapes))


@st.composite
def _data(draw):
    """Images and labels, mostly such as belong together."""
    named = {}
    for part in draw(st.sampled_from([["train"], ["train", "test"]])):
        count = draw(st.sampled_from([4, 5, 6, 9, 12, 0]))
        shape = (count, 4, 3, draw(st.sampled_from([1, 1, 3, 3, 2])))
        images = st.one_of(
            *[hnp.arrays("u1", shape)] * 3,
            hnp.arrays("f4", shape, elements=st.floats(0, 1, width=32)),
            hnp.arrays("f4", shape[:3], elements=st.floats(width=32)),
            _arrays(5),
        )
        labels = st.one_of(
            *[st.just(np.arange(count) % 2)] * 3,
            hnp.arrays("i4", count),
            hnp.arrays("u8", count),
            _arrays(2),
        )
        named[f"{part}_images"] = draw(images)
        named[f"{part}_labels"] = draw(labels)
    if draw(st.booleans()):
        names = st.one_of(
            st.just(np.array(["a", "b"])),
            hnp.arrays("U3", st.integers(0, 4)),
            _arrays(2),
        )
        named["class_names"] = draw(names)
    if draw(st.integers(0, 9)) == 9:
        del named[draw(st.sampled_from(sorted(named)))]
    return named


def check_data(named: dict[str, np.ndarray]) -> str:
    """What is let through are images with labels of classes."""

    def action():
        found = check_arrays(named, "here: ")
        k = len(found.class_names)
        for images, labels in found.parts.values():
            assert images.dtype == np.uint8 and images.ndim == 4
            assert images.shape[3] in (1, 3) and images.size
            assert labels.dtype == np.int32 and len(labels) == len(images)
            assert labels.min() >= 0 and labels.max() < k
            one_hot = classes.one_hot(labels, k)
            assert (one_hot.sum(1) == 1).all()
        _, labels = found.parts["train"]
        classes.ByClass(labels, k)
        classes.per_class_indices(jax.random.key(0), labels, k, 2)

    return told(action)


# Shapes ----------------------------------------------------------------------

_SHAPES = st.tuples(
    st.sampled_from(["convnet", "mlp", *models.names()]),
    st.tuples(
        *[st.sampled_from([32, 8, 16, 28, 33, 40, 5, 2, 1, 0])] * 2,
        st.sampled_from([1, 3, 0]),
    ),
    st.sampled_from([2, 3, 10, 200, 1]),
    st.sampled_from([1, 2, 4, 64, 1000, -1]),
    st.sampled_from([1, 2, 3, 8, 0]),
)


def check_shapes(case: tuple) -> str:
    """A network takes images of a shape, and says k things of each."""
    name, shape, num_classes, width, depth = case

    def action():
        how = {"width": width} | ({"depth": depth} if name == "convnet" else {})
        module = models.build(name, num_classes=num_classes, **how)
        params = jax.eval_shape(
            lambda: models.init_params(module, jax.random.key(0), shape)
        )
        logits, _ = jax.eval_shape(
            lambda p, x: module.apply({"params": p}, x),
            params,
            jax.ShapeDtypeStruct((2, *shape), np.float32),
        )
        assert logits.shape == (2, num_classes)

    return told(action)


# Files -----------------------------------------------------------------------

_EDITS = st.lists(
    st.tuples(
        st.sampled_from(["cut", "set", "flip", "insert", "repeat"]),
        st.integers(0, 1 << 20),
        st.binary(min_size=1, max_size=9),
    ),
    max_size=4,
)


def edited(content: bytes, edits: Sequence[tuple[str, int, bytes]]) -> bytes:
    """Bytes after some edits, each at a place that wraps around."""
    found = bytearray(content)
    for how, at, more in edits:
        at %= max(1, len(found))
        if how == "cut":
            del found[at:]
        elif how == "set":
            found[at : at + len(more)] = more
        elif how == "flip" and found:
            found[at] ^= 1 << (more[0] % 8)
        elif how == "insert":
            found[at:at] = more
        elif how == "repeat":
            found[at:at] = found[at : at + 64 * more[0]]
    return bytes(found)


_WAYS = (
    ("PNG", "RGB"),
    ("PNG", "L"),
    ("PNG", "P"),
    ("PNG", "RGBA"),
    ("PNG", "I;16"),
    ("JPEG", "RGB"),
    ("JPEG", "L"),
    ("JPEG", "CMYK"),
    ("GIF", "P"),
    ("BMP", "RGB"),
    ("TIFF", "RGB"),
    ("WEBP", "RGB"),
)


def _picture(way: int, height: int, width: int) -> bytes:
    kind, mode = _WAYS[way]
    rng = np.random.default_rng(way)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    file = io.BytesIO()
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 1 << 16, (height, width), "u2"))
    image = image if image.mode == mode else image.convert(mode)
    image.save(file, kind)
    return file.getvalue()


_PICTURES = st.tuples(
    st.builds(
        _picture,
        st.integers(0, len(_WAYS) - 1),
        st.integers(1, 40),
        st.integers(1, 40),
    ),
    _EDITS,
    st.sampled_from([1, 3]),
    st.sampled_from([0, 1, 8, 33]),
    st.sampled_from(["center", "stretch"]),
)


def check_pictures(case: tuple) -> str:
    """A picture is decoded to the form asked for, or is unreadable."""
    content, edits, channels, size, crop = case

    def action():
        content_ = edited(content, edits)
        header = decode.header(content_, upright=True)
        found = decode.decode(
            content_, channels=channels, size=size, crop=crop, upright=True
        )
        side = (size, size) if size else (header.height, header.width)
        assert found.dtype == np.uint8 and found.shape == (*side, channels)

    return told(action)


@functools.cache
def _stored() -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fault_kinds.KINDS["distilled.npz"].write(folder, False)
        fault_kinds.KINDS["generator"].write(folder, False)
        return (
            (folder / "distilled0.npz").read_bytes(),
            (folder / "generator0.npz").read_bytes(),
        )


_JSON = st.recursive(
    st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["class_names", "config", "generator", "scores"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)


@st.composite
def _artefacts(draw):
    """The bytes of an artefact, edited or with other arrays in it."""
    content = draw(st.sampled_from(_stored()))
    if draw(st.booleans()):
        return edited(content, draw(_EDITS))
    with np.load(io.BytesIO(content)) as file:
        # Where a checksum stands, it alone would be what is refused.
        unsealed = set(file.files) - {"checksum", "format_version"}
        arrays = {name: file[name] for name in sorted(unsealed)}
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted(arrays)))
        change = draw(st.sampled_from(["array", "json", "told", "gone"]))
        if change == "array":
            arrays[name] = draw(_arrays(4))
        elif change == "gone" and len(arrays) > 1:
            del arrays[name]
        elif change == "json":
            arrays["metadata"] = np.array(json.dumps(draw(_JSON)))
        else:
            told = json.loads(str(arrays.get("metadata", "{}")))
            if isinstance(told, dict):
                names = ["class_names", "config", "generator", "learning_rate"]
                told[draw(st.sampled_from([*names, "scores"]))] = draw(_JSON)
            arrays["metadata"] = np.array(json.dumps(told))
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def check_artefacts(content: bytes) -> str:
    """What ``ddjax.load`` opens can be used."""

    def action():
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "distilled.npz"
            path.write_bytes(content)
            run = api.load(path)
            assert len(run.class_names) > 0
            assert isinstance(repr(run), str) and run.learning_rate > 0
            assert isinstance(run.scores, dict)
            if run._generator is None:
                assert run.inputs.shape == run.images.shape
                assert run.labels.shape == (
                    len(run.images),
                    len(run.class_names),
                )
                assert run.show().size
            else:
                assert run._ipc > 0

    return told(action)


PROPERTIES = {
    "settings": (_values(), check_settings),
    "labels": (_data(), check_data),
    "shapes": (_SHAPES, check_shapes),
    "image files": (_PICTURES, check_pictures),
    "artefact bytes": (_artefacts(), check_artefacts),
}


def fuzz(name: str, cases: int, *, seed: int | None = None) -> dict[str, int]:
    """Draws cases of one property.

    Args:
      name: of ``PROPERTIES``.
      cases: how many.
      seed: other cases; None: always the same.

    Returns:
      {"worked" or "refused": how many}.

    Raises:
      Exception: of the smallest case that did neither.
    """
    _stored()  # not while Hypothesis watches for other draws
    strategy, check = PROPERTIES[name]
    counts: collections.Counter[str] = collections.Counter()

    @hypothesis.settings(
        max_examples=cases,
        derandomize=seed is None,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def run(case):
        counts[check(case)] += 1

    if seed is not None:
        run = hypothesis.seed(seed)(run)
    run()
    return dict(counts)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each property; 1 where one does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000, help="of all")
    parser.add_argument("--seed", type=int, default=None)
    args = parser.parse_args(argv)
    wrong = 0
    for name in PROPERTIES:
        begin = time.process_time()
        try:
            counts = fuzz(name, args.cases // len(PROPERTIES), seed=args.seed)
        except BaseException:
            traceback.print_exc()
            counts, wrong = {"WRONG": 1}, 1
        seconds = time.process_time() - begin
        print(f"{name:16} {counts} {seconds:.0f} s of CPU", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
