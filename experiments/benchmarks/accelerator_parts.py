"""The accelerator kit's parts that need no data: precision, times, memory.

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
    planned_bytes,
    turns,
)

from ddjax import (
    augment,
    evaluate,
    files,
    iadd,
    importance,
    losses,
    models,
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
      student: dtype of the student's parameters and what it sees; by default
        that of the arguments. The loss is taken in the arguments' own.

    Returns:
      (function of images, learning rate, start and target, the gradient to the
      first two; those arguments in float32).
    """
    start, target, images, labels = unroll.problem(size, steps)
    module = models.build(
        "convnet",
        num_classes=unroll.CLASSES,
        width=size["width"],
        depth=size["depth"],
    )
    settings = Iadd(inner_steps=steps, augment="none")
    one_hot = np.eye(unroll.CLASSES)[labels]

    def loss(images, rate, start, target):
        own, inner = images.dtype, student or images.dtype
        cast = functools.partial(jax.tree.map, lambda x: x.astype(inner))
        data = iadd.Distilled(cast(images), jnp.asarray(one_hot, inner), rate)
        end, _ = iadd.unroll_student(
            data,
            cast(start),
            jax.random.key(0),
            apply_fn=training.apply_fn_of(module),
            settings=settings,
        )
        end = jax.tree.map(lambda x: x.astype(own), end)
        weights = importance.weights(
            settings.importance, None, Segment(start, target), end
        )
        return losses.iadd_loss(end, start, target, weights)

    arguments = images, np.float32(0.01), start, target
    return jax.grad(loss, argnums=(0, 1)), arguments


@functools.lru_cache(maxsize=8)
def made(size, steps, student=None, precision="default"):
    """``segment_gradient`` compiled for the default device; kept, since two
    parts want some of them.

    Args:
      size: items of a size of ``unroll.SIZES``.
      steps: J.
      student: dtype.
      precision: of products.

    Returns:
      (program, its arguments on the device).
    """
    function, arguments = segment_gradient(dict(size), steps, student)
    arguments = jax.device_put(arguments, jax.devices()[0])
    with jax.default_matmul_precision(precision):
        return compiled(function, *arguments, cpu=on_cpu()), arguments


def reference(size, steps) -> np.ndarray:
    """The gradient to the images in float64 on the CPU.

    Raises:
      RuntimeError: JAX has no CPU here.
    """
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
        with Watch() as watch:
            true = reference(size, steps)
    except RuntimeError as error:
        absent.append(
            "Precision was not measured, because JAX offers no CPU for the "
            "reference in float64: add cpu to JAX_PLATFORMS "
            f"({first_line(error)})."
        )
        return result
    names = list(PRECISIONS)
    if on_cpu():
        result["alike"] = (
            "A CPU's products are float32 whichever of "
            f"{', '.join(names)} is asked for: measured once."
        )
        names = names[:1]
    asked = [*((name, None) for name in names), ("default", jnp.bfloat16)]
    needed = 0.0  # of the reference, in float64, nothing follows
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
        needed = watch.seconds
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


def _agreement(size, steps, device, run) -> float:
    """Largest difference of both sides' gradients, in the largest; both in
    float32."""
    if not on_cpu():
        _allow_tf32(False)
        with jax.default_matmul_precision("highest"):
            run, _ = unroll.jax_side(size, steps)
    _, ours = run()
    _, theirs = unroll.torch_side(size, steps, device)[0]()
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
            error = _agreement(size, steps, device, ours)
            row["difference"] = error
            if error < _AGREE:
                _allow_tf32(True)
                runs["torch"] = unroll.torch_side(size, steps, device)[0]
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


def _images(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (count, 32, 32, 3)).astype(np.float32)
    return images, np.arange(count) % unroll.CLASSES


def teacher_row(scale: Scale, clocks) -> Result | None:
    """Steps a second of teachers side by side, as many as a run trains."""
    steps, batch = scale.teacher
    module = models.build(
        "convnet", num_classes=unroll.CLASSES, width=scale.width, depth=3
    )
    networks = parallel.networks_at_once() * parallel.device_count()
    images, labels = _images(4 * batch)
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
    module = models.build(
        "convnet", num_classes=unroll.CLASSES, width=scale.width, depth=3
    )
    images, labels = _images(unroll.CLASSES)
    sample = evaluate.stored(images, np.eye(10, dtype=np.float32)[labels])
    test = Batch(*_images(tests))
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
    result: Result = {"width": scale.width, "unroll": [], "absent": absent}
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


# Memory ----------------------------------------------------------------------


def memory(scale: Scale, clock: Clock) -> Result:
    """What an unroll of ten images needs, as J grows."""
    device = jax.devices()[0]
    absent: list[str] = []
    rows: list[Result] = []
    needed = 0.0
    if (device.memory_stats() or {}).get("peak_bytes_in_use") is None:
        absent.append(
            "Peaks were not measured: this device counts none; XLA's plans "
            "stand alone."
        )
    for steps in scale.lengths:
        if why := clock.lacks(needed, f"J = {steps}"):
            absent.append(why)
            continue
        size = scale.network | {"batch": 10}
        with Watch() as watch:
            program, arguments = made(tuple(size.items()), steps)
            row = {"steps": steps, **(planned_bytes(program) or {})}
            row["peak"] = _peak(program, arguments, device, steps, absent)
        needed = watch.seconds
        rows.append(row)
    return {"width": scale.width, "rows": rows, "absent": absent}


def _peak(program, arguments, device, steps, absent) -> int | None:
    """Bytes at the peak of one call, beyond those that were held before; None
    where the device counts none, or something before it had a higher peak."""
    before = device.memory_stats() or {}
    if before.get("peak_bytes_in_use") is None:
        return None
    jax.block_until_ready(program(*arguments))
    after = device.memory_stats()["peak_bytes_in_use"]
    if after <= before["peak_bytes_in_use"]:
        absent.append(
            f"J = {steps}: no peak, since something earlier in this process "
            "(compiling counts) had a higher one"
        )
        return None
    return after - before["bytes_in_use"]


def device_bytes() -> int | None:
    """What a program may have: of an accelerator the limit of JAX's own pool,
    of a CPU the machine's memory; None where an accelerator does not tell."""
    if on_cpu():
        return files.memory()
    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit")


def update_bytes(scale: Scale, ipc: int, batch: int) -> dict[str, int] | None:
    """XLA's plan of one whole update of IADD, compiled and not run.

    Args:
      scale: network, classes and J.
      ipc: images per class.
      batch: images of a student's step; 0 for all.
    """
    classes, width, steps, _ = scale.plan
    module = models.build("convnet", num_classes=classes, width=width, depth=3)
    settings = Iadd(ipc=ipc, inner_steps=steps, batch_size=batch)
    count = ipc * classes
    params = jax.eval_shape(
        lambda: models.init_params(module, jax.random.key(0), (32, 32, 3))
    )

    def begin(images, labels, params):
        variables = {
            "images": images,
            "labels": labels,
            "learning_rate": jnp.zeros(()),
            "importance": importance.init(settings.importance, params),
        }
        return iadd.IaddState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key(0),
            scale=jnp.ones(()),
            opt_state=iadd.make_optimizer(settings).init(variables),
            **variables,
        )

    state = jax.eval_shape(
        begin,
        jax.ShapeDtypeStruct((count, 32, 32, 3), jnp.float32),
        jax.ShapeDtypeStruct((count, classes), jnp.float32),
        params,
    )
    segments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype),
        Segment(params, params),
    )
    update = functools.partial(
        iadd.update, apply_fn=training.apply_fn_of(module), settings=settings
    )
    return planned_bytes(compiled(update, state, segments, cpu=on_cpu()))


def images(scale: Scale, clock: Clock) -> Result:
    """The most images per class of CIFAR-100 whose update fits the device.

    From the largest number down to the first that fits; a smaller number needs
    no more. What time is left goes to the other numbers, for their bytes.
    """
    limit = device_bytes()
    classes, width, steps, part = scale.plan
    absent: list[str] = []
    rows: list[Result] = []
    result: Result = {
        "classes": classes,
        "width": width,
        "steps": steps,
        "limit": limit,
        "rows": rows,
        "largest": {},
        "absent": absent,
    }
    if limit is None:
        absent.append("This device does not tell how much memory it has.")
        return result
    needed = 0.0

    def measure(name, batch, ipc) -> Result | str:
        nonlocal needed
        if why := clock.lacks(needed, f"{ipc} a class, batch {name}"):
            return why
        with Watch() as watch:
            try:
                plan = update_bytes(scale, ipc, batch)
            except (RuntimeError, MemoryError) as error:
                plan = {"failed": first_line(error)}
        needed = watch.seconds
        if plan is None:
            return "This backend tells no plan of memory."
        row = {"batch": name, "ipc": ipc, **plan}
        row["fits"] = plan.get("total", limit + 1) <= limit
        rows.append(row)
        return row

    batches = {"all": 0, str(part): part}
    for name, batch in batches.items():
        for ipc in reversed(scale.ipcs):
            found = measure(name, batch, ipc)
            if isinstance(found, str):
                absent.append(f"{found} (so no largest number, batch {name})")
                break
            if found["fits"]:
                result["largest"][name] = ipc
                break
        else:
            result["largest"][name] = 0
    for name, batch in batches.items():
        for ipc in scale.ipcs:
            if (name, ipc) in [(row["batch"], row["ipc"]) for row in rows]:
                continue
            if isinstance(measure(name, batch, ipc), str):
                break
    rows.sort(key=lambda row: (row["batch"], row["ipc"]))
    return result
