"""``inspect``: known counts, for folders and archives."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import mae
from mae.data.decoding.formats import ImageError
from mae.data.sources.scan import scan_images
from mae.errors import ConfigError, DataError
from mae.inspection.config import InspectConfig
from mae.inspection.run import InspectResult, inspect
from maecli.app import app


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five images, of which two files are equal, a truncated one, one that is not an image, and a text."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    stream = np.random.default_rng(0)
    for number, (width, height) in enumerate([(40, 30), (40, 30), (300, 240)]):
        pixels = stream.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    (folder / "more" / "copy.jpg").write_bytes((folder / "0.jpg").read_bytes())
    Image.new("L", (32, 32), 255).save(folder / "white.png")
    (folder / "cut.jpg").write_bytes((folder / "2.jpg").read_bytes()[:-20_000])
    (folder / "page.jpg").write_bytes(b"<html>no</html>")
    (folder / "notes.txt").write_text("none")
    return folder


def check(result: InspectResult) -> None:
    assert (result.images, result.others) == (5, 1)
    assert result.formats == {"JPEG": 4, "PNG": 1}
    assert result.channels == {"RGB": 4, "grey": 1}
    assert result.sizes is not None
    assert result.sizes.short_side == (30, 30, 240)
    assert result.sizes.long_side == (32, 40, 300)
    assert (result.sizes.below_usual, result.sizes.widest) == (4, pytest.approx(4 / 3))
    assert result.sizes.most_common[0] == (40, 30, 3)
    assert result.duplicates == 1
    (group,) = result.duplicate_groups
    assert (group.files, [Path(name).name for name in group.names]) == (2, ["0.jpg", "copy.jpg"])
    assert result.unreadable_files == 2
    reasons = {Path(name).name: reason for name, reason in result.unreadable}
    assert "breaks off" in reasons["cut.jpg"] or "truncated" in reasons["cut.jpg"]
    assert "web page" in reasons["page.jpg"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder(workers: int, photos: Path) -> None:
    result = inspect(InspectConfig(data=(photos,), workers=workers))
    check(result)
    assert result.decoded == 5
    assert result.size_bytes == sum(
        path.stat().st_size for path in photos.rglob("*.*g") if path.name not in ("cut.jpg", "page.jpg")
    )
    assert result.mean is not None
    assert result.std is not None
    values = [
        np.asarray(Image.open(path).convert("RGB"), np.float64) / 255
        for path in (
            photos / "0.jpg",
            photos / "1.jpg",
            photos / "2.jpg",
            photos / "more/copy.jpg",
            photos / "white.png",
        )
    ]
    mean = np.mean([one.mean(axis=(0, 1)) for one in values], axis=0)
    square = np.mean([(one**2).mean(axis=(0, 1)) for one in values], axis=0)
    assert result.mean == pytest.approx(mean, abs=1e-9)
    assert result.std == pytest.approx(np.sqrt(square - mean**2), abs=1e-9)


def test_a_tar_of_the_same(photos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(photos, "photos")
    check(inspect(InspectConfig(data=(tmp_path / "photos.tar",), workers=0)))


def test_what_is_not_asked_for_is_not_done(photos: Path) -> None:
    result = inspect(InspectConfig(data=(photos,), workers=0, decode=0, duplicates=False))
    assert (result.duplicates, result.duplicate_groups, result.decoded, result.mean) == (None, (), 0, None)
    assert result.images == 6  # the truncated image is found only by decoding
    assert [Path(name).name for name, _ in result.unreadable] == ["page.jpg"]


def test_an_image_that_is_gone_by_then(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: object, number: int) -> object:
        raise ImageError("x", "no such file")

    monkeypatch.setattr("mae.data.sources.paths.ImagePaths.open", gone)
    result = inspect(InspectConfig(data=(photos,), workers=0))
    assert (result.images, result.unreadable_files, result.sizes) == (0, 7, None)


def test_sheet_page_and_command(photos: Path, tmp_path: Path) -> None:
    sheet, page = tmp_path / "sheet.png", tmp_path / "page.html"
    arguments = ["inspect", str(photos), "--sheet", str(sheet), "--report", str(page), "--workers", "0"]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "JPEG 4 (80.0%), PNG 1 (20.0%)" in result.stdout
    assert "the same twice: " in result.stdout
    with Image.open(sheet) as image:
        assert image.size == (2 * 12 + 3 * 200 - 8, 2 * 12 + 2 * 218 - 8)
        assert image.convert("RGB").getpixel((20, 20)) == (255, 255, 255)
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 5
    assert "copy.jpg" in text
    assert "web page" in text
    document = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert (document["images"], document["duplicates"], document["sheet"]) == (5, 1, str(sheet))
    assert {Path(one["path"]).name for one in document["unreadable"]} == {"cut.jpg", "page.jpg"}
    assert mae.inspect(photos, workers=0).images == 5


def test_a_urls_secrets_are_written_nowhere(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = scan_images([photos])
    monkeypatch.setattr("mae.inspection.run.scan_images", lambda *_, **__: scan)
    url = Path("https://me:pass-word@host.example/a.tar?X-Amz-Signature=very-secret")
    result = inspect(InspectConfig(data=(url,), report=tmp_path / "x.html", workers=0))
    assert "host.example/a.tar" in result.data[0]
    for text in (str(result), result._repr_html_(), (tmp_path / "x.html").read_text()):
        assert "pass-word" not in text
        assert "very-secret" not in text


def test_refusals(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--sheet .*: the name must end in \.jpg"):
        InspectConfig(data=(photos,), sheet=Path("x.pdf"))
    with pytest.raises(ConfigError, match="there is no folder"):
        inspect(InspectConfig(data=(photos,), report=tmp_path / "no" / "x.html"))
    with pytest.raises(ConfigError, match="lies in"):
        inspect(InspectConfig(data=(photos,), sheet=photos / "0.jpg"))
    before = (photos / "more" / "copy.jpg").read_bytes()
    with pytest.raises(ConfigError, match="lies in"):
        inspect(InspectConfig(data=(photos,), sheet=photos / "more" / "copy.jpg"))
    assert (photos / "more" / "copy.jpg").read_bytes() == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in"):
        inspect(InspectConfig(data=(tmp_path / "empty",)))


def test_memory_per_image_is_bounded(tmp_path: Path) -> None:
    """Memory per image is 16 bytes for the hash and 8 for the size, without the name."""
    from mae.data.eval_loader import in_batches
    from mae.data.sources.base import ImageSource
    from mae.data.sources.scan import ImageScan
    from mae.inspection.facts import Facts
    from mae.inspection.run import _Tally

    class Many(ImageSource):
        def __len__(self) -> int:
            return 1_000_000

        def name(self, index: int) -> Path:
            raise AssertionError("no name is made of an image that is well")

        def open(self, index: int) -> io.BytesIO:
            raise AssertionError

        def digest(self) -> str:
            return ""

    tally = _Tally(ImageScan(Many(), (), 0), frozenset(), 0)
    for chunk in in_batches(range(1_000_000), 64):
        if chunk[0] % 64_000 == 0:  # the others only take time
            tally.add(Facts(number, 1, number.to_bytes(16, "big"), "JPEG", "RGB", 2, 2) for number in chunk)
    arrays = [value for value in vars(tally).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) <= 24.1 * len(tally.source)
    assert tally.result(InspectConfig(data=(tmp_path,)), 0.0).duplicates == 0


def test_only_what_is_drawn_becomes_a_thumbnail(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    thumbnail = Image.Image.thumbnail

    def counted(self: Image.Image, *size: Any) -> None:
        made.append(size)
        thumbnail(self, *size)

    monkeypatch.setattr(Image.Image, "thumbnail", counted)
    assert inspect(InspectConfig((photos,), workers=0)).decoded == 5
    assert made == []
    inspect(InspectConfig((photos,), workers=0, images=1, sheet=tmp_path / "sheet.jpg"))
    assert len(made) == 1


def test_a_number_of_images_for_no_sheet_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--images 9 is the number of images on a contact sheet or page"):
        InspectConfig((photos,), images=9)
    assert InspectConfig((photos,), sheet=tmp_path / "a.jpg").drawn == 48


@pytest.mark.parametrize(("white", "levels", "told"), [(4095, 17, True), (65535, 256, False)])
def test_a_scan_of_few_grey_levels_is_told(tmp_path: Path, white: int, levels: int, told: bool) -> None:
    """12-bit values in a 16-bit file are a sixteenth of its range."""
    ramp = np.linspace(0, white, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "scan.png")
    Image.new("RGB", (32, 32), "white").save(tmp_path / "photo.png")  # no matter how bright the others are
    result = inspect(InspectConfig(data=(tmp_path,), workers=0))
    assert result.deep_levels == levels
    (row,) = (value for title, value in result.rows() if title == "16 bits scaled to 8")
    assert ("apply a window" in row) is told
