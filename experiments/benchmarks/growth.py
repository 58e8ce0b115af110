"""How the cost of an update, of teachers and of tests grows, drawn on a page.

    python experiments/benchmarks/growth.py --out=runs/growth

From one base (ConvNet-3 of width 32 at 32 pixels, J = 10 steps of 10 images,
10 classes) one quantity at a time is changed, and the time of a run, the time
to compile it and XLA's plan of its temporary memory are measured. The exponent
of a curve is its slope between its two largest values on logarithmic scales:
1 where cost is in proportion, 0 where there is none. Points are kept in
growth.json as they are made, and measured again only where it is removed.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import launch
import numpy as np
from accelerator_memory import planned_bytes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ddjax import evaluate, files, iadd, models, training, trajectories
from ddjax.pages import figures
from ddjax.pages.page import ENVIRONMENT, file_size
from ddjax.settings import Iadd
from ddjax.types import Batch, Segment

BASE = {
    "steps": 10,  # J
    "batch": 10,  # images of a student's step
    "images": 10,  # distilled
    "classes": 10,
    "width": 32,
    "side": 32,
    "segments": 1,
}
_REPEATS = 5
# What is compiled and what it is called with.
Program = tuple[Callable[..., Any], tuple[Any, ...]]


class Axis(NamedTuple):
    """One quantity that grows.

    Attributes:
      title: what it is.
      values: that it takes.
      program: makes what is timed, of one value.
      why: where the cost is not in proportion, the reason.
    """

    title: str
    values: tuple[int, ...]
    program: Callable[[int], Program]
    why: str = ""


def network(width: int, side: int, classes: int) -> Any:
    """The ConvNet that leaves 4 x 4 pixels."""
    depth = int(math.log2(side)) - 2
    return models.build(
        "convnet", num_classes=classes, width=width, depth=depth
    )


def update(**changes: int) -> Program:
    """One update of IADD, of images and segments from random numbers."""
    size = BASE | changes
    module = network(size["width"], size["side"], size["classes"])
    shape = (size["side"], size["side"], 3)
    keys = jax.random.split(jax.random.key(0), 3)
    params = models.init_params(module, keys[0], shape)
    labels = jnp.arange(size["images"]) % size["classes"]
    settings = Iadd(
        inner_steps=size["steps"],
        batch_size=0 if size["batch"] == size["images"] else size["batch"],
        segments=size["segments"],
    )
    state = iadd.init_state(
        keys[1],
        iadd.Distilled(
            jax.random.normal(keys[2], (size["images"], *shape)),
            jax.nn.one_hot(labels, size["classes"]),
            0.01,
        ),
        params,
        settings,
    )
    moved = jax.tree.map(lambda leaf: leaf + 0.01, params)
    segments = jax.tree.map(
        lambda leaf: jnp.stack([leaf] * size["segments"]),
        Segment(params, moved),
    )
    return (
        functools.partial(
            iadd.update,
            apply_fn=training.apply_fn_of(module),
            settings=settings,
        ),
        (state, segments),
    )


def _random_data(count: int, classes: int = 10) -> Batch:
    key = jax.random.key(3)
    return Batch(
        jax.random.normal(key, (count, BASE["side"], BASE["side"], 3)),
        jax.nn.one_hot(jnp.arange(count) % classes, classes),
    )


def teachers(count: int) -> Program:
    """An epoch of so many teachers side by side, of 256 images."""
    module = network(BASE["width"], BASE["side"], BASE["classes"])
    keys = jax.random.split(jax.random.key(0), count)
    data = _random_data(256)
    how = {
        "recipe": training.Recipe(epochs=1, batch_size=128),
        "learning_rate": 0.01,
    }

    def epoch(keys, data):
        carry = trajectories.begin(keys, data.images.shape[1:], module, **how)
        return trajectories.advance(carry, keys, 0, data, module, **how)

    return epoch, (keys, data)


def tests(count: int) -> Program:
    """So many networks trained on ten images for 20 epochs, and tested."""
    module = network(BASE["width"], BASE["side"], BASE["classes"])
    data = _random_data(10)
    test = _random_data(256)
    answers = np.asarray(test.labels.argmax(1))

    def run(key):
        return evaluate.evaluate(
            key,
            evaluate.stored(data.images, data.labels),
            Batch(test.images, answers),
            module,
            recipe=training.Recipe(epochs=20, batch_size=10),
            learning_rate=0.01,
            num_networks=count,
        )

    return run, (jax.random.key(1),)


AXES = {
    "steps": Axis(
        "steps J of a student", (5, 10, 20, 40), lambda n: update(steps=n)
    ),
    "batch": Axis(
        "images of a student's step",
        (10, 20, 40, 80),
        lambda n: update(batch=n, images=n),
    ),
    "images": Axis(
        "distilled images, ten of them a step",
        (20, 200, 2000),
        lambda n: update(images=n),
        "a step gathers the images that it takes, and the update moves all",
    ),
    "classes": Axis(
        "classes, of 200 images, ten of them a step",
        (2, 20, 200),
        lambda n: update(classes=n, images=200),
        "only the last layer has a part for each class",
    ),
    "width": Axis(
        "channels of the network",
        (16, 32, 64, 128),
        lambda n: update(width=n),
        "a layer takes as many channels as it gives, so its products grow by "
        "the square",
    ),
    "side": Axis(
        "pixels of an image's side, a layer more each",
        (16, 32, 64),
        lambda n: update(side=n),
        "an image has the square of its side in pixels",
    ),
    "segments": Axis(
        "segments of an update", (1, 2, 4), lambda n: update(segments=n)
    ),
    "teachers": Axis("teachers trained for 2 steps", (1, 2, 4, 8), teachers),
    "networks": Axis(
        "networks trained for 20 epochs and tested", (1, 2, 5, 10), tests
    ),
}


def measure(name: str, value: int) -> dict[str, Any]:
    """One point of one curve."""
    function, arguments = AXES[name].program(value)
    row: dict[str, Any] = {"axis": name, "value": value}
    if name in ("teachers", "networks"):  # they compile their parts themselves
        program = function
    else:
        since = time.perf_counter()
        program = jax.jit(function).lower(*arguments).compile()
        row["compile"] = time.perf_counter() - since
        row["bytes"] = (planned_bytes(program) or {}).get("temp")
    spent = []
    for _ in range(_REPEATS + 1):  # the first is not counted
        since = time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(program(*arguments)))
        spent.append(time.perf_counter() - since)
    spent = spent[1:]
    return row | {
        "seconds": statistics.median(spent),
        "least": min(spent),
        "most": max(spent),
    }


def exponent(rows: list[dict[str, Any]], what: str) -> float | None:
    """Slope between the two largest values, both scales logarithmic."""
    known = [row for row in rows if row.get(what)]
    if len(known) < 2:
        return None
    one, other = known[-2:]
    return math.log(other[what] / one[what]) / math.log(
        other["value"] / one["value"]
    )


@figures.style()
def drawn(name: str, rows: list[dict[str, Any]]) -> list[Any]:
    """Seconds and bytes over the axis' values."""
    kinds = {
        "seconds": ("seconds", figures.BLUE),
        "compile": ("seconds to compile", figures.ORANGE),
        "bytes": ("temporary bytes", figures.GREEN),
    }
    found = []
    for panel in (("seconds", "compile"), ("bytes",)):
        figure = Figure((3.4, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log", xlabel=AXES[name].title)
        said = []
        for what in panel:
            known = [row for row in rows if row.get(what)]
            if not known:
                continue
            x = [row["value"] for row in known]
            y = [row[what] for row in known]
            label, color = kinds[what]
            axes.plot(x, y, color=color, marker="o", ms=3, label=label)
            axes.set_xticks(x, map(str, x), minor=False)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_minor_locator(figures.NullLocator())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(
                figures.PLAIN
                if what != "bytes"
                else lambda v, _: file_size(round(v))
            )
            said.append(f"{label} from {y[0]:.3g} to {y[-1]:.3g}")
        if said:
            axes.legend()
            alt = f"{AXES[name].title}: {'; '.join(said)}"
            found.append(figures.svg(figure, f"{name}{len(found)}", alt))
    return found


def write_page(path: Path, found: list[dict[str, Any]]) -> None:
    """The page of all points."""
    sections = []
    for name, axis in AXES.items():
        rows = [row for row in found if row["axis"] == name]
        if not rows:
            continue
        slopes = {w: exponent(rows, w) for w in ("seconds", "bytes", "compile")}
        sections.append(
            {
                "name": name,
                "title": axis.title,
                "why": axis.why,
                "figures": drawn(name, rows),
                "slopes": {
                    w: slope for w, slope in slopes.items() if slope is not None
                },
                "rows": [
                    (
                        row["value"],
                        "{seconds:.3g} ({least:.3g} to {most:.3g})".format(
                            **row
                        ),
                        f"{row['compile']:.1f}" if "compile" in row else "",
                        file_size(row["bytes"]) if row.get("bytes") else "",
                    )
                    for row in rows
                ],
            }
        )
    template = Path(__file__).with_name("growth.html").read_text()
    text = ENVIRONMENT.from_string(template).render(
        title="How cost grows",
        device=f"{jax.devices()[0].device_kind}, {jax.default_backend()}",
        jax=jax.__version__,
        base=BASE,
        sections=sections,
    )
    with files.atomic_write(path) as file:
        file.write(text.encode())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/growth"))
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "growth.json"
    found = json.loads(kept.read_text()) if kept.exists() else []
    for name in args.axes:
        for value in AXES[name].values:
            known = [(row["axis"], row["value"]) for row in found]
            if (name, value) not in known:
                found.append(measure(name, value))
                files.write_json(kept, found)
        rows = [row for row in found if row["axis"] == name]
        slopes = [
            f"{what} ** {slope:.2f}"
            for what in ("seconds", "bytes", "compile")
            if (slope := exponent(rows, what)) is not None
        ]
        print(f"{AXES[name].title:48} {', '.join(slopes)}", flush=True)
    write_page(args.out / "growth.html", found)
    print(args.out / "growth.html")


if __name__ == "__main__":
    sys.exit(launch.refusing(main))
