"""The accelerator kit's parts that need no data: precision and times.

Each takes a ``Scale`` and a ``Clock`` and returns what its part of the JSON
says; ``absent`` there has a sentence for each figure that is missing.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import unroll
from accelerator_scale import (
    Clock,
    Scale,
    Watch,
    compiled,
    turns,
)

from ddjax import (
    augment,
    evaluate,
    iadd,
    importance,
    losses,
    parallel,
    training,
    trajectories,
)
from ddjax.settings import DSA, Iadd
from ddjax.types import Batch, Segment

Result = dict[str, Any]


def on_cpu() -> bool:
    """Whether the default device is a CPU."""
    return jax.default_backend() == "cpu"


def first_line(error: Exception) -> str:
    """What an error says, as it fits into a sentence."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]


# Precision -------------------------------------------------------------------

BOUND = 1e-3
PRECISIONS = {
    "default": "the backend's own: bfloat16 on a TPU, TF32 on a GPU",
    "high": "tensorfloat32, or bfloat16 in three passes",
    "highest": "float32",
}


def segment_gradient(size, steps, student=None):
    """Gradient of the IADD loss, with the default W, of one unrolled student.

    Args:
      size: as in ``unroll.SIZES``.
      steps: J.
      student: ``iadd.dtype``; by default that of the arguments.

    Returns:
      (function of images, learning rate, start and target, the gradient to the
      first two; those arguments in float32).
    """
    start, target, images, labels = unroll.problem(size, steps)
    module = unroll.network(size)
    settings = Iadd(
        inner_steps=steps, augment="none", dtype=student or "float32"
    )
    one_hot = np.eye(unroll.CLASSES)[labels]

    def loss(images, rate, start, target):
        labels = jnp.asarray(one_hot, images.dtype)
        end, _ = iadd.unroll_student(
            iadd.Distilled(images, labels, rate),
            start,
            jax.random.key(0),
            apply_fn=training.apply_fn_of(module),
            settings=settings,
        )
        weights = importance.weights(
            settings.importance, None, Segment(start, target), end
        )
        return losses.iadd_loss(end, start, target, weights)

    arguments = images, np.float32(0.01), start, target
    return jax.grad(loss, argnums=(0, 1)), arguments


@functools.lru_cache(maxsize=8)
def made(size, steps, student, precision):
    """``segment_gradient`` compiled for the default device; kept, since two
    parts want some of them.

    Args:
      size: items of a size of ``unroll.SIZES``.
      steps: J.
      student: ``iadd.dtype``, or None.
      precision: of products.

    Returns:
      (program, its arguments on the device).
    """
    function, arguments = segment_gradient(dict(size), steps, student)
    arguments = jax.device_put(arguments, jax.devices()[0])
    with jax.default_matmul_precision(precision):
        return compiled(function, *arguments, cpu=on_cpu()), arguments


def reference(size, steps) -> np.ndarray:
    """The gradient to the images in float64 on the CPU."""
    cpu = jax.devices("cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        function, arguments = segment_gradient(size, steps)
        arguments = jax.tree.map(
            lambda x: jax.device_put(np.asarray(x, np.float64), cpu), arguments
        )
        found, _ = compiled(function, *arguments, cpu=True)(*arguments)
        return np.asarray(found)


def differences(found: Any, true: np.ndarray) -> dict[str, float]:
    """How far a gradient is from the true one, by three measures."""
    found = np.asarray(found, np.float64)
    norms = np.linalg.norm(found), np.linalg.norm(true)
    return {
        "largest": float(np.abs(found - true).max() / np.abs(true).max()),
        "l2": float(np.linalg.norm(found - true) / norms[1]),
        "cosine": float(np.vdot(found, true) / max(np.prod(norms), 1e-300)),
    }


def precision(scale: Scale, clock: Clock) -> Result:
    """Which precision of products an unroll of J = 10 x 10 images needs."""
    size, steps = scale.network | {"batch": 10}, 10
    result: Result = {"size": size, "steps": steps, "bound": BOUND}
    rows, absent = [], []
    result |= {"rows": rows, "absent": absent}
    try:
        jax.devices("cpu")
    except RuntimeError as error:
        absent.append(
            "Precision was not measured, because JAX offers no CPU for the "
            "reference in float64: add cpu to JAX_PLATFORMS "
            f"({first_line(error)})."
        )
        return result
    with Watch() as watch:
        true = reference(size, steps)
    names = list(PRECISIONS)
    if on_cpu():
        result["alike"] = (
            "A CPU's products are float32 whichever of "
            f"{', '.join(names)} is asked for: measured once."
        )
        names = names[:1]
    asked = [*((name, None) for name in names), ("default", "bfloat16")]
    # The first is measured in any case: without it the reference is in vain.
    needed, reference_seconds = -np.inf, watch.seconds
    for name, student in asked:
        what = f"{name}{', student in bfloat16' if student else ''}"
        if why := clock.lacks(needed, what):
            absent.append(why)
            continue
        try:
            with Watch() as watch:
                program, arguments = made(
                    tuple(size.items()), steps, student, name
                )
                found, _ = program(*arguments)
                row = {"precision": name, "student": "float32"}
                row |= differences(found, true)
        except (TypeError, ValueError, RuntimeError, NotImplementedError) as e:
            absent.append(f"{what}: does not work here ({first_line(e)})")
            continue
        needed = reference_seconds
        rows.append(row | ({"student": "bfloat16"} if student else {}))
    result["needs"] = needs(rows)
    return result


def needs(rows: list[Result]) -> str | None:
    """The first precision, from the fastest on, whose relative L2 error is
    within the bound; None where none is, or an earlier one was not measured."""
    found = {r["precision"]: r for r in rows if r["student"] == "float32"}
    for name in PRECISIONS:
        if name not in found:
            return None
        if found[name]["l2"] < BOUND:
            return name
    return None


# Times -----------------------------------------------------------------------

_AGREE = 1e-2  # of the largest gradient, as in unroll.py


def torch_device() -> tuple[Any, str]:
    """(device of PyTorch like JAX's, "") or (None, why there is none)."""
    try:
        import torch
    except ImportError:
        return None, "PyTorch is not installed"
    platform = jax.devices()[0].platform
    if platform == "cpu":
        return torch.device("cpu"), ""
    if platform == "gpu" and torch.cuda.is_available():
        return torch.device("cuda"), ""
    return None, f"this PyTorch has no {platform.upper()}"


def _allow_tf32(allowed: bool) -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def _agreement(size, steps, place, run) -> float:
    """Largest difference of both sides' gradients, in the largest; both in
    float32."""
    if not on_cpu():
        _allow_tf32(False)
        with jax.default_matmul_precision("highest"):
            run, _ = unroll.jax_side(size, steps)
    _, ours = run()
    _, theirs = unroll.torch_side(size, steps, place)[0]()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def unroll_row(size, steps, clocks, absent: list[str]) -> Result | None:
    """Loss and gradient of one segment, by us and by PyTorch in turn."""
    what = f"unroll of J = {steps} x {size['batch']}"
    row: Result = {"steps": steps, "batch": size["batch"]}
    with Watch() as watch:
        ours, _ = unroll.jax_side(size, steps)
        ours()
    row["compile"] = watch.seconds
    runs = {"jax": ours}
    device, why = torch_device()
    if device is not None:
        try:
            place = unroll.Placement(device=device)
            error = _agreement(size, steps, place, ours)
            row["difference"] = error
            if error < _AGREE:
                _allow_tf32(True)
                runs["torch"] = unroll.torch_side(size, steps, place)[0]
                runs["torch"]()
            else:
                why = (
                    f"its gradient differs by {error:.1e} of the largest, so "
                    "that times would not compare"
                )
        except RuntimeError as error:  # out of memory, most likely
            runs.pop("torch", None)
            why = f"it stopped ({first_line(error)})"
    if why:
        absent.append(f"{what}: nothing of PyTorch, {why}")
    found = turns(runs, *clocks)
    if found is None:
        absent.append(f"{what}: the time ended before the third round")
        return None
    row |= found
    if "torch" in found:
        row["ratio"] = found["jax"]["median"] / found["torch"]["median"]
    return row


def _images(scale: Scale, count: int) -> tuple[np.ndarray, np.ndarray]:
    shape = (count, scale.side, scale.side, 3)
    images = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    return images, np.arange(count) % unroll.CLASSES


def teacher_row(scale: Scale, clocks) -> Result | None:
    """Steps a second of teachers side by side, as many as a run trains."""
    steps, batch = scale.teacher
    module = unroll.network(scale.network)
    networks = parallel.side_by_side()
    images, labels = _images(scale, 4 * batch)
    one_hot = np.eye(unroll.CLASSES, dtype=np.float32)[labels]
    data = Batch(jnp.asarray(images), jnp.asarray(one_hot))
    recipe = training.Recipe(
        epochs=1,
        batch_size=batch,
        augment=augment.parse(DSA),
        epoch_steps=steps,
    )
    how = {"recipe": recipe, "learning_rate": 0.01}
    keys = jax.random.split(jax.random.key(0), networks)
    carry = trajectories.begin(keys, images.shape[1:], module, **how)

    def run():
        jax.block_until_ready(
            trajectories.advance(carry, keys, 0, data, module, **how)
        )

    with Watch() as watch:
        run()
    found = turns({"epoch": run}, *clocks)
    if found is None:
        return None
    return {
        "networks": networks,
        "steps": steps,
        "batch": batch,
        "compile": watch.seconds,
        "epoch": found["epoch"],
        "per_second": networks * steps / found["epoch"]["median"],
    }


def evaluation_row(scale: Scale, clocks) -> Result | None:
    """Ten networks, trained on ten images and tested."""
    epochs, tests = scale.evaluation
    module = unroll.network(scale.network)
    images, labels = _images(scale, unroll.CLASSES)
    sample = evaluate.stored(images, np.eye(10, dtype=np.float32)[labels])
    test = Batch(*_images(scale, tests))
    recipe = training.Recipe(epochs, 256, 0.9, 5e-4, True, augment.parse(DSA))

    def run():
        evaluate.evaluate(
            jax.random.key(0),
            sample,
            test,
            module,
            recipe=recipe,
            learning_rate=0.01,
            num_networks=10,
        )

    with Watch() as watch:
        run()
    found = turns({"all": run}, *clocks)
    if found is None:
        return None
    return {
        "networks": 10,
        "epochs": epochs,
        "tests": tests,
        "compile": watch.seconds,
        "all": found["all"],
    }


def times(scale: Scale, clock: Clock) -> Result:
    """How long an unroll, a teacher's epoch and an evaluation take.

    The first unroll, the teacher and the evaluation come first; the longer
    unrolls have what is left.
    """
    absent: list[str] = []
    result: Result = {"size": scale.network, "unroll": [], "absent": absent}
    result["torch"] = torch_device()[1] or "installed"
    per_image = 0.0
    pieces = [scale.unrolls[0], "teacher", "evaluation", *scale.unrolls[1:]]
    for number, piece in enumerate(pieces):
        # A piece with as much as others behind it may take its part only.
        own = Clock(clock.left() / min(len(pieces) - number, 3))
        if isinstance(piece, str):
            what = {"teacher": "teachers' steps", "evaluation": "evaluation"}
            measure = {"teacher": teacher_row, "evaluation": evaluation_row}
            if why := clock.lacks(0, what[piece]):
                absent.append(why)
            elif (found := measure[piece](scale, (own, clock))) is None:
                absent.append(
                    f"{what[piece]}: the time ended before the third round"
                )
            else:
                result[piece] = found
            continue
        steps, batch = piece
        need = per_image * steps * batch
        if why := clock.lacks(need, f"unroll of J = {steps} x {batch}"):
            absent.append(why)
            continue
        size = scale.network | {"batch": batch}
        row = unroll_row(size, steps, (own, clock), absent)
        if row:
            result["unroll"].append(row)
            sides = sum(row[s]["max"] for s in ("jax", "torch") if s in row)
            # Five rounds with those before the timing; compiling takes as
            # long again at least, but not in proportion.
            per_image = 5 * sides / (steps * batch)
    return result
