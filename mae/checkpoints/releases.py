"""The released checkpoints by name: where they are, what they predict, and how a good download is known.

Base: https://dl.fbaipublicfiles.com/mae/ and https://huggingface.co/facebook. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

LICENCE_NOTE = "the released weights are under CC BY-NC 4.0: not for commercial use"
OFFICIAL_BASE = "https://dl.fbaipublicfiles.com/mae"


@dataclass(frozen=True)
class Release:
    """One released file.

    Attributes:
        name: What a user types.
        url: Where it is.
        norm_pix_loss: Whether it predicts normalised pixels; None for a file without a decoder's target.
        md5_prefix: How its MD5 begins, where that is known.
    """

    name: str
    url: str
    norm_pix_loss: bool | None
    md5_prefix: str | None = None

    @property
    def file_name(self) -> str:
        """What its file is called in the cache: unlike the Hub's, the name tells what it is."""
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
    """The release that a file's name names, or None."""
    return _BY_FILE_NAME.get(file_name)


def release_named(name: str) -> Release | None:
    """The release that a user names, with or without ``.pth`` or the Hub's ``hf:``, or None."""
    return RELEASES.get(name) or RELEASES.get(f"hf:{name}") or _BY_FILE_NAME.get(name)
