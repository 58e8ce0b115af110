"""A distilled set in plain PyTorch: has it the accuracy that ddjax records?

    pip install -e '.[bench]'
    python experiments/iadd.py --config=configs/tiny.py
    python experiments/benchmarks/torch_check.py --distilled=runs/iadd-tiny

The set is exported to .pt, and what trains and tests on it knows those files,
PyTorch and scikit-learn's digits, and nothing of ddjax: the network, the
augmentation and the loop are written again here, from the papers. Prints both
accuracies and their difference; exit code 0 if its 95% interval holds 0.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn


def convnet(width: int, depth: int, side: int, classes: int) -> nn.Module:
    """Gidaris and Komodakis's network, as data set distillation uses it."""
    layers: list[nn.Module] = []
    for block in range(depth):
        layers += [
            nn.Conv2d(width if block else 1, width, 3, padding=1),
            nn.GroupNorm(width, width),
            nn.ReLU(),
            nn.AvgPool2d(2),
        ]
    features = width * (side // 2**depth) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, classes))


def warp(images, matrices):
    """Images sampled at affine images [n 2 2] of their positions."""
    shift = torch.zeros(len(images), 2, 1)
    grid = F.affine_grid(
        torch.cat([matrices, shift], 2), images.shape, align_corners=True
    )
    return F.grid_sample(images, grid, align_corners=True)


def crop(images):
    """Shifted by up to an eighth of the side, rounded half up."""
    side = images.shape[-1]
    most = int(side / 8 + 0.5)
    padded = F.pad(images, (most,) * 4)
    shifts = torch.randint(0, 2 * most + 1, (len(images), 2)).tolist()
    return torch.stack(
        [
            image[:, row : row + side, column : column + side]
            for image, (row, column) in zip(padded, shifts)
        ]
    )


def scale(images):
    """By 1 / 1.2 to 1.2, both sides on their own."""
    factors = 1 / 1.2 + torch.rand(len(images), 2) * (1.2 - 1 / 1.2)
    return warp(images, torch.diag_embed(factors))


def rotate(images):
    """By up to 15 degrees."""
    angles = (2 * torch.rand(len(images)) - 1) * math.pi / 12
    cos, sin = angles.cos(), angles.sin()
    rows = [torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)]
    return warp(images, torch.stack(rows, 1))


GROUPS = {"crop": crop, "scale": scale, "rotate": rotate}


def digits(mean: float, std: float):
    """Every fifth digit of each class, as the network sees it; labels."""
    bunch = load_digits()
    chosen = np.concatenate(
        [np.flatnonzero(bunch.target == k)[::5] for k in range(10)]
    )
    levels = np.rint(bunch.images[chosen] * 255 / 16) / 255
    inputs = torch.tensor((levels - mean) / std, dtype=torch.float32)
    return inputs[:, None], torch.tensor(bunch.target[chosen])


def accuracy(folder: Path, network: nn.Module) -> float:
    """Of a network that is trained on the exported set."""
    about = json.loads((folder / "about.json").read_text())
    images = torch.load(folder / "images_best.pt", weights_only=True)
    labels = torch.load(folder / "labels_best.pt", weights_only=True)
    recipe = about["evaluation"]
    steps = recipe["epochs"]
    if len(images) > recipe["batch_size"]:
        sys.exit("error: this check takes all images in one step; take fewer")
    optimizer = torch.optim.SGD(
        network.parameters(),
        about["learning_rate"],
        momentum=recipe["momentum"],
        weight_decay=recipe["weight_decay"],
    )
    for step in range(steps):
        if step == steps // 2:
            optimizer.param_groups[0]["lr"] *= 0.1
        batch = images
        if recipe["augment"]:
            group = torch.randint(len(recipe["augment"]), ()).item()
            batch = GROUPS[recipe["augment"][group]](images)
        loss = F.cross_entropy(network(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    inputs, truth = digits(about["mean"][0], about["std"][0])
    with torch.no_grad():
        found = network(inputs).argmax(1)
    return (found == truth).double().mean().item()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--distilled", type=Path, required=True)
    parser.add_argument("--networks", type=int, default=10)
    args = parser.parse_args()

    import ddjax
    from ddjax.evaluate import difference, summarise
    from ddjax.runs import scores

    run = ddjax.load(args.distilled)
    config = run.metadata["config"]
    if config["data.source"] != "digits":
        sys.exit(
            "error: this check knows the digits alone: see configs/tiny.py"
        )
    recorded = run.scores["distilled"]["convnet"]["accuracies"]
    torch.manual_seed(0)
    found = []
    with tempfile.TemporaryDirectory() as parent:
        folder = run.export("pt", Path(parent) / "exported")
        for _ in range(args.networks):
            network = convnet(
                config["model.width"], config["model.depth"], 8, 10
            )
            found.append(accuracy(folder, network))
    for what, values in (("ddjax", recorded), ("PyTorch", found)):
        print(f"{what:8} {scores.line('convnet', summarise(values))}")
    gap = difference(recorded, found)
    print(f"ddjax - PyTorch: {scores.gain_line(gap._asdict())}")
    return 0 if gap.low is None or gap.low <= 0 <= gap.high else 1


if __name__ == "__main__":
    sys.exit(main())
