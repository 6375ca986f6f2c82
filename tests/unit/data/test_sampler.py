"""The order of an epoch, whole or divided over ranks; and a loader process that dies."""

from __future__ import annotations

import gc
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from mae.data.augment import Augmentation
from mae.data.dataset import ImageDataset
from mae.data.loader import Batches, LoaderError, make_loader
from mae.data.sampler import EpochBatches, epoch_order
from mae.data.sources.base import GROUPS_AT_ONCE
from mae.data.sources.scan import scan_images
from mae.errors import ConfigError


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("place", [(0, 0), (1, 2)])
def test_ranks_share_the_same_batches(world_size: int, place: tuple[int, int]) -> None:
    whole = list(EpochBatches(40, 6, 3, 7, *place))
    ranks = [list(EpochBatches(40, 6, 3, 7, *place, rank=rank, world_size=world_size)) for rank in range(world_size)]
    joined = [[draw for part in parts for draw in part] for parts in zip(*ranks, strict=True)]
    assert joined == whole
    for epoch in {batch[0].epoch for batch in whole} - {place[0]}:
        seen = [draw.image for batch in joined for draw in batch if draw.epoch == epoch]
        assert len(set(seen)) == len(seen) == 36


def test_after_a_rollback_the_orders_are_others() -> None:
    first, again, third = (next(iter(EpochBatches(40, 40, 1, 7, turn=turn))) for turn in (0, 1, 2))
    assert sorted(first) == sorted(again) == sorted(third)
    assert first != again != third != first


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="a batch of 6 images cannot be shared equally by 4"):
        EpochBatches(40, 6, 1, 0, world_size=4)


def test_groups_stay_near_each_other_and_all_images_come_once() -> None:
    sizes = [7, 3, 11, 1] * 20
    order = epoch_order(sum(sizes), sizes, stream())
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    group_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    seen = group_of[order]
    finished: set[int] = set()
    window: set[int] = set()
    for group in seen.tolist():
        if group not in window and len(window) == GROUPS_AT_ONCE:
            finished |= window
            window = set()
        assert group not in finished
        window.add(group)
    changes = int((seen[1:] != seen[:-1]).sum())
    assert changes > 3 * len(sizes)  # unshuffled there would be one for each group
    assert not torch.equal(order, epoch_order(sum(sizes), sizes, stream(1)))
    assert torch.equal(epoch_order(9, (), stream(3)), torch.randperm(9, generator=stream(3)))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the signal may interrupt torch in `open`
def test_a_killed_worker_is_an_error_that_names_the_cause(tmp_path: Path) -> None:
    for number in range(8):
        Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / f"{number}.png")
    dataset = ImageDataset(scan_images([tmp_path]).images, Augmentation((16, 16), 3), seed=0)
    batches = Batches(make_loader(dataset, EpochBatches(8, 4, epochs=10_000, seed=0), workers=2))
    next(batches)
    victim = batches.workers[0].pid
    started, handler, caught = time.monotonic(), signal.getsignal(signal.SIGCHLD), None
    os.kill(victim, signal.SIGKILL)
    try:
        for _ in batches:
            pass
    except RuntimeError as error:  # not pytest.raises: a second signal might come while it looks at the first
        caught = batches.explain(error)
    assert isinstance(caught, LoaderError)
    assert time.monotonic() - started < 30
    assert caught.message == f"loader process {victim} was killed by SIGKILL"
    assert "memory" in (caught.hint or "")
    other = RuntimeError("CUDA error")
    assert batches.explain(other) is other
    batches.workers[1].kill()  # torch would wait five seconds for it
    del batches, caught
    gc.collect()  # torch's handler would raise again for a loader that is still there
    signal.signal(signal.SIGCHLD, handler)
