"""The files of a run folder besides its states."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mae.data.sources.scan import Unreadable
from mae.errors import ConfigError, TrainingError
from mae.training.config import PretrainConfig
from mae.training.run_folder import RunFolder, open_run


def bad(number: int) -> Unreadable:
    return Unreadable(Path(f"/photos/{number}\n.jpg"), f"is empty ({number})")


def opened(path: Path, *, resume: bool = False) -> RunFolder:
    path.mkdir(exist_ok=True)
    return RunFolder(path, resume=resume)


def lines(path: Path) -> list[str]:
    return (path / "unreadable.tsv").read_text().splitlines()


def test_unreadable_images_are_added_and_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand unreadable images append a thousand lines; the file is not rewritten for each."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    run = opened(tmp_path / "run")
    run.start_unreadable([bad(0)])
    for number in range(1, 1000):
        run.report_unreadable([bad(number)])
        run.report_unreadable([bad(number), bad(number - 1)])  # known already
    assert lines(run.path) == [
        "file\treason",
        *(f"/photos/{number}\\n.jpg\tis empty ({number})" for number in range(1000)),
    ]
    assert len(synced) <= 2


def test_a_run_that_goes_on_keeps_what_it_had_passed_over(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    run.start_unreadable([])
    assert not (run.path / "unreadable.tsv").exists()
    run.report_unreadable([bad(1)])
    with (run.path / "unreadable.tsv").open("a") as file:
        file.write("/photos/half a li")  # the process was killed while writing it
    run = opened(run.path, resume=True)
    run.start_unreadable([bad(2)])
    run.report_unreadable([bad(1), bad(3)])
    assert [line.split("(")[-1] for line in lines(run.path)[1:]] == ["1)", "2)", "3)"]
    run = opened(run.path)  # a new run in the same folder
    run.start_unreadable([])
    assert not (run.path / "unreadable.tsv").exists()


def test_a_process_that_does_not_write_writes_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, resume=False, writes=False)
    run.start_unreadable([bad(1)])
    run.report_unreadable([bad(2)])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    run.start_unreadable([])
    (run.path / "unreadable.tsv").mkdir()
    with pytest.raises(TrainingError, match=r"unreadable\.tsv: Is a directory"):
        run.report_unreadable([bad(1)])


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
