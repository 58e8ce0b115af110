"""Every kind of file that ddjax reads, written by what writes it in a run and
read by what reads it there, and what can befall a file."""

from __future__ import annotations

import contextlib
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import artifact, checkpoint, files, iadd, metrics, trajectories
from ddjax.data import cache, preprocess
from ddjax.data.sources import Dataset, Splits
from ddjax.models import biggan
from ddjax.pages import artefacts
from ddjax.pages import gan as gan_page
from ddjax.pages import scores as pages_scores
from ddjax.runs import ceiling, workdir
from ddjax.runs import iadd as iadd_run
from ddjax.settings import Settings
from ddjax.types import InputError

NAMES = ["cat", "dog"]


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
      write: (folder, more) writes files, and with ``more`` what comes after
        them; called again it goes on.
      read: folder -> (what a run gets of the files, whether it had to fall
        back on something, or to make it again).
      damaged: glob of the files that are damaged.
    """

    write: Callable[[Path, bool], None]
    read: Callable[[Path], tuple[Any, bool]]
    damaged: str


def images_of(seed: int, count: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 4, 4, 1), np.uint8)


STANDARD = preprocess.Standardiser(np.zeros(1, "f4"), np.ones(1, "f4"))


def plain(value: Any) -> Any:
    """The same, comparable: arrays are their bytes, types and shapes."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.ndarray | jax.Array):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        value = np.asarray(value)
        return str(value.dtype), value.shape, value.tobytes()
    return repr(value)


# Checkpoints -----------------------------------------------------------------


def _state(step):
    images = np.arange(2000, dtype=np.float32) / 7 + step
    return {"images": images, "key": jax.random.key(step), "labels": None}


def _write_checkpoints(folder, more):
    kept = checkpoint.Checkpoints(folder)
    try:
        for step in (10, 20, 30) if more else (10, 20):
            if step > (kept.latest() or 0):
                kept.save(step, _state(step), step // 2)
    finally:
        kept.close()


def _read_checkpoints(folder):
    newest = max(int(p.name) for p in folder.iterdir() if p.name.isdecimal())
    kept = checkpoint.Checkpoints(folder)
    try:
        step, found = kept.restore(_state(0))
        if kept.rows(step) not in (0, step // 2):
            return "another number of rows", False
    finally:
        kept.close()
    whole = plain(found) == plain(_state(step))
    return "a state that was saved" if whole else "another", step != newest


# Teachers --------------------------------------------------------------------

_SHAPED = {"model.width": 4, "seed": 0}


def _write_teachers(folder, more):
    recorder = trajectories.Recorder(folder, dtype="float32", shaped_by=_SHAPED)
    for teacher in recorder.missing(3 if more else 2):
        rng = np.random.default_rng(teacher)
        snapshots = [
            {
                layer: {"kernel": rng.normal(size=(1, 6, 4)).astype("f4")}
                for layer in ("conv0", "conv1")
            }
            for _ in range(3)
        ]
        recorder.write([teacher], snapshots)


def _read_teachers(folder):
    trajectories.Recorder(folder, dtype="float32", shaped_by=_SHAPED)
    found = trajectories.Teachers(folder, 2)
    read = [found.snapshot(t, e) for t in range(2) for e in range(3)]
    return read, False


# Prepared data ---------------------------------------------------------------


class Stopped(Exception):
    """A preparation is interrupted."""


def _prepare(folder, *, stop=None, seed=0):
    """(cache, what was said); ``stop`` is the first image not to be read."""
    images = images_of(seed, 60)

    def read(begin, end):
        if stop is not None and begin >= stop:
            raise Stopped
        return [(str(i), images[i], i % 2) for i in range(begin, end)]

    source = cache.Source(
        {"train": cache.Records(60, read)}, tuple(NAMES), 1, "stamp"
    )
    said: list[str] = []
    found = cache.prepare(
        folder,
        lambda: source,
        identity={"data_dir": "nowhere"},
        form=cache.AS_THEY_ARE,
        say=said.append,
    )
    return found, said


def _write_cache(folder, more):
    _prepare(folder / "set")
    if more:
        _prepare(folder / "other", seed=1)


def _read_cache(folder):
    found, said = _prepare(folder / "set")
    pixels = np.load(found.images_path("train"), allow_pickle=False)
    parts = found.manifest["class_names"], found.manifest["splits"]
    return [pixels, found.labels("train"), *parts], bool(said)


def _write_partial(folder, more):
    every = cache._SAVE_EVERY
    cache._SAVE_EVERY = -1.0  # after every chunk
    try:
        with contextlib.suppress(Stopped):
            _prepare(folder / "set", stop=None if more else 8)
    finally:
        cache._SAVE_EVERY = every


def _write_zca(folder, more):
    for seed in range(1 + more):
        path = folder / f"zca-{seed}.npz"
        preprocess.fit("zca", images_of(seed), kept_in=path)


def _read_zca(folder):
    path = folder / "zca-0.npz"
    before = path.read_bytes()
    found = preprocess.fit("zca", images_of(0), kept_in=path)
    return found._asdict(), path.read_bytes() != before


# What comes out --------------------------------------------------------------


def _write_distilled(folder, more):
    images = images_of(int(more)) / np.float32(255)
    labels = np.eye(2, dtype="f4")[np.arange(8) % 2]
    metadata = {"class_names": NAMES, "method": "IADD", "scores": {}}
    artifact.save(
        folder / f"distilled{int(more)}.npz",
        artifact.Artifact(images, labels, 0.01, STANDARD, metadata),
    )


def _read_distilled(folder):
    return artifact.load(folder / "distilled0.npz")._asdict(), False


def _write_generator(folder, more):
    module = biggan.Generator(
        num_classes=2, size=4, channels=1, width=1, noise=2, form=biggan.FOLDED
    )
    shapes = jax.eval_shape(
        module.init,
        jax.random.key(0),
        jnp.zeros((1, 2)),
        jnp.zeros(1, jnp.int32),
    )["params"]
    rng = np.random.default_rng(int(more))
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype("f4"), shapes
    )
    found = artifact.GeneratorArtifact(
        biggan.GenApply(module), params, STANDARD, {"class_names": NAMES}
    )
    artifact.save_generator(folder / f"generator{int(more)}.npz", found)


def _read_generator(folder):
    path = folder / "generator0.npz"
    if not artifact.is_generator(path):
        raise AssertionError("taken for images")
    found = artifact.load_generator(path)
    return [found.params, repr(found.apply.module), found.metadata], False


def _write_look(folder, more):
    (folder / "looks").mkdir(exist_ok=True)
    images = images_of(int(more)) / np.float32(255)
    labels = np.eye(2, dtype="f4")[np.arange(8) % 2]
    data = iadd.Distilled(images, labels, np.float32(0.02))
    path = folder / "looks" / f"{int(more):07d}.npz"
    with files.atomic_write(path) as file:
        np.savez(file, **data._asdict())


def _read_look(folder):
    return iadd_run.load_look(folder, 0)._asdict(), False


def _write_initial(folder, more):
    for name in ("initial.npz", "difference.npz")[: 1 + more]:
        with files.atomic_write(folder / name) as file:
            np.savez(file, images=images_of(0), labels=np.arange(8))


def _read_initial(folder):
    path = folder / "initial.npz"
    return artefacts.read_npz(path, "images", "labels"), False


# Text ------------------------------------------------------------------------

_SETTINGS = Settings().changed({"minutes": 3.0})
_PLAN = {
    "asked": workdir.described(_SETTINGS, "iadd"),
    "fields": {"iadd.iterations": 216, "model.width": 12},
}


def _write_config(folder, more):
    part = Dataset(images_of(0), np.arange(8, dtype=np.int32) % 2, ("a", "b"))
    run = folder / f"run{int(more)}"
    splits = Splits(part, part, part)
    with workdir.claimed(_SETTINGS, run, "iadd", splits, "command", _PLAN):
        (run / "checkpoints" / "1").mkdir(parents=True, exist_ok=True)


def _read_config(folder):
    run = folder / "run0"
    complete = workdir.is_complete(_SETTINGS, run, "iadd")
    found = workdir.recorded(run)
    return [
        complete,
        found["config"],
        found["data"],
        workdir.planned(_SETTINGS, run),
    ], False


_ROWS = {2 * i: {"loss": i / 7, "held_out_accuracy": i / 9} for i in range(6)}


def _write_metrics(folder, more):
    log = metrics.Metrics(folder / "metrics.jsonl", 10)
    for step in list(_ROWS)[log.rows :] + [12, 14] * more:
        log.write(step, _ROWS.get(step, {"loss": 1.0}))


def _read_metrics(folder):
    """As a run does that goes on from the checkpoint of step 8."""
    path = folder / "metrics.jsonl"
    artefacts.read_metrics(path)
    metrics.Metrics(path, 8, least=5)
    # A field more is what a changed name of the checksum comes to.
    return [
        {name: row[name] for name in _ROWS[row["step"]]}
        for row in metrics.read(path)
    ], False


def _write_ceiling(folder, more):
    content = {
        "accuracy": [0.5, 0.75],
        "recall": [[0.5, None], [0.75, 0.25]],
        "steps": 500,
        "learning_rate": 0.03,
        "cut": False,
    }
    path = folder / f"full_data-{int(more)}.json"
    files.write_json(path, files.sealed(content))


def _read_ceiling(folder):
    found = ceiling.kept(folder / "full_data-0.json")
    if found is None:
        return "the ceiling", True  # trained again
    same = found[0].accuracy.tolist() == [0.5, 0.75] and found[1] == {
        "steps": 500,
        "learning_rate": 0.03,
        "cut": False,
    }
    return "the ceiling" if same else "another", False


_TABLE = {"distilled": {"convnet": {"mean": 0.925, "accuracies": [0.9, 0.95]}}}


def _write_scores(folder, more):
    files.write_json(folder / "eval.json", _TABLE)
    quality = {
        "classification_accuracy": [0.5],
        "frechet_distance": 3.5,
        "images": 100,
        "features": "some",
    }
    if more:
        files.write_json(folder / "quality.json", files.sealed(quality))


def _read_scores(folder):
    pages_scores.check_told(folder, {"scores": _TABLE}, [])
    return pages_scores.read_scores(folder / "eval.json"), False


def _write_quality(folder, more):
    _write_scores(folder, True)


def _read_quality(folder):
    return gan_page._read_quality(folder / "quality.json", "command"), False


KINDS = {
    "checkpoint": Kind(_write_checkpoints, _read_checkpoints, "20/**/*"),
    "teacher": Kind(_write_teachers, _read_teachers, "teacher_000[01].npy"),
    "teachers' manifest": Kind(
        _write_teachers, _read_teachers, "manifest.json"
    ),
    "prepared data": Kind(_write_cache, _read_cache, "set/*.npy"),
    "their manifest": Kind(_write_cache, _read_cache, "set/manifest.json"),
    "half prepared data": Kind(_write_partial, _read_cache, "set.partial/*"),
    "prepared ZCA": Kind(_write_zca, _read_zca, "zca-0.npz"),
    "distilled.npz": Kind(_write_distilled, _read_distilled, "distilled0.npz"),
    "generator": Kind(_write_generator, _read_generator, "generator0.npz"),
    "a look": Kind(_write_look, _read_look, "looks/0000000.npz"),
    "initial, difference": Kind(_write_initial, _read_initial, "initial.npz"),
    "config.json": Kind(_write_config, _read_config, "run0/config.json"),
    "metrics.jsonl": Kind(_write_metrics, _read_metrics, "metrics.jsonl"),
    "ceiling": Kind(_write_ceiling, _read_ceiling, "full_data-0.json"),
    "eval.json": Kind(_write_scores, _read_scores, "eval.json"),
    "quality.json": Kind(_write_quality, _read_quality, "quality.json"),
}


# Damage ----------------------------------------------------------------------


def damage(path: Path, how: str, rng: np.random.Generator) -> str:
    """Does something to a file, and says what."""
    content = bytearray(path.read_bytes())
    at = int(rng.integers(max(1, len(content))))
    if how == "truncate":
        content = content[:at]
    elif how == "zero":
        end = min(len(content), at + int(rng.integers(1, 513)))
        content[at:end] = bytes(end - at)
    elif content:
        content[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    return f"{how} {path.name} at {at}"


DAMAGE = ("truncate", "zero", "flip")


def outcome(kind: Kind, folder: Path, expected: Any) -> str:
    """What reading a damaged file came to: "refused", "made good",
    "unchanged", or what must not be."""
    try:
        found, mended = kind.read(folder)
    except InputError as error:
        told = str(error)
        one = told.strip() and "Traceback" not in told and len(told) < 700
        return "refused" if one else f"WRONG: a refusal like {told!r}"
    except Exception as error:
        return f"TRACEBACK: {type(error).__name__}: {error}"
    if plain(found) != expected:
        return "WRONG: another result"
    return "made good" if mended else "unchanged"


def damaged(
    kind: Kind, folder: Path, cases: int, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """(what was done, what came of it) of some cases.

    Args:
      kind: of the files.
      folder: where to; made and emptied here.
      cases: how many; the ways of damage take turns.
      rng: decides files and places.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "whole").mkdir(parents=True)
    kind.write(folder / "whole", False)
    # Whether something can be read from where it lies is no question here.
    shutil.copytree(folder / "whole", folder / "read")
    expected = plain(kind.read(folder / "read")[0])
    found = []
    for case in range(cases):
        copy = folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder / "whole", copy)
        paths = sorted(path for path in copy.glob(kind.damaged))
        paths = [path for path in paths if path.is_file()]
        path = paths[int(rng.integers(len(paths)))]
        what = damage(path, DAMAGE[case % 3], rng)
        found.append((what, outcome(kind, copy, expected)))
    return found


# Full disks ------------------------------------------------------------------


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def full(
    kind: Kind, folder: Path, cases: int, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """(the limit, what came of it) of writes that do not fit on the disk.

    Returns:
      "told" where one sentence said that the disk is full, all of before was
      there still, and writing again gave what an undisturbed one gives;
      "fitted" where nothing was too long.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("before", "after"):
        (folder / name).mkdir(parents=True)
        kind.write(folder / name, False)
    kind.write(folder / "after", True)
    largest = max(map(len, _contents(folder / "after").values()))
    old, new = (
        _value(kind, folder / name, folder) for name in ("before", "after")
    )
    found = []
    for case in range(cases):
        # A folder each: threads of a write that failed may still be at it.
        copy = folder / f"copy{case}"
        shutil.copytree(folder / "before", copy)
        size = int(rng.integers(1, largest))
        found.append((f"{size} bytes", _filled(kind, copy, size, old, new)))
    return found


def _value(kind, folder, scratch):
    """Of a copy: reading may mend."""
    copy = scratch / "value"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    return plain(kind.read(copy)[0])


def _filled(kind, folder, size, old, new):
    try:
        with workdir.refusals(), limited(size):
            kind.write(folder, True)
        told = False
    except InputError as error:
        told = "the disk is full" in str(error)
        if not told:
            return f"WRONG: {error}"
    except Exception as error:
        return f"TRACEBACK: {type(error).__name__}: {error}"
    if told and _value(kind, folder, folder.parent) not in (old, new):
        return "WRONG: what was there is gone"
    kind.write(folder, True)
    if _value(kind, folder, folder.parent) != new:
        return "WRONG: another result afterwards"
    left = [path for path in folder.rglob("*.partial") if path.is_file()]
    if left:
        return f"WRONG: {left[0].name} is left"
    return "told" if told else "fitted"
