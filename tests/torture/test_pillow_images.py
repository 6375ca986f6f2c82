"""Pillow's own test images, if its source package is available: each is read, or refused with a one-line error.

tar xzf pillow-12.0.0.tar.gz
MAECLI_PILLOW_IMAGES=pillow-12.0.0/Tests/images python -m pytest -m slow tests/torture/test_pillow_images.py
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mae.data.augment import Augmentation
from mae.data.decoding.formats import ImageError
from mae.data.decoding.image import load_image, open_image
from mae.data.decoding.jpeg import resolve_decoder

FOLDER = os.environ.get("MAECLI_PILLOW_IMAGES", "")


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="MAECLI_PILLOW_IMAGES names no folder")
def test_every_image_is_read_or_refused() -> None:
    augment = Augmentation((32, 32), 3, decoder=resolve_decoder("auto"))
    read, refused = 0, []
    for path in sorted(path for path in Path(FOLDER).rglob("*") if path.is_file()):
        started = time.monotonic()
        try:
            whole = np.asarray(load_image(path))
        except ImageError as error:
            refused.append(error.message)
            with pytest.raises(ImageError), open_image(path) as file:
                augment(file, path, 0)
        else:
            assert whole.dtype == np.uint8
            assert whole.ndim == 3
            with open_image(path) as file:
                assert augment(file, path, 0).shape == (32, 32, 3)
            read += 1
        assert time.monotonic() - started < 20, path
    sys.stdout.write("\n".join([f"{read} read, {len(refused)} refused", *refused, ""]))
    assert all(line.isprintable() for line in refused)
    assert read > 400
