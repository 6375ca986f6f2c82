"""A frozen encoder of unmasked images, which returns several kinds of features from one forward pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mae.checkpoints import load_checkpoint_or_default
from mae.checkpoints.build import build_encoder
from mae.checkpoints.builtin import BUILTIN, DEFAULT_RUN
from mae.config import LAYER_NORM_EPS, MAEConfig
from mae.data.decoding.image import check_channels
from mae.data.transforms import normalise
from mae.errors import ConfigError
from mae.io.text import shown
from mae.mae import MaskedAutoencoder
from mae.models import create_model
from mae.system.device import Computing, autocast
from mae.system.seeding import derive_seed, seeded

FINE_TUNED_NOTE = "it was fine-tuned with labels, so its features are not those of pre-training"


class View(NamedTuple):
    """A kind of features: pooling of tokens ("cls", "mean" or "patches"), and norm before it ("none" or "final")."""

    pool: str
    norm: str

    @property
    def name(self) -> str:
        """Name of the view in files and cache keys, for instance "mean-final"."""
        return f"{self.pool}-{self.norm}"


class FrozenEncoder:
    """Computes the features of unmasked images.

    Args:
        name: Name for messages.
        model: The model; its decoder is removed.
        computing: Device and precision.
        layer: Block whose output is used, from 1; None for the last.
        last_blocks: Number of blocks, up to this one, whose pooled outputs stand side by side, as in DINO's linear
            evaluation. Patch tokens are those of one block.
        fc_norm: (weight, bias) of the norm of a model fine-tuned on the mean of patches. It replaces the final norm,
            and is applied after pooling.
        notes: Messages for the user.

    Raises:
        ConfigError: The model has no block of number ``layer``, or not so many.
    """

    def __init__(
        self,
        name: str,
        model: MaskedAutoencoder,
        computing: Computing,
        *,
        layer: int | None = None,
        last_blocks: int = 1,
        fc_norm: tuple[Tensor, Tensor] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.config: MAEConfig = model.config
        if layer is not None and layer > model.config.depth:
            raise ConfigError(f"--layer {layer}: {name} has {model.config.depth} blocks")
        self.layer = layer or model.config.depth
        if last_blocks > self.layer:
            raise ConfigError(
                f"--last-blocks {last_blocks}: {name} has {self.layer} blocks{' up to --layer' * (layer is not None)}"
            )
        self.last_blocks = last_blocks
        self.notes = notes
        self.computing = computing
        model.decoder = nn.Identity()  # type: ignore[assignment] # an encoder-only file has no weights for it
        self._model = model.requires_grad_(False).eval().to(computing.device)
        self._norm: nn.Module = self._model.encoder.norm
        self.pools_first = fc_norm is not None
        if fc_norm is not None:
            self._norm = nn.LayerNorm(model.config.embed_dim, eps=LAYER_NORM_EPS)
            self._norm.load_state_dict({"weight": fc_norm[0].float(), "bias": fc_norm[1].float()})
            self._norm.requires_grad_(False).to(computing.device)

    def has(self, view: View) -> bool:
        """Whether the encoder has this view; with ``fc_norm``, only the mean of the patches has a final norm."""
        return not (self.pools_first and view.norm == "final" and view.pool != "mean")

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the features depend on, except the images."""
        return {
            "weights": self._digest(),
            "image_size": list(self.config.img_size),
            "layer": self.layer,
            **({"last_blocks": self.last_blocks} if self.last_blocks > 1 else {}),
            "precision": self.computing.precision,
            # Devices round sums differently, in lower precisions by more.
            "device": self.computing.device.type,
        }

    def shape(self, view: View) -> tuple[int, ...]:
        """Shape of one image's features: (D,), or (L, D) for patches; D is larger with ``last_blocks``."""
        width = self.config.embed_dim
        return (self.config.num_patches, width) if view.pool == "patches" else (self.last_blocks * width,)

    @torch.inference_mode()
    def views(self, imgs: Tensor, views: Iterable[View]) -> dict[View, Tensor]:
        """Compute the features of a batch.

        Args:
            imgs: Images, (B, C, H, W) uint8.
            views: The views to compute.

        Returns:
            Features by view, float32 on the device: (B, D), or (B, L, D) for patches.
        """
        found: dict[View, list[Tensor]] = {view: [] for view in views}
        with autocast(self.computing.device, self.computing.precision):
            outputs = self._outputs(normalise(imgs.to(self.computing.device, non_blocking=True)))
        for number, output in enumerate(outputs, start=1):
            tokens, normed = output.float(), None
            for view, parts in found.items():
                if view.pool == "patches" and number < len(outputs):
                    continue
                if view.norm == "none" or self.pools_first:
                    pooled = _pool(tokens, view.pool)
                    parts.append(self._norm(pooled) if view.norm == "final" else pooled)
                    continue
                normed = self._norm(tokens) if normed is None else normed
                parts.append(_pool(normed, view.pool))
        return {view: torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0] for view, parts in found.items()}

    def _outputs(self, imgs: Tensor) -> list[Tensor]:
        """Outputs of the chosen blocks before the final norm, in order: (B, C, H, W) -> (B, 1 + L, D) each."""
        model = self._model
        patches = model.patch_embed(imgs) + model.pos_embed[:, 1:]  # (B, L, D)
        class_token = (model.cls_token + model.pos_embed[:, :1]).to(patches.dtype).expand(len(patches), -1, -1)
        x = torch.cat([class_token, patches], dim=1)  # (B, 1 + L, D)
        outputs = []
        for number, block in enumerate(list(model.encoder.blocks)[: self.layer], start=1):
            x = block(x)
            if number > self.layer - self.last_blocks:
                outputs.append(x)
        return outputs

    def _digest(self) -> str:
        digest = hashlib.blake2b(repr(self.config).encode(), digest_size=16)
        named = [*self._model.state_dict().items(), *self._norm.state_dict().items()]
        for key, tensor in named:
            digest.update(key.encode())
            digest.update(_bytes(tensor).data)
        return digest.hexdigest()


def _pool(tokens: Tensor, pool: str) -> Tensor:
    if pool == "cls":
        return tokens[:, 0]
    return tokens[:, 1:] if pool == "patches" else tokens[:, 1:].mean(dim=1)


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def load_encoder(
    path: Path | None,
    computing: Computing,
    *,
    image_size: tuple[int, int] | None = None,
    layer: int | None = None,
    last_blocks: int = 1,
) -> FrozenEncoder:
    """Load the encoder of a checkpoint; if ``path`` is None, that of ``load_checkpoint_or_default``.

    Raises:
        CheckpointError: The file is missing or has no usable encoder.
        ConfigError: The encoder does not support the image size, or has no such layer or fewer blocks.
    """
    checkpoint = load_checkpoint_or_default(path)
    name = shown(path or (BUILTIN if checkpoint.is_builtin else DEFAULT_RUN))
    check_channels(checkpoint.config.in_chans)
    model, notes = build_encoder(checkpoint, img_size=image_size)
    fc_norm = None
    if checkpoint.kind == "fine-tuned":
        notes += (f"{name}: {FINE_TUNED_NOTE}",)
        if "fc_norm.weight" in checkpoint.state:
            fc_norm = checkpoint.state["fc_norm.weight"], checkpoint.state["fc_norm.bias"]
    return FrozenEncoder(
        name,
        model,
        computing,
        layer=layer,
        last_blocks=last_blocks,
        fc_norm=fc_norm,
        notes=(*checkpoint.notes, *notes),
    )


def untrained_encoder(
    config: MAEConfig, computing: Computing, *, layer: int | None = None, last_blocks: int = 1, seed: int
) -> FrozenEncoder:
    """An untrained encoder of the given sizes, with the initial weights of ``pretrain`` with this seed."""
    with seeded(derive_seed(seed, "weights")):
        model = create_model(config)
    return FrozenEncoder("untrained", model, computing, layer=layer, last_blocks=last_blocks)
