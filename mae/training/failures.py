"""Errors of torch that end a run, explained to the user."""

from __future__ import annotations

from mae.errors import TrainingError, is_out_of_memory
from mae.system.distributed import Ranks, is_lost


def explained(error: RuntimeError | MemoryError, ranks: Ranks, *, activation_checkpointing: bool = False) -> Exception:
    """A ``TrainingError`` with a hint if memory was full or a process was lost, else the error itself.

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
    if isinstance(error, RuntimeError) and not ranks.alone and is_lost(error):
        return ranks.lost(error)
    return error
