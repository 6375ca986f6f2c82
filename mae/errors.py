"""Errors that are shown to a user, one class per exit code.

Raise one of these for a mistake that the user can correct: the message says what was wanted, what was
got and which option or file; ``hint`` says what to type next; ``details`` are lines below the message where one
line is not enough, such as the rows of a table. A wrong tensor shape inside the library
is a programmer's mistake and raises ``ValueError`` instead.
"""

from __future__ import annotations

from collections.abc import Sequence


class MaeError(Exception):
    """Base of every error that is shown to a user without a traceback."""

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
    """A checkpoint is missing, broken, unsafe or not what was asked for."""

    exit_code = 4


class TrainingError(MaeError):
    """Training cannot continue."""

    exit_code = 5


# As torch says it for a CPU (two ways), a GPU outside its allocator, an Apple GPU, and a GPU library's workspace.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, the host's or an accelerator's; torch's own class is known by its name."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
