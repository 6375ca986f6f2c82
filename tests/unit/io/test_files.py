"""A file that is read is never overwritten, under any name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mae.errors import ConfigError
from mae.io.files import refuse_input


def _as_it_is(path: Path) -> Path:
    return path


def _relative(path: Path) -> Path:
    return Path(os.path.relpath(path))


def _with_detours(path: Path) -> Path:
    return path.parent / ".." / path.parent.name / "." / path.name


def _by_link(path: Path) -> Path:
    (path.parent.parent / "link.png").symlink_to(path)
    return path.parent.parent / "link.png"


def _by_relative_link(path: Path) -> Path:
    (path.parent.parent / "link.png").symlink_to(Path(path.parent.name) / path.name)
    return path.parent.parent / "link.png"


def _by_linked_folder(path: Path) -> Path:
    (path.parent.parent / "same").symlink_to(path.parent)
    return path.parent.parent / "same" / path.name


def _by_hard_link(path: Path) -> Path:
    (path.parent.parent / "PHOTO.PNG").hardlink_to(path)
    return path.parent.parent / "PHOTO.PNG"


NAMES = [_as_it_is, _relative, _with_detours, _by_link, _by_relative_link, _by_linked_folder, _by_hard_link]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    path = tmp_path / "photos" / "photo.png"
    path.write_bytes(b"a photograph")
    return path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["written", "read"])
def test_a_file_is_known_by_any_name(name: Callable[[Path], Path], which: str, photo: Path) -> None:
    written, read = (name(photo), photo) if which == "written" else (photo, name(photo))
    with pytest.raises(ConfigError, match="is the photograph itself; it would be overwritten") as caught:
        refuse_input(written, "--out", {"the mask": [photo.parent / "none"], "the photograph": [read]})
    assert caught.value.message.startswith(f"--out {written}")
    assert caught.value.hint == "give --out another name or another folder"


def test_a_folder_stands_for_the_files_in_it(photo: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="photos, whose files are read; it would be"):
        refuse_input(photo, "--out", {}, folders=[photo.parent])
    (tmp_path / "same").symlink_to(photo.parent)
    with pytest.raises(ConfigError, match="same, whose"):
        refuse_input(photo, "--out", {}, folders=[tmp_path / "same"])
    (tmp_path / "link.png").symlink_to(photo)
    with pytest.raises(ConfigError, match="photos, whose"):
        refuse_input(tmp_path / "link.png", "--out", {}, folders=[photo.parent])


def test_what_is_not_read_may_be_written(photo: Path, tmp_path: Path) -> None:
    inputs = {"the photograph": [photo, photo.parent / "gone.png", photo.parent]}
    folders = [photo.parent, photo, photo.parent / "gone"]
    refuse_input(photo.parent / "new.png", "--out", inputs, folders=folders)
    (tmp_path / "photo.png").write_bytes(b"a photograph")
    refuse_input(tmp_path / "photo.png", "--out", inputs, folders=folders)
    (photo.parent / "below").mkdir()
    (photo.parent / "below" / "grid.png").write_bytes(b"drawn before")
    refuse_input(photo.parent / "below" / "grid.png", "--out", inputs, folders=folders)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refuse_input(tmp_path / "loop", "--out", inputs, folders=folders)
