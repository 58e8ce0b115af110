"""What the paired studies are asked, and what they print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ddjax import evaluate


def told(differences: Sequence[float]) -> str:
    """Their mean with its 95% interval: "+0.17 (+0.01 .. +0.34)"; of one
    difference itself alone."""
    found = evaluate.summarise(differences)
    if len(differences) < 2:
        return f"{found.mean:+.2f}"
    low, high = found.mean - found.ci95, found.mean + found.ci95
    return f"{found.mean:+.2f} ({low:+.2f} .. {high:+.2f})"


def field_of(text: str) -> tuple[str, Any]:
    """(name, value) of NAME=VALUE; what is no number is a text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
