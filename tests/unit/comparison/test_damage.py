"""Damage is found and named, healthy files cause no finding, and no more is claimed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mae.comparison.copies import find_copies
from mae.comparison.damage import find_damage
from mae.comparison.findings import Finding, gravest
from mae.comparison.measures import measure, units_of
from mae.comparison.neighbours import residuals
from mae.config import MAEConfig
from tests.golden import official
from tests.unit.comparison import damages
from tests.unit.comparison.damages import DAMAGES, DEEP, SHALLOW, State, examine

TINY = official.GOLDEN["golden_tiny"]
SMALL = MAEConfig((32, 32), 8, 3, 64, 6, 2, 48, 4, 2)
# Damage that is not found if training has not related the tensors, and damage that is never certain.
ONLY_TRAINED = {
    "kernels in another order", "kernels' channels rolled", "queries and values exchanged", "thirds rolled",
    "queries and keys exchanged", "thirds of two blocks exchanged", "a projection transposed", "rows shuffled",
    "all numbers shuffled", "a matrix exchanged with another block", "a bias exchanged with another block",
    "two blocks exchanged", "a matrix negated", "a matrix replaced by noise of its size",
    "noise of twice its size added", "noise of a tenth of its size added", "a bias replaced by noise of its size",
    "a bias negated", "rows rolled by one", "columns rolled by one", "heads of the queries exchanged",
    "all blocks in reverse order",
}  # fmt: skip
SUSPICIOUS = {
    "a matrix x 50", "half of a matrix x 3", "an element x 100", "an exponent's bit stuck at 1",
    "4 bits a row outside the blocks", "a row x 1000", "an input channel of zeros",
}  # fmt: skip


@pytest.fixture(scope="module")
def bases() -> dict[str, State]:
    rng = np.random.default_rng(3)
    return {"golden": damages.golden(SMALL, rng), "simulated": damages.simulated(SMALL, rng)}


@pytest.mark.parametrize("kind", sorted(DAMAGES.keys() - ONLY_TRAINED - SUSPICIOUS))
def test_damage_fails_and_is_named(kind: str, bases: dict[str, State]) -> None:
    state = dict(bases["simulated" if len(kind) % 2 else "golden"])  # the slow test tries each on both
    name = DAMAGES[kind](state, np.random.default_rng(11))
    sure, _ = examine(state)
    assert any(name in one for one in sure), (name, sure)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_part_that_another_library_initialised_is_one_finding(part: str, bases: dict[str, State]) -> None:
    """Normal matrices, as of a model into which only the other part was loaded."""
    stream = torch.Generator().manual_seed(0)
    state = dict(bases["golden"])
    for name, tensor in state.items():
        if official.is_decoder(name) is (part == "decoder") and not name.endswith("pos_embed"):
            still = torch.ones_like if "norm" in name and name.endswith("weight") else torch.zeros_like
            state[name] = 0.02 * torch.randn(tensor.shape, generator=stream) if tensor.ndim > 1 else still(tensor)
    name = f"the {part}: all biases of its blocks are 0 and all weights of their norms 1; never trained, or not loaded"
    assert [line for line in _said(state) if not line.startswith("mask_token")] == [name]
    other = {key: tensor for key, tensor in state.items() if official.is_decoder(key) is (part == "decoder")}
    assert _said(other) == []  # nothing shows that it should be trained


@pytest.mark.parametrize("kind", sorted(SUSPICIOUS - {"half of a matrix x 3", "an exponent's bit stuck at 1"}))
def test_what_may_be_right_is_suspicious(kind: str, bases: dict[str, State]) -> None:
    state = dict(bases["golden"])
    name = DAMAGES[kind](state, np.random.default_rng(11))
    sure, suspicious = examine(state)
    assert any(name in one for one in sure + suspicious), (name, sure, suspicious)


@pytest.mark.parametrize("config", [SMALL, SHALLOW, DEEP.replace(decoder_depth=1)], ids=["small", "shallow", "one"])
@pytest.mark.parametrize("kind", ["golden", "simulated", "fresh"])
def test_a_healthy_file_shows_nothing(kind: str, config: MAEConfig) -> None:
    state = getattr(damages, kind)(config, np.random.default_rng(5))
    assert examine(state) == ([], [])
    assert examine({name: tensor.bfloat16().float() for name, tensor in state.items()}) == ([], [])
    encoder = {name: tensor for name, tensor in state.items() if not official.is_decoder(name)}
    assert examine(encoder) == ([], [])


@pytest.mark.parametrize("steps", [1, 2, 12])
def test_a_few_steps_of_training_show_nothing(steps: int) -> None:
    state = damages.trained(SHALLOW, np.random.default_rng(0), steps)
    assert examine(state) == ([], [])
    assert examine({name: tensor.bfloat16().float() for name, tensor in state.items()}) == ([], [])


@pytest.fixture(scope="module")
def tied() -> State:
    """A file whose tensors are related as after training, more clearly than by chance."""
    return damages.simulated(MAEConfig((32, 32), 8, 3, 192, 6, 3, 128, 4, 4), np.random.default_rng(1))


@pytest.mark.parametrize(
    "kind", ["thirds rolled", "a projection transposed", "all numbers shuffled", "noise of twice its size added"]
)
def test_a_broken_tie_is_suspicious(kind: str, tied: State) -> None:
    assert examine(tied) == ([], [])
    state = dict(tied)
    name = DAMAGES[kind](state, np.random.default_rng(2))
    sure, suspicious = examine(state)
    assert any(name in one for one in sure + suspicious), (name, sure, suspicious)


def test_kernels_in_another_order_are_seen(tied: State) -> None:
    state = dict(tied)
    assert DAMAGES["kernels in another order"](state, np.random.default_rng(0)) == "patch_embed.proj.weight"
    sure, suspicious = examine(state)
    assert "smooth in the order (row, column, channel)" in " ".join(sure + suspicious)


# Each finding says which tensor, what was found and what was expected.
def _said(state: State) -> list[str]:
    return [str(one) for one in find_damage(state)]


def test_what_is_said() -> None:
    state = official.weights(TINY)
    largest = float(state["blocks.1.mlp.fc1.weight"].abs().max())
    state["blocks.1.mlp.fc1.weight"][7, 11] += 1e6
    state["blocks.2.attn.proj.weight"][:64] = 0
    state["decoder_blocks.0.norm2.weight"] = -state["decoder_blocks.0.norm2.weight"]
    state["blocks.0.mlp.fc2.weight"] *= 1e-40
    state["norm.bias"] = state["blocks.0.norm1.bias"].clone()
    assert set(_said(state)) == {
        f"blocks.1.mlp.fc1.weight: element [7, 11] is 1e+06, {1e6 / largest:.3g} times the next largest; "
        "the usual size there is 0.088",
        "blocks.2.attn.proj.weight: 64 of its 128 rows are zeros; training does not produce this",
        "decoder_blocks.0.norm2.weight: 0% of its numbers are positive; the weights of a norm stay positive",
        "blocks.0.mlp.fc2.weight: its size is 4.4e-42; training does not produce this",
        "norm.bias: bit-identical to blocks.0.norm1.bias; training does not produce two identical ones",
    }  # fmt: skip


def test_identical_blocks_are_one_finding() -> None:
    state = official.weights(TINY)
    for name in [name for name in state if name.startswith("blocks.1.")]:
        state[name] = state[name.replace("blocks.1.", "blocks.2.", 1)].clone()
    matrices = [one for one in find_copies(state) if "matrices" in one.found]
    assert [(one.tensor, one.found) for one in matrices] == [
        ("blocks.2", "all of its matrices are bit-identical to those of blocks.1")
    ]
    assert "blocks.2: all of its matrices are bit-identical to those of blocks.1" in _said(state)[0]


def test_a_twin_row_a_twin_column_and_a_part_of_a_bias() -> None:
    state = official.weights(TINY)
    state["blocks.1.mlp.fc1.weight"][5] = state["blocks.0.attn.qkv.weight"][9]
    state["blocks.2.mlp.fc2.weight"][:, 3] = state["blocks.2.mlp.fc2.weight"][:, 40]
    state["blocks.0.mlp.fc1.bias"][32:64] = state["blocks.2.mlp.fc1.bias"][96:128]
    said = " ".join(_said(state))
    assert "row 9 of blocks.0.attn.qkv.weight" in said or "row 5 of blocks.1.mlp.fc1.weight" in said
    assert "blocks.2.mlp.fc2.weight: column 40 is column 3 of its own" in said
    assert "run of 16 numbers" in said
    assert len(_said(state)) == 3


def test_numbers_that_may_agree_by_chance_are_no_copies() -> None:
    """After few steps in a 16-bit type, norms have only a few distinct values, and biases are mostly zero."""
    rng = np.random.default_rng(0)
    state: State = {}
    for block in range(6):
        state[f"blocks.{block}.norm1.weight"] = torch.from_numpy(rng.choice([0.996, 1.0, 1.008], 64)).float()
        state[f"blocks.{block}.norm1.bias"] = torch.from_numpy(rng.choice([0.0, 1e-4, -1e-4], 64)).float()
    assert find_copies(state) == []


def test_one_finding_for_each_tensor_and_the_sure_ones_first() -> None:
    found = gravest(
        [
            Finding("b (keys)", "odd", "even", False),
            Finding("a", "odd", "even", False),
            Finding("b", "zeros", "numbers", True),
            Finding("a", "again", "even", False),
        ]
    )
    assert [(one.tensor, one.found) for one in found] == [("b", "zeros"), ("a", "odd")]


def test_outlier_channels_that_all_blocks_share_are_usual() -> None:
    state = official.weights(DEEP)
    for name in state:
        if "blocks" in name and name.endswith(("norm1.weight", "norm1.bias", "mlp.fc2.bias")):
            state[name] = state[name].clone()
            state[name][13] = 25.0
    assert find_damage(state) == ()
    state["blocks.3.norm1.bias"][20] = 700.0
    (finding,) = find_damage(state)
    assert finding.sure
    assert str(finding).startswith("blocks.3.norm1.bias: element [20] is 700, 28 times the next largest")


def test_spectra_by_hand() -> None:
    rng = np.random.default_rng(0)
    random = rng.standard_normal((128, 64)).astype(np.float32)
    (unit,) = units_of({"decoder_pred.weight": torch.from_numpy(random)})
    assert (measure(unit).rank, abs(measure(unit).structure) < 0.05) == (None, True)
    three = (random[:, :3] @ random[:3]).astype(np.float32)
    (unit,) = units_of({"decoder_pred.weight": torch.from_numpy(three)})
    assert measure(unit).rank == 3
    assert measure(unit).structure > 2
    (unit,) = units_of({"decoder_pred.weight": torch.from_numpy(random).clamp(-1, 1)})
    one = measure(unit)
    assert one.at_limit == pytest.approx(0.317, abs=0.03)
    assert one.near_limit < 0.02


def test_measures_by_hand() -> None:
    matrix = torch.tensor([[3.0, -4.0, 0.0], [0.0, 0.0, 0.0]])
    (unit,) = units_of({"decoder_pred.weight": matrix})
    one = measure(unit)
    assert (one.size, one.zero_rows, one.zero_columns, one.constant) == (6, 1, 1, None)
    assert (one.largest, one.place) == (-4.0, (0, 1))
    assert one.gap == pytest.approx(4 / 3)
    assert np.exp(one.level) == pytest.approx((25 / 6) ** 0.5)
    assert np.exp(one.rows[0]) == pytest.approx((25 / 3) ** 0.5)
    assert np.exp(one.columns[1]) == pytest.approx(8**0.5)
    assert one.flatness == pytest.approx((7 / 6) / (25 / 6) ** 0.5)
    assert one.zeros == pytest.approx(4 / 6)
    queries, keys, values = units_of({"blocks.4.attn.qkv.bias": torch.arange(9.0)})
    assert [unit.values.tolist() for unit in (queries, keys, values)] == [[[0, 1, 2]], [[3, 4, 5]], [[6, 7, 8]]]
    assert (keys.label, keys.part, keys.block) == ("blocks.4.attn.qkv.bias (keys)", "blocks", 4)


def test_neighbours_by_hand() -> None:
    """One damaged block changes neither the expected value nor the scatter of the others much."""
    found = residuals([1.0, 2.0, 3.0, 40.0, 5.0, 6.0, 7.0])
    assert [residual.expected for residual in found] == [4.0, 4.0, 3.5, 4.0, 6.5, 6.0, 5.5]
    assert found[3].off == 36.0
    assert found[3].scatter < 3
    assert found[3].beyond(10, 5)
    assert not found[2].beyond(10, 5)
    assert [residual.at_end for residual in found] == [True, False, False, False, False, False, True]


@pytest.mark.parametrize("content", [0.0, 1.0, 1e-45, 3e38])
def test_any_content_is_judged_without_an_error(content: float) -> None:
    for config in (MAEConfig((16, 16), 8, 1, 16, 2, 1, 16, 1, 2), MAEConfig((16, 16), 8, 3, 32, 5, 2, 32, 4, 2)):
        state = official.weights(config)
        for name in ("norm.weight", "blocks.1.attn.qkv.weight", "blocks.1.mlp.fc1.bias", "patch_embed.proj.weight"):
            changed = {name: torch.full_like(state[name], content)}
            changed[name].view(-1)[::2] *= -1
            assert content in (0.0, 1.0) or any(name in str(one) for one in find_damage(state | changed)), name
        find_damage({name: torch.full_like(tensor, content) for name, tensor in state.items()})
    find_damage({})
    find_damage({name: tensor[:0] for name, tensor in official.weights(SMALL).items()})


def test_biases_before_gelu_may_all_be_negative_and_others_not() -> None:
    state = damages.simulated(DEEP, np.random.default_rng([7, 0]))
    for name, expected in (("mlp.fc1.bias", []), ("mlp.fc2.bias", ["decoder_blocks.1.mlp.fc2.bias"])):
        key = f"decoder_blocks.1.{name}"
        below = state | {key: -0.4 + 0.1 * torch.rand_like(state[key])}
        assert [finding.split(":")[0] for finding in examine(below)[0]] == expected


@pytest.mark.slow
def test_rates() -> None:
    """The tables of benchmarks/damage.py, with a margin: found damage, and false alarms."""
    seeds = range(20)
    for kind in ("golden", "simulated", "fresh"):
        for config in (DEEP, SHALLOW, DEEP.replace(decoder_depth=1)):
            alarms = [examine(getattr(damages, kind)(config, np.random.default_rng([7, seed]))) for seed in seeds]
            assert not any(sure for sure, _ in alarms), (kind, alarms)
            assert sum(bool(suspicious) for _, suspicious in alarms) <= 1, (kind, alarms)
    for steps in (1, 3, 10, 40, 150):
        state = damages.trained(DEEP, np.random.default_rng(steps), steps)
        assert examine(state) == ([], [])
        for dtype in (torch.bfloat16, torch.float16):
            assert examine({name: tensor.to(dtype).float() for name, tensor in state.items()}) == ([], [])
    for healthy in (damages.golden, damages.simulated):
        for kind, failed, found, named in damages.rates(healthy(DEEP, np.random.default_rng(0)), 1, 8):
            if kind not in ONLY_TRAINED | SUSPICIOUS:
                assert failed >= 0.75, kind
                assert named >= 0.75, kind
            elif kind in SUSPICIOUS:
                assert found > 0.6, kind


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_of_a_shorter_type_that_training_hardly_changed_have_no_stuck_bit(dtype: torch.dtype) -> None:
    name = "blocks.0.mlp.fc1.weight"
    fresh = 0.02 * torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    top = {torch.float16: 12, torch.bfloat16: 15}[dtype]  # highest bit of the mantissa that the type lacks

    def stuck(tensor: torch.Tensor) -> list[str | None]:
        return [measure(unit).stuck for unit in units_of({name: tensor})]

    rounded = fresh.to(dtype).float()
    for step in (1 + 2.0**-top / 8, 1 - 2.0**-top / 8):
        some = fresh.clone()
        some[7] = rounded[7] * step  # a row that a tiny gradient changed, among others
        some[8] = rounded[8] * (1 + 3 * (step - 1))  # by more than a quarter of a unit, but in one direction
        assert stuck(some) == stuck(rounded * step) == [None]
    fresh[7] = (fresh[7].view(torch.int32) | 1 << top).view(torch.float32)
    assert stuck(fresh) == [f"bit {top} of its numbers never changes in 1 of 96 rows, the first 7"]
