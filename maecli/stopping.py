"""Signals that stop a run after its current step."""

from __future__ import annotations

import signal
import types
from typing import Any

# SLURM can be set to announce a preemption by SIGUSR1; Windows has no such signal.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class StopOnSignal:
    """The first Ctrl-C, SIGTERM or SIGUSR1 finishes the step and saves; the second ends at once.

    Attributes:
        number: Number of the received signal; 0 if none was received.
        asked: Whether training has called this object; before that there is nothing to save, so a signal ends at once.
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
        """Whether a signal was received."""
        self.asked = True
        return self.number != 0

    def _on_signal(self, number: int, frame: types.FrameType | None) -> None:
        if self.number or not self.asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        self.number = number
