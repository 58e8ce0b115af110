"""Folders of runs and pre-trainings, for the tests of their pages."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import artifact
from ddjax.data import preprocess
from ddjax.models import biggan

NAMES = ["<b>x", "dog & cat", "z"]
SELECTED = 20
T2 = 4.302652729911275  # Student's t: 97.5% of 2 degrees of freedom
TENSORS = {
    "norm0.scale": 4,
    "conv0.bias": 4,
    "conv0.kernel": 36,
    'head"><i>.kernel': 40,
}


def iadd_result(mean, count=3, **more):
    accuracies = [mean + 0.01 * i for i in range(-(count // 2), count // 2 + 1)]
    return {
        "mean": mean,
        "std": 0.01 if count > 1 else 0.0,
        "ci95": 0.025 if count > 1 else 0.0,
        "accuracies": accuracies,
        **more,
    }


def write_eval(workdir, **rows):
    (workdir / "eval.json").write_text(json.dumps(rows))


def make_iadd(parent, name="run<1>", names=("<b>x", "dog & cat")):
    """The folder of a run of IADD with every artefact, of two classes."""
    rng = np.random.default_rng(0)
    workdir = parent / name
    workdir.mkdir()
    images = rng.uniform(-0.2, 1.2, (4, 8, 8, 1)).astype(np.float32)
    labels = np.eye(2, dtype=np.float32)[[0, 0, 1, 1]]
    metadata = {
        "class_names": names,
        "method": "iadd",
        "model": "convnet",
        "selected_step": 20,
        "selected_as": "latest of all",
    }
    np.savez(
        workdir / "distilled.npz",
        images=images,
        labels=labels,
        learning_rate=np.float32(0.01),
        metadata=json.dumps(metadata),
    )
    np.savez(workdir / "initial.npz", images=images**2, labels=labels)
    config = {
        "config": {"iadd": {"name": "<script>alert(1)</script>", "span": 3}},
        "command": "python experiments/iadd.py --config='a<b'",
        "versions": {"jax": "0.10.2"},
        "device": "cpu <2>",
    }
    (workdir / "config.json").write_text(json.dumps(config))
    write_eval(
        workdir,
        distilled={"convnet": iadd_result(0.912), "<i>mlp": iadd_result(0.871)},
        random_real={"convnet": iadd_result(0.583)},
        full_data={"convnet": iadd_result(0.977, count=1)},
        best_of_looks={"convnet": iadd_result(0.934, looks=6, step=40)},
        **{"k<means": {"convnet": iadd_result(0.601)}},
    )
    lines = [
        {"step": step, "loss": 1.0 / step, "learning_rate": 0.1, "seconds": 2}
        for step in range(1, 51)
    ]
    for step in (20, 40):
        scores = {
            f"held_out_{metric}{end}": value
            for metric in ("accuracy", "balanced_accuracy")
            for end, value in (("", 0.8), ("_std", 0.01))
        }
        lines.append({"step": step} | scores)
        weights = {
            name: {"mean": 1.1, "std": 0.1, "min": 0.9, "max": 1.3}
            for name in TENSORS
        }
        lines.append({"step": step, "importance": weights})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text + '{"step": 51, "lo')
    difference = {}
    for name, size in TENSORS.items():
        start = rng.normal(size=size)
        if name == "conv0.bias":  # rounding and zeros, as before a norm
            start = 1e-12 * np.arange(size)
        difference[f"start_target/{name}"] = start.astype(np.float32)
        difference[f"student_target/{name}"] = (start / 4).astype(np.float32)
        difference[f"importance/{name}"] = np.exp(rng.normal(size=size)).astype(
            "f4"
        )
    np.savez(workdir / "difference.npz", **difference)
    return workdir


GAIN = {"mean": -0.123, "low": -0.2, "high": 0.01}


def matrix_content():
    """What a matrix.json holds."""

    def row(first, second, **more):
        return {
            "convnet": iadd_result(first, **more),
            "<i>vit": iadd_result(second, count=1),
        }

    scores = {
        "hlr": GAIN,
        "ior": GAIN | {"low": None},
        "lrs": {"mean": 0.3, "low": 0.2499, "high": 0.4},
        "ars": {"mean": 0.2, "low": None, "high": None},
    }
    return {
        "file": {
            "path": "/tmp/<b>.npz",
            "sha256": "5f" * 32,
            "shape": [20, 8, 8, 1],
            "classes": ["a"] * 10,
            "soft": True,
            "learning_rate": 0.02,
            "method": "<script>",
        },
        "ipc": 2,
        "rows": {
            "distilled": row(0.912, 0.5, learning_rate=0.02),
            "random_real": row(0.583, 0.4, learning_rate=0.05),
            "herding": row(0.6, 0.4),
            "full_data": row(0.977, 0.9, steps=1, learning_rate=0.1, cut=True),
        },
        "scores": {"convnet": scores, "<i>vit": scores},
        "config": {"evaluate.networks": 3},
        "command": "python experiments/evaluate.py --distilled='a<b'",
        "versions": {"jax": "0.10.2"},
        "device": "cpu <2>",
    }


def make_generator(path, names=NAMES):
    """A generator's file, of three classes."""
    module = biggan.Generator(
        num_classes=3,
        size=8,
        channels=1,
        width=4,
        noise=6,
        form=biggan.FOLDED,
    )
    shapes = jax.eval_shape(
        module.init,
        jax.random.key(0),
        jnp.zeros((1, 6)),
        jnp.zeros(1, jnp.int32),
    )["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes
    )
    artifact.save_generator(
        path,
        artifact.GeneratorArtifact(
            biggan.GenApply(module),
            params,
            preprocess.Standardiser(np.zeros(1, "f4"), np.ones(1, "f4")),
            {
                "class_names": names,
                "method": "D2M",
                "model": {"name": "convnet"},
                "selected_step": SELECTED,
            },
        ),
    )
    return path


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_pretraining(parent, generator, name="digits-<0>"):
    """The folder of a pre-training, with every artefact."""
    folder = parent / name
    (folder / "samples").mkdir(parents=True)
    shutil.copy(generator, folder / "generator.npz")
    shaped_by = {"gan.width": 4, "gan.augment": "<script>", "data": "abc"}
    (folder / "shaped_by.json").write_text(json.dumps(shaped_by))
    write_lines(
        folder / "metrics.jsonl",
        [
            {
                "step": step,
                "generator_loss": -step / 10,
                "critic_loss": 2.0,
                "real_score": 0.5,
                "fake_score": -0.5,
                "seconds": 2.0,
            }
            for step in range(10, 61, 10)
        ],
    )
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(3, dtype=np.int32), 10)
    for step in (30, 60):
        np.savez(
            folder / "samples" / f"{step:07d}.npz",
            images=rng.uniform(size=(30, 8, 8, 1)).astype(np.float32),
            labels=labels,
        )
    quality = {
        "classification_accuracy": [0.8, 0.9, 0.7],
        "frechet_distance": 0.01234,
        "features": "layer <i> of teacher 0",
        "images": 1284,
        "size_in_images": 7.5,
    }
    (folder / "quality.json").write_text(json.dumps(quality))
    return folder


def result(accuracies, **more):
    mean, std = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
    ci95 = T2 * std / math.sqrt(3)
    return {
        "mean": mean,
        "std": std,
        "ci95": ci95,
        "accuracies": accuracies,
        **more,
    }


BEFORE, AFTER, REAL = [0.6, 0.7, 0.5], [0.7, 0.9, 0.5], [0.55, 0.55, 0.55]


def make_scores():
    """Two numbers of images per class, two networks."""
    scores = {}
    for ipc, shift in (("1", -0.2), ("10", 0.0), ("50", 0.05)):
        for what, values in (
            ("distilled", AFTER),
            ("pretrained", BEFORE),
            ("random_real", REAL),
        ):
            scores[f"stored/{ipc}/{what}"] = {
                "convnet": result([value + shift for value in values]),
                "<i>mlp": result([value + shift - 0.1 for value in values]),
            }
    for what, values in (("distilled", AFTER), ("pretrained", BEFORE)):
        scores[f"stream/77/{what}"] = {
            "convnet": result([value + 0.08 for value in values])
        }
    scores["full_data"] = {"convnet": result([0.97, 0.98, 0.99])}
    return scores


def make_d2m(parent, generator, name="run<1>"):
    """The folder of a run of D2M, with every artefact."""
    workdir = parent / name
    (workdir / "generator").mkdir(parents=True)
    for name in ("pretrained", "distilled"):
        shutil.copy(generator, workdir / "generator" / f"{name}.npz")
    config = {
        "config": {"evaluate.metric": "accuracy", "d2m.rate": "<script>1"},
        "command": "python experiments/d2m.py --config='a<b'",
        "versions": {"jax": "0.10.2"},
        "device": "cpu <2>",
    }
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "eval.json").write_text(json.dumps(make_scores()))
    lines = [
        {
            "step": step,
            "loss": 1.0 / step,
            "embedding": 0.1,
            "prediction": 0.2,
            "gradient_norm": 3.0,
            "seconds": 2.0,
        }
        for step in range(1, 41)
    ]
    for step, score in ((0, 0.61), (20, 0.72), (40, 0.7)):
        for metric in ("accuracy", "balanced_accuracy"):
            lines.append(
                {
                    "step": step,
                    f"held_out_{metric}": score,
                    f"held_out_{metric}_std": 0.01,
                }
            )
    write_lines(workdir / "metrics.jsonl", lines)
    rng = np.random.default_rng(2)
    np.savez(
        workdir / "samples.npz",
        labels=np.repeat(np.arange(3), 10),
        **{
            kind: rng.uniform(size=(30, 8, 8, 1)).astype(np.float32)
            for kind in ("real", "pretrained", "distilled")
        },
    )
    return workdir
