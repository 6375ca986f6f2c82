"""What the commands print in a terminal or a log: names as they are, and how far they are."""

from __future__ import annotations

import io
import math
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from mae.training.events import PretrainResult, Previewed, RolledBack, Stepped
from mae.training.replay import Replay
from maecli.commands.replay import _show
from maecli.commands.watch import watch
from maecli.output import Output, fitted, make_console, plain_table
from maecli.views.progress import TrainingView
from maecli.views.training import show_pretraining

RUN = Path("vit[lr=1e-3,wd=0.05]")


def test_square_brackets_in_the_name_of_a_run_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are not markup: without escaping, the checkpoint of ``vit[lr=1e-3]`` would be printed as that of ``vit``."""
    state, preview = RUN / "checkpoint-last.pth", RUN / "previews/epoch-0003.png"
    result = PretrainResult(
        run=RUN, checkpoint=state, preview=preview, epochs=1, steps=2, train_loss=0.5, zero_prediction_loss=None,
        psnr=None, psnr_uses_original=False, seconds=1.0, stopped=False,
    )  # fmt: skip
    show_pretraining(result, Output())
    printed = capsys.readouterr().out
    assert f"checkpoint  {state}\n" in printed
    assert f"image       {preview}\n" in printed
    with TrainingView(Output()) as view:
        view(Previewed(preview, 11.5, False))
    assert f"epoch 3: image {preview}, PSNR 11.5 dB" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    RUN.mkdir()
    (RUN / "log.jsonl").write_text('{"epoch": 0, "train_loss": 0.5}\n')
    watch(run=str(RUN), once=True, as_json=False, quiet=False, verbose=False)  # type: ignore[call-arg]
    assert f"run               {RUN}\n" in capsys.readouterr().out


def test_a_table_cuts_no_word_at_any_width() -> None:
    rows = [
        ("runs/first", "finished", "vit_tiny, changed", "1.5487", "15.4 dB", "2 h 5 min 3 s ago"),
        ("lp",) + ("-",) * 5,
    ]
    words = Counter(word for cell in rows[0] for word in cell.split())
    ways = set()
    for width in range(30, 100):
        table = plain_table("run", "state", "model", right=("loss", "PSNR", "last line"))
        for row in rows:
            table.add_row(*row)
        console = Console(width=width, file=io.StringIO())
        with console.capture() as captured:
            console.print(fitted(console, table))
        lines = captured.get().splitlines()
        assert words <= Counter(captured.get().split()), width
        assert max(map(len, lines)) <= width
        ways.add("lines" if lines[0] == rows[0][0] else "wrapped" if len(lines) > 3 else "table")
    assert ways == {"lines", "wrapped", "table"}


def test_control_characters_in_names_of_images_of_a_step_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    _show(make_console(sys.stdout), Replay(3, 1e-3, float("nan"), ("red\x1b[31m.png", "[b].png"), ()))
    assert "images: red\\x1b[31m.png, [b].png\n" in capsys.readouterr().out


def test_a_step_that_names_a_folder_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maecli.output.can_redraw", lambda stream: True)
    with Output().steps() as on_step:
        on_step("computing with clones/mae[/old]")


def test_the_time_left_after_a_rollback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The steps that were taken back took time, but the run is no further than before them."""
    now = 1000.0
    monkeypatch.setattr("maecli.views.progress.time", SimpleNamespace(monotonic=lambda: now))

    def left(step: int) -> str:
        view.spoke = -math.inf
        view(Stepped(1.0, step, loss=0.5, grad_norm=1.0, lr=1e-4, images_per_second=10.0, data_wait=0.0))
        return capsys.readouterr().err.split("left ")[1]

    with TrainingView(Output()) as view:
        view.total_steps, view.first_step, view.started = 1000, 100, now
        now += 300
        assert left(400) == "10 min 0 s\n"
        view(RolledBack(RUN / "checkpoint-last.pth", 100, 1))
        now += 2
        assert left(101) == "29 min 58 s\n"


def test_a_scan_of_unknown_length_tells_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for done in (6399, 6400):
        Output().count(done, 0, "files")
    Output().count(100, 200, "images")
    assert capsys.readouterr().err == "6400 files\n100 of 200 images\n"
