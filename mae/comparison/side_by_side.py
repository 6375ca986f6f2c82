"""Draws an image reconstructed by two checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mae.checkpoints import Checkpoint, build_model
from mae.data.transforms import tensor_to_image
from mae.masking import random_masking
from mae.reconstruction.grid import Row, draw_grid, write_image
from mae.reconstruction.panels import make_panels, predict


def draw_side_by_side(
    out: Path,
    checkpoints: Sequence[Checkpoint],
    names: Sequence[str],
    imgs: Tensor,
    noise: Tensor,
    mask_ratio: float,
) -> Path:
    """Draw original, masked, and each checkpoint's reconstruction.

    Args:
        out: The image file to write.
        checkpoints: Checkpoints of the same sizes, with decoders.
        names: Names of their files.
        imgs: A normalised image, (1, C, H, W).
        noise: Noise that decides the mask, (1, L).
        mask_ratio: Fraction of the patches that is masked.
    """
    masking = random_masking(noise, mask_ratio)
    panels = []
    for checkpoint in checkpoints:
        model, _ = build_model(checkpoint)
        pred = predict(model, imgs, masking)
        panels += make_panels(model, imgs, masking, pred, norm_pix=bool(checkpoint.norm_pix_loss))
    views = [panels[0].original, panels[0].masked, *(panel.with_visible for panel in panels)]
    titles = ["original", "masked", *(str(Path(name).with_suffix(""))[:24] for name in names)]
    numbers = [f"{name}: PSNR {panel.psnr:.1f} dB" for name, panel in zip(names, panels, strict=True)]
    write_image(out, draw_grid(titles, [Row([tensor_to_image(view) for view in views], "; ".join(numbers))]))
    return out
