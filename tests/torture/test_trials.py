"""Every invalid setting and output path gives the right exit code and a one-line error, and leaves no files."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mae.io.files import write_atomically
from maecli.app import app
from tests.torture.outputs import WRITERS, all_outputs
from tests.torture.settings import all_settings
from tests.torture.trials import Stage, Trial, set_stage


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return set_stage(tmp_path_factory.mktemp("stage"))


@contextmanager
def _no_larger_file_than(size: int) -> Iterator[None]:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("trial", [*all_settings(), *all_outputs()], ids=lambda trial: trial.name)
def test_ends_as_it_must(trial: Trial, shared: Stage, tmp_path: Path) -> None:
    stage = dataclasses.replace(shared, folder=tmp_path)
    words = [str(word) for word in trial.make(stage)]
    with _no_larger_file_than(trial.largest_file):
        result = CliRunner(env={"COLUMNS": "100"}).invoke(app, [*words, "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == trial.exit_code, result.stderr
    assert re.search(trial.said, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert "\x1b" not in result.stderr
    if trial.exit_code:
        assert result.stdout == ""
        assert len(result.stderr) < 3000
    assert not list(tmp_path.rglob("*.tmp"))
    trial.after(stage)


@pytest.mark.parametrize("command", WRITERS)
def test_a_place_that_may_not_be_written_to(
    command: str, shared: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system answers for users other than root."""
    suffix, words = WRITERS[command]
    stage = dataclasses.replace(shared, folder=tmp_path)
    made = Path.mkdir

    def refused(path: Path, *rest: object, **options: object) -> None:
        if path.is_relative_to(tmp_path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        made(path, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    monkeypatch.setattr(Path, "mkdir", refused)
    result = CliRunner().invoke(app, [str(word) for word in words(stage, tmp_path / f"out{suffix}")])
    assert result.exit_code == 2, result.stderr
    assert re.search(r"--(out|separate) .*[Pp]ermission", result.stderr.replace("\n", "")), result.stderr
    assert not list(tmp_path.iterdir())


def test_what_is_refused_late_is_refused_in_words_too(
    shared: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that becomes read-only while the image is drawn."""

    def refused(path: Path, target: Path) -> Path:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "replace", refused)
    (tmp_path / "out.png").write_text("kept")
    words = WRITERS["reconstruct"][1](dataclasses.replace(shared, folder=tmp_path), tmp_path / "out.png")
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 2
    assert f"cannot write {tmp_path / 'out.png'}: Read-only file system" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    assert (tmp_path / "out.png").read_text() == "kept"


def test_a_device_keeps_its_place(tmp_path: Path) -> None:
    """As root, moving a file onto /dev/null would put the file in the device's place."""
    fifo = tmp_path / "null"
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="a device, a pipe or a socket"):
        write_atomically(fifo, lambda file: file.write(b"x"))
    assert fifo.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["null"]


@pytest.mark.parametrize("command", ["reconstruct", "compare", "export --to timm", "export --to hf"])
def test_an_odd_name_is_shown_as_it_is(command: str, shared: Stage, tmp_path: Path) -> None:
    """Not as markup, and not as control characters of a terminal."""
    suffix, words = WRITERS[command]
    out = tmp_path / f"[bold]\x1b[31m\n{suffix}"
    stage = dataclasses.replace(shared, folder=tmp_path)
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, [str(word) for word in words(stage, out)])
    assert result.exit_code == 0, result.stderr
    assert f"wrote {tmp_path}/[bold]\\x1b[31m\\n{suffix}" in result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + "/run", "loop"])
def test_a_run_is_refused_before_its_images_are_looked_for(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    result = CliRunner().invoke(app, ["pretrain", "/nonexistent/images", "--out", str(tmp_path / name)])
    assert result.exit_code == 2, result.stderr
    assert re.search(r"error: --out .*(too long|symbolic|[Ss]ymlink)", result.stderr.replace("\n", " ")), result.stderr


def test_a_file_cannot_lead_into_another_run(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('resume = "elsewhere"')
    result = CliRunner().invoke(app, ["pretrain", "/nonexistent", "--config", str(tmp_path / "settings.toml")])
    assert result.exit_code == 2
    assert "settings.toml is not read from a file" in result.stderr
    assert "type --resume instead" in result.stderr
