"""What a GPU or TPU does with ddjax: one command, one page.

    python experiments/benchmarks/accelerator.py --minutes=20

Needs this repository and the device; PyTorch, if it is there, is timed beside.
Five parts, each with a share of the minutes:

    memory      bytes of an unroll as J grows, planned and counted
    precision   of the unroll's gradient, against float64 on the CPU
    times       of unrolls, teachers and evaluation
    images      the most images per class of CIFAR-100 whose update fits
    cifar10     teachers and updates at the published setting, as far as it
                goes; made images stand in where no --data_dir is given

FOLDER/accelerator.json is written after each part, FOLDER/accelerator.html
with it. Parts that are in it are not measured again, unless --again says so;
cifar10 goes on with its runs whenever it is called, until they are finished.
A figure for which the time was short is left out, and the page says why.

On a CPU all runs too, with sizes cut to what the minutes allow.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

_BEGIN = time.perf_counter()

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

# PyTorch is to find memory on the same device.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import accelerator_cifar10
import accelerator_memory
import accelerator_page
import accelerator_parts
import jax
import launch
from accelerator_scale import SHARES, Clock, Scale, Watch, scale_of

import ddjax
from ddjax import files
from ddjax.types import InputError

MEASURES = {
    "memory": accelerator_memory.memory,
    "precision": accelerator_parts.precision,
    "times": accelerator_parts.times,
    "images": accelerator_memory.images,
}
OUT = Path("runs/accelerator")


def driver() -> str:
    """The NVIDIA driver's version; "" where there is none to ask."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv"]
    try:
        said = subprocess.run(
            [*command, "-i", "0"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.strip().splitlines()[-1]


def machine() -> dict[str, Any]:
    """What figures are figures of."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "count": jax.local_device_count(),
        "memory": accelerator_memory.device_bytes(),
        "driver": driver() if device.platform == "gpu" else "",
        "runtime": " ".join(device.client.platform_version.split()),
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "ddjax": ddjax.__version__,
        "python": sys.version.split()[0],
    }


def begun(out: Path, here: dict[str, Any], scale: Scale) -> dict[str, Any]:
    """What the folder's accelerator.json says, or an empty one.

    Raises:
      InputError: it is damaged, or of another device, version or scale.
    """
    path = out / "accelerator.json"
    if not path.exists():
        return {"machine": here, "scale": scale.name, "parts": {}}
    try:
        found = json.loads(path.read_text())
        there = found["machine"] | {"scale": found["scale"]}
        found["parts"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path} is damaged: remove it or name another --out"
        ) from None
    changed = [
        f"{name} is {there.get(name)!r} there and {value!r} here"
        for name, value in (here | {"scale": scale.name}).items()
        if there.get(name) != value
    ]
    if changed:
        raise InputError(
            f"{path} holds figures of another machine ({'; '.join(changed)}): "
            "name another --out"
        )
    return found


def measure(
    out: Path,
    minutes: float,
    parts: list[str],
    *,
    data_dir: str = "",
    again: bool = False,
    since: float | None = None,
) -> dict[str, Any]:
    """Measures what is missing, and writes JSON and page after each part.

    Args:
      out: the kit's folder.
      minutes: in all.
      parts: names of ``SHARES``.
      data_dir: TFDS's folder with CIFAR-10; "" for made images.
      again: also what is there already.
      since: when the minutes began; now by default.

    Returns:
      What accelerator.json holds.

    Raises:
      InputError: the folder holds another machine's figures.
    """
    since = time.perf_counter() if since is None else since
    scale = scale_of(jax.devices()[0].platform, minutes)
    out.mkdir(parents=True, exist_ok=True)
    found = begun(out, machine(), scale)
    whole = Clock(60 * minutes - (time.perf_counter() - since))
    # In their order. cifar10 always has something to go on with, unless all
    # its runs are at their end.
    todo = [
        part
        for part in SHARES
        if part in parts
        and (
            again
            or part not in found["parts"]
            or (part == "cifar10" and not found["parts"][part]["finished"])
        )
    ]
    for number, part in enumerate(todo):
        shares = [SHARES[name] for name in todo[number:]]
        clock = Clock(max(whole.left(), 0) * shares[0] / sum(shares))
        print(f"{part}: {max(clock.left(), 0):.0f} s", flush=True)
        with Watch() as watch:
            if part == "cifar10":
                result = accelerator_cifar10.cifar10(
                    scale, clock, out, data_dir, found["parts"].get(part)
                )
            else:
                result = MEASURES[part](scale, clock)
        earlier = found["parts"].get(part, {}) if part == "cifar10" else {}
        result["seconds"] = watch.seconds + earlier.get("seconds", 0)
        found["parts"][part] = result
        files.write_json(out / "accelerator.json", found)
        accelerator_page.write(out / "accelerator.html", found)
        for sentence in result["absent"]:
            print(f"  {sentence}", flush=True)
        jax.clear_caches()  # programs hold memory that the next part measures
    if not todo:
        print("all parts are there: --again measures them again")
        accelerator_page.write(out / "accelerator.html", found)
    print(f"page: {out / 'accelerator.html'}")
    return found


class _Parser(argparse.ArgumentParser):
    """Refuses in one sentence, as all scripts do."""

    def error(self, message):
        raise InputError(f"bad flag: {message} (--help lists the flags)")


def arguments(argv: list[str]) -> argparse.Namespace:
    """The flags.

    Raises:
      InputError: one is wrong.
    """
    parser = _Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--minutes", type=float, default=20, help="in all")
    parser.add_argument("--out", type=Path, default=OUT, help=f"{OUT}")
    parser.add_argument("--data_dir", default="", help="TFDS with CIFAR-10")
    parser.add_argument("--parts", default=",".join(SHARES))
    parser.add_argument(
        "--again", action="store_true", help="also parts that are there"
    )
    found = parser.parse_args(argv)
    if not (math.isfinite(found.minutes) and found.minutes > 0):
        raise InputError(
            f"--minutes must be a number above 0, not {found.minutes:g}"
        )
    found.parts = [part for part in found.parts.split(",") if part]
    unknown = [part for part in found.parts if part not in SHARES]
    if unknown or not found.parts:
        raise InputError(
            f"--parts must be some of {', '.join(SHARES)}, joined by commas, "
            f"not {','.join(unknown)!r}"
        )
    if found.data_dir and not Path(found.data_dir).expanduser().is_dir():
        raise InputError(
            f"--data_dir={found.data_dir} is no folder: name TFDS's folder "
            "that holds cifar10"
        )
    return found


def main(argv: list[str]) -> int:
    """The command; returns its exit code."""

    def action():
        asked = arguments(argv)
        measure(
            asked.out.expanduser(),
            asked.minutes,
            asked.parts,
            data_dir=asked.data_dir,
            again=asked.again,
            since=_BEGIN,
        )

    return launch.refusing(action)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
