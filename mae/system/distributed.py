"""The processes of a distributed run and their communication. torchrun starts them, one per GPU."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mae.errors import ConfigError, DataError, TrainingError
from mae.io.text import first_line

# For a process that hangs; if one dies, its connections break, and the others notice at once.
TIMEOUT = datetime.timedelta(minutes=10)
# While one process of a machine scans or downloads the images, the machine's other processes wait.
STARTUP_TIMEOUT = datetime.timedelta(hours=24)
GRACE = 1.0  # seconds between losing contact and raising the error


class Ranks:
    """The processes of a run, and communication between them; does nothing if there is only one process.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        local_rank: Number of this process on its machine, which is also the number of its GPU.
        control: Gloo group for control messages between hosts; None with one process. Its timeout is long until
            ``begin_training``.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.control: Any = None
        self._asked: tuple[Any, Tensor] | None = None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes the run's files and prints."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self.size == 1

    def join(self, device: torch.device) -> None:
        """Connect to the other processes: NCCL for tensors on GPUs, Gloo for everything else.

        Raises:
            TrainingError: The other processes do not connect in time.
        """
        if self.alone:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        try:
            store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))  # type: ignore[attr-defined]
            # The store may still have the addresses of an earlier group: after a restart by torchrun, or if a script
            # calls one run after another.
            attempt = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_joined)}"
            dist.init_process_group(
                # With --device cpu, GPUs must not be used even if there are any.
                backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=dist.PrefixStore(f"maecli/{attempt}", store),  # type: ignore[attr-defined]
                rank=rank,
                world_size=size,
                timeout=TIMEOUT,
                device_id=device if device.type == "cuda" else None,
            )
            self.control = dist.new_group(backend="gloo", timeout=STARTUP_TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise TrainingError(f"process {self.rank} cannot reach the others: {first_line(error)}") from None

    def begin_training(self) -> None:
        """Use the short timeout from here on, since all processes now take the same steps.

        Raises:
            TrainingError: The other processes do not reach this point in time.
        """
        if self.alone:
            return
        try:
            self.wait()  # waits with the long timeout; connecting the new group has the short one
            patient, self.control = self.control, dist.new_group(backend="gloo", timeout=TIMEOUT)
            dist.destroy_process_group(patient)
        except (RuntimeError, ValueError) as error:
            raise self.lost(error) from None

    def leave(self) -> None:
        """Leave the group at the end of a successful run."""
        if self.alone:
            return
        self.wait()  # no process closes a connection that another one still needs
        dist.destroy_process_group()

    @contextlib.contextmanager
    def ask(self, flags: Callable[[], Sequence[bool]]) -> Iterator[Sequence[bool]]:
        """A context manager that gives, for each flag, whether it was set in any process at the end of the last block.

        The result is one block late, so that no step waits for communication; with a single process it is immediate.
        The flags are read at the block's end, after what was done because of them.
        """
        if self.alone:
            yield flags()
            return
        if self._asked is None:
            yield [False for _ in flags()]
        else:
            work, tensor = self._asked
            work.wait()
            yield [bool(flag) for flag in tensor.tolist()]
        tensor = torch.tensor([float(flag) for flag in flags()])
        self._asked = (dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.control, async_op=True), tensor)

    def wait(self) -> None:
        """Wait until all processes have reached this point.

        Raises:
            TrainingError: Contact with another process was lost.
        """
        self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of the ranks.

        Raises:
            TrainingError: Contact with another process was lost.
        """
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(values, value, group=self.control)
        except RuntimeError as error:
            if not is_lost(error):  # torch may tell here that a loader process has died
                raise
            raise self.lost(error) from None
        return values

    def mean(self, tensor: Tensor) -> Tensor:
        """The elementwise mean of a tensor over all processes."""
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
        """This process's slice of a global batch of ``images`` images, a multiple of the number of processes."""
        part = images // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def lost(self, error: Exception) -> TrainingError:
        """The error for losing contact with other processes, returned after ``GRACE`` seconds.

        Torchrun checks for ended processes ten times a second and reports the lowest rank of those it finds together
        as the root cause, so it must find the process that failed before this one ends.
        """
        time.sleep(GRACE)
        return TrainingError(
            f"process {self.rank} of {self.size} lost contact with another one: {first_line(error)}",
            hint="the process that failed first says why; --resume continues a run from its last checkpoint",
        )


def ranks_from_environment() -> Ranks:
    """The processes according to torchrun's environment variables; a single one without them."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    values = [os.environ.get(name, "") for name in names]
    if not dist.is_available() or not all(value.isdigit() for value in values):
        return Ranks()
    return Ranks(*(int(value) for value in values))


def refuse_several(command: str) -> None:
    """Refuse to run in several processes, because all would do the same work.

    Raises:
        ConfigError: Torchrun started several.
    """
    if not ranks_from_environment().alone:
        raise ConfigError(
            f"{command} runs in one process, and torchrun started several",
            hint="start it without torchrun; maecli embed shares its images over processes",
        )


def is_lost(error: Exception) -> bool:
    """Whether an error of a collective operation means that contact with another process was lost."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return any(part in text for part in _LOST)


_joined = itertools.count()  # the groups that this process has joined; the same in all processes
_LOST: Sequence[str] = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe")
