"""BigGAN generators in PyTorch, as an oracle for imported checkpoints.

    pip install -e '.[bench]'
    python experiments/benchmarks/torch_biggan.py --out=tests/data/biggan

writes what tests/test_published.py reads without PyTorch: a checkpoint of each
of ``CASES``, and in expected.npz the noise, the labels and what the generator
makes of them. Weights are random. Tensors have the names and shapes that
BigGAN-PyTorch and StudioGAN give them; spectral norms are those of each: of
the first, its own half steps from ``u0``; of the second, PyTorch's
``spectral_norm``. A few forward passes in training settle singular vectors and
moments, and images are made in evaluation.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

CHANNELS = {32: (4, 4, 4, 4), 128: (16, 16, 8, 4, 2, 1)}  # over the width


class Case(NamedTuple):
    """A checkpoint: its family, shape and file.

    Attributes:
      family: "brock" or "studio".
      size: of images, 32 or 128.
      width: channels are multiples of it.
      classes: k.
      part: length of the noise that goes into one place.
      embedding: of the class, shared by all norms; 0: a row a class in each.
      split: whether the norms have a part of the noise each.
      attention: side of the features with attention; 0: none.
      file: .pth as PyTorch writes it now, .old.pth as it did before 1.6, or
        .safetensors.
    """

    family: str
    size: int
    width: int
    classes: int
    part: int
    embedding: int
    split: bool
    attention: int
    file: str


CASES = {
    "brock32": Case("brock", 32, 2, 3, 6, 0, False, 0, "brock32.pth"),
    "brock128": Case("brock", 128, 1, 4, 2, 3, True, 16, "brock128.old.pth"),
    "studio32": Case("studio", 32, 2, 3, 4, 5, True, 16, "studio32.pth"),
    "studio128": Case(
        "studio", 128, 1, 3, 2, 3, True, 16, "studio128.safetensors"
    ),
}


class BrockNorm:
    """Spectral norm by one power iteration from ``u0`` at each use."""

    def start(self):
        rows = self.weight.shape[0]
        self.register_buffer("u0", torch.randn(1, rows))
        self.register_buffer("sv0", torch.ones(1))

    def divided(self):
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            v = functional.normalize(self.u0 @ matrix)
            u = functional.normalize(v @ matrix.T)
        sigma = (v @ matrix.T @ u.T).squeeze()
        if self.training:
            with torch.no_grad():
                self.u0.copy_(u)
                self.sv0.fill_(sigma)
        return self.weight / sigma


class BrockConv(nn.Conv2d, BrockNorm):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.start()

    def forward(self, x):
        return functional.conv2d(
            x, self.divided(), self.bias, padding=self.padding
        )


class BrockLinear(nn.Linear, BrockNorm):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.start()

    def forward(self, x):
        return functional.linear(x, self.divided(), self.bias)


def conv_of(family, into, out, taps, bias=True):
    kind = BrockConv if family == "brock" else nn.Conv2d
    made = kind(into, out, taps, padding=taps // 2, bias=bias)
    if family == "studio":
        made = nn.utils.spectral_norm(made, eps=1e-6)
    return made


def linear_of(family, into, out, bias=True):
    if family == "brock":
        return BrockLinear(into, out, bias=bias)
    return nn.utils.spectral_norm(nn.Linear(into, out, bias=bias), eps=1e-6)


class Norm(nn.Module):
    """Batch norm of a class, or of a class's embedding and noise."""

    def __init__(self, family, channels, classes, condition):
        super().__init__()
        for name in ("gain", "bias"):
            table = (
                linear_of(family, condition, channels, bias=False)
                if condition
                else nn.Embedding(classes, channels)
            )
            self.add_module(name, table)
        self.family = family
        if family == "brock":
            self.register_buffer("stored_mean", torch.zeros(channels))
            self.register_buffer("stored_var", torch.ones(channels))
        else:
            self.bn = nn.BatchNorm2d(channels, eps=1e-4, affine=False)

    def forward(self, x, condition):
        if self.family == "brock":
            x = functional.batch_norm(
                x,
                self.stored_mean,
                self.stored_var,
                training=self.training,
                eps=1e-5,
            )
        else:
            x = self.bn(x)
        gain, bias = self.gain(condition), self.bias(condition)
        return x * (1 + gain[..., None, None]) + bias[..., None, None]


class LastNorm(nn.Module):
    """Batch norm without a condition, of the first family."""

    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("stored_mean", torch.zeros(channels))
        self.register_buffer("stored_var", torch.ones(channels))

    def forward(self, x):
        return functional.batch_norm(
            x,
            self.stored_mean,
            self.stored_var,
            self.gain,
            self.bias,
            self.training,
            eps=1e-5,
        )


KERNELS = {
    "brock": ("conv1", "conv2", "conv_sc"),
    "studio": ("conv2d1", "conv2d2", "conv2d0"),
}
ATTENTION = {
    "brock": ("theta", "phi", "g", "o", "gamma"),
    "studio": (
        *(f"conv1x1_{name}" for name in ("theta", "phi", "g", "attn")),
        "sigma",
    ),
}


class Block(nn.Module):
    def __init__(self, family, into, out, classes, condition):
        super().__init__()
        self.names = first, second, short = KERNELS[family]
        self.bn1 = Norm(family, into, classes, condition)
        self.bn2 = Norm(family, out, classes, condition)
        self.add_module(first, conv_of(family, into, out, 3))
        self.add_module(second, conv_of(family, out, out, 3))
        self.add_module(short, conv_of(family, into, out, 1))

    def forward(self, x, condition):
        first, second, short = (getattr(self, name) for name in self.names)
        y = functional.interpolate(
            torch.relu(self.bn1(x, condition)), scale_factor=2
        )
        y = second(torch.relu(self.bn2(first(y), condition)))
        return y + short(functional.interpolate(x, scale_factor=2))


class Attention(nn.Module):
    def __init__(self, family, channels):
        super().__init__()
        self.names = theta, phi, g, out, gamma = ATTENTION[family]
        small, half = channels // 8, channels // 2
        for name, into, features in (
            (theta, channels, small),
            (phi, channels, small),
            (g, channels, half),
            (out, half, channels),
        ):
            self.add_module(name, conv_of(family, into, features, 1, False))
        shape = () if family == "brock" else (1,)
        self.register_parameter(gamma, nn.Parameter(torch.zeros(shape)))

    def forward(self, x, _):
        theta, phi, g, out, gamma = (getattr(self, n) for n in self.names)
        query = theta(x).flatten(2)
        key = functional.max_pool2d(phi(x), 2).flatten(2)
        value = functional.max_pool2d(g(x), 2).flatten(2)
        weight = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        mixed = (value @ weight.transpose(1, 2)).unflatten(2, x.shape[2:])
        return x + gamma * out(mixed)


class Generator(nn.Module):
    """noise [n d], labels [n] -> images [n 3 h w] in -1..1."""

    def __init__(self, case: Case):
        super().__init__()
        self.case = case
        family = case.family
        channels = [case.width * each for each in CHANNELS[case.size]]
        condition = case.embedding + case.part * case.split
        if case.embedding:
            self.shared = nn.Embedding(case.classes, case.embedding)
        dense = linear_of(family, case.part, 16 * channels[0])
        self.add_module("linear" if family == "brock" else "linear0", dense)
        self.dense = [dense]  # no second name in the state
        blocks, side = [], 4
        for into, out in itertools.pairwise(channels):
            block = Block(family, into, out, case.classes, condition)
            blocks.append([block])
            side *= 2
            if side == case.attention:
                attention = Attention(family, out)
                if family == "brock":
                    blocks[-1].append(attention)
                else:
                    blocks.append([attention])
        self.blocks = nn.ModuleList(map(nn.ModuleList, blocks))
        conv = conv_of(family, channels[-1], 3, 3)
        if family == "brock":
            self.output_layer = nn.Sequential(
                LastNorm(channels[-1]), nn.ReLU(), conv
            )
        else:
            self.bn4 = nn.BatchNorm2d(channels[-1], eps=1e-4)
            self.conv2d5 = conv

    def forward(self, noise, labels):
        case = self.case
        blocks = len(CHANNELS[case.size]) - 1
        first, *rest = noise.split(case.part, dim=1)
        conditions = [labels] * blocks
        if case.embedding:
            conditions = [self.shared(labels)] * blocks
        if case.split:
            conditions = [torch.cat(two, 1) for two in zip(conditions, rest)]
        x = self.dense[0](first).unflatten(1, (-1, 4, 4))
        done = 0
        for group in self.blocks:
            for layer in group:
                x = layer(x, conditions[min(done, blocks - 1)])
                done += isinstance(layer, Block)
        if case.family == "brock":
            return torch.tanh(self.output_layer(x))
        return torch.tanh(self.conv2d5(torch.relu(self.bn4(x))))


def noise_of(case: Case, count: int) -> torch.Tensor:
    places = len(CHANNELS[case.size]) if case.split else 1
    return torch.randn(count, case.part * places)


def made(case: Case, seed: int) -> Generator:
    """With random weights, settled, in evaluation."""
    torch.manual_seed(seed)
    model = Generator(case)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("gamma", "sigma")):
                weight.fill_(0.7)
            elif weight.ndim > 1:
                weight.normal_(std=weight[0].numel() ** -0.5)
            else:
                weight.add_(0.3 * torch.randn_like(weight))
        for _ in range(4):
            labels = torch.randint(case.classes, (16,))
            model(noise_of(case, 16), labels)
    return model.eval()


def images_of(model: Generator, noise, labels) -> np.ndarray:
    """[n h w 3], 0 is black and 1 is white."""
    with torch.no_grad():
        images = model(noise, labels)
    return ((images + 1) / 2).permute(0, 2, 3, 1).contiguous().numpy()


def save(case: Case, model: Generator, path: Path) -> None:
    """A checkpoint, in the format of its file's name."""
    state = model.state_dict()
    if path.suffix == ".safetensors":
        _save_safetensors(state, path)
        return
    if case.family == "studio":
        state = {"state_dict": state, "step": 1, "best_fid": np.float64(9.5)}
    torch.save(
        state,
        path,
        _use_new_zipfile_serialization=not path.name.endswith(".old.pth"),
    )


def _save_safetensors(state, path):
    header, at = {}, 0
    for name, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in state.values():
            file.write(tensor.contiguous().numpy().tobytes())


def thinned(images: np.ndarray) -> dict[str, np.ndarray]:
    """Every fourth pixel, and the mean of every row and column."""
    return {
        "pixels": images[:, ::4, ::4],
        "rows": images.mean(1),
        "columns": images.mean(2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    expected = {}
    for seed, (name, case) in enumerate(CASES.items()):
        model = made(case, seed)
        save(case, model, out / case.file)
        noise, labels = noise_of(case, 2), torch.tensor([0, case.classes - 1])
        images = images_of(model, noise, labels)
        print(f"{name}: pixels {images.mean():.2f} +- {images.std():.2f}")
        found = thinned(images) | {
            "noise": noise.numpy(),
            "labels": labels.numpy().astype(np.int32),
        }
        expected |= {f"{name}/{key}": value for key, value in found.items()}
    np.savez_compressed(out / "expected.npz", allow_pickle=False, **expected)


if __name__ == "__main__":
    main()
