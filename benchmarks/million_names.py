"""How long training takes to start from a million images by URL, and the memory of reading all of them once.

    python benchmarks/million_names.py [--images 1000000] [--out benchmarks/results/million_names.json]
    python benchmarks/million_names.py --images 200000 --epochs 3 --cache-gb 0.2 --starts 0 --out FILE

A server in its own process serves shards in which every image is the same JPEG of 16 x 16 pixels at a different
position; their bytes are generated on request. The index of the shards is written as a first scan would write it.

Start: from the start of ``maecli pretrain`` to the line of its first step in ``log.jsonl``, with a tiny model, for
the given number of images and for a thousand. Memory: one epoch in the order of training, read by byte ranges through
the cache by one loader process, which reads each image's name and bytes and does not decode them; sampled during the
epoch. ``--epochs`` and ``--cache-gb`` show whether memory levels off: ``allocated`` is what the process has asked for
and not given back, ``kept_free`` what the C library keeps for the next request.
"""

from __future__ import annotations

import argparse
import ctypes
import http.server
import io
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset
from training import processor

from mae.data.loader import Batches, loader_of
from mae.data.prefetch import Prefetcher
from mae.data.sampler import Draw, EpochBatches
from mae.data.sources.archive import ArchiveListing
from mae.data.sources.base import ImageSource
from mae.data.sources.remote import RemoteObject, remote_cache
from mae.data.sources.remote_sources import INDEX_VERSION
from mae.data.sources.scan import scan_images
from mae.io.download import cache_folder

SHARDS, BATCH, SAMPLES = 8, 64, 10  # samples in an epoch
READ_AT_ONCE = 500  # images of an epoch's batch
TINY = [
    "--variant", "vit_tiny", "--embed-dim", "48", "--depth", "1", "--num-heads", "2", "--decoder-embed-dim", "48",
    "--decoder-depth", "1", "--decoder-num-heads", "2", "--image-size", "16", "--patch-size", "4", "--batch-size",
    str(BATCH), "--epochs", "1", "--warmup-epochs", "0", "--device", "cpu", "--workers", "1", "--log-every", "1",
]  # fmt: skip


def record() -> tuple[bytes, int]:
    """A member of a tar file, and the size of the image in it."""
    image = io.BytesIO()
    Image.effect_noise((16, 16), 80).convert("RGB").save(image, "JPEG", quality=50)
    data = image.getvalue()
    member = tarfile.TarInfo("0000000.jpg")
    member.size = len(data)
    return member.tobuf() + data + bytes(-len(data) % 512), len(data)


class Repeated(http.server.BaseHTTPRequestHandler):
    """Answers ranges of a shard of so many records as its name says: ``/0-125000.tar``."""

    protocol_version = "HTTP/1.1"
    record = b""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        size = int(self.path.rpartition("-")[2].removesuffix(".tar")) * len(self.record)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(wanted[1]), min(int(wanted[2]) + 1, size)) if wanted else (0, size)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", '"one"')
        self.end_headers()
        if body:
            first = start % len(self.record)
            data = self.record * ((end - start) // len(self.record) + 2)
            self.wfile.write(data[first : first + end - start])

    def log_message(self, *_: object) -> None:
        pass


def serve(one: bytes, port: multiprocessing.Queue[int]) -> None:
    Repeated.record = one
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Repeated)
    port.put(server.server_address[1])
    server.serve_forever()


def write_index(urls: list[str], images: int, one: int, size: int) -> int:
    """The index of each shard; returns the bytes of all."""
    written = 0
    for number, url in enumerate(urls):
        names = b"".join(b"images/%02d/%08d.jpg\0" % (number, image) for image in range(images))
        places = range(512, 512 + images * one, one)
        listing = ArchiveListing(names, tuple(places), (size,) * images, (-1,) * images)
        key = RemoteObject(url, remote_cache()).key
        path = cache_folder() / "scans" / f"remote-{key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        written += path.write_text(json.dumps({"version": INDEX_VERSION, "listing": listing.to_plain()}))
    return written


def start_seconds(urls: list[str], folder: Path) -> dict[str, float]:
    """From the start of the command to its first step, by the clock and of the processor."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "maecli", "pretrain", *urls, *TINY, "--out", str(folder)]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = folder / "log.jsonl"
    while not (log.exists() and '"loss"' in log.read_text()):
        if run.poll() is not None:
            raise SystemExit("pretrain ended before its first step")
        time.sleep(0.02)
    seconds = time.monotonic() - begun
    ticks = Path(f"/proc/{run.pid}/stat").read_text().rpartition(") ")[2].split()[11:13]
    run.terminate()
    run.wait()
    return {"seconds": round(seconds, 2), "cpu_seconds": sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")}


def megabytes(process: int | str = "self") -> dict[str, float]:
    """Memory of a process: all of it, and what it does not share with files or other processes' memory."""
    status = Path(f"/proc/{process}/status").read_text()
    found = {name: int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) / 1e3 for name in ("VmRSS", "RssAnon")}
    return {"resident": found["VmRSS"], "anonymous": found["RssAnon"]}


class MallInfo(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns, in bytes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                     "keepcost")
    ]  # fmt: skip


def of_the_allocator() -> dict[str, float]:
    """Megabytes that this process has allocated in C, and that the C library keeps free; empty without glibc 2.33."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return {}
    mallinfo2.restype = MallInfo
    info = mallinfo2()
    return {"allocated": (info.uordblks + info.hblkhd) / 1e6, "kept_free": info.fordblks / 1e6}


class Bytes(Dataset[int]):
    """Names and bytes of images; an item is how many bytes they are."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __getitems__(self, draws: Sequence[Draw]) -> list[int]:
        sizes = []
        for draw in draws:
            with self.source.open(draw.image) as file:
                sizes.append(len(file.read()) * bool(self.source.name(draw.image).name))
        return sizes


def read_all(urls: list[str], images: int, epochs: int, cache_gb: float) -> dict[str, Any]:
    """Read every image once per epoch, in the order of training."""
    before = megabytes()
    begun = time.monotonic()
    source = scan_images([Path(url) for url in urls], cache_bytes=int(cache_gb * 10**9)).images
    scanned, with_index = time.monotonic() - begun, megabytes()
    if len(source) != images:
        raise SystemExit(f"{len(source)} images by the index, not {images}")

    def order() -> EpochBatches:
        return EpochBatches(images, READ_AT_ONCE, epochs, 0, groups=source.groups)

    generator = torch.Generator()
    batches: Any = Batches(loader_of(Bytes(source), order(), len, generator, workers=1, pin_memory=False))
    prefetcher = Prefetcher(source, order(), 20)
    samples, read, begun = [], 0, time.monotonic()
    steps = images // READ_AT_ONCE * epochs
    for number in range(steps + 1):
        if number and (number in (10, steps) or number % (steps // epochs // SAMPLES) == 0):
            loader = megabytes(batches.workers[0].pid)
            own = megabytes() | of_the_allocator()
            samples.append({"images": read, "training_process": own, "loader_process": loader})
            print(f"{read:,} images: {megabytes()['resident']:.0f} + {loader['resident']:.0f} MB", flush=True)
        if number < steps:
            prefetcher.advance()
            read += next(batches)
    seconds = time.monotonic() - begun
    prefetcher.stop()
    return {
        "index_seconds": scanned,
        "index_megabytes": with_index["resident"] - before["resident"],
        "images_per_second": read / seconds,
        "samples": samples,
    }


def main() -> None:
    """Measure, print and write."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--images", type=int, default=1_000_000)
    cli.add_argument("--starts", type=int, default=3)
    cli.add_argument("--epochs", type=int, default=1)
    cli.add_argument("--cache-gb", type=float, default=1.0)
    cli.add_argument("--out", type=Path, default=Path("benchmarks/results/million_names.json"))
    options = cli.parse_args()
    torch.set_num_threads(1)
    one, size = record()
    with tempfile.TemporaryDirectory() as name:
        os.environ["MAECLI_CACHE"] = f"{name}/cache"
        port: multiprocessing.Queue[int] = multiprocessing.Queue()
        server = multiprocessing.Process(target=serve, args=(one, port), daemon=True)
        server.start()
        host, starts, index_bytes = f"http://127.0.0.1:{port.get()}", {}, 0
        for images in (1000, options.images):
            urls = [f"{host}/{number}-{images // SHARDS}.tar" for number in range(SHARDS)]
            index_bytes = write_index(urls, images // SHARDS, len(one), size)
            folders = [Path(name) / f"run-{images}-{number}" for number in range(options.starts)]
            starts[f"{images}"] = [start_seconds(urls, folder) for folder in folders]
            print(
                f"{images:,} images: first step after",
                *(f"{taken['seconds']:.1f} ({taken['cpu_seconds']:.1f} CPU)" for taken in starts[f"{images}"]),
                "s",
            )
        result = {
            "processor": processor(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "torch": torch.__version__,
            "python": platform.python_version(),
            "images": options.images,
            "image_bytes": size,
            "index_bytes": index_bytes,
            "seconds_to_first_step": starts,
            "epochs": options.epochs,
            "cache_gb": options.cache_gb,
            "epoch": read_all(urls, options.images // SHARDS * SHARDS, options.epochs, options.cache_gb),
        }
        server.terminate()
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
