"""What is exported as a graph: from normalised images to the encoder's features, or to a classifier's logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mae.checkpoints import Checkpoint
from mae.checkpoints.build import build_encoder
from mae.checkpoints.classifiers import pool_of
from mae.config import LAYER_NORM_EPS, MAEConfig
from mae.errors import CheckpointError
from mae.mae import MaskedAutoencoder


class Served(nn.Module):
    """The encoder of unmasked images in a given precision; images and outputs are always float32.

    Args:
        model: The model whose patch embedding, class token and blocks are used.
        dtype: Precision of the computation.
    """

    output = "features"

    def __init__(self, model: MaskedAutoencoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.config: MAEConfig = model.config
        self.patch_embed = model.patch_embed
        self.cls_token = nn.Parameter(model.cls_token.detach())
        self.register_buffer("pos_embed", model.pos_embed)
        self.encoder = model.encoder
        self.dtype = dtype

    def finish(self) -> Served:
        """Convert to the precision, freeze the parameters, and switch to evaluation mode."""
        return self.to(self.dtype).eval().requires_grad_(False)

    def tokens(self, images: Tensor) -> Tensor:
        """The input of the first block: (B, C, H, W) -> (B, 1 + L, D)."""
        pos_embed = self.get_buffer("pos_embed")
        patches = self.patch_embed(images.to(self.cls_token.dtype)) + pos_embed[:, 1:]
        class_token = (self.cls_token + pos_embed[:, :1]).expand(patches.shape[0], -1, -1)
        return torch.cat([class_token, patches], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """The encoder's features: (B, C, H, W) -> (B, 1 + L, D)."""
        features: Tensor = self.encoder(self.tokens(images))
        return features.to(images.dtype)


class ServedClassifier(Served):
    """The encoder with the linear head of a fine-tuned model or of a linear probe.

    Args:
        model, dtype: As for ``Served``.
        norm: ``fc_norm``, applied after the pooling; None to apply the encoder's norm before the pooling.
        pool: Input of the head: "mean" of the patch tokens, or "cls", the class token.
        head: The head, (B, D) -> (B, classes).
    """

    output = "logits"

    def __init__(
        self, model: MaskedAutoencoder, dtype: torch.dtype, norm: nn.LayerNorm | None, pool: str, head: nn.Module
    ) -> None:
        super().__init__(model, dtype)
        self.fc_norm = norm
        self.pool = pool
        self.head = head
        if norm is not None:
            self.encoder.norm = nn.Identity()  # type: ignore[assignment] # a mean of patches is normalised, not they

    def forward(self, images: Tensor) -> Tensor:
        """The logits: (B, C, H, W) -> (B, classes)."""
        features = self.encoder(self.tokens(images))
        pooled = features[:, 1:].mean(dim=1) if self.pool == "mean" else features[:, 0]
        pooled = pooled if self.fc_norm is None else self.fc_norm(pooled)
        logits: Tensor = self.head(pooled)
        return logits.to(images.dtype)


def served(checkpoint: Checkpoint, dtype: torch.dtype) -> Served:
    """The classifier of a file that has a head, else the encoder; a linear probe's batch norm must be ``folded``.

    Raises:
        CheckpointError: A tensor is missing or has another shape.
    """
    model = build_encoder(checkpoint)[0]
    state = checkpoint.state
    if not any(key.startswith("head.") for key in state):
        return Served(model, dtype).finish()
    norm = None
    if "fc_norm.weight" in state:
        norm = nn.LayerNorm(checkpoint.config.embed_dim, eps=LAYER_NORM_EPS)
        _fill(norm, checkpoint, "fc_norm.")
    return ServedClassifier(model, dtype, norm, pool_of(checkpoint), _head(checkpoint)).finish()


def _head(checkpoint: Checkpoint) -> nn.Linear:
    weight = checkpoint.state.get("head.weight")
    if weight is None or weight.ndim != 2:
        raise CheckpointError(f"{checkpoint.path}: its head is not one linear layer, which alone can be exported")
    layer = nn.Linear(checkpoint.config.embed_dim, weight.shape[0])
    _fill(layer, checkpoint, "head.")
    return layer


def _fill(module: nn.Module, checkpoint: Checkpoint, prefix: str) -> None:
    part = {key.removeprefix(prefix): value for key, value in checkpoint.state.items() if key.startswith(prefix)}
    for name, wanted in module.state_dict().items():
        got = part.get(name)
        if got is None or got.shape != wanted.shape:
            raise CheckpointError(
                f"{checkpoint.path}: {prefix}{name} must be {tuple(wanted.shape)}; "
                f"got {'nothing' if got is None else tuple(got.shape)}"
            )
    module.load_state_dict({name: part[name] for name in module.state_dict()})
