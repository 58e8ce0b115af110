"""The three convolution kernels of ops.conv2d inside a loop, on a CPU.

    pip install -e '.[bench]'
    python experiments/benchmarks/convolution.py

GFLOP/s of the forward convolution, its input gradient and its kernel gradient
inside ``lax.scan``: ours, the rules that XLA derives for itself ("stock"), and
PyTorch's in a Python loop. ``--threads=1`` keeps both sides to one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

# (batch, side, channels in, channels out), all 3x3.
LAYERS = (
    (10, 32, 3, 128),
    (10, 16, 128, 128),
    (10, 8, 128, 128),
    (10, 16, 32, 32),
    (10, 8, 32, 32),
)
TURNS = 4  # of the loop in each timed call


def jax_kernels(batch, side, inputs, outputs):
    """{name: function of nothing that runs TURNS turns of a scan}."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax import lax

    from ddjax import ops

    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, side, side, inputs)), jnp.float32)
    g = jnp.asarray(rng.normal(size=(batch, side, side, outputs)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(3, 3, inputs, outputs)), jnp.float32)

    def stock(x, w):
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def gradients(conv):
        return {
            "input gradient": lambda x, g, w: jax.vjp(lambda x: conv(x, w), x)[
                1
            ](g)[0],
            "kernel gradient": lambda x, g, w: jax.vjp(lambda w: conv(x, w), w)[
                1
            ](g)[0],
        }

    kernels = {"forward": lambda x, g, w: ops.conv2d(x, w)}
    kernels |= gradients(ops.conv2d)
    kernels |= {
        f"stock {name}": function for name, function in gradients(stock).items()
    }

    def looped(function):
        @jax.jit
        def run(x, g, w):
            def turn(carry, _):
                result = function(*carry)
                # Each turn depends on the last, so none can be left out.
                nudge = 1e-6 * result.ravel()[0]
                return tuple(part + nudge for part in carry), None

            return lax.scan(turn, (x, g, w), None, length=TURNS)[0]

        return lambda: jax.block_until_ready(run(x, g, w))

    return {name: looped(function) for name, function in kernels.items()}


def torch_kernels(batch, side, inputs, outputs):
    """The same in PyTorch, channels first."""
    import torch
    from torch.nn import grad

    x = torch.randn(batch, inputs, side, side)
    g = torch.randn(batch, outputs, side, side)
    w = torch.randn(outputs, inputs, 3, 3)
    kernels = {
        "forward": lambda: torch.conv2d(x, w, padding=1),
        "input gradient": lambda: grad.conv2d_input(x.shape, w, g, padding=1),
        "kernel gradient": lambda: grad.conv2d_weight(x, w.shape, g, padding=1),
    }
    return {
        f"torch {name}": lambda kernel=kernel: [kernel() for _ in range(TURNS)]
        for name, kernel in kernels.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if args.threads == 1:
        # Both read these when they start.
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        os.environ["OMP_NUM_THREADS"] = "1"
    elif args.threads:
        sys.exit("--threads is 1 or 0 (all)")
    for layer in LAYERS:
        batch, side, inputs, outputs = layer
        work = TURNS * 2 * 9 * batch * side * side * inputs * outputs / 1e9
        print(f"{batch} x {side}x{side}, {inputs} -> {outputs}:")
        speed = {}
        for name, run in {
            **jax_kernels(*layer),
            **torch_kernels(*layer),
        }.items():
            run()
            times = []
            for _ in range(args.repeats if "stock" not in name else 2):
                begin = time.perf_counter()
                run()
                times.append(time.perf_counter() - begin)
            speed[name] = work / statistics.median(times)
        for name in ("forward", "input gradient", "kernel gradient"):
            ours, other = speed[name], speed[f"torch {name}"]
            line = (
                f"  {name:15} {ours:6.1f} GFLOP/s, torch {other:6.1f}, time "
                f"ratio {other / ours:.2f}"
            )
            if f"stock {name}" in speed:
                line += f", XLA's own rule {speed[f'stock {name}']:6.1f}"
            print(line)


if __name__ == "__main__":
    main()
