"""Published BigGAN checkpoints of PyTorch as our folded generator.

Two layouts of tensors are known, by their names:

    Brock       the authors' PyTorch release, github.com/ajbrock/BigGAN-PyTorch,
                and what is built on it (DiffAugment's CIFAR-10 and CIFAR-100)
    StudioGAN   "big_resnet" of github.com/POSTECH-CVLab/PyTorch-StudioGAN

Both store kernels as they are trained, beside the singular vectors of their
spectral norms, and batch norms with running moments. Here each kernel is
divided by the norm that the network in evaluation takes, W / (u W v), and
moments go into scales and biases. Widths, latents, classes and the place of
attention follow from the tensors' shapes.

Source: Brock, Donahue and Simonyan, ICLR 2019, arXiv 1809.11096; Kang et al.,
"StudioGAN", TPAMI 2023, arXiv 2206.09479; Miyato et al., ICLR 2018.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddjax.models import biggan
from ddjax.types import InputError, Params

__all__ = ["Imported", "generator", "with_classes"]


class _Layout(NamedTuple):
    """Names of one family of checkpoints, and the epsilon of its norms."""

    title: str
    dense: str
    block: Mapping[str, str]
    attention: Mapping[str, str]
    gamma: str
    norm: str
    scale: str
    moments: tuple[tuple[str, str], ...]
    conv: str
    epsilon: float


_BROCK = _Layout(
    title="Brock",
    dense="linear",
    block={"conv0": "conv1", "conv1": "conv2", "shortcut": "conv_sc"},
    attention={"theta": "theta", "phi": "phi", "values": "g", "out": "o"},
    gamma="gamma",
    norm="output_layer.0",
    scale="gain",
    moments=(
        ("stored_mean", "stored_var"),
        ("bn.stored_mean", "bn.stored_var"),
        ("bn.running_mean", "bn.running_var"),
    ),
    conv="output_layer.2",
    epsilon=1e-5,
)
_STUDIO = _Layout(
    title="StudioGAN",
    dense="linear0",
    block={"conv0": "conv2d1", "conv1": "conv2d2", "shortcut": "conv2d0"},
    attention={
        "theta": "conv1x1_theta",
        "phi": "conv1x1_phi",
        "values": "conv1x1_g",
        "out": "conv1x1_attn",
    },
    gamma="sigma",
    norm="bn4",
    scale="weight",
    moments=(
        ("bn.running_mean", "bn.running_var"),
        ("running_mean", "running_var"),
    ),
    conv="conv2d5",
    epsilon=1e-4,
)
_NORMS = {"norm0": "bn1", "norm1": "bn2"}  # in both
_PLACE = re.compile(r"blocks\.(\d{1,3})\.(\d{1,3})\.")
# What evaluation does not read: logged norms, further singular vectors of
# which only the first is divided by, and counts of training.
_UNREAD = re.compile(r"(.*\.)?(sv\d+|u[1-9]\d*|num_batches_tracked)")


class Imported(NamedTuple):
    """What a checkpoint became.

    Attributes:
      module: the folded form.
      params: of it, float32.
      layout: "Brock" or "StudioGAN".
    """

    module: biggan.Generator
    params: Params
    layout: str


class _Tensors:
    """The tensors of a checkpoint, and which of them were taken."""

    def __init__(self, found: Mapping[str, np.ndarray]):
        self.found = found
        self.taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def take(self, name: str, *shape: int | None) -> np.ndarray:
        """float64, of a shape in which None is any."""
        if name not in self.found:
            raise InputError(
                f"the checkpoint has no tensor {name}: it is no BigGAN "
                "generator of a known layout, or not whole"
            )
        self.taken.add(name)
        array = self.found[name]
        fits = array.dtype.kind == "f" and array.ndim == len(shape)
        if not (fits and array.size) or not all(
            wanted in (None, n) for wanted, n in zip(shape, array.shape)
        ):
            wanted = tuple("any" if n is None else n for n in shape)
            raise InputError(
                f"the checkpoint's {name} is {array.dtype} of shape "
                f"{array.shape}, where a BigGAN of its other tensors has "
                f"floats of shape ({', '.join(map(str, wanted))})"
            )
        return array.astype(np.float64)

    def kernel(self, name: str, *shape: int | None) -> np.ndarray:
        """A weight [o ..] as evaluation uses it, over its spectral norm."""
        for stored, u, v in (
            (f"{name}.weight_orig", f"{name}.weight_u", f"{name}.weight_v"),
            (
                f"{name}.parametrizations.weight.original",
                f"{name}.parametrizations.weight.0._u",
                f"{name}.parametrizations.weight.0._v",
            ),
        ):
            if stored in self:
                weight = self.take(stored, *shape)
                matrix = weight.reshape(len(weight), -1)
                u = self.take(u, matrix.shape[0])
                v = self.take(v, matrix.shape[1])
                return _divided(weight, u @ matrix @ v, name)
        weight = self.take(f"{name}.weight", *shape)
        if f"{name}.u0" not in self:
            return weight
        # Half a step of power iteration gives v, another the norm.
        matrix = weight.reshape(len(weight), -1)
        v = _unit(self.take(f"{name}.u0", 1, len(matrix))[0] @ matrix)
        u = _unit(matrix @ v)
        return _divided(weight, u @ matrix @ v, name)

    def conv(self, name, out, into, taps=3, bias=True):
        """[o i kh kw] as {"kernel": [kh kw i o], "bias": [o]}."""
        kernel = self.kernel(name, out, into, taps, taps)
        result = {"kernel": kernel.transpose(2, 3, 1, 0)}
        if bias:
            result["bias"] = self.take(f"{name}.bias", out)
        return result

    def moments(self, name, names, channels):
        """Mean and variance [c], whichever of the names they have."""
        mean, variance = next(
            (pair for pair in names if f"{name}.{pair[0]}" in self), names[0]
        )
        found = [
            self.take(f"{name}.{part}", channels) for part in (mean, variance)
        ]
        # Sums over so many batches, while this is not 0.
        counter = f"{name}.bn.accumulation_counter"
        if counter in self:
            found = [part / max(self.take(counter, 1)[0], 1) for part in found]
        return found

    def check_all_taken(self) -> None:
        """InputError naming what no generator of this layout has."""
        rest = [
            name
            for name in self.found
            if name not in self.taken and not _UNREAD.fullmatch(name)
        ]
        if rest:
            raise InputError(
                "the checkpoint has tensors that a BigGAN of its other ones "
                f"has no place for: {', '.join(rest[:5])}"
                + (f" .. ({len(rest)})" if len(rest) > 5 else "")
            )


def _unit(vector):
    return vector / max(np.linalg.norm(vector), 1e-12)


def _divided(weight, norm, name):
    if not norm or not np.isfinite(norm):
        raise InputError(
            f"the checkpoint's {name} has a spectral norm of {norm:g}, by "
            "which nothing can be divided: the training has failed"
        )
    return weight / norm


def _state_of(checkpoint: Any) -> dict[str, np.ndarray]:
    """{name: array} of what was saved: a state dict, or a dict with one."""
    if isinstance(checkpoint, dict) and isinstance(
        checkpoint.get("state_dict"), dict
    ):
        checkpoint = checkpoint["state_dict"]
    if (
        not isinstance(checkpoint, dict)
        or not checkpoint
        or not all(
            isinstance(name, str) and isinstance(value, np.ndarray)
            for name, value in checkpoint.items()
        )
    ):
        raise InputError(
            "the checkpoint is no dict of named tensors: give a generator's "
            "state dict, such as G_ema.pth"
        )
    # What DataParallel puts before every name.
    if all(name.startswith("module.") for name in checkpoint):
        return {
            name.removeprefix("module."): value
            for name, value in checkpoint.items()
        }
    return checkpoint


def _layout_of(names) -> _Layout:
    for layout in (_BROCK, _STUDIO):
        if any(name.startswith(f"{layout.dense}.") for name in names):
            return layout
    if any(name.startswith("generator.gen_z.") for name in names):
        raise InputError(
            "the checkpoint is a BigGAN-deep, whose blocks are others: give a "
            "BigGAN of BigGAN-PyTorch or StudioGAN"
        )
    raise InputError(
        "the checkpoint is of no known layout: give a BigGAN generator of "
        "BigGAN-PyTorch (such as G_ema.pth) or of StudioGAN (big_resnet)"
    )


def _parts(tensors: _Tensors, layout: _Layout) -> tuple[list[str], str, int]:
    """Prefixes of the blocks, that of attention ("" for none), its side."""
    found = {
        tuple(map(int, match.groups()))
        for match in map(_PLACE.match, tensors.found)
        if match
    }
    blocks, attention, side = [], "", 0
    for first, second in sorted(found):
        prefix = f"blocks.{first}.{second}."
        theta = f"{prefix}{layout.attention['theta']}."
        if not any(name.startswith(theta) for name in tensors.found):
            blocks.append(prefix)
        elif attention or not blocks:
            raise InputError(
                "the checkpoint has self-attention at more than one place, or "
                "before the first block, and ours has it once, after a block"
            )
        else:
            attention, side = prefix, 4 << len(blocks)
    return blocks, attention, side


def _channels(tensors: _Tensors, layout: _Layout, blocks: list[str]):
    """(size, width, channels into the first block and out of each)."""
    size = 4 << len(blocks)
    if size not in biggan.SIZES:
        raise InputError(
            f"the checkpoint has {len(blocks)} blocks, which make images of "
            f"{size} pixels: ours are of {', '.join(map(str, biggan.SIZES))}"
        )
    found = []
    for prefix in blocks:
        kernel = tensors.kernel(
            prefix + layout.block["conv0"], None, None, 3, 3
        )
        found.append(kernel.shape[1])
    found.append(kernel.shape[0])
    multiples = biggan.multiples(size)
    width = found[-1] // multiples[-1]
    if tuple(found) != tuple(width * multiple for multiple in multiples):
        raise InputError(
            f"the checkpoint's blocks have {found} channels, and a BigGAN of "
            f"{size} pixels multiples of {list(multiples)}"
        )
    return size, width, found


def _attention(tensors: _Tensors, layout: _Layout, prefix: str, wide: int):
    shapes = {
        "theta": (wide // 8, wide),
        "phi": (wide // 8, wide),
        "values": (wide // 2, wide),
        "out": (wide, wide // 2),
    }
    params = {
        ours: tensors.conv(
            prefix + layout.attention[ours], *shape, taps=1, bias=False
        )
        for ours, shape in shapes.items()
    }
    gamma = prefix + layout.gamma
    shape = tensors.found[gamma].shape and (1,) if gamma in tensors else ()
    return params | {"gamma": tensors.take(gamma, *shape).reshape(())}


def generator(checkpoint: Any, *, epsilon: float | None = None) -> Imported:
    """The folded generator of a checkpoint, of all its classes.

    Args:
      checkpoint: what ``ddjax.tensors.read`` gave: {name: array}, or a dict
        with that as "state_dict".
      epsilon: of its batch norms; None takes the layout's, 1e-5 (Brock) or
        1e-4 (StudioGAN).

    Raises:
      InputError: it is of no known layout, a tensor is missing or has no
        place, or shapes do not make a BigGAN.
    """
    tensors = _Tensors(_state_of(checkpoint))
    layout = _layout_of(tensors.found)
    blocks, attention, side = _parts(tensors, layout)
    size, width, channels = _channels(tensors, layout, blocks)
    if epsilon is None:
        epsilon = layout.epsilon

    first = channels[0]
    dense = tensors.kernel(layout.dense, 16 * first, None)
    # [c h w, d] to [d, h w c].
    kernel = dense.reshape(first, 16, -1).transpose(2, 1, 0)
    bias = tensors.take(f"{layout.dense}.bias", 16 * first)
    params: dict[str, Any] = {
        "dense": {
            "kernel": kernel.reshape(dense.shape[1], -1),
            "bias": bias.reshape(first, 16).T.reshape(-1),
        }
    }

    shared = "shared.weight" in tensors
    if shared:
        params["classes"] = tensors.take("shared.weight", None, None)
        available, embedding = params["classes"].shape
        condition = tensors.kernel(f"{blocks[0]}bn1.gain", first, None).shape[1]
        part = condition - embedding
        if part not in (0, dense.shape[1]):
            raise InputError(
                f"the checkpoint's norms take {condition} numbers, and its "
                f"embedding has {embedding} and its first layer "
                f"{dense.shape[1]}: they must be the first, or the sum of both"
            )
    else:
        available = len(
            tensors.take(f"{blocks[0]}bn1.gain.weight", None, first)
        )
        embedding = part = 0

    def norm(name, out):
        mean, variance = tensors.moments(name, layout.moments, out)
        if shared:
            kernels = {
                f"{ours}_kernel": tensors.kernel(
                    f"{name}.{theirs}", out, condition
                ).T
                for ours, theirs in (("scale", "gain"), ("bias", "bias"))
            }
            return biggan.absorb_norm(kernels, mean, variance, epsilon)
        scale, bias = (
            tensors.take(f"{name}.{part}.weight", available, out)
            for part in ("gain", "bias")
        )
        return biggan.absorb_norm(
            {"scale": 1 + scale, "bias": bias}, mean, variance, epsilon
        )

    for number, prefix in enumerate(blocks):
        into, out = channels[number : number + 2]
        params[f"block{number}"] = {
            **{
                ours: norm(prefix + theirs, wide)
                for (ours, theirs), wide in zip(_NORMS.items(), (into, out))
            },
            "conv0": tensors.conv(prefix + layout.block["conv0"], out, into),
            "conv1": tensors.conv(prefix + layout.block["conv1"], out, out),
            "shortcut": tensors.conv(
                prefix + layout.block["shortcut"], out, into, taps=1
            ),
        }
    if attention:
        wide = channels[side.bit_length() - 3]
        params["attention"] = _attention(tensors, layout, attention, wide)
    last = channels[-1]
    params["norm"] = biggan.absorb_norm(
        {
            "scale": tensors.take(f"{layout.norm}.{layout.scale}", last),
            "bias": tensors.take(f"{layout.norm}.bias", last),
        },
        *tensors.moments(layout.norm, layout.moments, last),
        # The authors give their flag to the other norms alone.
        layout.epsilon,
    )
    params["conv"] = tensors.conv(layout.conv, None, last)
    tensors.check_all_taken()
    hierarchical = part > 0
    module = biggan.Generator(
        num_classes=available,
        size=size,
        channels=len(params["conv"]["bias"]),
        width=width,
        noise=dense.shape[1] * (len(blocks) + 1 if hierarchical else 1),
        embedding=embedding,
        attention=side,
        hierarchical=hierarchical or not shared,
        form=biggan.FOLDED,
    )
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    return Imported(module, params, layout.title)


def with_classes(found: Imported, rows: Sequence[int]) -> Imported:
    """The same generator for some of its classes.

    Args:
      found: the generator.
      rows: the numbers of its classes, in the order that they are to have.

    Raises:
      InputError: one is not there, or named twice.
    """
    available = found.module.num_classes
    for row in rows:
        if not 0 <= row < available or rows.count(row) > 1:
            what = "twice" if 0 <= row < available else "wrong"
            raise InputError(
                f"class {row} is {what} in --classes: choose from the "
                f"checkpoint's, 0..{available - 1}"
            )
    rows = np.asarray(rows)
    params = dict(found.params)
    if found.module.embedding:
        params["classes"] = params["classes"][rows]
    else:
        for name, block in params.items():
            if name.startswith("block"):
                params[name] = block | {
                    norm: jax.tree.map(lambda table: table[rows], block[norm])
                    for norm in _NORMS
                }
    module = found.module.clone(num_classes=len(rows))
    return found._replace(module=module, params=params)
