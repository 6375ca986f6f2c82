"""All tensors of any model keep their values through every dialect and wrapper."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from mae.checkpoints.dialects import from_hugging_face, is_hugging_face, to_hugging_face, unwrap
from mae.config import MAEConfig
from tests.golden import official

State = dict[str, Tensor]


def _in_memory(key: str) -> str:
    """The classic name as transformers 5 has it in memory."""
    key = key.replace("encoder.layer.", "layers.").replace("attention.attention.", "attention.")
    key = re.sub(r"attention\.(query|key|value)\.", lambda match: f"attention.{match[1][0]}_proj.", key)
    key = key.replace("attention.output.dense.", "attention.o_proj.")
    key = re.sub(r"(?<!attention\.)output\.dense\.", "mlp.fc2.", key)
    return key.replace("intermediate.dense.", "mlp.fc1.")


DIALECTS: dict[str, Callable[[str], str]] = {
    "classic": lambda key: key,
    "encoder alone": lambda key: key.removeprefix("vit."),
    "saved by 5.x": lambda key: key.replace("decoder.decoder_layers.", "decoder.decoder_encoder.layer."),
    "in memory of 5.x": _in_memory,
}


@st.composite
def states(draw: st.DrawFn) -> State:
    """The state dict of a small model in which all numbers are different."""
    heads = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    side = draw(st.integers(1, 3))
    config = MAEConfig(
        (draw(st.integers(1, 3)) * side, draw(st.integers(1, 3)) * side), side, draw(st.integers(1, 4)),
        4 * heads[0], draw(st.integers(1, 12)), heads[0], 4 * heads[1], draw(st.integers(1, 11)), heads[1],
        draw(st.sampled_from([1.0, 2.5, 4.0])),
    )  # fmt: skip
    state, first = {}, 0
    for key, shape in official.shapes(config).items():
        count = torch.Size(shape).numel()
        state[key] = torch.arange(first, first + count, dtype=torch.float64).reshape(shape)
        first += count
    return state


def same(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert set(got) == set(wanted)
    for key, tensor in wanted.items():
        assert torch.equal(got[key], tensor), key


@given(states(), st.sampled_from([*DIALECTS]))
def test_hugging_face_and_back(state: State, dialect: str) -> None:
    foreign = to_hugging_face(state)
    assert is_hugging_face(foreign)
    assert all(key.startswith(("vit.", "decoder.")) for key in foreign)
    assert sum(tensor.numel() for tensor in foreign.values()) == sum(tensor.numel() for tensor in state.values())
    renamed = {DIALECTS[dialect](key): tensor for key, tensor in foreign.items()}
    assert len(renamed) == len(foreign)
    same(from_hugging_face(renamed), state)


@given(states(), st.text(max_size=30))
def test_a_stranger_keeps_its_name(state: State, name: str) -> None:
    foreign = to_hugging_face(state)
    assume(name not in foreign and name not in state and name != "")
    got = from_hugging_face(foreign | {name: torch.zeros(1)})
    assert len(got) == len(state) + 1


@given(
    states(),
    st.lists(st.sampled_from(["model", "state_dict", "module", "model_state_dict"]), max_size=4),
    st.lists(st.sampled_from(["module.", "_orig_mod.", "model."]), max_size=4),
)
def test_wrappers_and_prefixes_come_off(state: State, wrappers: list[str], prefixes: list[str]) -> None:
    loaded: object = {"".join(prefixes) + key: tensor for key, tensor in state.items()}
    for number, wrapper in enumerate(wrappers):
        loaded = {wrapper: loaded, f"beside {number}": number}
    tensors, others = unwrap(loaded)
    same(tensors, state)
    assert others == {f"beside {number}": number for number in range(len(wrappers))}
