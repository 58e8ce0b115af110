"""The accelerator kit's page: what accelerator.json says, for a reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddjax.files import atomic_write
from ddjax.pages.page import ENVIRONMENT, file_size, percent

Part = dict[str, Any]
_NONE = "\N{EN DASH}"


def write(path: Path, found: dict[str, Any]) -> Path:
    """Writes the page, whole or not at all, and returns its path.

    Args:
      path: of the page.
      found: what accelerator.json holds.
    """
    sections = []
    for name, (title, tell) in _SECTIONS.items():
        if part := found["parts"].get(name):
            said, tables, *code = tell(part)
            sections.append(
                {
                    "name": name,
                    "title": title,
                    "said": said,
                    "tables": [
                        {"head": head, "rows": rows}
                        for head, rows in tables
                        if rows
                    ],
                    "code": code[0] if code else [],
                    "absent": part["absent"],
                    "seconds": part["seconds"],
                }
            )
    template = Path(__file__).with_name("accelerator.html").read_text()
    machine = found["machine"]
    text = ENVIRONMENT.from_string(template).render(
        title="What this device does",
        machine=machine,
        scale=found["scale"],
        cut=machine["platform"] == "cpu",
        sections=sections,
    )
    with atomic_write(path) as file:
        file.write(text.encode())
    return path


def _size(count: int | None) -> str:
    return _NONE if count is None else file_size(count)


def _seconds(found: Part | None) -> str:
    """Median (smallest to largest)."""
    if not found:
        return _NONE
    return "{median:.3g} s ({min:.3g} to {max:.3g})".format(**found)


def _network(size: Part) -> str:
    return (
        f"ConvNet-{size['depth']} of width {size['width']} at {size['side']} "
        "pixels"
    )


def _memory(part: Part):
    said = [
        f"One unroll of ten images, {_network(part['size'])}, and its "
        "gradient. "
        "Temporary bytes are XLA's plan; the peak is the device's own count "
        "during one call, beyond what was held before."
    ]
    rows = [
        (f"J = {row['steps']}", _size(row.get("temp")), _size(row["peak"]))
        for row in part["rows"]
    ]
    return said, [(("Steps", "Temporary, planned", "Peak, counted"), rows)]


def _precision(part: Part):
    size = part["size"]
    said = [
        f"Gradient of the IADD loss to the images through J = {part['steps']} "
        f"steps of {size['batch']} images, {_network(size)}, against "
        "float64 on the CPU.",
        "A ReLU that falls on its other side moves a few values by up to a "
        "hundredth, so the largest difference says little; the relative L2 "
        "error is what decides.",
    ]
    said += [part["alike"]] if "alike" in part else []
    if "needs" in part:
        needs = part["needs"]
        said.append(
            f'The unroll needs the precision "{needs}": it is the first whose '
            f"relative L2 error is below {part['bound']:g}."
            if needs
            else "No precision that was measured in order has a relative L2 "
            f"error below {part['bound']:g}."
        )
    rows = [
        (
            row["precision"],
            row["student"],
            f"{row['l2']:.2e}",
            f"{row['largest']:.2e}",
            f"{row['cosine']:.8f}",
        )
        for row in part["rows"]
    ]
    head = (
        "Products",
        "Student in",
        "Relative L2 error",
        "Largest, of the largest",
        "Cosine",
    )
    return said, [(head, rows)]


def _times(part: Part):
    said = [
        f"{_network(part['size'])}, at the default "
        "precision of both sides (TF32 allowed on a GPU). The sides take "
        "turns; medians, with the smallest and the largest. PyTorch: "
        f"{part['torch']}."
    ]
    rows = [
        (
            f"{row['steps']} x {row['batch']}",
            _seconds(row["jax"]),
            _seconds(row.get("torch")),
            f"{row['ratio']:.2f}" if "ratio" in row else _NONE,
            f"{row['difference']:.1e}" if "difference" in row else _NONE,
        )
        for row in part["unroll"]
    ]
    head = (
        "Unroll, J x images",
        "Ours",
        "PyTorch",
        "Ours / PyTorch",
        "Gradients differ by",
    )
    others = []
    if teacher := part.get("teacher"):
        others.append(
            (
                f"{teacher['networks']} teachers, {teacher['steps']} steps of "
                f"{teacher['batch']} images each",
                _seconds(teacher["epoch"]),
                f"{teacher['per_second']:.3g} steps a second",
            )
        )
    if tested := part.get("evaluation"):
        others.append(
            (
                f"{tested['networks']} networks, {tested['epochs']} epochs of "
                f"ten images, {tested['tests']} test images",
                _seconds(tested["all"]),
                "",
            )
        )
    return said, [(head, rows), (("What", "Time", "Pace"), others)]


def _images(part: Part):
    said = [
        f"An update of IADD with {part['classes']} classes, "
        f"{_network(part)}, J = {part['steps']}: planned by XLA, compiled "
        f"and not run. It may have {_size(part['limit'])}: of an accelerator "
        "the limit of JAX's pool, three quarters of the memory unless "
        "XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise."
    ]
    for batch, ipc in part["largest"].items():
        most = f"{ipc} images per class" if ipc else "not one image per class"
        said.append(f"With {batch} images a step, {most} fit.")
    rows = [
        (
            f"{row['batch']} images a step",
            str(row["ipc"]),
            _size(row.get("total")),
            "yes" if row["fits"] else f"no {row.get('failed', '')}".strip(),
        )
        for row in part["rows"]
    ]
    return said, [(("Batch", "Per class", "Planned bytes", "Fits"), rows)]


def _cifar10(part: Part):
    said = [f"Images: {part['data']}. configs/cifar10.py, size={part['size']}."]
    if part["cuts"]:
        cuts = ", ".join(f"{k}={v}" for k, v in part["cuts"].items())
        said.append(f"In place of the config's: {cuts}.")
    if part["quick"]:
        said.append(
            "Compiled with few optimisations, for want of time: updates are "
            "slower than they would be."
        )
    said.append(
        "Accuracies are of held-out training images, no test image was seen; "
        "step 0 are the real images that a run began with. A further call of "
        "the kit goes on with each run; the commands finish them, with test "
        "scores and pages."
    )
    teachers = [
        (
            f"for {ipc} a class",
            f"{row['count']} of {row['of']}",
            str(row["epochs"]),
            f"{row['per_minute']:.3g}",
        )
        for ipc, row in part["teachers"].items()
    ]
    runs, looks = [], []
    for row in part["runs"].values():
        label = f"{row['ipc']} a class, W {row['form']}"
        pace = row["per_second"]
        runs.append(
            (
                label,
                f"{row['updates']} of {row['of']}",
                _NONE if pace is None else f"{pace:.3g}",
                _NONE if row["loss"] is None else f"{row['loss']:.4f}",
            )
        )
        seen = [(int(step), value) for step, value in row["looks"].items()]
        if seen:
            best = max(seen, key=lambda pair: pair[1])
            looks.append(
                (
                    label,
                    *(f"{percent(v)} at {s}" for s, v in (seen[0], seen[-1])),
                    f"{percent(best[1])} at {best[0]}",
                    str(len(seen)),
                )
            )
    tables = [
        (
            ("Teachers", "Trained", "Epochs each", "A minute, with compiling"),
            teachers,
        ),
        (("Run", "Updates", "Updates a second", "Last loss"), runs),
        (("Run", "First look", "Last look", "Highest look", "Looks"), looks),
    ]
    return said, tables, [row["command"] for row in part["runs"].values()]


_SECTIONS = {
    "precision": ("Precision", _precision),
    "times": ("Times", _times),
    "memory": ("Memory", _memory),
    "images": ("Images per class that fit", _images),
    "cifar10": ("CIFAR-10", _cifar10),
}
