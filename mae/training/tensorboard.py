"""A run's events as TensorBoard scalars."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mae.errors import ConfigError
from mae.training.events import EpochDone, Event, Previewed, Stepped


def also_to_tensorboard(folder: Path, step: int, on_event: Callable[[Event], None]) -> Callable[[Event], None]:
    """A listener that writes scalars and then passes the event on.

    Args:
        folder: Where the event files go.
        step: What an earlier part of the run wrote past this step is dropped.
        on_event: The next listener.

    Raises:
        ConfigError: The package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "--tensorboard needs the package tensorboard", hint="pip install 'maecli[tensorboard]'"
        ) from None
    writer = SummaryWriter(str(folder), purge_step=step + 1)
    last_step = step

    def listen(event: Event) -> None:
        nonlocal last_step
        scalars: dict[str, float] = {}
        if isinstance(event, Stepped):
            last_step = event.step
            scalars = {
                "step/loss": event.loss,
                "step/lr": event.lr,
                "step/images_per_second": event.images_per_second,
                "step/data_wait": event.data_wait,
            }
        elif isinstance(event, EpochDone):
            scalars = {"epoch/train_loss": event.train_loss, "epoch/train_lr": event.train_lr}
        elif isinstance(event, Previewed):
            scalars = {"epoch/psnr": event.psnr}
        for name, value in scalars.items():
            writer.add_scalar(name, value, last_step)
        if isinstance(event, EpochDone):
            writer.flush()
        on_event(event)

    return listen
