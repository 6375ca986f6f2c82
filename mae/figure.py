"""Draw rows of pictures with titles and captions; PIL only."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mae.config import PICTURE_FORMATS
from mae.errors import ConfigError
from mae.files import write_atomically

MARGIN = 12
GAP = 6
TITLE_SIZE = 16
CAPTION_SIZE = 13
LEAST_TEXT = 160  # pixels of a line of text
SMALLEST_PANEL = 192
LARGEST_ENLARGED = 1024  # pixels of a panel's longer side
STACKED_SHAPE = 4  # times as wide as high
LARGEST_PAGE = 65_500  # pixels of its longer side
LONGEST_SIDE = {"WEBP": 16_383, "JPEG": 65_500}  # pixels that a format can hold
INK = (34, 34, 34)
FAINT = (110, 110, 110)


@dataclasses.dataclass(frozen=True)
class Row:
    """Pictures side by side, and a line of text below them."""

    pictures: Sequence[Image.Image]
    caption: str


def draw_grid(titles: Sequence[str], rows: Sequence[Row], note: str = "") -> Image.Image:
    """A white page with one column per title, and long pictures one below the other.

    Small pictures are enlarged by a whole factor without smoothing, so that their pixels stay what they are.

    Args:
        titles: Over the columns, and over each picture of a row of long ones.
        rows: Each with as many pictures as there are titles.
        note: A line at the foot of the page.

    Raises:
        ConfigError: The page would be too large to look at.
    """
    factor = _enlargement(rows)
    rows = [Row([_enlarge(picture, factor) for picture in row.pictures], row.caption) for row in rows]
    beside = [row for row in rows if not _is_stacked(row)]
    title_font, caption_font = ImageFont.load_default(TITLE_SIZE), ImageFont.load_default(CAPTION_SIZE)
    widest_title = math.ceil(max(title_font.getlength(title) for title in titles)) if beside else 0
    cell = max([widest_title, *(picture.width for row in beside for picture in row.pictures)])
    inner = max(
        len(titles) * cell + (len(titles) - 1) * GAP if beside else 0,
        *(picture.width for row in rows for picture in row.pictures),
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
        for column, (title, picture) in enumerate(zip(titles, row.pictures, strict=True)):
            if _is_stacked(row):
                draw.text((MARGIN, below), title, INK, caption_font)
                page.paste(picture.convert("RGB"), (MARGIN, below + line))
                below += line + picture.height + GAP
            else:
                left = MARGIN + column * (cell + GAP) + (cell - picture.width) // 2
                page.paste(picture.convert("RGB"), (left, top + (_height(row) - picture.height) // 2))
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
    """A whole factor for all: the widest gets ``SMALLEST_PANEL``, unless the longest would become very long."""
    widest = max(row.pictures[0].width for row in rows)
    longest = max(max(picture.size) for row in rows for picture in row.pictures)
    return max(1, min(-(-SMALLEST_PANEL // widest), LARGEST_ENLARGED // longest))


def _is_stacked(row: Row) -> bool:
    """Whether its pictures are so long that they are better looked at one below the other."""
    return all(picture.width > STACKED_SHAPE * picture.height for picture in row.pictures)


def _height(row: Row) -> int:
    heights = [picture.height for picture in row.pictures]
    return sum(CAPTION_SIZE + 5 + height + GAP for height in heights) if _is_stacked(row) else max(heights)


def _blank(width: int, height: int) -> Image.Image:
    if max(width, height) > LARGEST_PAGE:
        raise ConfigError(
            f"the page would have {width:,} x {height:,} pixels; at most {LARGEST_PAGE:,} are drawn",
            hint="fewer images (--limit), or a smaller --image-size",
        )
    return Image.new("RGB", (width, height), "white")


def _enlarge(picture: Image.Image, factor: int) -> Image.Image:
    if factor == 1:
        return picture
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture in the format of its name's suffix, whole or not at all.

    Raises:
        ConfigError: The file cannot be written.
    """
    content = encode_picture(picture, PICTURE_FORMATS[path.suffix.lower()], path)
    try:
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None


def encode_picture(picture: Image.Image, kind: str, name: str | Path) -> bytes:
    """A file's content.

    Args:
        picture: What to encode.
        kind: One of the values of ``PICTURE_FORMATS``.
        name: What messages call the file.

    Raises:
        ConfigError: The format cannot hold so many pixels.
    """
    if max(picture.size) > LONGEST_SIDE.get(kind, max(picture.size)):
        raise ConfigError(
            f"cannot write {name}: {picture.width:,} x {picture.height:,} pixels are more than {kind} can hold",
            hint="take PNG, or fewer images",
        )
    options = {"JPEG": {"quality": 92}, "WEBP": {"quality": 92}}.get(kind, {})
    file = io.BytesIO()
    picture.save(file, format=kind, **options)
    return file.getvalue()
