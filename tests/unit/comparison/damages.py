"""Kinds of damage to a file, and healthy files that must not be reported as damaged.

``benchmarks/damage.py`` prints how much of each kind of damage is found, and how often there are false alarms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from mae.comparison.damage import judge
from mae.comparison.measures import Measures, measure, units_of
from mae.config import MAEConfig
from mae.models import create_model
from tests.golden import official

State = dict[str, Tensor]
Rng = np.random.Generator
Damage = Callable[[State, Rng], str]  # damages the state in place and returns the name that the finding must contain

DEEP = MAEConfig((32, 32), 8, 3, 96, 8, 3, 64, 5, 2)
SHALLOW = MAEConfig((32, 32), 8, 3, 64, 2, 2, 32, 1, 2)
MATRICES = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
BIASES = ("attn.qkv.bias", "attn.proj.bias", "mlp.fc1.bias", "mlp.fc2.bias", "norm1.bias", "norm2.bias")


# Healthy files.
def golden(config: MAEConfig, rng: Rng) -> State:
    """Random weights far from any initial value; tensors are independent of each other."""
    return official.weights(config, int(rng.integers(2**31)))


def simulated(config: MAEConfig, rng: Rng) -> State:
    """Random weights with known properties of trained vision transformers.

    Sizes drift with depth and the first and last blocks are unlike the rest; spectra decay; numbers have heavy tails;
    a few channels of the residual stream stand out in all blocks, in norms and biases by ten times and more; heads
    differ; queries and keys, values and projection, both layers of the MLP have norms that follow each other; the
    keys' biases are next to nothing; the kernels of the patches are smooth, and some of them nearly dead.
    """
    state = golden(config, rng)
    for part, depth, width, heads in (
        ("blocks", config.depth, config.embed_dim, config.num_heads),
        ("decoder_blocks", config.decoder_depth, config.decoder_embed_dim, config.decoder_num_heads),
    ):
        channels = np.exp(0.2 * rng.standard_normal(width))
        channels[rng.choice(width, 2, replace=False)] *= rng.uniform(4, 12, 2)
        drift = np.exp(np.cumsum(rng.normal(0, 0.06, depth)))
        drift[0] *= math.exp(rng.normal(0, 0.3))
        drift[-1] *= math.exp(rng.normal(0, 0.2))
        for block in range(depth):
            own = f"{part}.{block}"
            seen = channels * np.exp(0.15 * rng.standard_normal(width))
            written = channels ** rng.uniform(0.3, 0.6) * np.exp(0.15 * rng.standard_normal(width))
            hidden = np.exp(0.3 * rng.standard_normal(width * 4))
            per_head = [np.repeat(np.exp(0.25 * rng.standard_normal(heads)), width // heads) for _ in range(2)]
            attended, carried = (head * np.exp(0.2 * rng.standard_normal(width)) for head in per_head)
            norms = (1 / seen) * drift[block]
            rows = np.concatenate([attended * 1.2, attended * 1.2, carried * 0.7])
            rows *= np.exp(0.08 * rng.standard_normal(3 * width))
            _fill(state, f"{own}.attn.qkv.weight", rows, 1 / np.sqrt(norms), rng)
            _fill(state, f"{own}.attn.proj.weight", written, carried, rng)
            _fill(state, f"{own}.mlp.fc1.weight", hidden, 1 / np.sqrt(norms), rng)
            _fill(state, f"{own}.mlp.fc2.weight", written * drift[block], hidden, rng)
            for norm in ("norm1", "norm2"):
                _set(state, f"{own}.{norm}.weight", norms * np.exp(0.05 * rng.standard_normal(width)))
                _set(state, f"{own}.{norm}.bias", 0.1 * seen * rng.standard_t(4, width) * math.exp(rng.normal(0, 0.4)))
            sizes = np.exp(rng.normal(0, 0.4, 6)) * (1.5 if block in (0, depth - 1) else 1)
            bias = rng.standard_normal(3 * width) * np.repeat([0.4 * sizes[0], 1e-4 * sizes[1], 0.05 * sizes[2]], width)
            _set(state, f"{own}.attn.qkv.bias", bias)
            _set(state, f"{own}.attn.proj.bias", 0.05 * sizes[3] * written * rng.standard_t(4, width))
            _set(state, f"{own}.mlp.fc1.bias", -0.2 * sizes[4] + 0.1 * rng.standard_normal(4 * width))
            _set(state, f"{own}.mlp.fc2.bias", 0.05 * sizes[5] * written * rng.standard_t(4, width))
    kernels = state["patch_embed.proj.weight"]
    for axis in (-1, -2):
        kernels = kernels + kernels.roll(1, axis) + 0.5 * kernels.roll(2, axis)
    live = torch.from_numpy(np.exp(0.8 * rng.standard_normal(config.embed_dim))).float()
    state["patch_embed.proj.weight"] = kernels / kernels.std() * 0.05 * live[:, None, None, None]
    state["cls_token"] *= torch.from_numpy(rng.standard_t(3, config.embed_dim)).float().abs()
    return state


def _set(state: State, name: str, values: np.ndarray) -> None:
    state[name] = torch.from_numpy(values.astype(np.float32))


def _fill(state: State, name: str, rows: np.ndarray, columns: np.ndarray, rng: Rng) -> None:
    """A matrix of heavy-tailed numbers with a decaying spectrum and given norms of rows and columns."""
    shape = tuple(state[name].shape)
    rank = max(2, min(shape) // 4)
    few = rng.standard_normal((shape[0], rank)) * np.linspace(1, 0.2, rank) @ rng.standard_normal((rank, shape[1]))
    values = few / few.std() + rng.standard_t(6, shape)
    values *= rows[:, None] * columns
    _set(state, name, values / values.std() / math.sqrt(sum(shape) / 2))


def fresh(config: MAEConfig, rng: Rng) -> State:
    """The weights of a new model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        return {name: tensor.clone() for name, tensor in create_model(config).state_dict().items()}


def trained(config: MAEConfig, rng: Rng, steps: int = 120, lr: float = 3e-3) -> State:
    """A model after some steps on random smooth images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        model = create_model(config.replace(norm_pix_loss=True))
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.05)
        basis = torch.randn(12, config.in_chans, *config.img_size).cumsum(-1).cumsum(-2)
        basis /= basis.std(dim=(-1, -2), keepdim=True)
        for _ in range(steps):
            imgs = torch.einsum("bn,nchw->bchw", torch.randn(16, 12) / 3, basis) + 0.1 * torch.randn(1)
            loss = model(imgs, 0.75)[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


# Damage.
def _blocks(state: State) -> list[str]:
    return sorted({name.rpartition(".norm1")[0] for name in state if ".norm1." in name})


def _one(state: State, rng: Rng, names: tuple[str, ...]) -> str:
    return f"{rng.choice(_blocks(state))}.{rng.choice(names)}"


def _two_blocks(state: State, rng: Rng) -> tuple[str, str]:
    parts = [part for part in ("blocks.", "decoder_blocks.") if sum(b.startswith(part) for b in _blocks(state)) > 1]
    part = rng.choice(parts)
    one, other = rng.choice([block for block in _blocks(state) if block.startswith(part)], 2, replace=False)
    return str(one), str(other)


def _changed(names: tuple[str, ...], change: Callable[[Tensor, Rng], Tensor]) -> Damage:
    def damage(state: State, rng: Rng) -> str:
        name = _one(state, rng, names)
        state[name] = change(state[name].clone(), rng)
        return name

    return damage


def _zero_rows(tensor: Tensor, rng: Rng) -> Tensor:
    tensor[: max(1, int(len(tensor) * rng.choice([0.02, 0.25, 0.5])))] = 0
    return tensor


def _zero_block(state: State, rng: Rng) -> str:
    block = str(rng.choice(_blocks(state)))
    for name in MATRICES:
        state[f"{block}.{name}"] = torch.zeros_like(state[f"{block}.{name}"])
    return block


def _copied_block(state: State, rng: Rng) -> str:
    one, other = _two_blocks(state, rng)
    for name in [name for name in state if name.startswith(f"{one}.")]:
        state[name] = state[name.replace(one, other, 1)].clone()
    return "blocks."


def _copied(names: tuple[str, ...]) -> Damage:
    def damage(state: State, rng: Rng) -> str:
        one, other = _two_blocks(state, rng)
        name = rng.choice(names)
        state[f"{one}.{name}"] = state[f"{other}.{name}"].clone()
        return str(name)

    return damage


def _exchanged(names: tuple[str, ...]) -> Damage:
    def damage(state: State, rng: Rng) -> str:
        one, other = _two_blocks(state, rng)
        name = rng.choice(names)
        state[f"{one}.{name}"], state[f"{other}.{name}"] = state[f"{other}.{name}"], state[f"{one}.{name}"]
        return str(name)

    return damage


def _exchanged_blocks(state: State, rng: Rng) -> str:
    one, other = _two_blocks(state, rng)
    for name in [name for name in state if name.startswith(f"{one}.")]:
        twin = name.replace(one, other, 1)
        state[name], state[twin] = state[twin], state[name]
    return "blocks."


def _norm_exchanged(state: State, rng: Rng) -> str:
    name = _one(state, rng, ("norm1", "norm2"))
    state[f"{name}.weight"], state[f"{name}.bias"] = state[f"{name}.bias"], state[f"{name}.weight"]
    return name


def _thirds(order: tuple[int, int, int]) -> Damage:
    def damage(state: State, rng: Rng) -> str:
        block = str(rng.choice(_blocks(state)))
        for kind in ("weight", "bias"):
            thirds = state[f"{block}.attn.qkv.{kind}"].chunk(3)
            state[f"{block}.attn.qkv.{kind}"] = torch.cat([thirds[number] for number in order])
        return block

    return damage


def _queries_exchanged(state: State, rng: Rng) -> str:
    one, other = _two_blocks(state, rng)
    third = int(rng.integers(3))
    names = [f"{block}.attn.qkv.weight" for block in (one, other)]
    width = len(state[names[0]]) // 3
    rows = slice(third * width, (third + 1) * width)
    first, second = (state[name].clone() for name in names)
    first[rows], second[rows] = state[names[1]][rows], state[names[0]][rows]
    state[names[0]], state[names[1]] = first, second
    return "blocks."


def _element(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Rng], Tensor]:
    def changed(tensor: Tensor, rng: Rng) -> Tensor:
        flat = tensor.view(-1)
        place = int(rng.integers(len(flat)))
        flat[place] = change(flat[place])
        return tensor

    return changed


def _part_fresh(prefix: Callable[[State, Rng], str]) -> Damage:
    """Freshly initialised matrices; the biases are small and random, so that they do not reveal it."""

    def damage(state: State, rng: Rng) -> str:
        part = prefix(state, rng)
        for name, tensor in state.items():
            if not name.startswith(part) or name.endswith("pos_embed"):
                continue
            if tensor.ndim > 1 and "token" not in name:
                state[name] = _xavier(tensor, rng)
            elif tensor.ndim == 1:
                one = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                state[name] = one + torch.from_numpy(0.01 * rng.standard_normal(len(tensor))).float()
        return "decoder" if part == "decoder_" else part

    return damage


def _xavier(tensor: Tensor, rng: Rng) -> Tensor:
    bound = math.sqrt(6 / sum(tensor.flatten(1).shape))
    return torch.from_numpy(rng.uniform(-bound, bound, tuple(tensor.shape))).float()


def _half_fresh(tensor: Tensor, rng: Rng) -> Tensor:
    half = len(tensor) // 2
    rows = slice(None, half) if rng.integers(2) else slice(half, None)
    tensor[rows] = _xavier(tensor, rng)[rows]
    return tensor


def _bit(bit: int, set_to: int) -> Callable[[Tensor, Rng], Tensor]:
    def changed(tensor: Tensor, rng: Rng) -> Tensor:
        bits = tensor.contiguous().view(torch.int32)
        bits = bits | (1 << bit) if set_to else bits & ~(1 << bit)
        return bits.view(torch.float32)

    return changed


def _garbled(tensor: Tensor, rng: Rng) -> Tensor:
    """Replace 4096 bytes (a disk sector), or all if there are fewer, with random ones."""
    flat = tensor.view(-1)
    count = min(1024, len(flat))
    start = int(rng.integers(len(flat) - count + 1))
    flat[start : start + count] = torch.from_numpy(rng.integers(0, 2**32, count, dtype=np.uint32).view(np.float32))
    return tensor


def _zero_sector(tensor: Tensor, rng: Rng) -> Tensor:
    flat = tensor.view(-1)
    start = int(rng.integers(max(1, len(flat) - 1024)))
    flat[start : start + 1024] = 0
    return tensor


def _quantised(tensor: Tensor, rng: Rng) -> Tensor:
    """Four bits in each row."""
    step = tensor.abs().amax(dim=-1, keepdim=True) / 7
    return (tensor / step).round() * step


def _half_of_it(change: Callable[[Tensor, Rng], Tensor]) -> Callable[[Tensor, Rng], Tensor]:
    def changed(tensor: Tensor, rng: Rng) -> Tensor:
        half = len(tensor) // 2
        return torch.cat([change(tensor[:half].clone(), rng), tensor[half:]])

    return changed


def _shuffled_rows(tensor: Tensor, rng: Rng) -> Tensor:
    return tensor[torch.from_numpy(rng.permutation(len(tensor)))]


def _shuffled(tensor: Tensor, rng: Rng) -> Tensor:
    return tensor.view(-1)[torch.from_numpy(rng.permutation(tensor.numel()))].view_as(tensor)


def _twin_rows(tensor: Tensor, rng: Rng) -> Tensor:
    one, other = rng.choice(len(tensor), 2, replace=False)
    tensor[one] = tensor[other]
    return tensor


def _twin_heads(state: State, rng: Rng) -> str:
    name = _one(state, rng, ("attn.qkv.weight",))
    tensor = state[name] = state[name].clone()
    tensor[:16] = tensor[16:32]
    return name


def _kernel_order(state: State, rng: Rng) -> str:
    kernels = state["patch_embed.proj.weight"]
    size = kernels.shape
    state["patch_embed.proj.weight"] = kernels.permute(0, 2, 3, 1).reshape(size)
    return "patch_embed.proj.weight"


def _eight_bits(tensor: Tensor, rng: Rng) -> Tensor:
    """A different scale for each row."""
    step = tensor.abs().amax(dim=-1, keepdim=True) / 127
    return (tensor / step).round() * step


def _channels_rolled(state: State, rng: Rng) -> str:
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].roll(1, dims=1)
    return "patch_embed.proj.weight"


def _outside_blocks(change: Callable[[Tensor, Rng], Tensor]) -> Damage:
    names = ("patch_embed.proj.weight", "decoder_embed.weight", "decoder_pred.weight")

    def damage(state: State, rng: Rng) -> str:
        name = str(rng.choice(names))
        state[name] = change(state[name].clone(), rng)
        return name

    return damage


def _hidden_nan(tensor: Tensor, rng: Rng) -> Tensor:
    tensor.view(-1)[int(rng.integers(tensor.numel()))] = float("nan")
    return tensor


def _noisy(share: float) -> Callable[[Tensor, Rng], Tensor]:
    """Gaussian noise; its std is a fraction of the tensor's std."""

    def changed(tensor: Tensor, rng: Rng) -> Tensor:
        return tensor + share * float(tensor.std()) * torch.from_numpy(rng.standard_normal(tuple(tensor.shape))).float()

    return changed


def _replaced_by_noise(tensor: Tensor, rng: Rng) -> Tensor:
    return float(tensor.std()) * torch.from_numpy(rng.standard_normal(tuple(tensor.shape))).float()


def _bytes_swapped(tensor: Tensor, rng: Rng) -> Tensor:
    """As if written on a big-endian machine; numbers that would be NaN or infinite are left unchanged."""
    swapped = torch.from_numpy(tensor.contiguous().numpy().byteswap())
    return torch.where(swapped.isfinite(), swapped, 0.0)


def _zero_column(tensor: Tensor, rng: Rng) -> Tensor:
    tensor[:, int(rng.integers(tensor.shape[1]))] = 0
    return tensor


def _twin_columns(tensor: Tensor, rng: Rng) -> Tensor:
    one, other = rng.choice(tensor.shape[1], 2, replace=False)
    tensor[:, one] = tensor[:, other]
    return tensor


def _scaled_row(tensor: Tensor, rng: Rng) -> Tensor:
    tensor[int(rng.integers(len(tensor)))] *= 1000
    return tensor


def _rank_one(tensor: Tensor, rng: Rng) -> Tensor:
    u, s, v = torch.linalg.svd(tensor, full_matrices=False)
    return (u[:, :1] * s[:1]) @ v[:1]


def _second_half_is_first(tensor: Tensor, rng: Rng) -> Tensor:
    half = len(tensor) // 2
    return torch.cat([tensor[:half], tensor[:half], tensor[2 * half :]])


def _zero_channel(state: State, rng: Rng) -> str:
    name = "patch_embed.proj.weight"
    state[name] = state[name].clone()
    state[name][:, int(rng.integers(state[name].shape[1]))] = 0
    return name


def _halves_of_queries_exchanged(state: State, rng: Rng) -> str:
    """Heads of the queries in another order than those of keys and values."""
    name = _one(state, rng, ("attn.qkv.weight",))
    queries, *rest = state[name].chunk(3)
    state[name] = torch.cat([*reversed(queries.chunk(2)), *rest])
    return name


def _blocks_reversed(state: State, rng: Rng) -> str:
    blocks = [block for block in _blocks(state) if block.startswith("blocks.")]
    old = dict(state)
    for one, other in zip(blocks, reversed(blocks), strict=True):
        for name in [name for name in old if name.startswith(f"{one}.")]:
            state[name] = old[name.replace(one, other, 1)]
    return "blocks."


DAMAGES: dict[str, Damage] = {
    "a matrix of zeros": _changed(MATRICES, lambda t, _: torch.zeros_like(t)),
    "a block of zeros": _zero_block,
    "zero rows": _changed(MATRICES, _zero_rows),
    "4096 bytes of zeros": _changed(MATRICES, _zero_sector),
    "a bias of zeros": _changed(BIASES, lambda t, _: torch.zeros_like(t)),
    "a constant matrix": _changed(MATRICES, lambda t, _: torch.full_like(t, 0.02)),
    "a constant bias or norm": _changed(
        ("norm1.weight", "norm2.weight", *BIASES), lambda t, _: torch.full_like(t, 0.7)
    ),
    "two identical blocks": _copied_block,
    "a matrix of another block": _copied(MATRICES),
    "a bias of another block": _copied(BIASES),
    "a row twice": _changed(MATRICES, _twin_rows),
    "a head twice": _twin_heads,
    "a norm's weight and bias exchanged": _norm_exchanged,
    "a norm's weight negated": _changed(("norm1.weight", "norm2.weight"), lambda t, _: -t),
    "an element + 100": _changed(MATRICES, _element(lambda x: x + 100)),
    "an element + 1e6": _changed((*MATRICES, *BIASES), _element(lambda x: x + 1e6)),
    "an element x 10,000": _changed(MATRICES, _element(lambda x: (x.abs() + 1e-2) * 1e4)),
    "a tensor x 1e-40": _changed((*MATRICES, *BIASES, "norm1.weight"), lambda t, _: t * 1e-40),
    "a matrix x 1e-3": _changed(MATRICES, lambda t, _: t * 1e-3),
    "a matrix x 50": _changed(MATRICES, lambda t, _: t * 50),
    "a fresh decoder, small biases": _part_fresh(lambda *_: "decoder_"),
    "a fresh block, small biases": _part_fresh(lambda state, rng: f"{rng.choice(_blocks(state))}."),
    "a fresh matrix": _changed(MATRICES, _xavier),
    "half of a matrix fresh": _changed(MATRICES, _half_fresh),
    "half of a matrix x 3": _changed(MATRICES, _half_of_it(lambda t, _: t * 3)),
    "all numbers positive": _changed(MATRICES, lambda t, _: t.abs()),
    "4 bits a row": _changed(MATRICES, _quantised),
    "8 bits a row": _changed(MATRICES, _eight_bits),
    "a norm's weights in part negated": _changed(("norm1.weight", "norm2.weight"), _half_of_it(lambda t, _: -t)),
    "half of a bias zeros": _changed(BIASES, _half_of_it(lambda t, _: torch.zeros_like(t))),
    "an element x 100": _changed(MATRICES, _element(lambda x: x.sign() * (x.abs() + 0.02) * 100)),
    "zeros outside the blocks": _outside_blocks(_zero_rows),
    "an element + 100 outside the blocks": _outside_blocks(_element(lambda x: x + 100)),
    "half fresh outside the blocks": _outside_blocks(_half_fresh),
    "x 1e-40 outside the blocks": _outside_blocks(lambda t, _: t * 1e-40),
    "4 bits a row outside the blocks": _outside_blocks(_quantised),
    "an exponent's bit stuck at 0": _changed(MATRICES, _bit(23, 0)),
    "an exponent's bit stuck at 1": _changed(MATRICES, _bit(26, 1)),
    "an exponent's top bit stuck at 1": _changed(MATRICES, _bit(30, 1)),
    "a mantissa's bit stuck at 1": _changed(MATRICES, _bit(20, 1)),
    "4096 bytes garbled": _changed(MATRICES, _garbled),
    "a hidden NaN": _changed((*MATRICES, *BIASES), _hidden_nan),
    "a row x 1000": _changed(MATRICES, _scaled_row),
    "a column of zeros": _changed(MATRICES, _zero_column),
    "a column twice": _changed(MATRICES, _twin_columns),
    "the second half of the rows is the first": _changed(MATRICES, _second_half_is_first),
    "an input channel of zeros": _zero_channel,
    "bytes in reverse order": _changed(MATRICES, _bytes_swapped),
    "a bias + 10": _changed(BIASES, lambda t, _: t + 10),
    "an identity matrix": _changed(("attn.proj.weight",), lambda t, _: torch.eye(len(t))),
    "clipped at one std": _changed(MATRICES, lambda t, _: t.clamp(-float(t.std()), float(t.std()))),
    "a matrix of rank 1": _changed(("attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"), _rank_one),
    "a matrix replaced by noise of its size": _changed(MATRICES, _replaced_by_noise),
    "noise of twice its size added": _changed(MATRICES, _noisy(2)),
    "noise of a tenth of its size added": _changed(MATRICES, _noisy(0.1)),
    "a bias replaced by noise of its size": _changed(BIASES, _replaced_by_noise),
    "a bias negated": _changed(BIASES, lambda t, _: -t),
    "rows rolled by one": _changed(MATRICES, lambda t, _: t.roll(1, dims=0)),
    "columns rolled by one": _changed(MATRICES, lambda t, _: t.roll(1, dims=1)),
    "heads of the queries exchanged": _halves_of_queries_exchanged,
    "all blocks in reverse order": _blocks_reversed,
    "kernels in another order": _kernel_order,
    "kernels' channels rolled": _channels_rolled,
    "queries and values exchanged": _thirds((2, 1, 0)),
    "thirds rolled": _thirds((2, 0, 1)),
    "queries and keys exchanged": _thirds((1, 0, 2)),
    "thirds of two blocks exchanged": _queries_exchanged,
    "a projection transposed": _changed(("attn.proj.weight",), lambda t, _: t.T.contiguous()),
    "rows shuffled": _changed(MATRICES, _shuffled_rows),
    "all numbers shuffled": _changed(MATRICES, _shuffled),
    "a matrix exchanged with another block": _exchanged(MATRICES),
    "a bias exchanged with another block": _exchanged(BIASES),
    "two blocks exchanged": _exchanged_blocks,
    "a matrix negated": _changed(MATRICES, lambda t, _: -t),
}


_MEASURED: dict[tuple[str, int], tuple[Tensor, list[Measures]]] = {}  # a damaged state shares most tensors with others


def _measured(name: str, tensor: Tensor) -> list[Measures]:
    found = _MEASURED.get((name, id(tensor)))
    if found is None:
        found = _MEASURED[name, id(tensor)] = (tensor, [measure(unit) for unit in units_of({name: tensor})])
    return found[1]


def examine(state: State) -> tuple[list[str], list[str]]:
    """The certain and the suspicious findings in a state."""
    bad = [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]
    finite = {name: tensor for name, tensor in state.items() if name not in bad}
    findings = judge(
        [one for name in finite if "pos_embed" not in name for one in _measured(name, finite[name])], finite
    )
    sure = [f"{name}: NaN or infinity" for name in bad] + [str(one) for one in findings if one.sure]
    return sure, [str(one) for one in findings if not one.sure]


def rates(
    state: State, seed: int, trials: int, kinds: Iterable[str] = DAMAGES
) -> Iterator[tuple[str, float, float, float]]:
    """For each kind of damage: the share of trials in which it failed, was found at all, and named what was damaged."""
    examine(state)
    undamaged = dict(_MEASURED)
    for name in kinds:
        outcomes = []
        for trial in range(trials):
            rng = np.random.default_rng([seed, trial])
            damaged = dict(state)
            wanted = DAMAGES[name](damaged, rng)
            sure, suspicious = examine(damaged)
            outcomes.append((bool(sure), bool(sure or suspicious), any(wanted in one for one in sure + suspicious)))
            _MEASURED.clear()
            _MEASURED.update(undamaged)
        yield name, *(float(share) for share in np.mean(outcomes, axis=0))
    _MEASURED.clear()
