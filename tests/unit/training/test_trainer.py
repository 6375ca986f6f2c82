"""When the loop saves."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mae.system.distributed import Ranks
from mae.training import checkpointer, engine
from mae.training.clock import Throughput
from mae.training.monitor import PendingStep, StepMonitor
from mae.training.position import Position
from mae.training.trainer import Trainer


class Saver:
    """A checkpointer that is due from a step on until it saves; with ``always`` at every step."""

    def __init__(self, *, always: bool) -> None:
        self.always = always
        self.is_due = always
        self.saved: list[int] = []

    def due(self) -> bool:
        return self.is_due

    def save(self, position: Position, **_: Any) -> None:
        self.saved.append(position.step)
        self.is_due = self.always


@pytest.mark.parametrize(
    ("processes", "always", "saved"),
    [(1, False, [3]), (2, False, [4]), (1, True, [0, 1, 2, 3, 4, 5, 6, 7]), (2, True, [1, 2, 3, 4, 5, 6, 7])],
)
def test_a_state_that_is_due_is_saved_once(
    processes: int, always: bool, saved: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several processes hear of it a step later, and must not save again because it was still due until then."""
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: SimpleNamespace(wait=lambda: None))
    run: Any = SimpleNamespace(
        ranks=Ranks(0, processes),
        plan=SimpleNamespace(epochs=1, images=8),
        should_stop=lambda: False,
        device=torch.device("cpu"),
    )
    state: Any = SimpleNamespace(position=Position())
    saver, task, data = Saver(always=always), SimpleNamespace(unreadable=()), SimpleNamespace()
    trainer = Trainer(run, state, task, data, saver)  # type: ignore[arg-type]
    for step in range(8):
        saver.is_due = saver.is_due or step == 3
        assert trainer.should_continue()
        state.position = dataclasses.replace(state.position, step=step + 1)
    assert saver.saved == saved


def test_a_state_is_due_once_the_minutes_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(checkpointer.time, "monotonic", lambda: now)
    folder: Any = None
    step: Any = SimpleNamespace(parallel=SimpleNamespace(sharded=False))
    saver = checkpointer.Checkpointer(folder, step, Ranks(1, 2), {}, {}, minutes=2.0, keep_last=1)
    for _ in range(2):
        now += 119
        assert not saver.due()
        now += 1
        assert saver.due()
        saver.save(Position())


def test_losses_whose_reading_was_interrupted_are_read_later() -> None:
    """Torch's error for a loader process that a signal ended comes where the host waits for the device."""
    means = [RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated."), torch.tensor([2.0, 4.0])]
    logged: list[dict[str, Any]] = []

    def mean(_: torch.Tensor) -> torch.Tensor:
        if isinstance(found := means.pop(0), RuntimeError):
            raise found
        return found

    run: Any = SimpleNamespace(
        ranks=SimpleNamespace(mean=mean),
        config=SimpleNamespace(log_every=1),
        folder=SimpleNamespace(log=SimpleNamespace(add=logged.append)),
        epochs_at=lambda position: 0.0,
        on_event=lambda event: None,
    )
    state: Any = SimpleNamespace(position=Position(step=1))
    one = torch.ones(())
    pending = PendingStep(Position(), state.position, 1e-3, torch.zeros(2), one, one)
    monitor = StepMonitor(run, state, Throughput(), [pending])
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        monitor.read()
    assert monitor.read() is monitor.read() is None
    assert state.position.loss_sum == 6.0
    assert [entry["loss"] for entry in logged] == [3.0]


@pytest.mark.parametrize(("device", "timed"), [("cpu", 8), ("cuda", 64)])
def test_the_seconds_of_a_step_are_those_of_its_whole_batch(
    device: str, timed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU a few images are timed, after as many to warm up."""
    counts: list[int] = []
    monkeypatch.setattr(engine, "_pass", lambda step, task, count: counts.append(count) or 3.0 * count)
    step: Any = SimpleNamespace(device=torch.device(device))
    task: Any = None
    assert engine._time_batch(step, task, 64) == 3.0 * 64
    assert counts == [timed, timed]
