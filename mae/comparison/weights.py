"""Checks of a checkpoint's tensors that need no forward pass."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from mae.checkpoints import Checkpoint
from mae.checkpoints.build import compare_shapes, is_decoder, is_finite
from mae.checkpoints.pos_tables import follows_formula
from mae.comparison.damage import find_damage
from mae.io.text import a_few, shown
from mae.models import create_model
from mae.pos_embed import sincos_2d

_NEVER = "never trained, or not loaded"
_SAMPLE = 4096  # values of a tensor that are checked for rounding
TABLES = ("pos_embed", "decoder_pos_embed")
_HEADS = ("head.", "fc_norm.")  # prefixes of the tensors that fine-tuning adds
_ROUNDED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass(frozen=True)
class Group:
    """Statistics of the values of one part of the model.

    Attributes:
        rms: Root mean square of all values.
        largest: Largest absolute value.
    """

    name: str
    tensors: int
    parameters: int
    rms: float
    largest: float


@dataclasses.dataclass(frozen=True)
class WeightsReport:
    """Findings about the tensors of one file.

    Attributes:
        matched: Number of tensors that the model has too, with the same shape.
        missing, unexpected: Names of tensors that only the model, or only the file, has.
        misshapen: (name, wanted shape, shape in the file).
        not_finite: Names of tensors that hold NaN or infinity.
        tables: Position table -> what was found: "formula", or how it deviates.
        precision: Actual precision of the values, for instance "bfloat16, stored as float32".
        groups: Statistics by part.
        problems: Errors, the most serious first.
        warnings: Unusual properties that may be correct.
        notes: Information that is not a problem.
    """

    matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    not_finite: tuple[str, ...]
    tables: tuple[tuple[str, str], ...]
    precision: str
    groups: tuple[Group, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def inspect_weights(checkpoint: Checkpoint) -> WeightsReport:
    """Examine every tensor of a file: names, shapes, position tables, NaN, precision, damage, and untrained parts."""
    state = checkpoint.state
    with torch.device("meta"):
        wanted = create_model(checkpoint.config).state_dict()
    wanted = {key: tensor for key, tensor in wanted.items() if _is_expected(key, checkpoint)}
    missing, unexpected, misshapen = compare_shapes(state, wanted)
    unexpected = [key for key in unexpected if not (checkpoint.kind == "fine-tuned" and key.startswith(_HEADS))]
    not_finite = [key for key, tensor in state.items() if not is_finite(tensor)]
    tables = {key: _table(state[key], checkpoint.config.grid) for key in TABLES if key in state}
    precision = _precision(checkpoint)

    problems = [f"{a_few(not_finite)}: NaN or infinity"] if not_finite else []
    problems += [f"missing: {a_few(missing)} ({len(missing)} tensors)"] if missing else []
    problems += [f"{shown(name, 80)} has shape {got}; {shape} is wanted" for name, shape, got in misshapen]
    problems += [f"unexpected: {a_few(unexpected)} ({len(unexpected)} tensors)"] if unexpected else []
    # The position table is trained in fine-tuning and fixed otherwise.
    wrong = [f"{key}: {what}" for key, what in tables.items() if what != "formula"]
    problems += [] if checkpoint.kind == "fine-tuned" else wrong
    untrained = _untrained(state)
    intact = {key: state[key] for key in wanted if key in state and key not in not_finite}
    intact = {key: tensor for key, tensor in intact.items() if tensor.shape == wanted[key].shape}
    # An untrained part is one finding, not one per tensor.
    findings = [one for one in find_damage(intact) if not any(one.tensor.startswith(prefix) for prefix, _ in untrained)]
    notes = [f"precision: {precision}"] if precision != "float32" else []
    if _steps(checkpoint) in (0, 1):  # with a warm-up, the learning rate of the first step is 0
        notes += [f"{text}, as the file itself says" for _, text in untrained if text.endswith(_NEVER)]
        untrained = [(prefix, text) for prefix, text in untrained if not text.endswith(_NEVER)]
    problems += list(dict.fromkeys(text for _, text in untrained))
    problems += [str(one) for one in findings if one.sure]
    return WeightsReport(
        matched=len(wanted) - len(missing) - len(misshapen),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        misshapen=tuple(misshapen),
        not_finite=tuple(not_finite),
        tables=tuple(tables.items()),
        precision=precision,
        groups=tuple(_groups(state)),
        problems=tuple(problems),
        warnings=tuple(str(one) for one in findings if not one.sure),
        notes=tuple(dict.fromkeys(notes)),
    )


def part_of(key: str) -> str:
    """The part of the model that a tensor belongs to."""
    if key in TABLES:
        return "position tables"
    if key.startswith("patch_embed."):
        return "patch projection"
    if key.endswith("_token"):
        return "tokens"
    if key.startswith(_HEADS):
        return "head"
    return "decoder" if key.startswith("decoder_") else "encoder"


def _is_expected(key: str, checkpoint: Checkpoint) -> bool:
    if not checkpoint.has_decoder and is_decoder(key):
        return False
    return not (checkpoint.kind == "fine-tuned" and key.startswith("norm.") and key not in checkpoint.state)


def _table(table: Tensor, grid: tuple[int, int]) -> str:
    if follows_formula(table, grid):
        return "formula"
    if table.ndim != 3 or table.shape[:2] != (1, 1 + grid[0] * grid[1]) or table.shape[2] % 4:
        return f"of shape {tuple(table.shape)}"
    width = table.shape[2]
    if not table.any():
        return "all zeros"
    if follows_formula(table.roll(width // 2, dims=-1), grid):
        return "its halves are exchanged: rows come first in place of columns"
    off = (table.float() - sincos_2d(width, grid)).abs()
    if off[:, 1:].max() < 1e-3:
        return "the class token's row is not zero"
    return f"not the sine-cosine formula (off by up to {off.max():.2g})"


def _precision(checkpoint: Checkpoint) -> str:
    """The type of the values, and whether they were rounded to a shorter type before."""
    stored = ", ".join(checkpoint.dtypes)
    if stored != "float32":
        return stored
    samples = [tensor.flatten()[:_SAMPLE] for key, tensor in checkpoint.state.items() if key not in TABLES]
    for name, dtype in _ROUNDED.items():
        if all(torch.equal(sample.to(dtype).float(), sample) for sample in samples):
            return f"{name}, stored as float32"
    return stored


def _steps(checkpoint: Checkpoint) -> int | None:
    """Number of training steps recorded by our trainer; None if the file does not have it."""
    own = checkpoint.extra.get("maecli")
    position = own.get("position") if isinstance(own, Mapping) else None
    steps = position.get("step") if isinstance(position, Mapping) else None
    return steps if type(steps) is int else None


def _untrained(state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Find parts at initial values: every bias 0 and every norm weight 1, which training always changes.

    Returns:
        (prefix of the tensors' names, message) of each such part.
    """
    parts: dict[str, list[str]] = {}
    for key in state:
        match = re.match(r"(decoder_)?blocks\.\d+\.", key)
        if match or key.startswith(("decoder_embed.", "decoder_norm.", "decoder_pred.", "norm.")):
            parts.setdefault(match[0] if match else key.split(".")[0] + ".", []).append(key)
    fresh = {part for part, keys in parts.items() if _is_fresh(state, keys)}
    found = []
    for name, prefix in (("encoder", ""), ("decoder", "decoder_")):
        own = {part for part in parts if part.startswith("decoder_") == bool(prefix)}
        if own and own <= fresh:
            text = f"the {name} is at its initial values (every bias 0, every norm 1): {_NEVER}"
        else:
            names = sorted((part.rstrip(".") for part in own & fresh), key=_by_number)
            text = f"{', '.join(names[:4])}{' ...' if len(names) > 4 else ''}: at initial values, half-loaded?"
        found += [(part, text) for part in sorted(own & fresh)]
        found += [(f"the {name}", text)] if own and own <= fresh else []
    return found


def _is_fresh(state: Mapping[str, Tensor], keys: Iterable[str]) -> bool:
    """Whether every bias is 0 and every norm's weight 1; ``decoder_norm.weight`` without biases suffices."""
    signs = [key for key in keys if key.endswith(".bias") or "norm" in key]
    return bool(signs) and all(
        bool((state[key] == (1 if "norm" in key and key.endswith("weight") else 0)).all()) for key in signs
    )


def _by_number(name: str) -> tuple[str, int]:
    head, _, number = name.partition(".")
    return head, int(number or 0)


def _groups(state: Mapping[str, Tensor]) -> list[Group]:
    groups: dict[str, list[Tensor]] = {}
    for key, tensor in state.items():
        if tensor.numel():
            groups.setdefault(part_of(key), []).append(tensor.float())
    found = []
    for name, tensors in groups.items():
        count = sum(tensor.numel() for tensor in tensors)
        square = sum(float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2 for tensor in tensors) / count
        largest = max(max(abs(float(end)) for end in tensor.aminmax()) for tensor in tensors)
        found.append(Group(name, len(tensors), count, square**0.5, largest))
    return found
