"""The demo computes what ``reconstruct`` computes, and finds similar images."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae.checkpoints import save_checkpoint
from mae.demo.config import DemoConfig
from mae.demo.session import KEPT_IMAGES, DemoSession
from mae.errors import ConfigError, DataError
from mae.mae import MaskedAutoencoder
from mae.reconstruction.config import ReconstructConfig
from mae.reconstruction.run import reconstruct
from tests.unit.checkpoints.small_builtin import write_builtin


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    stream = np.random.default_rng(0)
    for number in range(9):
        pixels = stream.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((60, 40), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:60])
    return folder


@pytest.fixture(scope="module")
def session(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> DemoSession:
    weights = tmp_path_factory.mktemp("weights")
    write_builtin(weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAECLI_BUILTIN", str(weights))
        return DemoSession(DemoConfig(data=photos, checkpoint=Path("builtin"), device="cpu"))


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))


def test_the_slider_masks_as_the_command_does(session: DemoSession, photos: Path, tmp_path: Path) -> None:
    given = session.add((photos / "3.png").read_bytes(), seed=5)
    config = ReconstructConfig(images=(photos / "3.png",), checkpoint=session.checkpoint.path, out=None, seed=5)
    (wanted,) = reconstruct(config).images
    assert (given["rows"] * 8, given["columns"] * 8) == wanted.image_size == (24, 40)
    found = session.reconstruct(given["image"], given["order"][3:])  # int(15 * 0.25) are kept
    assert found["psnr"] == pytest.approx(wanted.psnr, rel=1e-6)
    assert opened(found["reconstruction"]).size == opened(given["original"]).size == (40, 24)


def test_visible_patches_are_the_images_own(session: DemoSession, photos: Path) -> None:
    given = session.add((photos / "1.png").read_bytes(), seed=0)
    found = session.reconstruct(given["image"], [7])
    before, after = (np.asarray(opened(uri)) for uri in (given["original"], found["reconstruction"]))
    differs = (before != after).any(axis=2).reshape(3, 8, 5, 8).any(axis=(1, 3)).reshape(-1)
    assert np.flatnonzero(differs).tolist() == [7]
    assert session.reconstruct(given["image"], [])["psnr"] is None


def test_unreadable_images_are_counted_too(session: DemoSession, photos: Path) -> None:
    counted: list[tuple[int, int]] = []
    config = DemoConfig(data=photos, checkpoint=session.checkpoint.path, device="cpu")
    DemoSession(config, lambda done, total: counted.append((done, total)))
    assert counted == [(done, 10) for done in range(1, 11)]


def test_an_image_is_most_similar_to_itself(session: DemoSession, photos: Path) -> None:
    assert session.describe()["gallery"] == 9  # and not the broken one
    found = session.similar(session.add((photos / "4.png").read_bytes(), seed=0)["image"])
    assert (found[0]["name"], found[0]["similarity"]) == ("4.png", "1.00")
    assert len(found) == 6
    assert [one["similarity"] for one in found] == sorted((one["similarity"] for one in found), reverse=True)


def test_what_cannot_be_done_is_said(session: DemoSession, photos: Path) -> None:
    with pytest.raises(DataError, match="the image"):
        session.add(b"no image", seed=0)
    given = session.add((photos / "1.png").read_bytes(), seed=0)
    with pytest.raises(DataError, match="at least one patch"):
        session.reconstruct(given["image"], range(15))
    with pytest.raises(DataError, match="patches 0 to 14"):
        session.reconstruct(given["image"], [15])
    for _ in range(KEPT_IMAGES):
        session.add((photos / "2.png").read_bytes(), seed=0)
    with pytest.raises(DataError, match="no longer in memory"):
        session.similar(given["image"])


def test_grey_with_alpha_and_no_folder(photos: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "grey.pth", MaskedAutoencoder(16, 8, 2, 16, 1, 2, 16, 1, 2))
    session = DemoSession(DemoConfig(checkpoint=tmp_path / "grey.pth", device="cpu"))
    given = session.add((photos / "1.png").read_bytes(), seed=0)
    assert opened(session.reconstruct(given["image"], [0])["reconstruction"]).size == (16, 16)
    assert session.similar(given["image"]) == []


def test_a_limit_of_no_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="--limit 5 is the maximum number of images of DATA, but no DATA is given"):
        DemoConfig(limit=5)
