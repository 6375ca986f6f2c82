"""The model's outputs equal stored values of the official model for the same weights, images and noise."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mae.mae import MaskedAutoencoder
from mae.models import VARIANTS, create_model, factory_name
from mae.pos_embed import sincos_2d
from mae.training.optim import make_optimizer
from mae.training.schedule import lr_at, scaled_lr
from tests.golden import official

pytestmark = pytest.mark.parity
GOLDEN = Path(__file__).parents[1] / "golden"

slow = pytest.mark.slow
everything = pytest.mark.parametrize(
    "name",
    [
        "golden_tiny",
        "golden_gray",
        "vit_base",
        pytest.param("vit_large", marks=slow),
        pytest.param("vit_huge", marks=slow),
    ],
)


def official_model(name: str, *, norm_pix_loss: bool = False) -> MaskedAutoencoder:
    """A model with the golden weights; built on the meta device, so that no initial value remains."""
    with torch.device("meta"):
        model = create_model(dataclasses.replace(official.GOLDEN[name], norm_pix_loss=norm_pix_loss))
    model.load_state_dict(official.weights(model.config), assign=True)
    return model.requires_grad_(False)


@everything
def test_the_official_values(name: str) -> None:
    expected = np.load(GOLDEN / f"expected/{name}-seed7.npz")
    model = official_model(name)
    imgs, noise = official.inputs(model.config)
    latent, mask, ids_restore = model.forward_encoder(imgs, 0.75, noise)
    assert np.array_equal(mask.numpy(), expected["mask"])
    assert np.abs(latent.numpy()[:, ::7, ::11] - expected["latent"]).max() < 1e-4
    assert np.abs(latent.abs().mean(dim=2).numpy() - expected["latent_mean_abs"]).max() < 1e-4
    pred = model.forward_decoder(latent, ids_restore)
    assert np.abs(pred.numpy()[:, ::13, ::37] - expected["pred"]).max() < 1e-4
    assert np.abs(pred.abs().mean(dim=2).numpy() - expected["pred_mean_abs"]).max() < 1e-4
    for norm_pix_loss, key in ((False, "loss_pix"), (True, "loss_norm_pix")):
        model.config = dataclasses.replace(model.config, norm_pix_loss=norm_pix_loss)
        loss, again, mask = model(imgs, 0.75, noise)
        assert torch.equal(again, pred)
        assert loss.item() == pytest.approx(float(expected[key]), rel=1e-5)
        assert model.pretraining_loss(imgs, 0.75, noise).item() == pytest.approx(float(expected[key]), rel=1e-5)


def test_the_official_training_trajectory() -> None:
    """60 micro-batches in float64: loss, schedule, accumulation, AdamW and its parameter groups together."""
    expected = np.load(GOLDEN / "expected/training-golden_tiny-seed7.npz")
    config = dataclasses.replace(official.GOLDEN["golden_tiny"], norm_pix_loss=True)
    stream = np.random.RandomState(7 + 2)
    images = torch.from_numpy(stream.standard_normal((10, 4, 3, 64, 64)).astype(np.float32)).double()
    noise = torch.from_numpy(stream.uniform(size=(6, 10, 4, 64)).astype(np.float32))
    model = create_model(config)
    model.load_state_dict(official.weights(config))
    model.double()
    lr = scaled_lr(3e-2, 4 * 2)
    optimizer = make_optimizer(model, lr=lr, betas=(0.9, 0.95), weight_decay=0.05)
    losses, rates = [], []
    for epoch in range(6):
        for batch in range(10):
            if batch % 2 == 0:
                rate = lr_at(epoch + batch / 10, lr=lr, min_lr=1e-5, warmup_epochs=2, epochs=6)
                for group in optimizer.param_groups:
                    group["lr"] = rate
            loss = model.pretraining_loss(images[batch], 0.75, noise[epoch, batch])
            (loss / 2).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
            rates.append(rate)
            if batch % 2 == 1:
                optimizer.step()
                optimizer.zero_grad()
    assert losses == pytest.approx(expected["loss"].tolist(), rel=1e-8)
    assert rates == pytest.approx(expected["lr"].tolist(), rel=1e-12)
    norms = {name: parameter.norm().item() for name, parameter in model.official_parameters()}
    keys = [key.removeprefix("norm/") for key in expected["final_keys"].tolist()]
    assert norms == pytest.approx(dict(zip(keys, expected["final_norms"].tolist(), strict=True)), rel=1e-8)


SIZES = {
    "vit_base": (111_907_840, 111_655_680, 85_798_656),
    "vit_large": (329_541_888, 329_239_296, 303_301_632),
    "vit_huge": (657_074_508, 656_613_964, 630_764_800),
}


@pytest.mark.parametrize("name", SIZES)
def test_the_official_keys_shapes_and_counts(name: str) -> None:
    published = json.loads((GOLDEN / "official_keys_shapes.json").read_text())[factory_name(name)]["keys"]
    with torch.device("meta"):
        model = create_model(VARIANTS[name])
    state = model.state_dict()
    assert {key: list(tensor.shape) for key, tensor in state.items()} == published
    total, trainable, encoder = SIZES[name]
    assert sum(tensor.numel() for tensor in state.values()) == total
    assert sum(parameter.numel() for parameter in model.parameters()) == trainable
    assert sum(tensor.numel() for key, tensor in state.items() if not official.is_decoder(key)) == encoder


@pytest.mark.parametrize("name", official.GOLDEN)
def test_the_position_tables_are_the_official_bits(name: str) -> None:
    config = official.GOLDEN[name]
    for width in (config.embed_dim, config.decoder_embed_dim):
        assert torch.equal(sincos_2d(width, config.grid), torch.from_numpy(official.position_table(width, config.grid)))


def test_the_published_mask() -> None:
    """The first mask of seed 2 is that of the images in the official notebook."""
    from mae.masking import random_masking

    published = json.loads((GOLDEN / "golden_mask_seed2.json").read_text())["mask"]
    noise = torch.rand(1, 196, generator=torch.Generator().manual_seed(2))
    assert random_masking(noise, 0.75).mask[0].int().tolist() == published
