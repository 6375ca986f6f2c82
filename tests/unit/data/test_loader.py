"""Batches do not depend on the loader processes, nor on where a run is resumed."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Container
from pathlib import Path
from typing import IO

import pytest
import torch
from PIL import Image

from mae.data.augment import Augmentation
from mae.data.dataset import MOST_TRIES, ImageDataset
from mae.data.decoding.formats import ImageError
from mae.data.eval_loader import EvalDataset, eval_batches
from mae.data.eval_transform import EvalTransform
from mae.data.loader import Batches, make_loader, start_worker
from mae.data.sampler import Draw, EpochBatches
from mae.data.sources.base import ImageSource
from mae.data.sources.paths import ImagePaths
from mae.data.sources.remote import RemoteError
from mae.data.sources.scan import scan_images


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = []
    for number in range(7):
        path = tmp_path / f"{number}.png"
        Image.effect_noise((40 + number, 30), 90).convert("RGB").save(path)
        found.append(path)
    return found


def source(paths: list[Path]) -> ImagePaths:
    """Files in one folder, in the given order."""
    (folder,) = {path.parent for path in paths}
    return ImagePaths([(os.fsencode(folder), b"".join(os.fsencode(path.name) + b"\0" for path in paths))])


def batches(paths: list[Path], workers: int, epoch: int = 0, batch: int = 0) -> list[torch.Tensor]:
    dataset = ImageDataset(source(paths), Augmentation((16, 24), 3), seed=5)
    draws = EpochBatches(len(paths), 3, epochs=3, seed=5, start_epoch=epoch, start_batch=batch)
    return [one.images for one in make_loader(dataset, draws, workers=workers)]


def test_workers_change_nothing(paths: list[Path]) -> None:
    alone, helped = batches(paths, 0), batches(paths, 2)
    assert len(alone) == 6
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_going_on_gives_the_same_batches(paths: list[Path]) -> None:
    whole, rest = batches(paths, 0), batches(paths, 0, epoch=1, batch=1)
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], rest, strict=True))


def test_epochs_differ_in_order_and_crops(paths: list[Path]) -> None:
    draws = list(EpochBatches(7, 7, epochs=2, seed=0))
    assert sorted(draw.image for draw in draws[0]) == list(range(7))
    assert [draw.image for draw in draws[0]] != [draw.image for draw in draws[1]]
    dataset = ImageDataset(source(paths), Augmentation((16, 16), 3), seed=0)
    assert not torch.equal(dataset[Draw(0, 1)].image, dataset[Draw(1, 1)].image)
    assert torch.equal(dataset[Draw(0, 1)].image, dataset[Draw(0, 1)].image)
    paths[2].write_bytes(paths[1].read_bytes())
    assert not torch.equal(dataset[Draw(0, 1)].image, dataset[Draw(0, 2)].image)  # the same file, as another image
    other = ImageDataset(source(paths), Augmentation((16, 16), 3), seed=1)
    assert not torch.equal(dataset[Draw(0, 1)].image, other[Draw(0, 1)].image)


def test_the_global_stream_is_left_alone(paths: list[Path]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    batches(paths, 0)
    assert torch.equal(torch.rand(4), expected)


def test_a_file_that_breaks_later_is_replaced_and_named(paths: list[Path]) -> None:
    paths[2].write_bytes(paths[2].read_bytes()[:200])
    sample = ImageDataset(source(paths), Augmentation((16, 16), 3), seed=0)[Draw(0, 2)]
    assert [bad.path for bad in sample.unreadable] == [paths[2]]
    assert sample.unreadable[0].reason
    assert str(paths[2]) not in sample.unreadable[0].reason
    assert sample.image.shape == (16, 16, 3)
    assert sample.image.any()


@pytest.mark.parametrize("cache_bytes", [0, 100_000])
def test_a_file_whose_bytes_cannot_be_read_is_replaced(paths: list[Path], cache_bytes: int) -> None:
    """A failing disk or network opens files, but does not give their bytes."""

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    class Disk(ImagePaths):
        def open(self, index: int) -> IO[bytes]:
            return Failing() if index == 2 else super().open(index)

    disk = Disk([(os.fsencode(paths[0].parent), b"".join(os.fsencode(path.name) + b"\0" for path in paths))])
    sample = ImageDataset(disk, Augmentation((16, 16), 3), seed=0, cache_bytes=cache_bytes)[Draw(0, 2)]
    assert [(bad.path, bad.reason) for bad in sample.unreadable] == [(paths[2], "input/output error")]
    assert sample.number == 3


class Gone(ImageSource):
    """Images on a failed disk, except some; counts the attempts to read."""

    def __init__(self, images: int, there: Container[int] = ()) -> None:
        self.images = images
        self.there = there
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.images

    def name(self, index: int) -> Path:
        return Path(f"/disk/{index}.png")

    def open(self, index: int) -> IO[bytes]:
        self.asked.append(index)
        if index not in self.there:
            raise ImageError(self.name(index), "no such file")
        file = io.BytesIO()
        Image.new("RGB", (20, 20), (index % 256, 9, 9)).save(file, "PNG")
        return file

    def digest(self) -> str:
        return ""


def test_a_disk_that_is_gone_is_not_walked_through() -> None:
    gone = Gone(100_000)
    dataset = ImageDataset(gone, Augmentation((16, 16), 3), seed=0)
    (sample,) = dataset.__getitems__([Draw(0, 99_998), Draw(0, 7)])  # no other need be tried
    assert sample.image is None
    assert len(sample.unreadable) == len(gone.asked) == len(set(gone.asked)) == MOST_TRIES < 20
    assert gone.asked[:3] == [99_998, 99_999, 0]
    (batch,) = make_loader(dataset, EpochBatches(4, 4, epochs=1, seed=0), workers=0)
    assert len(batch.images) == 0
    assert [bad.path for bad in batch.not_replaced] == [bad.path for bad in batch.unreadable]
    assert len(batch.unreadable) == MOST_TRIES


def test_a_gap_of_bad_files_is_bridged_the_same_way_every_time() -> None:
    """Half a folder is unreadable, the next files too, so randomly drawn ones are tried."""
    gone = Gone(1000, range(500, 1000))
    dataset = ImageDataset(gone, Augmentation((16, 16), 3), seed=0)
    samples = [dataset[Draw(0, image)] for image in range(0, 400, 40)]
    assert all(sample.image is not None for sample in samples)
    asked, gone.asked = gone.asked, []
    for image in range(0, 400, 40):
        dataset[Draw(0, image)]
    assert gone.asked == asked
    dataset[Draw(1, 0)]
    assert gone.asked[len(asked) :] != asked[: len(gone.asked) - len(asked)]


def test_a_small_set_is_tried_to_its_last_image() -> None:
    dataset = ImageDataset(Gone(MOST_TRIES, [3]), Augmentation((16, 16), 3), seed=0)
    assert dataset[Draw(0, 4)].image is not None
    assert len(dataset[Draw(0, 4)].unreadable) == MOST_TRIES - 1


class Expired(Gone):
    """Images on a server that no longer answers; another image must not replace them."""

    def open(self, index: int) -> IO[bytes]:
        raise RemoteError(f"{self.name(index)} cannot be read: access is denied", hint="give the whole URL\nagain")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_loader_process_keeps_its_hint(workers: int) -> None:
    dataset = ImageDataset(Expired(4), Augmentation((16, 16), 3), seed=0)
    training = Batches(make_loader(dataset, EpochBatches(4, 4, epochs=1, seed=0), workers=workers))
    in_order = eval_batches(EvalDataset(Expired(4), EvalTransform((16, 16)), 3), [range(4)], workers=workers)
    for batches in (training, in_order):
        with pytest.raises(RemoteError, match=r"^/disk/\d\.png cannot be read: access is denied$") as caught:
            next(batches)
        assert caught.value.hint == "give the whole URL\nagain"
        del caught  # it holds the frame of this test, and so the loader processes


SIZES = [(40 + number) * 30 * 3 for number in range(7)]
INDEX_AND_HEADERS = 8 * (1 + 7) + 7 * (32 + 8)


def test_kept_images_give_the_same_bits(paths: list[Path], tmp_path: Path) -> None:
    jpeg = tmp_path / "photo.jpg"
    Image.effect_noise((40, 33), 90).convert("RGB").save(jpeg, quality=90)
    fresh = ImageDataset(source([*paths, jpeg]), Augmentation((16, 24), 3), seed=5)
    room = 8 * (1 + 8) + SIZES[6] + SIZES[5] + 40 * 33 * 3 + 3 * (32 + 8)
    kept = ImageDataset(source([*paths, jpeg]), Augmentation((16, 24), 3), seed=5, cache_bytes=room)
    draws = [Draw(epoch, image) for epoch in range(3) for image in (7, 6, 5, 0, 1)]
    samples = [kept[draw] for draw in draws]
    assert [sample.cached for sample in samples] == [False] * 5 + [True, True, True, False, False] * 2
    for draw, sample in zip(draws, samples, strict=True):
        image = fresh[draw].image
        assert image is not None
        assert sample.image is not None
        assert torch.equal(image, sample.image)


def test_kept_photographs_are_turned_and_never_larger_than_their_crops_need(tmp_path: Path) -> None:
    """A crop of a large photograph may be decoded at a smaller size, so the decoded photograph is not kept."""
    turned, large = tmp_path / "turned.jpg", tmp_path / "large.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((40, 33), 90).convert("RGB").save(turned, quality=90, exif=exif)
    Image.effect_noise((90, 60), 90).convert("RGB").save(large, quality=90)
    fresh, kept = (
        ImageDataset(source([turned, large]), Augmentation((16, 24), 3), seed=5, cache_bytes=cache_bytes)
        for cache_bytes in (0, 100_000)
    )
    for draw in [Draw(epoch, image) for epoch in range(6) for image in range(2)]:
        sample = kept[draw]
        assert sample.cached == (draw.epoch > 0 and draw.image == 0)
        assert sample.image is not None
        assert torch.equal(sample.image, fresh[draw].image)


def test_workers_share_what_is_kept(paths: list[Path]) -> None:
    """Images go to another worker in every epoch; if the cache has room for all, every worker finds each image."""
    augmentation = Augmentation((16, 24), 3)
    draws = EpochBatches(len(paths), 3, epochs=20, seed=5)
    dataset = ImageDataset(source(paths), augmentation, seed=5, cache_bytes=sum(SIZES) + INDEX_AND_HEADERS)
    batches = list(make_loader(dataset, draws, workers=2))
    fresh = make_loader(ImageDataset(source(paths), augmentation, seed=5), draws, workers=0)
    assert all(torch.equal(one.images, other.images) for one, other in zip(batches, fresh, strict=True))
    assert sum(batch.cached for batch in batches) <= 20 * 6 - len(paths)  # each is decoded once
    assert [batch.cached for batch in batches[-20:]] == [3] * 20  # up to eight batches are loaded at the same time
    again = list(make_loader(dataset, draws, workers=1))  # as after a rollback: cached images are still there
    assert [batch.cached for batch in again] == [3] * 40


@pytest.mark.parametrize("workers", [0, 2])
def test_a_row_group_is_decoded_once_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Neighbours in the order are read by different workers, and groups follow in windows."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    from mae.data.sources.parquet import TableSource

    file = io.BytesIO()
    Image.effect_noise((12, 12), 90).convert("RGB").save(file, "PNG")
    parquet.write_table(pa.table({"image": [file.getvalue()] * 1600}), tmp_path / "a.parquet", row_group_size=20)
    monkeypatch.setattr("mae.data.sources.parquet.LEAST_KEPT_BYTES", 2 * 16 * 20 * len(file.getvalue()) + 50_000)
    count, decode = tmp_path / "count", TableSource._decode

    def counted(self: TableSource, group: int) -> list[bytes | None]:
        with count.open("ab", buffering=0) as log:
            log.write(bytes([group]))
        return decode(self, group)

    monkeypatch.setattr(TableSource, "_decode", counted)
    images = scan_images([tmp_path / "a.parquet"]).images
    draws = EpochBatches(1600, 8, epochs=1, seed=0, groups=images.groups)
    dataset = ImageDataset(images, Augmentation((8, 8), 3), seed=0)
    assert sum(len(batch.images) for batch in make_loader(dataset, draws, workers=workers)) == 1600
    assert sorted(count.read_bytes()) == list(range(80))


def test_a_signal_to_the_process_group_leaves_the_loader_processes_alive(paths: list[Path]) -> None:
    """As torchrun's SIGTERM, after which a run still finishes its step and saves."""
    loaded = Batches(make_loader(ImageDataset(source(paths), Augmentation((16, 16), 3), seed=0),
                                 EpochBatches(7, 3, epochs=1, seed=0), workers=2))  # fmt: skip
    next(loaded)  # now they are set up
    next(loaded)
    groups = {os.getpgid(worker.pid) for worker in loaded.workers}
    assert groups == {worker.pid for worker in loaded.workers}


def test_a_worker_says_nothing_of_a_training_process_that_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second Ctrl-C stops the process while it receives a batch."""
    interrupted = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(os, "setpgrp", lambda: None)  # this is the tests' process
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    try:
        start_worker(0)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, interrupted)
    for error in (ConnectionResetError(104, "Connection reset by peer"), EOFError(), BrokenPipeError()):
        sys.excepthook(type(error), error, None)
    assert capsys.readouterr().err == ""
    sys.excepthook(ValueError, ValueError("a bug"), None)
    assert "ValueError: a bug" in capsys.readouterr().err
