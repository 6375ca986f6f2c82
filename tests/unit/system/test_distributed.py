"""How processes connect, and how long they wait for each other."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mae.errors import TrainingError
from mae.system.distributed import STARTUP_TIMEOUT, TIMEOUT, Ranks


class Wire:
    """A substitute for torch.distributed that records the calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.init: dict[str, Any] = {}
        self.current: list[torch.device] = []
        self.timeouts: list[datetime.timedelta] = []
        self.destroyed: list[Any] = []
        monkeypatch.setattr(torch.cuda, "set_device", self.current.append)
        store = dist.HashStore()
        monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(store, 0, 2)]))
        monkeypatch.setattr(dist, "init_process_group", lambda **options: self.init.update(options))
        monkeypatch.setattr(dist, "new_group", lambda backend, timeout: (backend, timeout))
        monkeypatch.setattr(dist, "all_gather_object", self._gather)
        monkeypatch.setattr(dist, "destroy_process_group", self.destroyed.append)

    def _gather(self, values: list[Any], value: Any, group: Any) -> None:
        values[:] = [value] * len(values)
        self.timeouts.append(group[1])


@pytest.mark.parametrize("index", [0, 1])
def test_on_gpus_each_takes_its_own(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    wire, device = Wire(monkeypatch), torch.device("cuda", index)
    Ranks(index, 2, index).join(device)
    assert wire.current == [device]
    assert (wire.init["device_id"], wire.init["backend"]) == (device, "cpu:gloo,cuda:nccl")


def test_on_a_cpu_no_gpu_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(monkeypatch)
    Ranks(0, 2, 0).join(torch.device("cpu"))
    assert wire.current == []
    assert (wire.init["device_id"], wire.init["backend"]) == (None, "gloo")


def test_a_second_run_does_not_find_the_addresses_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that torchrun started may pre-train and then fine-tune; both groups are in torchrun's store."""
    wire, stores = Wire(monkeypatch), []
    for _ in range(2):
        Ranks(0, 2, 0).join(torch.device("cpu"))
        stores.append(wire.init["store"])
    stores[0].set("address", "of a closed connection")
    assert [store.check(["address"]) for store in stores] == [True, False]


def test_long_waits_end_where_training_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    wire, ranks = Wire(monkeypatch), Ranks(0, 2, 0)
    ranks.join(torch.device("cpu"))
    patient = ranks.control
    ranks.wait()  # while one process scans for images
    ranks.begin_training()
    ranks.wait()
    assert wire.timeouts == [STARTUP_TIMEOUT, STARTUP_TIMEOUT, TIMEOUT]
    assert TIMEOUT < STARTUP_TIMEOUT
    assert wire.destroyed == [patient]


def test_one_that_does_not_come_to_the_start_is_named_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    Wire(monkeypatch)
    ranks = Ranks(0, 2, 0)
    ranks.join(torch.device("cpu"))

    def fail(**_: Any) -> None:
        raise RuntimeError("Timed out after 600000ms waiting for clients")

    monkeypatch.setattr(dist, "new_group", fail)
    with pytest.raises(TrainingError, match="process 0 of 2 lost contact with another one: Timed out"):
        ranks.begin_training()


def test_one_that_ends_before_training_is_named_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """For instance because it found no images. Torch tells anywhere that a loader process has died."""
    said = ""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(dist, "all_gather_object", fail)
    ranks, said = Ranks(1, 2, 1), "Connection closed by peer"
    with pytest.raises(TrainingError, match="process 1 of 2 lost contact with another one: Connection closed by peer"):
        ranks.wait()
    said = "DataLoader worker (pid 7) is killed by signal: Killed."
    with pytest.raises(RuntimeError, match=said[:10]):
        ranks.wait()


def test_alone_there_is_nobody_to_wait_for() -> None:
    ranks = Ranks()
    ranks.begin_training()
    assert ranks.control is None
