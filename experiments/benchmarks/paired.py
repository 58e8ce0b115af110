"""What the paired studies print of their differences."""

from __future__ import annotations

from collections.abc import Sequence

from ddjax import evaluate


def told(differences: Sequence[float]) -> str:
    """Their mean with its 95% interval: "+0.17 (+0.01 .. +0.34)"; of one
    difference itself alone."""
    found = evaluate.summarise(differences)
    if len(differences) < 2:
        return f"{found.mean:+.2f}"
    low, high = found.mean - found.ci95, found.mean + found.ci95
    return f"{found.mean:+.2f} ({low:+.2f} .. {high:+.2f})"
