"""Draw rows of images with titles and captions; PIL only."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mae.errors import ConfigError
from mae.io.files import write_output
from mae.reconstruction.config import IMAGE_FORMATS

MARGIN = 12
GAP = 6
TITLE_SIZE = 16
CAPTION_SIZE = 13
LEAST_TEXT = 160  # smallest width of a line of text, pixels
SMALLEST_PANEL = 192  # smallest width of the widest panel, pixels
LARGEST_ENLARGED = 1024  # largest longer side of an enlarged panel, pixels
STACKED_SHAPE = 4  # images wider than this many times their height are placed one below the other
LARGEST_PAGE = 65_500  # longer side of the page, pixels
LONGEST_SIDE = {"WEBP": 16_383, "JPEG": 65_500}  # pixels that a format can hold
INK = (34, 34, 34)
FAINT = (110, 110, 110)


@dataclasses.dataclass(frozen=True)
class Row:
    """Images side by side, with a caption."""

    images: Sequence[Image.Image]
    caption: str


def draw_grid(titles: Sequence[str], rows: Sequence[Row], note: str = "") -> Image.Image:
    """Draw a white page with one column per title; very wide images are placed one below the other.

    Small images are enlarged by an integer factor without smoothing.

    Args:
        titles: Titles of the columns, repeated over each image of a stacked row.
        rows: Each with as many images as there are titles.
        note: Text at the bottom of the page.

    Raises:
        ConfigError: The page would be too large.
    """
    factor = _enlargement(rows)
    rows = [Row([_enlarge(image, factor) for image in row.images], row.caption) for row in rows]
    beside = [row for row in rows if not _is_stacked(row)]
    title_font, caption_font = ImageFont.load_default(TITLE_SIZE), ImageFont.load_default(CAPTION_SIZE)
    widest_title = math.ceil(max(title_font.getlength(title) for title in titles)) if beside else 0
    cell = max([widest_title, *(image.width for row in beside for image in row.images)])
    inner = max(
        len(titles) * cell + (len(titles) - 1) * GAP if beside else 0,
        *(image.width for row in rows for image in row.images),
        LEAST_TEXT,
    )
    captions = [_wrap(row.caption, caption_font, inner) for row in rows]
    foot = _wrap(note, caption_font, inner) if note else []
    line = CAPTION_SIZE + 5
    heading = TITLE_SIZE + 8 if beside else 0
    height = 2 * MARGIN + heading + len(foot) * line
    height += sum(_height(row) + 4 + len(text) * line + 10 for row, text in zip(rows, captions, strict=True))
    page = _blank(inner + 2 * MARGIN, height)
    draw = ImageDraw.Draw(page)
    top = MARGIN
    for row, text in zip(rows, captions, strict=True):
        if beside and row is beside[0]:
            for column, title in enumerate(titles):
                draw.text((MARGIN + column * (cell + GAP) + cell / 2, top), title, INK, title_font, anchor="mt")
            top += heading
        below = top
        for column, (title, image) in enumerate(zip(titles, row.images, strict=True)):
            if _is_stacked(row):
                draw.text((MARGIN, below), title, INK, caption_font)
                page.paste(image.convert("RGB"), (MARGIN, below + line))
                below += line + image.height + GAP
            else:
                left = MARGIN + column * (cell + GAP) + (cell - image.width) // 2
                page.paste(image.convert("RGB"), (left, top + (_height(row) - image.height) // 2))
        top += _height(row) + 4
        for words in text:
            draw.text((MARGIN, top), words, FAINT, caption_font)
            top += line
        top += 10
    for words in foot:
        draw.text((MARGIN, top), words, FAINT, caption_font)
        top += line
    return page


def _enlargement(rows: Sequence[Row]) -> int:
    """Integer factor that makes the widest image ``SMALLEST_PANEL`` wide, at most ``LARGEST_ENLARGED`` long."""
    widest = max(row.images[0].width for row in rows)
    longest = max(max(image.size) for row in rows for image in row.images)
    return max(1, min(-(-SMALLEST_PANEL // widest), LARGEST_ENLARGED // longest))


def _is_stacked(row: Row) -> bool:
    """Whether the images are so wide that they are placed one below the other."""
    return all(image.width > STACKED_SHAPE * image.height for image in row.images)


def _height(row: Row) -> int:
    heights = [image.height for image in row.images]
    return sum(CAPTION_SIZE + 5 + height + GAP for height in heights) if _is_stacked(row) else max(heights)


def _blank(width: int, height: int) -> Image.Image:
    if max(width, height) > LARGEST_PAGE:
        raise ConfigError(
            f"the page would have {width:,} x {height:,} pixels; at most {LARGEST_PAGE:,} are drawn",
            hint="use fewer images (--limit) or a smaller --image-size",
        )
    return Image.new("RGB", (width, height), "white")


def _enlarge(image: Image.Image, factor: int) -> Image.Image:
    if factor == 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def write_image(path: Path, image: Image.Image) -> None:
    """Write an image atomically, in the format of the path's suffix.

    Raises:
        ConfigError: The file cannot be written.
    """
    write_output(path, encode_image(image, IMAGE_FORMATS[path.suffix.lower()], path), "cannot write")


def encode_image(image: Image.Image, kind: str, name: str | Path) -> bytes:
    """Encode an image to bytes.

    Args:
        image: The image.
        kind: Format, one of the values of ``IMAGE_FORMATS``.
        name: Name of the file for messages.

    Raises:
        ConfigError: The image is too large for the format.
    """
    if max(image.size) > LONGEST_SIDE.get(kind, max(image.size)):
        raise ConfigError(
            f"cannot write {name}: {image.width:,} x {image.height:,} pixels are more than {kind} can hold",
            hint="use PNG or fewer images",
        )
    options = {"JPEG": {"quality": 92}, "WEBP": {"quality": 92}}.get(kind, {})
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()
