"""Curves as inline SVG that stretches to any width, with labels of constant size."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from mae.reporting.render import SHARED, render

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_POINTS = 400  # of a curve; a screen could hardly show more
LOGARITHMIC_FROM = 30.0  # ratio of the largest to the smallest value from which the scale is logarithmic
_WIDTH, _HEIGHT = 1000, 300  # units of the drawing, stretched to the page


@dataclasses.dataclass(frozen=True)
class Point:
    """The mean, the smallest and the largest of one or more values."""

    x: float
    y: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points to draw.

    Attributes:
        name: Name in the legend.
        points: Points, in order of x.
        each: Largest number of values per point.
    """

    name: str
    points: tuple[Point, ...]
    each: int


def thin(name: str, values: Iterable[tuple[float, float]], most: int = MOST_POINTS) -> Curve:
    """Reduce values to a curve of at most ``most`` points: each point is the mean and range of a group of values.

    Non-finite values are left out.
    """
    good = [(x, y) for x, y in values if math.isfinite(x) and math.isfinite(y)]
    each = max(1, -(-len(good) // most))
    points = []
    for start in range(0, len(good), each):
        xs, ys = zip(*good[start : start + each], strict=True)
        points.append(Point(sum(xs) / len(xs), sum(ys) / len(ys), min(ys), max(ys)))
    return Curve(name, tuple(points), each)


def chart(
    title: str,
    curves: Sequence[Curve],
    *,
    x_range: tuple[float, float],
    y_from: float | None = None,
    y_to: float | None = None,
    level: tuple[float, str] | None = None,
    may_be_logarithmic: bool = False,
) -> Markup:
    """Draw curves over epochs; without points the figure says that there is no data.

    Args:
        title: Quantity and unit.
        curves: The curves; those without points are not drawn.
        x_range: First and last epoch.
        y_from, y_to: The scale covers at least this range.
        level: Value and name of a horizontal line.
        may_be_logarithmic: Use a logarithmic scale if the values differ much.
    """
    numbered = [(number, curve) for number, curve in enumerate(curves) if curve.points]  # the number gives the colour
    drawn = [curve for _, curve in numbered]
    if not drawn:
        return render(SHARED / "chart.html", title=title, curves=(), logarithmic=False)
    ends = [value for curve in drawn for point in curve.points for value in (point.low, point.high)]
    ends += [value for value in (y_from, y_to) if value is not None] + ([level[0]] if level else [])
    low, high = min(ends), max(ends)
    logarithmic = may_be_logarithmic and low > 0 and high / low > LOGARITHMIC_FROM
    y_scale = _Scale(low, high, logarithmic=logarithmic)
    x_scale = _Scale(*x_range, logarithmic=False, exact=True)
    return render(
        SHARED / "chart.html",
        title=title,
        logarithmic=logarithmic,
        curves=[{"number": number, **_paths(curve, x_scale, y_scale)} for number, curve in numbered],
        level=(y_scale(level[0]), level[1]) if level else None,
        told=f"from {drawn[-1].points[0].y:.4g} to {drawn[-1].points[-1].y:.4g}",
        x_ticks=x_scale.ticks,
        y_ticks=y_scale.ticks,
        width=_WIDTH,
        height=_HEIGHT,
        up=_up,
    )


class _Scale:
    """Maps values to [0, 1] of the drawing, with round ticks."""

    def __init__(self, low: float, high: float, *, logarithmic: bool, exact: bool = False) -> None:
        if high <= low:
            low, high = low - abs(low) / 2, low + abs(low) / 2 or 1.0
        self.logarithmic = logarithmic
        self.low, self.high = self._place(low), self._place(high)
        if not exact:
            margin = 0.04 * (self.high - self.low)
            self.low, self.high = self.low - (0 if low == 0 else margin), self.high + margin
        wanted = _round_powers(low, high) if logarithmic else _round_steps(low, high)
        self.ticks = {f"{value:.10g}": self(value) for value in wanted}

    def __call__(self, value: float) -> float:
        return (self._place(value) - self.low) / (self.high - self.low)

    def _place(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def _round_steps(low: float, high: float, most: int = 5) -> Iterator[float]:
    """Multiples of 1, 2 or 5 times a power of ten, within the range."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        yield number * step


def _round_powers(low: float, high: float) -> Iterator[float]:
    """Powers of ten within the range; if there are few, also 2 and 5 times these."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    powers = powers[:: max(1, len(powers) // 8)]
    return (10.0**power * factor for power in powers for factor in factors if low <= 10.0**power * factor <= high)


def _paths(curve: Curve, x_scale: _Scale, y_scale: _Scale) -> dict[str, str]:
    """The name, line and band of a curve; the band is empty if each point is a single value."""
    xs = [x_scale(point.x) for point in curve.points]
    line = _path([(x, y_scale(point.y)) for x, point in zip(xs, curve.points, strict=True)])
    if curve.each == 1:
        return {"name": curve.name, "line": line, "band": ""}
    above = [(x, y_scale(point.high)) for x, point in zip(xs, curve.points, strict=True)]
    below = [(x, y_scale(point.low)) for x, point in zip(xs, curve.points, strict=True)]
    name = f"{curve.name}; each point is the mean of {curve.each:,} values, the band is their range"
    return {"name": name, "line": line, "band": _path([*above, *reversed(below)])}


def _path(places: Sequence[tuple[float, float]]) -> str:
    """SVG path data; a single point becomes a line of length 0, which round line ends draw as a dot."""
    steps = [f"{x * _WIDTH:.1f} {_up(y)}" for x, y in places]
    steps = [step for step, before in zip(steps, [None, *steps], strict=False) if step != before]
    return f"M{steps[0]}h0" if len(steps) == 1 else "M" + "L".join(steps)


def _up(share: float) -> str:
    return f"{(1 - share) * _HEIGHT:.1f}"


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` evenly spaced numbers of ``range(count)``, including the first and the last."""
    if count <= most:
        return list(range(count))
    if most < 2:
        return [count - 1][:most]
    return list(dict.fromkeys(round(number * (count - 1) / (most - 1)) for number in range(most)))


def x_range_of(epochs: Iterable[float]) -> tuple[float, float]:
    """From 0 to the last epoch with data."""
    return 0.0, max(itertools.chain(epochs, [1e-9]))
