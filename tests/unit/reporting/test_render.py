"""Templates: all values are escaped, and a missing value is an error."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
import pytest

import mae
from mae.reporting.render import render

PACKAGE = Path(mae.__file__).parent


def rendered(tmp_path: Path, template: str, **values: object) -> str:
    (tmp_path / "page.html").write_text(template)
    return render(tmp_path / "page.html", **values)


def test_all_but_what_was_rendered_is_escaped(tmp_path: Path) -> None:
    inner = render(PACKAGE / "reporting/templates/chart.html", title="1 < 2 & 'x'", curves=(), logarithmic=False)
    assert inner.startswith('<figure class="chart"><figcaption>1 &lt; 2 &amp; &#39;x&#39;</figcaption>')
    page = rendered(tmp_path, '<p title="{{ title }}">{{ inner }}{{ more }}</p>', title='"q"', inner=inner, more=" > ")
    assert page == f'<p title="&#34;q&#34;">{inner} &gt; </p>'


def test_what_no_printer_shows_is_written_out(tmp_path: Path) -> None:
    assert rendered(tmp_path, "{{ one }}", one="a\x00\x1b\ud800") == "a\\x00\\x1b\\ud800"


def test_a_name_that_was_not_given_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(jinja2.UndefinedError):
        rendered(tmp_path, "{{ one }}")


def test_no_template_lets_markup_through_unescaped() -> None:
    demo = PACKAGE / "demo" / "page.html"  # served unchanged, with its own script
    assert "{{" not in demo.read_text()
    templates = [page for page in PACKAGE.rglob("*.html") if page != demo]
    assert len(templates) >= 4
    for template in templates:
        text = template.read_text()
        assert not re.search(r"\bsafe\b|autoescape|<script|\son\w+=|https?:", text), template
        # An attribute without quotes would end at a space in its value.
        assert not re.search(r"=\{\{", text), template
