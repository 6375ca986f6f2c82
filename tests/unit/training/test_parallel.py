"""A sharded model stays on its kind of device."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed.device_mesh
import torch.distributed.fsdp

from mae.config import MAEConfig
from mae.models import create_model
from mae.system.distributed import Ranks
from mae.training import parallel


def test_a_model_on_the_cpu_is_divided_there_whatever_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    meshes: list[Any] = []
    monkeypatch.setattr(torch.distributed.device_mesh, "init_device_mesh", lambda *mesh: mesh)
    monkeypatch.setattr(torch.distributed.fsdp, "fully_shard", lambda module, mesh=None: meshes.append(mesh))
    monkeypatch.setattr(torch.distributed.fsdp, "register_fsdp_forward_method", lambda module, name: None)
    model = create_model(MAEConfig((16, 16), 8, 3, 24, 1, 2, 16, 1, 2))
    parallel.ParallelModel(model, Ranks(0, 2, 0), shard=True)
    assert meshes == [("cpu", (2,))] * 3  # two blocks and the rest
