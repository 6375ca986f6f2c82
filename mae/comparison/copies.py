"""Finds bit-identical rows, biases and blocks, which training never produces."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from mae.comparison.findings import Finding

_PIECE = 16  # length of the pieces of vectors that are compared
_FEWEST_VALUES = 8  # distinct values in a row or piece; with fewer, two may be equal by chance
_NEVER = "training does not produce two identical ones"

Place = tuple[str, int]  # name of a tensor, and number of the row, column or piece in it


def find_copies(state: Mapping[str, Tensor]) -> list[Finding]:
    """Find blocks, tensors, rows, columns and parts of biases that are bit-identical to others in the file."""
    weights = {name: tensor for name, tensor in state.items() if not name.endswith(("_token", "pos_embed"))}
    matrices = {name: tensor.flatten(1) for name, tensor in weights.items() if tensor.ndim > 1}
    vectors = {name: tensor for name, tensor in state.items() if tensor.ndim == 1}
    pieces = {name: tensor[: len(tensor) // _PIECE * _PIECE].view(-1, _PIECE) for name, tensor in vectors.items()}
    found = _pairs(matrices)
    whole = {pair for pair, places in found.items() if _is_whole(pair, places, matrices)}
    blocks = _same_blocks(whole, state)
    findings = [
        Finding(one, f"all of its matrices are bit-identical to those of {other}", _NEVER, True)
        for one, other in sorted(blocks)
    ]
    covered = {name for pair in blocks for name in pair}
    for what, tensors, pairs in (
        ("row", matrices, found),
        ("column", matrices, _pairs({name: tensor.T for name, tensor in matrices.items()})),
        (f"run of {_PIECE} numbers", pieces, _pairs(pieces)),
    ):
        for (one, other), places in pairs.items():
            if (_block(one), _block(other)) in blocks or (one == other and _block(one) in covered):
                continue
            if what == "column" and (one, other) in whole:
                continue
            findings.append(_described(what, one, other, places, tensors))
    return findings


def _pairs(tensors: Mapping[str, Tensor]) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Identical rows: (tensor, earlier tensor) -> the numbers of their identical rows."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.shape[0] and tensor.shape[1] >= _FEWEST_VALUES:
            groups[tensor.shape[1]].append(name)
    found: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for names in groups.values():
        for first, second in _alike(names, tensors):
            found[second[0], first[0]].append((second[1], first[1]))
    return found


def _alike(names: list[str], tensors: Mapping[str, Tensor]) -> Iterator[tuple[Place, Place]]:
    """Each row that equals an earlier row; candidates are found by a few values and then compared completely."""
    width = tensors[names[0]].shape[1]
    probes = sorted({0, width // 3, width // 2, width - 1})
    keys = np.concatenate([tensors[name][:, probes].float().contiguous().numpy() for name in names])
    places = [(name, row) for name in names for row in range(tensors[name].shape[0])]
    _, inverse, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    suspects: dict[int, list[Place]] = defaultdict(list)
    for index in np.flatnonzero(counts[inverse] > 1):
        here = places[index]
        row = tensors[here[0]][here[1]]
        if suspects[inverse[index]]:
            twin = next((p for p in suspects[inverse[index]] if torch.equal(tensors[p[0]][p[1]], row)), None)
            if twin is not None:
                yield twin, here
                continue
        if len(torch.unique(row)) >= _FEWEST_VALUES:
            suspects[inverse[index]].append(here)


def _is_whole(pair: tuple[str, str], places: list[tuple[int, int]], tensors: Mapping[str, Tensor]) -> bool:
    one, other = pair
    return tensors[one].shape == tensors[other].shape and [p for p in places if p[0] == p[1]] == [
        (row, row) for row in range(tensors[one].shape[0])
    ]


def _block(name: str) -> str:
    match = re.match(r"(?:decoder_)?blocks\.\d+", name)
    return match[0] if match else name


def _same_blocks(whole: set[tuple[str, str]], state: Mapping[str, Tensor]) -> set[tuple[str, str]]:
    """Pairs of blocks whose matrices are all identical."""
    inside: dict[str, int] = defaultdict(int)
    for name, tensor in state.items():
        inside[_block(name)] += tensor.ndim > 1 and _block(name) != name
    alike: dict[tuple[str, str], int] = defaultdict(int)
    for one, other in whole:
        alike[_block(one), _block(other)] += 1
    return {pair for pair, count in alike.items() if count == inside[pair[0]] > 0 and pair[0] != pair[1]}


def _described(
    what: str, one: str, other: str, places: list[tuple[int, int]], tensors: Mapping[str, Tensor]
) -> Finding:
    total = tensors[one].shape[0]
    first, second = places[0]
    if one != other and tensors[one].shape == tensors[other].shape and len(places) == total:
        return Finding(one, f"bit-identical to {other}", _NEVER, True)
    where = "of its own" if one == other else f"of {other}"
    some = f"{what} {first} is {what} {second} {where}, to the bit"
    return Finding(
        one, some if len(places) == 1 else f"{some} ({len(places)} of {total} have such a twin)", _NEVER, True
    )
