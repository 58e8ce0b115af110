"""An update of D2M and one of its pre-training, beside PyTorch.

    pip install -e '.[bench]'
    python experiments/benchmarks/d2m.py

``distil`` is ``d2m.update`` of one group: 16 images of each of 10 classes made
by a folded generator, shown with as many real ones to a ConvNet, embedding and
prediction matching, the gradient to the generator, Adam, the average.
``pretrain`` is ``gan.update``: two critic steps of 64 real and 64 made images
and a generator step, spectral norm by one power iteration each time a kernel
is used, batch statistics, hinge loss, Adam, the average. 32 pixels, no
augmentation. The PyTorch side does the same in eager mode from the same
weights, noise and spectral estimates; the losses and the generator's gradient
are compared before anything is timed, and the sides take turns. Channels last
there too, which took 0.7 to 0.9 of the time of channels first in every case.
For one thread put ``taskset -c 0`` before the command; on a machine that does
other work the ratio of processor times says more than that of the clock.

Peak memory is that of a process that does nothing else. Operations are counted
by hand: two for each multiplication of a convolution or linear layer as the
layers are defined, whichever way a side computes them, so the two GFLOP/s
figures have the same numerator.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import unroll

CLASSES, SIDE, CHANNELS, NOISE = 10, 32, 3, 64
PER_CLASS, BATCH, CRITIC_STEPS = 16, 64, 2
RATE, CRITIC_RATE, AVERAGE = 2e-4, 5e-4, 0.99
POWER, TEMPERATURE, BALANCE = 4, 4.0, 10.0
MEAN, SPREAD = 0.5, 0.25  # of the pixels
# Of the generator's and the critic's, and of the ConvNet; size=small's first.
SIZES = {
    "width8": dict(width=8, network=32),
    "width16": dict(width=16, network=128),
}
FIRST = 4  # pixels a side of the generator's first features
BLOCKS = 3  # of the generator
HALVED = (True, True, False, False)  # the critic's blocks
DEPTH = 3  # of the ConvNet


# --- The numbers of both sides, as NumPy arrays in channels-last order -------


def kernel_of(rng, *shape, gain=1.0):
    """A kernel that keeps the variance of what passes through it."""
    spread = gain * np.prod(shape[:-1]) ** -0.5
    return rng.normal(0, spread, shape).astype(np.float32)


def layer_of(rng, *shape, gain=1.0):
    bias = rng.normal(0, 0.02, shape[-1]).astype(np.float32)
    return {"kernel": kernel_of(rng, *shape, gain=gain), "bias": bias}


def norm_of(rng, *shape):
    return {
        "scale": rng.normal(1, 0.1, shape).astype(np.float32),
        "bias": rng.normal(0, 0.1, shape).astype(np.float32),
    }


def generator_of(rng, width):
    features = 4 * width
    params = {"dense": layer_of(rng, NOISE, FIRST * FIRST * features)}
    for block in range(BLOCKS):
        params[f"block{block}"] = {
            "norm0": norm_of(rng, CLASSES, features),
            "conv0": layer_of(rng, 3, 3, features, features),
            "norm1": norm_of(rng, CLASSES, features),
            "conv1": layer_of(rng, 3, 3, features, features),
            "shortcut": layer_of(rng, 1, 1, features, features, gain=0.5),
        }
    params["norm"] = norm_of(rng, features)
    params["conv"] = layer_of(rng, 3, 3, features, CHANNELS, gain=0.2)
    return params


def critic_of(rng, width):
    inputs, features, params = CHANNELS, 4 * width, {}
    for block, halved in enumerate(HALVED):
        params[f"block{block}"] = {
            "conv0": layer_of(rng, 3, 3, inputs, features),
            "conv1": layer_of(rng, 3, 3, features, features),
        }
        if halved:
            params[f"block{block}"]["shortcut"] = layer_of(
                rng, 1, 1, inputs, features
            )
        inputs = features
    params["head"] = layer_of(rng, features, 1)
    params["classes"] = {"kernel": kernel_of(rng, CLASSES, features)}
    return params


def estimates_of(rng, params):
    """The spectral estimates of some parameters: a unit vector a kernel."""
    result = {}
    for name, value in params.items():
        if isinstance(value, dict):
            result[name] = estimates_of(rng, value)
        elif name == "kernel":
            vector = rng.normal(size=value.shape[-1])
            result[name] = (vector / np.linalg.norm(vector)).astype(np.float32)
    return {name: value for name, value in result.items() if len(value)}


def channels_first(tree, layer="", positions=1):
    """Parameters or estimates as PyTorch has them.

    Args:
      positions: h * w of what the layer "head" reads.
    """
    if isinstance(tree, dict):
        return {
            name: channels_first(
                value, name if isinstance(value, dict) else layer, positions
            )
            for name, value in tree.items()
        }
    tree = np.asarray(tree)
    if layer == "dense":  # its outputs become [c h w] instead of [h w c]
        parts = tree.reshape(*tree.shape[:-1], FIRST * FIRST, -1)
        tree = parts.swapaxes(-1, -2).reshape(tree.shape)
    if layer == "head" and tree.ndim == 2:  # the same for its inputs
        parts = tree.reshape(positions, -1, tree.shape[-1])
        tree = parts.swapaxes(0, 1).reshape(tree.shape)
    if tree.ndim == 4:
        tree = tree.transpose(3, 2, 0, 1)
    elif tree.ndim == 2 and layer in ("dense", "head"):
        tree = tree.T
    return np.array(tree)


def flat(tree):
    """The leaves of nested dicts as one vector, in the order of their names."""
    if isinstance(tree, dict):
        return np.concatenate([flat(tree[name]) for name in sorted(tree)])
    return np.asarray(tree).reshape(-1)


# --- PyTorch's networks ------------------------------------------------------


CHANNELS_LAST = unroll.Placement(channels_last=True)


def tensors(tree, trained, place):
    """Nested dicts of arrays as leaves that ask for a gradient, or do not."""
    if isinstance(tree, dict):
        return {
            name: tensors(value, trained, place) for name, value in tree.items()
        }
    return place.put(tree).requires_grad_(trained)


def leaves(tree):
    """The tensors of nested dicts, in the order of ``flat``."""
    if isinstance(tree, dict):
        return [leaf for name in sorted(tree) for leaf in leaves(tree[name])]
    return [tree]


def spectral(params, estimates, keep):
    """Kernels over their spectral norms, by one power iteration in place."""
    import torch
    import torch.nn.functional as F

    result = {}
    for name, value in params.items():
        if name not in estimates:
            result[name] = value
        elif isinstance(value, dict):
            result[name] = spectral(value, estimates[name], keep)
        else:
            # [outputs ..], but for the table of classes
            u, table = estimates[name], len(value) != len(estimates[name])
            matrix = value.t() if table else value.flatten(1)
            with torch.no_grad():
                v = F.normalize(u @ matrix, dim=0)
                after = F.normalize(matrix @ v, dim=0)
                if keep:
                    u.copy_(after)
            result[name] = value / torch.dot(after, matrix @ v)
    return result


def torch_generator(params, noise, labels, batch_statistics, place):
    import torch
    import torch.nn.functional as F

    def norm(x, scale, bias):
        if batch_statistics:
            x = F.batch_norm(x, None, None, training=True)
        return torch.addcmul(bias[..., None, None], x, scale[..., None, None])

    def doubled(x):
        return F.interpolate(x, scale_factor=2)

    x = F.linear(noise, params["dense"]["kernel"], params["dense"]["bias"])
    x = place.arrange(x.view(len(noise), -1, FIRST, FIRST))
    for number in range(BLOCKS):
        block = params[f"block{number}"]
        norms = [
            [block[name][part][labels] for part in ("scale", "bias")]
            for name in ("norm0", "norm1")
        ]
        convs = [tuple(block[f"conv{i}"].values()) for i in range(2)]
        y = doubled(F.relu(norm(x, *norms[0])))
        y = F.relu(norm(F.conv2d(y, *convs[0], padding=1), *norms[1]))
        y = F.conv2d(y, *convs[1], padding=1)
        x = y + doubled(F.conv2d(x, *block["shortcut"].values()))
    x = F.relu(norm(x, params["norm"]["scale"], params["norm"]["bias"]))
    x = F.conv2d(x, *params["conv"].values(), padding=1)
    return torch.sigmoid(2 * x)


def torch_critic(params, images, labels):
    import torch.nn.functional as F

    x = images
    for number, halved in enumerate(HALVED):
        block = params[f"block{number}"]
        y = F.relu(x) if number else x
        y = F.relu(F.conv2d(y, *block["conv0"].values(), padding=1))
        y = F.conv2d(y, *block["conv1"].values(), padding=1)
        if halved:
            y, x = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2)
            x = F.conv2d(x, *block["shortcut"].values())
        x = y + x
    x = F.relu(x).sum((2, 3))
    score = F.linear(x, *params["head"].values())[:, 0]
    return score + (params["classes"]["kernel"][labels] * x).sum(1)


def torch_convnet(params, images):
    import torch.nn.functional as F

    x, out = images, []
    for number in range(DEPTH):
        x = F.conv2d(x, *params[f"conv{number}"].values(), padding=1)
        norm = params[f"norm{number}"]
        x = F.group_norm(x, x.shape[1], norm["scale"], norm["bias"])
        x = F.avg_pool2d(F.relu(x), 2)
        out.append(x)
    return F.linear(x.flatten(1), *params["head"].values()), out


def to_images(images, place):
    """[n h w c] to [n c h w]."""
    return place.put(images.transpose(0, 3, 1, 2))


def gradients(params):
    return np.concatenate(
        [
            leaf.grad.cpu().contiguous().numpy().reshape(-1)
            for leaf in leaves(params)
        ]
    )


def torch_adam(params, rate):
    import torch

    return torch.optim.Adam(leaves(params), rate, (0.0, 0.999), fused=True)


def torch_average(average, params, step):
    import torch

    weight = 1 - min(AVERAGE, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(leaves(average), leaves(params), weight)


# --- One update of distillation ----------------------------------------------


def distil_problem(name):
    """(generator, ConvNet, images, labels)."""
    rng, size = np.random.default_rng(0), SIZES[name]
    shape = dict(
        side=SIDE,
        channels=CHANNELS,
        width=size["network"],
        depth=DEPTH,
        batch=PER_CLASS * CLASSES,
    )
    network, _, _, labels = unroll.problem(shape, 1)
    images = rng.uniform(0, 1, (len(labels), SIDE, SIDE, CHANNELS))
    generator = generator_of(rng, size["width"])
    return generator, network, images.astype(np.float32), labels


def distil_jax(name):
    """A function of nothing that returns (loss, generator's gradient)."""
    import jax
    import jax.numpy as jnp

    from ddjax import d2m, models, training
    from ddjax.data import preprocess
    from ddjax.models import biggan
    from ddjax.settings import D2m

    params, network, images, labels = distil_problem(name)
    module = biggan.Generator(
        num_classes=CLASSES,
        size=SIDE,
        channels=CHANNELS,
        width=SIZES[name]["width"],
        noise=NOISE,
        form=biggan.FOLDED,
    )
    convnet = models.build(
        "convnet",
        num_classes=CLASSES,
        width=SIZES[name]["network"],
        depth=DEPTH,
    )
    settings = D2m(
        augment="none",
        rate=RATE,
        average=AVERAGE,
        power=POWER,
        temperature=TEMPERATURE,
        balance=BALANCE,
    )
    state = d2m.init_state(jax.random.key(0), params, settings)
    update = functools.partial(
        d2m.update,
        gen_apply=biggan.GenApply(module),
        apply_fn=training.apply_fn_of(convnet),
        preprocessing=preprocess.Standardiser(
            jnp.full(CHANNELS, MEAN), jnp.full(CHANNELS, SPREAD)
        ),
        settings=settings,
    )
    groups = jax.device_put(
        jax.tree.map(
            lambda leaf: leaf[None], d2m.Group(network, images, labels)
        )
    )
    compiled = jax.jit(update).lower(state, groups).compile()

    def run():
        after, metrics = jax.block_until_ready(compiled(state, groups))
        # Adam's first moment, which nothing decays into, is the gradient.
        gradient = after.opt_state[0].mu
        return [float(metrics["loss"])], gradient

    return run


def distil_noise():
    """What ``d2m.update`` draws from key 0 in its first step."""
    import jax

    from ddjax import gan

    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)
    count = PER_CLASS * CLASSES
    return [np.array(gan.noise(jax.random.split(key)[0], count, NOISE))]


def distil_torch(name, noise, place=CHANNELS_LAST):
    """The same in PyTorch; each call is the next step."""
    assert POWER == 4  # two squarings: pow took longer
    import torch
    import torch.nn.functional as F

    start, network, images, labels = distil_problem(name)
    params = tensors(channels_first(start), True, place)
    average = tensors(channels_first(start), False, place)
    positions = (SIDE >> DEPTH) ** 2
    network = channels_first(network, positions=positions)
    network = tensors(network, False, place)
    adam, step = torch_adam(params, RATE), 0
    real, (noise,) = to_images(images, place), map(place.put, noise)
    labels = place.put(labels)
    convnet, generator = map(place.prepare, (torch_convnet, torch_generator))
    one_hot = F.one_hot(labels, CLASSES).float()
    counts = one_hot.sum(0)[:, None]

    def attention(features):
        largest = features.detach().abs().amax((1, 2, 3), keepdim=True)
        strength = (features / largest).square().square().sum((2, 3))
        return F.normalize(strength, dim=1)

    def term(real, fake, last):
        sides = [
            side.mean((2, 3)) if last else attention(side)
            for side in (real, fake)
        ]
        gap = one_hot.t() @ (sides[0] - sides[1]) / counts
        return gap.square().sum(1).mean()

    def seen(images):
        return convnet(network, (images - MEAN) / SPREAD)

    def run():
        nonlocal step
        with torch.no_grad():
            real_logits, real_out = seen(real)
        fake = generator(params, noise, labels, False, place)
        fake_logits, fake_out = seen(fake)
        loss = BALANCE * F.kl_div(
            F.log_softmax(fake_logits / TEMPERATURE, 1),
            F.log_softmax(real_logits / TEMPERATURE, 1),
            reduction="batchmean",
            log_target=True,
        )
        for number, features in enumerate(zip(real_out, fake_out)):
            loss = loss + term(*features, number == DEPTH - 1)
        adam.zero_grad()
        loss.backward()
        adam.step()
        torch_average(average, params, step)
        step += 1
        return [loss.item()], gradients(params)

    return run


# --- One update of pre-training ----------------------------------------------


def pretrain_problem(name):
    """(generator and its estimates, critic and its, images, labels)."""
    rng, width = np.random.default_rng(0), SIZES[name]["width"]
    generator, critic = generator_of(rng, width), critic_of(rng, width)
    images = rng.uniform(0, 1, (CRITIC_STEPS, BATCH, SIDE, SIDE, CHANNELS))
    labels = rng.integers(CLASSES, size=(CRITIC_STEPS, BATCH))
    return (
        (generator, estimates_of(rng, generator)),
        (critic, estimates_of(rng, critic)),
        images.astype(np.float32),
        labels,
    )


def pretrain_jax(name):
    """A function of nothing: (losses, generator's gradient)."""
    import jax

    from ddjax import gan
    from ddjax.models import biggan
    from ddjax.settings import Gan
    from ddjax.types import Batch

    (params, spectral), (judge, judge_spectral), images, labels = (
        pretrain_problem(name)
    )
    common = dict(num_classes=CLASSES, size=SIDE, width=SIZES[name]["width"])
    settings = Gan(
        generator_rate=RATE,
        critic_rate=CRITIC_RATE,
        average=AVERAGE,
        augment="none",
    )
    generator = biggan.Generator(channels=CHANNELS, noise=NOISE, **common)
    critic = biggan.Critic(**common)
    state = gan.init_state(jax.random.key(0), generator, critic, settings)
    state = jax.device_put(
        state.replace(
            key=jax.random.key(0),
            generator=params,
            generator_spectral=spectral,
            critic=judge,
            critic_spectral=judge_spectral,
            average=params,
        )
    )
    update = functools.partial(
        gan.update, generator=generator, critic=critic, settings=settings
    )
    batches = jax.device_put(Batch(images, labels))
    compiled = jax.jit(update).lower(state, batches).compile()

    def run():
        after, metrics = jax.block_until_ready(compiled(state, batches))
        names = ("critic_loss", "generator_loss")
        gradient = after.generator_opt[0].mu
        return [float(metrics[name]) for name in names], gradient

    return run


def pretrain_noise():
    """What ``gan.update`` draws from key 0 in its first step."""
    import jax

    from ddjax import gan

    key = jax.random.fold_in(jax.random.key(0), 0)
    *critic, last = jax.random.split(key, CRITIC_STEPS + 1)
    keys = [jax.random.split(key, 3)[2] for key in critic]
    keys.append(jax.random.split(last)[1])
    return [np.array(gan.noise(key, BATCH, NOISE)) for key in keys]


def pretrain_torch(name, noise, place=CHANNELS_LAST):
    """The same in PyTorch; each call is the next step."""
    import torch
    import torch.nn.functional as F

    (generator, estimates), (critic, judged), images, labels = pretrain_problem(
        name
    )
    params = tensors(channels_first(generator), True, place)
    average = tensors(channels_first(generator), False, place)
    estimates = tensors(channels_first(estimates), False, place)
    judge = tensors(channels_first(critic), True, place)
    judged = tensors(channels_first(judged), False, place)
    adam, critic_adam = torch_adam(params, RATE), torch_adam(judge, CRITIC_RATE)
    real = [to_images(part, place) for part in images]
    labels, noise = place.put(labels), list(map(place.put, noise))
    make, rate = map(place.prepare, (torch_generator, torch_critic))
    step = 0

    def generate(noise, labels, keep):
        normed = spectral(params, estimates, keep)
        return 2 * make(normed, noise, labels, True, place) - 1

    def step_critic(number):
        with torch.no_grad():
            fake = generate(noise[number], labels[number], False)
        scores = rate(
            spectral(judge, judged, True),
            torch.cat([2 * real[number] - 1, fake]),
            labels[number].repeat(2),
        )
        genuine, made = scores.chunk(2)
        loss = F.relu(1 - genuine).mean() + F.relu(1 + made).mean()
        critic_adam.zero_grad()
        loss.backward()
        critic_adam.step()
        return loss.item()

    def run():
        nonlocal step
        losses = [step_critic(number) for number in range(CRITIC_STEPS)]
        for leaf in leaves(judge):
            leaf.requires_grad_(False)
        images = generate(noise[-1], labels[-1], True)
        normed = spectral(judge, judged, False)
        loss = -rate(normed, images, labels[-1]).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        for leaf in leaves(judge):
            leaf.requires_grad_(True)
        torch_average(average, params, step)
        step += 1
        return [float(np.mean(losses)), loss.item()], gradients(params)

    return run


# --- Operations of an update -------------------------------------------------


def operations(name):
    """{task: floating-point operations of one update}, by the layers' shapes.

    A convolution or linear layer costs as much again for each gradient.
    """
    width, network = 4 * SIZES[name]["width"], SIZES[name]["network"]

    def conv(side, taps, inputs, outputs):
        return 2 * side**2 * taps**2 * inputs * outputs

    first = 2 * NOISE * FIRST**2 * width  # whose input wants no gradient
    rest = conv(SIDE, 3, width, CHANNELS)
    for block in range(BLOCKS):
        side = FIRST << block
        rest += 2 * conv(2 * side, 3, width, width) + conv(
            side, 1, width, width
        )
    generator, with_gradient = first + rest, 2 * first + 3 * rest

    side, inputs, later = SIDE, CHANNELS, 2 * width
    for halved in HALVED:
        later += conv(side, 3, inputs, width) + conv(side, 3, width, width)
        side >>= halved
        later += halved * conv(side, 1, inputs, width)
        inputs = width
    # Of a critic's step nothing wants the gradient to the images.
    images = conv(SIDE, 3, CHANNELS, width) + conv(
        SIDE // 2, 1, CHANNELS, width
    )
    critic, judged = 3 * later - images, 2 * later

    side, inputs = SIDE, CHANNELS
    convnet = 2 * network * (SIDE >> DEPTH) ** 2 * CLASSES
    for _ in range(DEPTH):
        convnet += conv(side, 3, inputs, network)
        side, inputs = side // 2, network
    # Real images forward; made ones forward and back to the images.
    return {
        "distil": PER_CLASS * CLASSES * (with_gradient + 3 * convnet),
        "pretrain": BATCH
        * (CRITIC_STEPS * (generator + 2 * critic) + with_gradient + judged),
    }


# --- The comparison ----------------------------------------------------------


class Task(NamedTuple):
    jax: Callable
    torch: Callable
    noise: Callable  # what ours draws
    noise_shape: tuple[int, ...]
    tolerance: float  # of the gradient's difference to its length


TASKS = {
    "distil": Task(
        distil_jax,
        distil_torch,
        distil_noise,
        (1, PER_CLASS * CLASSES, NOISE),
        1e-3,
    ),
    # Looser: the critic has moved twice by Adam's first steps, which are of
    # equal length wherever a gradient is not 0 but for rounding.
    "pretrain": Task(
        pretrain_jax,
        pretrain_torch,
        pretrain_noise,
        (CRITIC_STEPS + 1, BATCH, NOISE),
        1e-2,
    ),
}


def child(side, task, name):
    """The peak of a process that makes two updates."""
    task = TASKS[task]
    if side == "jax":
        run = task.jax(name)
    else:
        rng = np.random.default_rng(1)
        noise = rng.normal(size=task.noise_shape).astype(np.float32)
        run = task.torch(name, noise)
    run(), run()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps(usage.ru_maxrss / 1024))


def print_memory(task, name):
    for side in ("jax", "torch"):
        command = [sys.executable, __file__, "--child", side, task, name]
        output = subprocess.run(
            command, check=True, capture_output=True, text=True
        ).stdout
        peak = json.loads(output.splitlines()[-1])
        print(
            f"{task} {name}: {side:5}  peak memory {peak:.0f} MiB", flush=True
        )


def print_times(task, name, repeats):
    make = TASKS[task]
    runs = {
        "jax": make.jax(name),
        "torch": make.torch(name, make.noise()),
    }
    (losses, gradient), (torch_losses, torch_gradient) = (
        run() for run in runs.values()
    )
    gradient = flat(channels_first(gradient))
    error = np.linalg.norm(gradient - torch_gradient)
    error /= np.linalg.norm(torch_gradient)
    off = max(abs(a - b) / abs(b) for a, b in zip(losses, torch_losses))
    work = operations(name)[task]
    print(
        f"{task} {name}: losses {losses} (jax) {torch_losses} (torch), off by "
        f"{off:.1e}; gradients by {error:.1e} of their length (at most "
        f"{make.tolerance:.0e}); {work / 1e9:.1f} GFLOP an update"
    )
    if not max(off, error) < make.tolerance:
        sys.exit("the two sides do not compute the same update")
    processor = {side: [] for side in runs}

    def measured(side):
        begin = time.process_time()
        runs[side]()
        processor[side].append(time.process_time() - begin)

    medians = unroll.take_turns(
        {side: functools.partial(measured, side) for side in runs}, repeats
    )
    ours, theirs = map(statistics.median, processor.values())
    print(
        f"  processor time, medians: jax {ours:.4f} s, torch {theirs:.4f} s, "
        f"ratio {ours / theirs:.3f}"
    )
    speeds = ", ".join(
        f"{side} {work / seconds / 1e9:.1f}"
        for side, seconds in medians.items()
    )
    print(f"  GFLOP/s: {speeds}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--no_memory", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(*args.child)
    cases = [(task, name) for task in args.tasks for name in args.sizes]
    # Memory first, while this process is small: a child starts with the peak
    # of the process that it was forked from.
    if not args.no_memory:
        for case in cases:
            print_memory(*case)
    for case in cases:
        print_times(*case, args.repeats)


if __name__ == "__main__":
    main()
