"""A substitute for a user's clone of the official repository: the same interface, written for the tests.

Like the original it passes ``qk_scale`` to timm's block, uses numpy's ``float``, and takes its noise from torch.
"""

import numpy as np
import torch
from timm.models.vision_transformer import Block, PatchEmbed
from torch import nn


class MaskedAutoencoderViT(nn.Module):
    def __init__(
        self,
        img_size,
        patch_size,
        in_chans,
        embed_dim,
        depth,
        num_heads,
        decoder_embed_dim,
        decoder_depth,
        decoder_num_heads,
        mlp_ratio,
        norm_layer,
        norm_pix_loss=False,
    ):
        super().__init__()
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        tokens = self.patch_embed.num_patches + 1
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim), requires_grad=False)
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, tokens, decoder_embed_dim), requires_grad=False)

        def blocks(dim, heads, count):
            options = {"qkv_bias": True, "qk_scale": None, "norm_layer": norm_layer}
            return nn.ModuleList(Block(dim, heads, mlp_ratio, **options) for _ in range(count))

        self.blocks = blocks(embed_dim, num_heads, depth)
        self.norm = norm_layer(embed_dim)
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.decoder_blocks = blocks(decoder_embed_dim, decoder_num_heads, decoder_depth)
        self.decoder_norm = norm_layer(decoder_embed_dim)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * in_chans)
        self.norm_pix_loss = norm_pix_loss
        self.ratio = np.float(0.5)

    def forward_encoder(self, imgs, mask_ratio):
        x = self.patch_embed(imgs) + self.pos_embed[:, 1:]
        order = torch.rand(x.shape[0], x.shape[1], device=x.device).argsort(dim=1)
        kept = order[:, : int(x.shape[1] * (1 - mask_ratio))]
        mask = torch.ones(x.shape[:2], device=x.device).scatter(1, kept, 0.0)
        x = torch.stack([tokens[ids] for tokens, ids in zip(x, kept, strict=True)])
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x), mask, order.argsort(dim=1)

    def forward_decoder(self, latent, ids_restore):
        x = self.decoder_embed(latent)
        gaps = self.mask_token.expand(len(x), ids_restore.shape[1] + 1 - x.shape[1], -1)
        patches = torch.cat([x[:, 1:], gaps], dim=1)
        patches = torch.stack([tokens[ids] for tokens, ids in zip(patches, ids_restore, strict=True)])
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def forward_loss(self, imgs, pred, mask):
        p = self.patch_embed.patch_size[0]
        squares = imgs.unfold(2, p, p).unfold(3, p, p)  # (B, C, rows, columns, p, p)
        target = squares.permute(0, 2, 3, 4, 5, 1).reshape(pred.shape)
        if self.norm_pix_loss:
            variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        return (((pred - target) ** 2).mean(dim=-1) * mask).sum() / mask.sum()
