"""Previews: reconstructions of the same few images during training."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from mae.data.sources.base import ImageSource
from mae.data.sources.scan import scan_images
from mae.data.transforms import crop_to, image_to_tensor, normalise, tensor_to_image
from mae.errors import DataError
from mae.io.text import shown
from mae.mae import MaskedAutoencoder
from mae.masking import random_masking
from mae.reconstruction.grid import Row, draw_grid
from mae.reconstruction.panels import FAINT_NOTE, TITLES, make_panels, predict
from mae.training.failures import write_in_run

PREVIEW_IMAGES = 4
BASELINE_IMAGES = 32
MASK_SEED = 2  # the seed of the official notebook's published images


class Previews:
    """A fixed choice of images with one fixed mask.

    Args:
        model: The model in training.
        images: Training images to choose from, if ``held_out`` is None.
        held_out: Images that are not trained on, to choose from instead of ``images``.
        mask_ratio: Fraction of the patches that is masked.
    """

    def __init__(
        self, model: MaskedAutoencoder, images: ImageSource, held_out: ImageSource | None, mask_ratio: float
    ) -> None:
        self.model = model
        self.images = images
        self.held_out = held_out is not None
        candidates = images if held_out is None else held_out
        loaded = _load_some(candidates, PREVIEW_IMAGES, model)
        self.paths = [candidates.name(index) for index, _ in loaded]
        tensors = [tensor for _, tensor in loaded]
        if not tensors:
            tried = len(evenly_chosen(len(candidates), PREVIEW_IMAGES))
            raise DataError(f"none of the {tried} images that were tried for the previews can be decoded")
        self.imgs = normalise(torch.stack(tensors))
        noise = torch.rand(1, model.config.num_patches, generator=torch.Generator().manual_seed(MASK_SEED))
        self.masking = random_masking(noise.expand(len(tensors), -1), mask_ratio)

    @cached_property
    def zero_prediction_loss(self) -> float:
        """The loss of predicting zero for every pixel: a run whose loss stays there has not learnt anything.

        With normalised patches it hardly depends on the images, so the preview images are used. With raw pixels it is
        their mean square, so training images from the whole data set are used.
        """
        imgs = self.imgs
        if not self.model.config.norm_pix_loss:
            loaded = _load_some(self.images, BASELINE_IMAGES, self.model)
            imgs = normalise(torch.stack([tensor for _, tensor in loaded])) if loaded else imgs
        return float(self.model.target(self.model.patchify(imgs)).square().mean())

    def draw(self, path: Path, epoch: int, *, write: bool = True) -> float:
        """Draw the reconstructions, write them to an image, and return the mean PSNR on the masked patches, dB.

        Every process must call this, since a sharded model needs all of them; ``write`` is set in one of them.
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
                [tensor_to_image(view) for view in one.views],
                f"{shown(name.name)}   loss {one.loss:.3f}   PSNR {one.psnr:.1f} dB",
            )
            for name, one in zip(self.paths, panels, strict=True)
        ]
        note = f"Epoch {epoch}, {'held-out' if self.held_out else 'training'} images. {FAINT_NOTE}"
        if norm_pix:
            note += " Normalised target: each patch's mean and std are taken from the original, which raises the PSNR."
        page = draw_grid(TITLES, rows, note)
        write_in_run(path, lambda file: page.save(file, format="PNG"))
        return psnr


def held_out_images(val: Path | None) -> ImageSource | None:
    """The images of ``val``, a folder or a file; None if ``val`` is None.

    Raises:
        DataError: ``val`` holds no image.
    """
    if val is None:
        return None
    try:
        return scan_images([val]).images
    except DataError as error:
        hint = "give a folder with images, or one image, that is not trained on"
        raise DataError(f"--val {error.message}", hint=hint) from None


def _load_some(images: ImageSource, count: int, model: MaskedAutoencoder) -> list[tuple[int, Tensor]]:
    """(number, image) of up to ``count`` readable images, (C, H, W) uint8, cropped to the model's size.

    Of a large source only some are tried, since on a failed disk each try may take minutes.
    """
    loaded: list[tuple[int, Tensor]] = []
    for index in evenly_chosen(len(images), count):
        try:
            image = images.load(index, model.config.in_chans)
        except DataError:  # training reports it when it loads this image
            continue
        loaded.append((index, image_to_tensor(crop_to(image, model.config.img_size))))
        if len(loaded) == count:
            break
    return loaded


def evenly_chosen(images: int, count: int) -> list[int]:
    """Numbers of images to try: ``count`` of them at equal distances, then others from the first ``10 * count``."""
    if images <= count:
        return list(range(images))
    chosen = [i * images // count for i in range(count)]
    return chosen + [index for index in range(min(images, 10 * count)) if index not in chosen]
