"""The masked autoencoder: masking, encoder, decoder and loss (Paper: Section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae.config import DEFAULT_MASK_RATIO, MAEConfig, format_size
from mae.decoder import MAEDecoder
from mae.encoder import MAEEncoder
from mae.masking import Masking, random_masking, take_patches
from mae.patch_embed import PatchEmbed, patchify, unpatchify
from mae.pos_embed import on_default_device, sincos_2d

# Our prefix -> official prefix of parameter names, as used in files. Longest prefixes first, since the first match
# is applied.
_OFFICIAL_PREFIXES = {
    "encoder.blocks.": "blocks.",
    "encoder.norm.": "norm.",
    "decoder.blocks.": "decoder_blocks.",
    "decoder.norm.": "decoder_norm.",
    "decoder.pred.": "decoder_pred.",
    "decoder.decoder_embed.": "decoder_embed.",
    "decoder.decoder_pos_embed": "decoder_pos_embed",
    "decoder.mask_token": "mask_token",
}

NOTHING_MASKED = "the loss is over masked patches and the mask has none; use a higher mask ratio"


class MaskedAutoencoder(nn.Module):
    """An asymmetric autoencoder that reconstructs the masked patches of an image (Paper: Section 3).

    The state dict has the key names and shapes of the official release, so the official scripts and timm can load a
    file written from it.

    Args:
        img_size: Image size in pixels, one number for a square or (rows, columns).
        patch_size: Side of a patch in pixels.
        in_chans: Channels of an image.
        embed_dim, depth, num_heads: Sizes of the encoder.
        decoder_embed_dim, decoder_depth, decoder_num_heads: Sizes of the decoder.
        mlp_ratio: Hidden width of a block's MLP over the block's width.
        norm_pix_loss: Predict each patch normalised by its own mean and std.

    Raises:
        ConfigError: The sizes are inconsistent.
    """

    pos_embed: Tensor

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_pix_loss: bool = False,
    ) -> None:
        super().__init__()
        rows, columns = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.config = config = MAEConfig(
            img_size=(rows, columns),
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            decoder_embed_dim=decoder_embed_dim,
            decoder_depth=decoder_depth,
            decoder_num_heads=decoder_num_heads,
            mlp_ratio=mlp_ratio,
            norm_pix_loss=norm_pix_loss,
        )
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.register_buffer("pos_embed", on_default_device(sincos_2d(embed_dim, config.grid)))
        self.encoder = MAEEncoder(embed_dim, depth, num_heads, mlp_ratio)
        self.decoder = MAEDecoder(
            embed_dim, decoder_embed_dim, config.grid, config.patch_dim, decoder_depth, decoder_num_heads, mlp_ratio
        )
        self.register_state_dict_post_hook(_to_official_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_from_official_names)  # type: ignore[no-untyped-call]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the official model: Xavier uniform, zero biases, tokens normal(0.02)."""
        if self.cls_token.is_meta:
            return  # meta tensors have no values, and drawing normals there would import sympy, which takes seconds
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | PatchEmbed):
                module.reset_parameters()
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.decoder.mask_token, std=0.02)

    @property
    def norm_pix_loss(self) -> bool:
        """Whether the target is each patch normalised by its own mean and std; may be set, as on the official model.

        Raises:
            ValueError: Set to something else than True or False.
        """
        return self.config.norm_pix_loss

    @norm_pix_loss.setter
    def norm_pix_loss(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise ValueError(f"norm_pix_loss must be True or False; got {value!r}")
        self.config = self.config.replace(norm_pix_loss=value)

    def patchify(self, imgs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, p * p * C), each patch ordered (row, column, channel)."""
        return patchify(imgs, self.config.patch_size)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """(B, L, p * p * C) -> (B, C, H, W), the exact inverse of ``patchify``."""
        return unpatchify(patches, self.config.patch_size, self.config.grid)

    def forward(
        self, imgs: Tensor, mask_ratio: float = DEFAULT_MASK_RATIO, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask, encode, decode and score, with the official model's return values.

        Args:
            imgs: (B, C, H, W), normalised images.
            mask_ratio: Fraction of the patches that is masked; at least one is masked and one visible.
            noise: (B, L); the lowest values stay visible. Drawn uniformly if None.

        Returns:
            loss: Scalar, mean squared error over the masked patches.
            pred: (B, L, p * p * C), the prediction for every patch.
            mask: (B, L), 1 = masked.

        Raises:
            ValueError: A tensor of another shape than stated.
            ConfigError: A mask ratio out of range.
        """
        latent, mask, ids_restore = self.forward_encoder(imgs, mask_ratio, noise)
        if latent.shape[1] == 1 + mask.shape[1]:
            raise ValueError(NOTHING_MASKED)
        pred = self.forward_decoder(latent, ids_restore)
        return self.forward_loss(imgs, pred, mask), pred, mask

    def forward_encoder(
        self, imgs: Tensor, mask_ratio: float = DEFAULT_MASK_RATIO, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode the visible patches.

        Args:
            imgs: (B, C, H, W), normalised images.
            mask_ratio: Fraction of the patches that is masked, in [0, 1).
            noise: (B, L); the patches with the lowest values stay visible. Drawn uniformly if None.

        Returns:
            latent: (B, 1 + K, D), the class token first, then the visible patches by rising noise.
            mask: (B, L), 1 = masked.
            ids_restore: (B, L), where in [visible | masked] each position is found.
        """
        masking = self.draw_masking(imgs, mask_ratio, noise)
        return self.encode_visible(imgs, masking), masking.mask, masking.ids_restore

    def draw_masking(self, imgs: Tensor, mask_ratio: float, noise: Tensor | None = None) -> Masking:
        """Check the shape of the images and draw their masks."""
        self._check_imgs(imgs)
        shape = (imgs.shape[0], self.config.num_patches)
        if noise is None:
            noise = torch.rand(shape, device=imgs.device)
        elif noise.shape != shape:
            raise ValueError(f"noise must be (B, L) = {shape}; got {tuple(noise.shape)}")
        return random_masking(noise, mask_ratio)

    def encode_visible(self, imgs: Tensor, masking: Masking) -> Tensor:
        """Embed all patches and encode the visible ones: (B, C, H, W) -> (B, 1 + K, D)."""
        x = self.patch_embed(imgs) + self.pos_embed[:, 1:]  # (B, L, D)
        return self._encode(take_patches(x, masking.ids_keep))

    def encode(self, imgs: Any) -> Tensor:
        """Compute features of unmasked images, which are therefore deterministic.

        Args:
            imgs: (B, C, H, W), normalised images. Or what ``mae.transforms(model)`` makes such images of: a path, a
                PIL image, uint8 pixels in an array (H, W, C) or a tensor (C, H, W), or a list of these.

        Returns:
            (B, 1 + L, D), the class token first, then the patches in reading order.

        Raises:
            ValueError, TypeError: A tensor of another shape than stated, or something else.
            DataError: An image cannot be read.
        """
        if not isinstance(imgs, Tensor) or not imgs.is_floating_point():
            imgs = self._transformed(imgs)
        self._check_imgs(imgs)
        return self._encode(self.patch_embed(imgs) + self.pos_embed[:, 1:])

    def forward_decoder(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        """Predict every patch in reading order: (B, 1 + K, D), (B, L) -> (B, L, p * p * C)."""
        out: Tensor = self.decoder(latent, ids_restore)
        return out

    def forward_loss(self, imgs: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error per patch, averaged over the masked patches of the batch; scalar.

        Args:
            imgs: (B, C, H, W), normalised images.
            pred: (B, L, p * p * C).
            mask: (B, L), 1 = masked.

        Raises:
            ValueError: No patch is masked, so there is nothing to average; on an accelerator the loss is nan.
        """
        masked = mask.sum()
        # On an accelerator this check would make the host wait; ``forward`` checks the mask ratio instead.
        if masked.device.type == "cpu" and masked == 0:
            raise ValueError(NOTHING_MASKED)
        loss_per_patch = (pred - self.target(self.patchify(imgs))).square().mean(dim=-1)  # (B, L)
        return (loss_per_patch * mask).sum() / masked

    def target(self, patches: Tensor) -> Tensor:
        """The decoder's target for the patches (..., p * p * C) of the images, of the same shape.

        The pixels, or with ``norm_pix_loss`` each patch minus its mean, divided by sqrt(unbiased variance + 1e-6)
        (Paper: Section 3, "Reconstruction target").
        """
        if not self.config.norm_pix_loss:
            return patches
        mean, std = patch_statistics(patches)
        return (patches - mean) / std

    def pretraining_loss(
        self, imgs: Tensor, mask_ratio: float = DEFAULT_MASK_RATIO, noise: Tensor | None = None
    ) -> Tensor:
        """The loss of ``forward``, with the same gradients and less computation; scalar.

        Only the visible patches are embedded, and only the masked ones are predicted (see
        ``MAEDecoder.predict_masked``). The loss is computed in float32 or a wider type.

        Args, Raises: As ``forward``.
        """
        masking = self.draw_masking(imgs, mask_ratio, noise)
        if masking.ids_masked.shape[1] == 0:
            raise ValueError(NOTHING_MASKED)
        patches = self.patchify(imgs)  # (B, L, p * p * C)
        visible = self.patch_embed.embed(take_patches(patches, masking.ids_keep))
        latent = self._encode(visible + F.embedding(masking.ids_keep, self.pos_embed[0, 1:]))
        pred = self.decoder.predict_masked(latent, masking)
        # Every image has the same number of masked patches, so the mean over all values equals the official mean.
        target = self.target(take_patches(patches, masking.ids_masked))
        if pred.dtype in (torch.float16, torch.bfloat16):
            pred = pred.float()
        return (pred - target).square().mean()

    def save_pretrained(self, path: str | Path) -> Path:
        """Write the weights and sizes for ``mae.from_pretrained``.

        Args:
            path: A file that ends in .safetensors, .pth or .pt; any other name is a folder, created if necessary, for
                ``model.safetensors`` and ``config.json``.

        Returns:
            ``path``.

        Raises:
            CheckpointError: The file cannot be written.
        """
        from mae.checkpoints.save import save_pretrained

        return save_pretrained(self, path)

    def set_activation_checkpointing(self, wanted: bool = True) -> None:
        """Store only each block's input for the backward pass: far less memory, about a third more computation."""
        self.encoder.activation_checkpointing = self.decoder.activation_checkpointing = wanted

    def official_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Trained parameters under their official names and in the official model's order.

        An optimiser state numbers the parameters, so the official scripts can only resume in the official order, in
        which both tokens come first.
        """
        named = [(official_name(name), parameter) for name, parameter in self.named_parameters()]
        yield from sorted(named, key=lambda item: not item[0].endswith("_token"))

    def _encode(self, tokens: Tensor) -> Tensor:
        class_token = (self.cls_token + self.pos_embed[:, :1]).to(tokens.dtype).expand(len(tokens), -1, -1)
        out: Tensor = self.encoder(torch.cat([class_token, tokens], dim=1))
        return out

    def _transformed(self, images: Any) -> Tensor:
        """Images of any kind -> (B, C, H, W), normalised, on the model's device and in its precision."""
        from mae.data.image_transform import ImageTransform

        return ImageTransform(self.config).batch(images).to(self.cls_token)

    def _check_imgs(self, imgs: Tensor) -> None:
        wanted = (self.config.in_chans, *self.config.img_size)
        if imgs.ndim != 4 or tuple(imgs.shape[1:]) != wanted:
            raise ValueError(
                f"imgs must be (B, {wanted[0]}, {wanted[1]}, {wanted[2]}) for a model of "
                f"{format_size(self.config.img_size)} pixels; got {tuple(imgs.shape)}"
            )


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of each patch: (..., p * p * C) -> both (..., 1); std = sqrt(unbiased variance + 1e-6)."""
    mean = patches.mean(dim=-1, keepdim=True)
    variance = patches.var(dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def official_name(name: str) -> str:
    """The official release's name of one of our parameters or buffers."""
    for ours, official in _OFFICIAL_PREFIXES.items():
        if name.startswith(ours):
            return official + name[len(ours) :]
    return name


def _own_name(name: str) -> str:
    for ours, official in _OFFICIAL_PREFIXES.items():
        if name.startswith(official):
            return ours + name[len(official) :]
    return name


def _to_official_names(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    _rename(state, prefix, official_name)


def _from_official_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename(state, prefix, _own_name)


def _rename(state: dict[str, Any], prefix: str, rename: Any) -> None:
    """Rename the keys under ``prefix`` in place, keeping their order."""
    renamed = {
        prefix + rename(key[len(prefix) :]) if key.startswith(prefix) else key: state.pop(key) for key in list(state)
    }
    state.update(renamed)
