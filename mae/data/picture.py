"""Decode one picture, whatever it is, into upright 8-bit channels."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mae.errors import ConfigError, DataError

# Pillow's mode for so many channels; more than these Pillow cannot hold.
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def check_channels(in_chans: int) -> None:
    """Refuse a number of channels that no picture file can be decoded to.

    Raises:
        ConfigError: Not 1, 2, 3 or 4.
    """
    if in_chans not in MODES:
        raise ConfigError(
            f"--in-chans {in_chans}: picture files are read as 1 (grey), 2 (grey + alpha), 3 (RGB) or 4 (RGB + alpha) "
            "channels",
            hint="the library's model takes any number of channels as tensors",
        )


def load_picture(path: Path, in_chans: int = 3) -> Image.Image:
    """Decode a picture upright, with the wanted channels, 8 bits each.

    The orientation that a camera noted is applied. 16-bit grey is scaled to 8 bits rather than clipped.
    Transparency is laid over white unless alpha is a wanted channel; a palette, CMYK and other colour
    spaces become RGB; grey becomes three equal channels, and colour becomes its luma for one.

    Args:
        path: The file.
        in_chans: 1 (L), 2 (LA), 3 (RGB) or 4 (RGBA).

    Raises:
        DataError: The file cannot be read as a picture; the message names it and says why.
        ConfigError: No picture has so many channels.
    """
    check_channels(in_chans)
    try:
        with warnings.catch_warnings():
            # A large photograph is no attack, and a damaged EXIF block no reason to lose the picture.
            warnings.simplefilter("ignore")
            with Image.open(path) as opened:
                upright = ImageOps.exif_transpose(opened)
                return _with_channels(upright, MODES[in_chans])
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise almost anything from inside a decoder
        raise DataError(f"{path}: {describe_failure(path, error)}") from None


def describe_failure(path: Path, error: BaseException) -> str:
    """Why a picture could not be read, in words for its owner."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if path.is_file() and path.stat().st_size == 0:
        return "is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        return "is no picture that Pillow knows"
    if isinstance(error, Image.DecompressionBombError):
        return "is too large (over 178 million pixels)"
    return " ".join(str(error).split()) or type(error).__name__


def _with_channels(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _to_8_bits(picture)
    if mode in ("L", "RGB") and picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        picture = Image.alpha_composite(white, layer).convert("RGB")
    if mode in ("L", "LA") and picture.mode not in ("1", "L", "LA", "RGB", "RGBA"):
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    converted = picture if picture.mode == mode else picture.convert(mode)
    converted.load()
    return converted


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits, 32 bits or floats as 8 bits; Pillow's own conversion clips at 255.

    Whole numbers up to 65535 are a fraction of 65535 (so two pictures of one scanner stay comparable),
    floats within [0, 1] a fraction of 1; anything else is stretched from its lowest to its highest value.
    """
    values = np.asarray(picture, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("holds NaN or infinity")
    if low >= 0 and picture.mode != "F" and high <= 65535:
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
