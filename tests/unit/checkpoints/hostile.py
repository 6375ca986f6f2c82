"""Files made to break a reader of checkpoints, by name."""

from __future__ import annotations

import functools
import io
import json
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.golden import official

TINY = official.GOLDEN["golden_tiny"]


def good_bytes(kind: str = "full", *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(official.checkpoint(TINY, kind), file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def torch_zip(pickled: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    """A file like those of torch.save, with any pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
        for name, content in (storages or {"0": bytes(4096)}).items():
            archive.writestr(f"archive/data/{name}", content)
    return file.getvalue()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return pickle.dumps(value, 2)[2:-1]


def tensor(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    numel: int,
    *,
    offset: int = 0,
    storage: str = "0",
    end: bytes = b"",
) -> bytes:
    """The pickle of a float tensor with these properties, which may be false."""
    identity = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(storage) + text("cpu") + number(numel) + end + b"tQ"
    )
    sizes = b"(" + b"".join(map(number, shape)) + b"t(" + b"".join(map(number, stride)) + b"t"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + number(offset) + sizes
    return rebuilt + b"\x89ccollections\nOrderedDict\n)RtR"


def state_dict(items: dict[str, bytes]) -> bytes:
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in items.items()) + b"u."


def code_pickles(canary: Path) -> dict[str, bytes]:
    """Pickles that create the file ``canary`` when they are unpickled, by the instruction that does it."""
    command = f"touch {canary}"
    short = f"S'{command}'\n".encode()
    return {
        "GLOBAL and REDUCE": b"\x80\x02cposix\nsystem\n(" + text(command) + b"tR.",
        "in a value": b"\x80\x02}(" + text("model") + b"cposix\nsystem\n(" + text(command) + b"tRu.",
        "STACK_GLOBAL": b"\x80\x04" + text("posix") + text("system") + b"\x93(" + text(command) + b"tR.",
        "STACK_GLOBAL of protocol 2": b"\x80\x02" + text("posix") + text("system") + b"\x93(" + text(command) + b"tR.",
        "INST": b"\x80\x02(" + short + b"iposix\nsystem\n.",
        "OBJ": b"\x80\x02(cposix\nsystem\n" + short + b"o.",
        "a subprocess": b"\x80\x02csubprocess\ncheck_call\n((" + text("touch") + text(str(canary)) + b"ltR.",
        "eval": b"\x80\x02cbuiltins\neval\n(" + text(f"open({str(canary)!r}, 'w').close()") + b"tR.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\n(cposix\n_exit\n"
        + text("__self__")
        + b"tR0cposix\nsystem\n("
        + text(command)
        + b"tR.",
        "after BUILD": b"\x80\x02cargparse\nNamespace\n)\x81}b0cposix\nsystem\n(" + text(command) + b"tR.",
        "behind a good pickle": b"\x80\x02}0cposix\nsystem\n(" + text(command) + b"tR.",
    }


def _header(entries: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def _floats(begin: int, end: int, *shape: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}


def legacy_head() -> bytes:
    """Magic, version and system, as in a file of the old format."""
    file = io.BytesIO()
    torch.save({}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()[: file.getvalue().index(b".", file.getvalue().index(b"little_endian")) + 1]


@functools.cache
def _many_keys() -> bytes:
    one = tensor((1,), (1,), 1)
    return torch_zip(b"\x80\x02}(" + b"".join(text(f"k{i}") + one for i in range(200_000)) + b"u.")  # 7 MB


@functools.cache
def _many_entries() -> bytes:
    """The directory of a zip file with a million entries that do not exist."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", *[0] * 4, *[0] * 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    start = torch_zip(b"\x80\x02}.")[:100]
    directory = entry * 1_000_000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(directory), len(start), 0)
    return start + directory + end


@functools.cache
def _zip_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50 << 20))
    return file.getvalue()


@functools.cache
def _nested(depth: int, key: bool) -> bytes:
    nest = b"N" + b"\x85" * depth
    return b"\x80\x02}(" + (nest + b"N" if key else text("model") + nest) + b"u."


def _doubled_key() -> bytes:
    """A key of 2**60 parts in 120 instructions."""
    return b"\x80\x02}(N" + b"q\x00h\x00\x86" * 60 + b"Nu."


def _holds_itself() -> bytes:
    return b"\x80\x02}q\x00(" + text("model") + b"h\x00u."


def _blocks(count: int) -> dict[str, bytes]:
    small = tensor((4,), (1,), 4)
    return {"cls_token": tensor((1, 1, 4), (4, 4, 1), 4), f"blocks.{count}.norm1.weight": small}


PROJECTION = {"patch_embed.proj.weight": tensor((4, 1, 2, 2), (4, 4, 2, 1), 16)}

# name -> (how to make it, what the error must say)
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "one byte": (lambda: b"\x80", "pickle cannot be read"),
    "html": (lambda: b"<!DOCTYPE html><html>404</html>", "an HTML page"),
    "html after a blank line": (lambda: b"\xef\xbb\xbf\n  <html>", "an HTML page"),
    "lfs pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
    "text": (lambda: b"hello", "a text"),
    "png": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image"),
    "random": (lambda: bytes(range(1, 256)) * 9, "a file of unknown kind"),
    "zeros": (lambda: bytes(5000), "nothing but zeros"),
    "truncated by one": (lambda: good_bytes()[:-1], "cut short or damaged"),
    "truncated in half": (lambda: good_bytes()[: 10**6], "cut short or damaged"),
    "truncated to a head": (lambda: good_bytes()[:64], "cut short or damaged"),
    "legacy truncated": (lambda: good_bytes(legacy=True)[:-5000], "damaged"),
    "legacy without pickle": (lambda: good_bytes(legacy=True)[:400], "damaged"),
    "plain pickle": (lambda: pickle.dumps({"a": 1}, 2), "a plain pickle"),
    "plain pickle of protocol 4": (lambda: pickle.dumps({"a": 1}, 4), "protocol 4"),
    "zip bomb": (_zip_bomb, "zip bomb"),
    "a zip of something": (lambda: torch_zip(b"x").replace(b"data.pkl", b"data.txt"), "not one that torch.save wrote"),
    "two contents": (lambda: torch_zip(b"x", {"0/data.pkl": b"y"}), "not one that torch.save wrote"),
    "a million entries": (_many_entries, "zip directory has"),
    "200,000 keys": (_many_keys, "longer than"),
    "lying shape": (
        lambda: torch_zip(state_dict(PROJECTION | {"cls_token": tensor((10**6, 10**6), (10**6, 1), 10**12)})),
        "refused|damaged",
    ),
    "lying offset": (
        lambda: torch_zip(state_dict(PROJECTION | {"cls_token": tensor((1, 1, 4), (4, 4, 1), 4, offset=10**9)})),
        "damaged",
    ),
    "expanded view": (
        lambda: torch_zip(state_dict(PROJECTION | {"cls_token": tensor((1, 10**6, 10**6), (0, 0, 0), 4)})),
        "claim more numbers",
    ),
    "many names for the same bytes": (
        lambda: torch_zip(
            state_dict({f"blocks.{i}.norm1.weight": tensor((10**6,), (1,), 10**6) for i in range(1000)}),
            {"0": bytes(4 * 10**6)},
        ),
        "claim more numbers",
    ),
    "negative stride": (
        lambda: torch_zip(state_dict({"cls_token": tensor((4,), (-1,), 16, offset=8)})),
        "damaged",
    ),
    "a bytearray of a terabyte": (
        lambda: torch_zip(b"\x80\x02cbuiltins\nbytearray\n(" + number(10**12) + b"tR."),
        "asks for builtins.bytearray",
    ),
    "a tensor class called": (
        lambda: torch_zip(b"\x80\x02ctorch\nFloatTensor\n(" + number(10**12) + b"tR."),
        "asks for torch.FloatTensor",
    ),
    "a meta tensor": (
        lambda: torch_zip(b"\x80\x02ctorch._utils\n_rebuild_meta_tensor_no_storage\n)R."),
        "asks for torch._utils._rebuild_meta_tensor_no_storage",
    ),
    "a legacy storage of a terabyte": (
        lambda: (
            legacy_head()
            + state_dict({"cls_token": tensor((1, 1, 4), (4, 4, 1), 250 * 10**9, end=b"N")})
            + b"\x80\x02]"
            + text("0")
            + b"a."
            + bytes(64)
        ),
        "damaged",
    ),
    "a legacy view beyond its storage": (
        lambda: (
            legacy_head()
            + state_dict({"cls_token": tensor((1, 1, 3 * 10**9), (1, 1, 1), 4, end=b"N")})
            + b"\x80\x02]"
            + text("0")
            + b"a."
            + struct.pack("<Q", 4)
            + bytes(16)
        ),
        "claim more numbers|damaged",
    ),
    "a deep nest": (lambda: torch_zip(_nested(300_000, key=False)), "it holds no tensors"),
    "a deep nest as a key": (lambda: torch_zip(_nested(300_000, key=True)), "keys that are no plain values"),
    "a key that doubles": (lambda: torch_zip(_doubled_key()), "keys that are no plain values"),
    "a dictionary of pairs": (
        lambda: torch_zip(b"\x80\x02ccollections\nOrderedDict\n(](" + text("a") + b"N\x86etR."),
        "nested values",
    ),
    "holds itself": (lambda: torch_zip(_holds_itself()), "it holds no tensors"),
    "a prefix without end": (
        lambda: torch_zip(state_dict({"module." * 400_000 + "cls_token": tensor((1, 1, 4), (4, 4, 1), 4)})),
        "no masked autoencoder|not a masked autoencoder",
    ),
    "a million blocks": (lambda: torch_zip(state_dict(PROJECTION | _blocks(999_999))), "1,000,000 blocks"),
    "a block number of 5,000 digits": (
        lambda: torch_zip(
            state_dict(PROJECTION | _blocks(0) | {f"blocks.{'9' * 5000}.norm1.weight": tensor((4,), (1,), 4)})
        ),
        "position tables|encoder only|holds no",
    ),
    "tables beyond the file": (
        lambda: torch_zip(
            state_dict(
                {"cls_token": tensor((1, 1, 20_000), (1, 1, 1), 20_000)}
                | PROJECTION
                | {f"{prefix}blocks.0.norm1.weight": tensor((4,), (1,), 4) for prefix in ("", "decoder_")}
                | {"decoder_pos_embed": tensor((1, 141 * 141 + 1, 4), (4, 4, 1), 80_000, storage="1")}
            ),
            {"0": bytes(80_000), "1": bytes(320_000)},
        ),
        "position tables of",
    ),
    "patches of no pixels": (
        lambda: torch_zip(state_dict(_blocks(0) | {"patch_embed.proj.weight": tensor((4, 1, 0, 0), (1, 1, 1, 1), 16)})),
        "patch size is unknown",
    ),
    "a name that paints the terminal": (
        lambda: torch_zip(state_dict({"\x1b[2J\x1b]0;owned\x07" * 50: tensor((4,), (1,), 4)})),
        "holds no patch projection",
    ),
    "safetensors, huge header": (lambda: struct.pack("<Q", 17_000_000) + b"{" + bytes(17_000_000), "header has"),
    "safetensors, header longer than the file": (lambda: struct.pack("<Q", 2**62) + b"{}", "cut short"),
    "safetensors, overlap": (lambda: _header({"a": _floats(0, 16, 4), "b": _floats(8, 24, 4)}, bytes(24)), "damaged"),
    "safetensors, gap": (lambda: _header({"a": _floats(0, 16, 4), "b": _floats(32, 48, 4)}, bytes(48)), "damaged"),
    "safetensors, lying shape": (lambda: _header({"a": _floats(0, 16, 10**6, 10**6)}, bytes(16)), "damaged"),
    "safetensors, negative": (lambda: _header({"a": _floats(-8, 8, 4)}, bytes(16)), "damaged"),
    "safetensors, words": (
        lambda: _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": ["x", "y"]}}),
        "damaged safetensors header",
    ),
    "safetensors, mixed": (
        lambda: _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, None]}}),
        "damaged safetensors header",
    ),
    "safetensors, endless": (
        lambda: _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, math.inf]}}),
        "damaged safetensors header",
    ),
    "safetensors, deep nest": (
        lambda: struct.pack("<Q", 200_005) + b'{"a":' + b"[" * 200_000 + b"]" * 20,
        "damaged safetensors header",
    ),
    "safetensors, no json": (lambda: struct.pack("<Q", 10) + b"{" + bytes(20), "damaged safetensors header"),
    "safetensors, truncated": (lambda: _header({"a": _floats(0, 400, 100)}, bytes(396)), "cut short"),
    "safetensors, empty": (lambda: _header({}), "it holds no tensors"),
}
