"""The states in a run's folder by name. Standard library only."""

from __future__ import annotations

import os
import re
from pathlib import Path

STATE = "checkpoint-last"
CLASSIFIER = "classifier.pth"  # of finetune and linprobe: the weights of the tested epoch
WHOLE, SHARDS = ".pth", ".dcp"
_SLOT = re.compile(rf"{STATE}(?:-(\d+))?({re.escape(WHOLE)}|{re.escape(SHARDS)})")
_KEPT = re.compile(rf"checkpoint-(\d+){re.escape(WHOLE)}")


def run_states(folder: Path) -> list[Path]:
    """The states that a run can resume from, newest first; empty if the folder does not exist."""
    slots: list[tuple[int, bool, str]] = []
    kept: list[tuple[int, str]] = []
    for name in os.listdir(folder) if folder.is_dir() else ():  # noqa: PTH208 - names are all that is needed
        if slot := _SLOT.fullmatch(name):
            slots.append((int(slot[1] or 0), slot[2] != WHOLE, name))
        elif epoch := _KEPT.fullmatch(name):
            kept.append((-int(epoch[1]), name))
    return [folder / name for *_, name in sorted(slots)] + [folder / name for _, name in sorted(kept)]


def run_classifier(folder: Path) -> Path | None:
    """The classifier in a run's folder, or None."""
    path = folder / CLASSIFIER
    return path if path.is_file() else None


def state_slot(folder: Path, number: int) -> Path | None:
    """The newest state (0), or the one ``number`` saves before it: a file, a folder of shards, or None."""
    for kind in (WHOLE, SHARDS):
        path = folder / f"{STATE}{f'-{number}' if number else ''}{kind}"
        if path.exists():
            return path
    return None
