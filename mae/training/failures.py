"""Errors of torch that end a run, explained to the user."""

from __future__ import annotations

from mae.errors import TrainingError, is_out_of_memory
from mae.system.distributed import Ranks, is_lost


def explained(error: RuntimeError | MemoryError, ranks: Ranks, *, activation_checkpointing: bool = False) -> Exception:
    """A ``TrainingError`` with a hint for the user, or the error itself.

    Args:
        error: The error.
        ranks: The processes that share it.
        activation_checkpointing: Whether it is in use already.
    """
    if is_out_of_memory(error):
        advice = "halve --batch-size and double --accum-iter: the step and the learning rate stay the same"
        return TrainingError(
            "out of memory", hint=advice if activation_checkpointing else f"{advice}; or --activation-checkpointing"
        )
    if isinstance(error, RuntimeError) and not ranks.alone and is_lost(error):
        return ranks.lost(error)
    return error
