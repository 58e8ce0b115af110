"""One IADD iteration beside the PyTorch way of doing the same work.

    pip install -e '.[bench]'
    python experiments/benchmarks/unroll.py

Both sides take the loss of one segment and its gradient to the distilled
images and the learning rate: the same ConvNet, batches, steps and numbers
(the two gradients are compared before anything is timed). The PyTorch side is
that of MTT and its heirs: one flat parameter vector that requires a gradient,
``torch.autograd.grad(..., create_graph=True)`` at every inner step, one
``backward`` at the end. The sides take turns, one iteration each, so a change
of the machine's speed meets both; the ratio is that of the medians.

Peak memory is that of a whole process that does nothing else, started once
per side and number of steps.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

import numpy as np

SIZES = {
    "width128": dict(side=32, channels=3, width=128, depth=3, batch=10),
    "tiny": dict(side=8, channels=1, width=32, depth=2, batch=10),
}
CLASSES = 10


class Placement(NamedTuple):
    """How the PyTorch side holds its numbers.

    Attributes:
      channels_last: the memory format of images and kernels.
      compiled: pass what can be passed through ``torch.compile``.
      device: where they lie.
    """

    channels_last: bool = False
    compiled: bool = False
    device: Any = "cpu"

    def put(self, array):
        """A NumPy array, [n c h w] where it has four axes, as a tensor."""
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(array))
        tensor = tensor.to(self.device)
        return self.arrange(tensor) if tensor.ndim == 4 else tensor

    def arrange(self, tensor):
        """[n c h w] in the memory format."""
        import torch

        if self.channels_last:
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor.contiguous()

    def prepare(self, function):
        """A function or module, compiled where that is asked for."""
        import torch

        return torch.compile(function) if self.compiled else function


CHANNELS_FIRST = Placement()


def problem(size, steps):
    """The numbers of one segment, as NumPy arrays in channels-last order."""
    rng = np.random.default_rng(0)
    side, channels, width = size["side"], size["channels"], size["width"]
    start, inputs = {}, channels
    for block in range(size["depth"]):
        bound = (9 * inputs) ** -0.5
        start[f"conv{block}"] = {
            "kernel": rng.uniform(-bound, bound, (3, 3, inputs, width)),
            "bias": rng.uniform(-bound, bound, width),
        }
        start[f"norm{block}"] = {
            "scale": np.ones(width),
            "bias": np.zeros(width),
        }
        inputs = width
    features = width * (side >> size["depth"]) ** 2
    bound = features**-0.5
    start["head"] = {
        "kernel": rng.uniform(-bound, bound, (features, CLASSES)),
        "bias": rng.uniform(-bound, bound, CLASSES),
    }
    start = {
        layer: {name: value.astype(np.float32) for name, value in p.items()}
        for layer, p in start.items()
    }
    target = {
        layer: {
            name: value + rng.normal(0, 0.01, value.shape).astype(np.float32)
            for name, value in p.items()
        }
        for layer, p in start.items()
    }
    images = rng.normal(0, 1, (size["batch"], side, side, channels))
    labels = np.arange(size["batch"]) % CLASSES
    return start, target, images.astype(np.float32), labels


def network(size):
    """Our ConvNet of a size."""
    from ddjax import models

    return models.build(
        "convnet",
        num_classes=CLASSES,
        width=size["width"],
        depth=size["depth"],
    )


def jax_side(size, steps):
    """A function of nothing that returns (loss, image gradient)."""
    import jax
    import jax.numpy as jnp

    from ddjax import losses, unroll

    start, target, images, labels = problem(size, steps)
    module = network(size)
    one_hot = jnp.asarray(np.eye(CLASSES, dtype=np.float32)[labels])
    order = jnp.tile(jnp.arange(size["batch"]), (steps, 1))
    keys = jax.random.split(jax.random.key(0), steps)

    def segment_loss(images, learning_rate, start, target):
        def loss_fn(params, batch, key):
            logits, _ = module.apply({"params": params}, images[batch])
            return losses.cross_entropy(logits, one_hot[batch])

        student, _ = unroll.sgd_unroll(
            loss_fn, start, order, keys, learning_rate
        )
        return losses.iadd_loss(student, start, target)

    gradient = jax.jit(jax.value_and_grad(segment_loss, argnums=(0, 1)))
    arguments = jax.device_put((images, jnp.float32(0.01), start, target))
    compiled = gradient.lower(*arguments).compile()

    def run():
        loss, (grad, _) = jax.block_until_ready(compiled(*arguments))
        return float(loss), np.asarray(grad)

    plan = compiled.memory_analysis()
    return run, getattr(plan, "temp_size_in_bytes", None)


def torch_network(size, place=CHANNELS_FIRST):
    """The network in PyTorch: (flatten(params), forward(flat, x[b c h w])).

    The kernels are parts of the vector as they are stored, so that no step
    has to bring them into the memory format first.
    """
    import torch.nn.functional as F

    depth, width = size["depth"], size["width"]
    side = size["side"] >> depth
    stored = (3, 0, 1, 2) if place.channels_last else (3, 2, 0, 1)

    def flatten(params):
        """One vector, in the order in which ``forward`` reads it."""
        parts = []
        for block in range(depth):
            conv, norm = params[f"conv{block}"], params[f"norm{block}"]
            parts += [conv["kernel"].transpose(stored), conv["bias"]]
            parts += [norm["scale"], norm["bias"]]
        head = params["head"]["kernel"].reshape(side, side, width, CLASSES)
        parts += [head.transpose(3, 2, 0, 1), params["head"]["bias"]]
        return place.put(np.concatenate([part.reshape(-1) for part in parts]))

    def forward(flat, x):
        position = 0

        def take(*shape):
            nonlocal position
            count = int(np.prod(shape))
            part = flat[position : position + count].view(*shape)
            position += count
            return part

        def take_kernel(inputs):
            if place.channels_last:
                return take(width, 3, 3, inputs).permute(0, 3, 1, 2)
            return take(width, inputs, 3, 3)

        inputs = size["channels"]
        for _ in range(depth):
            x = F.conv2d(x, take_kernel(inputs), take(width), padding=1)
            x = F.group_norm(x, width, take(width), take(width))
            x = F.avg_pool2d(F.relu(x), 2)
            inputs = width
        kernel = take(CLASSES, width * side * side)
        return F.linear(x.flatten(1), kernel, take(CLASSES))

    return flatten, forward


def torch_side(size, steps, place=CHANNELS_FIRST):
    """The same in PyTorch, channels first where nothing else is said."""
    import torch
    import torch.nn.functional as F

    start, target, images, labels = problem(size, steps)
    flatten, forward = torch_network(size, place)

    begin, end = flatten(start), flatten(target)
    pixels = place.put(images.transpose(0, 3, 1, 2)).requires_grad_(True)
    classes = place.put(labels)
    learning_rate = torch.tensor(0.01, device=place.device, requires_grad=True)

    def run():
        pixels.grad = learning_rate.grad = None
        flat = begin.clone().requires_grad_(True)
        for _ in range(steps):
            loss = F.cross_entropy(forward(flat, pixels), classes)
            (grad,) = torch.autograd.grad(loss, flat, create_graph=True)
            flat = flat - learning_rate * grad
        loss = (flat - end).square().sum() / (begin - end).square().sum()
        loss.backward()
        return loss.item(), pixels.grad.cpu().numpy().transpose(0, 2, 3, 1)

    return run, None


SIDES = {"jax": jax_side, "torch": torch_side}


def peak_memory(side, size, steps):
    """Peak resident MiB of a fresh process, and XLA's own plan in MiB."""
    command = [sys.executable, __file__, "--child", side, size, str(steps)]
    output = subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout
    return json.loads(output.splitlines()[-1])


def child(side, size, steps):
    run, plan = SIDES[side](SIZES[size], int(steps))
    run(), run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([peak, plan / 2**20 if plan else None]))


def print_memory(name):
    for side in SIDES:
        (few, plan_few), (many, plan_many) = (
            peak_memory(side, name, steps) for steps in (10, 50)
        )
        line = (
            f"{name}: {side:5}  peak memory J=10 {few:.0f} MiB, "
            f"J=50 {many:.0f} MiB, ratio {many / few:.2f}"
        )
        if plan_few:
            line += (
                f"; XLA's buffers alone {plan_few:.0f} and {plan_many:.0f} MiB"
            )
        print(line, flush=True)


def print_times(name, steps, repeats):
    runs = {side: SIDES[side](SIZES[name], steps)[0] for side in SIDES}
    loss, grad = runs["jax"]()
    torch_loss, torch_grad = runs["torch"]()
    error = np.abs(grad - torch_grad).max() / np.abs(torch_grad).max()
    print(
        f"{name}: J={steps} x {SIZES[name]['batch']} images; "
        f"loss {loss:.6f} (jax) {torch_loss:.6f} (torch); "
        f"largest gradient difference {error:.1e} of the largest gradient"
    )
    if not error < 1e-2:
        sys.exit("the two sides do not compute the same gradient")
    take_turns(runs, repeats)


def take_turns(runs, repeats):
    """Times {side: function} in turn; prints each and jax / torch.

    Returns:
      {side: median seconds}.
    """
    seconds = {side: [] for side in runs}
    for _ in range(repeats):
        for side, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[side].append(time.perf_counter() - begin)
    for side, times in seconds.items():
        print(
            f"  {side:5}  median {statistics.median(times):.4f} s  "
            f"min {min(times):.4f}  max {max(times):.4f}"
        )
    medians = {side: statistics.median(t) for side, t in seconds.items()}
    print(
        f"  ratio jax/torch {medians['jax'] / medians['torch']:.3f}",
        flush=True,
    )
    return medians


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10, help="J")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--no_memory", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(*args.child)
    # Memory first, while this process is small: a child starts with the peak
    # of the process that it was forked from.
    if not args.no_memory:
        for name in args.sizes:
            print_memory(name)
    for name in args.sizes:
        print_times(name, args.steps, args.repeats)


if __name__ == "__main__":
    main()
