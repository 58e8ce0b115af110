"""One static page about a data set, to look at before hours are spent on it.

Like the reports it is a single file without scripts or outside resources, and
the same bytes for the same data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ddjax.data.sources import Dataset
from ddjax.pages import page, pictures
from ddjax.types import InputError

__all__ = ["write_page"]

_UNBALANCED = 5  # times the smallest class, from which on there is a warning
_CLASSES = 50  # with samples; more are also folded away in the counts
_SIZES = 10
_FILES = 50


def write_page(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    splits: Mapping[str, Dataset],
    sizes: Mapping[str, int],
    unreadable: Sequence[tuple[str, str]],
    mean: Sequence[float],
    std: Sequence[float],
) -> Path:
    """Writes what a data set holds as HTML, whole or not at all.

    Args:
      path: of the page.
      title: of the page.
      facts: what else is known of the data, such as source and folder.
      splits: the parts by name; "train" is shown in more detail. Images are
        [n h w c], one or three channels, and may be read lazily: only a few
        at a time are indexed.
      sizes: how many images had a size, such as "500 x 375", before they were
        resized; may be empty.
      unreadable: (file, reason) of what was left out.
      mean: [c] of the training images, where white is 1.
      std: [c] of the training images, where white is 1.

    Returns:
      The path.

    Raises:
      InputError: no split, or images of another number of channels.
    """
    if not splits:
        raise InputError("a data page needs at least one split")
    shapes = dict.fromkeys(split.images.shape[1:] for split in splits.values())
    for shape in shapes:
        if len(shape) != 3 or shape[2] not in (1, 3):
            raise InputError(
                "a data page shows images [n h w c] of 1 or 3 channels, not "
                f"[n {' '.join(map(str, shape))}]"
            )
    counts = {
        name: np.bincount(split.labels, minlength=len(split.class_names))
        for name, split in splits.items()
    }
    names = next(iter(splits.values())).class_names
    colours = ("Red", "Green", "Blue") if len(mean) == 3 else ("Grey",)
    return page.write(
        path,
        "data.html",
        title=title,
        totals={name: len(split.labels) for name, split in splits.items()},
        classes=len(names),
        shapes=list(shapes),
        warnings=_warnings(counts, names),
        facts=list(facts.items()),
        overview=_overview(counts, names),
        counts=_counts(counts, names),
        folded=len(names) > _CLASSES,
        samples=[_samples(name, splits[name], counts[name]) for name in splits],
        edge=pictures.EDGE,
        sizes=_sizes(sizes),
        channels=[
            [name, f"{centre:.4f}", f"{spread:.4f}"]
            for name, centre, spread in zip(colours, mean, std)
        ],
        unreadable=len(unreadable),
        files=unreadable[:_FILES],
    )


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _warnings(
    counts: Mapping[str, np.ndarray], names: Sequence[str]
) -> list[str]:
    """What one should know before going on; usually nothing."""
    found, unbalanced = [], False
    for split, of_class in counts.items():
        empty = np.flatnonzero(of_class == 0)
        if len(empty):
            listed = ", ".join(names[i] for i in empty[:5])
            more = f" and {len(empty) - 5:,} more" if len(empty) > 5 else ""
            found.append(f"{split} has no image of {listed}{more}.")
        there = np.flatnonzero(of_class)
        if not len(there):
            continue
        least, most = there[of_class[there].argmin()], of_class.argmax()
        if of_class[most] > _UNBALANCED * of_class[least]:
            unbalanced = True
            found.append(
                f"The classes of {split} are unbalanced: {names[most]} has "
                f"{_images(int(of_class[most]))}, {names[least]} only "
                f"{of_class[least]:,}."
            )
    if unbalanced:
        found.append(
            "Accuracy then tells little of the small classes; balanced "
            "accuracy counts every class the same."
        )
    return found


def _bar(share: float) -> Markup:
    return Markup(f'<i class="bar" style="width:{6 * share:.2f}rem"></i>')


def _overview(
    counts: Mapping[str, np.ndarray], names: Sequence[str]
) -> list[list[str]]:
    """Rows of a split, its images, its smallest and its largest class."""
    rows = []
    for split, of_class in counts.items():
        ends = (of_class.argmin(), of_class.argmax()) if len(of_class) else ()
        told = [f"{of_class[label]:,} ({names[label]})" for label in ends]
        rows.append([split, f"{of_class.sum():,}", *told])
    return rows


def _counts(
    counts: Mapping[str, np.ndarray], names: Sequence[str]
) -> dict[str, Any]:
    """A row for each class: name, and number and bar for each split."""
    head, rows = ["Class"], [[name] for name in names]
    for split, of_class in counts.items():
        head += [split, ""]
        largest = max(1, of_class.max(initial=0))
        for row, count in zip(rows, of_class):
            row += [f"{count:,}", _bar(count / largest)]
    return {"head": head, "rows": rows}


def _spread(count: int, wanted: int) -> np.ndarray:
    """At most ``wanted`` of 0..count-1, evenly spaced, ends included."""
    if count <= wanted:
        return np.arange(count)
    return np.linspace(0, count - 1, wanted).round().astype(int)


def _samples(name: str, split: Dataset, counts: np.ndarray) -> dict[str, Any]:
    """Some images of some classes of a split: (class, count, tiles)."""
    each = 8 if name == "train" else 3
    classes = []
    for label in _spread(len(split.class_names), _CLASSES).tolist():
        members = np.flatnonzero(split.labels == label)
        chosen = members[_spread(len(members), each)]
        called = split.class_names[label]
        tiles = [
            page.image(pictures.tile(pixels), f"{called}, number {index}")
            for index, pixels in zip(
                chosen, split.images[chosen] if len(chosen) else ()
            )
        ]
        classes.append((called, int(counts[label]), tiles))
    shrunk = max(split.images.shape[1:3]) > pictures.EDGE
    return {"name": name, "each": each, "classes": classes, "shrunk": shrunk}


def _sizes(sizes: Mapping[str, int]) -> list[list[str]]:
    """Rows of the most common sizes, their number and a bar."""
    order = sorted(sizes, key=lambda size: (-sizes[size], size))
    shown = {size: sizes[size] for size in order[:_SIZES]}
    if rest := order[_SIZES:]:
        name = f"{len(rest):,} others" if len(rest) > 1 else "1 other"
        shown[name] = sum(sizes[size] for size in rest)
    largest = max([1, *shown.values()])
    return [[s, f"{n:,}", _bar(n / largest)] for s, n in shown.items()]
