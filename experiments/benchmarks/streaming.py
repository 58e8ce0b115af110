"""Images that stay in their file: how fast they come, and in what memory.

    python experiments/benchmarks/streaming.py
    python experiments/benchmarks/streaming.py --folder=SCRATCH --real_gb=20

Draws random batches of 256 images of 128 x 128 through the reader that
training uses, beside plain reading of the same file in sequence: from a file
of holes far larger than memory, then from one of random bytes, whose pages
the system is first asked to forget ("cold") and then has at hand ("warm").
Then trains a ConvNet from the large file, and from memory. Each part is a
process of its own, so that its peak memory is its own; a peak of 1.5 GB or
more is a failure.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHAPE, BATCH, CLASSES = (128, 128, 3), 256, 1000
SIZE = 64  # images a step of the trainings
ROW = int(np.prod(SHAPE))
LIMIT = 1500  # MB
MB = 1e6


def make(path, gigabytes, *, real):
    """A .npy file of images, of random bytes or of nothing."""
    count = int(gigabytes * 1e9) // ROW
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *SHAPE)}
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        np.lib.format.write_array_header_2_0(file, header)
        if not real:
            return file.truncate(file.tell() + count * ROW)
        for begin in range(0, count, 1000):
            file.write(rng.bytes(min(1000, count - begin) * ROW))
        file.flush()
        os.fsync(file.fileno())


def forget(path):
    """Asks the system to drop the file's pages from its cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory():
    """This process's memory, in words, and its peak in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    now = {
        name: int(value.split()[0]) * 1024 / MB
        for name, _, value in (line.partition(":") for line in lines)
        if name in ("VmRSS", "RssFile")
    }
    words = ", ".join(f"{name} {size:.0f} MB" for name, size in now.items())
    return f"peak {peak / MB:.0f} MB, now {words or 'unknown'}", peak / MB


def tell(name, size, seconds):
    print(
        f"{name:24} {size / ROW / seconds:7.0f} images/s "
        f"{size / MB / seconds:6.0f} MB/s",
        flush=True,
    )


def in_sequence(path, size):
    """Plain reading of the first bytes; returns (bytes, seconds)."""
    buffer, done = bytearray(1 << 24), 0
    begin = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while done < size and (count := file.readinto(buffer)):
            done += count
    return done, time.perf_counter() - begin


def drawn(path, batches):
    """Random batches as training draws them; returns (bytes, seconds)."""
    import jax

    from ddjax.data.rows import Rows
    from ddjax.training import Stream, plan_epoch, stream_chunks

    images = Rows(path)
    stream = Stream(images, np.zeros(len(images), np.int32), CLASSES)
    epochs = -(-batches * BATCH // len(images))
    keys = jax.random.split(jax.random.key(0), epochs)
    plan_epoch(keys[0], len(images), BATCH)  # compiled before the clock starts
    done, begin = 0, time.perf_counter()
    for chunk, _, _ in stream_chunks(keys, stream, BATCH):
        done += chunk.nbytes
        if done >= batches * BATCH * ROW:
            break
    return done, time.perf_counter() - begin


def draw_large(path, batches, steps):
    drawn(path, 1)  # whatever is done once for all
    print(f"    before: {memory()[0]}")
    tell("holes, drawn", *drawn(path, batches))
    print(f"    after: {memory()[0]}")
    tell("holes, in sequence", *in_sequence(path, batches * BATCH * ROW))


def draw_real(path, batches, steps):
    once = (path.stat().st_size - 128) // ROW // BATCH
    drawn(path, 1)
    if hasattr(os, "posix_fadvise"):
        forget(path)
        tell("cold, in sequence", *in_sequence(path, once * BATCH * ROW))
        forget(path)
        tell("cold, drawn", *drawn(path, once))
    tell("warm, in sequence", *in_sequence(path, once * BATCH * ROW))
    tell("warm, drawn", *drawn(path, batches))


def problem():
    """What the two trainings below have in common."""
    import jax
    import jax.numpy as jnp

    from ddjax import models, training
    from ddjax.data.preprocess import Standardiser

    module = models.build("convnet", num_classes=CLASSES, width=16, depth=5)
    params = models.init_params(module, jax.random.key(0), SHAPE)
    fixed = {
        "module": module,
        "preprocessing": Standardiser(jnp.full(3, 0.5), jnp.full(3, 0.2)),
    }
    return training, params, jax.random.key(1), jnp.float32(0.01), fixed


def timed(name, train):
    """Twice, once with compilation."""
    import jax

    for often in ("with compilation", "again"):
        begin = time.perf_counter()
        jax.block_until_ready(train())
        seconds = time.perf_counter() - begin
        print(f"{name}, {often}: {seconds:.1f} s", flush=True)


def train_streamed(path, batches, steps):
    from ddjax.data.rows import Rows

    training, params, key, rate, fixed = problem()
    whole, rng = Rows(path), np.random.default_rng(0)
    images = whole.take(rng.choice(len(whole), steps * SIZE, replace=False))
    labels = rng.integers(0, CLASSES, len(images))
    stream = training.Stream(images, labels, CLASSES)
    recipe = training.Recipe(1, SIZE)
    timed(
        f"{steps} steps of {SIZE} from the file",
        lambda: training.train_streamed(
            key, params, stream, rate, recipe=recipe, **fixed
        ),
    )


def train_in_memory(path, batches, steps):
    """One batch again and again: what training takes without its data."""
    from ddjax.evaluate import stored

    training, params, key, rate, fixed = problem()
    images = np.zeros((SIZE, *SHAPE), np.uint8)
    data = stored(images, np.eye(CLASSES, dtype=np.float32)[:SIZE])
    recipe = training.Recipe(steps, SIZE)
    timed(
        f"{steps} steps of {SIZE} in memory",
        lambda: training.train(key, params, data, rate, recipe=recipe, **fixed),
    )


PARTS = {
    "large": draw_large,
    "real": draw_real,
    "train_streamed": train_streamed,
    "train_in_memory": train_in_memory,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="of the files; kept there")
    parser.add_argument("--large_gb", type=float, default=30)
    parser.add_argument("--real_gb", type=float, default=2)
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name = "real" if args.child == "real" else "large"
        PARTS[args.child](args.folder / f"{name}.npy", args.batches, args.steps)
        words, peak = memory()
        print(f"    {words}")
        if peak >= LIMIT:
            sys.exit(f"the peak is {peak:.0f} MB, not under {LIMIT} MB")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make(folder / "large.npy", args.large_gb, real=False)
        make(folder / "real.npy", args.real_gb, real=True)
        for part in PARTS:
            print(f"{part}:", flush=True)
            command = [
                *(sys.executable, __file__, "--child", part),
                f"--folder={folder}",
                f"--batches={args.batches}",
                f"--steps={args.steps}",
            ]
            if code := subprocess.run(command).returncode:
                sys.exit(code)


if __name__ == "__main__":
    main()
