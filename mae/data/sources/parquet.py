"""Images in a column of Parquet files, as on the Hugging Face Hub. Needs the extra ``parquet``."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from mae.data.decoding.formats import ImageError
from mae.data.group_cache import BYTES_PER_ROW, GroupCache
from mae.data.shared_memory import SharedMemory
from mae.data.sources.base import GROUPS_AT_ONCE, ImageSource
from mae.errors import ConfigError, DataError
from mae.io.text import shown
from mae.system.environment import memory_bytes

# Twice the number of groups that are shuffled together: one loader process may be at the end of these groups while
# another has begun the next ones.
KEPT_GROUPS = 2 * GROUPS_AT_ONCE
# Smallest and largest size of the cache; on a machine with more than 4 GiB the largest is an eighth of its memory.
LEAST_KEPT_BYTES, MOST_KEPT_BYTES = 64 * 2**20, 512 * 2**20
SHARE_OF_MEMORY = 8
USUAL_NAMES = ("image", "img", "jpg", "png")


class TableSource(ImageSource):
    """The images in one column of some Parquet files.

    The column holds encoded images: bytes, or a struct with ``bytes`` and perhaps ``path``, as the ``datasets``
    library writes it. Parquet files are compressed by row groups, so a group is decoded as a whole and cached for all
    processes of the machine, because the next images are from the same groups.

    Args:
        paths: The files.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: A file is not a readable Parquet file, or has no column of images.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        try:
            import pyarrow.parquet as parquet
        except ImportError:
            raise ConfigError(
                f"{shown(paths[0])}: reading Parquet needs pyarrow", hint="pip install 'maecli[parquet]'"
            ) from None
        self._paths = list(paths)
        self._stamps: dict[int, tuple[int, int]] = {}
        self._columns = []
        self._digests = []
        places: list[tuple[int, int, int]] = []  # file, row group, rows
        self._spans: list[tuple[int, int]] = []  # of each row group, the bytes of its images in the file
        self._first_rows: list[int] = []  # of each row group, the number of its first row in the file
        largest = 0
        for number, path in enumerate(self._paths):
            try:
                with parquet.ParquetFile(self._open(number)) as file:
                    self._columns.append(_image_column(path, file.schema_arrow))
                    groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
                    rows = [group.num_rows for group in groups]
                    largest = max([largest, *(_size(group, self._columns[-1]) for group in groups)])
            except (OSError, ValueError, NotImplementedError) as error:
                raise DataError(f"{shown(path)} is not a readable Parquet file: {error}") from None
            places += [(number, group, count) for group, count in enumerate(rows) if count]
            starts = itertools.accumulate(rows[:-1], initial=0)
            self._first_rows += [start for start, count in zip(starts, rows, strict=False) if count]
            self._spans += [_span(group, self._columns[-1]) for group in groups if group.num_rows]
            self._digests.append(f"{path.name} {rows}")
        self._places = places
        self._ends = np.cumsum([count for *_, count in places], dtype=np.int64)
        most = max(MOST_KEPT_BYTES, (memory_bytes() or 0) // SHARE_OF_MEMORY)
        kept = max(largest, min(most, max(LEAST_KEPT_BYTES, KEPT_GROUPS * largest)))
        self._kept = GroupCache(len(places), kept)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def groups(self) -> Sequence[int]:
        """Number of rows of each row group."""
        return [count for *_, count in self._places]

    def name(self, index: int) -> Path:
        """Path of the file, with the number of the row in it."""
        group, row = self._find(index)
        return self._paths[self._places[group][0]] / f"row {self._first_rows[group] + row}"

    def open(self, index: int) -> IO[bytes]:
        """Read an image's bytes; its row group is decoded if it is not cached."""
        group, row = self._find(index)
        try:
            data = self._kept.row(group, row, lambda: self._decode(group))
        except ImageError as error:
            raise ImageError(self.name(index), shown(error.message)) from None
        except (OSError, ValueError, NotImplementedError) as error:
            raise ImageError(self.name(index), f"cannot be read ({shown(str(error))})") from None
        if data is None:
            raise ImageError(self.name(index), "holds no image")
        return io.BytesIO(data)

    @property
    def memories(self) -> Sequence[SharedMemory]:
        """The memory of the cached row groups."""
        return [self._kept.memory]

    def digest(self) -> str:
        """Hash of the files' names and row counts."""
        return hashlib.blake2b("\n".join(self._digests).encode("utf-8", "replace"), digest_size=8).hexdigest()

    def _open(self, number: int) -> Any:
        """The path or open file that is passed to pyarrow.

        Raises:
            ImageError: The file has changed since it was first opened, so its rows are those of other images.
        """
        path = self._paths[number]
        info = path.stat()
        stamp = info.st_mtime_ns, info.st_size
        if self._stamps.setdefault(number, stamp) != stamp:
            raise ImageError(path, "has changed since its images were found")
        return path

    def _find(self, index: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._ends, index, side="right"))
        return group, index - (int(self._ends[group - 1]) if group else 0)

    def _decode(self, group: int) -> list[bytes | None]:
        import pyarrow.parquet as parquet

        number, row_group, _ = self._places[group]
        # Without pyarrow's threads, which do not survive the fork into loader processes.
        with parquet.ParquetFile(self._open(number)) as file:
            table = file.read_row_group(row_group, columns=[self._columns[number]], use_threads=False)
        values = table.column(self._columns[number]).to_pylist()
        return [value.get("bytes") if isinstance(value, dict) else value for value in values]


def _size(group: Any, name: str) -> int:
    """Bytes of a column of a row group in the cache."""
    return int(sum(part.total_uncompressed_size for part in _parts(group, name))) + BYTES_PER_ROW * int(group.num_rows)


def _span(group: Any, name: str) -> tuple[int, int]:
    """The range of bytes in the file that holds a column of a row group."""
    parts = _parts(group, name)
    starts = [min(filter(None, (part.dictionary_page_offset, part.data_page_offset))) for part in parts]
    return min(starts), max(start + part.total_compressed_size for start, part in zip(starts, parts, strict=True))


def _parts(group: Any, name: str) -> list[Any]:
    """The columns of the file that hold a column; a struct has several."""
    columns = [group.column(number) for number in range(group.num_columns)]
    return [column for column in columns if f"{column.path_in_schema}.".startswith(f"{name}.")]


def _image_column(path: Path, schema: Any) -> str:
    """Name of the column with the images: the only column of bytes, or the one with a usual name."""
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return bool(kind.get_field_index("bytes") >= 0)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    found = [field.name for field in schema if holds_bytes(field.type)]
    usual = [name for name in USUAL_NAMES if name in found]
    if len(found) == 1 or usual:
        return usual[0] if usual else found[0]
    what = f"several columns of bytes ({', '.join(found)})" if found else f"none among {', '.join(schema.names)}"
    raise DataError(f"{shown(path)}: no column of images: {what}", hint="call the one with the images 'image'")
