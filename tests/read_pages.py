"""What the tests of our pages read them with."""

import html.parser
import re

VOID = {"meta", "img", "br", "link", "hr"}


class Parser(html.parser.HTMLParser):
    """Open tags match closed ones; attributes are collected."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(text):
    parser = Parser()
    parser.feed(text)
    assert parser.open == []
    return parser


def section(text, name):
    return re.search(rf'<section id="{name}">.*?</section>', text, re.S)[0]


def sections(text):
    return re.findall(r'<section id="([^"]*)">', text)


def cells(text):
    """Rows of the cells of a table's body, as they stand in the HTML."""
    body = re.search(r"<tbody>(.*?)</tbody>", text, re.S)[1]
    rows = re.findall(r"<tr.*?</tr>", body, re.S)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in rows]


def check_self_contained(text):
    """Neither scripts nor anything that a browser would fetch."""
    parser = parse(text)
    assert not parser.tags & {"script", "link", "iframe", "object"}
    links = [
        value
        for name, value in parser.attributes
        if name in ("src", "href", "xlink:href", "srcset", "data")
    ]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"https?://|@import|url\((?!#)", text)


def summary(text):
    """The first paragraph, in plain words."""
    text = re.search(r"<p>(.*?)</p>", text, re.S)[1]
    return re.sub(r"</?strong>", "", text).replace("\xa0", " ")
