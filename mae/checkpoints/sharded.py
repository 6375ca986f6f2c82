"""Sharded checkpoints (torch.distributed.checkpoint): folders that are read as a whole or into a sharded model."""

from __future__ import annotations

import json
import math
import pickle
import warnings
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from mae.checkpoints.container import SHARD_TABLE
from mae.errors import CheckpointError

ABOUT = "about.json"
LARGEST_TABLE = 64_000_000  # bytes; that of a ViT-Huge in 8 parts has half a million

_MODULE = "torch.distributed.checkpoint."
_ALLOWED = {
    *((_MODULE + "metadata", name) for name in (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "_MEM_FORMAT_ENCODING", "MetadataIndex", "StorageMeta",
    )),
    (_MODULE + "filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    *(("torch", name) for name in (
        "float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool",
    )),
}  # fmt: skip
# Classes of the path that torch records, by the system that wrote it; Python 3.13 has them in another module.
_PATHS = {"PosixPath", "PurePosixPath", "WindowsPath"}


class _Table(pickle.Unpickler):
    """Unpickler of a folder's metadata that allows known classes only; torch's own would run arbitrary code."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("pathlib", "pathlib._local") and name in _PATHS:
            return PurePath
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


class ShardReader(FileSystemReader):
    """torch's reader with a safe unpickler, which also checks that the metadata does not exceed the files' sizes.

    Raises:
        CheckpointError: The metadata is damaged or unsafe (raised by ``read_metadata``).
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the metadata, the table of the folder's contents."""
        path = self.folder / SHARD_TABLE
        try:
            if path.stat().st_size > LARGEST_TABLE:
                raise pickle.UnpicklingError(f"it is longer than {LARGEST_TABLE:,} bytes")
            with path.open("rb") as file:
                metadata: Metadata = _Table(file).load()
            needed = sum(
                math.prod(entry.size) * entry.properties.dtype.itemsize
                for entry in metadata.state_dict_metadata.values()
                if isinstance(entry, TensorStorageMetadata)
            )
        except Exception as error:  # bytes that are no pickle can fail in any way
            raise CheckpointError(f"{path} is refused: {error}", hint="nothing of it was run") from None
        if needed > sum(part.stat().st_size for part in self.folder.glob("*.distcp")):
            raise CheckpointError(f"{self.folder} is damaged: its table claims more numbers than its parts hold")
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


def read_about(folder: Path) -> dict[str, Any]:
    """Read the folder's values other than tensors.

    Raises:
        CheckpointError: The folder is incomplete.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder} is damaged: {ABOUT} cannot be read ({type(error).__name__})") from None
    if not isinstance(about, dict) or not (folder / SHARD_TABLE).is_file():
        raise CheckpointError(f"{folder} is damaged: a part of it is missing")
    return about


def read_into(folder: Path, tensors: dict[str, Tensor], process_group: Any = None) -> None:
    """Read the folder's entries into tensors of the same names; sharded tensors get this process's part.

    Args:
        folder: The folder.
        tensors: Tensors by name, of the right shapes.
        process_group: The processes that read together; None if this process reads alone.

    Raises:
        CheckpointError: The folder is damaged.
    """
    alone = process_group is None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
            load(tensors, storage_reader=ShardReader(folder), process_group=process_group, no_dist=alone)
    except CheckpointError:
        raise
    except (Exception, CheckpointException) as error:
        cause = first_cause(error)
        if isinstance(cause, CheckpointError):
            raise cause from None
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[-1]
        raise CheckpointError(f"{folder} is damaged: {reason}") from None


def first_cause(error: BaseException) -> BaseException:
    """The first error of a process, if torch has wrapped those of all processes in an error, which is no Exception."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


def read_whole(folder: Path) -> dict[str, Any]:
    """Read the full tensors of the model, and the folder's other values.

    Raises:
        CheckpointError: The folder is damaged.
    """
    about = read_about(folder)
    table = ShardReader(folder).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in table.items()
        if name.startswith("model.") and isinstance(entry, TensorStorageMetadata)
    }
    read_into(folder, tensors)
    own = {name: value for name, value in about.items() if name not in ("args", "param_groups")}
    epoch = about.get("position", {}).get("epoch", 0) - 1
    model = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    return {"model": model, "args": about.get("args", {}), "epoch": epoch, "maecli": own}
