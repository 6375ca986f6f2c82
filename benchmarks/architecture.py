"""Draw the packages and their imports as an SVG: ``python benchmarks/architecture.py docs/images/architecture.svg``.

Boxes are packages, an arrow leads from a package to one that it imports. Arrows that a chain of
other arrows implies are not drawn. Standard library only; the packages are not imported.
"""

from __future__ import annotations

import ast
import html
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

MODEL = ("attention", "transformer", "patch_embed", "pos_embed", "masking", "encoder", "decoder", "mae")
BASE = ("config", "options", "errors")
# Methods of the model that are at home above it, and import it when they are called: no arrow is drawn for them.
CONVENIENCES = {("mae.mae", "mae.data.image_transform"), ("mae.mae", "mae.checkpoints.save")}
TITLES = {
    "maecli": "maecli: the command line",
    "mae.model": "mae/*.py: the model",
    "mae.base": "config, options, errors",
}
TEXTS = {
    "maecli": "options from config dataclasses, one file per command, views",
    "mae.model": "patch_embed, masking, encoder, decoder, mae, ...",
    "mae.base": "settings and the kinds of errors",
    "mae.exporting": "checkpoints for other tools",
    "mae.profiling": "cost from sizes, measuring, doctor",
    "mae.comparison": "against reference implementations",
    "mae.training": "run, trainer, tasks, checkpointer",
    "mae.evaluation": "features, probes, metrics",
    "mae.reporting": "run log, HTML report",
    "mae.reconstruction": "grids of reconstructions",
    "mae.checkpoints": "read safely, build, save, shards",
    "mae.data": "sources, decoding, crops, batches",
    "mae.system": "device, precision, processes",
    "mae.io": "atomic files, downloads, text",
    "mae.models": "variants by name",
}
# Where a box stands in its row, from 0 to 1, so that no arrow passes behind another box; others share the width.
ACROSS = {
    "maecli": 0.5,
    "mae.exporting": 0.14,
    "mae.profiling": 0.86,
    "mae.comparison": 0.14,
    "mae.evaluation": 0.5,
    "mae.training": 0.86,
    "mae.reconstruction": 0.3,
    "mae.checkpoints": 0.26,
    "mae.reporting": 0.86,
    "mae.models": 0.14,
    "mae.data": 0.62,
    "mae.model": 0.14,
    "mae.io": 0.5,
    "mae.system": 0.86,
    "mae.base": 0.5,
}
WIDTH, BOX_WIDTH, BOX_HEIGHT, ROW, TOP = 900, 196, 62, 108, 16
STYLE = """
svg { font-family: system-ui, sans-serif; }
rect { fill: #f6f8fa; stroke: #57606a; }
.title { font-size: 14px; font-weight: 600; fill: #1f2328; text-anchor: middle; }
.text { font-size: 11px; fill: #57606a; text-anchor: middle; }
path { fill: none; stroke: #0969da; stroke-width: 1.3; marker-end: url(#head); }
#head path { fill: #0969da; stroke: none; marker-end: none; }
@media (prefers-color-scheme: dark) {
rect { fill: #161b22; stroke: #8b949e; }
.title { fill: #e6edf3; }
.text { fill: #9da7b3; }
path { stroke: #58a6ff; }
#head path { fill: #58a6ff; }
}
"""


def box_of(module: str) -> str | None:
    """The box that a module belongs to; None for the lazy list of public names in ``mae``."""
    parts = module.split(".")
    if parts[0] == "maecli":
        return "maecli"
    if parts[0] != "mae" or len(parts) == 1:
        return None
    if parts[1] in MODEL:
        return "mae.model"
    return "mae.base" if parts[1] in BASE else f"mae.{parts[1]}"


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def arrows() -> dict[str, set[str]]:
    """By box, the boxes that it imports."""
    found: dict[str, set[str]] = {}
    for path in sorted([*(ROOT / "mae").rglob("*.py"), *(ROOT / "maecli").rglob("*.py")]):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        box = box_of(module)
        if box is not None:
            to = {box_of(other) for other in imports_of(path) if (module, other) not in CONVENIENCES} - {None, box}
            found.setdefault(box, set()).update(name for name in to if name)
    return found


def depths(graph: dict[str, set[str]]) -> dict[str, int]:
    """How many arrows the longest way from a box to the base has.

    Raises:
        ValueError: The imports go round in a circle.
    """
    known: dict[str, int] = {}

    def depth(box: str, above: tuple[str, ...]) -> int:
        if box in above:
            raise ValueError(f"imports in a circle: {' -> '.join((*above, box))}")
        if box not in known:
            known[box] = max((1 + depth(to, (*above, box)) for to in sorted(graph[box])), default=0)
        return known[box]

    for box in sorted(graph):
        depth(box, ())
    return known


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The graph without the arrows that a chain of others implies."""

    def reach(box: str) -> set[str]:
        return graph[box] | {far for to in graph[box] for far in reach(to)}

    return {box: {to for to in near if not any(to in reach(other) for other in near)} for box, near in graph.items()}


def places(depth: dict[str, int]) -> dict[str, tuple[float, float]]:
    """The upper middle of every box; one row for each depth, the command line at the top."""
    found: dict[str, tuple[float, float]] = {}
    for row, level in enumerate(sorted(set(depth.values()), reverse=True)):
        boxes = sorted(box for box in depth if depth[box] == level)
        for number, box in enumerate(boxes):
            across = ACROSS.get(box, (number + 0.5) / len(boxes))
            found[box] = (WIDTH * across, TOP + row * ROW)
    return found


def draw(graph: dict[str, set[str]]) -> str:
    """The SVG."""
    at = places(depths(graph))
    height = max(y for _, y in at.values()) + BOX_HEIGHT + TOP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        "<title>The packages of maecli; an arrow leads from a package to one that it imports</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path d="M0 0 L8 4 L0 8 z"/></marker></defs>',
    ]
    near = reduced(graph)
    incoming = {box: sorted((b for b in near if box in near[b]), key=lambda b: at[b]) for box in near}
    for box in sorted(near):
        outgoing = sorted(near[box], key=lambda to: at[to])
        for number, to in enumerate(outgoing, start=1):
            x1 = at[box][0] + BOX_WIDTH * (number / (len(outgoing) + 1) - 0.5)
            x2 = at[to][0] + BOX_WIDTH * ((incoming[to].index(box) + 1) / (len(incoming[to]) + 1) - 0.5)
            y1, y2 = at[box][1] + BOX_HEIGHT, at[to][1]
            bend = (y2 - y1) * 0.5
            parts.append(
                f'<path d="M{x1:.0f} {y1} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2 - 1}"/>'
            )
    for box, (x, y) in sorted(at.items()):
        title = TITLES.get(box, box.replace(".", "/") + "/")
        lines = textwrap.wrap(TEXTS.get(box, ""), 34)
        parts.append(f'<rect x="{x - BOX_WIDTH / 2:.0f}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>')
        parts.append(f'<text class="title" x="{x:.0f}" y="{y + 20}">{html.escape(title)}</text>')
        for number, line in enumerate(lines):
            parts.append(f'<text class="text" x="{x:.0f}" y="{y + 37 + 14 * number}">{html.escape(line)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Write the diagram where the command line says."""
    Path(sys.argv[1]).write_text(draw(arrows()))


if __name__ == "__main__":
    main()
