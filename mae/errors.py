"""Errors that are shown to the user, one class per exit code.

They are for mistakes that the user can correct: the message says what was wanted, what was got, and in which option or
file; ``hint`` says what to type next; ``details`` are further lines, such as the rows of a table. A wrong tensor shape
inside the library is a programming error and raises ``ValueError`` instead.
"""

from __future__ import annotations

from collections.abc import Sequence


class MaeError(Exception):
    """Base class of errors that are shown to the user without a traceback."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, details: Sequence[str] = ()) -> None:
        super().__init__("\n".join((message, *details)))
        self.message = message
        self.hint = hint
        self.details = tuple(details)


class ConfigError(MaeError):
    """An option, a config file or a combination of options cannot be used."""

    exit_code = 2


class DataError(MaeError):
    """Images are missing, unreadable or of a kind that cannot be used."""

    exit_code = 3


class CheckpointError(MaeError):
    """A checkpoint is missing, damaged, unsafe or of the wrong kind."""

    exit_code = 4


class TrainingError(MaeError):
    """Training cannot continue."""

    exit_code = 5


# Messages of torch: for a CPU (two), a GPU outside its allocator, an Apple GPU, and the workspace of a GPU library.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the memory of the host or the accelerator is full; does not import torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


# Parts of the messages of CUDA and HIP for a GPU that cannot be used, and what the user can do.
_UNUSABLE_GPU = {
    "no kernel image is available": "this build of torch has no code for this GPU: install another one (pytorch.org)",
    "busy or unavailable": "another program has the GPU: wait for it, or choose another one by CUDA_VISIBLE_DEVICES",
    "driver version is insufficient": "this build of torch needs a newer driver of the GPU",
    "uncorrectable ECC error": "the GPU's memory has an error: reset the GPU or restart the machine",
    "GPU is lost": "the GPU has failed: restart the machine",
    "unspecified launch failure": "the GPU or its driver has failed; if it happens again, restart the machine",
}


def advice_on_gpu(error: BaseException) -> str | None:
    """What the user can do if an error means that the GPU cannot be used, else None; does not import torch."""
    if not isinstance(error, RuntimeError):
        return None
    return next(
        (f"{advice}; or give --device cpu" for words, advice in _UNUSABLE_GPU.items() if words in str(error)), None
    )
