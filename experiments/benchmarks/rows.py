"""What ``all.py`` measures: its rows, both sides of each, their arithmetic.

Nothing heavy is imported before it is needed, so that a process that measures
one side's memory holds that side only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import d2m
import numpy as np
import unroll

RATE, TEACHER_STEPS, TEACHER_BATCH, TEACHERS = 0.01, 4, 256, 2
# Of an evaluation: a fortieth of 1,000 epochs and of 10,000 test images, in
# numbers that ours takes at a time without padding, on a CPU or elsewhere.
NETWORKS, EPOCHS, TEST_IMAGES, MOMENTUM, DECAY = 10, 25, 256, 0.9, 5e-4
TOLERANCE = 1e-3  # of the losses, relative
GAN_SIZE = "width16"


def size_of(width=128, side=32, depth=3, batch=10):
    """A ConvNet and its batch, as ``unroll.problem`` takes them."""
    return dict(side=side, channels=3, width=width, depth=depth, batch=batch)


class Side(NamedTuple):
    """One side of a row, built.

    Attributes:
      run: does the work once and waits for it.
      losses: a list of numbers that both sides must share; called before
        ``run`` is on PyTorch's side, whose parameters go on from call to call.
    """

    run: Callable[[], Any]
    losses: Callable[[], list[float]]


class Row(NamedTuple):
    """A row of the table.

    Attributes:
      title: what is done once.
      ours: builds our Side.
      theirs: builds PyTorch's, of a Placement and of whether the process is
        to be without JAX; then numbers that come of its keys are others.
      operations: (ours, theirs), floating-point operations of one run.
      compiles: whether PyTorch's compiler can take the row: it has no second
        derivative, so not the unroll.
    """

    title: str
    ours: Callable[[], Side]
    theirs: Callable[[unroll.Placement, bool], Side]
    operations: tuple[float, float]
    compiles: bool = True


# --- Arithmetic --------------------------------------------------------------


def products(size):
    """(first, rest): operations of the products of one forward pass.

    Two for each multiplication of a convolution or linear layer as the layer
    is defined, borders counted as if padding were data. Norms, activations,
    pooling and the optimiser are left out. ``first`` is the layer that reads
    the images, ``rest`` all others, for one image.
    """
    side, width = size["side"], size["width"]
    layers, inputs = [], size["channels"]
    for _ in range(size["depth"]):
        layers.append(2 * side**2 * 9 * inputs * width)
        side, inputs = side // 2, width
    return layers[0], sum(layers[1:]) + 2 * side**2 * width * unroll.CLASSES


def unroll_operations(size, steps):
    """(ours, PyTorch's) of one unroll and its gradient to the images.

    An inner step of ours has ten products as large as a layer's forward one:
    3 forward ones (the value, and two in the derivatives of the kernel
    gradient and of the input gradient), 4 input gradients (of which one is
    made again going back) and 3 kernel gradients. PyTorch keeps everything
    and makes nothing again, so has nine. The layer that reads the images
    wants no input gradient in the inner step, which takes three products off,
    and its value, which is large, is made again in ours: seven and six.
    """
    first, rest = products(size)
    images = steps * size["batch"]
    return images * (7 * first + 10 * rest), images * (6 * first + 9 * rest)


def training_operations(size, images):
    """Of plain training: forward, kernel gradient, but in the first layer
    input gradient."""
    first, rest = products(size)
    return images * (2 * first + 3 * rest)


def evaluation_operations(size):
    """Of networks trained on the batch and tested."""
    trained = training_operations(size, EPOCHS * size["batch"])
    return NETWORKS * (trained + TEST_IMAGES * sum(products(size)))


# --- The unroll --------------------------------------------------------------


def unroll_row(title, steps, **size):
    size = size_of(**size)

    def side(run):
        return Side(run, lambda: [run()[0]])

    return Row(
        title,
        lambda: side(unroll.jax_side(size, steps)[0]),
        lambda place, _: side(unroll.torch_side(size, steps, place)[0]),
        unroll_operations(size, steps),
        compiles=False,
    )


# --- The network of plain training ------------------------------------------


def torch_module(size, params, place):
    """The ConvNet as its users write it, from our parameters.

    Args:
      params: as ``unroll.problem`` has them.
    """
    import torch
    from torch import nn

    layers, inputs, width = [], size["channels"], size["width"]
    positions = (size["side"] >> size["depth"]) ** 2
    for _ in range(size["depth"]):
        layers += [
            nn.Conv2d(inputs, width, 3, padding=1),
            nn.GroupNorm(width, width),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2),
        ]
        inputs = width
    layers += [nn.Flatten(), nn.Linear(width * positions, unroll.CLASSES)]
    module = nn.Sequential(*layers)
    params = d2m.channels_first(params, positions=positions)
    names = [
        f"{kind}{block}"
        for block in range(size["depth"])
        for kind in ("conv", "norm")
    ]
    holders = [part for part in module if list(part.parameters())]
    with torch.no_grad():
        for name, holder in zip([*names, "head"], holders):
            weight = params[name].get("kernel", params[name].get("scale"))
            holder.weight.copy_(torch.from_numpy(weight))
            holder.bias.copy_(torch.from_numpy(params[name]["bias"]))
    last = torch.channels_last if place.channels_last else None
    return module.to(
        place.device, memory_format=last or torch.contiguous_format
    )


def torch_sgd(module, **options):
    import torch

    return torch.optim.SGD(module.parameters(), RATE, fused=True, **options)


# --- A teacher's epoch -------------------------------------------------------


def teacher_problem(size):
    """(start, images, labels) of an epoch."""
    count = TEACHER_STEPS * size["batch"]
    start, _, images, labels = unroll.problem({**size, "batch": count}, 1)
    return start, images, labels


def teacher_order(size):
    """[t b], the order in which ours visits the images."""
    import jax

    from ddjax import training

    count = TEACHER_STEPS * size["batch"]
    key = jax.random.split(jax.random.key(0), 1)[0]
    return np.array(training.plan_epoch(key, count, size["batch"]).indices)


def teacher_ours(size):
    import jax
    import jax.numpy as jnp
    import training as benchmark

    from ddjax import training
    from ddjax.types import Batch

    start, images, labels = teacher_problem(size)
    recipe = training.Recipe(epochs=1, batch_size=size["batch"])
    train = benchmark.trainer(size, recipe, TEACHER_STEPS)
    data = Batch(images, np.eye(unroll.CLASSES, dtype=np.float32)[labels])
    arguments = jax.device_put((start, jax.tree.map(jnp.asarray, data)))

    def run():
        return jax.block_until_ready(train(*arguments))

    return Side(run, lambda: np.asarray(run()[2]).tolist())


def teacher_theirs(size, place, alone):
    import torch
    import torch.nn.functional as F

    start, images, labels = teacher_problem(size)
    order = np.arange(len(labels)).reshape(TEACHER_STEPS, -1)
    if not alone:
        order = teacher_order(size)
    module = torch_module(size, start, place)
    begin = [leaf.detach().clone() for leaf in module.parameters()]
    pixels, labels = d2m.to_images(images, place), place.put(labels)
    order, network = place.put(order), place.prepare(module)

    def run():
        with torch.no_grad():
            torch._foreach_copy_(list(module.parameters()), begin)
        optimizer, losses = torch_sgd(module), []
        for batch in order:
            loss = F.cross_entropy(network(pixels[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return [torch.stack(losses).mean().item()]

    return Side(run, run)


def teachers_ours(size):
    """Several from one start, side by side, as a run trains them."""
    import jax
    import jax.numpy as jnp

    from ddjax import training, trajectories
    from ddjax.types import Batch

    start, images, labels = teacher_problem(size)
    eye = np.eye(unroll.CLASSES, dtype=np.float32)
    data = Batch(jnp.asarray(images), jnp.asarray(eye[labels]))
    recipe = training.Recipe(epochs=1, batch_size=size["batch"])
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf] * TEACHERS), start)
    optimizer = training.sgd(recipe, RATE, 1)
    carry = starts, jax.vmap(optimizer.init)(starts)
    keys = jax.random.split(jax.random.key(0), TEACHERS)
    module = unroll.network(size)

    def run():
        return jax.block_until_ready(
            trajectories.advance(
                carry,
                keys,
                0,
                data,
                module,
                recipe=recipe,
                learning_rate=RATE,
            )
        )

    return Side(run, teacher_ours(size).losses)


def teachers_theirs(size, place, alone):
    """One after another: that is how its users train them."""
    one = teacher_theirs(size, place, alone)
    return Side(lambda: [one.run() for _ in range(TEACHERS)], one.losses)


def teacher_row(title, count, **size):
    size = size_of(batch=TEACHER_BATCH, **size)
    work = count * training_operations(size, TEACHER_STEPS * size["batch"])
    ours, theirs = (
        (teacher_ours, teacher_theirs)
        if count == 1
        else (teachers_ours, teachers_theirs)
    )
    return Row(
        title,
        lambda: ours(size),
        lambda place, alone: theirs(size, place, alone),
        (work, work),
    )


# --- Evaluation --------------------------------------------------------------


def evaluation_problem(size):
    """(first parameters, images, labels, test images, test labels).

    The brightness of an image tells its class, with much noise.
    """
    batch = size["batch"]
    start, _, images, labels = unroll.problem(
        {**size, "batch": batch + TEST_IMAGES}, 1
    )
    images += (0.1 * labels[:, None, None, None]).astype(np.float32)
    return start, images[:batch], labels[:batch], images[batch:], labels[batch:]


def evaluation_keys():
    """[(of the first parameters, of the training)], a network each."""
    import jax

    keys = (jax.random.fold_in(jax.random.key(0), i) for i in range(NETWORKS))
    return [jax.random.split(key) for key in keys]


def evaluation_ours(size):
    import jax
    import jax.numpy as jnp

    from ddjax import evaluate, losses, models, training
    from ddjax.types import Batch

    _, images, labels, test_images, test_labels = evaluation_problem(size)
    module, eye = unroll.network(size), np.eye(unroll.CLASSES, dtype=np.float32)
    recipe = training.Recipe(
        epochs=EPOCHS,
        batch_size=size["batch"],
        momentum=MOMENTUM,
        weight_decay=DECAY,
        decay_at_half=True,
    )
    sample = evaluate.stored(images, eye[labels])
    test = Batch(jnp.asarray(test_images), test_labels)

    def run():
        return evaluate.evaluate(
            jax.random.key(0),
            sample,
            test,
            module,
            recipe=recipe,
            learning_rate=RATE,
            num_networks=NETWORKS,
        ).accuracy

    def first_loss():
        """Of the first network, on the test images: finer than accuracy."""
        init_key, train_key = evaluation_keys()[0]
        params = training.train(
            train_key,
            models.init_params(module, init_key, images.shape[1:]),
            sample,
            jnp.float32(RATE),
            module=module,
            recipe=recipe,
        )
        logits, _ = training.apply_fn_of(module)(params, test.images)
        return [float(losses.cross_entropy(logits, eye[test_labels]))]

    return Side(run, first_loss)


def evaluation_starts(size, shape):
    """The parameters that ours begins with, as NumPy arrays, by network."""
    import jax

    from ddjax import models

    module = unroll.network(size)
    return [
        jax.tree.map(np.asarray, models.init_params(module, key, shape))
        for key, _ in evaluation_keys()
    ]


def evaluation_theirs(size, place, alone):
    """One network after another, as the literature's scripts have it."""
    import torch
    import torch.nn.functional as F

    start, images, labels, test_images, test_labels = evaluation_problem(size)
    starts = [start] * NETWORKS
    if not alone:
        starts = evaluation_starts(size, images.shape[1:])
    begins = [
        [leaf.detach() for leaf in torch_module(size, one, place).parameters()]
        for one in starts
    ]
    module = torch_module(size, start, place)
    network = place.prepare(module)
    pixels, test = (
        d2m.to_images(part, place) for part in (images, test_images)
    )
    labels, test_labels = map(place.put, (labels, test_labels))

    def logits_of(begin):
        with torch.no_grad():
            torch._foreach_copy_(list(module.parameters()), begin)
        optimizer = torch_sgd(module, momentum=MOMENTUM, weight_decay=DECAY)
        for step in range(EPOCHS):
            if step == EPOCHS // 2:
                optimizer.param_groups[0]["lr"] *= 0.1
            loss = F.cross_entropy(network(pixels), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            return network(test)

    def run():
        right = [
            (logits_of(begin).argmax(1) == test_labels).float().mean()
            for begin in begins
        ]
        return torch.stack(right).cpu().numpy()

    def first_loss():
        return [F.cross_entropy(logits_of(begins[0]), test_labels).item()]

    return Side(run, first_loss)


def evaluation_row(title, **size):
    size = size_of(**size)
    work = evaluation_operations(size)
    return Row(
        title,
        lambda: evaluation_ours(size),
        lambda place, alone: evaluation_theirs(size, place, alone),
        (work, work),
    )


# --- D2M ---------------------------------------------------------------------


def gan_row(title, task):
    make, work = d2m.TASKS[task], d2m.operations(GAN_SIZE)[task]

    def side(run):
        return Side(run, lambda: run()[0])

    def theirs(place, alone):
        rng = np.random.default_rng(1)
        noise = rng.normal(size=make.noise_shape).astype(np.float32)
        if not alone:
            noise = make.noise()
        return side(make.torch(GAN_SIZE, noise, place))

    return Row(
        title,
        lambda: side(make.jax(GAN_SIZE)),
        theirs,
        (work, work),
    )


ROWS = {
    "unroll": unroll_row("unroll, J=10 x 10 images", 10),
    "unroll-long": unroll_row("unroll, J=50 x 10", 50),
    "unroll-batch": unroll_row("unroll, J=30 x 100", 30, batch=100),
    "unroll-narrow": unroll_row("unroll, J=10 x 10, width 32", 10, width=32),
    "unroll-large": unroll_row(
        "unroll, J=10 x 10, 64 px, depth 4", 10, side=64, depth=4
    ),
    "teacher": teacher_row(
        f"a teacher's epoch, {TEACHER_STEPS} x {TEACHER_BATCH} images", 1
    ),
    "teachers": teacher_row(
        f"{TEACHERS} teachers' epochs, {TEACHER_STEPS} x {TEACHER_BATCH}",
        TEACHERS,
    ),
    "evaluation": evaluation_row(
        f"evaluation, {NETWORKS} networks of width 64, {EPOCHS} steps", width=64
    ),
    "d2m": gan_row("D2M, a step", "distil"),
    "pretrain": gan_row("D2M's pre-training, a step", "pretrain"),
}
QUICK = ("unroll", "unroll-narrow", "teacher", "teachers", "evaluation")
