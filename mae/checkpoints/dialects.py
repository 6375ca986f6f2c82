"""Key names of other tools (three Hugging Face dialects, wrappers and prefixes); no other module knows them.

Everywhere else, keys have the names of the official release.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_WRAPPERS = ("model", "state_dict", "module", "model_state_dict", "target_encoder")  # the last one is I-JEPA's
_PREFIXES = ("module.", "_orig_mod.", "model.", "encoder.")
_DEEPEST = 8  # largest nesting of wrappers and prefixes; a file may contain itself

# Hugging Face's names, newest last: the classic ones of the Hub, those of transformers 5 in memory, and
# what its save_pretrained writes, which differs from the classic in ``decoder_encoder.layer``.
_HF_BLOCKS = re.compile(r"^(?:(decoder)\.(?:decoder_layers|decoder_encoder\.layer)|(?:encoder\.layer|layers))\.(\d+)\.")
_HF_IN_BLOCK = {
    "layernorm_before.": "norm1.",
    "layernorm_after.": "norm2.",
    "attention.output.dense.": "attn.proj.",
    "attention.o_proj.": "attn.proj.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
    "mlp.fc1.": "mlp.fc1.",
    "mlp.fc2.": "mlp.fc2.",
}
_HF_QKV = re.compile(r"^attention\.(?:attention\.(query|key|value)|([qkv])_proj)\.(weight|bias)$")
_HF_OTHERS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "layernorm.": "norm.",
    "decoder.mask_token": "mask_token",
    "decoder.decoder_pos_embed": "decoder_pos_embed",
    "decoder.decoder_embed.": "decoder_embed.",
    "decoder.decoder_norm.": "decoder_norm.",
    "decoder.decoder_pred.": "decoder_pred.",
    "classifier.": "head.",
}

# Keys by which other kinds or layouts of masked autoencoders are recognised.
_FOREIGN = {
    "modality_encoders.": "a data2vec 2.0 model",
    "head.probe": "a SigLIP model",
    "class_embedding": "a CLIP model",
    "vision_model.": "a CLIP-like or SigLIP-like model",
    "encoder_to_decoder.": "the MAE-pytorch or VideoMAE layout",
    "to_patch_embedding": "the vit-pytorch layout",
    "encoder.pos_embedding": "the vit-pytorch layout",
    "relative_position_bias_table": "a BEiT or SimMIM model",
    ".q_bias": "a BEiT-like model",
    "backbone.": "an OpenMMLab model",
    "teacher.": "a self-distilled model",
    "encoder.mask_units": "a Hiera model",
    "conv_proj.": "the torchvision layout",
}

# Keys of models that resemble a ViT but compute another function, so that their features would be wrong.
_OTHER_ENCODERS = {
    "register_tokens": "a DINO model with register tokens",
    "reg_token": "a model of timm's with register tokens",
    "storage_tokens": "a DINOv3 model",
    ".ls1.gamma": "a model with LayerScale, such as DINOv2 or CAPI",
    ".gamma_1": "a model with LayerScale, such as BEiT",
    "layer_scale1": "a model with LayerScale, such as DINOv2 in transformers",
    ".q_norm.": "a model that normalises queries and keys",
    "attn_pool.": "a model with attention pooling, such as SigLIP",
    ".mlp.ffn_ln.": "an EVA-02 model",
    ".mlp.w12.": "a model with SwiGLU blocks, such as DINOv2 giant",
    "encoder_to_decoder.": "a MAE-pytorch model",
    "decoder.0.": "a SimMIM model",
    "relative_position_bias_table": "a BEiT or SimMIM model",
    ".q_bias": "a BEiT-like model",
}
CROSSMAE = "CrossMAE"
_CROSSMAE_ALONE = ("decoder_", "dec_norms.", "wfm.", "mask_token")  # all but the encoder


def unwrap(loaded: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Find the state dict in what a file held.

    Returns:
        The tensors by key, without wrappers' and compilers' prefixes, and the file's other entries.
    """
    others: dict[str, Any] = {}
    for _ in range(_DEEPEST):
        if not isinstance(loaded, Mapping):
            break
        wrapper = next((key for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if wrapper is None:
            break
        others |= {str(key): value for key, value in loaded.items() if key != wrapper}
        loaded = loaded[wrapper]
    tensors = {}
    if isinstance(loaded, Mapping):
        tensors = {key: value for key, value in loaded.items() if isinstance(key, str) and isinstance(value, Tensor)}
    return _without_prefixes(tensors), others


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove a prefix that all keys share; ``encoder.`` only if official encoder names follow it."""
    for _ in range(_DEEPEST):
        prefix = next((prefix for prefix in _PREFIXES if _is_shared(prefix, state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _is_shared(prefix: str, state: Mapping[str, Any]) -> bool:
    if prefix == "encoder.":
        return any(key.startswith("encoder.patch_embed.proj.") for key in state)
    return bool(state) and all(key.startswith(prefix) for key in state)


def is_hugging_face(keys: Mapping[str, Any]) -> bool:
    """Whether keys are those of a Hugging Face ViTMAE, in any of its dialects."""
    return any(key.removeprefix("vit.").startswith("embeddings.patch_embeddings.projection.") for key in keys)


def hugging_face_dialect(keys: Mapping[str, Any]) -> str:
    """Name of the Hugging Face dialect: that of the Hub, of transformers 5 in memory, or of files it saves."""
    if any(".q_proj." in key for key in keys):
        return "huggingface (in memory, 5.x)"
    if any("decoder_encoder." in key for key in keys):
        return "huggingface (saved by 5.x)"
    return "huggingface"


def from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Any Hugging Face dialect -> official names; query, key and value become one ``attn.qkv``.

    A key that is not one of ViTMAE keeps its name and is reported as unexpected; if query, key and value do not fit
    together they are dropped, and their ``attn.qkv`` is reported as missing.
    """
    official: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        block, rest = _hugging_face_block(key)
        qkv = _HF_QKV.match(rest) if block else None
        if qkv:
            name = f"{block}attn.qkv.{qkv[3]}"
            parts.setdefault(name, {})[(qkv[1] or qkv[2])[0]] = tensor
        else:
            official[_translated(rest, _HF_IN_BLOCK if block else _HF_OTHERS, block, key)] = tensor
    for name, part in parts.items():
        if set(part) == {"q", "k", "v"} and len({tensor.shape for tensor in part.values()}) == 1 and part["q"].ndim:
            official[name] = torch.cat([part["q"], part["k"], part["v"]])
    return official


def to_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names -> the classic Hugging Face names, which every version of transformers reads."""
    names = {official: foreign for foreign, official in _HF_OTHERS.items() if official != "head."}
    in_block = {
        "norm1.": "layernorm_before.",
        "norm2.": "layernorm_after.",
        "attn.proj.": "attention.output.dense.",
        "mlp.fc1.": "intermediate.dense.",
        "mlp.fc2.": "output.dense.",
    }
    foreign: dict[str, Tensor] = {}
    for key, tensor in state.items():
        match = re.match(r"^(decoder_)?blocks\.(\d+)\.", key)
        if not match:
            name = _translated(key, names, "", key)
            foreign[name if name.startswith("decoder.") else f"vit.{name}"] = tensor
            continue
        block = f"decoder.decoder_layers.{match[2]}." if match[1] else f"vit.encoder.layer.{match[2]}."
        rest = key[match.end() :]
        if rest.startswith("attn.qkv."):
            for part, value in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                foreign[f"{block}attention.attention.{part}.{rest.removeprefix('attn.qkv.')}"] = value
        else:
            foreign[_translated(rest, in_block, block, key)] = tensor
    return foreign


def foreign_layout(keys: Mapping[str, Any]) -> str | None:
    """Name of the other kind of masked autoencoder that the keys belong to, or None."""
    return next((name for sign, name in _FOREIGN.items() if any(sign in key for key in keys)), None)


def other_encoder(state: Mapping[str, Tensor]) -> str | None:
    """The name of a model (official names) whose encoder is not a plain ViT with one class token; else None."""
    token, projection = state.get("cls_token"), state.get("patch_embed.proj.weight")
    if projection is not None and projection.ndim == 5:
        return None  # a model of video, which the sizes tell
    if token is not None and token.ndim == 3 and token.shape[1] > 1:
        return f"a Pixio model, or another one with {token.shape[1]} class tokens"
    if found := next((name for sign, name in _OTHER_ENCODERS.items() if any(sign in key for key in state)), None):
        return found
    table = state.get("pos_embed")
    if token is not None or table is None or table.ndim != 3 or any(key.startswith("decoder_") for key in state):
        return None
    if math.isqrt(table.shape[1]) ** 2 == table.shape[1]:
        return "a model without a class token, such as I-JEPA"
    return None


def is_crossmae(keys: Mapping[str, Any]) -> bool:
    """Whether the keys are those of CrossMAE, whose decoder attends to the encoder's tokens only."""
    return any(key.startswith("decoder_blocks.") and ".cross_attn." in key for key in keys)


def crossmae_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder of a CrossMAE file: its keys are the official ones."""
    return {key: tensor for key, tensor in state.items() if not key.startswith(_CROSSMAE_ALONE)}


def _hugging_face_block(key: str) -> tuple[str, str]:
    """Split a Hugging Face key into its block's official prefix ("" outside blocks) and the remaining name."""
    key = key.removeprefix("vit.")
    match = _HF_BLOCKS.match(key)
    if not match:
        return "", key
    return f"{'decoder_' if match[1] else ''}blocks.{match[2]}.", key[match.end() :]


def _translated(rest: str, names: Mapping[str, str], prefix: str, fallback: str) -> str:
    for foreign, official in names.items():
        if rest.startswith(foreign):
            return prefix + official + rest[len(foreign) :]
    return fallback
