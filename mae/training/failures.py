"""Errors of torch and of the file system that end a run, explained to the user."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO

from mae.errors import TrainingError, advice_on_gpu, is_out_of_memory
from mae.io.files import write_atomically
from mae.io.text import first_line
from mae.system.distributed import Ranks, is_lost


def explained(error: RuntimeError | MemoryError, ranks: Ranks, *, activation_checkpointing: bool = False) -> Exception:
    """A ``TrainingError`` with a hint if the cause is known, else the error itself.

    Known are full memory, a GPU or compiler that fails, and a lost process.

    Args:
        error: The error that ended training.
        ranks: The processes that share the run.
        activation_checkpointing: Whether activation checkpointing is on already, so that it is not suggested.
    """
    if is_out_of_memory(error):
        advice = "halve --batch-size and double --accum-iter: the step and the learning rate stay the same"
        return TrainingError(
            "out of memory", hint=advice if activation_checkpointing else f"{advice}; or --activation-checkpointing"
        )
    if gpu_advice := advice_on_gpu(error):
        return TrainingError(f"the GPU cannot be used: {first_line(error)}", hint=gpu_advice)
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        # At the start of a run a failing compiler leaves the plain step; a resumed run keeps its first rounding.
        return TrainingError(
            f"torch.compile failed: {first_line(error)[:200]}",
            hint="mend the compiler; or continue without it by --no-compile, which rounds differently",
        )
    if isinstance(error, RuntimeError) and not ranks.alone and is_lost(error):
        return ranks.lost(error)
    return error


def write_in_run(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """``write_atomically``, with its OSError as a ``TrainingError``.

    Raises:
        TrainingError: The file cannot be written, for instance because the disk is full.
    """
    try:
        write_atomically(path, write)
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error.strerror or error}") from None
