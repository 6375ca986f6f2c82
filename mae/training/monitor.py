"""Reads the losses of finished steps, logs them and counts skipped steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mae.training.clock import Throughput
from mae.training.events import Stepped, StepSkipped
from mae.training.position import Position
from mae.training.run import Run, TrainingState

# Reading a loss makes the host wait for the accelerator, so losses are read in groups there.
STEPS_BETWEEN_READS = 20
# At a loss scale of 1 or less, lowering it further does not make non-finite gradients finite.
LEAST_LOSS_SCALE = 1.0


class PendingStep(NamedTuple):
    """A step whose loss has not been read.

    Attributes:
        before, after: The run's position before and after it.
        lr: Learning rate of the step.
        losses: (batches,), losses of this process.
        norm: Gradient norm, scalar.
        loss_scale: Loss scale of fp16, scalar; 1 in other precisions.
    """

    before: Position
    after: Position
    lr: float
    losses: Tensor
    norm: Tensor
    loss_scale: Tensor


class FailedStep(NamedTuple):
    """The last of too many non-finite steps in a row.

    Attributes:
        loss: Mean loss of the step over all processes.
        exact: Whether no later step was applied, so that the weights are still those of this step.
    """

    step: PendingStep
    loss: float
    exact: bool


@dataclasses.dataclass
class StepMonitor:
    """Reads losses and gradient norms, on an accelerator up to 20 steps late.

    Attributes:
        run, state: Run context and state; the sums and counts of the position are updated here.
        throughput: Images per second and time spent waiting for data.
    """

    run: Run
    state: TrainingState
    throughput: Throughput
    pending: list[PendingStep] = dataclasses.field(default_factory=list)  # steps whose losses are not read yet

    @property
    def due(self) -> bool:
        """Whether to read the losses now."""
        return self.run.device.type == "cpu" or len(self.pending) >= STEPS_BETWEEN_READS

    def read(self) -> FailedStep | None:
        """Read, check, log and report the losses of the pending steps.

        Returns:
            The step with which ``nan_limit`` consecutive steps were non-finite; None if that did not happen.
        """
        # Read before any is forgotten: the signal of an ended loader process may interrupt the wait for the device.
        steps, values = self.pending, list(self._fetched(self.pending))
        self.pending = []
        for step, losses, norm, loss_scale in values:
            loss = sum(losses) / len(losses)
            # Above 1 the loss scale itself may be too large for fp16; the scaler halves it and training continues.
            searching = math.isfinite(loss) and not math.isfinite(norm) and loss_scale > LEAST_LOSS_SCALE
            if not searching and not (math.isfinite(loss) and math.isfinite(norm)):
                self._skip_nonfinite_step(step, loss, norm)
                if self.state.position.in_a_row >= self.run.config.nan_limit:
                    return FailedStep(step, loss, exact=step is steps[-1])
                continue
            self._count(losses, searching=searching)
            self._log(step, loss, norm)
        return None

    def _fetched(self, steps: list[PendingStep]) -> Iterator[tuple[PendingStep, list[float], float, float]]:
        """Each step with its losses over all processes, gradient norm and loss scale; the host waits once."""
        if not steps:
            return
        own = torch.cat([one.losses for one in steps])
        means = iter(self.run.ranks.mean(own).tolist())
        norms = torch.stack([one.norm for one in steps]).tolist()
        loss_scales = torch.stack([one.loss_scale for one in steps]).tolist()
        for step, norm, loss_scale in zip(steps, norms, loss_scales, strict=True):
            yield step, [next(means) for _ in range(len(step.losses))], norm, loss_scale

    def _count(self, losses: list[float], *, searching: bool) -> None:
        here = self.state.position
        total = here.loss_sum
        for value in losses:
            total += value
        in_a_row = here.in_a_row if searching else 0
        self.state.position = dataclasses.replace(here, loss_sum=total, in_a_row=in_a_row)

    def _log(self, step: PendingStep, loss: float, norm: float) -> None:
        rate, wait = self.throughput.rate()
        stepped = Stepped(self.run.epochs_at(step.after), step.after.step, loss, norm, step.lr, rate, wait)
        self.run.on_event(stepped)
        if self.run.config.log_every and stepped.step % self.run.config.log_every == 0:
            self.run.folder.log.add(
                {
                    "step": stepped.step,
                    "epoch": round(stepped.epoch, 4),
                    "loss": loss,
                    "grad_norm": norm,
                    "lr": step.lr,
                    "images_per_second": round(rate, 2),
                    "data_wait": round(wait, 4),
                }
            )

    def _skip_nonfinite_step(self, step: PendingStep, loss: float, norm: float) -> None:
        here = self.state.position
        self.state.position = dataclasses.replace(
            here, left_out=here.left_out + len(step.losses), in_a_row=here.in_a_row + 1
        )
        in_a_row = self.state.position.in_a_row
        event = StepSkipped(self.run.epochs_at(step.after), step.after.step, loss, norm, step.lr, in_a_row)
        self.run.on_event(event)
        self.run.folder.log.add({**dataclasses.asdict(event), "epoch": round(event.epoch, 4), "left_out": True})
