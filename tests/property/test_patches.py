"""Properties of patches, masks and position embeddings of any size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mae.checkpoints.pos_tables import follows_formula, grid_of
from mae.config import num_kept
from mae.errors import ConfigError
from mae.masking import masking_from_order, random_masking, take_patches
from mae.patch_embed import patchify, unpatchify
from mae.pos_embed import sincos_2d

grids = st.tuples(st.integers(1, 9), st.integers(1, 9))
widths = st.integers(1, 12).map(lambda quarter: 4 * quarter)


@given(grids, st.integers(1, 7), st.integers(1, 5), st.integers(1, 3))
def test_patches_are_pixels_and_come_back(grid: tuple[int, int], side: int, channels: int, batch: int) -> None:
    shape = (batch, channels, grid[0] * side, grid[1] * side)
    imgs = torch.arange(batch * channels * shape[2] * shape[3]).reshape(shape)
    patches = patchify(imgs, side)
    assert patches.shape == (batch, grid[0] * grid[1], side * side * channels)
    assert torch.equal(unpatchify(patches, side, grid), imgs)
    # One pixel by hand: patch in reading order, then row, column, channel.
    row, column = shape[2] - 1, shape[3] // 2
    patch = (row // side) * grid[1] + column // side
    place = ((row % side) * side + column % side) * channels
    assert patches[-1, patch, place : place + channels].tolist() == imgs[-1, :, row, column].tolist()


@given(st.integers(1, 300), st.floats(0, 1, exclude_max=True))
def test_as_many_are_kept_as_the_official_model_keeps(patches: int, ratio: float) -> None:
    wanted = int(patches * (1 - ratio))
    if wanted < 1:
        with pytest.raises(ConfigError):
            num_kept(patches, ratio)
    else:
        assert 1 <= num_kept(patches, ratio) == wanted <= patches


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(2, 120), st.floats(0, 0.95), st.integers(1, 4))
def test_a_mask_is_a_choice_of_the_lowest_noise(seed: int, batch: int, patches: int, ratio: float, levels: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    # Few levels, so that there are ties; with one level all are tied.
    noise = torch.randint(0, 10**levels, (batch, patches), generator=stream).float() if levels < 4 else (
        torch.rand(batch, patches, generator=stream)
    )  # fmt: skip
    if int(patches * (1 - ratio)) < 1:
        return
    masking = random_masking(noise, ratio)
    kept = num_kept(patches, ratio)
    everything = torch.cat([masking.ids_keep, masking.ids_masked], dim=1)
    assert masking.ids_keep.shape == (batch, kept)
    for row, values in zip(everything.tolist(), noise.tolist(), strict=True):
        assert row == sorted(range(patches), key=lambda position: (values[position], position))
    assert torch.equal(everything.gather(1, masking.ids_restore), torch.arange(patches).expand(batch, -1))
    assert masking.mask.sum(dim=1).tolist() == [patches - kept] * batch
    assert (take_patches(masking.mask[:, :, None], masking.ids_keep) == 0).all()
    for one, two in zip(masking, random_masking(noise.double(), ratio), strict=True):
        assert torch.equal(one, two)
    alone = masking_from_order(noise[-1:], kept)  # an image's mask does not depend on its neighbours
    assert torch.equal(alone.ids_keep, masking.ids_keep[-1:])


@given(widths, grids)
def test_position_tables(width: int, grid: tuple[int, int]) -> None:
    rows, columns = grid
    table = sincos_2d(width, grid, dtype=torch.float64)
    assert table.shape == (1, 1 + rows * columns, width)
    assert (table[:, 0] == 0).all()
    # Each frequency of each axis gives a sine and a cosine, whose squares sum to one.
    torch.testing.assert_close(table[0, 1:].square().sum(dim=1), torch.full((rows * columns,), width / 2).double())
    places = table[0, 1:].reshape(rows, columns, width)
    half = width // 2
    slowest = torch.arange(columns).double() * 10000.0 ** (4 / width - 1)
    torch.testing.assert_close(places[0, :, 0], torch.arange(columns).double().sin())
    torch.testing.assert_close(places[0, :, half - 1], slowest.cos())
    assert torch.equal(places[..., :half], places[:1, :, :half].expand(rows, -1, -1))  # the column alone
    assert torch.equal(places[..., half:], places[:, :1, half:].expand(-1, columns, -1))  # the row alone
    turned = sincos_2d(width, (columns, rows), dtype=torch.float64)[0, 1:].reshape(columns, rows, width)
    assert torch.equal(turned.transpose(0, 1), torch.cat([places[..., half:], places[..., :half]], dim=2))
    assert len(torch.unique(places.reshape(-1, width), dim=0)) == rows * columns


@given(widths, grids, st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_a_table_tells_its_grid(width: int, grid: tuple[int, int], dtype: torch.dtype) -> None:
    table = sincos_2d(width, grid).to(dtype)
    found = grid_of(table)
    assert found is not None
    assert follows_formula(table, found)
    if dtype == torch.float32:
        assert found == grid
    table[0, -1, 0] += 0.5
    assert grid_of(table) != grid
