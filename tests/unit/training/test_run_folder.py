"""Which folders a new run may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae.errors import ConfigError
from mae.training.config import PretrainConfig
from mae.training.run_folder import open_run


@pytest.mark.parametrize("name", ["config.toml", "log.jsonl", "classifier.pth", "result.json", "environment.json"])
def test_files_of_others_are_not_written_over(tmp_path: Path, name: str) -> None:
    config = PretrainConfig(data=(Path("photos"),), out=tmp_path)
    (tmp_path / name).write_text("mine = 1")
    with pytest.raises(ConfigError, match=rf"{name} was not written by a run and would be overwritten"):
        open_run(config, writes=True)


def test_a_run_that_was_killed_early_can_start_again_but_a_result_stays(tmp_path: Path) -> None:
    config = PretrainConfig(data=(Path("photos"),), out=tmp_path)
    (tmp_path / "config.toml").write_text('data = ["/photos"]\nlayer_decay = 0.65\n')
    (tmp_path / "log.jsonl").write_text("")
    (tmp_path / "notes.txt").write_text("mine")
    open_run(config, writes=True)
    (tmp_path / "classifier.pth").write_text("the first epoch's")
    open_run(config, writes=True)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds the result of a run whose checkpoints were removed"):
        open_run(config, writes=True)
