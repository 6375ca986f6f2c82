"""A run folder is read in any state: incomplete lines, invalid values and untrusted content."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import pytest

from mae.errors import DataError
from mae.reporting.page import _steps
from mae.reporting.run_log import LONGEST_LINE, read_run
from tests.unit.reporting.runs import epoch_line, step_line, write_run


def test_a_finished_run(tmp_path: Path) -> None:
    log = read_run(write_run(tmp_path / "run", done=4, epochs=4, steps_per_epoch=8, log_every=2))
    assert [one.epoch for one in log.epochs] == [1, 2, 3, 4]
    assert [one.step for one in log.steps] == list(range(2, 33, 2))
    assert (log.steps[3].epoch, log.steps[4].epoch) == (1.0, 1.25)
    assert log.epochs[0].loss == 1.0
    assert [(one.epoch, one.psnr) for one in log.previews] == [(1, 10.0), (2, 11.0), (3, 12.0), (4, 13.0)]
    assert (log.finished, log.wanted_epochs, log.seconds_left(), log.broken_lines, log.notes) == (True, 4, 0.0, 0, ())


def test_a_classification_run_is_finished_when_it_is_tested(tmp_path: Path) -> None:
    run = write_run(tmp_path, done=4, epochs=4)
    (run / "config.toml").write_text("epochs = 4\nlayer_decay = 0.65\n")
    assert not read_run(run).finished
    tested = {"epoch": 2, "test_accuracy": 0.75, "test_low": 0.7, "test_high": 0.8, "test_images": 40}
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps(tested) + "\n")
    assert read_run(run).finished
    (run / "config.toml").write_text("epochs = 5\nlayer_decay = 0.65\n")
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps(epoch_line(4)) + "\n")
    prolonged = read_run(run)
    assert (prolonged.epochs_done, prolonged.finished, prolonged.test) == (5, False, None)


def test_a_run_that_is_going_on(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=2, epochs=10)
    with (run / "log.jsonl").open("a") as file:
        file.write(json.dumps(step_line(20, 2.5)) + '\n{"step": 21, "epo')
    log = read_run(run)
    assert (log.finished, log.epochs_done, log.broken_lines, log.steps[-1].step) == (False, 2.5, 1, 20)
    assert log.seconds_left() == 7.5 * 12.5


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("epochs = 3\n")
    log = read_run(tmp_path)
    assert (log.steps, log.epochs, log.previews, log.epochs_done, log.seconds_left()) == ((), (), (), 0.0, None)
    assert log.notes == ("there is no log.jsonl yet",)


NONSENSE = [
    b"",
    b"not json",
    b"[1, 2]",
    b'"text"',
    b"\xff\xfe",
    b'{"a":' * 100_000,
    b'{"step": ' + b"9" * 5000 + b', "epoch": 1, "loss": 1}',
    b'{"x": "' + b"y" * (2 * LONGEST_LINE) + b'"}',
]


def test_lines_that_are_no_objects_are_counted_and_passed_over(tmp_path: Path) -> None:
    good = json.dumps(epoch_line(0)).encode()
    (tmp_path / "log.jsonl").write_bytes(b"\n".join([*NONSENSE, good]))
    log = read_run(tmp_path)
    assert len(log.epochs) == 1
    assert log.broken_lines == len(NONSENSE)


@pytest.mark.parametrize("value", [None, "1", True, [1], math.nan, math.inf, -math.inf, 1e300, 10**400])
def test_what_is_no_usable_number_is_nan(value: object, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps(step_line(1, 0.5) | {"loss": value}) + "\n")
    (step,) = read_run(tmp_path).steps
    assert math.isnan(step.loss)
    assert step.lr == 1e-4


def test_lines_of_other_kinds_are_counted(tmp_path: Path) -> None:
    lines = [{"skipped": True, "step": 3}, {"step": "3", "epoch": 1, "loss": 1}, {"epoch": -1, "train_loss": 1}, {}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = read_run(tmp_path)
    assert (log.other_lines, log.steps, log.epochs) == (4, (), ())


def test_the_last_step_may_have_no_line_of_its_own(tmp_path: Path) -> None:
    log = read_run(write_run(tmp_path / "run", done=4, epochs=4, steps_per_epoch=9, log_every=4))
    assert (log.steps[-1].step, log.last_step) == (36, 36)
    run = write_run(tmp_path / "other", done=4, epochs=4, steps_per_epoch=9, log_every=5)
    log = read_run(run)
    assert (log.steps[-1].step, log.last_step) == (35, 36)  # by the preview after the last epoch
    assert _steps(log) == "36"
    assert _steps(dataclasses.replace(log, last_step=35)) == "35+"
    assert _steps(read_run(write_run(tmp_path / "begun", done=2, epochs=4, log_every=4))) == "16+"


def test_steps_that_were_left_out_and_rollbacks_are_counted(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [
        {"epoch": 0.5, "step": 1, "loss": None, "grad_norm": None, "lr": 1e-4, "in_a_row": 1, "left_out": True},
        {"epoch": 1.0, "step": 2, "loss": 0.5, "grad_norm": None, "lr": 1e-4, "in_a_row": 2, "left_out": True},
        {"rolled_back_to": "checkpoint-last.pth", "step": 0, "turn": 1},
        {**step_line(1, 0.5), "grad_norm": 0.1},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = read_run(tmp_path)
    assert (log.left_out, log.rollbacks, log.other_lines, [one.step for one in log.steps]) == (2, 1, 0, [1])


def test_a_later_line_wins_and_order_does_not_matter(tmp_path: Path) -> None:
    lines = [step_line(2, 1.0), step_line(1, 0.5), step_line(2, 1.0) | {"loss": 7.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = read_run(tmp_path)
    assert [(one.step, one.loss == 7.0) for one in log.steps] == [(1, False), (2, True)]


def test_names_in_the_log_lead_nowhere(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", previews=0)
    (run / "previews" / "notes.txt").write_text("not a preview")
    (run / "previews" / "epoch-0002.png").mkdir()
    with (run / "log.jsonl").open("a") as file:
        for name in ("../../secret.png", "epoch-0001.png", 5, None):
            file.write(json.dumps({"preview": name, "psnr": 1.0}) + "\n")
    assert read_run(run).previews == ()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("log.jsonl", "config.toml", "environment.json", "unreadable.tsv"):
        os.mkfifo(tmp_path / name)
    log = read_run(tmp_path)
    assert len(log.notes) == 4
    assert (log.config, log.environment, log.unreadable) == ({}, {}, ())


def test_files_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "config.toml").write_text("epochs = = 3")
    (run / "environment.json").write_text("[1]")
    (run / "unreadable.tsv").write_bytes(b"\xff\xff")
    notes = " | ".join(read_run(run).notes)
    assert "config.toml cannot be read" in notes
    assert "environment.json is not a table" in notes
    assert "unreadable.tsv cannot be read" in notes


def test_a_log_without_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mae.reporting.run_log.MOST_LINES", 5)
    log = read_run(write_run(tmp_path / "run"))
    assert len(log.steps) + len(log.epochs) == 5
    assert log.notes == ("log.jsonl has more than 5 lines; further lines are ignored",)


def test_unreadable_images(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "unreadable.tsv").write_text("file\treason\na b.jpg\ttruncated\nc.png\tempty\n")
    assert read_run(run).unreadable == (("a b.jpg", "truncated"), ("c.png", "empty"))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_run(tmp_path / "none")
    with pytest.raises(DataError, match="is not a run folder"):
        read_run(tmp_path)
    run = write_run(tmp_path / "runs" / "\x1b[31m")
    with pytest.raises(DataError, match=r"log\.jsonl is a file; wanted the folder of a run") as of_the_run:
        read_run(run / "log.jsonl")
    with pytest.raises(DataError, match="is a file; wanted the folder of a run") as of_no_run:
        read_run(run / "previews" / "epoch-0003.png")
    with pytest.raises(DataError, match="is not a run folder") as above:
        read_run(run.parent)
    assert above.value.hint == f"`maecli runs {run.parent}` lists the runs in it"
    assert of_the_run.value.hint is not None
    assert of_the_run.value.hint.endswith(r"/runs/\x1b[31m'")
    assert of_no_run.value.hint == "give a run folder, as in `pretrain --out`"
    assert "\x1b" not in of_the_run.value.message + of_no_run.value.message


def test_what_was_measured_beside_the_training(tmp_path: Path) -> None:
    lines = [
        {"epochs": 2, "step": 16, "val_loss": None, "val_seconds": 0.5},
        {"epochs": 0.0, "step": 0, "val_loss": 1.1, "knn": 0.3, "linear": 0.4, "rank_me": 9.5, "probe_seconds": 2.0},
        {"epochs": 1, "step": 8, "val_loss": 0.9},
        {"epochs": -1, "knn": 0.3},
        {"epochs": "many", "val_loss": "low"},
        {"epochs": 3, "knn": [0.3], "linear": 1e99},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = read_run(tmp_path)
    assert [one.epoch for one in log.probes] == [0, 1, 2, 3]
    assert (log.newest("val_loss"), log.newest("knn"), log.newest("linear")) == (0.9, 0.3, 0.4)
    assert log.probes[0].seconds == 2.0
    assert math.isnan(log.probes[3].linear)
    assert log.other_lines == 2
