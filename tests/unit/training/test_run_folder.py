"""What a run writes into its folder beside its states."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mae.data.sources.scan import Unreadable
from mae.errors import TrainingError
from mae.training.run_folder import RunFolder


def bad(number: int) -> Unreadable:
    return Unreadable(Path(f"/photos/{number}\n.jpg"), f"is empty ({number})")


def opened(path: Path, *, resume: bool = False) -> RunFolder:
    path.mkdir(exist_ok=True)
    return RunFolder(path, resume=resume)


def lines(path: Path) -> list[str]:
    return (path / "unreadable.tsv").read_text().splitlines()


def test_unreadable_images_are_added_and_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand bad files cost a thousand lines, not a thousand files of a thousand lines, each waited for."""
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
        file.write("/photos/half a li")  # killed while it was written
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
