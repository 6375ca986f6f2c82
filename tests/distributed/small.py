"""Runs the real command with models of one block, for processes that torchrun starts.

``SPOIL_RANK`` is a rank whose first losses of the run are non-finite; with ``ENDLESS_SCAN`` the scan never ends;
``STEP_SECONDS`` makes each step longer, so that a signal arrives during a run.
``KILL_AT`` says when the process kills itself, as ``kill -9`` does: ``config`` or the number of a step.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from mae.training.config import PretrainConfig
from maecli.app import app


def main() -> None:
    if Path("/proc/self/comm").exists():  # so that a test finds a process by its rank
        Path("/proc/self/comm").write_text(f"rank {os.environ.get('RANK', '0')}")
    original = PretrainConfig.model_config
    PretrainConfig.model_config = lambda self: original(self).replace(  # type: ignore[method-assign]
        depth=2, decoder_depth=2, embed_dim=48, decoder_embed_dim=32, decoder_num_heads=2
    )
    if "SPOIL_RANK" in os.environ:
        here = os.environ["SPOIL_RANK"] == os.environ.get("RANK", "0")
        spoil(int(os.environ.get("SPOIL_BATCHES", "2")) if here else 0)
    if "ENDLESS_SCAN" in os.environ:
        scan_without_end()
    if "STEP_SECONDS" in os.environ:
        slow_down(float(os.environ["STEP_SECONDS"]))
    if "KILL_AT" in os.environ:
        kill_at(os.environ["KILL_AT"])
    app()


def slow_down(seconds: float) -> None:
    """Make each step longer, so that a signal arrives in time."""
    from mae.training.trainer import Trainer

    step = Trainer.step

    def slow(self: Trainer, *batches: Any) -> None:
        time.sleep(seconds)
        step(self, *batches)

    Trainer.step = slow  # type: ignore[method-assign]


def kill_at(place: str) -> None:
    """Kill this process when the settings have been written, or after a step."""
    from mae.training.run_folder import RunFolder
    from mae.training.trainer import Trainer

    write_config, step = RunFolder.write_config, Trainer.step

    def written(self: RunFolder, *config: Any) -> None:
        write_config(self, *config)
        if place == "config":
            os.kill(os.getpid(), signal.SIGKILL)

    def stepped(self: Trainer, *batches: Any) -> None:
        step(self, *batches)
        if place == str(self.state.position.step):
            os.kill(os.getpid(), signal.SIGKILL)

    RunFolder.write_config = written  # type: ignore[method-assign]
    Trainer.step = stepped  # type: ignore[method-assign]


def scan_without_end() -> None:
    """Scan for images until a signal arrives."""
    from mae.training import engine

    def scan(*_: Any, **__: Any) -> Any:
        sys.stderr.write("scanning\n")
        sys.stderr.flush()
        time.sleep(600)

    engine.scan_images = scan


def spoil(batches: int) -> None:
    """Make the first losses non-finite. No step is timed, because all processes would have to do this together."""
    from mae.training import engine
    from mae.training.step import TrainingStep

    loss, numbers = TrainingStep.loss, itertools.count()

    def spoilt(self: TrainingStep, *batch: Any) -> Any:
        return loss(self, *batch) * (float("nan") if next(numbers) < batches else 1.0)

    TrainingStep.loss = spoilt  # type: ignore[method-assign]
    engine._time_batch = lambda *_: 0.1


if __name__ == "__main__":
    main()
