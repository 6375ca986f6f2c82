"""Read a checkpoint of any layout, memory-mapped and without running code from it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae.checkpoints.builtin import BUILTIN, DEFAULT_RUN, builtin_file, builtin_folder
from mae.checkpoints.container import GET_IT_AGAIN, OWN_MODEL_TYPE, Container, container_of, find_file
from mae.checkpoints.dialects import (
    CROSSMAE,
    crossmae_encoder,
    foreign_layout,
    from_hugging_face,
    hugging_face_dialect,
    is_crossmae,
    is_hugging_face,
    other_encoder,
    unwrap,
)
from mae.checkpoints.hub import LICENCE_NOTE, fetch, release_named, release_of
from mae.checkpoints.pos_tables import grid_of
from mae.checkpoints.run_states import run_classifier, run_states
from mae.checkpoints.safety import USABLE_TYPES, unusable_type
from mae.checkpoints.sizes import Declared, config_from_shapes, variant_of
from mae.config import MAEConfig, format_size, parse_size
from mae.errors import CheckpointError
from mae.io.download import no_downloads
from mae.io.text import a_few, first_line, shown

_CROSSMAE_NOTE = (
    "a CrossMAE file: its encoder is read, but not its decoder, which attends to the encoder's tokens only; embed, "
    "evaluate, --init and export --to encoder, timm or onnx can use it"
)
OTHER_WEIGHTS_NOTE = (
    "--checkpoint takes others: a file, a run, or a released name such as mae_visualize_vit_base; `maecli pretrain "
    "FOLDER` trains your own"
)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: its properties, and its tensors under the official release's names.

    Attributes:
        path: Path of the file.
        kind: "full", "encoder", "fine-tuned" or "training" (a trainer's file, with its optimiser).
        dialect: Naming scheme of the file's keys: "official", "maecli", "timm", "huggingface" ...
        config: Sizes derived from the shapes; ``norm_pix_loss`` is False if unknown.
        variant: Name of the variant of these sizes, if there is one.
        norm_pix_loss: Whether it predicts normalised patches; None if the file does not say.
        state: Tensors under official names, memory-mapped from the file and read when used.
        epoch: Epoch a trainer wrote, counted from 0.
        args: Options a trainer wrote.
        optimizer, scaler: States a trainer wrote.
        extra: The file's other entries.
        notes: Messages for the user.
        assumed: Fields of ``config`` that were assumed because the file does not give them.
    """

    path: Path
    kind: str
    dialect: str
    config: MAEConfig
    variant: str | None
    norm_pix_loss: bool | None
    state: dict[str, Tensor]
    epoch: int | None
    args: dict[str, Any]
    optimizer: dict[str, Any] | None
    scaler: dict[str, Any] | None
    extra: dict[str, Any]
    notes: tuple[str, ...]
    assumed: tuple[str, ...]

    @property
    def has_decoder(self) -> bool:
        """Whether the file has a decoder, so that it can reconstruct images."""
        return any(key.startswith("decoder_") for key in self.state)

    @property
    def num_parameters(self) -> int:
        """Number of values of all model tensors in the file, fixed position tables included."""
        return sum(tensor.numel() for tensor in self.state.values())

    @property
    def is_builtin(self) -> bool:
        """Whether these are the built-in weights."""
        return self.path.parent == builtin_folder()

    @property
    def named(self) -> Path:
        """What a user types for it: ``builtin`` for the built-in weights, else its path."""
        return Path(BUILTIN) if self.is_builtin else self.path

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The tensors' types, for instance ("float32",)."""
        return tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in self.state.values()}))


def load_checkpoint(
    path: str | Path,
    *,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
    offline: bool = False,
) -> Checkpoint:
    """Read a checkpoint of any dialect on the CPU, memory-mapped.

    Args:
        path: A ``.pth``, ``.pt``, ``.bin`` or ``.safetensors`` file, a Hugging Face model's folder, a run's folder
            (its classifier if it has one, else its newest state that can be read) or one of its states in shards;
            ``builtin`` for the weights that come with the package; or the name of a released file such as
            ``mae_visualize_vit_base`` or ``facebook/vit-mae-base``, which is downloaded once.
        num_heads, decoder_num_heads: Numbers of attention heads, if the file does not give them.
        offline: Whether downloads are refused.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe, or not a masked autoencoder of images.
    """
    if (classifier := run_classifier(Path(path))) is not None:
        return _load(classifier, num_heads, decoder_num_heads)
    if states := run_states(Path(path)):
        return _newest_readable(states, lambda state: _load(state, num_heads, decoder_num_heads))
    with no_downloads(offline):
        path = _locate(path)
    return _load(path, num_heads, decoder_num_heads)


def load_checkpoint_or_default(path: Path | None) -> Checkpoint:
    """Load the given checkpoint; if ``path`` is None, the run in the folder ``run``, else the built-in weights.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    if path is not None or run_states(DEFAULT_RUN):
        return load_checkpoint(path or DEFAULT_RUN)
    where = f"--checkpoint is not given and the folder {DEFAULT_RUN} holds no run with a saved state"
    try:
        checkpoint = _load(builtin_file(), None, None)
    except CheckpointError as error:
        raise CheckpointError(f"no weights: {where}; {error.message}", hint=error.hint) from None
    notes = (f"{where}: {_described(checkpoint)}", OTHER_WEIGHTS_NOTE)
    return replace(checkpoint, notes=(*notes, *checkpoint.notes))


def _described(checkpoint: Checkpoint) -> str:
    """A short description of the built-in weights: model size, image size and training data."""
    own = checkpoint.extra.get("maecli")
    trained_on = own.get("trained_on") if isinstance(own, Mapping) else None
    words = [
        f"{checkpoint.variant or 'a model'} of {checkpoint.num_parameters / 1e6:.1f} million parameters",
        f"images of {format_size(checkpoint.config.img_size)} pixels",
        *([f"trained on {shown(trained_on, 200)}"] if isinstance(trained_on, str) else []),
    ]
    return f"these are the built-in weights ({', '.join(words)})"


def _newest_readable(states: Sequence[Path], load: Callable[[Path], Checkpoint]) -> Checkpoint:
    """Load the newest readable state of a run; its notes say why newer ones cannot be read."""
    broken: list[CheckpointError] = []
    for state in states:
        try:
            checkpoint = load(state)
        except CheckpointError as error:
            broken.append(error)
        else:
            notes = tuple(f"{error.message}; {state} is read instead" for error in broken)
            return replace(checkpoint, notes=(*notes, *checkpoint.notes))
    raise broken[0]


def _load(path: Path, num_heads: int | None, decoder_num_heads: int | None) -> Checkpoint:
    """Read one file, or a folder of shards."""
    if path.is_dir():
        from mae.checkpoints.sharded import read_whole  # costs half a second, and few files are folders

        container = Container.SHARDS
        tensors, others = unwrap(read_whole(path))
    else:
        container = container_of(path)
        tensors, others = unwrap(_read(path, container))
        _refuse_inflated(path, tensors)
    state, dialect = _official(tensors, container, others)
    declared = _declared(path, dialect, others)
    declared = replace(
        declared,
        num_heads=num_heads or declared.num_heads,
        decoder_num_heads=decoder_num_heads or declared.decoder_num_heads,
        grid=_grid(state),
    )
    if not {"patch_embed.proj.weight", "cls_token"} & set(state):
        raise CheckpointError(
            f"{path} is not a masked autoencoder that can be read: {_what_it_holds(tensors)}",
            hint="the model's own code, timm or transformers read it" if foreign_layout(tensors) else None,
        )
    if (other := other_encoder(state)) is not None:
        raise CheckpointError(
            f"{path} is {other}, whose encoder is not the official one",
            hint="used as one, its features would be wrong; the model's own code, timm or transformers read it",
        )
    _refuse_types(path, state)
    try:
        sizes = config_from_shapes({key: tuple(tensor.shape) for key, tensor in state.items()}, declared)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", hint=error.hint) from None
    config, notes = sizes.config, sizes.notes
    if dialect == CROSSMAE:
        notes = (_CROSSMAE_NOTE, *notes)
    has_decoder = any(key.startswith("decoder_") for key in state)
    args = others.pop("args", None)
    epoch = others.pop("epoch", None)
    optimizer, scaler = others.pop("optimizer", None), others.pop("scaler", None)
    if release_of(path.name) is not None or _hub_name(path).startswith("facebook/vit-mae"):
        notes = (LICENCE_NOTE, *notes)
    return Checkpoint(
        path=path,
        kind=_kind(state, has_decoder, trained=isinstance(optimizer, Mapping)),
        dialect=dialect,
        config=config,
        variant=variant_of(config, has_decoder=has_decoder),
        norm_pix_loss=declared.norm_pix_loss,
        state=state,
        epoch=epoch if isinstance(epoch, int) else None,
        args=_as_dict(args),
        optimizer=optimizer if isinstance(optimizer, dict) else None,
        scaler=scaler if isinstance(scaler, dict) else None,
        extra=others,
        notes=notes,
        assumed=sizes.assumed,
    )


def _locate(path: str | Path) -> Path:
    """A file of that name comes before the built-in weights and before a release of that name."""
    if str(path) == BUILTIN and not Path(path).exists():
        return builtin_file()
    release = None if Path(path).exists() else release_named(str(path))
    return fetch(release) if release else find_file(Path(path))


def _read(path: Path, container: Container) -> Any:
    if container is Container.SAFETENSORS:
        return _read_safetensors(path)
    try:
        # The official trainer stores its options as a Namespace; nothing else beyond plain data is allowed.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Only the zip format can be mapped; a legacy pickle is read whole.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=container is Container.ZIP or None)
    except Exception as error:  # a damaged file can raise almost any exception in the unpickler
        raise CheckpointError(f"{path} is damaged: {shown(first_line(error), 200)}", hint=GET_IT_AGAIN) from None


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            own = (file.metadata() or {}).get("maecli")
        return {"model": tensors} | ({"maecli": json.loads(own)} if own else {})
    except Exception as error:  # as above
        raise CheckpointError(f"{path} is damaged: {shown(str(error), 200)}", hint=GET_IT_AGAIN) from None


def _refuse_inflated(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors with more values than the file holds, and types that a model cannot use.

    A view with stride 0 can repeat a few bytes arbitrarily often, and many names can share the same bytes; copying
    them would fill the memory.
    """
    room = path.stat().st_size
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise CheckpointError(f"{path} is refused: {shown(key, 80)} is not a plain tensor")
        room -= tensor.numel() * tensor.element_size()
        if room < 0:
            raise CheckpointError(
                f"{path} is refused: its tensors claim more numbers than the file holds, at {shown(key, 80)} "
                f"{tuple(tensor.shape)}",
                hint="the file was made wrongly or to exhaust memory; get it from a source you trust",
            )


def _refuse_types(path: Path, state: Mapping[str, Tensor]) -> None:
    for key, tensor in state.items():
        number = str(tensor.dtype).removeprefix("torch.")
        # A scalar integer may be a counter; a tensor of integers or 8-bit floats holds quantised weights.
        if number not in USABLE_TYPES and (tensor.ndim or tensor.is_floating_point()):
            raise unusable_type(path, key, number)


def _official(
    tensors: dict[str, Tensor], container: Container, others: Mapping[str, Any]
) -> tuple[dict[str, Tensor], str]:
    if is_hugging_face(tensors):
        return from_hugging_face(tensors), hugging_face_dialect(tensors)
    if isinstance(others.get("maecli"), Mapping):
        return tensors, "maecli"
    if is_crossmae(tensors):
        return crossmae_encoder(tensors), CROSSMAE
    has_decoder = any(key.startswith("decoder_") for key in tensors)
    return tensors, "timm" if container is Container.SAFETENSORS and not has_decoder else "official"


def _declared(path: Path, dialect: str, others: Mapping[str, Any]) -> Declared:
    """Sizes stated by our own metadata, a trainer's options, config.json, or the released file's name."""
    release = release_of(path.name)
    known = release.norm_pix_loss if release else None
    if dialect.startswith("huggingface"):
        stated = _beside(path)
        return Declared(
            img_size=_size(stated.get("image_size")),
            num_heads=_count(stated.get("num_attention_heads")),
            decoder_num_heads=_count(stated.get("decoder_num_attention_heads")),
            norm_pix_loss=bool(stated.get("norm_pix_loss", False)) if stated else known,
        )
    own = others.get("maecli")
    config = own.get("config") if isinstance(own, Mapping) else _beside(path, OWN_MODEL_TYPE)
    if isinstance(config, Mapping) and config:
        normalised = config.get("norm_pix_loss")
        return Declared(
            img_size=_size(config.get("img_size")),
            num_heads=_count(config.get("num_heads")),
            decoder_num_heads=_count(config.get("decoder_num_heads")),
            norm_pix_loss=normalised if isinstance(normalised, bool) else None,
        )
    trained_with = _as_dict(others.get("args")).get("norm_pix_loss")
    return Declared(norm_pix_loss=trained_with if isinstance(trained_with, bool) else known)


def _grid(state: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """The grid of patches by a sine-cosine position table, which distinguishes a rectangle from a square; or None."""
    tables = [state[key] for key in ("pos_embed", "decoder_pos_embed") if key in state]
    return next((grid for table in tables if (grid := grid_of(table))), None)


def _size(stated: Any) -> tuple[int, int] | None:
    try:
        return parse_size(stated)
    except (TypeError, ValueError):
        return None


def _count(stated: Any) -> int | None:
    return stated if type(stated) is int and stated > 0 else None


def _beside(path: Path, model_type: str = "vit_mae") -> dict[str, Any]:
    """The config.json beside a file, if it is of that model type; else {}."""
    try:
        stated = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return stated if isinstance(stated, dict) and stated.get("model_type") == model_type else {}


def _hub_name(path: Path) -> str:
    return str(_beside(path).get("_name_or_path", ""))


def _kind(state: Mapping[str, Any], has_decoder: bool, *, trained: bool) -> str:
    if any(key.startswith(("head.", "fc_norm.")) for key in state):
        return "fine-tuned"
    if has_decoder:
        return "training" if trained else "full"
    return "encoder"


def _as_dict(args: Any) -> dict[str, Any]:
    if isinstance(args, argparse.Namespace):
        return vars(args)
    return dict(args) if isinstance(args, Mapping) else {}


def _what_it_holds(tensors: Mapping[str, Any]) -> str:
    layout = foreign_layout(tensors)
    if layout:
        return f"its keys are those of {layout}"
    if not tensors:
        return "it holds no tensors"
    return f"it holds no patch projection but {a_few(list(tensors))} ({len(tensors):,} tensors)"
