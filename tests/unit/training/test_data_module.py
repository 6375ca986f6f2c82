"""Image data that the processes of a run on one machine share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mae.data.sources.scan import scan_images
from mae.system.distributed import Ranks
from mae.training.config import PretrainConfig
from mae.training.data_module import DataModule
from mae.training.plan import make_plan
from mae.training.position import Position
from mae.training.tasks.pretrain import augmentation_of


class Machine:
    """Simulate two processes on one machine, one after the other; the second receives the first one's messages."""

    def __init__(self, ranks: int = 2) -> None:
        self.said: list[Any] = []
        self.ranks = ranks

    def rank(self, number: int, local_rank: int | None = None) -> Ranks:
        ranks = Ranks(number, self.ranks, number if local_rank is None else local_rank)

        def gather(value: Any) -> list[Any]:
            self.said += [value]
            return [*self.said, *[None] * (self.ranks - len(self.said))]

        ranks.gather = gather  # type: ignore[method-assign]
        return ranks


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    for number in range(8):
        Image.effect_noise((20 + number, 20), 90).convert("RGB").save(tmp_path / f"{number}.png")
    return PretrainConfig(
        data=(tmp_path,), variant="vit_tiny", image_size=(16, 16), patch_size=8, batch_size=4, epochs=3,
        warmup_epochs=0, workers=0, device="cpu", mask_ratio=0.5, cache=1,
    )  # fmt: skip


def feed(config: PretrainConfig, ranks: Ranks) -> DataModule:
    images = scan_images(config.data).images
    plan = make_plan(config, len(images), processes=ranks.size)
    cache_bytes = config.cache * 2**20
    return DataModule(
        plan, images, augmentation_of(config), ranks, torch.device("cpu"), workers=0, cache_bytes=cache_bytes
    )


def epoch(one: DataModule, number: int) -> list[int]:
    """Number of cached images in each batch of an epoch."""
    return [batch.cached for batch in one.again(Position(epoch=number), one.plan.batches_per_epoch)]


def test_images_that_another_process_kept_are_found(config: PretrainConfig) -> None:
    """Each of two processes gets half of an epoch's images, another half than in the epoch before."""
    machine = Machine()
    first, second = feed(config, machine.rank(0)), feed(config, machine.rank(1))
    assert epoch(first, 0) == epoch(second, 0) == [0]
    assert epoch(first, 1) == epoch(second, 1) == [4]
    alone = feed(config, Ranks())
    assert [sum(epoch(alone, number)) for number in (0, 1)] == [0, 8]


def test_another_machine_has_memory_of_its_own(config: PretrainConfig) -> None:
    machine = Machine()
    first, second = feed(config, machine.rank(0)), feed(config, machine.rank(1, local_rank=0))
    assert epoch(first, 0) == [0]
    assert second.dataset.cache is not None
    assert first.dataset.cache is not None
    assert second.dataset.cache.memory.address.inode != first.dataset.cache.memory.address.inode
    assert second.dataset.cache.memory.size == first.dataset.cache.memory.size == 2**20


def test_where_memory_cannot_be_shared_the_limit_holds_all_the_same(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For instance where each process runs in a container of its own."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("mae.data.shared_memory.SharedMemory.adopt", lambda self, address: False)
    machine = Machine()
    feed(config, machine.rank(0))
    second = feed(config, machine.rank(1))
    assert second.dataset.cache is not None
    assert second.dataset.cache.memory.size == 2**19


def test_row_groups_are_shared_too(config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    from mae.data.sources.parquet import TableSource

    images = [(tmp_path / f"{number}.png").read_bytes() for number in range(8)]
    parquet.write_table(pa.table({"image": images}), tmp_path / "images.parquet", row_group_size=4)
    config = dataclasses.replace(config, data=(tmp_path / "images.parquet", tmp_path / "0.png"), cache=0)
    decoded: list[int] = []
    decode = TableSource._decode
    monkeypatch.setattr(TableSource, "_decode", lambda self, group: decoded.append(group) or decode(self, group))
    machine = Machine()
    first, second = feed(config, machine.rank(0)), feed(config, machine.rank(1))
    for number in range(3):
        assert epoch(first, number) == epoch(second, number) == [0]
    assert sorted(decoded) == [0, 1]
