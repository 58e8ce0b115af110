"""How a finished run shows itself in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from ddjax.pages.iadd import label_of
from ddjax.pages.page import ENVIRONMENT, image


def fragment(
    picture: Image.Image,
    scores: Mapping[str, Mapping[str, Any]],
    title: str,
    report: Path | None,
) -> Markup:
    """The picture, the table of scores, and where the page is, as HTML.

    Args:
      picture: of the images.
      scores: {row: {network: result}}, as in eval.json.
      title: what it is, in plain text.
      report: the run's page, or None.
    """
    rows = [
        (label_of(row, result), network, result)
        for row, results in scores.items()
        for network, result in results.items()
    ]
    template = ENVIRONMENT.get_template("notebook.html")
    return Markup(
        template.render(
            title=title, picture=image(picture, title), rows=rows, report=report
        )
    )
