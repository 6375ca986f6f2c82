"""Build a model from a checkpoint, without initialising weights that are then overwritten."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mae.checkpoints.builtin import BUILTIN
from mae.checkpoints.dialects import CROSSMAE
from mae.checkpoints.hub import OFFICIAL_BASE
from mae.checkpoints.load import Checkpoint, load_checkpoint
from mae.checkpoints.pos_tables import follows_formula
from mae.config import MAEConfig, format_size
from mae.errors import CheckpointError
from mae.io.text import a_few, typed
from mae.mae import MaskedAutoencoder
from mae.models import create_model
from mae.options import flag_name
from mae.pos_embed import resize_table, sincos_2d

_TABLES = ("pos_embed", "decoder_pos_embed")


def build_model(
    checkpoint: Checkpoint,
    *,
    img_size: int | tuple[int, int] | None = None,
    norm_pix_loss: bool | None = None,
    scaled_positions: bool = False,
) -> tuple[MaskedAutoencoder, tuple[str, ...]]:
    """Build the whole model of a checkpoint with a decoder; weights stay memory-mapped from the file until used.

    Args:
        checkpoint: What ``load_checkpoint`` read.
        img_size: Another image size, (rows, columns) or one number; position tables are adapted.
        norm_pix_loss: Whether the model predicts normalised patches, if the file does not say.
        scaled_positions: See ``fit_tables``.

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
    fill(model, checkpoint.path, state, wanted)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    precisions = set(checkpoint.dtypes) - {"float32"}
    if precisions and not checkpoint.is_builtin:
        notes += (f"the weights are {', '.join(sorted(precisions))} in the file and float32 in the model",)
    return model.eval(), notes + ignored


def build_encoder(
    checkpoint: Checkpoint, *, img_size: int | tuple[int, int] | None = None
) -> tuple[MaskedAutoencoder, tuple[str, ...]]:
    """Build the model of a checkpoint without its decoder, whose weights stay on the meta device.

    Fine-tuned and many CrossMAE files have no final encoder norm; the model's norm then has weight 1 and bias 0.

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
    fill(model, checkpoint.path, state, wanted)
    return model.eval(), tuple(note for note in notes if not is_decoder(note))


def build_usable(checkpoint: Checkpoint) -> MaskedAutoencoder:
    """Build the whole model if the checkpoint has a decoder, else the encoder alone."""
    return build_model(checkpoint)[0] if checkpoint.has_decoder else build_encoder(checkpoint)[0]


def _may_lack_norm(checkpoint: Checkpoint) -> bool:
    """Whether a file of this kind may lack the final encoder norm: fine-tuned and CrossMAE files have other norms."""
    return checkpoint.kind == "fine-tuned" or checkpoint.dialect == CROSSMAE


def is_decoder(key: str) -> bool:
    """Whether a tensor, by its official name, belongs to the decoder."""
    return key.startswith("decoder_") or key == "mask_token"


def load_weights(model: MaskedAutoencoder, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Copy a checkpoint's weights into an existing model.

    The image sizes may differ, and the file may lack a decoder: the model's tensors that the file lacks are kept.

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
    other_sizes, as_options = _other_sizes(checkpoint, model.config)
    refuse_misfit(checkpoint.named, missing, misshapen, f"{other_sizes}; type {as_options}" if other_sizes else None)
    refuse_not_finite(checkpoint.path, state)
    notes += (other_sizes,) if other_sizes else ()  # the number of heads does not show in the shapes
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
    """Names of the position tables that do not follow the sine-cosine formula, so that they fit one grid only."""
    grid = checkpoint.config.grid
    return [key for key in _TABLES if key in checkpoint.state and not follows_formula(checkpoint.state[key], grid)]


def fit_tables(
    checkpoint: Checkpoint, grid: tuple[int, int], *, scaled_positions: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A checkpoint's tensors with position tables for another grid, and messages about the changes.

    Sine-cosine tables are computed again; other tables are resampled (bicubic).

    Args:
        checkpoint: The checkpoint.
        grid: Patches as (rows, columns).
        scaled_positions: Scale the formula's positions to the file's grid. This is better for a model that is used
            without further training; for training, the unscaled positions work as well, and other programs expect them.
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


def fill(model: nn.Module, path: Path, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Give a model without storage the tensors of a file, in float32, after a check that the ``wanted`` ones fit.

    Raises:
        CheckpointError: Tensors are missing, misshapen or non-finite.
    """
    missing, _, misshapen = compare_shapes(state, wanted)
    refuse_misfit(path, missing, misshapen)
    refuse_not_finite(path, state)
    model.load_state_dict({key: tensor.float() for key, tensor in state.items()}, assign=True, strict=False)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has no NaN or infinity in float32, by its sum; checks each value only if the sum overflows."""
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.float().isfinite().all())


def _known(state: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    known = {key: tensor for key, tensor in state.items() if key in wanted}
    unknown = [key for key in state if key not in wanted]
    if not unknown:
        return known, ()
    return known, (f"{len(unknown)} tensors of the file are not part of the model and stay unused: {a_few(unknown)}",)


def refuse_not_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    """Check that no tensor holds NaN or infinity.

    Raises:
        CheckpointError: A tensor does.
    """
    bad = [key for key, tensor in state.items() if not is_finite(tensor)]
    if bad:
        raise CheckpointError(
            f"{path}: {a_few(bad)} {'hold' if len(bad) > 1 else 'holds'} NaN or infinity",
            hint="the training that wrote it had diverged, or the file is damaged; use an earlier checkpoint",
        )


def _other_sizes(checkpoint: Checkpoint, wanted: MAEConfig) -> tuple[str, str]:
    """Message about sizes in which a file's model differs from the model it is loaded into, and the options for them.

    Both are empty if they agree. Image size and target do not matter for loading, and decoder sizes only if the file
    has a decoder.
    """
    differing = [
        (name, ours, theirs)
        for name, ours, theirs in wanted.differences(checkpoint.config)
        if name not in ("img_size", "norm_pix_loss", *checkpoint.assumed)
        and (checkpoint.has_decoder or not is_decoder(name))
    ]
    if not differing:
        return "", ""
    told = ", ".join(f"{name} is {ours:g} here and {theirs:g} in the file" for name, ours, theirs in differing)
    as_options = " ".join(f"{flag_name(name)} {theirs:g}" for name, _, theirs in differing)
    return f"the file's model has other sizes: {told}", as_options


def refuse_misfit(
    path: Path,
    missing: list[str],
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]],
    other_sizes: str | None = None,
) -> None:
    """Check that no tensors are missing or have another shape, by the result of ``compare_shapes``.

    Args:
        path: The file.
        missing, misshapen: Result of ``compare_shapes``.
        other_sizes: Message about differing sizes, which explains the misfit; None if there is none.

    Raises:
        CheckpointError: There are such tensors.
    """
    if misshapen:
        key, wanted, got = misshapen[0]
        others = f" (and {len(misshapen) - 1} more)" if len(misshapen) > 1 else ""
        raise CheckpointError(f"{path}: {key} must be {wanted}; got {got}{others}", hint=other_sizes)
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} tensors of the model: {a_few(missing)}",
            hint=other_sizes or f"`maecli compare --official {typed(path)}` lists every one",
        )


def _no_decoder(checkpoint: Checkpoint) -> CheckpointError:
    size = (checkpoint.variant or "vit_base").removeprefix("vit_")
    size = size if size in ("base", "large", "huge") else "base"
    example = f"for instance {OFFICIAL_BASE}/visualize/mae_visualize_vit_{size}.pth"
    what = "an encoder only"
    if checkpoint.kind == "fine-tuned":
        what = "a classifier"
        start = checkpoint.args.get("finetune")  # the weights that it was trained from
        others = start and start != BUILTIN
        known = f"those that it was trained from, {typed(str(start))}, or" if others else "for instance"
        example = f"{known} the built-in ones, builtin"
    return CheckpointError(
        f"{checkpoint.path} holds {what}: the decoder (mask_token, decoder_embed, decoder_blocks, "
        "decoder_norm, decoder_pred) is missing, so it cannot reconstruct an image",
        hint=f"use weights with a decoder, {example}",
    )
