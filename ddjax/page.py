"""What our pages are made of: one file each, without scripts or outside
resources, readable in the light and in the dark."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

__all__ = [
    "INK",
    "Html",
    "document",
    "duration",
    "figure",
    "file_size",
    "image",
    "percent",
    "section",
    "style",
    "svg",
    "table",
]

# The colour of text in a figure; ``svg`` makes it the page's own.
INK = "#010203"
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "figure.facecolor": "none",
    "font.size": 8,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "ddjax",
    "text.color": INK,
    "text.parse_math": False,  # a name may hold a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
}
_CSS = """
:root { color-scheme: light dark; --line: #d5d7da; --soft: #f2f3f4; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3a3f45; --soft: #22262a; }
  body { background: #15181b; color: #e6e7e8; }
}
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 66rem; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem;
  border-bottom: 1px solid var(--line); }
p, figcaption, .note { max-width: 48rem; }
figcaption, .note { font-size: .9rem; opacity: .8; }
figure { margin: 0 0 1rem; }
svg, img { display: block; max-width: 100%; height: auto; }
svg { width: 100%; }
img { image-rendering: pixelated; }
.wide { display: flex; flex-wrap: wrap; gap: 1rem; }
.wide figure { margin: 0; max-width: 100%; }
@media (min-width: 80rem) {
  .wide { width: max-content; min-width: 100%; justify-content: center;
    max-width: min(100vw - 3rem, 100rem);
    position: relative; left: 50%; transform: translateX(-50%); }
}
.pair { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); }
.pair > * { min-width: 0; }
h3, h4 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
.scroll { overflow-x: auto; }
.scroll svg { min-width: 44rem; }
table { border-collapse: collapse; font-size: .93rem; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left;
  border-bottom: 1px solid var(--line); vertical-align: top; }
th { vertical-align: bottom; }
.facts td, .columns td { overflow-wrap: anywhere; }
strong { white-space: nowrap; }
.number { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
tr.biased { opacity: .75; }
code, pre { font-family: ui-monospace, monospace; font-size: .87em; }
pre { background: var(--soft); padding: .6rem .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.columns { columns: 2 24rem; }
.columns .scroll { overflow: visible; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; }
  th.number { white-space: normal; }
  th, td { padding-right: .6rem; }
  td:first-child { min-width: 5.5rem; }
}
@media print {
  body { font-size: 11pt; margin: 0; max-width: none; }
  h2 { break-after: avoid; } figure, tr { break-inside: avoid; }
  .wide { max-width: 100%; position: static; transform: none; }
  .scroll { overflow: visible; } .scroll svg { min-width: 0; }
}
"""


class Html(str):
    """Text that is HTML already, where else plain text would stand."""


def document(
    title: str, lead: str, sections: Iterable[str], *, css: str = ""
) -> str:
    """A whole page.

    Args:
      title: plain text, of the window and on top.
      lead: the first paragraph, as HTML.
      sections: as ``section`` makes them; empty ones are left out.
      css: rules of this page, beside those of all pages.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}{css}</style>\n"
        f"</head>\n<body>\n<h1>{html.escape(title)}</h1>\n"
        f"<p>{lead}</p>\n"
        + "\n".join(part for part in sections if part)
        + "\n</body>\n</html>\n"
    )


def section(name: str, title: str, *body: str) -> str:
    """A part of the page under a heading.

    Args:
      name: its id, unique in the page.
      title: plain text.
      *body: HTML.
    """
    return (
        f'<section id="{name}">\n<h2>{html.escape(title)}</h2>\n'
        + "\n".join(body)
        + "\n</section>"
    )


def figure(content: str, caption: str = "", *, broad: bool = False) -> str:
    """HTML with a caption under it.

    Args:
      content: HTML.
      caption: plain text; empty for none.
      broad: on a narrow screen it is scrolled, not made unreadably small.
    """
    if broad:
        content = f'<div class="scroll">{content}</div>'
    if caption:
        content += f"<figcaption>{html.escape(caption)}</figcaption>"
    return f"<figure>{content}</figure>"


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    biased: Sequence[int] = (),
) -> str:
    """A table of plain text; a cell may be ``Html``.

    Args:
      head: the columns' names.
      rows: cells, one for each column.
      numbers: columns that are aligned right.
      biased: rows that step back behind the others.
    """

    def line(tag, cells):
        return "".join(
            f"<{tag}{' class=number' if i in numbers else ''}>"
            f"{cell if isinstance(cell, Html) else html.escape(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        )

    top = line("th", head)
    body = "\n".join(
        f"<tr{' class=biased' if i in biased else ''}>{line('td', row)}</tr>"
        for i, row in enumerate(rows)
    )
    return (
        f'<div class="scroll"><table>\n<thead><tr>{top}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Figures inside are drawn as the page wants them, whatever the reader's
    own style is."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def svg(drawing: Figure, name: str, alt: str) -> str:
    """The figure as an <svg> element to put into a page.

    Args:
      drawing: drawn inside ``style()``.
      name: unique in the page; ids begin with it.
      alt: for those who do not see it.
    """
    file = io.StringIO()
    drawing.savefig(file, format="svg")
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # Metadata holds the date and outside addresses.
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace("xlink:href", "href").replace(INK, "currentColor")
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 sans-serif", text)
    box = re.search(r'viewBox="[^"]*"', text[: text.index(">")])
    head = f'<svg role="img" aria-label="{html.escape(alt)}" {box[0]}>'
    return head + text[text.index(">") + 1 :].strip()


def image(pixels: Image.Image, alt: str) -> str:
    """The picture as an <img> element, its PNG inside.

    Args:
      pixels: what is shown, at its own size where the page is wide enough.
      alt: for those who do not see it.
    """
    file = io.BytesIO()
    pixels.save(file, "PNG", optimize=True)
    code = base64.b64encode(file.getvalue()).decode()
    return (
        f'<img src="data:image/png;base64,{code}" alt="{html.escape(alt)}" '
        f'width="{pixels.width}" height="{pixels.height}">'
    )


def percent(share: Any) -> str:
    """0.123 as 12.3%."""
    return f"{100 * share:.1f}%"


def file_size(count: int) -> str:
    """Bytes, with three digits and a unit."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if seconds < 90:
        return f"{seconds:.0f}\N{NO-BREAK SPACE}s"
    if seconds < 5400:
        return f"{seconds / 60:.0f}\N{NO-BREAK SPACE}min"
    return f"{seconds / 3600:.1f}\N{NO-BREAK SPACE}h"
