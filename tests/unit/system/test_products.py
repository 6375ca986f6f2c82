"""The precision that ``auto`` chooses on a CPU, with a clock that the tests set."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from mae.system import products
from mae.system.device import precision_reason, resolve_precision
from mae.system.products import WORTHWHILE, ProductTimes, product_times

CPU = torch.device("cpu")
Clock = Callable[..., list[tuple[torch.dtype, int]]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Set the time of bf16 relative to fp32 for a small and a large product, and record the timed products."""

    def set_to(small: float, large: float) -> list[tuple[torch.dtype, int]]:
        asked: list[tuple[torch.dtype, int]] = []

        def seconds(dtype: torch.dtype, side: int) -> float:
            asked.append((dtype, side))
            slow_round = 1 + len(asked) % 3  # by other programs
            return slow_round * 1e-3 * (1 if dtype == torch.float32 else small if side == 128 else large)

        monkeypatch.setattr(products, "_seconds", seconds)
        return asked

    product_times.cache_clear()
    yield set_to
    product_times.cache_clear()


@pytest.mark.parametrize(
    ("times", "taken"), [(0.3, "bf16"), (0.8, "bf16"), (0.9, "fp32"), (1.0, "fp32"), (2.0, "fp32")]
)
def test_the_faster_one_is_taken(times: float, taken: str, clock: Clock) -> None:
    asked = clock(small=1.0, large=times)
    assert resolve_precision("auto", CPU) == taken
    assert product_times().gain == pytest.approx(1 / times)
    number = len(asked)
    assert number > 2
    assert resolve_precision("auto", CPU) == taken
    assert len(asked) == number  # timed once per process


def test_a_precision_that_is_given_is_not_timed(clock: Clock) -> None:
    asked = clock(small=1.0, large=0.1)
    assert [resolve_precision(name, CPU) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert asked == []


def test_emulation_shows_in_the_small_product(clock: Clock) -> None:
    asked = clock(small=100.0, large=0.1)
    assert resolve_precision("auto", CPU) == "fp32"
    assert {side for _, side in asked} == {128}


def test_without_a_time_it_is_fp32(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    def refused(dtype: torch.dtype, side: int) -> float:
        raise RuntimeError("not implemented for 'BFloat16'")

    monkeypatch.setattr(products, "_seconds", refused)
    assert resolve_precision("auto", CPU) == "fp32"
    assert precision_reason(CPU, "fp32") == "bf16 products could not be timed on this processor"
    assert ProductTimes(1e-3, 0.0).precision == "fp32"  # a clock that does not advance


def test_it_is_said_in_times() -> None:
    assert str(ProductTimes(3e-3, 1e-3)) == "bf16 products timed at 3.0 times the speed of fp32"
    assert str(ProductTimes(1e-3, 2e-3)) == "fp32 products timed at 2.0 times the speed of bf16"
    assert ProductTimes(WORTHWHILE, 1.0).precision == "bf16"


def test_products_are_really_timed() -> None:
    product_times.cache_clear()
    times = product_times()
    assert times.fp32 > 0
    assert times.bf16 is not None
    assert times.bf16 > 0
    assert resolve_precision("auto", CPU) == times.precision
