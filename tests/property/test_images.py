"""Properties of crops, names with braces and the order of epochs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mae.data.crop import Box, draw_box, resample
from mae.data.decoding.orientation import TURNS
from mae.data.sampler import Draw, EpochBatches, epoch_order
from mae.data.sources.scan import MOST_NAMES, expand_braces
from mae.errors import DataError

sides = st.integers(1, 3000)
seeds = st.integers(0, 2**62)


def _pair(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(st.floats(low, high), st.floats(low, high)).map(lambda two: (min(two), max(two)))


@given(sides, sides, _pair(0.01, 1), _pair(0.2, 5), seeds)
@example(rows=9, columns=1, scale=(0.5, 0.5), ratio=(4.0, 4.0), seed=0)
@example(rows=1, columns=9, scale=(0.5, 0.5), ratio=(0.2, 0.2), seed=0)
def test_a_crop_lies_inside_and_keeps_its_limits(
    rows: int, columns: int, scale: tuple[float, float], ratio: tuple[float, float], seed: int
) -> None:
    box = draw_box(rows, columns, scale, torch.Generator().manual_seed(seed), ratio)
    assert box.top >= 0 <= box.left
    assert 0 < box.height <= rows - box.top
    assert 0 < box.width <= columns - box.left
    assert all(side == int(side) for side in box)
    # Sides are rounded to whole pixels; if no crop fits, it is the largest part in the middle.
    low, high = (share * rows * columns for share in scale)
    fits = (
        (box.height + 0.51) * (box.width + 0.51) >= low * 0.999
        and (box.height - 0.51) * (box.width - 0.51) <= high * 1.001
        and (box.width + 0.51) / max(box.height - 0.51, 1e-9) >= ratio[0] * 0.999
        and (box.width - 0.51) / (box.height + 0.51) <= ratio[1] * 1.001
    )
    largest = (box.height == rows or box.width == columns) and (box.top, box.left) == (
        (rows - box.height) // 2,
        (columns - box.width) // 2,
    )
    assert fits or largest
    again = draw_box(rows, columns, scale, torch.Generator().manual_seed(seed), ratio)
    assert again == box


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([*TURNS]), st.data())
def test_a_turned_box_lies_inside_too(rows: int, columns: int, number: int, data: st.DataObject) -> None:
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    box = Box(top, left, data.draw(st.integers(1, rows - top)), data.draw(st.integers(1, columns - left)))
    turn = TURNS[number]
    stored_rows, stored_columns = (columns, rows) if turn.swap else (rows, columns)
    pixels = torch.arange(stored_rows * stored_columns).reshape(stored_rows, stored_columns, 1)
    stored = turn.stored(box, rows, columns)
    assert stored.height * stored.width == box.height * box.width
    part = pixels[int(stored.top) :, int(stored.left) :][: int(stored.height), : int(stored.width)]
    upright = turn.apply(pixels)[top:, left:][: int(box.height), : int(box.width)]
    assert torch.equal(turn.apply(part), upright)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(1, 4), st.integers(0, 255), seeds)
def test_a_plain_colour_stays_plain(rows: int, columns: int, size: int, channels: int, value: int, seed: int) -> None:
    pixels = np.full((rows, columns, channels), value, np.uint8)
    if channels in (2, 4):
        pixels[:, :, -1] = 255
    box = draw_box(rows, columns, (0.2, 1.0), torch.Generator().manual_seed(seed))
    got = resample(pixels, box, (size, size + 1))
    assert got.shape == (size, size + 1, channels)
    assert (got[:, :, 0].int() - value).abs().max() <= 1


@given(st.integers(0, 200), st.integers(0, 60), st.integers(1, 7), st.lists(st.text("abc", max_size=3), min_size=2))
def test_braces(first: int, more: int, digits: int, words: list[str]) -> None:
    low, high = f"{first:0{digits}}", f"{first + more:0{digits}}"
    numbers = [str(path) for path in expand_braces(Path(f"/none/s-{{{low}..{high}}}.tar"))]
    assert numbers == [f"/none/s-{number:0{digits}}.tar" for number in range(first, first + more + 1)]
    both = [str(path) for path in expand_braces(Path(f"/none/{{{','.join(words)}}}-{{{low}..{high}}}.tar"))]
    assert both == [
        f"/none/{word}-{number:0{digits}}.tar" for word in words for number in range(first, first + more + 1)
    ]


@given(st.text(st.characters(exclude_characters="{}\0", exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_names_without_braces_stay(name: str) -> None:
    assert expand_braces(Path(name)) == [Path(name)]


@pytest.mark.parametrize("pattern", ["{0..99999999999999}", "{0..9999}{0..9999}", "{a,b}" * 40])
def test_braces_that_stand_for_too_many(pattern: str) -> None:
    with pytest.raises(DataError, match=f"at most {MOST_NAMES:,}"):
        expand_braces(Path(f"/none/{pattern}.tar"))


def test_braces_that_count_down() -> None:
    with pytest.raises(DataError, match=r"\{9\.\.0\} counts down"):
        expand_braces(Path("/none/{9..0}.tar"))


@given(st.lists(st.integers(1, 30), max_size=60), seeds)
def test_an_order_holds_every_image_once(groups: list[int], seed: int) -> None:
    images = sum(groups) or 17
    order = epoch_order(images, groups, torch.Generator().manual_seed(seed))
    assert sorted(order.tolist()) == list(range(images))
    assert torch.equal(order, epoch_order(images, groups, torch.Generator().manual_seed(seed)))


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 90), st.integers(1, 4), seeds, st.data())
def test_ranks_share_an_epoch(world: int, share: int, more: int, epochs: int, seed: int, data: st.DataObject) -> None:
    batch = world * share
    images = batch + more
    whole = list(EpochBatches(images, batch, epochs, seed))
    assert len(whole) == epochs * (images // batch)
    ranks = [list(EpochBatches(images, batch, epochs, seed, rank=rank, world_size=world)) for rank in range(world)]
    for number, draws in enumerate(whole):
        assert [draw for rank in ranks for draw in rank[number]] == draws
    for epoch in range(epochs):
        seen = [draw for draws in whole for draw in draws if draw.epoch == epoch]
        assert len(set(seen)) == len(seen) == images // batch * batch
        assert all(isinstance(draw, Draw) and 0 <= draw.image < images for draw in seen)
    done = data.draw(st.integers(0, len(whole) - 1))
    place = divmod(done, images // batch)
    assert list(EpochBatches(images, batch, epochs, seed, *place)) == whole[done:]
    if epochs > 1 and images > 12:
        assert [draw.image for draw in whole[0]] != [draw.image for draw in whole[images // batch]] or batch < 4
