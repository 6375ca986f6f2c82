"""The results of ``gpu.py`` as text, with the targets. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mae.errors import ConfigError
from mae.profiling.accelerators import find_accelerator

TARGET_SHARE = 0.45  # of the measured bf16 peak, ViT-L
TARGET_OVER_OFFICIAL = 2.0
Document = Mapping[str, Any]


def lines(document: Document) -> Iterator[str]:
    """The whole table."""
    parts = document["parts"]
    facts = parts.get("environment", {}).get("result", {})
    peaks = facts.get("matmul_flops", {})
    yield f"{facts.get('device', {}).get('name', document['device'])}{', small: a rehearsal' * document['small']}"
    if peaks:
        yield "matrix products, TFLOP/s: " + ", ".join(f"{name} {flops / 1e12:.2f}" for name, flops in peaks.items())
    if facts.get("lacking"):
        yield "not installed: " + ", ".join(facts["lacking"])
    for name, part in parts.items():
        yield ""
        yield f"{name}: {part['status']}{_seconds(part)}. {part['shows']}"
        if part["status"] not in ("done", "skipped"):
            yield from (f"  | {line}" for line in part.get("stderr", [])[-6:])
        result = part.get("result") or {}
        yield from _steps(result, peaks, facts) if "flops_per_image" in result else _plain(name, result)
    yield ""
    yield from targets(parts, peaks)


def _seconds(part: Document) -> str:
    if part["status"] == "skipped":
        return f", {part['why']}"
    return f" after {part['seconds']:.0f} s of {part['limit_seconds']:.0f}" if "seconds" in part else ""


def _steps(result: Document, peaks: Document, facts: Document) -> Iterator[str]:
    rows = result.get("rows", {})
    peak, sheet = peaks.get("bf16"), _data_sheet(facts)
    yield f"  {result['variant']}, batch {result['batch_size']}, {result['flops_per_image'] / 1e9:.1f} GFLOP an image"
    yield f"  {'':24}{'images/s':>28}{'of peak':>9}{'of sheet':>9}{'first over it':>22}{'peak GB':>9}{'first s':>9}"
    for name, row in rows.items():
        if "failed" in row:
            yield f"  {name:24}{row['failed']}"
            continue
        rate = row.get("images_per_second", {"median": row["images_per_second_alone"]})
        flops = rate["median"] * result["flops_per_image"]
        ours = name.startswith("ours")
        yield (
            f"  {name:24}{_range(rate, 1):>28}"
            f"{f'{flops / peak:.1%}' if peak and ours else '':>9}{f'{flops / sheet:.1%}' if sheet and ours else '':>9}"
            f"{_range(row['first_over_it'], 2) if 'first_over_it' in row else '':>22}"
            f"{_giga(row['peak_bytes']):>9}{row['first_step_seconds']:9.1f}"
        )
    yield f"  our estimate of the first one's peak: {_giga(result['estimated_peak_bytes'])} GB"


def _plain(name: str, result: Document) -> Iterator[str]:
    """What is not a race: each value on a line."""
    for key, value in result.items():
        if key in ("rows", "passed", "skipped", "failed") and isinstance(value, dict | list):
            yield from _rows(key, value)
        elif name != "environment" and not isinstance(value, dict | list):
            yield f"  {key.replace('_', ' ')}: {_number(value)}"
        elif name != "environment" and isinstance(value, dict):
            yield f"  {key.replace('_', ' ')}: " + ", ".join(f"{one} {_number(it)}" for one, it in value.items())
        elif key == "clocks":
            yield f"  clocks: {value}"


def _rows(key: str, value: Any) -> Iterator[str]:
    if key in ("passed", "skipped", "failed"):
        yield f"  {key}: {len(value)}"
        if key == "failed":
            yield from (f"    {one['name']}" for one in value)
        return
    named = value.items() if isinstance(value, dict) else ((row.get("kernel", ""), row) for row in value)
    for name, row in named:
        row = {one: it for one, it in row.items() if one != "kernel"}
        cells = [f"{one.replace('_', ' ')} {_number(it)}" for one, it in row.items()]
        yield f"  {name}: " + "; ".join(cells)


def _number(value: Any) -> str:
    if isinstance(value, dict):
        if "median" in value:
            return _range(value, 3)
        return ", ".join(f"{name} {_number(one)}" for name, one in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(map(_number, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:100]


def _range(values: Document, digits: int) -> str:
    middle = f"{values['median']:.{digits}f}"
    return f"{middle} ({values['low']:.{digits}f}..{values['high']:.{digits}f})" if "low" in values else middle


def _giga(value: int | None) -> str:
    return "" if value is None else f"{value / 1e9:.2f}"


def _data_sheet(facts: Document) -> float | None:
    """The bf16 rate that the maker gives, if our table has the device."""
    try:
        return find_accelerator(facts["device"]["name"]).peak_flops("bf16")
    except (ConfigError, KeyError):
        return None


def targets(parts: Document, peaks: Document) -> Iterator[str]:
    """What ViT-L was to reach, and what it does."""
    result = parts.get("steps_large", {}).get("result") or {}
    rows = {name: row for name, row in result.get("rows", {}).items() if "images_per_second" in row}
    ours = {name: row["images_per_second"]["median"] for name, row in rows.items() if name.startswith("ours")}
    if not ours:
        yield "targets: ViT-L was not measured"
        return
    best = max(ours, key=lambda name: ours[name])
    if peak := peaks.get("bf16"):
        share = ours[best] * result["flops_per_image"] / peak
        yield f"target, ViT-L at {TARGET_SHARE:.0%} of the measured bf16 peak: {best} is at {share:.1%}"
    for name in ("official-fp16", "arithmetic-fp16"):
        if name in rows:
            times = ours[best] / rows[name]["images_per_second"]["median"]
            yield f"target, at least {TARGET_OVER_OFFICIAL:g} times {name}: {best} is {times:.2f} times as fast"
    yield f"3,237 images/s would be 40 % of an H100's 989 TFLOP/s: {best} takes {ours[best]:,.1f}"
