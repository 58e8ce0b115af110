"""What pages are made of."""

import pytest
from matplotlib.figure import Figure
from pages import cells, parse
from PIL import Image

from ddjax import page


def test_document_holds_the_sections_that_are_not_empty():
    one = page.section("one", "1 < 2", "<p>first</p>", "<p>second</p>")
    text = page.document("A & B", "<em>lead</em>", [one, "", "<hr>"])
    parse(text)
    assert "<title>A &amp; B</title>" in text
    assert "<p><em>lead</em></p>\n<section" in text
    assert "<h2>1 &lt; 2</h2>\n<p>first</p>\n<p>second</p>\n</section>" in text
    assert text.endswith("</section>\n<hr>\n</body>\n</html>\n")


def test_table_escapes_and_marks():
    text = page.table(
        ["<a>", "b"], [["x & y", "1"], ["z", "2"]], numbers=[1], biased=[1]
    )
    parse(text)
    assert "<th>&lt;a&gt;</th><th class=number>b</th>" in text
    assert cells(text) == [["x &amp; y", "1"], ["z", "2"]]
    assert "<tr class=biased><td>z</td><td class=number>2</td></tr>" in text


def test_figure_has_a_caption_if_any():
    assert page.figure("<hr>") == "<figure><hr></figure>"
    assert page.figure("<hr>", "a < b", broad=True) == (
        '<figure><div class="scroll"><hr></div>'
        "<figcaption>a &lt; b</figcaption></figure>"
    )


def test_two_figures_do_not_share_ids():
    ids = []
    for name in ("a", "b"):
        with page.style():
            figure = Figure()
            figure.subplots().plot([1, 2], label="$x")
            text = page.svg(figure, name, 'alt "<">')
        assert 'aria-label="alt &quot;&lt;&quot;&gt;"' in text
        assert page.INK not in text and "currentColor" in text
        ids += [v for key, v in parse(text).attributes if key == "id"]
    assert len(ids) == len(set(ids)) > 8


def test_image_is_inside_and_has_an_alternative():
    text = page.image(Image.new("RGB", (3, 2)), 'a "b" <c>')
    attributes = dict(parse(text).attributes)
    assert attributes["src"].startswith("data:image/png;base64,")
    assert attributes["alt"] == 'a "b" <c>'
    assert (attributes["width"], attributes["height"]) == ("3", "2")


@pytest.mark.parametrize(
    "count, expected",
    [(0, "0 B"), (999, "999 B"), (1770, "1.77 kB"), (2.5e11, "250 GB")],
)
def test_file_sizes(count, expected):
    assert page.file_size(int(count)) == expected
