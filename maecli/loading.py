"""Loading what a command needs, faster; standard library only."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collections() -> Iterator[None]:
    """No garbage collections while torch is imported: what it makes stays, and it makes a million objects.

    A tenth of the time of the import. What there is afterwards is not looked through again. Where torch is loaded
    already, nothing is different.
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
