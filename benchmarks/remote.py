"""Images/s from a folder and from a server on this machine, with the same loader.

python benchmarks/remote.py [--images 2000] [--workers 1] [--rounds 3]

Makes shards of photographs of 500 x 375 pixels, serves them with byte ranges by an HTTP server in its own process, and
alternates between both. The first epoch by URL fetches every block; later epochs read them from the cache.
"""

from __future__ import annotations

import argparse
import http.server
import io
import multiprocessing
import os
import re
import statistics
import tarfile
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mae.data.augment import Augmentation
from mae.data.dataset import ImageDataset
from mae.data.loader import Batches, make_loader
from mae.data.sampler import EpochBatches
from mae.data.sources.base import ImageSource
from mae.data.sources.scan import scan_images

SHARDS, BATCH = 4, 64


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Answers byte ranges."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        size = path.stat().st_size
        start, end = (int(wanted[1]), min(int(wanted[2]) + 1, size)) if wanted else (0, size)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.end_headers()
        with path.open("rb") as file:
            file.seek(start)
            self.wfile.write(file.read(end - start))

    def do_HEAD(self) -> None:
        path = Path(self.translate_path(self.path))
        self.send_response(200)
        self.send_header("Content-Length", str(path.stat().st_size))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def serve(folder: Path, port: multiprocessing.Queue[int]) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(folder)))
    port.put(server.server_address[1])
    server.serve_forever()


def make(folder: Path, images: int) -> None:
    """The same photographs as files and in shards; each is other bytes."""
    originals = [
        Image.open(path).convert("RGB").resize((500, 375)) for path in sorted(Path("sample_images").glob("*.jpg"))
    ]
    (folder / "files").mkdir()
    (folder / "shards").mkdir()
    tars = [tarfile.open(folder / "shards" / f"train-{number}.tar", "w") for number in range(SHARDS)]  # noqa: SIM115
    for number in range(images):
        image = np.asarray(originals[number % len(originals)]).copy()
        image[0, 0] = number % 256, number // 256 % 256, number // 65536
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=90)
        (folder / "files" / f"{number:06d}.jpg").write_bytes(file.getvalue())
        info = tarfile.TarInfo(f"{number:06d}.jpg")
        info.size = len(file.getvalue())
        tars[number * SHARDS // images].addfile(info, io.BytesIO(file.getvalue()))
    for tar in tars:
        tar.close()


def epoch(source: ImageSource, workers: int, number: int) -> float:
    """Images a second of one epoch through the loader."""
    dataset = ImageDataset(source, Augmentation((224, 224), 3, (0.2, 1.0), True, "auto", (3 / 4, 4 / 3)), 0)
    order = EpochBatches(len(source), BATCH, number + 1, 0, number, groups=source.groups)
    begun = time.monotonic()
    count = sum(len(batch.images) for batch in Batches(make_loader(dataset, order, workers=workers)))
    return count / (time.monotonic() - begun)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MAECLI_CACHE"] = str(folder / "cache")
        make(folder, options.images)
        port: multiprocessing.Queue[int] = multiprocessing.Queue()
        server = multiprocessing.Process(target=serve, args=(folder / "shards", port), daemon=True)
        server.start()
        url = f"http://127.0.0.1:{port.get()}/train-{{0..{SHARDS - 1}}}.tar"
        begun = time.monotonic()
        remote = scan_images([Path(url)]).images
        print(
            f"first look at {len(remote):,} images by URL, with every block fetched: {time.monotonic() - begun:.1f} s"
        )
        begun = time.monotonic()
        remote = scan_images([Path(url)]).images
        print(f"later look, by the index: {time.monotonic() - begun:.2f} s")
        local = scan_images([folder / "files"]).images
        for path in (folder / "cache" / "blocks").glob("*/0*"):
            path.unlink()
        print(f"first epoch by URL, nothing cached: {epoch(remote, options.workers, 0):.0f} images/s")
        ratios = []
        for number in range(options.rounds):
            here = epoch(local, options.workers, number)
            there = epoch(remote, options.workers, number + 1)
            ratios.append(there / here)
            print(f"folder {here:.0f}, by URL from the cache {there:.0f} images/s, ratio {ratios[-1]:.3f}")
        print(f"ratio: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
        server.terminate()


if __name__ == "__main__":
    main()
