"""Write models as graphs that run without maecli: ONNX files and .pt2 files of torch.export."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae.data.transforms import channel_statistics
from mae.errors import CheckpointError, ConfigError
from mae.exporting.served import Served
from mae.io.files import write_atomically
from mae.io.text import first_line

DATA_SUFFIX = ".data"  # suffix of the file with the weights of a large ONNX file
LARGEST_ALONE = 1_800_000_000  # bytes of weights in an ONNX file without a second file; the format is limited to 2 GB
_INPUT = "images"
_TRACED_BATCH = 2  # torch would treat a batch size of 1 as a constant
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def refuse_missing(to: str) -> None:
    """Check that the libraries for an export format are installed, before anything is computed.

    Raises:
        ConfigError: A library is missing.
    """
    from importlib.util import find_spec

    missing = [name for name in _NEEDED if find_spec(name) is None] if to == "onnx" else []
    if missing:
        raise ConfigError(f"--to onnx needs {' and '.join(missing)}", hint="pip install 'maecli[onnx]'")


def write_graph(to: str, out: Path, model: Served) -> Path:
    """Trace a model for batches of any size and write the graph atomically.

    Returns:
        The file with the weights.

    Raises:
        CheckpointError: The graph cannot be written.
    """
    try:
        return (_write_onnx if to == "onnx" else _write_torch_export)(out, model)
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror or error}") from None


def read_graph(to: str, out: Path) -> Callable[[Tensor], Tensor]:
    """Load a written graph with onnxruntime or torch.export, and return a function that runs it on the CPU.

    Raises:
        ConfigError: The library cannot run the graph.
    """
    return (_read_onnx if to == "onnx" else _read_torch_export)(out)


def _write_torch_export(out: Path, model: Served) -> Path:
    program = _traced(model)
    # torch.export.save requires this suffix. The file is moved into place when it is complete.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out.resolve().parent) as folder:
        file = Path(folder) / "model.pt2"
        with _without_noise():
            torch.export.save(program, file, extra_files={"maecli.json": json.dumps(_description(model))})
        _move_into_place(file, out)
    return out


def _read_torch_export(out: Path) -> Callable[[Tensor], Tensor]:
    with _without_noise():
        module = torch.export.load(out).module()

    def run(images: Tensor) -> Tensor:
        result: Tensor = module(images)
        return result

    return run


def _write_onnx(out: Path, model: Served) -> Path:
    with _without_noise():
        program = torch.onnx.export(
            _traced(model),
            input_names=[_INPUT],
            output_names=[model.output],
            dynamic_shapes={_INPUT: {0: "batch"}},
            verbose=False,
        )
    if program is None:
        raise CheckpointError(f"cannot write {out}: torch could not convert the model to an ONNX graph")
    program.model.metadata_props.update({name: json.dumps(value) for name, value in _description(model).items()})
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    apart = weights > LARGEST_ALONE
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out.resolve().parent) as folder:
        file = Path(folder) / out.name  # the final name, because the graph contains the name of its weights' file
        program.save(file, external_data=apart)
        if apart:
            _move_into_place(file.with_name(f"{file.name}{DATA_SUFFIX}"), data_file(out))
        _move_into_place(file, out)
    return data_file(out) if apart else out


def data_file(out: Path) -> Path:
    """Path of the file with the weights of a large ONNX file."""
    return out.with_name(f"{out.name}{DATA_SUFFIX}")


def _move_into_place(file: Path, out: Path) -> None:
    with file.open("rb") as source:
        write_atomically(out, lambda target: shutil.copyfileobj(source, target, 1 << 22))


def _read_onnx(out: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has its own exception classes without a common base class
        reason = first_line(error)[:200]
        raise ConfigError(f"{out} is written, but onnxruntime cannot run it on a CPU: {reason}") from None

    def run(images: Tensor) -> Tensor:
        (result,) = session.run(None, {_INPUT: images.numpy()})
        return torch.from_numpy(result)

    return run


def _traced(model: Served) -> Any:
    sizes = model.config
    images = torch.zeros(_TRACED_BATCH, sizes.in_chans, *sizes.img_size)
    with torch.no_grad(), _without_noise():
        return torch.export.export(model, (images,), dynamic_shapes={_INPUT: {0: torch.export.Dim("batch")}})


def _description(model: Served) -> dict[str, Any]:
    """What a user of the graph needs to know: the image size and how pixels are normalised."""
    mean, std = channel_statistics(model.config.in_chans)
    return {
        "input": f"{_INPUT}: (batch, channels, height, width), float32, (pixels / 255 - mean) / std",
        "output": model.output,
        "image_size": list(model.config.img_size),
        "mean": list(mean),
        "std": list(std),
    }


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Suppress warnings and log lines of the libraries, because they do not help the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
