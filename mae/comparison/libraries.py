"""References from other libraries, if installed: ViTMAE of transformers, and the encoder of timm.

Each runs in float64 with the checkpoint's weights, converted by our own converter, and returns the outputs of its
stages under the names of ``mae.comparison.reference``.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mae.checkpoints import Checkpoint
from mae.checkpoints.classifiers import folded, pool_of
from mae.checkpoints.dialects import to_hugging_face
from mae.comparison.stages import watch
from mae.config import LAYER_NORM_EPS, MAEConfig
from mae.errors import ConfigError
from mae.masking import random_masking, take_patches


def is_installed(library: str) -> bool:
    """Whether a library can be imported; does not import it."""
    return importlib.util.find_spec(library) is not None


def why_not(library: str, checkpoint: Checkpoint) -> str | None:
    """The reason why a library (or "the clone") cannot be a reference for a checkpoint, or None if it can."""
    if not is_installed("timm" if library == "the clone" else library):
        return f"{'timm, which it needs,' if library == 'the clone' else library} is not installed"
    if library == "timm":
        known = {"norm.weight", "fc_norm.weight"} & set(checkpoint.state)
        return None if known else "the file has no final encoder norm"
    if checkpoint.config.img_size[0] != checkpoint.config.img_size[1]:
        return "it takes square images only"
    return None if checkpoint.has_decoder else "it needs a decoder, and the file has none"


def hugging_face_config(config: MAEConfig) -> dict[str, Any]:
    """The fields of a ViTMAE config; ``layer_norm_eps`` is that of the official model, not transformers' default."""
    return {
        "image_size": config.img_size[0],
        "patch_size": config.patch_size,
        "num_channels": config.in_chans,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": int(config.embed_dim * config.mlp_ratio),
        "decoder_hidden_size": config.decoder_embed_dim,
        "decoder_num_hidden_layers": config.decoder_depth,
        "decoder_num_attention_heads": config.decoder_num_heads,
        "decoder_intermediate_size": int(config.decoder_embed_dim * config.mlp_ratio),
        "layer_norm_eps": LAYER_NORM_EPS,
        "norm_pix_loss": config.norm_pix_loss,
    }


def widest_dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    """The number format that holds every tensor exactly; transformers rounds all to that of the first tensor."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in state.values()))


@torch.no_grad()
def run_transformers(
    state: Mapping[str, Tensor], config: MAEConfig, imgs: Tensor, noise: Tensor, mask_ratio: float
) -> dict[str, Tensor]:
    """Run transformers' ViTMAE on masked images, and return the outputs of its stages by name."""
    # Its forward pass computes the loss; with normalised targets the comparison covers more code.
    settings = hugging_face_config(config.replace(norm_pix_loss=True)) | {"mask_ratio": mask_ratio}
    widest = widest_dtype(state)
    exact = {name: tensor.to(widest) for name, tensor in to_hugging_face(state).items()}
    model = load_transformers(None, settings=settings, state=exact)
    encoder, decoder = model.vit, model.decoder
    layers = encoder.layers if hasattr(encoder, "layers") else encoder.encoder.layer
    outputs = {"patch embedding": encoder.embeddings.patch_embeddings, "visible tokens": encoder.embeddings}
    outputs |= {f"encoder block {number}": layer for number, layer in enumerate(layers)}
    outputs |= {"encoder norm": encoder.layernorm, "decoder embedding": decoder.decoder_embed}
    outputs |= {f"decoder block {number}": layer for number, layer in enumerate(decoder.decoder_layers)}
    outputs |= {"decoder norm": decoder.decoder_norm}
    with watch(outputs, {"decoder tokens": decoder.decoder_layers[0]}) as seen:
        result = model(imgs.double(), noise=noise)
    return seen | {"prediction": result.logits, "loss, normalised": result.loss}


def load_transformers(
    path: Path | None, *, settings: Mapping[str, Any] | None = None, state: Mapping[str, Tensor] | None = None
) -> Any:
    """A ViTMAE in float64, from a folder as transformers loads it, or from settings and a state dict.

    Raises:
        ConfigError: transformers finds a tensor missing, unexpected or of another shape.
    """
    import transformers

    library: Any = transformers  # its annotations do not cover output_loading_info
    options: dict[str, Any] = {}
    if settings is not None:
        options = {"config": library.ViTMAEConfig(**settings), "state_dict": dict(state or {})}
    with _quiet(library):
        model, loading = library.ViTMAEForPreTraining.from_pretrained(
            path, output_loading_info=True, local_files_only=True, **options
        )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[problem]:
            raise ConfigError(f"transformers reports {problem.replace('_', ' ')}: {sorted(loading[problem])[:4]}")
    return model.eval().double()


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """A context manager that disables transformers' progress bars."""
    logging = transformers.utils.logging
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


@torch.no_grad()
def run_timm(
    state: Mapping[str, Tensor], config: MAEConfig, imgs: Tensor, noise: Tensor, mask_ratio: float
) -> dict[str, Tensor]:
    """Run timm's VisionTransformer, with masking in place of its patch dropout, and return its stages by name."""
    has_norm = "norm.weight" in state
    model = timm_model(config, pool="cls" if has_norm else "mean", fc_norm=not has_norm)
    # The norm after the pooling is not used here.
    unused = {"fc_norm.weight": torch.ones(config.embed_dim), "fc_norm.bias": torch.zeros(config.embed_dim)}
    model.load_state_dict({key: state[key] if key in state else unused[key] for key in model.state_dict()}, assign=True)
    model.patch_drop = _KeepVisible(random_masking(noise, mask_ratio).ids_keep)
    model = model.eval().double()
    outputs = {"patch embedding": model.patch_embed, "visible tokens": model.patch_drop}
    outputs |= {f"encoder block {number}": block for number, block in enumerate(model.blocks)}
    with watch(outputs | ({"encoder norm": model.norm} if has_norm else {}), {}) as seen:
        model.forward_features(imgs.double())
    return seen


class _KeepVisible(nn.Module):
    def __init__(self, ids_keep: Tensor) -> None:
        super().__init__()
        self.ids_keep = ids_keep

    def forward(self, x: Tensor) -> Tensor:
        """Keep the class token and the K visible patches: (B, 1 + L, D) -> (B, 1 + K, D)."""
        return torch.cat([x[:, :1], take_patches(x[:, 1:], self.ids_keep)], dim=1)


@torch.no_grad()
def timm_logits(checkpoint: Checkpoint, imgs: Tensor) -> Tensor:
    """Logits of timm's VisionTransformer with the weights of a fine-tuned file, loaded strictly, in float64: (B, K)."""
    state = folded(checkpoint.state)
    fc_norm = "fc_norm.weight" in state
    model = timm_model(checkpoint.config, classes=len(state["head.weight"]), pool=pool_of(checkpoint), fc_norm=fc_norm)
    model.load_state_dict({key: tensor.double() for key, tensor in state.items()}, strict=True, assign=True)
    logits: Tensor = model.eval()(imgs.double())
    return logits


def timm_model(config: MAEConfig, *, classes: int = 0, pool: str = "cls", fc_norm: bool = False) -> Any:
    """A timm model of the encoder's sizes on the meta device; weights are to be assigned."""
    from timm.models.vision_transformer import VisionTransformer

    with torch.device("meta"):
        return VisionTransformer(
            img_size=config.img_size,
            patch_size=config.patch_size,
            in_chans=config.in_chans,
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            num_classes=classes,
            global_pool="avg" if pool == "mean" else "token",
            fc_norm=fc_norm,
            norm_layer=functools.partial(nn.LayerNorm, eps=LAYER_NORM_EPS),
        )


LIBRARIES: dict[str, Callable[..., dict[str, Tensor]]] = {"transformers": run_transformers, "timm": run_timm}
