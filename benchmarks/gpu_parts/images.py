"""Throughput of decoding JPEGs to batches."""

from __future__ import annotations

import functools
import importlib
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpu_parts.work import MASK_RATIO, Work, one_line
from mae.profiling.measuring import timed
from mae.system.environment import usable_cores


def feeding(work: Work) -> None:
    """Batches from all cores: the loader alone, and a training of ViT-B that it feeds."""
    import data_path

    from mae.data.augment import Augmentation
    from mae.data.dataset import ImageDataset
    from mae.data.decoding.jpeg import resolve_decoder
    from mae.data.loader import Batches, make_loader
    from mae.data.sampler import EpochBatches
    from mae.data.sources.scan import scan_images

    os.environ["XDG_CACHE_HOME"] = str(work.folder / "cache")  # what a scan has seen is of no use to others
    originals = data_path.make_photographs(work.folder, "500")
    folder, count = work.folder / "photographs", 8 if work.small else 4096
    folder.mkdir()
    for number in range(count):
        os.link(originals[number % len(originals)], folder / f"{number:05}.jpg")
    images = scan_images([folder], cache_bytes=0).images
    config, batch = work.config("vit_base"), work.batch(256)
    decoder = resolve_decoder("auto")
    augmentation = Augmentation(config.img_size, config.in_chans, (0.2, 1.0), True, decoder)
    workers = 1 if work.small else max(1, int(usable_cores() or 1))
    work.say(decoder=decoder, workers=workers, batch_size=batch, bytes_each=originals[0].stat().st_size)

    def batches() -> Batches:
        order = EpochBatches(len(images), batch, epochs=100, seed=0)
        dataset = ImageDataset(images, augmentation, 0)
        return Batches(make_loader(dataset, order, workers=workers, pin_memory=work.on.is_gpu))

    def rate(use: Callable[[Tensor], object]) -> float:
        source, warm = batches(), 2 if work.small else 2 * workers
        for _ in range(warm):  # what the loader processes had in hand at the start costs nothing
            use(next(source).images)
        work.on.wait()
        began, taken = time.perf_counter(), 0
        while taken < (2 if work.small else 8) or time.perf_counter() - began < (0 if work.small else 8):
            use(next(source).images)
            taken += 1
        work.on.wait()
        return batch * taken / (time.perf_counter() - began)

    work.say(loader_images_per_second=rate(lambda images: None))
    step = work.step(config, "bf16")

    def train(images: Tensor) -> None:
        step.backward(images, MASK_RATIO, torch.rand(len(images), config.num_patches))
        step.update()

    work.say(training_images_per_second=rate(train))


def decoding(work: Work) -> None:
    """Whole JPEGs of 500 px to pixels: on one core, and in batches by nvJPEG through torchcodec or torchvision."""
    import data_path

    paths = data_path.make_photographs(work.folder, "500")
    files = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in paths]
    files = (files * 16)[: 4 if work.small else 64]
    rows: dict[str, Any] = {}
    for name, library in (("torchcodec", "torchcodec.decoders"), ("torchvision", "torchvision.io")):
        for device in dict.fromkeys(("cpu", work.device)):
            try:
                decode = importlib.import_module(library).decode_jpeg
                run = functools.partial(decode, files, mode="RGB", device=work.on.torch if device == "cuda" else "cpu")
                pixels = run()
                seconds = timed(run, work.on.torch, repeats=2 if work.small else 10)
                rate: Any = {"images_per_second": len(files) / statistics.median(seconds), "on": str(pixels[0].device)}
            except Exception as error:  # a build without it says so in many ways
                rate = {"failed": one_line(error)}
            rows[f"{name} {device}"] = rate
            work.say(files_in_a_batch=len(files), rows=rows)
