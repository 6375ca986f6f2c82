"""Errors in writing a state in shards."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from mae.config import MAEConfig
from mae.errors import TrainingError
from mae.system.distributed import Ranks
from mae.training.checkpointer import Checkpointer
from mae.training.position import Position
from mae.training.run_folder import RunFolder


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(FileSystemWriter, "write_data", fail)
    step: Any = SimpleNamespace(
        parallel=SimpleNamespace(sharded=True),
        model=SimpleNamespace(config=MAEConfig()),
        state=lambda: {"model": {"a": torch.zeros(2)}, "optimizer": {"state": {}, "param_groups": []}},
    )
    folder = RunFolder(tmp_path, resume=False)
    checkpointer = Checkpointer(folder, step, Ranks(), args={}, identity={}, minutes=1, keep_last=2)
    with pytest.raises(TrainingError, match=r"cannot write .*: No space left on device$"):
        checkpointer.save(Position())
    assert folder.states() == []
