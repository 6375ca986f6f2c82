"""Write animations as .webp or .gif; PIL only."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mae.errors import ConfigError
from mae.io.files import write_output
from mae.reconstruction.config import ANIMATION_FORMATS

FRAME_MILLISECONDS = 400
LAST_MILLISECONDS = 1600  # of the last frame
LONGEST_SIDE = {"WEBP": 16_383, "GIF": 65_535}  # pixels that a format can hold


def write_animation(path: Path, frames: Sequence[Image.Image]) -> None:
    """Write an endless animation with one frame per drawing, atomically.

    Args:
        path: Its suffix gives the format.
        frames: At least one; smaller ones are placed at the top left of a frame of the largest size.

    Raises:
        ConfigError: The file cannot be written.
    """
    size = max(frame.width for frame in frames), max(frame.height for frame in frames)
    kind = ANIMATION_FORMATS[path.suffix.lower()]
    if max(size) > LONGEST_SIDE[kind]:
        raise ConfigError(
            f"cannot write {path}: frames of {size[0]:,} x {size[1]:,} pixels are more than {kind} can hold",
            hint="use fewer images (--limit)",
        )
    pages = []
    for frame in frames:
        page = Image.new("RGB", size, "white")
        page.paste(frame.convert("RGB"))
        pages.append(page)
    milliseconds = [FRAME_MILLISECONDS] * (len(pages) - 1) + [LAST_MILLISECONDS]
    options = {"quality": 85} if kind == "WEBP" else {}
    file = io.BytesIO()
    pages[0].save(file, kind, save_all=True, append_images=pages[1:], duration=milliseconds, loop=0, **options)
    write_output(path, file.getvalue(), "cannot write")
