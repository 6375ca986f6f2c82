"""The list of a run's unreadable images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mae.data.sources.scan import Unreadable
from mae.errors import TrainingError
from mae.training.unreadable_table import UnreadableTable


def bad(number: int) -> Unreadable:
    return Unreadable(Path(f"/photos/{number}\n.jpg"), f"is empty ({number})")


def opened(folder: Path, *, resume: bool = False) -> UnreadableTable:
    folder.mkdir(exist_ok=True)
    return UnreadableTable(folder, resume=resume, writes=True)


def lines(table: UnreadableTable) -> list[str]:
    return table.path.read_text().splitlines()


def test_unreadable_images_are_added_and_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand unreadable images append a thousand lines; the file is not rewritten for each."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    table = opened(tmp_path / "run")
    table.start([bad(0)])
    for number in range(1, 1000):
        table.add([bad(number)])
        table.add([bad(number), bad(number - 1)])  # known already
    assert lines(table) == [
        "file\treason",
        *(f"/photos/{number}\\n.jpg\tis empty ({number})" for number in range(1000)),
    ]
    assert len(synced) <= 2


def test_a_run_that_goes_on_keeps_what_it_had_passed_over(tmp_path: Path) -> None:
    table = opened(tmp_path / "run")
    table.start([])
    assert not table.path.exists()
    table.add([bad(1)])
    with table.path.open("a") as file:
        file.write("/photos/half a li")  # the process was killed while writing it
    table = opened(table.path.parent, resume=True)
    table.start([bad(2)])
    table.add([bad(1), bad(3)])
    assert [line.split("(")[-1] for line in lines(table)[1:]] == ["1)", "2)", "3)"]
    table = opened(table.path.parent)  # a new run in the same folder
    table.start([])
    assert not table.path.exists()


def test_a_process_that_does_not_write_writes_nothing(tmp_path: Path) -> None:
    table = UnreadableTable(tmp_path, resume=False, writes=False)
    table.start([bad(1)])
    table.add([bad(2)])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    table = opened(tmp_path / "run")
    table.start([])
    table.path.mkdir()
    with pytest.raises(TrainingError, match=r"unreadable\.tsv: Is a directory"):
        table.add([bad(1)])
