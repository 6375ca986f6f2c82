"""Measures statistics of each tensor of a file in one pass.

Uses NumPy, which is faster than torch's threads for such short sums.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.floating[Any]]

_SAMPLE = 65_536  # values of a tensor from which quantiles are computed
_SPECTRUM = 128  # rows and columns from which the spectrum is computed
_SHARES = 8  # number of contiguous parts of the rows, and of the columns, that are measured separately
_BLOCK = re.compile(r"((?:decoder_)?blocks)\.(\d+)\.(.+)")
THIRDS = ("queries", "keys", "values")
_CACHED = 65_536  # values that fit into the processor's cache
_MANTISSA = (1 << 23) - 1
_BITS_LOST = (13, 16)  # of the mantissa, in float16 and in bfloat16
ROUNDING = 1 / 128  # relative rounding of bfloat16
_TINY = 1e-300


@dataclasses.dataclass(frozen=True)
class Unit:
    """A tensor, or the third of ``attn.qkv`` that computes queries, keys or values.

    Attributes:
        tensor: Official name of the tensor.
        third: "queries", "keys", "values", or "" for a whole tensor.
        role: Name within its block, such as "attn.proj.weight", "attn.qkv.weight queries"; full name outside blocks.
        part: "blocks", "decoder_blocks", or "" outside blocks.
        block: Number of the block; None outside blocks.
        values: Values as (rows, columns), float32; a vector is one row.
        fan: Inputs plus outputs of the whole tensor, which determine the scale of its initial values; 0 for a vector.
    """

    tensor: str
    third: str
    role: str
    part: str
    block: int | None
    values: Array
    fan: int

    @property
    def label(self) -> str:
        """Name for messages."""
        return f"{self.tensor} ({self.third})" if self.third else self.tensor

    @property
    def is_matrix(self) -> bool:
        """Whether it is a weight matrix, and not a bias, a norm or a token."""
        return self.fan > 0

    @property
    def is_norm_weight(self) -> bool:
        """Whether it is a norm's weight, which starts at 1."""
        return "norm" in self.role and self.role.endswith("weight")


@dataclasses.dataclass(frozen=True)
class Measures:
    """Statistics of a unit.

    Attributes:
        unit: The unit, without its values.
        shape: Number of rows and columns.
        size: Number of values.
        zeros: Fraction of exact zeros.
        zero_rows, zero_columns: Number of rows and columns of a matrix that are entirely zero.
        constant_rows: Number of rows of a matrix whose values are all equal and not zero.
        constant: The value that all have; None if they differ.
        repeated: Fraction of a row's values that equal another value of the row, in a sample.
        repeated_in_bfloat16: That fraction after rounding the values to bfloat16.
        level: Logarithm of the root mean square.
        median: Median.
        robust_std: Robust std.
        positive: Fraction of values above zero.
        largest: The value furthest from the median; for a matrix, from zero.
        gap: Distance of ``largest`` over the second largest distance.
        place: Index of ``largest`` in the unit.
        flatness: Mean absolute value over root mean square: 0.866 for uniform, 0.798 for normal values.
        reach: Largest absolute value over the bound of Xavier's uniform initialisation.
        rows, columns: Logarithm of the root mean square of each row and column; a vector has columns only.
        flat_rows: Flatness of each row.
        outside: Fraction of values beyond that bound by more than rounding to bfloat16 explains.
        share_flatness, share_reach: Flatness and reach of eight contiguous parts of the rows.
        stuck: Description of a bit that never changes, or None.
        at_limit: Fraction of values with exactly the largest magnitude, in a sample.
        near_limit: Fraction of values with a magnitude at most 1 % below the largest.
        rank: Rank of 32 rows of a matrix if it is 16 or less; else None.
        structure: Logarithm of (participation ratio of a random matrix's singular values / that of this matrix's); 0
            for a matrix at initial values, larger if fewer directions carry its energy.
    """

    unit: Unit
    shape: tuple[int, int]
    size: int
    zeros: float
    zero_rows: int
    zero_columns: int
    constant_rows: int
    constant: float | None
    repeated: float
    repeated_in_bfloat16: float
    level: float
    median: float
    robust_std: float
    positive: float
    largest: float
    gap: float
    place: tuple[int, ...]
    flatness: float
    reach: float
    outside: float
    rows: Array
    columns: Array
    flat_rows: Array
    share_flatness: Array
    share_reach: Array
    stuck: str | None
    at_limit: float
    near_limit: float
    rank: int | None
    structure: float


def units_of(state: Mapping[str, Tensor]) -> Iterator[Unit]:
    """The units of a state dict under official names, one at a time; ``attn.qkv`` is divided into thirds."""
    for name, tensor in state.items():
        match = _BLOCK.fullmatch(name)
        part, block, role = (match[1], int(match[2]), match[3]) if match else ("", None, name)
        is_matrix = tensor.ndim > 1 and not name.endswith(("_token", "pos_embed"))
        numbers = tensor.detach().float()
        values = (numbers.flatten(1) if is_matrix else numbers.reshape(1, -1)).numpy()
        fan = sum(values.shape) if is_matrix else 0
        if role.startswith("attn.qkv.") and max(tensor.shape[0], 1) % 3 == 0:
            thirds = np.split(values, 3, axis=0 if is_matrix else 1)
            for third, share in zip(THIRDS, thirds, strict=True):
                yield Unit(name, third, f"{role} {third}", part, block, share, fan)
        else:
            yield Unit(name, "", role, part, block, values, fan)


def measure(unit: Unit) -> Measures:
    """Measure a unit, which must have at least one value and only finite ones."""
    values = unit.values
    rows, columns = values.shape
    sample = _sample(values).astype(np.float64)  # a difference of two float32 values may overflow float32
    median = float(np.median(sample))
    robust_std = float(np.median(np.abs(sample - median))) / 0.6745
    bound = math.sqrt(6 / unit.fan) if unit.is_matrix else math.inf
    sums = _sums(values, bound * (1 + ROUNDING))
    rms = math.sqrt(sums.row_squares.sum() / values.size)
    largest, gap, place = _furthest(values, 0.0 if unit.is_matrix else median, sums.row_largest)
    limit = float(sums.row_largest.max())
    near_limit = np.abs(sample) > 0.99 * limit
    at_limit = np.abs(sample) == limit
    rank, structure = _spectrum(values) if unit.is_matrix else (None, 0.0)
    starts = share_starts(rows)
    share_counts = np.diff([*starts, rows]) * columns
    # Counted within rows: a matrix quantised row by row has few values in each row, but many in total.
    rows_shown = values[:: max(1, rows // 16)][:16, :1024]
    constant_rows = values[:, 0] == values[:, -1]
    constant_rows[constant_rows] = (values[constant_rows] == values[constant_rows, :1]).all(1)
    return Measures(
        unit=dataclasses.replace(unit, values=np.empty((0, 0), np.float32)),
        shape=(rows, columns),
        size=values.size,
        zeros=sums.zeros / values.size,
        zero_rows=int((sums.row_largest == 0).sum()) if unit.is_matrix else 0,
        zero_columns=_zero_columns(values, sums.column_squares) if unit.is_matrix else 0,
        constant_rows=int((constant_rows & (sums.row_largest > 0)).sum()) if columns > 1 else 0,
        constant=float(values[0, 0]) if constant_rows.all() and (values[:, 0] == values[0, 0]).all() else None,
        repeated=_repeated(rows_shown),
        repeated_in_bfloat16=_repeated(_as_bfloat16(rows_shown)),
        level=math.log(max(rms, _TINY)),
        median=median,
        robust_std=robust_std,
        positive=float((sample > 0).mean()),
        largest=largest,
        gap=gap,
        place=place if unit.is_matrix else place[1:],
        flatness=float(sums.row_absolutes.sum()) / values.size / max(rms, _TINY),
        reach=limit / bound,
        outside=sums.outside / values.size,
        rows=_log_root(sums.row_squares / columns),
        columns=_log_root(sums.column_squares / rows),
        flat_rows=_flatness(sums.row_absolutes, sums.row_squares, columns),
        share_flatness=_flatness(
            np.add.reduceat(sums.row_absolutes, starts), np.add.reduceat(sums.row_squares, starts), share_counts
        ),
        share_reach=np.maximum.reduceat(sums.row_largest, starts) / bound,
        stuck=_stuck(unit),
        at_limit=float(at_limit.mean()),
        near_limit=float((near_limit & ~at_limit).mean()),
        rank=rank,
        structure=structure,
    )


@dataclasses.dataclass
class _Sums:
    row_squares: Array
    row_absolutes: Array
    row_largest: Array
    column_squares: Array
    zeros: int = 0
    outside: int = 0


def _sums(values: Array, limit: float) -> _Sums:
    """Sums over rows and columns in float64, computed in pieces of rows that fit into the processor's cache."""
    rows, columns = values.shape
    sums = _Sums(np.zeros(rows), np.zeros(rows), np.zeros(rows), np.zeros(columns))
    step = max(1, _CACHED // columns)
    for start in range(0, rows, step):
        magnitude = np.abs(values[start : start + step])
        here = slice(start, start + len(magnitude))
        sums.row_largest[here] = magnitude.max(axis=1)
        if sums.row_largest[here].max() > limit:
            sums.outside += int((magnitude > limit).sum())
        if magnitude.min() == 0:
            sums.zeros += int((magnitude == 0).sum())
        if not 1e-12 < sums.row_largest[here].max() < 1e12:
            magnitude = magnitude.astype(np.float64)  # their squares would overflow or underflow in float32
        sums.row_absolutes[here] = magnitude.sum(axis=1)
        np.square(magnitude, out=magnitude)
        sums.row_squares[here] = magnitude.sum(axis=1)
        sums.column_squares += magnitude.sum(axis=0)
    return sums


def _spectrum(values: Array) -> tuple[int | None, float]:
    """Rank (None if it is not low) and structure, from evenly spaced rows and columns."""
    rows, columns = (max(1, count // _SPECTRUM) for count in values.shape)
    part = values[::rows, ::columns][:_SPECTRUM, :_SPECTRUM].astype(np.float64)
    part /= max(float(np.abs(part).max()), _TINY)
    gram = part @ part.T
    energy = float(gram.trace())
    if min(part.shape) < 32 or not energy > 0:
        return None, 0.0
    eigenvalues = np.linalg.eigvalsh(gram[:32, :32])
    rank = int((eigenvalues > 1e-11 * eigenvalues[-1]).sum())  # rounding to float32 leaves 1e-14
    participation = energy**2 / float(np.square(gram).sum()) / len(part)
    random = part.shape[1] / sum(part.shape)  # for independent values: m / (n + m) for n rows and m columns
    return rank if rank <= 16 else None, math.log(random / participation)


def _sample(values: Array) -> Array:
    flat = values.reshape(-1)
    # An odd stride does not stay in one column if the width is even.
    return flat[:: max(1, flat.size // _SAMPLE) | 1]


def share_starts(count: int) -> list[int]:
    """Start indices of the contiguous parts of ``count`` rows."""
    shares = min(_SHARES, count)
    return [count * number // shares for number in range(shares)]


def _flatness(absolutes: Array, squares: Array, counts: int | NDArray[np.integer[Any]]) -> Array:
    return absolutes / counts / np.maximum(np.sqrt(squares / counts), _TINY)


def _log_root(mean_square: Array) -> Array:
    return np.log(np.maximum(mean_square, _TINY)) / 2


def _zero_columns(values: Array, squares: Array) -> int:
    small = np.flatnonzero(squares < _TINY)
    return int((values[:, small] == 0).all(axis=0).sum()) if len(small) else 0


def _furthest(values: Array, middle: float, row_largest: Array) -> tuple[float, float, tuple[int, ...]]:
    """The value furthest from ``middle``, its distance over the second largest distance, and its index."""
    best = row_largest.copy()
    row = int(best.argmax())
    distance = np.abs(values[row].astype(np.float64) - middle)
    column = int(distance.argmax())
    best[row] = np.delete(distance, column).max(initial=0)
    return float(values[row, column]), float(distance[column]) / max(float(best.max()), _TINY), (row, column)


def _repeated(rows: Array) -> float:
    ordered = np.sort(rows, axis=1)
    return float((ordered[:, 1:] == ordered[:, :-1]).mean()) if rows.shape[1] > 1 else 0.0


def _as_bfloat16(values: Array) -> Array:
    """The nearest bfloat16, ties away from zero, as float32."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(1 << 15)) & np.uint32(0xFFFF0000)).view(np.float32)


def _hardly_changed(ones: NDArray[np.int32], shared: NDArray[np.int32]) -> int:
    """The low bits that a shorter type lacks, if a row holds numbers of that type that were changed by little.

    A few steps of training with a tiny gradient do so, all in one direction: these bits are then little above zero, or
    little below a whole unit, so the two highest of them are all zeros or all ones. One stuck bit does not look so.
    """
    found = 0
    for lost in _BITS_LOST:
        top = np.int32(3 << (lost - 2))
        if (((ones & top) == 0) | ((shared & top) == top)).any():
            found = (1 << lost) - 1
    return found


def _stuck(unit: Unit) -> str | None:
    """Describe a bit that never changes in a matrix, or in one of its rows, other than low bits lost by rounding.

    By chance, each of the mantissa's 23 bits takes both values within 48 numbers of a row, the exponent's lowest two
    bits within 128 numbers around zero, and its lowest three within a whole matrix.
    """
    rows, columns = unit.values.shape
    if not unit.is_matrix or columns < 48:
        return None
    bits = np.ascontiguousarray(unit.values).view(np.int32)
    step = max(1, _CACHED // columns)
    pieces = [bits[start : start + step] for start in range(0, rows, step)]
    ones = np.concatenate([np.bitwise_or.reduce(piece, axis=1) for piece in pieces])
    shared = np.concatenate([np.bitwise_and.reduce(piece, axis=1) for piece in pieces])
    any_one, all_ones = int(np.bitwise_or.reduce(ones)), int(np.bitwise_and.reduce(shared))
    used = any_one & _MANTISSA
    # Low bits that are all zero come from rounding to a shorter type.
    changing = ~((used & -used) - 1) if used else ~_MANTISSA
    changing &= ~_hardly_changed(ones, shared)
    if rows * columns >= 4096 and (frozen := (~any_one | all_ones) & (_MANTISSA | 7 << 23) & changing):
        return f"bit {frozen.bit_length() - 1} of its numbers never changes"
    looked_at = (_MANTISSA | (3 << 23 if columns >= 128 else 0)) & changing
    in_rows = (~ones | shared) & np.int32(looked_at)
    where = np.flatnonzero(in_rows)
    if not len(where):
        return None
    bit = int(in_rows[where[0]]).bit_length() - 1
    return f"bit {bit} of its numbers never changes in {len(where)} of {rows} rows, the first {where[0]}"
