"""What all pages are made of: one file each, without scripts or outside
resources, readable in the light and in the dark.

In a template every value is text, unless it is ``Markup`` that we built.
"""

from __future__ import annotations

import base64
import io
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from PIL import Image

from ddjax.files import atomic_write


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


def score(result: Mapping[str, Any]) -> str:
    """Mean, with its interval where there is more than one network."""
    text = f"{100 * result['mean']:.1f}"
    if len(result.get("accuracies", ())) != 1 and "ci95" in result:
        text += f" ± {100 * result['ci95']:.1f}"
    return text + "%"


def points(share: float) -> str:
    """A difference of shares, 0.123 as +12.3, its sign as typeset."""
    text = f"{round(100 * share, 1) + 0:+.1f}"  # + 0: not -0.0
    return text.replace("-", "\N{MINUS SIGN}")


def words(metric: str) -> str:
    """A metric's name as it stands in a sentence."""
    return metric.replace("_", " ")


def quoted(path: Path | str) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def one_line(text: str) -> Markup:
    """What a template wrote over several lines; plain text is escaped."""
    return Markup(re.sub(r"[ \n]+", " ", escape(text)).strip(" "))


def image(pixels: Image.Image, alt: str) -> Markup:
    """The picture as an <img> element, its PNG inside; ``alt`` is for those
    who do not see it."""
    file = io.BytesIO()
    pixels.save(file, "PNG", optimize=True)
    code = base64.b64encode(file.getvalue()).decode()
    return Markup(
        '<img src="data:image/png;base64,{}" alt="{}" width="{}" height="{}">'
    ).format(code, alt, *pixels.size)


ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
for _filter in (duration, one_line, percent, points, quoted, score, words):
    ENVIRONMENT.filters[_filter.__name__] = _filter
ENVIRONMENT.filters["grouped"] = "{:,}".format  # 1,234


def write(path: Path, template: str, **values: Any) -> Path:
    """Writes a page, whole or not at all, and returns its path.

    Args:
      path: of the page.
      template: the name of a file in templates/.
      **values: what it shows, as text.
    """
    text = ENVIRONMENT.get_template(template).render(values)
    with atomic_write(path) as file:
        file.write(text.encode())
    return Path(path)
