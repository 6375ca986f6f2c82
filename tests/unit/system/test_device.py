"""Resolving a device: a GPU always has a number."""

from __future__ import annotations

import pytest
import torch

from mae.errors import ConfigError
from mae.system.device import resolve_device


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_gpu_has_an_index(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for the first process: a process group needs a device with a number."""
    assert [resolve_device(name, index).index for index in (0, 1)] == [0, 1]
    assert resolve_device(name).index == 0
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert resolve_device(name) == torch.device("cuda", 1)
    assert resolve_device(name, 0) == torch.device("cuda", 0)


def test_an_apple_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto", 0).type == resolve_device("mps").type == "mps"
    with pytest.raises(ConfigError, match="process 1 of this machine has no GPU: there is 1"):
        resolve_device("auto", 1)


@pytest.mark.usefixtures("two_gpus")
def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match="process 2 of this machine has no GPU: there are 2"):
        resolve_device("cuda", 2)
    assert resolve_device("cpu", 2) == torch.device("cpu")
