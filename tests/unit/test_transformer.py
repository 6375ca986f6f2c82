"""A block in training keeps less than its modules would, and gives what they give to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize

from mae.transformer import Block, run_block

DIM, HEADS, BATCH, TOKENS = 16, 2, 3, 7


def make_block() -> Block:
    torch.manual_seed(0)
    block = Block(DIM, HEADS)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def make_tokens() -> Tensor:
    return torch.randn(BATCH, TOKENS, DIM, generator=torch.Generator().manual_seed(1))


def modules_alone(block: Block) -> None:
    """A hook keeps the block to its modules."""
    block.mlp.act.register_forward_hook(lambda *_: None)


def keeps_less(out: Tensor) -> bool:
    assert out.grad_fn is not None
    return out.grad_fn.name() == "_FinishBackward"


Call = Callable[[Block, Tensor], Tensor]
CALLS: dict[str, Call] = {
    "all": lambda block, x: block(x),
    "from the third token": lambda block, x: block(x, 2),
    "shared": lambda block, x: block.forward_shared(x[:, :2], x[0, 2:], torch.tensor([[1, 0]] * BATCH), 1),
}


def outcome(block: Block, call: Call) -> list[Tensor | None]:
    x = make_tokens().requires_grad_()
    out = call(block, x)
    assert keeps_less(out) == (not block.mlp.act._forward_hooks)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2)))  # type: ignore[no-untyped-call]
    return [out.detach(), x.grad, *(parameter.grad for parameter in block.parameters())]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("frozen", ["", "weight", "norm1", "mlp.fc1.bias"])
def test_results_and_gradients_are_those_of_the_modules_to_the_bit(call: str, frozen: str) -> None:
    results = []
    for prepare in (modules_alone, lambda _: None):
        block = make_block()
        for name, parameter in block.named_parameters():
            parameter.requires_grad_(frozen not in name if frozen else True)
        prepare(block)
        results.append(outcome(block, CALLS[call]))
    for expected, got in zip(*results, strict=True):
        assert (expected is None) == (got is None)
        assert expected is None or got is None or torch.equal(expected, got)


def test_gradients_accumulate_and_meet_checkpointing() -> None:
    results = []
    for checkpointing in (False, True):
        block, x = make_block(), make_tokens().requires_grad_()
        for _ in range(2):
            run_block(block, x, activation_checkpointing=checkpointing).square().sum().backward()  # type: ignore[no-untyped-call]
        results.append([x.grad, *(parameter.grad for parameter in block.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))  # type: ignore[arg-type]


def kept(block: Block, x: Tensor) -> int:
    """Values that the backward pass will need, weights and attention's sums left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    sizes: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own and tensor.shape[-1] not in (1, TOKENS):
            sizes[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(x)
    return sum(tensor.untyped_storage().nbytes() // 4 for tensor in sizes.values())


def test_neither_norms_nor_gelu_are_kept() -> None:
    x = torch.randn(BATCH, TOKENS, DIM, requires_grad=True)
    block = make_block()
    # Two norms' inputs; queries, keys and values; what attention found; the MLP's hidden values.
    assert kept(block, x) == (1 + 1 + 3 + 1 + 4) * x.numel()
    modules_alone(block)
    assert kept(block, x) == (1 + 1 + 3 + 1 + 4 + 1 + 1 + 4) * x.numel()


class Doubled(nn.Linear):
    """Stands for an adapter or a quantised layer."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def replace(block: Block) -> None:
    doubled = Doubled(4 * DIM, DIM)
    doubled.load_state_dict(block.mlp.fc2.state_dict())
    block.mlp.fc2 = doubled


def patch_forward(block: Block) -> None:
    plain = block.norm2.forward
    block.norm2.forward = lambda x: 2 * plain(x)  # type: ignore[method-assign]


def without_bias(block: Block) -> None:
    block.attn.qkv.bias = None  # type: ignore[assignment]


CHANGES: dict[str, Callable[[Block], object]] = {
    "replaced": replace,
    "forward replaced": patch_forward,
    "without bias": without_bias,
    "tanh": lambda block: setattr(block.mlp, "act", nn.GELU("tanh")),
    "forward hook": lambda block: block.norm1.register_forward_hook(lambda _, __, out: 2 * out),
    "forward pre-hook": lambda block: block.attn.proj.register_forward_pre_hook(lambda _, args: (2 * args[0],)),
    "backward hook": lambda block: block.mlp.fc1.register_full_backward_hook(lambda *_: None),
    "parametrised": lambda block: parametrize.register_parametrization(block.mlp.fc1, "weight", nn.Tanh()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_modules_are_called(change: str) -> None:
    block, x = make_block(), make_tokens()
    CHANGES[change](block)
    got = block(x)
    assert not keeps_less(got)
    with torch.no_grad():
        assert torch.equal(got, block(x))


def double(block: Block) -> None:
    doubled = Doubled(DIM, 3 * DIM)
    doubled.load_state_dict(block.attn.qkv.state_dict())
    block.attn.qkv = doubled


@pytest.mark.parametrize(
    "change",
    [
        double,
        without_bias,
        lambda block: block.attn.qkv.register_forward_hook(lambda _, __, out: 2 * out),
        lambda block: block.attn.qkv.register_forward_pre_hook(lambda _, args: (2 * args[0],)),
        lambda block: parametrize.register_parametrization(block.attn.qkv, "weight", nn.Tanh()),
    ],
    ids=["replaced", "without bias", "forward hook", "forward pre-hook", "parametrised"],
)
def test_a_changed_projection_is_called_for_a_part_of_the_tokens_too(change: Callable[[Block], object]) -> None:
    block, x = make_block(), make_tokens()
    change(block)
    assert torch.allclose(block(x, 2), block(x)[:, 2:], atol=1e-5)


def test_a_hook_of_all_modules_is_called() -> None:
    called: list[nn.Module] = []
    handle = register_module_forward_hook(lambda module, *_: called.append(module))
    try:
        block = make_block()
        block(make_tokens())
    finally:
        handle.remove()
    assert block.norm1 in called


def test_other_precisions_take_the_modules() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert not keeps_less(make_block()(make_tokens()))
    for dtype in (torch.float64, torch.bfloat16):
        assert not keeps_less(make_block().to(dtype)(make_tokens().to(dtype)))


def test_functions_of_functions_still_work() -> None:
    block, x = make_block(), make_tokens().requires_grad_()
    out = block(x).square().sum()
    got = torch.func.grad(lambda x: block(x).square().sum())(x.detach())
    (expected,) = torch.autograd.grad(out, x, retain_graph=True)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)
    (once,) = torch.autograd.grad(out, x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):  # as attention's fused kernel
        once.sum().backward()  # type: ignore[no-untyped-call]


def test_compilers_and_exporters_meet_the_modules() -> None:
    block, x = make_block(), make_tokens()
    compiled = torch.compile(block, backend="eager", fullgraph=True)(x)
    assert torch.equal(compiled, block(x))
    names = [str(node.target) for node in torch.export.export(block, (x,)).graph.nodes]
    assert any("layer_norm" in name for name in names)
    assert any("gelu" in name for name in names)


def test_another_default_type_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = make_block(), make_tokens()
    monkeypatch.setattr("mae.transformer._kept.scratch", None, raising=False)
    torch.set_default_dtype(torch.float64)
    try:
        out = block(x)
        assert keeps_less(out)
        out.sum().backward()  # type: ignore[no-untyped-call]
    finally:
        torch.set_default_dtype(torch.float32)
