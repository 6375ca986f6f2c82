"""The list of runs: all are found, with their progress and whether a process is training them."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mae
from mae.errors import DataError
from mae.reporting.config import RunsConfig
from mae.reporting.runs import FRESH_SECONDS, runs
from maecli.app import app
from tests.processes import finish, start_python
from tests.unit.reporting.runs import step_line, write_run


def test_runs_at_any_depth(tmp_path: Path) -> None:
    write_run(tmp_path / "b", done=10)
    write_run(tmp_path / "deep" / "er" / "a", done=4)
    write_run(tmp_path / "b" / "inner", done=1)  # folders in a run are not searched
    write_run(tmp_path / ".hidden", done=1)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "config.toml").write_text("other = 1\n")
    result = runs(RunsConfig(folder=tmp_path, sort="name"))
    assert [one.run for one in result.runs] == ["b", "deep/er/a"]
    done, other = result.runs
    assert (done.state, done.epochs, done.wanted_epochs, done.model) == ("finished", 10, 10, "vit_tiny")
    assert (done.loss, done.psnr, done.images_per_second) == (pytest.approx(0.2843, abs=1e-4), 18.0, 98.0)
    assert done.seconds_left is None
    assert (other.state, other.epochs, other.seconds_left) == ("stopped", 4, 6 * 12.5)
    assert [one.run for one in runs(RunsConfig(folder=tmp_path, sort="loss")).runs] == ["b", "deep/er/a"]
    os.utime(tmp_path / "b" / "log.jsonl", (1, 1))
    assert [one.run for one in mae.runs(tmp_path).runs] == ["deep/er/a", "b"]
    assert [one.run for one in runs(RunsConfig(folder=tmp_path / "b")).runs] == ["."]


def test_many_epochs_are_written_in_full(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=1, epochs=20_000)
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps(step_line(98_765, 12_345.6)) + "\n")
    assert "12,346/20,000" in CliRunner().invoke(app, ["runs", str(tmp_path)]).stdout
    assert "12,346 of 20,000" in CliRunner().invoke(app, ["watch", str(run), "--once"]).stdout


def test_a_model_with_other_sizes_is_not_named_as_the_variant(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=1)
    settings = (run / "config.toml").read_text()
    for added, model in (
        ("embed_dim = 192\nimage_size = [32, 32]\npatch_size = 8\n", "vit_tiny"),
        ("embed_dim = 48\n", "vit_tiny, changed"),
        ("decoder_depth = 1\n", "vit_tiny, changed"),
        ("mlp_ratio = 2.0\n", "vit_tiny, changed"),
    ):
        (run / "config.toml").write_text(settings + added)
        assert runs(RunsConfig(folder=tmp_path)).runs[0].model == model


@pytest.mark.parametrize(
    ("sizes", "model"),
    [
        ({}, "vit_base"),
        ({"depth": 6}, "vit_base, changed"),
        ({"embed_dim": 48}, "width 48, 12 blocks"),
        ({"embed_dim": None}, None),
        ({"depth": "12"}, None),
    ],
)
def test_the_model_of_a_classifier_is_told_by_its_logged_sizes(
    sizes: dict[str, object], model: str | None, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", done=1)
    kept = [line for line in (run / "config.toml").read_text().splitlines() if not line.startswith("variant")]
    (run / "config.toml").write_text("\n".join(kept))
    assert runs(RunsConfig(folder=tmp_path)).runs[0].model is None
    entry = {"step": 0, "model": {"embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0} | sizes}
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps(entry) + "\n")
    assert runs(RunsConfig(folder=tmp_path)).runs[0].model == model


def test_whether_it_lives(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=4)

    def state(holder: str) -> str:
        (run / ".lock-holder").write_text(holder)
        return runs(RunsConfig(folder=tmp_path)).runs[0].state

    ended = start_python("-c", "pass")
    finish(ended)
    here = socket.gethostname()
    assert state(f"process {os.getpid()} on {here}\n") == "training"
    assert state(f"process {ended.pid} on {here}\n") == "stopped"
    assert state("process 1 on another-machine\n") == "training"
    assert state("nonsense") == "stopped"
    assert state(f"process 0 on {here}") == "stopped"  # to the system, process 0 is every process of the group
    old = (run / "log.jsonl").stat().st_mtime - FRESH_SECONDS - 1
    os.utime(run / "log.jsonl", (old, old))
    assert state("process 1 on another-machine\n") == "unknown"
    assert state(f"process {os.getpid()} on {here}\n") == "training"
    (run / ".lock-holder").unlink()
    os.mkfifo(run / ".lock-holder")
    assert runs(RunsConfig(folder=tmp_path)).runs[0].state == "stopped"  # and not waiting for someone to write


def test_the_command(tmp_path: Path) -> None:
    write_run(tmp_path / "one", done=3)
    (tmp_path / "empty").mkdir()
    seen = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["runs", str(tmp_path)])
    assert seen.exit_code == 0, seen.output
    assert "3/10" in seen.stdout
    assert "stopped" in seen.stdout
    (one,) = json.loads(CliRunner().invoke(app, ["runs", str(tmp_path), "--json"]).stdout)["runs"]
    assert (one["run"], one["state"]) == ("one", "stopped")
    assert CliRunner().invoke(app, ["runs", str(tmp_path), "--quiet"]).stdout == f"{tmp_path / 'one'}\n"
    assert CliRunner().invoke(app, ["runs", str(tmp_path / "empty")]).exit_code == 3
    with pytest.raises(DataError, match="no such folder"):
        runs(RunsConfig(folder=tmp_path / "none"))
    with pytest.raises(DataError, match=r"log\.jsonl is a file; a folder is wanted"):
        runs(RunsConfig(folder=tmp_path / "one" / "log.jsonl"))
