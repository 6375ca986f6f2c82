"""Build HTML that is safe by construction: only what ``element`` made is markup, all other text is escaped."""

from __future__ import annotations

import html

from mae.io.text import shown

_WITHOUT_END = {"meta", "img"}


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def text(value: object) -> Html:
    """Any text as it reads, on a page: markup is escaped, and so is what no printer shows."""
    if isinstance(value, Html):
        return value
    # Lone surrogates, which JSON may hold, cannot be written to any file.
    readable = str(value).encode("utf-8", "backslashreplace").decode()
    return Html(html.escape(shown(readable), quote=True))


def element(tag: str, /, *children: object, **attributes: object) -> Html:
    """An element; ``class_`` is its class, ``aria_label`` its aria-label, an attribute of None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{written}>" + ("" if tag in _WITHOUT_END else f"{join(*children)}</{tag}>"))


def join(*children: object) -> Html:
    """Parts one after the other."""
    return Html("".join(text(child) for child in children))
