"""Signals that end a run in good order."""

from __future__ import annotations

import signal
import types
from typing import Any

# SLURM announces a preemption by SIGUSR1 where it is asked to; Windows has none.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class StopOnSignal:
    """The first Ctrl-C, SIGTERM or SIGUSR1 finishes the step and saves; the second ends at once.

    Attributes:
        number: The signal that came; 0 while none has.
        asked: Whether training has begun to ask; before, there is nothing to save, so the first one ends at once.
    """

    def __init__(self) -> None:
        self.number = 0
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopOnSignal:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether a signal came."""
        self.asked = True
        return self.number != 0

    def _on_signal(self, number: int, frame: types.FrameType | None) -> None:
        if self.number or not self.asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        self.number = number
