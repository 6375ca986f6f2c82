"""Faster import of heavy packages. Standard library only."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collections() -> Iterator[None]:
    """A context manager without garbage collection, for importing torch, which creates a million permanent objects.

    It saves a tenth of the import's time. The objects are then frozen, so that later collections skip them. If torch is
    imported already, it does nothing.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
