"""The processes of a distributed run and their communication. torchrun starts them, one per GPU."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mae.errors import ConfigError, DataError, TrainingError

# For a process that hangs; one that dies breaks its connections, which the others notice at once.
TIMEOUT = datetime.timedelta(minutes=10)
# While one looks through the images of a machine, or fetches them, its others have nothing to do but wait.
STARTUP_TIMEOUT = datetime.timedelta(hours=24)
GRACE = 1.0  # seconds between losing contact and ending because of it


class Ranks:
    """The processes of a run, as seen by one of them. With a single process no communication is needed.

    Attributes:
        rank: Which one this is, from 0.
        size: How many there are.
        local_rank: Which one on this machine: the number of its GPU.
        control: The group over which they agree, on the host; None alone. Patient until ``begin_training``.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.control: Any = None
        self._asked: tuple[Any, Tensor] | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files and speaks for all."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether it is the only one."""
        return self.size == 1

    def join(self, device: torch.device) -> None:
        """Meet the others; the products go over NCCL on GPUs, all else over Gloo.

        Raises:
            TrainingError: They do not come.
        """
        if self.alone:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        try:
            store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))  # type: ignore[attr-defined]
            # After a restart torchrun may give the same store again, with the addresses of processes that are gone.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            dist.init_process_group(
                # On a CPU nothing may touch a GPU that happens to be there.
                backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=dist.PrefixStore(f"maecli/{attempt}", store),  # type: ignore[attr-defined]
                rank=rank,
                world_size=size,
                timeout=TIMEOUT,
                device_id=device if device.type == "cuda" else None,
            )
            self.control = dist.new_group(backend="gloo", timeout=STARTUP_TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise TrainingError(f"process {self.rank} cannot reach the others: {_first_line(error)}") from None

    def begin_training(self) -> None:
        """Use the short timeout from here on: all processes now take the same steps.

        Raises:
            TrainingError: The others do not come this far.
        """
        if self.alone:
            return
        try:
            self.wait()  # as long as the start may take; the new group's members have less time to meet
            patient, self.control = self.control, dist.new_group(backend="gloo", timeout=TIMEOUT)
            dist.destroy_process_group(patient)
        except (RuntimeError, ValueError) as error:
            raise self.lost(error) from None

    def leave(self) -> None:
        """Leave the group at the end of a successful run."""
        if self.alone:
            return
        self.wait()  # nobody closes a connection that another still needs
        dist.destroy_process_group()

    def ask(self, *flags: bool) -> tuple[bool, ...]:
        """Which flags were set in any process at the previous call.

        The answer is one call late, so that no step waits for it; with a single process it is immediate.
        """
        if self.alone:
            return flags
        answer = tuple(False for _ in flags)
        if self._asked is not None:
            work, tensor = self._asked
            work.wait()
            answer = tuple(bool(flag) for flag in tensor.tolist())
        tensor = torch.tensor([float(flag) for flag in flags])
        self._asked = (dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.control, async_op=True), tensor)
        return answer

    def wait(self) -> None:
        """Wait until all processes have reached this point."""
        self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in the order of the ranks."""
        values: list[Any] = [value]
        if not self.alone:
            values = [None] * self.size
            dist.all_gather_object(values, value, group=self.control)
        return values

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over all processes, element by element."""
        if self.alone:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total / self.size

    def check_same(self, what: str, value: Any) -> None:
        """Check that all processes have the same value.

        Raises:
            DataError: A process has another value than the first.
        """
        for rank, other in enumerate(values := self.gather(value)):
            if other != values[0]:
                raise DataError(
                    f"process {rank} has {what} {other} and process 0 has {values[0]}",
                    hint="all machines must see the same files under the same paths",
                )

    def share(self, images: int) -> slice:
        """This process's part of a batch of so many images.

        Raises:
            ConfigError: It cannot be shared equally.
        """
        if images % self.size:
            raise ConfigError(
                f"a batch of {images} images cannot be shared equally by {self.size} processes",
                hint="start as many processes as divide it",
            )
        part = images // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def lost(self, error: Exception) -> TrainingError:
        """What to say when the others no longer answer, some time after they stopped.

        Torchrun looks for ended processes ten times a second, and of those that it finds together it reports the one of
        the lowest rank as the root cause: the process that failed must be found before this one ends.
        """
        time.sleep(GRACE)
        return TrainingError(
            f"process {self.rank} of {self.size} lost contact with another one: {_first_line(error)}",
            hint="the process that failed first says why; --resume continues from the last checkpoint",
        )


def ranks_from_environment() -> Ranks:
    """The processes according to torchrun's environment variables; a single one without them."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    values = [os.environ.get(name, "") for name in names]
    if not dist.is_available() or not all(value.isdigit() for value in values):
        return Ranks()
    return Ranks(*(int(value) for value in values))


def refuse_several(command: str) -> None:
    """Refuse to run in several processes, which would all do the same.

    Raises:
        ConfigError: Torchrun started several.
    """
    if not ranks_from_environment().alone:
        raise ConfigError(
            f"{command} runs in one process, and torchrun started several",
            hint="start it without torchrun; maecli embed shares its images over processes",
        )


def is_lost(error: Exception) -> bool:
    """Whether an error of a collective operation means that another process has ended."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return any(part in text for part in _LOST)


_LOST: Sequence[str] = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
