"""The folder of a run: config, log, saved states, previews and reports."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import tomli_w

from mae.checkpoints.run_states import CLASSIFIER, STATE, run_states, state_slot
from mae.checkpoints.run_states import SHARDS as SHARDS
from mae.checkpoints.run_states import WHOLE as WHOLE
from mae.errors import ConfigError
from mae.io.files import refuse_inside, refuse_place, write_atomically
from mae.io.locks import take_lock
from mae.io.text import shown, typed
from mae.io.urls import url_of
from mae.options import build_config
from mae.system.environment import ENVIRONMENT_FILE, environment
from mae.training.classifier_config import ClassifierConfig
from mae.training.config import CONFIG_FILE, PretrainConfig, is_run_config, read_run_settings
from mae.training.failures import write_in_run
from mae.training.log import LOG_FILE, Log
from mae.training.position import Position
from mae.training.unreadable_table import UnreadableTable

# Names the process that holds the lock; not in the locked file, which no other process can read on Windows.
_HOLDER = ".lock-holder"
RESULT_FILE = "result.json"  # test result of finetune and linprobe
# Files that are written before the first step and removed if the start fails. The list of unreadable images stays,
# since it may be the reason.
_OF_A_START = (CONFIG_FILE, ENVIRONMENT_FILE, LOG_FILE, "previews", "tensorboard", "wandb", "mlflow", ".trackers.json")
Config = TypeVar("Config", bound=PretrainConfig | ClassifierConfig)


class RunFolder:
    """The folder that a run writes to.

    Args:
        path: The folder; ``make`` creates it.
        resume: Whether the folder holds the run to resume.
        writes: Whether this process writes files; only one process of a run does.
    """

    def __init__(self, path: Path, *, resume: bool, writes: bool = True) -> None:
        self.path = path
        self.resume = resume
        self.writes = writes
        self.log = Log(path, writes=writes)
        self.unreadable = UnreadableTable(path, resume=resume, writes=writes)
        self._unlock: Callable[[], None] | None = None
        self._made: list[Path] = []
        self._closing: list[Callable[[], None]] = []

    def make(self) -> None:
        """Create the folder if it does not exist, and lock it.

        Incomplete files that a killed process of this run left are removed.

        Raises:
            ConfigError: The folder cannot be created, or another process is writing to it.
        """
        if not self.writes:
            return
        folders = [one for one in (self.path, *self.path.parents) if not one.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            # Only after taking the lock: otherwise files that another run is writing would be counted as this run's.
            files = [path for name in _OF_A_START if not (path := self.path / name).exists()]
            self._made = [*files, *([self.path / ".lock", self.path / _HOLDER, *folders] if folders else [])]
            (self.path / "previews").mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {self.path}: {error.strerror}") from None
        for left in (*self.path.glob(".*.tmp"), *(self.path / "previews").glob(".*.tmp")):
            _remove(left)

    def _take_lock(self) -> None:
        """Lock the folder until ``release`` or the end of the process."""
        holder = self.path / _HOLDER
        try:
            unlock = take_lock(self.path / ".lock", wait=False)
        except TimeoutError:
            named = ""
            with contextlib.suppress(OSError):
                named = shown(holder.read_text(encoding="utf-8", errors="replace").strip(), 200)
            raise ConfigError(
                f"another run is writing into {self.path} ({named or 'unknown'})",
                hint="wait for it, or choose another --out",
            ) from None
        self._unlock = unlock
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")

    def clear(self) -> None:
        """Remove log and classifier of a run that was killed before its first state; a new run does not go on there."""
        if self.writes:
            _remove(self.log.path)
            _remove(self.path / CLASSIFIER)

    def when_released(self, close: Callable[[], None]) -> None:
        """Register a function to call when the run ends, also after an error."""
        self._closing.append(close)

    def release(self) -> None:
        """Call the registered functions and release the lock."""
        self._close()
        if self._unlock is not None:
            _remove(self.path / _HOLDER)
            self._unlock()
            self._unlock = None

    def _close(self) -> None:
        while self._closing:
            self._closing.pop()()

    def abandon(self) -> None:
        """Remove the files of a failed start.

        A folder that existed before, or that holds other files, is kept.
        """
        if self.states():
            return
        self._close()  # trackers still write to the folder
        made, self._made = self._made, []
        for path in made:
            with contextlib.suppress(OSError):
                if path.parent == self.path:
                    _remove(path)
                else:
                    path.rmdir()

    @property
    def checkpoint(self) -> Path:
        """Path of the newest state of a run whose model is not sharded."""
        return self.path / (STATE + WHOLE)

    def states(self) -> list[Path]:
        """Paths of the states that the run can resume from, newest first."""
        return run_states(self.path)

    def place(self, written: Path, kind: str, keep_last: int) -> Path:
        """Make a completely written state the newest one, and keep the previous ones.

        If the process is killed at any point, there is still a state to resume from.

        Args:
            written: A file or folder in the run's folder under another name.
            kind: ``WHOLE`` or ``SHARDS``.
            keep_last: Number of states to keep, the new one included.
        """
        if kind == SHARDS:
            keep_last = max(keep_last, 2)  # a folder cannot be replaced atomically, so the previous state must stay
        for number in range(keep_last - 1, 0, -1):
            before = state_slot(self.path, number - 1)
            if before is None:
                continue
            after = self.path / f"{STATE}-{number}{before.suffix}"
            if (old := state_slot(self.path, number)) is not None:
                _remove(old)
            if number == 1 and before.is_file() and kind == WHOLE:
                link_or_copy(before, after)  # a link, so that the newest state exists at every moment
            else:
                before.replace(after)
        newest = state_slot(self.path, 0)
        if newest is not None and (newest.suffix != kind or newest.is_dir()):
            _remove(newest)
        placed = written.replace(self.path / (STATE + kind))
        while (spare := state_slot(self.path, keep_last)) is not None:
            _remove(spare)
            keep_last += 1
        return placed

    def set_aside_newer(self, state: Path) -> None:
        """Rename the states newer than ``state``, which are unreadable, so that they do not displace readable ones."""
        if not self.writes:
            return
        for path in self.states():
            if path == state:
                return
            aside = path.with_name(path.name + ".broken")
            _remove(aside)
            path.replace(aside)

    def kept_checkpoint(self, epoch: int) -> Path:
        """Path of the checkpoint of an epoch, named as in the official trainer."""
        return self.path / f"checkpoint-{epoch}.pth"

    def finished_file(self, state: Path, position: Position) -> Path:
        """The official checkpoint file of the run at a position, given its newest state, which may be sharded."""
        return self.kept_checkpoint(position.epoch - 1) if state.suffix == SHARDS else state

    def preview(self, epoch: int) -> Path:
        """Path of the preview after ``epoch`` epochs."""
        return self.path / "previews" / f"epoch-{epoch:04d}.png"

    def replay(self, rank: int, ranks: int) -> Path:
        """The replay file of a non-finite step; with several processes, the one of ``rank``."""
        return self.path / ("replay.pth" if ranks == 1 else f"replay-{rank}.pth")

    def read_config(self, config_class: type[Config]) -> Config | None:
        """The settings of the run in this folder; None if it has none.

        Args:
            config_class: Config class of the task.

        Raises:
            ConfigError: ``config.toml`` cannot be read.
        """
        path = self.path / CONFIG_FILE
        if not path.exists() and not self.path.is_file():
            return None
        settings = read_run_settings(self.path, config_class.command)
        # As a resumed run: options that are refused for a new one only may be in it.
        sources = dict.fromkeys(settings, str(path))
        return build_config(config_class, {**settings, "resume": self.path}, source=sources)

    def write_config(self, settings: Mapping[str, Any]) -> None:
        """Write all settings, plain values by name, as a TOML file that repeats the run when given to ``--config``."""
        if not self.writes:
            return
        values = {name: value for name, value in settings.items() if value is not None}
        try:
            encoded = tomli_w.dumps(values).encode()
        except UnicodeEncodeError:
            raise ConfigError(
                "the name of a path is not valid UTF-8, so config.toml cannot hold it",
                hint="make a symbolic link with an ASCII name to it, and give that",
            ) from None
        write_in_run(self.path / CONFIG_FILE, lambda file: file.write(encoded))

    def write_environment(self) -> None:
        """Write the hardware and the versions of packages to ``environment.json``."""
        if self.writes:
            text = json.dumps(environment(), indent=2) + "\n"
            write_in_run(self.path / ENVIRONMENT_FILE, lambda file: file.write(text.encode()))


def open_run(config: Config, *, writes: bool) -> tuple[RunFolder, Config | None]:
    """The folder of a new or resumed run, and the settings that a resumed one has recorded; None if there are none.

    Raises:
        ConfigError: The folder cannot be used: a new run would overwrite another run or its own images.
    """
    path = config.resume or config.out
    refuse_place(path, "--out", folder=True)
    states = run_states(path)
    resume = config.resume is not None or (config.auto_resume and bool(states))
    folder = RunFolder(path, resume=resume, writes=writes)
    if resume:
        return folder, folder.read_config(type(config))
    if states:
        raise ConfigError(
            f"{path} already holds a run",
            hint=f"resume it with --resume {typed(path)} (or --auto-resume), or start another with --out FOLDER",
        )
    _refuse_foreign(path)
    refuse_inside(path, "--out", [one for one in config.images_read() if url_of(one) is None])
    return folder, None


def _refuse_foreign(path: Path) -> None:
    """Refuse to overwrite a finished run's result or files that no run wrote; a killed run's settings may stay."""
    names = (CONFIG_FILE, ENVIRONMENT_FILE, LOG_FILE, CLASSIFIER, RESULT_FILE, "replay.pth")
    there = [name for name in names if (path / name).exists()]
    of_a_run = is_run_config(path / CONFIG_FILE)
    if RESULT_FILE in there and of_a_run:
        raise ConfigError(
            f"{shown(path)} holds the result of a run whose checkpoints were removed; it would be overwritten",
            hint="give --out another folder",
        )
    if there and not of_a_run:
        raise ConfigError(
            f"{shown(path / there[0])} was not written by a run and would be overwritten",
            hint="give --out another folder, or move the file away",
        )


def link_or_copy(source: Path, target: Path) -> None:
    """Create a hard link to a file, or a copy if the file system has no links."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        write_atomically(target, lambda file: _copy(source, file))


def _copy(source: Path, file: IO[bytes]) -> None:
    with source.open("rb") as original:
        shutil.copyfileobj(original, file, 2**24)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
