"""Convert a checkpoint for another tool, then verify that the tool computes the same outputs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae.checkpoints import Checkpoint, load_checkpoint
from mae.checkpoints.build import build_usable, is_decoder
from mae.checkpoints.classifiers import (
    about_classes,
    build_classifier,
    class_names,
    folded,
    has_head,
    pool_of,
)
from mae.checkpoints.dialects import to_hugging_face
from mae.checkpoints.run_states import CLASSIFIER, run_states
from mae.checkpoints.save import save, save_safetensors
from mae.comparison.libraries import (
    hugging_face_config,
    is_installed,
    load_transformers,
    timm_logits,
    timm_model,
    widest_dtype,
)
from mae.comparison.stages import TOLERANCES
from mae.errors import CheckpointError, ConfigError, MaeError
from mae.exporting.config import ENDINGS, GRAPHS, ExportConfig
from mae.exporting.graphs import data_file, read_graph, refuse_missing, write_graph
from mae.exporting.served import served
from mae.io.download import obeys_offline
from mae.io.files import refuse_input, refuse_place, write_atomically
from mae.io.notebook import Drawn, Table
from mae.io.text import a_few

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BATCHES = (1, 3)  # images that a graph is run on
GRAPH_TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}
_SEED = 0  # of the image and the mask that the check computes with
_MASK_RATIO = 0.75
_HUGGING_FACE_FILES = ("config.json", "model.safetensors")


@dataclasses.dataclass(frozen=True)
class ExportResult(Drawn):
    """What was written and how it was checked.

    Attributes:
        out: The written file, or the folder for transformers.
        tensors, parameters: Numbers of written tensors and of their values.
        size_bytes: Size of the file with the weights.
        checked_by: The library whose forward pass was compared with ours, or our own reader.
        output: The compared output: "prediction", "features" or "logits".
        difference: Largest relative difference of that output, in float64; for a graph in its own precision.
        dtype: Number formats of the written weights, for instance "float32".
        rounding: The relative difference of that output from the checkpoint's own, where ``--dtype`` changed it;
            a graph computes in its format, and of other files the rounded weights alone count.
        notes: Messages for the user.
    """

    out: Path
    to: str
    tensors: int
    parameters: int
    size_bytes: int
    checked_by: str
    output: str
    difference: float
    notes: tuple[str, ...]
    dtype: str = "float32"
    rounding: float | None = None

    def _table(self) -> Table:
        return Table(
            f"written for {self.to}",
            [
                ("file", self.out),
                ("tensors", self.tensors),
                ("parameters", self.parameters),
                ("MB", self.size_bytes / 1e6),
                ("number format", self.dtype),
                ("checked by", self.checked_by),
                (f"relative difference of the {self.output}", self.difference),
                *([("loss of accuracy", self.rounding)] if self.rounding is not None else []),
            ],
        )


@obeys_offline
def export(config: ExportConfig, on_step: Callable[[str], None] = lambda step: None) -> ExportResult:
    """Write a checkpoint in another layout and check it: every tensor bit for bit, and a forward pass.

    A graph (ONNX, torch.export) takes normalised images, a batch of any size, and gives the encoder's features; of a
    fine-tuned file the logits. It is run and compared with the model.

    Args:
        config: What to write.
        on_step: Told what is being done.

    Raises:
        ConfigError: The layout cannot hold this model, or it cannot be written there.
        CheckpointError: The checkpoint cannot be used.
        MaeError: It was written, and the check failed.
    """
    on_step("reading")
    checkpoint = load_checkpoint(
        config.checkpoint, num_heads=config.num_heads, decoder_num_heads=config.decoder_num_heads
    )
    if has_head(checkpoint):  # a linear probe's batch norm becomes part of a plain head
        checkpoint = dataclasses.replace(checkpoint, state=folded(checkpoint.state))
    _refuse_misfit(config.to, checkpoint)
    if config.to in GRAPHS:
        refuse_missing(config.to)
    out = config.out or checkpoint.named.with_name(f"{checkpoint.named.stem}{ENDINGS[config.to]}")
    refuse_place(out, "--out", folder=config.to == "hf")
    for file in [out / name for name in _HUGGING_FACE_FILES] if config.to == "hf" else [out]:
        refuse_input(file, "--out", _inputs(checkpoint), folders=[checkpoint.path])
    if config.to == "onnx":
        refuse_input(data_file(out), "--out", _inputs(checkpoint), folders=[checkpoint.path])
    build_usable(checkpoint)  # refuses a broken file before anything is written
    if config.dtype == "fp16":
        _refuse_overflow(checkpoint, decoder=config.to in ("official", "hf", "safetensors"))
    result = (_export_graph if config.to in GRAPHS else _export_state)(config, checkpoint, out, on_step)
    tolerance = GRAPH_TOLERANCES[_DTYPES[config.dtype or "fp32"]] if config.to in GRAPHS else TOLERANCES["float64"]
    if not result.difference <= tolerance:
        raise MaeError(
            f"{out} is written, but {result.checked_by} computes another {result.output} with it (relative difference "
            f"{result.difference:.1e}; tolerance {tolerance:.0e})"
        )
    return result


def _export_state(
    config: ExportConfig, checkpoint: Checkpoint, out: Path, on_step: Callable[[str], None]
) -> ExportResult:
    """Write the tensors in another layout, read them back, and compute with them."""
    without_decoder = config.to in ("encoder", "timm")
    kept = {key: tensor for key, tensor in checkpoint.state.items() if not (without_decoder and is_decoder(key))}
    if config.to == "encoder":
        kept = {key: tensor for key, tensor in kept.items() if not key.startswith("head.")}
    state = {key: _in_format(tensor, config.dtype) for key, tensor in kept.items()}
    written_as = dataclasses.replace(checkpoint, state=state)

    on_step("writing")
    written = _WRITERS[config.to](out, state, written_as)
    on_step("checking")
    again = load_checkpoint(
        out, num_heads=checkpoint.config.num_heads, decoder_num_heads=checkpoint.config.decoder_num_heads
    )
    _check_bits(out, state, again.state)
    checked_by, output, difference = _check_forward(config.to, out, written_as, again)
    rounding = None
    if any(state[key].dtype != tensor.dtype for key, tensor in kept.items()):
        before = dataclasses.replace(checkpoint, state=kept)
        rounding = _difference(_own_output(written_as), _own_output(before))
    return ExportResult(
        out=out,
        to=config.to,
        tensors=len(state),
        parameters=sum(tensor.numel() for tensor in state.values()),
        size_bytes=written.stat().st_size,
        checked_by=checked_by,
        output=output,
        difference=difference,
        notes=(*checkpoint.notes, *_unknown_target(config.to, checkpoint)),
        dtype=" ".join(written_as.dtypes),
        rounding=rounding,
    )


@torch.no_grad()
def _export_graph(
    config: ExportConfig, checkpoint: Checkpoint, out: Path, on_step: Callable[[str], None]
) -> ExportResult:
    """Trace the encoder, or the classifier, write the graph, and run it on batches of other sizes."""
    dtype = _DTYPES[config.dtype or "fp32"]
    on_step("tracing")
    model = served(checkpoint, dtype)
    written = write_graph(config.to, out, model)
    on_step("checking")
    run = read_graph(config.to, out)
    stream = torch.Generator().manual_seed(_SEED)
    shape = (checkpoint.config.in_chans, *checkpoint.config.img_size)
    batches = [torch.randn(count, *shape, generator=stream) for count in _BATCHES]
    outputs = [run(images) for images in batches]
    difference = max(_difference(got, model(images).double()) for got, images in zip(outputs, batches, strict=True))
    tensors = model.state_dict().values()
    size, output = written.stat().st_size, model.output
    parameters = sum(tensor.numel() for tensor in tensors)
    rounding = None
    if dtype != torch.float32:
        model = served(checkpoint, torch.float32)
        rounding = _difference(outputs[-1], model(batches[-1]).double())
    return ExportResult(
        out=out,
        to=config.to,
        tensors=len(tensors),
        parameters=parameters,
        size_bytes=size,
        checked_by={"onnx": "onnxruntime", "torch-export": "torch.export"}[config.to],
        output=output,
        difference=difference,
        notes=checkpoint.notes,
        dtype=str(dtype).removeprefix("torch."),
        rounding=rounding,
    )


def _in_format(tensor: Tensor, dtype: str | None) -> Tensor:
    return tensor.to(_DTYPES[dtype]) if dtype is not None and tensor.is_floating_point() else tensor


def _inputs(checkpoint: Checkpoint) -> dict[str, list[Path]]:
    """The files that are read, and the saved states of the run that the checkpoint lies in.

    transformers keeps the sizes in a file beside the weights.
    """
    run = checkpoint.path.parent
    beside = [checkpoint.path.with_name(_HUGGING_FACE_FILES[0])] if checkpoint.dialect.startswith("huggingface") else []
    return {
        "the checkpoint": [checkpoint.path],
        "the checkpoint's config.json": beside,
        "a saved state of the same run": [*run_states(run), run / CLASSIFIER],
    }


def _refuse_overflow(checkpoint: Checkpoint, *, decoder: bool) -> None:
    """Refuse weights, without the decoder's if that is not written, that would become infinite in fp16."""
    most = torch.finfo(torch.float16).max
    written = [(key, tensor) for key, tensor in checkpoint.state.items() if decoder or not is_decoder(key)]
    large = [key for key, tensor in written if tensor.numel() and tensor.abs().max() > most]
    if large:
        raise ConfigError(
            f"--dtype fp16: {a_few(large)} {'hold' if len(large) > 1 else 'holds'} values above {most:,.0f}, the "
            "largest in fp16",
            hint="use --dtype fp32, or bf16 in another format than onnx",
        )


def _refuse_misfit(to: str, checkpoint: Checkpoint) -> None:
    if to == "hf" and not checkpoint.has_decoder:
        raise ConfigError(
            f"--to hf: {checkpoint.path} has no decoder, and transformers' ViTMAE would start with a random one",
            hint="--to timm writes the encoder",
        )
    if to == "hf" and checkpoint.config.img_size[0] != checkpoint.config.img_size[1]:
        raise ConfigError("--to hf: transformers' ViTMAE takes square images only", hint="--to safetensors holds any")


def _unknown_target(to: str, checkpoint: Checkpoint) -> tuple[str, ...]:
    if to != "hf" or checkpoint.norm_pix_loss is not None:
        return ()
    return ("the file does not say what its decoder predicts: norm_pix_loss is false in config.json",)


def _write_pth(out: Path, state: Mapping[str, Tensor], checkpoint: Checkpoint) -> Path:
    # torch.save writes a tensor's whole storage, which for a mapped file is the whole file.
    save(out, {"model": {key: tensor.clone() for key, tensor in state.items()}, "maecli": _own_entry(checkpoint)})
    return out


def _write_safetensors(out: Path, state: Mapping[str, Tensor], checkpoint: Checkpoint) -> Path:
    save_safetensors(out, state, {"maecli": json.dumps(_own_entry(checkpoint))})
    return out


def _write_timm(out: Path, state: Mapping[str, Tensor], checkpoint: Checkpoint) -> Path:
    named = {"maecli": json.dumps(_own_entry(checkpoint))} if has_head(checkpoint) else {}
    save_safetensors(out, state, named)
    return out


def _write_hugging_face(out: Path, state: Mapping[str, Tensor], checkpoint: Checkpoint) -> Path:
    settings = {"model_type": "vit_mae", "architectures": ["ViTMAEForPreTraining"], "mask_ratio": _MASK_RATIO}
    settings |= hugging_face_config(checkpoint.config) | {"hidden_act": "gelu", "qkv_bias": True}
    settings["dtype"] = str(widest_dtype(state)).removeprefix("torch.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(settings, indent=2) + "\n"
        write_atomically(out / _HUGGING_FACE_FILES[0], lambda file: file.write(text.encode()))
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror}") from None
    save_safetensors(out / _HUGGING_FACE_FILES[1], to_hugging_face(state), {})
    return out / _HUGGING_FACE_FILES[1]


def _own_entry(checkpoint: Checkpoint) -> dict[str, Any]:
    """The sizes, and what the decoder predicts where that is known, for our own reader."""
    sizes = dataclasses.asdict(checkpoint.config)
    if checkpoint.norm_pix_loss is None:
        del sizes["norm_pix_loss"]
    entry: dict[str, Any] = {"config": sizes}
    if has_head(checkpoint):
        names, told = class_names(checkpoint)
        entry |= about_classes(names, pool_of(checkpoint)) if told else {"pool": pool_of(checkpoint)}
    return entry


_WRITERS: dict[str, Callable[[Path, Mapping[str, Tensor], Checkpoint], Path]] = {
    "official": _write_pth,
    "encoder": _write_pth,
    "timm": _write_timm,
    "hf": _write_hugging_face,
    "safetensors": _write_safetensors,
}


def _check_bits(out: Path, wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    changed = [
        key
        for key, tensor in wanted.items()
        if key not in got or got[key].dtype != tensor.dtype or not torch.equal(got[key], tensor)
    ]
    if changed or len(got) != len(wanted):
        raise MaeError(f"{out} is written, but reads back differently: {', '.join(changed[:4]) or 'more tensors'}")


@torch.no_grad()
def _check_forward(to: str, out: Path, checkpoint: Checkpoint, again: Checkpoint) -> tuple[str, str, float]:
    """Who computed, what, and how far it is from ours."""
    imgs, noise = _check_inputs(checkpoint)
    output = "prediction" if again.has_decoder else "logits" if has_head(again) else "features"
    wanted = _own_output(checkpoint)
    if to == "hf" and is_installed("transformers"):
        checked_by, got = "transformers", load_transformers(out)(imgs, noise=noise).logits
    elif output == "logits" and to in ("timm", "official", "safetensors") and is_installed("timm"):
        checked_by, got = "timm", timm_logits(again, imgs)
    elif to == "timm" and is_installed("timm") and "norm.weight" in again.state:
        model = timm_model(checkpoint.config)
        model.load_state_dict({key: again.state[key] for key in model.state_dict()}, assign=True)
        checked_by, got = "timm", model.eval().double().forward_features(imgs)
    else:
        checked_by, got = "our own reading", _own_output(again)
    return checked_by, output, _difference(got, wanted)


def _check_inputs(checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """An image and the noise that decides its mask."""
    stream = torch.Generator().manual_seed(_SEED)
    sizes = checkpoint.config
    imgs = torch.randn(1, sizes.in_chans, *sizes.img_size, generator=stream, dtype=torch.float64)
    return imgs, torch.rand(1, sizes.num_patches, generator=stream)


@torch.no_grad()
def _own_output(checkpoint: Checkpoint) -> Tensor:
    """What our model computes with these weights, in float64: the prediction, the logits, or the features."""
    imgs, noise = _check_inputs(checkpoint)
    if has_head(checkpoint) and not checkpoint.has_decoder:
        logits: Tensor = build_classifier(checkpoint)[0].double()(imgs)
        return logits
    model = build_usable(checkpoint).double()
    return model(imgs, _MASK_RATIO, noise)[1] if checkpoint.has_decoder else model.encode(imgs)


def _difference(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())
