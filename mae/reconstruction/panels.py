"""Panels of a reconstruction (Paper: Figures 2 and 3)."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from mae.data.transforms import denormalise
from mae.mae import MaskedAutoencoder, patch_statistics
from mae.masking import Masking, take_patches

TITLES = ("original", "masked", "reconstruction", "with visible")  # titles of ``Panels.views``
FAINT_WEIGHT = 0.25  # weight of the prediction of a visible patch; the remaining weight is white
FAINT_NOTE = "Faint patches of the reconstruction were visible to the encoder; their prediction is not trained."


@dataclasses.dataclass(frozen=True)
class Panels:
    """The panels of an image, (C, H, W) in [0, 1], and the loss and PSNR of its reconstruction.

    Attributes:
        original: The image as the model saw it.
        masked: The image, with masked patches in the data set's mean colour.
        reconstruction: The prediction of every patch.
        faint: The reconstruction as drawn: visible patches are faint, since the loss does not train their prediction.
            The same as ``reconstruction`` if no patch is masked.
        with_visible: The prediction of the masked patches with the image's visible patches.
        loss: The training loss of this image; NaN if no patch is masked.
        psnr: Peak signal-to-noise ratio over the masked patches, dB; NaN if no patch is masked.
    """

    original: Tensor
    masked: Tensor
    reconstruction: Tensor
    faint: Tensor
    with_visible: Tensor
    loss: float
    psnr: float

    @property
    def views(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The panels that a page shows, in the order of ``TITLES``."""
        return self.original, self.masked, self.faint, self.with_visible


@torch.no_grad()
def predict(model: MaskedAutoencoder, imgs: Tensor, masking: Masking) -> Tensor:
    """(B, C, H, W) normalised -> (B, L, p * p * C), the raw prediction for every patch, float32."""
    latent = model.encode_visible(imgs, masking)
    return model.forward_decoder(latent, masking.ids_restore).float()


def make_panels(
    model: MaskedAutoencoder, imgs: Tensor, masking: Masking, pred: Tensor, *, norm_pix: bool
) -> list[Panels]:
    """Turn predictions into images.

    Args:
        model: The model of the prediction.
        imgs: (B, C, H, W), normalised.
        masking: The mask.
        pred: (B, L, p * p * C), from ``predict``.
        norm_pix: Whether the prediction is of normalised patches. Then the brightness and contrast of each patch are
            taken from the original patch, which real inpainting does not know.
    """
    patches = model.patchify(imgs)
    mean, std = patch_statistics(patches)
    target = (patches - mean) / std if norm_pix else patches
    pixels = pred * std + mean if norm_pix else pred
    mask = masking.mask.unsqueeze(-1)  # (B, L, 1)
    visible = patches * (1 - mask)  # 0 is the mean colour
    views = (patches, visible, pixels, visible + pixels * mask)
    original, masked, reconstruction, with_visible = (
        denormalise(model.unpatchify(view)).clamp(0, 1).cpu() for view in views
    )
    if masking.ids_masked.shape[1]:
        weight = model.unpatchify(mask.expand_as(patches)).cpu() * (1 - FAINT_WEIGHT) + FAINT_WEIGHT
        faint = reconstruction * weight + (1 - weight)
        errors = take_patches((pred - target).square(), masking.ids_masked).mean(dim=(1, 2)).tolist()
        noise = take_patches(model.patchify((reconstruction - original).square()), masking.ids_masked.cpu())
        psnrs = [-10 * math.log10(max(value, 1e-12)) for value in noise.mean(dim=(1, 2)).tolist()]
    else:
        faint = reconstruction
        errors = psnrs = [math.nan] * len(imgs)
    return [
        Panels(original[i], masked[i], reconstruction[i], faint[i], with_visible[i], errors[i], psnrs[i])
        for i in range(len(imgs))
    ]
