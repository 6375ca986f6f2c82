"""The page holds every picture, unscaled or enlarged by a whole factor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae.errors import ConfigError
from mae.figure import GAP, MARGIN, TITLE_SIZE, Row, draw_grid, write_picture


def test_pictures_stand_where_they_should() -> None:
    red, blue = Image.new("RGB", (200, 100), "red"), Image.new("RGB", (200, 100), "blue")
    page = np.asarray(draw_grid(("a", "b"), [Row([red, blue], "one"), Row([blue, red], "two")]))
    top = MARGIN + TITLE_SIZE + 8
    assert page.shape[1] == 2 * MARGIN + 400 + GAP
    assert (page[top : top + 100, MARGIN : MARGIN + 200] == (255, 0, 0)).all()
    assert (page[top : top + 100, MARGIN + 200 + GAP : MARGIN + 400 + GAP] == (0, 0, 255)).all()
    assert (page[:, : MARGIN - 2] == 255).all()


def test_small_pictures_are_enlarged_by_a_whole_factor() -> None:
    small = Image.effect_noise((32, 32), 90).convert("RGB")
    page = np.asarray(draw_grid(("a",), [Row([small], "")]))
    top = MARGIN + TITLE_SIZE + 8
    shown = page[top : top + 192, MARGIN : MARGIN + 192]
    assert (shown == np.asarray(small).repeat(6, axis=0).repeat(6, axis=1)).all()


def test_long_captions_wrap_and_grey_pictures_are_drawn() -> None:
    short = draw_grid(("a",), [Row([Image.new("L", (200, 50))], "word")])
    long = draw_grid(("a",), [Row([Image.new("L", (200, 50))], "word " * 40)], note="note " * 20)
    assert long.height > short.height + 40
    assert long.width == short.width


def test_a_page_that_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    page = Image.new("L", (9, 16_384))
    with pytest.raises(ConfigError, match="9 x 16,384 pixels are more than WEBP can hold"):
        write_picture(tmp_path / "page.webp", page)
    assert not list(tmp_path.iterdir())
    write_picture(tmp_path / "page.png", page)
