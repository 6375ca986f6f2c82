"""The encoder with a classification head: the official VisionTransformer of fine-tuning and linear probing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mae.config import LAYER_NORM_EPS, MAEConfig
from mae.patch_embed import PatchEmbed
from mae.pos_embed import on_default_device, sincos_2d
from mae.transformer import Block, run_block

BATCH_NORM_EPS = 1e-6  # of the linear probe's norm


class ImageClassifier(nn.Module):
    """Patches, all of them, through the encoder's blocks; then pooled, normalised and named.

    The state dict has the key names, shapes and order of the official fine-tuned files, so timm loads it as it stands.

    Args:
        config: Sizes of the encoder; those of a decoder are not used.
        classes: How many classes there are.
        pool: What the head sees: "mean" of the patch tokens, or the "cls" token.
        fc_norm: Normalise after the pooling, by a norm of that name, and not before it.
        probe: A linear probe: the head is a batch norm without parameters and a linear layer, and nothing but the
            head is trained.

    Attributes:
        pos_embed: (1, 1 + L, D), trained in fine-tuning.
    """

    def __init__(
        self, config: MAEConfig, classes: int, *, pool: str = "mean", fc_norm: bool = True, probe: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.pool = pool
        self.probe = probe
        dim = config.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(on_default_device(sincos_2d(dim, config.grid)))
        self.patch_embed = PatchEmbed(config.patch_size, config.in_chans, dim)
        self.blocks = nn.ModuleList(Block(dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth))
        self.pools_first = fc_norm
        if not fc_norm:
            self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        linear = nn.Linear(dim, classes)
        self.head: nn.Module = linear
        if probe:
            self.head = nn.Sequential(nn.BatchNorm1d(dim, affine=False, eps=BATCH_NORM_EPS), linear)
        if fc_norm:
            self.fc_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.activation_checkpointing = False

    def reset_head(self, std: float) -> None:
        """A fresh head: weights truncated normal, biases 0."""
        linear = self.head[1] if isinstance(self.head, nn.Sequential) else self.head
        assert isinstance(linear, nn.Linear)
        if not linear.weight.is_meta:
            nn.init.trunc_normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def freeze_encoder(self) -> None:
        """Only the head learns."""
        self.requires_grad_(False)
        self.head.requires_grad_(True)

    @property
    def classes(self) -> int:
        """How many classes the head tells apart."""
        linear = self.head[1] if isinstance(self.head, nn.Sequential) else self.head
        assert isinstance(linear, nn.Linear)
        return linear.out_features

    def set_activation_checkpointing(self, wanted: bool = True) -> None:
        """Keep only each block's input for the backward pass."""
        self.activation_checkpointing = wanted

    def forward(self, imgs: Tensor, scales: Tensor | None = None) -> Tensor:
        """(B, C, H, W), normalised -> (B, classes), logits.

        Args:
            imgs: The images.
            scales: (B, depth, 2), what the branches of each block are multiplied by (drop path); 1 if None.
        """
        if self.probe:
            with torch.no_grad():
                pooled = self.pooled(imgs)
        else:
            pooled = self.pooled(imgs, scales)
        out: Tensor = self.head(pooled)
        return out

    def pooled(self, imgs: Tensor, scales: Tensor | None = None) -> Tensor:
        """What the head sees, (B, D)."""
        x = self.patch_embed(imgs) + self.pos_embed[:, 1:]  # (B, L, D)
        class_token = (self.cls_token + self.pos_embed[:, :1]).to(x.dtype).expand(len(x), -1, -1)
        x = torch.cat([class_token, x], dim=1)  # (B, 1 + L, D)
        for number, block in enumerate(self.blocks):
            scale = None if scales is None else scales[:, number]
            x = run_block(block, x, 0, scale, activation_checkpointing=self.activation_checkpointing)
        if not self.pools_first:
            x = self.norm(x)
        pooled = x[:, 1:].mean(dim=1) if self.pool == "mean" else x[:, 0]
        out: Tensor = self.fc_norm(pooled) if self.pools_first else pooled
        return out

    def layers(self) -> Iterator[tuple[str, nn.Parameter, int]]:
        """Parameters in the official order, each with its name and its layer.

        Layer 0 is the embedding, layer N + 1 block N, and depth + 1 the head and the last norm.
        """
        for name, parameter in self.named_parameters():
            if name in ("cls_token", "pos_embed") or name.startswith("patch_embed."):
                layer = 0
            elif name.startswith("blocks."):
                layer = int(name.split(".")[1]) + 1
            else:
                layer = self.config.depth + 1
            yield name, parameter, layer
