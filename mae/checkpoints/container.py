"""Recognises the format of a file by its bytes, so that only checkpoints are unpickled. Standard library only."""

from __future__ import annotations

import difflib
import enum
import json
import zipfile
from pathlib import Path

from mae.checkpoints.builtin import BUILTIN
from mae.checkpoints.hub import RELEASES
from mae.checkpoints.safety import LONGEST_PICKLE, check_pickle, unusable_type
from mae.errors import CheckpointError
from mae.io.text import a_few, shown


class Container(enum.Enum):
    """File format of a checkpoint."""

    ZIP = enum.auto()
    LEGACY = enum.auto()  # format of torch.save before torch 1.6
    SAFETENSORS = enum.auto()
    SHARDS = enum.auto()  # a folder


GET_IT_AGAIN = "the download or copy did not finish, or the file was changed: get it again"
# Far above the needs of any supported model, and small enough to be read in a moment.
LONGEST_DIRECTORY = 16_000_000  # bytes of a zip's directory
LONGEST_HEADER = 16_000_000  # bytes of a safetensors header
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before it wrote zip files
_LEGACY_PICKLES = 5  # magic, version, system, contents, keys
_SHORT_FLOATS = ("F8", "F6", "F4")  # how the names of safetensors' types of 8 bits and fewer begin
SHARD_TABLE = ".metadata"
OWN_MODEL_TYPE = "maecli"  # in a config.json; transformers' is "vit_mae"
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")
_HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")
_OTHER_FILES = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"RIFF": "a RIFF file (a WebP image, perhaps)",
    b"BM": "a BMP image",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"%PDF": "a PDF",
    b"version https://git-lfs": "a Git LFS pointer, not the file it points to",
}


def find_file(path: Path) -> Path:
    """The file that holds the weights: ``path`` itself, or the one inside a Hugging Face folder. A folder of
    shards is itself the checkpoint.

    Raises:
        CheckpointError: There is no such file, or the folder holds none or several.
    """
    if (path / SHARD_TABLE).is_file():
        return path
    if path.is_dir():
        inside = [path / name for name in _HUGGING_FACE_FILES if (path / name).is_file()]
        if inside and (path / "config.json").is_file():
            return inside[0]
        found = sorted(file.name for file in path.iterdir() if file.suffix in _SUFFIXES)
        if not found and (path / "config.toml").is_file():
            raise CheckpointError(f"{path} holds a run that has not saved a state yet")
        raise CheckpointError(
            f"{path} is a folder; a checkpoint file is wanted",
            hint=f"it holds {', '.join(found[:5])}" if found else "it holds no .pth or .safetensors file",
        )
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is a device, a pipe or a socket, not a file")
    if not path.exists():
        names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=3) or difflib.get_close_matches(
            str(path), [BUILTIN, *RELEASES], n=3
        )
        wanted = f"did you mean {' or '.join(near)}?" if near else "give a checkpoint file, a run folder or builtin"
        raise CheckpointError(f"no such checkpoint file: {path}", hint=wanted)
    return path


def container_of(path: Path) -> Container:
    """Recognise a checkpoint's format by its first bytes, and refuse files that are not checkpoints or are unsafe.

    Raises:
        CheckpointError: The file is empty, truncated, compressed, not a checkpoint, or holds a pickle that could run
            code.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes)", hint=GET_IT_AGAIN)
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path, size)
        return Container.ZIP
    # A safetensors file begins with its header's length, which may equal a pickle's magic; the brace after it decides.
    if size > 8 and head[8:9] == b"{" and not head.startswith(_LEGACY_MAGIC):
        _check_safetensors(path, size, int.from_bytes(head[:8], "little"))
        return Container.SAFETENSORS
    if head.startswith(b"\x80"):
        _check_legacy(path, head)
        return Container.LEGACY
    raise CheckpointError(f"{path} is not a checkpoint: it is {_describe(head)}", hint=_advice(head))


def _check_zip(path: Path, size: int) -> None:
    _check_directory(path, size)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # damaged bytes can raise almost any exception in the decoder
        raise CheckpointError(
            f"{path} is cut short or damaged: {size:,} bytes whose zip directory cannot be read", hint=GET_IT_AGAIN
        ) from None
    unpacked = sum(entry.file_size for entry in entries)
    # torch stores tensors uncompressed, so a checkpoint never unpacks to more bytes than the file has.
    if unpacked > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(
            f"{path} is refused as a zip bomb: {size:,} bytes would unpack to {unpacked:,}, "
            "and a checkpoint is stored uncompressed",
            hint="if it is a zip around a checkpoint, unpack it and give the file inside",
        )
    names = [entry.filename for entry in entries]
    if any("/code/" in name for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript program, not a checkpoint", hint="save the state dict of the model it was made of"
        )
    contents = [name for name in names if name.endswith("/data.pkl")]
    if len(contents) != 1 or len(set(names)) != len(names):
        raise CheckpointError(
            f"{path} is a zip archive, but not one that torch.save wrote (it holds {a_few(names) or 'nothing'})",
            hint="if it is a zip around a checkpoint, unpack it and give the file inside",
        )
    try:
        with zipfile.ZipFile(path) as archive, archive.open(contents[0]) as file:
            pickled = file.read(LONGEST_PICKLE + 1)
    except Exception as error:  # as above
        reason = shown(str(error) or type(error).__name__, 200)
        raise CheckpointError(f"{path} is damaged: {reason}", hint=GET_IT_AGAIN) from None
    check_pickle(pickled, path)


def _check_directory(path: Path, size: int) -> None:
    """Check the length of a zip's directory, which is in its last bytes, before the directory is read."""
    with path.open("rb") as file:
        file.seek(max(0, size - 66_000))
        tail = file.read()
    # The end record, and that of large archives (zip64), which has priority if both exist.
    places = ((tail.rfind(b"PK\x05\x06"), 12, 4), (tail.rfind(b"PK\x06\x06"), 40, 8))
    stated = [int.from_bytes(tail[at + skip : at + skip + width], "little") for at, skip, width in places if at >= 0]
    longest = max((length for length in stated if length <= size), default=0)
    if longest > LONGEST_DIRECTORY:
        raise CheckpointError(
            f"{path} is refused: its zip directory has {longest:,} bytes, hundreds of thousands of entries",
            hint="the file was made wrongly or to exhaust memory; get it from a source you trust",
        )


def _check_legacy(path: Path, head: bytes) -> None:
    """Check the pickles at the beginning of a file of the old format."""
    with path.open("rb") as file:
        for _ in range(_LEGACY_PICKLES if head.startswith(_LEGACY_MAGIC) else 1):
            start = file.tell()
            file.seek(start + check_pickle(file.read(LONGEST_PICKLE + 1), path))
    if not head.startswith(_LEGACY_MAGIC):
        raise CheckpointError(
            f"{path} is a plain pickle, not a file that torch.save wrote", hint="save its tensors with torch.save"
        )


def _check_safetensors(path: Path, size: int, header_size: int) -> None:
    """Check the header, and that the file has as many bytes as the header states, before the file is mapped."""
    promised = 8 + header_size
    if promised <= size:
        if header_size > LONGEST_HEADER:
            raise CheckpointError(
                f"{path} is refused: its safetensors header has {header_size:,} bytes, "
                "and that of the largest published model has 60 thousand",
                hint="the file was made wrongly or to exhaust memory; get it from a source you trust",
            )
        with path.open("rb") as file:
            file.seek(8)
            try:
                header = json.loads(file.read(header_size))
                entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
                ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
                short = {name: entry["dtype"] for name, entry in entries.items() if entry["dtype"][:2] in _SHORT_FLOATS}
            except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
                raise CheckpointError(f"{path} has a damaged safetensors header", hint=GET_IT_AGAIN) from None
        for name, number in short.items():  # torch knows some of these types only
            raise unusable_type(path, name, number)
        promised += max(ends, default=0)
    if promised > size:
        raise CheckpointError(
            f"{path} is cut short: its safetensors header promises {promised:,} bytes and the file has {size:,}",
            hint=GET_IT_AGAIN,
        )


def _describe(head: bytes) -> str:
    for magic, name in _OTHER_FILES.items():
        if head.startswith(magic):
            return name
    if _is_html(head):
        return "an HTML page"
    if not head.strip(b"\0"):
        return "nothing but zeros, as an interrupted download leaves it"
    try:
        head[:256].decode("ascii")
    except UnicodeDecodeError:
        return f"a file of unknown kind that begins with {head[:8].hex(' ')}"
    return "a text"


def _advice(head: bytes) -> str:
    if _is_html(head):
        return "the download saved a web page (an error or a login) in place of the file: get the file itself"
    if head.startswith(b"version https://git-lfs"):
        return "fetch the real file with `git lfs pull`"
    return "give a .pth, .pt, .bin or .safetensors file of a masked autoencoder"


def _is_html(head: bytes) -> bool:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    return start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--"))
