"""Display of results in a notebook as small tables, in which all text is escaped. Standard library only."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mae.errors import ConfigError
from mae.io.files import write_output
from mae.io.text import shown

_PAGE = '<!doctype html><meta charset="utf-8"><title>{title}</title>{body}\n'
_IMAGES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


class Table(NamedTuple):
    """The table that a result shows: a title, and rows whose first cell is a heading."""

    title: str
    rows: Sequence[Sequence[object]]
    columns: Sequence[str] = ()


class Drawn:
    """Base class of results that a notebook shows as a table; subclasses define ``_table``."""

    def _table(self) -> Table:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return html_table(self._table())


class DrawnPage(Drawn):
    """A result that can also be saved as an HTML page."""

    def save(self, path: str | Path) -> Path:
        """Write the table as an HTML page: .html or .htm.

        Raises:
            ConfigError: The name has another suffix, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() not in (".html", ".htm"):
            raise ConfigError(f"path {shown(path)}: the name must end in .html or .htm")
        page = _PAGE.format(title=_text(self._table().title), body=self._repr_html_())
        write_output(path, page.encode(), "cannot write")
        return path


def html_table(table: Table) -> str:
    """A table in HTML; numbers have four significant digits, and None is a dash."""
    head = f"<thead>{_row('th', table.columns)}</thead>" if table.columns else ""
    body = "".join(_row("td", row) for row in table.rows)
    return f"<table><caption>{_text(table.title)}</caption>{head}<tbody>{body}</tbody></table>"


def html_image(path: Path | None, name: str) -> str:
    """An image file embedded in HTML; empty if the file does not exist."""
    if path is None or path.suffix.lower() not in _IMAGES or not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{_text(name)}" src="data:image/{_IMAGES[path.suffix.lower()]};base64,{data}">'


def _row(tag: str, cells: Iterable[object]) -> str:
    first, *others = cells
    return f"<tr><th>{_text(first)}</th>{''.join(f'<{tag}>{_text(cell)}</{tag}>' for cell in others)}</tr>"


def _text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        value = f"{value:.4g}"
    elif isinstance(value, int) and not isinstance(value, bool):
        value = f"{value:,}"
    return html.escape(shown(str(value)))
