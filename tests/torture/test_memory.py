"""The largest allowed image of each format is decoded in less than 2 GB, torch included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mae.data.decoding.formats import most_pixels
from tests.processes import finish, start_python

_MEASURED = """
import sys
from pathlib import Path
import torch
from mae.data.decoding.image import load_image
load_image(Path(sys.argv[1]))
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
@pytest.mark.parametrize(("kind", "mode", "options"), [
    ("JPEG", "RGB", {"progressive": True, "subsampling": 0}), ("JPEG", "CMYK", {"progressive": True}),
    ("PNG", "RGBA", {"compress_level": 1}), ("PNG", "P", {"compress_level": 1}),
    ("TIFF", "F", {"compression": "tiff_lzw"}),
    ("WEBP", "RGBA", {"lossless": True, "method": 0}), ("JPEG2000", "RGB", {}), ("AVIF", "RGBA", {"speed": 10}),
])  # fmt: skip
def test_peak_memory(
    tmp_path: Path, kind: str, mode: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    side = min(int(most_pixels(kind) ** 0.5), 16_383)
    exif = Image.Exif()
    exif[0x0112] = 6
    if kind not in ("TIFF", "JPEG2000"):
        options = options | {"exif": exif}
    Image.new(mode, (side, side)).save(tmp_path / "large", kind, **options)
    done = finish(start_python("-c", _MEASURED, tmp_path / "large"))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 2e9
