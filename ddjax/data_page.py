"""One static page about a data set, to look at before hours are spent on it.

Like the report it is a single file without scripts or outside resources, and
the same bytes for the same data.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ddjax import page
from ddjax.data.sources import Dataset
from ddjax.files import atomic_write
from ddjax.types import InputError

__all__ = ["write_data_page"]

_UNBALANCED = 5  # times the smallest class, from which on there is a warning
_CLASSES = 50  # with samples; more are also folded away in the counts
_SIZES = 10
_FILES = 50
_EDGE = 108  # of the largest tile; eight and a name are as wide as the page
_CSS = """
.warning { border-left: .3rem solid #cc7722; background: var(--soft);
  padding: .6rem .8rem; overflow-wrap: anywhere; }
.bar { display: block; height: .8rem; margin-top: .35rem;
  background: #3b82c4; }
.class { display: grid; grid-template-columns: 8rem 1fr; gap: .2rem 1rem;
  padding: .4rem 0; border-bottom: 1px solid var(--line); }
.class h4 { margin: 0; font-size: .93rem; overflow-wrap: anywhere; }
.class h4 span { display: block; font-weight: normal; opacity: .8; }
.tiles { display: flex; flex-wrap: wrap; gap: .25rem; }
.tiles img { image-rendering: auto; }
summary { cursor: pointer; margin: .8rem 0; }
.scroll + .scroll { margin-top: 1.4rem; }
.pair { row-gap: 0; }
@media (max-width: 40rem) {
  .class { grid-template-columns: 1fr; }
  .tiles { display: grid; grid-template-columns: repeat(4, 1fr); }
  .tiles img { width: 100%; }
}
@media print { .class { break-inside: avoid; } }
"""


def write_data_page(
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
    shapes = {split.images.shape[1:] for split in splits.values()}
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
    text = page.document(
        title,
        _summary(splits, names),
        [
            _warnings(counts, names, len(unreadable)),
            _facts(facts),
            _counts(counts, names),
            _samples(splits, counts),
            _sizes(sizes),
            _channels(mean, std),
            _unreadable(unreadable),
        ],
        css=_CSS,
    )
    with atomic_write(path) as file:
        file.write(text.encode())
    return Path(path)


def _summary(splits: Mapping[str, Dataset], names: Sequence[str]) -> str:
    """The data set in a sentence, as HTML."""
    total = sum(len(split.labels) for split in splits.values())
    shapes = dict.fromkeys(split.images.shape[1:] for split in splits.values())
    kinds = [
        f"{width} &times; {height} pixels, {'grey' if c == 1 else 'colour'}"
        for height, width, c in shapes
    ]
    parts = [
        f"{len(split.labels):,} in {html.escape(name)}"
        for name, split in splits.items()
    ]
    return (
        f"<strong>{_images(total)}</strong> of {len(names):,} classes, "
        f"{' or '.join(kinds)}: {', '.join(parts)}."
    )


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _warnings(
    counts: Mapping[str, np.ndarray], names: Sequence[str], unreadable: int
) -> str:
    """What one should know before going on, as HTML; usually nothing."""
    found = []
    for split, of_class in counts.items():
        empty = np.flatnonzero(of_class == 0)
        if len(empty):
            listed = ", ".join(names[i] for i in empty[:5])
            more = f" and {len(empty) - 5:,} more" if len(empty) > 5 else ""
            found.append(f"{split} has no image of {listed}{more}.")
        there = np.flatnonzero(of_class)
        if not len(there):
            continue
        least = there[of_class[there].argmin()]
        most = of_class.argmax()
        if of_class[most] > _UNBALANCED * of_class[least]:
            found.append(
                f"The classes of {split} are unbalanced: {names[most]} has "
                f"{_images(int(of_class[most]))}, {names[least]} only "
                f"{of_class[least]:,}."
            )
    if any("unbalanced" in sentence for sentence in found):
        found.append(
            "Accuracy then tells little of the small classes; balanced "
            "accuracy counts every class the same."
        )
    text = html.escape(" ".join(found))
    if unreadable:
        one = unreadable == 1
        text += (
            f' <a href="#unreadable">{unreadable:,} file'
            f"{' was' if one else 's were'} left out</a>: "
            f"{'it' if one else 'they'} could not be read."
        )
    return f'<p class="warning">{text.strip()}</p>' if text else ""


def _facts(facts: Mapping[str, str]) -> str:
    if not facts:
        return ""
    rows = [[name, str(value)] for name, value in facts.items()]
    return page.section(
        "facts",
        "Facts",
        f'<div class="facts">{page.table(("Field", "Value"), rows)}</div>',
    )


def _bar(share: float) -> page.Html:
    return page.Html(f'<i class="bar" style="width:{6 * share:.2f}rem"></i>')


def _counts(counts: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    head, rows = ["Class"], [[name] for name in names]
    for split, of_class in counts.items():
        head += [split, ""]
        largest = max(1, of_class.max(initial=0))
        for row, count in zip(rows, of_class):
            row += [f"{count:,}", _bar(count / largest)]
    of_classes = page.table(head, rows, numbers=range(1, len(head), 2))
    if len(names) > _CLASSES:
        of_classes = (
            f"<details><summary>All {len(names):,} classes</summary>\n"
            f"{of_classes}</details>"
        )
    overview = [
        [split, f"{of_class.sum():,}"]
        + [_extreme(of_class, names, i) for i in _extremes(of_class)]
        for split, of_class in counts.items()
    ]
    return page.section(
        "counts",
        "Images of each class",
        page.table(
            ("Split", "Images", "Smallest class", "Largest class"),
            overview,
            numbers=(1,),
        ),
        of_classes,
    )


def _extremes(of_class: np.ndarray) -> list[int]:
    if not len(of_class):
        return []
    return [int(of_class.argmin()), int(of_class.argmax())]


def _extreme(of_class: np.ndarray, names: Sequence[str], label: int) -> str:
    return f"{of_class[label]:,} ({names[label]})"


def _spread(count: int, wanted: int) -> np.ndarray:
    """At most ``wanted`` of 0..count-1, evenly spaced, ends included."""
    if count <= wanted:
        return np.arange(count)
    return np.linspace(0, count - 1, wanted).round().astype(int)


def _samples(
    splits: Mapping[str, Dataset], counts: Mapping[str, np.ndarray]
) -> str:
    body = []
    for name, split in splits.items():
        each = 8 if name == "train" else 3
        shown = _spread(len(split.class_names), _CLASSES).tolist()
        note = f"{each} images of each class, evenly spaced through the data."
        if len(shown) < len(split.class_names):
            note += (
                f" {len(shown)} of {len(split.class_names):,} classes are "
                "shown, evenly spaced too."
            )
        if max(split.images.shape[1:3]) > _EDGE:
            note += f" They are shrunk to {_EDGE} pixels."
        rows = [
            _class(split, label, int(counts[name][label]), each)
            for label in shown
        ]
        kind = "" if name == "train" else ' class="pair"'
        body += [
            f"<h3>{html.escape(name)}</h3>",
            f'<p class="note">{note}</p>',
            f"<div{kind}>{''.join(rows)}</div>",
        ]
    return page.section("samples", "Samples", *body)


def _class(split: Dataset, label: int, count: int, each: int) -> str:
    """Some images of one class beside its name, as HTML."""
    name = split.class_names[label]
    members = np.flatnonzero(split.labels == label)
    chosen = members[_spread(len(members), each)]
    tiles = ""
    if len(chosen):
        tiles = "".join(
            page.image(_tile(pixels), f"{name}, number {index}")
            for index, pixels in zip(chosen, split.images[chosen])
        )
    return (
        f'<div class="class"><h4>{html.escape(name)} '
        f'<span>{_images(count)}</span></h4><div class="tiles">{tiles}</div>'
        "</div>"
    )


def _tile(pixels: np.ndarray) -> Image.Image:
    """[h w c] as a picture that one can see, and that is not too large."""
    tile = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    side = max(tile.size)
    if side > _EDGE:
        tile.thumbnail((_EDGE, _EDGE), Image.Resampling.LANCZOS)
        return tile
    scale = -(-(96 if side <= 16 else 64) // side)
    return tile.resize(
        (scale * tile.width, scale * tile.height), Image.Resampling.NEAREST
    )


def _sizes(sizes: Mapping[str, int]) -> str:
    if not sizes:
        return ""
    order = sorted(sizes, key=lambda size: (-sizes[size], size))
    shown = [(size, sizes[size]) for size in order[:_SIZES]]
    if len(order) > _SIZES:
        rest = order[_SIZES:]
        name = f"{len(rest):,} others" if len(rest) > 1 else "1 other"
        shown.append((name, sum(sizes[size] for size in rest)))
    largest = max(1, *(count for _, count in shown))
    return page.section(
        "sizes",
        "Original sizes",
        page.table(
            ("Pixels", "Images", ""),
            [[s, f"{count:,}", _bar(count / largest)] for s, count in shown],
            numbers=(1,),
        ),
    )


def _channels(mean: Sequence[float], std: Sequence[float]) -> str:
    names = ("Red", "Green", "Blue") if len(mean) == 3 else ("Grey",)
    return page.section(
        "channels",
        "Channels",
        page.table(
            ("Channel", "Mean", "Std"),
            [
                [name, f"{centre:.4f}", f"{spread:.4f}"]
                for name, centre, spread in zip(names, mean, std)
            ],
            numbers=(1, 2),
        ),
        '<p class="note">Of all pixels of the training images, where black '
        "is 0 and white 1.</p>",
    )


def _unreadable(unreadable: Sequence[tuple[str, str]]) -> str:
    if not unreadable:
        return ""
    left = len(unreadable) - _FILES
    return page.section(
        "unreadable",
        "Files that could not be read",
        f'<div class="facts">'
        f"{page.table(('File', 'Why'), unreadable[:_FILES])}</div>",
        f'<p class="note">And {left:,} more.</p>' if left > 0 else "",
    )
