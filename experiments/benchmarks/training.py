"""Ordinary training beside PyTorch: what teachers and evaluation spend.

    pip install -e '.[bench]'
    python experiments/benchmarks/training.py

Four SGD steps of 256 images on the ConvNet, as one scan here and as a Python
loop there, in turn; the parameters at the end are compared before anything is
timed. Peak memory is that of a process that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys

import numpy as np
import unroll

STEPS, RATE = 4, 0.01
SIZES = {
    "width32": dict(side=32, channels=3, width=32, depth=3, batch=256),
    "width128": dict(side=32, channels=3, width=128, depth=3, batch=256),
}


def jax_side(size):
    """A function of nothing that returns the head's bias after training."""
    import jax
    import jax.numpy as jnp

    from ddjax import training
    from ddjax.types import Batch

    start, _, images, labels = unroll.problem(size, STEPS)
    recipe = training.Recipe(epochs=STEPS, batch_size=size["batch"])
    data = Batch(
        jnp.asarray(images),
        jnp.eye(unroll.CLASSES, dtype=jnp.float32)[labels],
    )
    train = trainer(size, recipe, STEPS)
    return lambda: np.asarray(
        jax.block_until_ready(train(start, data)[0])["head"]["bias"]
    )


def trainer(size, recipe, steps):
    """Our function of (parameters, Batch), for so many steps in all."""
    import jax

    from ddjax import training

    module, optimizer = unroll.network(size), training.sgd(recipe, RATE, steps)
    keys = jax.random.split(jax.random.key(0), recipe.epochs)

    @jax.jit
    def train(params, data):
        return training.train_epochs(
            training.module_loss(module),
            optimizer,
            params,
            optimizer.init(params),
            lambda key: data,
            keys,
            batch_size=size["batch"],
        )

    return train


def group_by(at_once):
    """Sets how many images of a step ours takes together, where given."""
    from ddjax import training

    if at_once is not None:
        training._at_once = lambda apply_fn, params, images: at_once


def torch_side(size):
    """The same in PyTorch."""
    import torch
    import torch.nn.functional as F

    start, _, images, labels = unroll.problem(size, STEPS)
    flatten, forward = unroll.torch_network(size)
    begin = flatten(start)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    classes = torch.from_numpy(labels)

    def run():
        flat = begin.clone().requires_grad_(True)
        for _ in range(STEPS):
            loss = F.cross_entropy(forward(flat, pixels), classes)
            (grad,) = torch.autograd.grad(loss, flat)
            with torch.no_grad():
                flat -= RATE * grad
        return flat.detach()[-unroll.CLASSES :].numpy()

    return run


SIDES = {"jax": jax_side, "torch": torch_side}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--at_once",
        type=int,
        help="images of one of our groups, in place of ddjax's own number",
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        side, name = args.child
        if side == "jax":
            group_by(args.at_once)
        SIDES[side](SIZES[name])()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return print(json.dumps(usage.ru_maxrss / 1024))
    for name in SIZES:
        for side in SIDES:
            command = [sys.executable, __file__, "--child", side, name]
            if args.at_once:
                command += ["--at_once", str(args.at_once)]
            peak = json.loads(
                subprocess.run(
                    command, check=True, capture_output=True, text=True
                ).stdout.splitlines()[-1]
            )
            print(f"{name}: {side:5}  peak memory {peak:.0f} MiB", flush=True)
    group_by(args.at_once)
    for name, size in SIZES.items():
        runs = {side: make(size) for side, make in SIDES.items()}
        ours, theirs = (run() for run in runs.values())
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        print(
            f"{name}: {STEPS} steps of {size['batch']} images; largest "
            f"difference of the head's bias {error:.1e}"
        )
        if not error < 1e-2:
            sys.exit("the two sides do not train the same network")
        unroll.take_turns(runs, args.repeats)


if __name__ == "__main__":
    main()
