"""Each unusual or hostile file gives the right image or a one-line error; never a hang or a wrong image."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from mae.data.decoding.formats import ImageError
from mae.data.decoding.image import load_image
from mae.data.sources.scan import scan_images
from mae.io.text import shown
from tests.processes import finish, fork
from tests.torture.images import Case, all_cases, write_all


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_all(tmp_path_factory.mktemp("torture"))


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: shown(case.name)[:40])
def test_a_right_image_or_one_clear_line(case: Case, corpus: dict[str, Path]) -> None:
    path = corpus[case.name]
    if case.refused is not None:
        with pytest.raises(ImageError) as caught:
            load_image(path)
        assert caught.value.message.startswith(f"{shown(path)}: ")
        assert re.search(case.refused, caught.value.reason), caught.value.reason
        assert caught.value.message.isprintable()
        assert len(caught.value.reason) < 160
        return
    for in_chans, mode in ((1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")):
        assert load_image(path, in_chans).mode == mode
    pixels = np.asarray(load_image(path), float)
    assert pixels.shape[:2] == (case.size if case.pixels is None else case.pixels.shape[:2])
    if case.pixels is not None:
        assert np.abs(pixels - case.pixels).max() <= case.tolerance


def test_the_first_frame_is_used_and_said(corpus: dict[str, Path]) -> None:
    for name, what in (("frames.gif", "3 frames"), ("frames.webp", "3 frames"), ("pages.tiff", "3 pages")):
        notes: list[str] = []
        load_image(corpus[name], on_note=notes.append)
        assert notes == [f"{corpus[name]}: the first of its {what} is used"]
    load_image(corpus["rgb.png"], on_note=notes.append)
    assert len(notes) == 1


def test_a_scan_keeps_what_begins_well_and_names_the_rest(corpus: dict[str, Path]) -> None:
    scan = scan_images([corpus["rgb.png"].parent])
    found = {path.name for path in scan.images}
    readable = {case.name for case in all_cases() if case.refused is None}
    assert readable <= found
    reasons = {bad.path.name: bad.reason for bad in scan.unreadable}
    for name in ("zero_bytes.jpg", "page.jpg", "pointer.jpg", "dangling.png", "looping.png", "fifo.png", "socket.png"):
        (case,) = (case for case in all_cases() if case.name == name)
        assert re.search(case.refused or "", reasons[name])
    assert not found & set(reasons)
    assert "folder.png" not in found | set(reasons)


def test_a_file_without_permission(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "locked.png"
    Image.new("RGB", (4, 4)).save(path)
    path.chmod(0)
    root = os.geteuid() == 0  # root can read all files
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(ImageError, match="no permission to read it"):
            load_image(path)
    finally:
        if root:
            os.seteuid(0)


def test_strips_change_nothing(corpus: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("rgba.png", "palette_alpha.png", "sixteen.tiff", "float_wide.tiff", "cmyk.jpg", "grey16_clear.png")
    whole = [np.asarray(load_image(corpus[name])) for name in names]
    monkeypatch.setattr("mae.data.decoding.channels.STRIP_PIXELS", 3 * 24)
    for name, expected in zip(names, whole, strict=True):
        assert (np.asarray(load_image(corpus[name])) == expected).all()


def test_what_pillow_logs_is_not_printed(corpus: dict[str, Path]) -> None:
    """Without configured logging, as on the command line."""
    code = (
        "import sys; from pathlib import Path; from mae.data.decoding.image import probe_image\n"
        "print(probe_image(Path(sys.argv[1])))"
    )
    done = finish(fork("-c", code, corpus["many_samples.tiff"]))
    assert (done.stdout, done.stderr) == ("is not an image format that Pillow reads\n", "")
