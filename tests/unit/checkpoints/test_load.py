"""A file without a decoder is read, whatever its settings say about a decoder."""

from __future__ import annotations

from pathlib import Path

import torch

import mae
from mae.checkpoints import save_checkpoint
from mae.exporting.config import ExportConfig
from mae.exporting.run import export


def test_exported_encoder_of_a_small_variant_is_read_back(tmp_path: Path) -> None:
    """The file says three decoder heads, which do not divide the usual decoder width of 512."""
    model = mae.mae_vit_tiny_patch16(img_size=16, patch_size=8, depth=1, decoder_depth=1)
    save_checkpoint(tmp_path / "whole.pth", model)
    result = export(ExportConfig(checkpoint=tmp_path / "whole.pth", to="encoder", out=tmp_path / "encoder.pth"))
    checkpoint = mae.load_checkpoint(result.out)
    assert not checkpoint.has_decoder
    assert checkpoint.config.num_heads == 3
    assert torch.equal(checkpoint.state["cls_token"], model.cls_token)
