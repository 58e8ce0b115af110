"""Every field of a run, once: its type, its default, its meaning, its check.

``Settings`` is all of them, in parts that go to what needs them:
``iadd.update`` takes an ``Iadd`` and knows nothing of the data. Parts are
frozen and hashable, so that one can be a static argument of ``jax.jit``. An
impossible part cannot be made: its constructor raises InputError with the
sentence that a user reads.

The type of a field's default is the field's type. A dotted name, such as
"iadd.ipc", is how a field is called in config files, on the command line
(``--config.iadd.ipc=10``), in config.json and in ``ddjax.distill``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ddjax import augment, models
from ddjax.data import decode, preprocess, sources
from ddjax.models import layers
from ddjax.types import InputError

__all__ = [
    "BASELINES",
    "DSA",
    "METRICS",
    "PROXIES",
    "D2m",
    "Data",
    "Evaluate",
    "Gan",
    "Iadd",
    "Importance",
    "Log",
    "Model",
    "Nas",
    "Privacy",
    "Settings",
    "Teacher",
    "check_range",
    "fields",
    "numbers",
]

DSA = "color_crop_cutout_flip_scale_rotate"
"""All groups of differentiable siamese augmentation, as MTT uses them."""

METRICS = ("accuracy", "balanced_accuracy")

BASELINES = ("herding", "k_centre", "class_means")
"""Cheap picks that can stand beside random real images, in their order."""

_PICKED = ("herding", "k_centre")

Check = Callable[[Any], str | None]
"""What is wrong with a value: "must be ..", or None; may raise InputError."""


def _field(default: Any, meaning: str, check: Check | None = None) -> Any:
    return dataclasses.field(
        default=default, metadata={"meaning": meaning, "check": check}
    )


def _at_least(least: int) -> Check:
    return lambda value: None if value >= least else f"must be at least {least}"


def _positive(value: int | float) -> str | None:
    return None if value > 0 else "must be positive"


def _seed(value: int) -> str | None:
    return None if 0 <= value < 1 << 32 else "must lie in 0..2**32 - 1"


def _not_negative(value: int | float) -> str | None:
    return None if value >= 0 else "must not be negative"


def _decay(value: int | float) -> str | None:
    return None if 0 <= value < 1 else "must lie in 0..1 and below 1"


def _share(value: int | float) -> str | None:
    return None if 0 <= value <= 1 else "must lie in 0..1"


def _part_of_one(value: int | float) -> str | None:
    return None if 0 < value <= 1 else "must lie above 0 and up to 1"


def _one_of(*choices: Any) -> Check:
    *most, last = map(str, choices)
    return lambda value: (
        None if value in choices else f"must be {', '.join(most)} or {last}"
    )


def _passing(check: Callable[[Any], Any]) -> Check:
    """A check of what uses the value, which raises InputError itself."""

    def found(value):
        check(value)
        return None

    return found


def _augmentation() -> Any:
    return _field(
        DSA, "DSA groups joined by _, or none", _passing(augment.parse)
    )


def numbers(joined: str, what: str) -> tuple[int, ...]:
    """ "1,10" as (1, 10).

    Raises:
      InputError: one is no number of at least 1; ``what`` names them.
    """
    words = [word.strip() for word in str(joined).split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise InputError(
            f"{what} must be numbers of at least 1 joined by commas, not "
            f"{joined!r}"
        )
    return tuple(map(int, words))


class _Part:
    """A group of fields that are checked as it is made."""

    NAME: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name = f"{self.NAME}.{field.name}" if self.NAME else field.name
            value = _typed(name, field.default, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            check = field.metadata.get("check")
            try:
                found = check(value) if check else None
            except InputError as error:
                raise InputError(f"{name}: {error}") from None
            if found:
                raise InputError(f"{name} {found}, not {value!r}")
        self._check_together()

    def _check_together(self) -> None:
        """InputError where fields do not fit each other."""


def _typed(name: str, default: Any, value: Any) -> Any:
    """The value in the default's type; InputError where it has no such form."""
    kind = type(default)
    try:
        if isinstance(value, bool | np.bool_):  # True would pass for 1
            raise TypeError
        if kind is int:
            return operator.index(value)
        if kind is float:
            if isinstance(value, str | bytes):
                raise TypeError
            value = float(value)
            if not math.isfinite(value):
                raise InputError(f"{name} must be finite, not {value}")
            return value
        if kind is tuple:
            if isinstance(value, str) or len(value) != len(default):
                raise TypeError
            return tuple(_typed(name, *pair) for pair in zip(default, value))
    except (TypeError, OverflowError, AttributeError):
        pass
    else:
        if isinstance(value, kind):
            return value
    words = {
        int: "a whole number",
        float: "a number",
        str: "a text",
        tuple: "two numbers",
    }
    raise InputError(
        f"{name} must be {words.get(kind, f'a part {kind.__name__}')}, not "
        f"{value!r}"
    )


@dataclasses.dataclass(frozen=True)
class Data(_Part):
    """Where the images come from, and what form they are brought into."""

    NAME = "data"

    source: str = _field(
        "digits", "digits, folder, npz, tiny_imagenet, imagenet, or a TFDS name"
    )
    data_dir: str = _field(
        "",
        "the folder of images, the .npz file, or TFDS's folder (empty: its "
        "default)",
    )
    size: int = _field(
        0, "side in pixels; 0: as the images are, all alike", _not_negative
    )
    crop: str = _field(
        "center",
        "to a square: center or stretch",
        _passing(decode.check_crop),
    )
    channels: int = _field(
        0, "1 grey, 3 colour, 0 what the images are", _one_of(0, 1, 3)
    )
    classes: str = _field("", "names or numbers joined by commas; empty: all")
    class_names: str = _field("", "what to call them instead, joined by commas")
    per_class: int = _field(
        0, "the first so many training images of each; 0: all", _not_negative
    )
    test_share: float = _field(
        0.2,
        "of each class, where there is no test part",
        _passing(sources.check_share),
    )
    held_out: float = _field(
        0.1,
        "share of each class set aside for selection",
        _passing(sources.check_share),
    )
    unreadable_share: float = _field(
        0.01, "more broken images than that: refused", _not_negative
    )
    in_memory_gb: float = _field(
        4.0, "larger sets are read from disk as used", _not_negative
    )
    preprocess: str = _field(
        "standardise",
        "standardise, zca or none",
        _passing(preprocess.check_name),
    )


def _check_own_network(name: str) -> str | None:
    if models.has_batch_norm(models.build(name, num_classes=2)):
        return (
            "must be a network without batch norm, whose statistics of a few "
            "images are no ground to distil on (it is for evaluate.models)"
        )
    return None


@dataclasses.dataclass(frozen=True)
class Model(_Part):
    """The network of students and teachers."""

    NAME = "model"

    name: str = _field(
        "convnet",
        "the student's and the teachers' network",
        _check_own_network,
    )
    width: int = _field(128, "channels of each block", _at_least(1))
    depth: int = _field(3, "blocks; each halves the image", _at_least(1))


@dataclasses.dataclass(frozen=True)
class Teacher(_Part):
    """How teachers are trained."""

    NAME = "teacher"

    count: int = _field(100, "teachers", _at_least(1))
    snapshot_steps: int = _field(
        0, "steps from snapshot to snapshot; 0: an epoch", _not_negative
    )
    epochs: int = _field(
        50, "snapshots of a whole teacher; stored: reachable ones", _at_least(1)
    )
    learning_rate: float = _field(
        0.01, "of SGD without momentum or decay", _positive
    )
    batch_size: int = _field(256, "images a step", _at_least(1))
    augment: str = _augmentation()
    class_weights: str = _field(
        "none",
        "in the loss: none, or balanced, by which all classes count alike",
        _one_of("none", "balanced"),
    )
    flatness: float = _field(
        0.0,
        "rho of sharpness-aware minimisation, at twice the cost; 0: none",
        _not_negative,
    )
    dtype: str = _field(
        "float32",
        "of stored snapshots: float32 or bfloat16",
        _one_of("float32", "bfloat16"),
    )


@dataclasses.dataclass(frozen=True)
class Importance(_Part):
    """The form of the importance weights W; see ``ddjax.importance``.

    The default was chosen by benchmarks/importance.py; BUILD_NOTES.md has the
    table.
    """

    NAME = "iadd.importance"

    form: str = _field(
        "displacement",
        "none (MTT), free, clipped, exponential, displacement or high_loss",
        _one_of(
            "none",
            "free",
            "clipped",
            "exponential",
            "displacement",
            "high_loss",
        ),
    )
    per: str = _field(
        "parameter", "parameter or tensor", _one_of("parameter", "tensor")
    )
    bound: float = _field(1.0, "of log W, before rescaling", _positive)
    rescale: str = _field(
        "network",
        "what mean(W^2) = 1 is held over: none, network or tensor",
        _one_of("none", "network", "tensor"),
    )
    direction: str = _field(
        "ascend",
        "descend or ascend on the loss",
        _one_of("descend", "ascend"),
    )
    step: float = _field(0.01, "of Adam on log W", _not_negative)
    power: float = _field(0.5, "of the displacement form")
    keep: float = _field(
        0.5, "share of the parameters that high_loss counts", _part_of_one
    )

    @property
    def learned(self) -> bool:
        """Whether there is anything to optimise."""
        return self.form in ("free", "clipped", "exponential")


def check_range(max_start: int, span: int, epochs: int) -> None:
    """InputError unless segments fit in ``epochs`` epochs of training."""
    if span < 1:
        raise InputError(f"iadd.span (K) must be at least 1, not {span}")
    if max_start < 0:
        raise InputError(
            f"iadd.max_start must not be negative, not {max_start}"
        )
    if max_start + span > epochs:
        raise InputError(
            f"iadd.max_start + iadd.span = {max_start} + {span} is beyond the "
            f"teachers' {epochs} epochs: lower them or raise teacher.epochs"
        )


@dataclasses.dataclass(frozen=True)
class Iadd(_Part):
    """Distillation into images: students, segments and the outer optimiser."""

    NAME = "iadd"

    ipc: int = _field(1, "distilled images per class", _at_least(1))
    space: str = _field(
        "pixels",
        "what is moved: pixels, or the noise (latent) that the pre-trained "
        "generator makes images of",
        _one_of("pixels", "latent"),
    )
    generator_rate: float = _field(
        0.0,
        "of Adam on that generator's weights; 0: they stay",
        _not_negative,
    )
    iterations: int = _field(5000, "updates of the outer loop", _at_least(1))
    inner_steps: int = _field(50, "J: steps of the student", _at_least(1))
    span: int = _field(2, "K: teacher snapshots from start to target")
    max_start: int = _field(2, "last teacher snapshot to start from, included")
    widen: float = _field(
        0.0,
        "share of the updates over which the last start grows from 0 to "
        "iadd.max_start; 0: none",
        _share,
    )
    match: str = _field(
        "last",
        "what of a student is to be near its target: its last step, or the "
        "nearest of all",
        _one_of("last", "nearest"),
    )
    batch_size: int = _field(
        0,
        "distilled images per inner step, or all where they are fewer; 0: all",
        _not_negative,
    )
    dtype: str = _field(
        "float32",
        "of a student's arithmetic: float32, or bfloat16, for accelerators; "
        "its parameters, their steps and the losses stay float32",
        _one_of("float32", "bfloat16"),
    )
    segments: int = _field(
        1, "segments per update, spread over the devices", _at_least(1)
    )
    augment: str = _augmentation()
    optimizer: str = _field(
        "sgd",
        "of images and alpha: sgd (MTT's) or adam, which needs no tuning",
        _one_of("sgd", "adam"),
    )
    image_rate: float = _field(
        0.1,
        "of Adam on images, in standard deviations of the input, or on noise",
        _positive,
    )
    alpha_rate: float = _field(0.05, "of Adam on log alpha", _not_negative)
    final_rate: float = _field(
        1.0, "share of both that is left at the end, by a cosine", _part_of_one
    )
    clip: float = _field(
        0.0,
        "gradients of images beyond so many times their running norm are "
        "shortened to it; 0: none; with adam",
        _not_negative,
    )
    average: float = _field(
        0.0, "decay of the images' average over updates; 0: none", _decay
    )
    bound: str = _field(
        "none",
        "of pixels, black to white: none, clamp, near (a quarter of the range "
        "beyond at most), or soft, which takes a tenth of what is beyond back "
        "with every update; a generator's lie within by themselves",
        _one_of("none", "clamp", "near", "soft"),
    )
    image_step: float = _field(100.0, "rate of the outer SGD on images")
    momentum: float = _field(0.5, "of the outer SGD", _decay)
    learning_rate: float = _field(0.01, "alpha_0, the student's first rate")
    learning_rate_step: float = _field(1e-7, "rate of the outer SGD on alpha")
    learning_rate_bounds: tuple[float, float] = _field(
        (1e-6, 1.0), "the run stops where alpha leaves them"
    )
    initial: str = _field(
        "random",
        "what is begun with: real images (random, herding or k_centre), in "
        "latent space generated ones (random, or near real centres)",
        _one_of("random", *_PICKED, "centres"),
    )
    labels: str = _field(
        "hard",
        "that images start with: hard, or what the teachers say (teachers)",
        _one_of("hard", "teachers"),
    )
    label_step: float = _field(
        0.0,
        "rate of the outer SGD on label logits; 0: labels stay",
        _not_negative,
    )
    importance: Importance = Importance()

    def _check_together(self) -> None:
        check_range(self.max_start, self.span, self.stored_epochs)
        low, high = self.learning_rate_bounds
        if not low <= self.learning_rate <= high:
            raise InputError(
                f"iadd.learning_rate must lie within its bounds {low} .. "
                f"{high}, not at {self.learning_rate}"
            )
        self._check_space()

    def _check_space(self) -> None:
        latent = self.space == "latent"
        fits = ("random", "centres") if latent else ("random", *_PICKED)
        if self.initial not in fits:
            raise InputError(
                f"iadd.initial must be {' or '.join(fits)} with iadd.space="
                f"{self.space}, not {self.initial!r}"
            )
        if latent and self.optimizer != "adam":
            raise InputError(
                "iadd.space=latent moves noise by Adam: set iadd.optimizer=adam"
            )
        if self.generator_rate and not latent:
            raise InputError(
                "iadd.generator_rate moves the generator of iadd.space=latent, "
                "in pixels there is none: set it to 0"
            )
        if self.generator_rate and self.average:
            raise InputError(
                "iadd.average is of the noise, which belongs to the generator "
                "of its update: set it or iadd.generator_rate to 0"
            )

    @property
    def stored_epochs(self) -> int:
        """The last teacher epoch that a segment can reach."""
        return self.max_start + self.span

    def batch_of(self, num_images: int) -> int:
        """Images in an inner step, of so many distilled ones."""
        return min(self.batch_size or num_images, num_images)


_RATES = "of Adam, betas (0, 0.999)"


@dataclasses.dataclass(frozen=True)
class Gan(_Part):
    """The generator that D2M distils, and its pre-training."""

    NAME = "gan"

    width: int = _field(
        64, "of generator and critic: their channels' unit", _at_least(1)
    )
    noise: int = _field(128, "length of the noise vector", _at_least(1))
    embedding: int = _field(
        0, "shared by all norms; 0: a row a class in each", _not_negative
    )
    attention: int = _field(
        0, "side of features with self-attention; 0: none", _not_negative
    )
    iterations: int = _field(100_000, "updates of the generator", _at_least(1))
    critic_steps: int = _field(4, "before each of them", _at_least(1))
    batch_size: int = _field(
        50, "images a step, spread over the devices", _at_least(1)
    )
    generator_rate: float = _field(2e-4, _RATES, _positive)
    critic_rate: float = _field(2e-4, "the same", _positive)
    average: float = _field(0.9999, "decay of the generator's average", _decay)
    augment: str = _field(
        "color_crop_cutout",
        "DSA groups joined by _, one after another, or none",
        _passing(augment.parse),
    )
    looks: int = _field(8, "times that samples are kept", _at_least(1))
    patience: int = _field(
        0,
        "looks without a better held-out score after which it ends; 0: it "
        "makes all updates, and keeps the last state",
        _not_negative,
    )
    look_epochs: int = _field(
        0,
        "of the networks that score a generator, on generated images alone; "
        "0: as many as a teacher's",
        _not_negative,
    )

    def _check_together(self) -> None:
        if self.attention and self.width < 8:
            raise InputError(
                "gan.width must be at least 8 where gan.attention is not 0, "
                f"not {self.width}"
            )


@dataclasses.dataclass(frozen=True)
class D2m(_Part):
    """Distillation into a generator, and what of it is evaluated."""

    NAME = "d2m"

    generator: str = _field(
        "", "a generator's file or run; empty: pre-train one"
    )
    iterations: int = _field(20_000, "updates", _at_least(1))
    rate: float = _field(2e-5, _RATES, _positive)
    average: float = _field(0.999, "decay of the generator's average", _decay)
    per_class: int = _field(
        16, "real images of a class in a batch; as many made", _at_least(1)
    )
    classes: int = _field(
        0, "in a batch, drawn anew each time; 0: all", _not_negative
    )
    groups: int = _field(
        1, "batches per update, spread over the devices", _at_least(1)
    )
    augment: str = _augmentation()
    layers: str = _field("", "features to match, joined by commas; empty: all")
    power: float = _field(4.0, "p of channel attention", _at_least(1))
    temperature: float = _field(4.0, "T of prediction matching", _positive)
    embedding: float = _field(
        1.0, "weight of embedding matching; 0: none", _not_negative
    )
    balance: float = _field(
        10.0, "weight of prediction matching; 0: none", _not_negative
    )
    pairing: str = _field(
        "chance",
        "whose predictions a real image's are matched by: of a generated one "
        "of its class by chance, or of the nearest, for a good generator",
        _one_of("chance", "nearest"),
    )
    networks: str = _field(
        "trained",
        "from the teachers' snapshots, or random",
        _one_of("trained", "random"),
    )
    first_epoch: int = _field(
        1, "of the snapshots; the last is the last stored", _not_negative
    )
    redraw_every: int = _field(
        1, "updates with the same networks", _at_least(1)
    )
    ipcs: str = _field("1,10,50", "images per class to evaluate, stored")
    epochs: str = _field(
        "1000", "of evaluation; one for all, or one for each ipc"
    )
    stream_ipc: int = _field(
        50, "images per class of an epoch, stream", _at_least(1)
    )
    choose: str = _field(
        "centres",
        "stored images as further rows, by teachers' features: centres, "
        "moments, latents (slow), or none; not with networks=random",
        _one_of("none", "centres", "moments", "latents"),
    )

    def _check_together(self) -> None:
        if self.embedding == self.balance == 0:
            raise InputError(
                "d2m.embedding and d2m.balance are both 0: nothing is matched"
            )
        if self.pairing == "nearest" and not self.balance:
            raise InputError(
                "d2m.pairing=nearest pairs predictions, which d2m.balance=0 "
                "leaves out: give one of them"
            )
        ipcs = numbers(self.ipcs, "d2m.ipcs")
        epochs = numbers(self.epochs, "d2m.epochs")
        if len(set(ipcs)) != len(ipcs):
            raise InputError(
                f"d2m.ipcs must be different numbers, not {self.ipcs!r}"
            )
        if len(epochs) not in (1, len(ipcs)):
            raise InputError(
                f"d2m.epochs must be one number, or one for each of d2m.ipcs="
                f"{self.ipcs}, not {self.epochs!r}"
            )

    @property
    def epochs_of(self) -> dict[int, int]:
        """{images per class: epochs of evaluation on them, stored}."""
        ipcs = numbers(self.ipcs, "d2m.ipcs")
        epochs = numbers(self.epochs, "d2m.epochs")
        return dict(
            zip(ipcs, epochs if len(epochs) > 1 else epochs * len(ipcs))
        )

    @property
    def middle_ipc(self) -> int:
        """The images per class that states are selected by."""
        ipcs = sorted(self.epochs_of)
        return ipcs[len(ipcs) // 2]

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The features to match; () for all."""
        return sources.words(self.layers)

    def check_layers(self, names: Any) -> None:
        """InputError where a network has no such features.

        Args:
          names: of the network's features.
        """
        for name in self.layer_names:
            if name not in names:
                raise InputError(
                    f"the network has no layer {name!r} to match "
                    f"(d2m.layers): choose from {', '.join(sorted(names))}"
                )


def _check_models(joined: str) -> str | None:
    if not sources.words(joined):
        return "must name a network"
    for name in sources.words(joined):
        models.build(name, num_classes=2)
    return None


def _check_baselines(joined: str) -> str | None:
    if set(sources.words(joined)) <= set(BASELINES):
        return None
    return f"must be some of {', '.join(BASELINES)}, joined by commas, or empty"


@dataclasses.dataclass(frozen=True)
class Evaluate(_Part):
    """How results are tested, and how states are selected."""

    NAME = "evaluate"

    models: str = _field(
        "convnet", "networks to test on, joined by commas", _check_models
    )
    networks: int = _field(5, "fresh networks for each figure", _at_least(1))
    epochs: int = _field(1000, "on the distilled images", _at_least(1))
    batch_size: int = _field(
        256, "images a step, or all if fewer", _at_least(1)
    )
    momentum: float = _field(
        0.9, "of SGD at the distilled learning rate", _decay
    )
    weight_decay: float = _field(5e-4, "of SGD", _not_negative)
    augment: str = _augmentation()
    real_learning_rate: float = _field(
        0.01, "for random real images, and what else is picked", _positive
    )
    baselines: str = _field(
        ",".join(BASELINES),
        "what else stands beside random real images: herding, k_centre, "
        "class_means, joined by commas; empty: nothing",
        _check_baselines,
    )
    labels: str = _field(
        "soft",
        "of distilled images in evaluate.py: soft, as they are stored, or "
        "hard, the likeliest class",
        _one_of("soft", "hard"),
    )
    search: str = _field(
        "real",
        "rows of evaluate.py --distilled whose learning rate is searched on "
        "held-out images: none, real (all but the distilled), or all",
        _one_of("none", "real", "all"),
    )
    resize: int = _field(
        0,
        "side in pixels that images are enlarged to for networks that do not "
        "take them; 0: those are refused",
        _not_negative,
    )
    full_steps: int = _field(
        32_000,
        "most steps, of 64 images, of a network on the whole data; 0: no limit",
        _not_negative,
    )
    metric: str = _field(
        "accuracy",
        "what a state is selected by: accuracy or balanced_accuracy",
        _one_of(*METRICS),
    )
    looks: int = _field(
        10, "times that the held-out images are looked at", _at_least(1)
    )
    look_networks: int = _field(3, "fresh networks for each look", _at_least(1))

    @property
    def model_names(self) -> tuple[str, ...]:
        """The networks that results are tested on."""
        return sources.words(self.models)

    @property
    def baseline_names(self) -> tuple[str, ...]:
        """The picks beside random real images, ordered as ``BASELINES``."""
        named = sources.words(self.baselines)
        return tuple(name for name in BASELINES if name in named)


def _lengths(what: str) -> Check:
    """Different numbers of at least 1, joined by commas."""

    def check(joined):
        found = numbers(joined, what)
        return None if len({*found}) == len(found) else "must differ"

    return check


def _some_of(*choices: str) -> Check:
    """Different words among the choices, joined by commas."""

    def check(joined):
        words = sources.words(joined)
        if words and len({*words} & {*choices}) == len(words):
            return None
        return f"must be some of {', '.join(choices)}, joined by commas"

    return check


PROXIES = ("random_real", *BASELINES)
"""What can stand in for the whole data beside distilled images."""


@dataclasses.dataclass(frozen=True)
class Nas(_Part):
    """The grid of ConvNets that nas.py ranks, and how it trains them; the
    grid of all defaults is that of Zhao et al. (ICLR 2021), 720 networks."""

    NAME = "nas"

    widths: str = _field(
        "32,64,128,256", "of the grid, joined by commas", _lengths("widths")
    )
    depths: str = _field("1,2,3,4", "of the grid", _lengths("depths"))
    norms: str = _field(
        "none,batch,layer,instance,group", "the same", _some_of(*layers.NORMS)
    )
    activations: str = _field(
        "sigmoid,relu,leaky_relu", "the same", _some_of(*layers.ACTIVATIONS)
    )
    poolings: str = _field(
        "none,max,average", "the same", _some_of(*layers.POOLINGS)
    )
    networks: int = _field(
        60,
        "that are picked from the grid, spread evenly over it; 720: all of it",
        _at_least(1),
    )
    seeds: int = _field(
        1, "trainings of each network, whose mean counts", _at_least(1)
    )
    proxies: str = _field(
        "random_real,herding",
        "what stands beside the distilled images as a proxy: random_real, "
        "herding, k_centre, class_means",
        _some_of(*PROXIES),
    )
    epochs: int = _field(200, "on the images of a proxy", _at_least(1))
    full_steps: int = _field(
        2000, "of 64 images, of a network on the whole data", _at_least(1)
    )
    best: str = _field(
        "5,10,20",
        "numbers of best networks that are ranked once more, joined by commas",
        _lengths("numbers of best networks"),
    )

    @property
    def proxy_names(self) -> tuple[str, ...]:
        """The proxies beside the distilled images, ordered as ``PROXIES``."""
        named = sources.words(self.proxies)
        return tuple(name for name in PROXIES if name in named)

    @property
    def best_counts(self) -> tuple[int, ...]:
        """The numbers of best networks, in order."""
        return tuple(sorted(numbers(self.best, "nas.best")))

    @property
    def axes(self) -> dict[str, tuple[int | str, ...]]:
        """{field of a ConvNet: its values in the grid}."""
        return {
            "width": numbers(self.widths, "nas.widths"),
            "depth": numbers(self.depths, "nas.depths"),
            "norm": sources.words(self.norms),
            "activation": sources.words(self.activations),
            "pooling": sources.words(self.poolings),
        }


def _in_pairs(value: int) -> str | None:
    if value >= 4 and value % 2 == 0:
        return None
    return "must be an even number of at least 4"


@dataclasses.dataclass(frozen=True)
class Privacy(_Part):
    """What experiments/privacy.py trains to attack a distilled file."""

    NAME = "privacy"

    networks: int = _field(
        3,
        "to attack, of each kind: trained on the file, on as many real "
        "images, on all data",
        _at_least(1),
    )
    shadow_networks: int = _field(
        16,
        "of the likelihood ratio attack, of each of two kinds; few make it "
        "weak",
        _in_pairs,
    )
    epochs: int = _field(
        0,
        "on the distilled or as many real images; 0: evaluate.epochs",
        _not_negative,
    )
    full_epochs: int = _field(30, "on all training images", _at_least(1))
    audited: int = _field(
        500,
        "training images that networks are asked about, and as many test "
        "images, at most",
        _at_least(20),
    )


@dataclasses.dataclass(frozen=True)
class Log(_Part):
    """How often something is written down."""

    NAME = "log"

    every: int = _field(
        10, "updates between lines of metrics.jsonl", _at_least(1)
    )
    checkpoint_every: int = _field(
        100, "updates between checkpoints", _at_least(1)
    )


@dataclasses.dataclass(frozen=True)
class Settings(_Part):
    """All fields of a run; the defaults are the literature's, at CIFAR-10 with
    one image per class."""

    NAME = ""

    seed: int = _field(0, "decides everything random in the run", _seed)
    minutes: float = _field(
        0.0,
        "to spend on a run, which a plan for this machine fills; 0: "
        "the other fields decide",
        _not_negative,
    )
    data: Data = Data()
    model: Model = Model()
    teacher: Teacher = Teacher()
    iadd: Iadd = Iadd()
    gan: Gan = Gan()
    d2m: D2m = D2m()
    evaluate: Evaluate = Evaluate()
    nas: Nas = Nas()
    privacy: Privacy = Privacy()
    log: Log = Log()

    def _check_together(self) -> None:
        check_range(self.iadd.max_start, self.iadd.span, self.teacher.epochs)
        stored = self.iadd.stored_epochs
        if self.d2m.networks == "trained" and self.d2m.first_epoch > stored:
            raise InputError(
                f"d2m.first_epoch must lie in 0..{stored}, the last epoch that "
                "teachers store (iadd.max_start + iadd.span), not at "
                f"{self.d2m.first_epoch}"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Settings with these values by dotted name, else defaults.

        Raises:
          InputError: a field is unknown, or a value impossible.
        """
        known = {field.name for field in fields()}
        for name in values:
            if name not in known:
                raise InputError(f"there is no field {name}{meant(name)}")
        return _made(cls(), values, "")

    def flat(self) -> dict[str, Any]:
        """{"iadd.ipc": 1, ..} in the order of ``fields``."""
        return {name: value for name, _, value in _leaves(self)}

    def changed(self, values: Mapping[str, Any]) -> Settings:
        """The same with some values by dotted name; see ``of``."""
        return Settings.of({**self.flat(), **values})


def meant(name: str) -> str:
    """The end of a refusal of a name that no field has: which was meant."""
    known = [field.name for field in fields()]
    last = [full for full in known if full.endswith(f".{name}")]
    near = last or difflib.get_close_matches(name, known, 1)
    return f": did you mean {' or '.join(near)}?" if near else ""


def _made(part: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """A part with the values under its prefix."""
    changes = {}
    for field in dataclasses.fields(part):
        name, value = prefix + field.name, getattr(part, field.name)
        if isinstance(value, _Part):
            changes[field.name] = _made(value, values, f"{name}.")
        elif name in values:
            changes[field.name] = values[name]
    return dataclasses.replace(part, **changes)


def _leaves(part: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, the dataclass's field, value) of every field, in order."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, _Part):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field, value


class Field(NamedTuple):
    """A field as a user meets it.

    Attributes:
      name: dotted.
      default: its value where nothing is said, of the field's type.
      meaning: in a line.
    """

    name: str
    default: Any
    meaning: str


def fields() -> list[Field]:
    """Every field, in order."""
    return [
        Field(name, default, field.metadata["meaning"])
        for name, field, default in _leaves(Settings())
    ]
