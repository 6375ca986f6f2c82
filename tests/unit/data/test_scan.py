"""Pictures are found by content in any tree, and what is none is counted or named."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mae.data.scan import scan_pictures
from mae.errors import DataError


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, format="PNG")
    return path


def test_any_tree_with_hidden_and_other_files(tmp_path: Path) -> None:
    wanted = [picture(tmp_path / name) for name in ("a.png", "deep/er/b.jpg", "class_1/no_suffix")]
    picture(tmp_path / ".hidden.png")
    picture(tmp_path / ".cache/c.png")
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "broken.jpg").write_bytes(b"")
    scan = scan_pictures([tmp_path])
    assert set(scan.pictures) == set(wanted)
    assert [bad.path.name for bad in scan.unreadable] == ["broken.jpg"]
    assert "0 bytes" in scan.unreadable[0].reason
    assert scan.others == 1


def test_several_sources_and_overlaps_count_once(tmp_path: Path) -> None:
    first, second = picture(tmp_path / "x/a.png"), picture(tmp_path / "y/b.png")
    assert tuple(scan_pictures([first, tmp_path / "x", tmp_path / "y", first]).pictures) == (first, second)


def test_circular_links_end(tmp_path: Path) -> None:
    path = picture(tmp_path / "x/a.png")
    (tmp_path / "x/loop").symlink_to(tmp_path, target_is_directory=True)
    assert path in scan_pictures([tmp_path]).pictures
    assert len(scan_pictures([tmp_path]).pictures) == 1


def test_empty_and_missing_folders_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no picture in .*: it is empty"):
        scan_pictures([tmp_path])
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(DataError, match="1 other files"):
        scan_pictures([tmp_path])
    with pytest.raises(DataError, match="no such folder"):
        scan_pictures([tmp_path / "none"])


def test_progress_is_told(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number}.txt").touch()
    picture(tmp_path / "a.png")
    seen: list[int] = []
    scan_pictures([tmp_path], seen.append)
    assert seen == [256]
