"""Build a model from a checkpoint, without initialising weights that are then overwritten."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mae.checkpoints.dialects import CROSSMAE
from mae.checkpoints.hub import OFFICIAL_BASE
from mae.checkpoints.load import Checkpoint, load_checkpoint
from mae.checkpoints.pos_tables import follows_formula
from mae.config import MAEConfig, format_size
from mae.errors import CheckpointError
from mae.io.text import a_few
from mae.mae import MaskedAutoencoder
from mae.models import create_model
from mae.pos_embed import resize_table, sincos_2d

_TABLES = ("pos_embed", "decoder_pos_embed")


def build_model(
    checkpoint: Checkpoint,
    *,
    img_size: int | tuple[int, int] | None = None,
    norm_pix_loss: bool | None = None,
    scaled_positions: bool = False,
) -> tuple[MaskedAutoencoder, tuple[str, ...]]:
    """The model of a checkpoint that has a decoder; its weights stay mapped from the file until used.

    Args:
        checkpoint: What ``load_checkpoint`` read.
        img_size: Another image size, (rows, columns) or one number; position tables follow.
        norm_pix_loss: What the model predicts, where the file does not say.
        scaled_positions: As for ``fit_tables``.

    Returns:
        The model in evaluation mode and float32, and what a user should be told.

    Raises:
        CheckpointError: The file lacks the decoder or other tensors, or one has another shape or holds NaN.
    """
    if not checkpoint.has_decoder:
        raise _no_decoder(checkpoint)
    config = checkpoint.config
    if norm_pix_loss is not None:
        config = config.replace(norm_pix_loss=norm_pix_loss)
    if img_size is not None:
        config = config.replace(img_size=img_size)
    with torch.device("meta"):
        model = create_model(config)
    state, notes = fit_tables(checkpoint, config.grid, scaled_positions=scaled_positions)
    wanted = model.state_dict()
    state, ignored = _known(state, wanted)
    missing, _, misshapen = compare_shapes(state, wanted)
    refuse_misfit(checkpoint.path, missing, misshapen)
    refuse_not_finite(checkpoint.path, state)
    model.load_state_dict({key: tensor.float() for key, tensor in state.items()}, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    precisions = set(checkpoint.dtypes) - {"float32"}
    if precisions and not checkpoint.is_builtin:
        notes += (f"the weights are {', '.join(sorted(precisions))} in the file and float32 in the model",)
    return model.eval(), notes + ignored


def build_encoder(
    checkpoint: Checkpoint, *, img_size: int | tuple[int, int] | None = None
) -> tuple[MaskedAutoencoder, tuple[str, ...]]:
    """The model of a checkpoint whose decoder, if it has one, is left without weights (on the meta device).

    A fine-tuned file, and many of CrossMAE's, have no final encoder norm; the model's then changes nothing but a
    token's mean and scale.

    Args:
        checkpoint: What ``load_checkpoint`` read.
        img_size: Another image size, (rows, columns) or one number; the position table follows.

    Returns:
        The model in evaluation mode and float32, and what a user should be told.

    Raises:
        CheckpointError: The file lacks a tensor of the encoder, or one has another shape or holds NaN.
    """
    config = checkpoint.config if img_size is None else checkpoint.config.replace(img_size=img_size)
    with torch.device("meta"):
        model = create_model(config)
    wanted = {key: tensor for key, tensor in model.state_dict().items() if not is_decoder(key)}
    fitted, notes = fit_tables(checkpoint, config.grid)
    state = {key: tensor for key, tensor in fitted.items() if key in wanted}
    if _may_lack_norm(checkpoint):
        width = checkpoint.config.embed_dim
        state = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)} | state
    missing, _, misshapen = compare_shapes(state, wanted)
    refuse_misfit(checkpoint.path, missing, misshapen)
    refuse_not_finite(checkpoint.path, state)
    model.load_state_dict({key: tensor.float() for key, tensor in state.items()}, assign=True, strict=False)
    return model.eval(), tuple(note for note in notes if not is_decoder(note))


def build_usable(checkpoint: Checkpoint) -> MaskedAutoencoder:
    """The whole model where the checkpoint has a decoder, else its encoder: as ``build_model``, ``build_encoder``."""
    return build_model(checkpoint)[0] if checkpoint.has_decoder else build_encoder(checkpoint)[0]


def _may_lack_norm(checkpoint: Checkpoint) -> bool:
    """Whether a file without the encoder's last norm is whole: a head, or a decoder of its own, has norms instead."""
    return checkpoint.kind == "fine-tuned" or checkpoint.dialect == CROSSMAE


def is_decoder(key: str) -> bool:
    """Whether a tensor (official name) belongs to the decoder, which an encoder-only file lacks."""
    return key.startswith("decoder_") or key == "mask_token"


def load_weights(model: MaskedAutoencoder, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Copy a checkpoint's weights, and nothing else of it, into a model that exists.

    Another image size is allowed, and so is a file without a decoder: what the file lacks keeps its values.

    Returns:
        What a user should be told.

    Raises:
        CheckpointError: A tensor has another shape than the model's or holds NaN, or an encoder tensor is missing.
    """
    state, notes = fit_tables(checkpoint, model.config.grid)
    wanted = model.state_dict()
    state, ignored = _known(state, wanted)
    missing, _, misshapen = compare_shapes(state, wanted)
    if not checkpoint.has_decoder:
        notes += ("the file has no decoder: the decoder starts from fresh weights",)
        missing = [key for key in missing if not is_decoder(key)]
    if _may_lack_norm(checkpoint) and {"norm.weight", "norm.bias"} <= set(missing):
        kind = "fine-tuned" if checkpoint.kind == "fine-tuned" else f"of {checkpoint.dialect}"
        notes += (f"the file is {kind} and has no final encoder norm: that norm starts fresh",)
        missing = [key for key in missing if not key.startswith("norm.")]
    other_sizes = _other_sizes(checkpoint, model.config)
    refuse_misfit(checkpoint.path, missing, misshapen, other_sizes)
    refuse_not_finite(checkpoint.path, state)
    notes += (other_sizes,) if other_sizes else ()  # other heads fit, and compute something else
    model.load_state_dict(state, strict=False)
    return notes + ignored


def from_pretrained(
    name_or_path: str | Path,
    *,
    img_size: int | tuple[int, int] | None = None,
    norm_pix_loss: bool | None = None,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
) -> MaskedAutoencoder:
    """The model of a checkpoint file, of a run's folder, or of a released name such as ``mae_visualize_vit_base``.

    Args, Raises: As ``load_checkpoint`` and ``build_model``.
    """
    checkpoint = load_checkpoint(name_or_path, num_heads=num_heads, decoder_num_heads=decoder_num_heads)
    return build_model(checkpoint, img_size=img_size, norm_pix_loss=norm_pix_loss)[0]


def learnt_tables(checkpoint: Checkpoint) -> list[str]:
    """The names of position tables that are not the sine-cosine formula's, and so are made for one grid."""
    grid = checkpoint.config.grid
    return [key for key in _TABLES if key in checkpoint.state and not follows_formula(checkpoint.state[key], grid)]


def fit_tables(
    checkpoint: Checkpoint, grid: tuple[int, int], *, scaled_positions: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A checkpoint's tensors with its position tables on another grid, and what was done to them.

    A sine-cosine table is computed again; another one is resampled (bicubic).

    Args:
        checkpoint: Whose tables.
        grid: Patches as (rows, columns).
        scaled_positions: Scale the formula's positions to the file's grid. Better for a model that is used on this
            grid as it is; one that goes on training learns the formula's own as well, and other programs expect them.
    """
    state = dict(checkpoint.state)
    old = checkpoint.config.grid
    notes: list[str] = []
    for key in _TABLES:
        table = state.get(key)
        if table is None or old == grid or table.ndim != 3 or table.shape[:2] != (1, 1 + old[0] * old[1]):
            continue
        if follows_formula(table, old):
            scaled_to = old if scaled_positions else None
            state[key] = sincos_2d(table.shape[-1], grid, scaled_to=scaled_to, dtype=table.dtype)
            how = "recomputed by the sine-cosine formula" + ", scaled to the file's grid" * scaled_positions
        else:
            state[key] = resize_table(table, old, grid)
            how = "resampled (bicubic), since the file's is not the sine-cosine table"
        notes.append(f"{key} is {how}: {format_size(old)} patches in the file, {format_size(grid)} here")
    return state, tuple(notes)


def compare_shapes(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[list[str], list[str], list[tuple[str, tuple[int, ...], tuple[int, ...]]]]:
    """Which tensors are missing, unexpected, or of another shape (name, wanted, got)."""
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    misshapen = [
        (key, tuple(wanted[key].shape), tuple(tensor.shape))
        for key, tensor in state.items()
        if key in wanted and tensor.shape != wanted[key].shape
    ]
    return missing, unexpected, misshapen


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor is free of NaN and infinity in float32; one pass and no copy, unless its sum overflows."""
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.float().isfinite().all())


def _known(state: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    known = {key: tensor for key, tensor in state.items() if key in wanted}
    unknown = [key for key in state if key not in wanted]
    if not unknown:
        return known, ()
    return known, (f"{len(unknown)} tensors of the file are not part of the model and stay unused: {a_few(unknown)}",)


def refuse_not_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity.

    Raises:
        CheckpointError: A tensor holds some.
    """
    bad = [key for key, tensor in state.items() if not is_finite(tensor)]
    if bad:
        raise CheckpointError(
            f"{path}: {a_few(bad)} {'hold' if len(bad) > 1 else 'holds'} NaN or infinity",
            hint="the training that wrote it had diverged, or the file is damaged; use an earlier checkpoint",
        )


def _other_sizes(checkpoint: Checkpoint, wanted: MAEConfig) -> str | None:
    """The sizes in which a file's model is another one than the model it is loaded into; None if it is the same.

    Neither the image size nor the target matters for loading, and a file without a decoder says nothing of one.
    """
    told = [
        f"{name} is {ours:g} here and {theirs:g} in the file"
        for name, ours, theirs in wanted.differences(checkpoint.config)
        if name not in ("img_size", "norm_pix_loss", *checkpoint.assumed)
        and (checkpoint.has_decoder or not is_decoder(name))
    ]
    return f"the file's model has other sizes: {', '.join(told)}" if told else None


def refuse_misfit(
    path: Path,
    missing: list[str],
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]],
    other_sizes: str | None = None,
) -> None:
    """Refuse tensors that are missing or have another shape, as ``compare_shapes`` finds them.

    Args:
        path: The file.
        missing, misshapen: What does not fit.
        other_sizes: Why, where the model has other sizes.

    Raises:
        CheckpointError: There are any.
    """
    if misshapen:
        key, wanted, got = misshapen[0]
        others = f" (and {len(misshapen) - 1} more)" if len(misshapen) > 1 else ""
        raise CheckpointError(f"{path}: {key} must be {wanted}; got {got}{others}", hint=other_sizes)
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} tensors of the model: {a_few(missing)}",
            hint=other_sizes or f"`maecli compare --official {path}` lists every one",
        )


def _no_decoder(checkpoint: Checkpoint) -> CheckpointError:
    size = (checkpoint.variant or "vit_base").removeprefix("vit_")
    size = size if size in ("base", "large", "huge") else "base"
    name = f"mae_visualize_vit_{size}.pth"
    return CheckpointError(
        f"{checkpoint.path} holds an encoder only: the decoder (mask_token, decoder_embed, decoder_blocks, "
        "decoder_norm, decoder_pred) is missing, so it cannot reconstruct an image",
        hint=f"use a file with a decoder, for instance {OFFICIAL_BASE}/visualize/{name}",
    )
