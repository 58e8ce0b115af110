"""What the accelerator kit measures, how large, and for how long."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import jax

SHARES = {
    "memory": 12,
    "precision": 14,
    "times": 22,
    "images": 16,
    "cifar10": 36,
}
"""The parts in their order, and what each has of the time that is left for it
and those behind it. Memory is first: a peak tells something only while no
earlier part has had a higher one."""


class Update(NamedTuple):
    """The update whose memory is planned: of CIFAR-100 where nothing is cut.

    Attributes:
      classes: k.
      width: of the ConvNet.
      depth: of it.
      side: of the images, in pixels.
      steps: J.
      batch: images of a step, beside all of them.
    """

    classes: int = 100
    width: int = 128
    depth: int = 3
    side: int = 32
    steps: int = 20
    batch: int = 100


class Scale(NamedTuple):
    """How large everything is.

    Attributes:
      name: "full", or what the cut version is called.
      width: of the ConvNet in all parts but ``images`` and ``cifar10``.
      side: of the images there, in pixels.
      depth: of the ConvNet there.
      unrolls: (J, images a step) that are timed.
      lengths: J whose memory is planned.
      teacher: (steps, images a step) of a teacher's epoch.
      evaluation: (epochs, test images) of ten networks.
      plan: the update of the search for the largest number of images per
        class; not cut for want of time, since it is only compiled.
      ipcs: among which is searched.
      stand_in: (training, test) images of each class of the made data set.
      size: of configs/cifar10.py.
      cuts: {dotted name: value} that part ``cifar10`` has in place of the
        config's; of the published setting only how often it is looked at.
      every: updates from checkpoint to checkpoint.
      quick: whether ``cifar10`` is compiled with few optimisations, as where
        compiling would take all of its time.
    """

    name: str = "full"
    width: int = 128
    side: int = 32
    depth: int = 3
    unrolls: tuple[tuple[int, int], ...] = ((10, 10), (50, 10), (30, 100))
    lengths: tuple[int, ...] = (10, 20, 50, 100)
    teacher: tuple[int, int] = (50, 256)
    evaluation: tuple[int, int] = (1000, 10_000)
    plan: Update = Update()
    ipcs: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    stand_in: tuple[int, int] = (5000, 1000)
    size: str = "full"
    cuts: Mapping[str, Any] = {"evaluate.looks": 50}
    every: int = 20
    quick: bool = False

    @property
    def network(self) -> dict[str, int]:
        """In the terms of ``unroll.SIZES``, but for the batch."""
        return dict(
            side=self.side, channels=3, width=self.width, depth=self.depth
        )


def scale_of(platform: str, minutes: float) -> Scale:
    """Everything in full on an accelerator; what a CPU has time for on one."""
    if platform != "cpu":
        return Scale()
    if minutes >= 30:
        return Scale(
            "CPU, half an hour and more",
            width=32,
            teacher=(10, 256),
            evaluation=(100, 1000),
            stand_in=(1000, 100),
            size="small",
            cuts={"evaluate.looks": 30},
            every=10,
        )
    return Scale(
        "CPU, few minutes",
        width=16,
        side=16,
        depth=2,
        teacher=(4, 64),
        evaluation=(20, 200),
        stand_in=(100, 20),
        size="small",
        cuts={
            "data.preprocess": "standardise",
            "model.width": 8,
            "teacher.augment": "none",
            "iadd.augment": "none",
            "evaluate.augment": "none",
            "teacher.count": 2,
            "teacher.epochs": 3,
            "teacher.batch_size": 64,
            "iadd.inner_steps": 5,
            "iadd.batch_size": 10,
            "evaluate.epochs": 20,
            "evaluate.looks": 30,
            "evaluate.look_networks": 1,
        },
        every=5,
        quick=True,
    )


class Clock:
    """The time that a part, or a piece of one, may take."""

    def __init__(self, seconds: float):
        """Starts it."""
        self._end = time.perf_counter() + seconds

    def left(self) -> float:
        """Seconds; below 0 where it is over."""
        return self._end - time.perf_counter()

    def lacks(self, seconds: float, what: str) -> str | None:
        """Why something is not begun, or None where there is time for it."""
        if (left := self.left()) > seconds:
            return None
        return (
            f"{what}: not measured, the time was short "
            f"({max(left, 0):.0f} s left, about {seconds:.0f} s needed)"
        )


class Watch:
    """How long something took.

    Attributes:
      seconds: in all; 0 until it has ended.
    """

    seconds = 0.0

    def __enter__(self):
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *error):
        self.seconds = time.perf_counter() - self._begin


_LEAST, _MOST = 3, 15


def turns(
    runs: Mapping[str, Callable[[], Any]], own: Clock, whole: Clock
) -> dict[str, dict[str, float]] | None:
    """Times functions in turn, so that what the machine does meets all alike.

    Args:
      runs: {name: function}.
      own: ends the rounds behind the third.
      whole: of the part; ends all.

    Returns:
      {name: median, min and max seconds, repeats}; None where there were not
      three rounds.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(_MOST):
        if (whole if number < _LEAST else own).left() <= 0:
            break
        for name, run in runs.items():
            with Watch() as watch:
                run()
            found[name].append(watch.seconds)
    if len(next(iter(found.values()))) < _LEAST:
        return None
    return {
        name: {
            "median": statistics.median(seconds),
            "min": min(seconds),
            "max": max(seconds),
            "repeats": len(seconds),
        }
        for name, seconds in found.items()
    }


def compiled(function: Callable[..., Any], *arguments: Any, cpu: bool) -> Any:
    """Compiled for these arguments, or for arrays of their shapes.

    Args:
      function: to compile.
      *arguments: arrays, or their shapes.
      cpu: it is for a CPU, where XLA spends most of the time on machine code
        that is better than one call needs; its plan of buffers is made before
        that, and is the same.
    """
    lowered = jax.jit(function).lower(*arguments)
    if not cpu:
        return lowered.compile()
    options: dict[str, Any] = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }
    if metadata.version("jaxlib").startswith("0.10."):
        # Later ones do not know it, and stop at what they do not know.
        options["xla_cpu_use_fusion_emitters"] = False
    return lowered.compile(compiler_options=options)
