"""Reports as trees of elements, to test how their parts belong together."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder

VOID = {"meta", "img", "input"}


class _Tree(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.builder = TreeBuilder()
        self.feed(text.partition(">")[2])  # without the doctype
        self.root = self.builder.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in VOID:
            self.builder.end(tag)

    def handle_endtag(self, tag: str) -> None:
        self.builder.end(tag)

    def handle_data(self, data: str) -> None:
        self.builder.data(data)


def tree(page: Path) -> Element:
    """The root element of a page."""
    return _Tree(page.read_text(encoding="utf-8").strip()).root


def of_class(root: Element, name: str) -> list[Element]:
    """Elements with a class, in order."""
    return [element for element in root.iter() if name in element.get("class", "").split()]


def text_of(element: Element) -> str:
    """The text of an element and of those in it, with single spaces."""
    return " ".join("".join(element.itertext()).split())


def colour_number(element: Element) -> int | None:
    """The number of the colour that an element's class names; None for another class."""
    found = re.search(r"\bc(\d+)\b", element.get("class", ""))
    return int(found[1]) if found else None


def named_colours(element: Element) -> list[tuple[int | None, str]]:
    """Number of the colour, and name, of each entry of a legend or row of table heads."""
    return [(colour_number(one.find("i")), text_of(one)) for one in element if one.find("i") is not None]  # type: ignore[arg-type]
