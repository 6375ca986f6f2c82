"""Curves: thinning keeps all extremes, and all points are inside the drawing."""

from __future__ import annotations

import math
import re

import pytest

from mae.reporting.curves import MOST_POINTS, chart, evenly, thin


def places(svg: str) -> list[tuple[float, float]]:
    """Every point of every path."""
    paths = re.findall(r' d="([^"]*)"', svg)
    return [(float(x), float(y)) for path in paths for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]


def test_few_values_are_kept_as_they_are() -> None:
    curve = thin("loss", [(0.0, 3.0), (1.0, 2.0)])
    assert (curve.each, [(point.x, point.y) for point in curve.points]) == (1, [(0.0, 3.0), (1.0, 2.0)])


def test_thinning_keeps_means_and_extremes() -> None:
    values = [(float(x), float(x % 7)) for x in range(100_000)]
    values[54_321] = (54_321.0, 1000.0)
    curve = thin("loss", values)
    assert len(curve.points) == MOST_POINTS
    assert curve.each == 250
    assert max(point.high for point in curve.points) == 1000.0
    assert sum(point.y for point in curve.points) / MOST_POINTS == pytest.approx(sum(y for _, y in values) / 100_000)
    first = values[:250]
    assert curve.points[0] == (curve.points[0].__class__)(
        sum(x for x, _ in first) / 250, sum(y for _, y in first) / 250, 0.0, 6.0
    )


def test_what_is_not_finite_is_left_out() -> None:
    assert thin("loss", [(0.0, math.nan), (math.inf, 1.0), (1.0, 2.0)]).points == thin("loss", [(1.0, 2.0)]).points


def test_a_curve_runs_from_corner_to_corner() -> None:
    svg = chart("t", [thin("a", [(0.0, 0.0), (5.0, 1.0), (10.0, 2.0)])], x_range=(0.0, 10.0), y_from=0)
    (x0, y0), (x1, y1), (x2, y2) = places(svg)
    assert (x0, x1, x2) == (0.0, 500.0, 1000.0)
    assert y0 == 300.0  # the scale begins at 0
    assert y0 > y1 > y2 > 0
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert ">0<" in svg
    assert ">10<" in svg


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize(
    "ys",
    [
        [1.0],
        [0.0, 0.0],
        [-5.0, -5.0],
        [1.0, 1.0 + 2e-16],
        [1e-29, 1e29],
        [-1e29, 1e29],
        [1e-29, 2e-29],
        [0.5, 40.0],
        [3.0, 1.0, 2.0] * 400,
    ],
)
def test_every_place_is_inside_whatever_the_values(ys: list[float], logarithmic: bool) -> None:
    curve = thin("a", list(enumerate(ys)))
    svg = chart("t", [curve], x_range=(0.0, float(len(ys) - 1) or 1e-9), may_be_logarithmic=logarithmic)
    assert places(svg)
    for x, y in places(svg):
        assert -0.1 <= x <= 1000.1
        assert -0.1 <= y <= 300.1


def test_a_wide_range_of_losses_is_drawn_on_a_logarithmic_scale() -> None:
    curve = thin("a", [(0.0, 100.0), (1.0, 0.01)])
    assert "logarithmic" in chart("t", [curve], x_range=(0, 1), may_be_logarithmic=True)
    assert "logarithmic" not in chart("t", [curve], x_range=(0, 1))


def test_nothing_to_draw_is_said() -> None:
    assert "nothing logged yet" in chart("t", [thin("a", [])], x_range=(0, 1))


@pytest.mark.parametrize(
    ("count", "most", "chosen"),
    [(0, 8, []), (3, 8, [0, 1, 2]), (9, 3, [0, 4, 8]), (9, 1, [8]), (9, 0, []), (1000, 2, [0, 999])],
)
def test_evenly(count: int, most: int, chosen: list[int]) -> None:
    assert evenly(count, most) == chosen
