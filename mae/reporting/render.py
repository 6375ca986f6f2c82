"""Renders jinja2 templates with automatic escaping."""

from __future__ import annotations

import datetime
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae.io.text import shown

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

SHARED = Path(__file__).with_name("templates")
LONGEST_TEXT = 1000


def render(template: Path, **values: Any) -> Markup:
    """Fill in a template; it may extend and include those of ``mae/reporting/templates`` and of its own folder.

    Rendered markup is inserted into another template unchanged. All other values are escaped, including control
    characters. Undefined names are errors.
    """
    from markupsafe import Markup

    return Markup(_environment(template.parent).get_template(template.name).render(values | _FUNCTIONS))


@functools.cache
def _environment(folder: Path) -> Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, SHARED]),
        autoescape=True,
        finalize=_readable,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def time_text(seconds: float) -> str:
    """A time, in seconds since 1970, as text."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _readable(value: Any) -> Any:
    return value if hasattr(value, "__html__") else shown(str(value))


_FUNCTIONS: dict[str, Any] = {
    "count": "{:,}".format,
    "cut": lambda text: str(text)[:LONGEST_TEXT],
    "percent": "{:.2%}".format,
}
