"""The result of ``inspect`` as a self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae.inspection.sheet import Tile
from mae.reporting.render import render, time_text

if TYPE_CHECKING:
    from mae.inspection.run import InspectResult

MOST_UNREADABLE = 200  # rows
MOST_GROUPS = 30


def page(result: InspectResult, tiles: Sequence[Tile], now: float) -> str:
    """The whole document.

    Args:
        result: The result.
        tiles: Images to show.
        now: Time of writing, seconds since 1970.
    """
    return render(
        Path(__file__).with_name("page.html"),
        name=", ".join(Path(one).name or one for one in result.data),
        standing=f"made {time_text(now)} by maecli inspect",
        rows=result.rows(),
        shares=_shares(result),
        tiles=tiles,
        images=result.images,
        groups=result.duplicate_groups[:MOST_GROUPS],
        more_groups=max(0, len(result.duplicate_groups) - MOST_GROUPS),
        unreadable=result.unreadable[:MOST_UNREADABLE],
        more_unreadable=max(0, result.unreadable_files - MOST_UNREADABLE),
    )


def _shares(result: InspectResult) -> list[dict[str, Any]]:
    """Tables of counts, each row with its share of the images for a bar."""
    tables = [("formats", result.formats), ("channels", result.channels)]
    if result.sizes is not None:
        common = {f"{width} x {height}": count for width, height, count in result.sizes.most_common}
        tables.append(("most common sizes, width x height", common))
    return [
        {"title": title, "rows": [(name, count, count / max(1, result.images)) for name, count in counts.items()]}
        for title, counts in tables
    ]
