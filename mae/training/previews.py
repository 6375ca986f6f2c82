"""Reconstructions of the same few photographs, drawn again and again while a run learns."""

from __future__ import annotations

from pathlib import Path

import torch

from mae.data.geometry import crop_to
from mae.data.normalise import normalise, picture_to_tensor, tensor_to_picture
from mae.data.scan import scan_pictures
from mae.data.source import PictureSource
from mae.errors import DataError
from mae.figure import Row, draw_grid
from mae.files import shown
from mae.mae import MaskedAutoencoder
from mae.masking import random_masking
from mae.panels import FAINT_NOTE, TITLES, make_panels, predict
from mae.training.run_folder import write_in_run

PREVIEW_PICTURES = 4
MASK_SEED = 2  # the seed of the official notebook's published pictures


class Previews:
    """A fixed choice of photographs under one fixed mask.

    Args:
        model: The model that will be drawn.
        pictures: Training pictures to choose from, where no others are given.
        val: Photographs that are not trained on: a folder or a file.
        mask_ratio: Share of the patches that is removed.
    """

    def __init__(self, model: MaskedAutoencoder, pictures: PictureSource, val: Path | None, mask_ratio: float) -> None:
        self.model = model
        self.held_out = val is not None
        candidates = scan_pictures([val]).pictures if val is not None else pictures
        self.paths: list[Path] = []
        tensors = []
        for index in _spread(len(candidates)):
            try:
                picture = candidates.load(index, model.config.in_chans)
            except DataError:  # the loader reports it
                continue
            self.paths.append(candidates.name(index))
            tensors.append(picture_to_tensor(crop_to(picture, model.config.img_size)))
            if len(tensors) == PREVIEW_PICTURES:
                break
        if not tensors:
            raise DataError(f"none of the {len(candidates)} pictures can be decoded")
        self.imgs = normalise(torch.stack(tensors))
        noise = torch.rand(1, model.config.num_patches, generator=torch.Generator().manual_seed(MASK_SEED))
        self.masking = random_masking(noise.expand(len(tensors), -1), mask_ratio)

    def nothing_learnt_loss(self) -> float:
        """The loss of predicting zero everywhere: a run that stays there has learnt nothing."""
        return float(self.model.target(self.model.patchify(self.imgs)).square().mean())

    def draw(self, path: Path, epoch: int, *, write: bool = True) -> float:
        """Draw the picture, write it, and return the mean PSNR on the removed patches, dB.

        Every process of a run draws, since a model in shards needs them all; one of them writes.
        """
        norm_pix = self.model.config.norm_pix_loss
        device = next(self.model.parameters()).device
        imgs = self.imgs.to(device)
        masking = type(self.masking)(*(ids.to(device) for ids in self.masking))
        panels = make_panels(self.model, imgs, masking, predict(self.model, imgs, masking), norm_pix=norm_pix)
        psnr = sum(one.psnr for one in panels) / len(panels)
        if not write:
            return psnr
        rows = [
            Row(
                [tensor_to_picture(view) for view in one.views],
                f"{shown(name.name)}   loss {one.loss:.3f}   PSNR {one.psnr:.1f} dB",
            )
            for name, one in zip(self.paths, panels, strict=True)
        ]
        note = f"Epoch {epoch}, {'held-out' if self.held_out else 'training'} pictures. {FAINT_NOTE}"
        if norm_pix:
            note += " Normalised target: each patch's brightness and contrast are the original's."
        page = draw_grid(TITLES, rows, note)
        write_in_run(path, lambda file: page.save(file, format="PNG"))
        return psnr


def _spread(pictures: int) -> list[int]:
    """Their numbers in an order that starts with a few from all over, then the others."""
    if pictures <= PREVIEW_PICTURES:
        return list(range(pictures))
    chosen = [i * pictures // PREVIEW_PICTURES for i in range(PREVIEW_PICTURES)]
    return chosen + [index for index in range(min(pictures, 10 * PREVIEW_PICTURES)) if index not in chosen]
