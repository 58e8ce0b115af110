"""What pages are made of."""

import jinja2
import pytest
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from read_pages import cells, parse

from ddjax.pages import figures, page

PARTS = '{% import "parts.html" as parts %}'


def render(source, **values):
    return page.ENVIRONMENT.from_string(source).render(values)


def test_a_page_holds_its_lead_and_its_sections():
    text = render(
        '{% extends "base.html" %}'
        "{% block lead %}<em>le\nad</em>\n\n{{ lead }}{% endblock %}"
        "{% block sections %}<hr>\n{% endblock %}",
        title="A & B",
        lead="1 < 2",
    )
    parse(text)
    assert "<title>A &amp; B</title>" in text
    assert "<h1>A &amp; B</h1>" in text
    assert "<p><em>le ad</em> 1 &lt; 2</p>\n<hr>" in text
    assert text.endswith("<hr>\n</body>\n</html>\n")


def test_an_undefined_name_fails():
    with pytest.raises(jinja2.UndefinedError, match="missing"):
        render("{{ missing }}")
    with pytest.raises(jinja2.UndefinedError, match="lead"):
        render("{% if values.lead %}1{% endif %}", values={})
    with pytest.raises(jinja2.UndefinedError, match="title"):
        page.ENVIRONMENT.get_template("base.html").render()


def test_a_page_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(jinja2.UndefinedError):
        page.write(path, "gan.html", title="new")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_table_escapes_and_marks():
    text = render(
        PARTS + "{{ parts.table(head, rows, numbers=[1], biased=[1]) }}",
        head=["<a>", "b"],
        rows=[["x & y", "1"], ["z", Markup("<i>2</i>")]],
    )
    parse(text)
    assert "<th>&lt;a&gt;</th><th class=number>b</th>" in text
    assert cells(text) == [["x &amp; y", "1"], ["z", "<i>2</i>"]]
    assert "<tr class=biased><td>z</td><td class=number>" in text


def test_figure_has_a_caption_and_is_scrolled():
    text = render(
        PARTS + "{% call parts.broad(svg) %}a\n{{ b }}{% endcall %}",
        svg=Markup("<hr>"),
        b="< c",
    )
    assert text.strip() == (
        '<figure><div class="scroll"><hr></div>'
        "<figcaption>a &lt; c</figcaption></figure>"
    )
    text = render(PARTS + "{{ parts.figures([svg]) }}", svg=Markup("<hr>"))
    assert "<figure><hr></figure>" in text


def test_two_figures_do_not_share_ids():
    ids = []
    for name in ("a", "b"):
        with figures.style():
            figure = Figure()
            figure.subplots().plot([1, 2], label="$x")
            text = figures.svg(figure, name, 'alt "<">')
        assert 'aria-label="alt &#34;&lt;&#34;&gt;"' in text
        assert figures.INK not in text and "currentColor" in text
        ids += [v for key, v in parse(text).attributes if key == "id"]
    assert len(ids) == len(set(ids)) > 8


def test_image_is_inside_and_has_an_alternative():
    picture = page.image(Image.new("RGB", (3, 2)), 'a "b" <c>')
    text = render(
        PARTS + '{{ parts.images("wide", [("<t>", picture)]) }}',
        picture=picture,
    )
    assert "<figcaption>&lt;t&gt;</figcaption><img src=" in text
    attributes = dict(parse(text).attributes)
    assert attributes["src"].startswith("data:image/png;base64,")
    assert attributes["alt"] == 'a "b" <c>'
    assert (attributes["width"], attributes["height"]) == ("3", "2")


def test_lines_are_joined_and_plain_text_stays_text():
    assert page.one_line(Markup("\n<b>a</b>\n  b\N{NO-BREAK SPACE}c\n")) == (
        "<b>a</b> b\N{NO-BREAK SPACE}c"
    )
    assert page.one_line("<b>") == "&lt;b&gt;"


@pytest.mark.parametrize(
    "count, expected",
    [(0, "0 B"), (999, "999 B"), (1770, "1.77 kB"), (2.5e11, "250 GB")],
)
def test_file_sizes(count, expected):
    assert page.file_size(int(count)) == expected
