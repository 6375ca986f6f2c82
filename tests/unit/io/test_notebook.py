"""Results are shown as small tables in a notebook; names of files are escaped."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from mae.errors import ConfigError
from mae.io.notebook import DrawnPage, Table, html_image, html_table

HOSTILE = "<script>alert('1')</script>&\"\x1b[31m\udc80\ud800.png"


class Result(DrawnPage):
    def _table(self) -> Table:
        return Table(HOSTILE, [(HOSTILE, 1234567, 0.123456, None, True, Path("a/b"))], (HOSTILE, HOSTILE))


class Cells(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_all_text_is_escaped() -> None:
    cells = Cells(Result()._repr_html_())
    assert set(cells.tags) == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert cells.texts[-5:] == ["1,234,567", "0.1235", "–", "True", "a/b"]
    assert cells.texts[0].startswith("<script>alert('1')</script>&\"\\x1b[31m")


def test_a_page_is_kept(tmp_path: Path) -> None:
    path = Result().save(str(tmp_path / "page.html"))
    assert path == tmp_path / "page.html"
    assert Result()._repr_html_() in path.read_text()
    with pytest.raises(ConfigError, match=r"must end in \.html or \.htm"):
        Result().save(tmp_path / "page.png")
    with pytest.raises(ConfigError, match="cannot write"):
        Result().save(tmp_path / "none" / "page.html")


def test_a_table_without_columns_has_no_head() -> None:
    assert "<thead>" not in html_table(Table("a title", [("a", 1)]))


def test_an_image_that_is_gone_is_left_out(tmp_path: Path) -> None:
    Image.new("L", (1, 1)).save(tmp_path / "preview.png")
    assert html_image(tmp_path / "preview.png", "<it>").startswith(
        '<img alt="&lt;it&gt;" src="data:image/png;base64,iVB'
    )
    for path in (None, tmp_path / "none.png", tmp_path):
        assert html_image(path, "it") == ""
