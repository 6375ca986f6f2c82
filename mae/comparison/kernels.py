"""Checks the order of values within a patch: image kernels are smooth only in the right order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from mae.comparison.findings import Finding

_PROJECTION, _PREDICTION = "patch_embed.proj.weight", "decoder_pred.weight"
_SMOOTHER = (0.08, 0.2)  # correlation of neighbouring pixels minus that in the official order: suspicious, sure
_SMOOTH = 0.2
_APART = 0.05  # how far the correlation of two channels must be below that of the other pairs


def find_disorder(state: Mapping[str, Tensor]) -> list[Finding]:
    """Find a patch projection or prediction whose values are smooth in another order than the official one.

    Args:
        state: Tensors under official names; the projection is (D, C, P, P), the prediction (P * P * C, E).
    """
    projection = state.get(_PROJECTION)
    if projection is None or projection.ndim != 4 or projection.shape[-1] < 4:
        return []
    size, channels = projection.shape[-1], projection.shape[1]
    pixels = projection.float()
    findings, rows = [], pixels.flatten(1)
    if channels > 1:
        other = rows.view(-1, size, size, channels).permute(0, 3, 1, 2)
        findings += _smoother(_PROJECTION, pixels, other, "(row, column, channel)", "(channel, row, column)")
    prediction = state.get(_PREDICTION)
    if prediction is None or prediction.shape[0] != size * size * channels:
        return findings
    columns = prediction.float().T
    predicted = columns.reshape(-1, size, size, channels).permute(0, 3, 1, 2)
    if channels > 1:
        other = columns.reshape(-1, channels, size, size)
        findings += _smoother(_PREDICTION, predicted, other, "(channel, row, column)", "(row, column, channel)")
    if channels == 3 and not findings:
        read, written = _least_alike(pixels), _least_alike(predicted)
        if read is not None and written is not None and read != written:
            found = f"its channels {read} are the least alike"
            wanted = f"of {_PREDICTION} the channels {written} are; one of them is in another order"
            findings.append(Finding(_PROJECTION, found, wanted, False))
    return findings


def _smoother(name: str, wanted: Tensor, other: Tensor, other_order: str, order: str) -> list[Finding]:
    smooth, otherwise = _smoothness(wanted), _smoothness(other)
    if otherwise < _SMOOTH or otherwise - smooth < _SMOOTHER[0]:
        return []
    found = f"its numbers are smooth in the order {other_order} (neighbouring pixels correlate {otherwise:.2f})"
    return [Finding(name, found, f"{order} is wanted, where they do {smooth:.2f}", otherwise - smooth > _SMOOTHER[1])]


def _smoothness(kernels: Tensor) -> float:
    """Correlation of neighbouring pixels, of kernels (N, C, P, P)."""
    centred = kernels - kernels.mean(dim=(-1, -2), keepdim=True)
    total = float(centred[..., 1:].square().sum() + centred[..., 1:, :].square().sum())
    beside = float((centred[..., 1:] * centred[..., :-1]).sum() + (centred[..., 1:, :] * centred[..., :-1, :]).sum())
    return beside / total if total > 0 else 0.0


def _least_alike(kernels: Tensor) -> tuple[int, int] | None:
    """The pair of channels of kernels (N, 3, P, P) with clearly the lowest correlation (red and blue), else None."""
    numbers = kernels.transpose(0, 1).flatten(1).double().numpy()
    if not np.ptp(numbers, axis=1).all():
        return None
    channels = np.corrcoef(numbers)
    least, next_least, _ = sorted((float(channels[pair]), pair) for pair in ((0, 1), (0, 2), (1, 2)))
    return least[1] if next_least[0] - least[0] > _APART else None
