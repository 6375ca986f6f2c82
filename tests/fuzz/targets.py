"""The fuzz targets and their initial inputs; as a program: python -m tests.fuzz.targets image --seconds 60."""

from __future__ import annotations

import argparse
import io
import logging
import resource
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from safetensors.torch import save

from mae.checkpoints import load_checkpoint
from mae.checkpoints.build import build_usable
from mae.checkpoints.dialects import to_hugging_face
from mae.config import MAEConfig
from mae.data.augment import Augmentation
from mae.data.decoding.image import load_image, open_image, probe_image
from mae.data.decoding.jpeg import resolve_decoder
from mae.data.sources.archive import ArchiveSource, list_archive
from mae.errors import MaeError
from tests.golden import official
from tests.torture.images import all_cases
from tests.unit.checkpoints.hostile import HOSTILE

SECONDS_FOR_ONE = 60  # while every line is traced
MOST_BYTES = 2_000_000_000
_SMALL = MAEConfig((8, 8), 4, 1, 4, 1, 1, 4, 1, 1, 1.0)


def read_checkpoint(path: Path) -> None:
    """Recognise it, read it, build the model."""
    build_usable(load_checkpoint(path))


def read_image(path: Path) -> None:
    """Decode an image as the scan, ``reconstruct`` and ``pretrain`` do."""
    probe_image(path)
    for decoder in ("pillow", resolve_decoder("auto")):
        with open_image(path) as file:
            try:
                Augmentation((16, 16), 3, decoder=decoder)(file, path, 0)
            except MaeError:
                continue
    for in_chans in (1, 4):
        load_image(path, in_chans)


def read_archive(path: Path) -> None:
    """Find an archive's images and read each."""
    for suffix in (".zip", ".tar"):
        named = path.with_suffix(suffix)
        named.write_bytes(path.read_bytes())
        try:
            source = ArchiveSource([(named, list_archive(named, lambda: None))])
        except MaeError:
            continue
        for index in range(min(len(source), 20)):
            try:
                source.open(index).read()
            except MaeError:
                continue


def _checkpoints() -> list[bytes]:
    found = []
    for kind in ("full", "encoder", "training"):
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save(official.checkpoint(_SMALL, kind), file, _use_new_zipfile_serialization=zipped)
            found.append(file.getvalue())
    weights = official.weights(_SMALL)
    found += [save(weights), save(to_hugging_face(weights))]
    hostile = [make() for name, (make, _) in HOSTILE.items() if "million" not in name and "huge" not in name]
    return found + [data for data in hostile if len(data) < 20_000]


def _images() -> list[bytes]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(all_cases()):
            path = Path(folder) / f"{number}{Path(case.name).suffix}"
            case.make(path)
            if path.is_file() and not path.is_symlink() and path.stat().st_size < 20_000:
                found.append(path.read_bytes())
    return found


def _archives() -> list[bytes]:
    images = [data for data in _images() if len(data) < 3000][:4]
    found = []
    for packed in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", packed) as archive:
            for number, data in enumerate(images):
                archive.writestr(f"a/{number}.png", data)
        found.append(file.getvalue())
    for style in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=style) as tar:
            for number, data in enumerate(images):
                info = tarfile.TarInfo(f"{'long/' * 30}{number}é.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        found.append(file.getvalue())
    return found


TARGETS: dict[str, tuple[Callable[[Path], None], Callable[[], list[bytes]]]] = {
    "checkpoint": (read_checkpoint, _checkpoints),
    "image": (read_image, _images),
    "archive": (read_archive, _archives),
}


def fuzz(name: str, seconds: float, seed: int, keep: Path) -> str:
    """Fuzz one target; returns its progress.

    An input that ends in anything but a ``MaeError``, takes too long or too much memory is kept and raises.
    """
    from tests.fuzz.fuzzer import Fuzzer

    read, seeds = TARGETS[name]
    path = keep / name

    def target(data: bytes) -> None:
        path.write_bytes(data)  # the file remains if the process dies
        signal.alarm(SECONDS_FOR_ONE)
        try:
            read(path)
        except MaeError as error:
            if len(error.message) > 2000 + len(str(path)):
                raise AssertionError(f"{len(error.message)} letters of error") from error
        finally:
            signal.alarm(0)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MOST_BYTES:
            raise AssertionError("over 2 GB of memory")

    warnings.simplefilter("error")  # a user would see them in the results
    logging.lastResort = _Printed()
    signal.signal(signal.SIGALRM, _too_long)
    started = time.monotonic()
    fuzzer = Fuzzer(target, seeds(), "/mae/", seed)
    begun, first = len(fuzzer.seen), fuzzer.tried
    fuzzer.run(seconds)
    return (
        f"{name}: {fuzzer.tried - first:,} inputs from {first} seeds in {time.monotonic() - started:.0f} s, "
        f"{begun:,} to {len(fuzzer.seen):,} line pairs, {len(fuzzer.kept)} kept"
    )


class _Printed(logging.Handler):
    """The text that would be printed."""

    def emit(self, record: logging.LogRecord) -> None:
        raise AssertionError(f"logged: {record.getMessage()}")


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"one input took over {SECONDS_FOR_ONE} s")


def main() -> None:
    """Fuzz one target from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, required=True)
    asked = parser.parse_args()
    asked.keep.mkdir(parents=True, exist_ok=True)
    try:
        told = fuzz(asked.target, asked.seconds, asked.seed, asked.keep)
    except BaseException:
        traceback.print_exc()
        sys.exit(f"the input is {asked.keep / asked.target}")
    sys.stdout.write(told + "\n")


if __name__ == "__main__":
    main()
