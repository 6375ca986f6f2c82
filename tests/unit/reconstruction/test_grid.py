"""The page contains every image, unscaled or enlarged by an integer factor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae.errors import ConfigError
from mae.reconstruction.grid import GAP, MARGIN, TITLE_SIZE, Row, draw_grid, encode_image, write_image


def test_images_stand_where_they_should() -> None:
    red, blue = Image.new("RGB", (200, 100), "red"), Image.new("RGB", (200, 100), "blue")
    page = np.asarray(draw_grid(("a", "b"), [Row([red, blue], "one"), Row([blue, red], "two")]))
    top = MARGIN + TITLE_SIZE + 8
    assert page.shape[1] == 2 * MARGIN + 400 + GAP
    assert (page[top : top + 100, MARGIN : MARGIN + 200] == (255, 0, 0)).all()
    assert (page[top : top + 100, MARGIN + 200 + GAP : MARGIN + 400 + GAP] == (0, 0, 255)).all()
    assert (page[:, : MARGIN - 2] == 255).all()


def test_small_images_are_enlarged_by_a_whole_factor() -> None:
    small = Image.effect_noise((32, 32), 90).convert("RGB")
    page = np.asarray(draw_grid(("a",), [Row([small], "")]))
    top = MARGIN + TITLE_SIZE + 8
    shown = page[top : top + 192, MARGIN : MARGIN + 192]
    assert (shown == np.asarray(small).repeat(6, axis=0).repeat(6, axis=1)).all()


def test_long_captions_wrap_and_grey_images_are_drawn() -> None:
    short = draw_grid(("a",), [Row([Image.new("L", (200, 50))], "word")])
    long = draw_grid(("a",), [Row([Image.new("L", (200, 50))], "word " * 40)], note="note " * 20)
    assert long.height > short.height + 40
    assert long.width == short.width


def test_a_page_that_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    page = Image.new("L", (9, 16_384))
    with pytest.raises(ConfigError, match="9 x 16,384 pixels are more than WEBP can hold"):
        write_image(tmp_path / "page.webp", page)
    assert not list(tmp_path.iterdir())
    write_image(tmp_path / "page.png", page)


def test_long_images_stand_one_below_the_other() -> None:
    red, blue = Image.new("RGB", (900, 20), "red"), Image.new("RGB", (900, 20), "blue")
    page = np.asarray(draw_grid(("a", "b"), [Row([red, blue], "one")]))
    assert page.shape[1] == 2 * MARGIN + 900
    assert page.shape[0] < 150
    rows = [int(np.flatnonzero((page[:, MARGIN + 450] == colour).all(axis=1))[0]) for colour in RED_BLUE]
    assert rows[0] + 20 < rows[1]
    assert (page[rows[0] : rows[0] + 20, MARGIN : MARGIN + 900] == RED_BLUE[0]).all()
    tall = np.asarray(draw_grid(("a", "b"), [Row([red.rotate(90, expand=True), blue.rotate(90, expand=True)], "")]))
    assert tall.shape[0] < 1000
    columns = [int(np.flatnonzero((tall[450] == colour).all(axis=1))[0]) for colour in RED_BLUE]
    assert columns[0] + 20 < columns[1]


RED_BLUE = np.array([[255, 0, 0], [0, 0, 255]])


@pytest.mark.parametrize("size", [(16, 1024), (1024, 16), (1, 5000), (5000, 1), (32, 32), (300, 8)])
def test_a_page_is_never_far_longer_than_its_images(size: tuple[int, int]) -> None:
    """Small images are enlarged, but an image one pixel wide is not enlarged to 200, as it would be a million high."""
    page = draw_grid(("original", "masked", "reconstruction"), [Row([Image.new("L", size)] * 3, "a caption")])
    assert page.width < 3 * max(size[0], 200) + 200
    assert page.height < max(size[1], 1024) + 300


def test_titles_never_run_into_each_other() -> None:
    narrow = draw_grid(("original", "with visible 100%"), [Row([Image.new("L", (10, 1024))] * 2, "")])
    assert narrow.width > 2 * 120  # the longer title's width


def test_wide_and_square_images_share_a_page() -> None:
    square, wide = Image.new("RGB", (200, 200), "red"), Image.new("RGB", (1000, 50), "blue")
    page = np.asarray(draw_grid(("a", "b"), [Row([wide, wide], "w"), Row([square, square], "s")]))
    assert ((page == (0, 0, 255)).all(axis=2).sum(), (page == (255, 0, 0)).all(axis=2).sum()) == (100_000, 80_000)
    top, left = np.argwhere((page == (255, 0, 0)).all(axis=2))[0]
    assert (page[top - TITLE_SIZE - 8 : top - 8, left : left + 200] < 80).any()  # the title, darker than captions


def test_smaller_images_stand_in_the_middle() -> None:
    red, blue = Image.new("RGB", (200, 100), "red"), Image.new("RGB", (80, 40), "blue")
    page = np.asarray(draw_grid(("a", "b"), [Row([red, blue], "")]))
    top, left = np.argwhere((page == (0, 0, 255)).all(axis=2))[0]
    assert (top, left) == (MARGIN + TITLE_SIZE + 8 + 30, MARGIN + 200 + GAP + 60)


def test_a_page_that_nobody_could_look_at_is_not_drawn() -> None:
    with pytest.raises(ConfigError, match="at most 65,500 are drawn") as caught:
        draw_grid(("a",), [Row([Image.new("1", (8, 8))], "")] * 400)
    assert "--limit" in (caught.value.hint or "")


@pytest.mark.parametrize(("kind", "begins"), [("PNG", b"\x89PNG"), ("JPEG", b"\xff\xd8\xff"), ("WEBP", b"RIFF")])
def test_bytes_for_a_stream(kind: str, begins: bytes) -> None:
    assert encode_image(Image.new("RGB", (8, 8)), kind, "it").startswith(begins)
