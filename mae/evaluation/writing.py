"""Writes features to a file for other tools, in pieces, so that memory does not grow with the number of images."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from mae.errors import ConfigError
from mae.evaluation.store import PartStore
from mae.io.files import write_atomically

CHUNK = 4096  # names in memory at once


class Embedding(NamedTuple):
    """The features to write, with names and labels.

    Attributes:
        store: The store of the features.
        array: Name of the features' array in the store.
        shape: Shape of one image's features.
        dtype: Number format to write, "float32" or "float16".
        rows: Number of images.
        name: Returns the name of the image of a row.
        labels: Indices into ``classes``, (rows,); -1 for images without a class.
        classes: Names of the class folders.
        settings: Everything that the features depend on.
    """

    store: PartStore
    array: str
    shape: tuple[int, ...]
    dtype: str
    rows: int
    name: Callable[[int], str]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    settings: Mapping[str, Any]

    def pieces(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """(first row, features) of each part with readable images, in order."""
        row = 0
        for part in self.store.parts:
            piece = self.store.read(part, self.array)
            if len(piece):
                yield row, piece
            row += len(piece)

    def label_of(self, row: int) -> str:
        """Name of the class of a row; empty if it has none."""
        number = int(self.labels[row])
        return self.classes[number] if number >= 0 else ""


def check_writable(path: Path) -> None:
    """Check that the file format can be written, before anything is computed.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise ConfigError(
                f"--out {path}: writing Parquet needs pyarrow", hint="pip install 'maecli[parquet]'"
            ) from None


def write_embedding(path: Path, embedding: Embedding) -> None:
    """Write the file atomically.

    Raises:
        OSError: The file cannot be written; an existing file is unchanged.
    """
    write = _WRITERS[path.suffix.lower()]
    write_atomically(path, lambda file: write(file, embedding))


def _npz(file: IO[bytes], embedding: Embedding) -> None:
    """Write features, names, labels, classes and settings; ``numpy.load`` reads them without pickle."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("features.npy", "w", force_zip64=True) as member:
            _header(member, embedding.dtype, (embedding.rows, *embedding.shape))
            for _, piece in embedding.pieces():
                member.write(np.ascontiguousarray(piece).data)
        width = max((len(embedding.name(row)) for row in range(embedding.rows)), default=1)
        kind = np.dtype(f"<U{max(1, width)}")
        with archive.open("names.npy", "w", force_zip64=True) as member:
            _header(member, kind.str, (embedding.rows,))
            for start in range(0, embedding.rows, CHUNK):
                names = [embedding.name(row) for row in range(start, min(embedding.rows, start + CHUNK))]
                member.write(np.array(names, dtype=kind).tobytes())
        for name, array in (
            ("labels", embedding.labels),
            ("classes", np.array(embedding.classes, dtype=str)),
            ("settings", np.array(json.dumps(embedding.settings))),
        ):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array(member, array, allow_pickle=False)


def _header(file: IO[bytes], kind: str, shape: Sequence[int]) -> None:
    described = {"descr": npy.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": tuple(shape)}
    npy.write_array_header_2_0(file, described)


def _csv(file: IO[bytes], embedding: Embedding) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "label", *(f"f{number}" for number in range(embedding.shape[0]))])
    for start, piece in embedding.pieces():
        for row, values in enumerate(piece, start):
            # str gives the fewest digits that parse to the same number.
            writer.writerow([embedding.name(row), embedding.label_of(row), *(str(value) for value in values)])
    text.flush()
    text.detach()


def _parquet(file: IO[bytes], embedding: Embedding) -> None:
    """Write a row group for each part: name, label, and features as a fixed-size list (patches are concatenated)."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    length = int(np.prod(embedding.shape))
    kind = pa.list_(pa.from_numpy_dtype(np.dtype(embedding.dtype)), length)
    told = {"maecli": json.dumps({**embedding.settings, "shape": list(embedding.shape)})}
    schema = pa.schema([("name", pa.string()), ("label", pa.string()), ("features", kind)], metadata=told)
    with parquet.ParquetWriter(file, schema) as writer:
        for start, piece in embedding.pieces():
            rows = range(start, start + len(piece))
            values = pa.array(np.ascontiguousarray(piece).reshape(-1))
            columns = [
                pa.array([_utf8(embedding.name(row)) for row in rows], pa.string()),
                pa.array([_utf8(embedding.label_of(row)) for row in rows], pa.string()),
                pa.FixedSizeListArray.from_arrays(values, length),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def _utf8(name: str) -> str:
    """A name as valid UTF-8: Parquet cannot hold lone surrogates, which stand for bytes that are not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _pt(file: IO[bytes], embedding: Embedding) -> None:
    """Write a file that ``torch.load`` reads with ``weights_only=True``."""
    import tempfile

    with tempfile.TemporaryFile(dir=embedding.store.folder) as scratch:
        for _, piece in embedding.pieces():
            scratch.write(np.ascontiguousarray(piece).data)
        scratch.flush()
        shape = (embedding.rows, *embedding.shape)
        mapped: NDArray[Any] = np.memmap(scratch, dtype=embedding.dtype, mode="r+", shape=shape)
        torch.save(
            {
                "features": torch.from_numpy(mapped),
                "names": [embedding.name(row) for row in range(embedding.rows)],
                "labels": torch.from_numpy(embedding.labels),
                "classes": list(embedding.classes),
                "settings": dict(embedding.settings),
            },
            file,
        )


_WRITERS: dict[str, Callable[[IO[bytes], Embedding], None]] = {
    ".npz": _npz,
    ".csv": _csv,
    ".parquet": _parquet,
    ".pt": _pt,
}
