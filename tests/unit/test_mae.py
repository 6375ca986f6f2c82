"""The model: shapes, exact inverses, and a training path that is the same function with less work."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mae.attention import Attention, attend
from mae.checkpoints import load_checkpoint, save_checkpoint
from mae.errors import ConfigError
from mae.mae import MaskedAutoencoder
from mae.masking import masking_from_order, random_masking, take_patches
from mae.patch_embed import PatchEmbed, patchify, unpatchify
from mae.pos_embed import resize_table, sincos_2d
from mae.transformer import Block


def small_model(**changes: Any) -> MaskedAutoencoder:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    decoder: dict[str, Any] = {"decoder_embed_dim": 24, "decoder_depth": 3, "decoder_num_heads": 3}
    return MaskedAutoencoder(**(sizes | decoder | changes))


def images(model: MaskedAutoencoder, batch: int = 3) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(1)
    config = model.config
    imgs = torch.randn(batch, config.in_chans, *config.img_size, generator=stream)
    return imgs, torch.rand(batch, config.num_patches, generator=stream)


def test_checkpointing_activations_leaves_generators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks use no random numbers, and reading or setting a GPU's generator would wait for the GPU."""
    model = small_model()
    model.set_activation_checkpointing()
    imgs, noise = images(model)
    read = pytest.fail
    monkeypatch.setattr(torch, "get_rng_state", lambda: read("the generator's state was read"))
    model.pretraining_loss(imgs, 0.5, noise).backward()


def test_patchify_by_hand() -> None:
    """Patches in reading order; in a patch row, then column, then channel."""
    imgs = torch.arange(2 * 4 * 4).view(1, 2, 4, 4)
    patches = patchify(imgs, 2)
    assert patches.shape == (1, 4, 8)
    assert patches[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]
    assert torch.equal(unpatchify(patches, 2, (2, 2)), imgs)


@pytest.mark.parametrize(
    ("shape", "patch"), [((2, 3, 8, 12), 4), ((1, 1, 6, 4), 2), ((3, 5, 9, 3), 3), ((1, 4, 7, 7), 7)]
)
def test_unpatchify_is_the_exact_inverse(shape: tuple[int, ...], patch: int) -> None:
    imgs = torch.randn(shape)
    grid = (shape[2] // patch, shape[3] // patch)
    assert torch.equal(unpatchify(patchify(imgs, patch), patch, grid), imgs)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"multiples of 4; got \(1, 3, 8, 10\)"):
        patchify(torch.zeros(1, 3, 8, 10), 4)
    with pytest.raises(ValueError, match=r"2x3 grid; got \(1, 5, 48\)"):
        unpatchify(torch.zeros(1, 5, 48), 4, (2, 3))
    model = small_model()
    with pytest.raises(ValueError, match=r"imgs must be \(B, 3, 16, 24\).*got \(2, 3, 24, 16\)"):
        model(torch.zeros(2, 3, 24, 16))
    with pytest.raises(ValueError, match=r"noise must be \(B, L\) = \(2, 24\); got \(2, 23\)"):
        model(torch.zeros(2, 3, 16, 24), noise=torch.zeros(2, 23))
    for ratio in (-0.1, 1.0, 0.99, float("nan")):
        with pytest.raises(ConfigError, match="mask ratio"):
            model(torch.zeros(2, 3, 16, 24), mask_ratio=ratio)
    for function in (model, model.pretraining_loss):
        with pytest.raises(ValueError, match="the mask has none"):
            function(torch.zeros(2, 3, 16, 24), mask_ratio=0.0)
    with pytest.raises(ValueError, match="got 32 and 5"):
        Attention(32, 5)


def test_sizes_that_do_not_fit_are_named() -> None:
    for changes, message in (
        ({"img_size": (16, 25)}, "16x25 pixels is not a whole number of patches of 4"),
        ({"embed_dim": 30, "num_heads": 3}, "multiple of 4"),
        ({"num_heads": 5}, "not a multiple of num_heads"),
        ({"decoder_depth": 0}, "decoder_depth must be at least 1"),
        ({"in_chans": 0}, "in_chans must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            small_model(**changes)


def test_position_table_by_hand() -> None:
    """The first half of the channels follows the column, the second the row; each is [sin | cos]."""
    table = sincos_2d(8, (2, 3), dtype=torch.float64)[0]
    assert table.shape == (7, 8)
    assert torch.equal(table[0], torch.zeros(8, dtype=torch.float64))
    row, column = 1.0, 2.0
    angles = torch.tensor([column, column / 100, row, row / 100], dtype=torch.float64)
    sin, cos = angles.sin(), angles.cos()
    assert torch.allclose(table[6], torch.cat([sin[:2], cos[:2], sin[2:], cos[2:]]), rtol=0, atol=1e-15)


def test_positions_scaled_to_another_grid_are_those_of_the_patches_centres() -> None:
    """On a grid twice as fine, centres are a quarter of a coarse patch before and after the coarse centres."""
    table = sincos_2d(8, (2, 4), scaled_to=(1, 2), dtype=torch.float64)[0]
    for place, x, y in ((1, -0.25, -0.25), (4, 1.25, -0.25), (8, 1.25, 0.25)):
        angles = torch.tensor([x, x / 100, y, y / 100], dtype=torch.float64)
        sin, cos = angles.sin(), angles.cos()
        assert torch.allclose(table[place], torch.cat([sin[:2], cos[:2], sin[2:], cos[2:]]), rtol=0, atol=1e-15)
    assert torch.equal(sincos_2d(8, (2, 3), scaled_to=(2, 3)), sincos_2d(8, (2, 3)))


def test_resampling_a_table_keeps_its_class_row_and_its_own_grid() -> None:
    table = torch.randn(1, 1 + 6, 8)
    assert torch.allclose(resize_table(table, (2, 3), (2, 3)), table, atol=1e-6)
    larger = resize_table(table, (2, 3), (4, 5))
    assert larger.shape == (1, 21, 8)
    assert torch.equal(larger[:, :1], table[:, :1])


def test_masking_keeps_the_lowest_noise_and_says_where_everything_went() -> None:
    noise = torch.tensor([[0.3, 0.1, 0.9, 0.1, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]])
    masking = random_masking(noise, 0.5)
    assert masking.ids_keep.tolist() == [[1, 3], [4, 3]]  # int(5 * 0.5) = 2; ties in reading order
    assert masking.ids_masked.tolist() == [[0, 4, 2], [2, 1, 0]]
    assert masking.mask.tolist() == [[1, 0, 1, 0, 1], [1, 1, 1, 0, 0]]
    tokens = torch.randn(2, 5, 3)
    shuffled = torch.cat([take_patches(tokens, masking.ids_keep), take_patches(tokens, masking.ids_masked)], dim=1)
    assert torch.equal(take_patches(shuffled, masking.ids_restore), tokens)
    assert masking_from_order(torch.tensor([[1.0, 0.0, 1.0, 0.0]]), 2).mask.tolist() == [[1, 0, 1, 0]]
    with pytest.raises(ValueError, match=r"noise must be \(B, L\); got \(4,\)"):
        random_masking(torch.zeros(4), 0.5)


def test_attention_is_softmax_of_scaled_products() -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64)
    weights = torch.softmax(torch.einsum("bhqd,bhld->bhql", q, k) / 6**0.5, dim=-1)
    assert torch.allclose(attend(q, k, v), torch.einsum("bhql,bhld->bhqd", weights, v), atol=1e-12)
    low = attend(*(x.bfloat16() for x in (q, k, v)))
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.double(), attend(q, k, v), atol=0.03)


def test_a_block_can_leave_tokens_out_and_share_others() -> None:
    torch.manual_seed(0)
    block = Block(16, 2).double()
    own, shared = torch.randn(2, 3, 16).double(), torch.randn(6, 16).double()
    ids = torch.tensor([[5, 0], [2, 2]])
    whole = block(torch.cat([own, shared[ids]], dim=1))
    assert torch.allclose(block(torch.cat([own, shared[ids]], dim=1), 3), whole[:, 3:], atol=1e-12)
    assert torch.allclose(block.forward_shared(own, shared, ids), whole, atol=1e-12)
    assert torch.allclose(block.forward_shared(own, shared, ids, 3), whole[:, 3:], atol=1e-12)


def gradients(model: MaskedAutoencoder, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("decoder_depth", [1, 2, 4])
@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_the_training_path_is_the_same_function(
    decoder_depth: int, norm_pix_loss: bool, activation_checkpointing: bool
) -> None:
    model = small_model(decoder_depth=decoder_depth, norm_pix_loss=norm_pix_loss).double()
    imgs, noise = images(model)
    loss, _, _ = model(imgs.double(), 0.6, noise)
    expected = gradients(model, loss)
    model.set_activation_checkpointing(activation_checkpointing)
    own = model.pretraining_loss(imgs.double(), 0.6, noise)
    assert own.item() == pytest.approx(loss.item(), rel=1e-12)
    got = gradients(model, own)
    assert got.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, gradient in expected.items():
        assert torch.allclose(got[name], gradient, rtol=1e-6, atol=1e-9 * gradient.abs().max().item()), name


def test_the_training_path_calls_every_layer_that_has_a_hook() -> None:
    """Adapters and tools that watch activations must see the patch projection too, which only needs visible patches."""
    model = small_model()
    imgs, noise = images(model)
    called: set[nn.Module] = set()
    layers = [module for module in model.modules() if not list(module.children())]
    plain = model.pretraining_loss(imgs, 0.6, noise)
    for layer in layers:
        layer.register_forward_hook(lambda module, *_: called.add(module))
    assert model.pretraining_loss(imgs, 0.6, noise).item() == pytest.approx(plain.item(), rel=1e-6)
    assert called == set(layers)


def test_a_replaced_patch_projection_is_called() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    embed = PatchEmbed(4, 3, 16)
    imgs = torch.randn(2, 3, 8, 12)
    expected = 2 * embed(imgs)
    doubled = Doubled(3, 16, 4, 4)
    doubled.load_state_dict(embed.proj.state_dict())
    embed.proj = doubled
    assert torch.allclose(embed(imgs), expected, atol=1e-5)


def test_the_training_path_computes_less() -> None:
    with torch.device("meta"):
        model = MaskedAutoencoder().to("meta")  # its position embeddings are real tensors until then
        imgs, noise = torch.zeros(8, 3, 224, 224), torch.zeros(8, 196)
    flops = {}
    for name in ("forward", "pretraining_loss"):
        with FlopCounterMode(display=False) as counter:
            getattr(model, name)(imgs, 0.75, noise)
        flops[name] = counter.get_total_flops()
    batch, removed, others, length = 8, 147, 50, 197  # others: the class token and the visible patches
    embedding = batch * removed * 768 * 768
    first_block = (batch * removed - 196) * 512 * 3 * 512  # queries, keys, values: once per position
    last_block = batch * others * (10 * 512 * 512 + 2 * length * 512)  # query, projection, MLP, attention
    prediction = batch * others * 512 * 768
    saved = 2 * (embedding + first_block + last_block + prediction)
    assert flops["forward"] - flops["pretraining_loss"] == saved


def test_recomputing_keeps_less() -> None:
    def kept_bytes(activation_checkpointing: bool) -> int:
        model = small_model(depth=6)
        model.set_activation_checkpointing(activation_checkpointing)
        imgs, noise = images(model)
        kept = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model.pretraining_loss(imgs, 0.75, noise)
        return kept

    assert kept_bytes(activation_checkpointing=True) < 0.4 * kept_bytes(activation_checkpointing=False)


def test_the_official_return_values() -> None:
    model = small_model(in_chans=1).eval()
    imgs, noise = images(model)
    loss, pred, mask = model(imgs, 0.75, noise)
    assert (loss.shape, pred.shape, mask.shape) == ((), (3, 24, 16), (3, 24))
    assert mask.sum(dim=1).tolist() == [18, 18, 18]
    error = (pred - model.patchify(imgs)).square().mean(dim=2)
    assert loss.item() == pytest.approx((error[mask == 1]).mean().item(), rel=1e-6)
    latent, again, ids_restore = model.forward_encoder(imgs, 0.75, noise)
    assert latent.shape == (3, 7, 32)
    assert torch.equal(again, mask)
    assert torch.equal(model.forward_decoder(latent, ids_restore), pred)


def test_features_are_never_masked() -> None:
    model = small_model().eval()
    imgs, _ = images(model)
    features = model.encode(imgs)
    assert features.shape == (3, 25, 32)
    assert torch.equal(model.encode(imgs), features)
    order = torch.arange(24.0).expand(3, 24)
    latent, _, _ = model.forward_encoder(imgs, 0.0, order)
    assert torch.allclose(latent, features, atol=1e-5)


def test_the_normalised_target() -> None:
    """Unbiased variance over a patch's p * p * C values."""
    model = small_model(norm_pix_loss=True)
    patch = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
    assert model.target(patch)[0].tolist() == pytest.approx([(x - 3) / (14 / 3 + 1e-6) ** 0.5 for x in (1, 2, 3, 6)])


def test_the_target_is_set_as_on_the_official_model(tmp_path: Path) -> None:
    """``model.norm_pix_loss = True``, as in the official code, changes the loss, the config and the file."""
    model, wanted = small_model(), small_model(norm_pix_loss=True)
    assert model.norm_pix_loss is False
    imgs, noise = images(model)
    raw = model(imgs, noise=noise)[0].item()
    model.norm_pix_loss = True
    assert model.norm_pix_loss is model.config.norm_pix_loss is True
    assert model.config == wanted.config
    normalised = model(imgs, noise=noise)[0].item()
    assert normalised == wanted(imgs, noise=noise)[0].item() != raw
    assert model.pretraining_loss(imgs, noise=noise).item() == pytest.approx(normalised)
    save_checkpoint(tmp_path / "model.pth", model)
    assert load_checkpoint(tmp_path / "model.pth").norm_pix_loss is True
    assert copy.deepcopy(model).norm_pix_loss is True
    model.norm_pix_loss = False
    assert model(imgs, noise=noise)[0].item() == raw
    with pytest.raises(ValueError, match=r"norm_pix_loss must be True or False; got 'no'"):
        model.norm_pix_loss = "no"  # type: ignore[assignment]


def test_initial_values() -> None:
    model = small_model(embed_dim=128, img_size=32, patch_size=8)
    weight = model.patch_embed.proj.weight
    bound = (6 / (128 + 3 * 64)) ** 0.5  # Xavier uniform of the projection as a Linear
    assert 0.9 * bound < weight.abs().max().item() <= bound
    assert model.patch_embed.proj.bias is not None
    assert model.patch_embed.proj.bias.abs().max() > 0
    block = model.encoder.blocks[0]
    assert isinstance(block, Block)
    assert block.attn.qkv.bias.abs().max() == 0
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert model.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.5)


def test_the_state_dict_has_the_official_names_wherever_the_model_hangs() -> None:
    model = small_model()
    keys = list(model.state_dict())
    assert {"cls_token", "pos_embed", "mask_token", "decoder_pos_embed", "decoder_blocks.2.mlp.fc2.bias"} <= set(keys)
    assert not any(key.startswith(("encoder.", "decoder.")) for key in keys)
    other = torch.nn.ModuleDict({"mae": small_model(depth=2)})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    other.load_state_dict({f"mae.{key}": value for key, value in model.state_dict().items()})
    assert all(torch.equal(value, model.state_dict()[key[4:]]) for key, value in other.state_dict().items())
