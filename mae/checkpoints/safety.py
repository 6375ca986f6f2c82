"""Reads a checkpoint's pickle without running it, and refuses what no checkpoint needs. Standard library only.

torch's restricted unpickler does not run foreign code either. This check comes before it because a pickle can also
exhaust a machine with allowed parts: a bytearray of a terabyte, deeply nested tuples as keys, a million tensors.
"""

from __future__ import annotations

import io
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mae.errors import CheckpointError
from mae.io.text import shown

USABLE_TYPES = ("float32", "float16", "bfloat16", "float64")

LONGEST_PICKLE = 4_000_000  # bytes; that of a ViT-Huge with its optimiser has 0.2 million

_ORDERED_DICT = "collections OrderedDict"
_ALLOWED = {
    _ORDERED_DICT,
    "argparse Namespace",
    "torch Size",
    "torch device",
    *(f"torch._utils _rebuild_{what}" for what in ("tensor", "tensor_v2", "parameter")),
    *(
        f"torch {kind}Storage"
        for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
    ),
    *(
        f"torch {kind}"
        for kind in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    ),
}

# How torch.save stores the types that have no storage class of their own: floats of 8 bits and fewer, uint16 ...
# They are followed only so that the error can name the type, and are always refused.
_UNNAMED = {"torch._utils _rebuild_tensor_v3", "torch.storage UntypedStorage"}
_TYPE = re.compile(r"torch ((?:float|u?int|q?u?int|complex|bits)\d\w*)")

# Kinds of values on the pickle's stack that this check distinguishes.
_ATOM, _EMPTY_TUPLE, _OTHER = "atom", "empty tuple", "other"

_ATOMS = {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_ATOMS |= {"SHORT_BINSTRING"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def unusable_type(path: Path, name: str, number: str) -> CheckpointError:
    """The error for a tensor of an unsupported type: 8-bit floats or integers.

    Args:
        path: The file.
        name: Name of the tensor.
        number: Its dtype, for instance "float8_e4m3fn".
    """
    floats = number.startswith(("float8", "float4", "F8", "F6", "F4"))
    return CheckpointError(
        f"{path}: {shown(name, 80)} is {shown(number, 80)}; weights must be floats of 16 bits or more "
        f"({', '.join(USABLE_TYPES)})",
        hint=f"{'a file in 8-bit floats' if floats else 'a quantised file'} has lost most of its digits and cannot be "
        "read; get the float32 or bfloat16 weights it was made from",
    )


def check_pickle(pickled: bytes, path: Path) -> int:
    """Check one pickle, up to its STOP instruction.

    Args:
        pickled: The bytes from its beginning, ``LONGEST_PICKLE`` + 1 of them if the file has as many.
        path: Path for messages.

    Returns:
        The length of the pickle in bytes.

    Raises:
        CheckpointError: It could run code, exhaust the machine, or is damaged.
    """
    file = io.BytesIO(pickled)
    walk = _Walk(path)
    try:
        for opcode, argument, _ in pickletools.genops(file):
            walk.step(opcode.name, argument)
    except CheckpointError:
        raise
    except Exception as error:  # bytes that are no pickle can fail in any way
        if file.tell() > LONGEST_PICKLE:
            raise CheckpointError(
                f"{path} is refused: the list of its contents is longer than {LONGEST_PICKLE:,} bytes, "
                "and that of the largest published model has 0.2 million",
                hint="the file was made wrongly or to exhaust memory; get it from a source you trust",
            ) from None
        raise CheckpointError(
            f"{path} is damaged or no checkpoint: its pickle cannot be read ({type(error).__name__})",
            hint="get it again",
        ) from None
    return file.tell()


class _Walk:
    """Simulates the unpickler's stack with the kind of each value instead of the value."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[str] = []
        self.marked: list[list[str]] = []
        self.memo: dict[int, str] = {}
        self.text = ""  # the latest string; the name of a tensor comes directly before it
        self.unnamed: tuple[str, str] | None = None  # what rebuilds a tensor of such a type, and the tensor's name
        self.steps: dict[str, Callable[[Any], object]] = {
            "PROTO": self._protocol,
            "GLOBAL": self._global,
            "MARK": self._mark,
            "TUPLE": self._tuple,
            "APPEND": lambda _: self.stack.pop(),
            "APPENDS": lambda _: self._to_mark(),
            "SETITEM": self._set_item,
            "SETITEMS": lambda _: self._check_keys(self._to_mark()[::2]),
            "REDUCE": self._call,
            "NEWOBJ": self._call,
            "BUILD": lambda _: self.stack.pop(),
            "BINPERSID": self._persistent,
            "STOP": self._stop,
        }

    def step(self, name: str, argument: Any) -> None:
        if name in _ATOMS:
            self.stack.append(_ATOM)
            self.text = argument if name == "BINUNICODE" else self.text
        elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"):
            self.stack.append(_OTHER)
        elif name == "EMPTY_TUPLE":
            self.stack.append(_EMPTY_TUPLE)
        elif name in _TUPLES:
            del self.stack[-_TUPLES[name] :]
            self.stack.append(_OTHER)
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in self.steps:
            self.steps[name](argument)
        else:
            raise self._refusal(f"uses the instruction {name}")

    def _protocol(self, version: int) -> None:
        if version != 2:
            raise CheckpointError(
                f"{self.path} is pickled by protocol {version}; only 2, that of torch.save, can be read safely",
                hint="save it again with torch.save and no pickle_protocol, or as safetensors",
            )

    def _global(self, name: str) -> None:
        if name in _UNNAMED:
            self.unnamed = self.unnamed or (name, self.text)
        elif name not in _ALLOWED:
            number = _TYPE.fullmatch(name)
            if number and self.unnamed:
                raise unusable_type(self.path, self.unnamed[1], number[1])
            raise self._refusal(f"asks for {shown(name.replace(' ', '.'), 100)}")
        self.stack.append(name if name == _ORDERED_DICT else _OTHER)

    def _stop(self, _: Any) -> None:
        if self.unnamed:
            raise self._refusal(f"asks for {self.unnamed[0].replace(' ', '.')}")

    def _call(self, _: Any) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if called == _ORDERED_DICT and arguments != _EMPTY_TUPLE:
            raise self._refusal("builds a dictionary from nested values")
        self.stack.append(_OTHER)

    def _mark(self, _: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def _to_mark(self) -> list[str]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _tuple(self, _: Any) -> None:
        self._to_mark()
        self.stack.append(_OTHER)

    def _persistent(self, _: Any) -> None:
        self.stack[-1] = _OTHER

    def _set_item(self, _: Any) -> None:
        self.stack.pop()
        self._check_keys([self.stack.pop()])

    def _check_keys(self, keys: list[str]) -> None:
        if any(key != _ATOM for key in keys):
            raise self._refusal("has dictionary keys that are no plain values")

    def _refusal(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is refused: its pickle {what}, which could run code or exhaust memory; nothing was run",
            hint="only tensors, plain values and argparse.Namespace are read; save the state dict alone, or get the "
            "file from a source you trust",
        )
