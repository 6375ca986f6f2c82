"""Compare two checkpoints, tensor by tensor."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mae.checkpoints import Checkpoint


@dataclasses.dataclass(frozen=True)
class TensorDifference:
    """A tensor that differs between two files.

    Attributes:
        largest: Largest absolute difference; infinite if the shapes differ, NaN if a difference is not finite.
        relative: Norm of the difference over the norm of the first file's tensor; infinite where ``largest`` is not
            finite.
        rounding: Whether the second file's tensor is the first's, rounded to a shorter type.
    """

    name: str
    largest: float
    relative: float
    rounding: bool


@dataclasses.dataclass(frozen=True)
class FilesReport:
    """The comparison of two files.

    Attributes:
        equal: Number of bit-identical tensors.
        only_first, only_second: Names of tensors that are in one file only.
        differing: Tensors that differ, in descending order of difference.
    """

    equal: int
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    differing: tuple[TensorDifference, ...]

    @property
    def same(self) -> bool:
        """Whether the files hold the same model, up to rounding to a shorter type."""
        return not (self.only_first or self.only_second) and all(tensor.rounding for tensor in self.differing)


def compare_files(first: Checkpoint, second: Checkpoint) -> FilesReport:
    """Compare the tensors of two files, by official name."""
    common = [key for key in first.state if key in second.state]
    differences = [found for key in common if (found := _difference(key, first.state[key], second.state[key]))]
    return FilesReport(
        equal=len(common) - len(differences),
        only_first=tuple(key for key in first.state if key not in second.state),
        only_second=tuple(key for key in second.state if key not in first.state),
        differing=tuple(sorted(differences, key=lambda found: -found.relative)),
    )


def _difference(name: str, first: Tensor, second: Tensor) -> TensorDifference | None:
    if first.shape != second.shape:
        return TensorDifference(name, float("inf"), float("inf"), False)
    if torch.equal(first.float(), second.float()):
        return None
    off = first.double() - second.double()
    if not off.isfinite().all():
        return TensorDifference(name, float("nan"), float("inf"), False)
    largest, relative = float(off.abs().max()), float(off.norm() / first.double().norm().clamp_min(1e-300))
    rounding = any(
        torch.equal(one.to(dtype).float(), other.float())
        for one, other in ((first, second), (second, first))
        for dtype in (torch.bfloat16, torch.float16)
    )
    return TensorDifference(name, largest, relative, rounding)
