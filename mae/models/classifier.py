"""The encoder with a classification head: the official VisionTransformer of fine-tuning and linear probing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mae.config import LAYER_NORM_EPS, MAEConfig
from mae.patch_embed import PatchEmbed
from mae.pos_embed import on_default_device, sincos_2d
from mae.transformer import Block, run_block

BATCH_NORM_EPS = 1e-6  # epsilon of the linear probe's batch norm


class ImageClassifier(nn.Module):
    """A classifier: encodes all patches, pools the tokens, normalises, and computes logits.

    The state dict has the key names, shapes and order of the official fine-tuned files, so timm can load it.

    Args:
        config: Sizes of the encoder; decoder sizes are ignored.
        classes: Number of classes.
        pool: Input of the head: "mean" of the patch tokens, or "cls", the class token.
        fc_norm: Whether to normalise after the pooling, with the norm ``fc_norm``, instead of before it.
        probe: Whether it is a linear probe, whose head is a batch norm without parameters and a linear layer.

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
        """Initialise the head: weights from a truncated normal with this std, biases 0."""
        linear = self.head[1] if isinstance(self.head, nn.Sequential) else self.head
        assert isinstance(linear, nn.Linear)
        if not linear.weight.is_meta:
            nn.init.trunc_normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def freeze_encoder(self) -> None:
        """Disable gradients of all parameters but the head's."""
        self.requires_grad_(False)
        self.head.requires_grad_(True)

    @property
    def classes(self) -> int:
        """Number of classes of the head."""
        linear = self.head[1] if isinstance(self.head, nn.Sequential) else self.head
        assert isinstance(linear, nn.Linear)
        return linear.out_features

    def set_activation_checkpointing(self, wanted: bool = True) -> None:
        """Store only each block's input for the backward pass, which saves memory."""
        self.activation_checkpointing = wanted

    def forward(self, imgs: Tensor, scales: Tensor | None = None) -> Tensor:
        """Compute the logits: (B, C, H, W) -> (B, classes).

        Args:
            imgs: Normalised images.
            scales: (B, depth, 2), factors of the residual branches of each block (drop path); 1 if None.
        """
        if self.probe:
            with torch.no_grad():
                pooled = self.pooled(imgs)
        else:
            pooled = self.pooled(imgs, scales)
        out: Tensor = self.head(pooled)
        return out

    def pooled(self, imgs: Tensor, scales: Tensor | None = None) -> Tensor:
        """The pooled and normalised tokens, which are the input of the head, (B, D)."""
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

        Layer 0 is the embedding, layer N + 1 is block N, and layer depth + 1 is the last norm and the head.
        """
        for name, parameter in self.named_parameters():
            if name in ("cls_token", "pos_embed") or name.startswith("patch_embed."):
                layer = 0
            elif name.startswith("blocks."):
                layer = int(name.split(".")[1]) + 1
            else:
                layer = self.config.depth + 1
            yield name, parameter, layer
