"""The accelerator kit's parts on memory: how an unroll grows with J, and how
many images fit.

As in ``accelerator_parts``, whose gradient is the one that grows.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from accelerator_parts import Result, first_line, made, on_cpu
from accelerator_scale import Clock, Scale, Watch, compiled

from ddjax import files, iadd, importance, models, training
from ddjax.settings import Iadd
from ddjax.types import Segment


def planned_bytes(program: Any) -> dict[str, int] | None:
    """What XLA's plan of memory says: "temp", and "total" with arguments and
    results; None where the backend tells nothing."""
    plan = program.memory_analysis()
    if plan is None:
        return None
    total = (
        plan.temp_size_in_bytes
        + plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
    )
    return {"temp": plan.temp_size_in_bytes, "total": total}


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
            program, arguments = made(
                tuple(size.items()), steps, None, "default"
            )
            row = {"steps": steps, **(planned_bytes(program) or {})}
            row["peak"] = _peak(program, arguments, device, steps, absent)
        needed = watch.seconds
        rows.append(row)
    return {"size": scale.network, "rows": rows, "absent": absent}


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
    plan = scale.plan
    module = models.build(
        "convnet",
        num_classes=plan.classes,
        width=plan.width,
        depth=plan.depth,
    )
    settings = Iadd(ipc=ipc, inner_steps=plan.steps, batch_size=batch)
    count, shape = ipc * plan.classes, (plan.side, plan.side, 3)
    params = jax.eval_shape(
        lambda: models.init_params(module, jax.random.key(0), shape)
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
        jax.ShapeDtypeStruct((count, *shape), jnp.float32),
        jax.ShapeDtypeStruct((count, plan.classes), jnp.float32),
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
    absent: list[str] = []
    rows: list[Result] = []
    result: Result = {
        **scale.plan._asdict(),
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

    part = scale.plan.batch
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
