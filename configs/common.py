"""Config files: the fields of ``ddjax.settings`` as a ConfigDict.

A config file's ``get_config(arg)`` calls ``base()`` and sets what differs.
Fields are overridden on the command line as ``--config.iadd.ipc=10``.
``settings_of`` is the door: below it nothing knows a ConfigDict.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from ddjax import presets, settings
from ddjax.types import InputError

SIZES = ("full", "small")

FIELDS = {field.name: field for field in settings.fields()}
"""{dotted name: ddjax.settings.Field}, in order."""


def base() -> ml_collections.ConfigDict:
    """All fields at their defaults: the literature's, at CIFAR-10 IPC 1."""
    config = ml_collections.ConfigDict()
    for field in FIELDS.values():
        *groups, name = field.name.split(".")
        part = config
        for group in groups:
            if group not in part:
                part[group] = ml_collections.ConfigDict()
            part = part[group]
        part[name] = field.default
    return config.lock()


def settings_of(
    config: ml_collections.ConfigDict, name: str = "the config"
) -> settings.Settings:
    """What the library works with.

    Args:
      config: from ``base``.
      name: of its file, for the message.

    Raises:
      InputError: a value is impossible, or a field missing.
    """
    for field in FIELDS:
        part: Any = config
        for word in field.split("."):
            if not hasattr(part, "keys") or word not in part:
                raise InputError(
                    f"{name} lacks the field {field}: start its get_config "
                    "from configs.common.base()"
                )
            part = part[word]
    return settings.Settings.of(flat(config))


def flat(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """{"iadd.ipc": 1, ..} in the order of ``FIELDS``."""
    values = {}
    for field in FIELDS:
        part: Any = config
        for name in field.split("."):
            part = part[name]
        values[field] = part
    return values


def options(
    argument: str,
    *,
    size: str,
    ipcs: Sequence[int] = (),
    what: str = "",
    takes: str = "ipc= and size=",
) -> tuple[str, int, str]:
    """What stands behind the colon of ``--config=FILE:ARGUMENT``.

    Args:
      argument: "ipc=10", "size=small", both joined by a comma, or nothing;
        after a first word of its own where the config takes one.
      size: "full" or "small", the default.
      ipcs: the images per class that the config has hyperparameters for; the
        first is the default. Empty: any number, 1 by default.
      what: what the first word is; "" where there is none.
      takes: the names that may follow it, for the message.

    Returns:
      (first word, ipc, size).

    Raises:
      InputError: the argument says something else.
    """
    words = argument.split(",") if argument else []
    chosen = {"ipc": str([*ipcs, 1][0]), "size": size}
    while words and words[-1].partition("=")[0] in chosen:
        name, _, value = words.pop().partition("=")
        chosen[name] = value
    first = ",".join(words)
    if first and not what:
        raise InputError(
            f"the config takes ipc= and size= behind the colon, joined by a "
            f"comma, and not {first!r}"
        )
    if what and not first:
        raise InputError(f"the config needs {what} behind a colon")
    name, equals, _ = words[-1].partition("=") if len(words) > 1 else ("",) * 3
    meant = difflib.get_close_matches(name, re.findall(r"(\w+)=", takes))
    if equals and meant and not Path(first).expanduser().exists():
        raise InputError(
            f"{words[-1]!r} is nothing that this config takes, and there is no "
            f"{first}: did you mean {meant[0]}=? {what} comes first, then "
            f"{takes}, joined by commas"
        )
    if chosen["size"] not in SIZES:
        raise InputError(
            f"size={chosen['size']}: choose {' or '.join(SIZES)}; the side in "
            "pixels is --config.data.size"
        )
    if not ipcs:
        settings.numbers(chosen["ipc"], "ipc=")
    elif chosen["ipc"] not in map(str, ipcs):
        raise InputError(
            f"ipc={chosen['ipc']} has no hyperparameters here: choose "
            f"{', '.join(map(str, ipcs))}, or take the nearest of them and "
            "override --config.iadd.ipc"
        )
    return first, int(chosen["ipc"]), chosen["size"]


def number(text: str, what: str) -> float:
    """ "30" as 30.0.

    Raises:
      InputError: it is none; ``what`` names it.
    """
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{what}{text}: give a number") from None


def published(config: ml_collections.ConfigDict, ipc: int, **row: Any) -> None:
    """Sets what a row of MTT's table says; see ``ddjax.presets``."""
    change(config, presets.published(ipc, **row))


def biggan(config: ml_collections.ConfigDict, side: int) -> None:
    """Sets BigGAN's published shape; see ``ddjax.presets``."""
    change(config, presets.biggan(side))


def augmented_by(config: ml_collections.ConfigDict, groups: str) -> None:
    """One augmentation for teachers, students and evaluation."""
    config.teacher.augment = groups
    config.iadd.augment = groups
    config.evaluate.augment = groups


def change(
    config: ml_collections.ConfigDict, fields: Mapping[str, Any]
) -> None:
    """Sets fields by their dotted names."""
    for field, value in fields.items():
        *groups, name = field.split(".")
        part = config
        for group in groups:
            part = part[group]
        part[name] = value


def small(config: ml_collections.ConfigDict, ipc: int) -> None:
    """Sets a version for two CPU cores; see ``ddjax.presets``."""
    change(config, presets.small(ipc))
