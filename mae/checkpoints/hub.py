"""Downloads released checkpoints that a user names into a cache. Standard library only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mae.errors import CheckpointError
from mae.io.download import DownloadError, cache_folder, download, is_offline
from mae.io.download import announce_downloads as announce_downloads

LICENCE_NOTE = "the released weights are under CC BY-NC 4.0: not for commercial use"
OFFICIAL_BASE = "https://dl.fbaipublicfiles.com/mae"


@dataclass(frozen=True)
class Release:
    """One released file.

    Attributes:
        name: Name on the command line.
        url: Address of the file.
        norm_pix_loss: Whether it predicts normalised patches; None for a file without a decoder.
        md5_prefix: First digits of its MD5; None if unknown.
    """

    name: str
    url: str
    norm_pix_loss: bool | None
    md5_prefix: str | None = None

    @property
    def file_name(self) -> str:
        """The file's name in the cache; unlike the Hub's, it identifies the model."""
        return f"{self.name.replace(':', '--').replace('/', '--')}{'.bin' if self.name.startswith('hf:') else '.pth'}"


def _releases() -> dict[str, Release]:
    releases = []
    for size, md5_prefix in (("base", "8cad7c"), ("large", "b8b06e"), ("huge", "9bdbb0")):
        name = f"mae_pretrain_vit_{size}"
        releases += [
            Release(name, f"{OFFICIAL_BASE}/pretrain/{name}.pth", True, md5_prefix),
            Release(f"{name}_full", f"{OFFICIAL_BASE}/pretrain/{name}_full.pth", True),
        ]
        name = f"mae_visualize_vit_{size}"
        releases.append(Release(name, f"{OFFICIAL_BASE}/visualize/{name}.pth", False))
        name = f"mae_finetuned_vit_{size}"
        releases.append(Release(name, f"{OFFICIAL_BASE}/finetune/{name}.pth", None))
        name = f"facebook/vit-mae-{size}"
        releases.append(Release(f"hf:{name}", f"https://huggingface.co/{name}/resolve/main/pytorch_model.bin", False))
    name = "mae_visualize_vit_large_ganloss"
    releases.append(Release(name, f"{OFFICIAL_BASE}/visualize/{name}.pth", False))
    return {release.name: release for release in releases}


RELEASES: dict[str, Release] = _releases()


_BY_FILE_NAME = {release.file_name: release for release in RELEASES.values()}


def release_of(file_name: str) -> Release | None:
    """The release whose cached file has this name, or None."""
    return _BY_FILE_NAME.get(file_name)


def release_named(name: str) -> Release | None:
    """The release that a user names, with or without ``.pth`` or the Hub's ``hf:``, or None."""
    return RELEASES.get(name) or RELEASES.get(f"hf:{name}") or _BY_FILE_NAME.get(name)


LARGEST_FILE = 4_000_000_000  # bytes; the largest released file has 2.6e9


def fetch(release: Release) -> Path:
    """Path of a release's cached file, which is downloaded if necessary.

    Raises:
        CheckpointError: It is not cached and cannot be downloaded, or what came is not the released file; the
            hint says where to put the file by hand.
    """
    path = cache_folder() / release.file_name
    if path.is_file():
        return path
    by_hand = f"get {release.url} another way and save it as {path} ({LICENCE_NOTE})"
    if is_offline():
        raise CheckpointError(
            f"{release.name} is not in the cache, and downloads are disabled (--offline)", hint=by_hand
        )
    try:
        download(
            release.name, release.url, path, largest=LARGEST_FILE, check=lambda received: _check(release, received)
        )
    except (DownloadError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{release.name} cannot be downloaded: {reason}", hint=by_hand) from None
    return path


def _check(release: Release, received: Path) -> None:
    """Check that a file's MD5 begins with the release's ``md5_prefix``."""
    if release.md5_prefix is None:
        return
    with received.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if not digest.startswith(release.md5_prefix):
        raise DownloadError(
            f"the download is not the released file (its MD5 begins with {digest[:6]}, the released one's with "
            f"{release.md5_prefix}); nothing was kept"
        )
