"""Unusual and hostile image files, generated here, with the expected result of each."""

from __future__ import annotations

import dataclasses
import functools
import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[Any]

ROWS, COLUMNS = 16, 24


@dataclasses.dataclass(frozen=True)
class Case:
    """One file.

    Attributes:
        name: The file's name, or the case's where the file has none of its own.
        make: Writes the file at a path.
        pixels: The expected RGB values (rows, columns, 3); None if only the size is known.
        size: The expected rows and columns.
        refused: The expected one-line error, for a file that must be refused.
        tolerance: Largest error of a pixel, for lossy formats and colour spaces.
    """

    name: str
    make: Callable[[Path], object]
    pixels: Pixels | None = None
    size: tuple[int, int] | None = None
    refused: str | None = None
    tolerance: float = 0.0


def photo() -> Pixels:
    """Smooth colours without symmetry, (16, 24, 3) uint8."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    return np.stack([x * 10, y * 15, 255 - (x * 5 + y * 8) % 256], axis=2).astype(np.uint8)


@functools.cache
def all_cases() -> tuple[Case, ...]:
    """The whole corpus; every name is used once."""
    return (
        *_modes(),
        *_deep(),
        *_transparent(),
        *_turned(),
        *_sizes(),
        *_animated(),
        *_damaged(),
        *_hostile(),
        *_names(),
    )


def write_all(folder: Path) -> dict[str, Path]:
    """Write the corpus into a folder; returns the path of each case."""
    paths = {}
    for case in all_cases():
        paths[case.name] = path = folder / case.name
        case.make(path)
    return paths


def _saved(image: Image.Image, **options: Any) -> Callable[[Path], object]:
    def save(path: Path) -> None:
        """A copy, because an image keeps the options of the encoder that saved it."""
        more = {name: [one.copy() for one in value] for name, value in options.items() if name == "append_images"}
        image.copy().save(path, **options | more)

    return save


def _grey(values: Pixels) -> Pixels:
    return np.repeat(np.asarray(values, np.uint8)[:, :, None], 3, axis=2)


def _modes() -> Iterator[Case]:
    rgb = photo()
    image = Image.fromarray(rgb)
    luma = np.asarray(image.convert("L"))
    for suffix in ("png", "bmp", "tiff", "webp", "ppm", "tga", "pcx", "sgi", "qoi", "jp2", "avif", "jpg", "dib"):
        options: dict[str, Any] = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}.get(suffix, {})
        lossy = {"avif": 15.0, "jpg": 6.0}.get(suffix, 0.0)
        yield Case(f"rgb.{suffix}", _saved(image, **options), rgb, tolerance=lossy)
    yield Case("grey.png", _saved(Image.fromarray(luma)), _grey(luma))
    yield Case("grey.jpg", _saved(Image.fromarray(luma), quality=95), _grey(luma), tolerance=6)
    bits = Image.fromarray(((luma > 127) * 255).astype(np.uint8)).convert("1")
    yield Case("bits.png", _saved(bits), _grey(np.asarray(bits) * np.uint8(255)))
    yield Case("bits.tiff", _saved(bits, compression="group4"), _grey(np.asarray(bits) * np.uint8(255)))
    palette = image.quantize(64)
    yield Case("palette.png", _saved(palette), np.asarray(palette.convert("RGB")))
    yield Case("palette.gif", _saved(palette), np.asarray(palette.convert("RGB")))
    # No ink model, no profile: R = 255 - C - K, as the official pipeline and Pillow have it.
    cmyk = np.concatenate([255 - rgb, np.full((ROWS, COLUMNS, 1), 20, np.uint8)], axis=2)
    inks = Image.frombytes("CMYK", (COLUMNS, ROWS), cmyk.tobytes())
    expected = np.clip(255 - cmyk[:, :, :3].astype(float), 0, 255) * (255 - 20) / 255
    yield Case("cmyk.tiff", _saved(inks), expected, tolerance=16)
    yield Case("cmyk.jpg", _saved(inks, quality=95), expected, tolerance=20)
    ycc = image.convert("YCbCr")
    yield Case("ycbcr.tiff", _saved(ycc), rgb, tolerance=3)
    # CIE L* 53.7, a* 80, b* 67 is the red of sRGB.
    lab = Image.merge("LAB", [Image.new("L", (COLUMNS, ROWS), value) for value in (137, 80 + 128, 67 + 128)])
    yield Case("lab.tiff", _saved(lab), np.full((ROWS, COLUMNS, 3), (255, 0, 0), np.uint8), tolerance=12)
    yield Case("broken_icc.png", _saved(image, icc_profile=b"no profile at all"), rgb)
    yield Case("broken_icc.jpg", _saved(image, icc_profile=b"\0" * 200, quality=95, subsampling=0), rgb, tolerance=6)
    yield Case("sixteen_bit_rgb.png", lambda path: path.write_bytes(_png(rgb.astype(np.uint16) * 257, 2, 16)), rgb)
    for name, wrong in (("really_png.jpg", "PNG"), ("really_jpeg.png", "JPEG"), ("really_gif.tiff", "GIF")):
        yield Case(name, _saved(image, format=wrong), size=(ROWS, COLUMNS))
    yield Case("no_suffix", _saved(image, format="PNG"), rgb)


def _deep() -> Iterator[Case]:
    ramp = np.linspace(0, 1, ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    grey = _grey(np.rint(ramp * 255))
    deep = np.rint(ramp * 65535).astype(np.uint16)
    yield Case("sixteen.png", _saved(Image.fromarray(deep)), grey, tolerance=1)
    yield Case("sixteen.tiff", _saved(Image.fromarray(deep)), grey, tolerance=1)
    yield Case("sixteen.pgm", _saved(Image.fromarray(deep)), grey, tolerance=1)
    yield Case("sixteen.jp2", _saved(Image.fromarray(deep)), grey, tolerance=1)
    big_endian = Image.frombytes("I;16B", (COLUMNS, ROWS), deep.astype(">u2").tobytes())
    yield Case("sixteen_big.tiff", _saved(big_endian), grey, tolerance=1)
    yield Case("white_is_zero.tiff", lambda path: path.write_bytes(_tiff(65535 - deep, 16, 0)), grey, tolerance=1)
    yield Case("twelve.tiff", lambda path: path.write_bytes(_tiff(_packed_12(ramp), 12, 1)), grey, tolerance=1)
    yield Case("int32.tiff", _saved(Image.fromarray(np.rint(ramp * 1e6).astype(np.int32))), grey, tolerance=1)
    signed = np.rint(ramp * 2000 - 1000).astype(np.int16)
    yield Case("signed16.tiff", lambda path: path.write_bytes(_tiff(signed, 16, 1, sample_format=2)), grey, tolerance=1)
    yield Case("float01.tiff", _saved(Image.fromarray(ramp.astype(np.float32))), grey, tolerance=1)
    yield Case("float_wide.tiff", _saved(Image.fromarray((ramp * 3e38 - 1e38).astype(np.float32))), grey, tolerance=1)
    yield Case(
        "float_flat.tiff", _saved(Image.new("F", (COLUMNS, ROWS), 0.5)), np.full((ROWS, COLUMNS, 3), 128.0), tolerance=1
    )
    yield Case("pgm_1023.pgm", lambda path: path.write_bytes(_pgm(np.rint(ramp * 1023), 1023)), grey, tolerance=1)
    for name, value in (("nan", np.nan), ("infinity", np.inf)):
        bad = ramp.astype(np.float32)
        bad[3, 4] = value
        yield Case(f"{name}.tiff", _saved(Image.fromarray(bad)), refused="holds NaN or infinity")


def _transparent() -> Iterator[Case]:
    rgb = photo()
    alpha = np.where(np.arange(COLUMNS) < 8, 0, np.where(np.arange(COLUMNS) < 16, 128, 255)).astype(np.uint8)
    alpha = np.repeat(alpha[None], ROWS, axis=0)
    over_white = rgb * (alpha[:, :, None] / 255) + 255 * (1 - alpha[:, :, None] / 255)
    rgba = Image.fromarray(np.concatenate([rgb, alpha[:, :, None]], axis=2))
    for suffix, options in (
        ("png", {}),
        ("tiff", {}),
        ("webp", {"lossless": True, "exact": True}),
        ("tga", {}),
        ("qoi", {}),
    ):
        yield Case(f"rgba.{suffix}", _saved(rgba, **options), over_white, tolerance=1)
    luma = np.asarray(Image.fromarray(rgb).convert("L"))
    grey_alpha = Image.merge("LA", (Image.fromarray(luma), Image.fromarray(alpha)))
    grey_over_white = _grey(np.rint(luma * (alpha / 255) + 255 * (1 - alpha / 255)))
    yield Case("la.png", _saved(grey_alpha), grey_over_white, tolerance=1)
    yield Case("la.tiff", _saved(grey_alpha), grey_over_white, tolerance=1)
    # Premultiplied: TIFF calls it associated alpha.
    yield Case(
        "premultiplied.tiff", lambda path: path.write_bytes(_tiff_rgba(rgba.convert("RGBa"))), over_white, tolerance=3
    )
    palette = Image.new("P", (COLUMNS, ROWS))
    palette.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 0])
    indices = np.arange(ROWS * COLUMNS, dtype=np.uint8).reshape(ROWS, COLUMNS) % 3
    palette.frombytes(indices.tobytes())
    colours = np.array([[10, 20, 30], [200, 100, 50], [0, 0, 0]], float)
    one, some = colours.copy(), colours.copy()
    one[1] = 255
    some[0], some[1] = 255, (colours[1] * 64 + 255 * 191) / 255
    yield Case("palette_clear.png", _saved(palette, transparency=1), one[indices])
    yield Case("palette_clear.gif", _saved(palette, transparency=1), one[indices])
    yield Case("palette_alpha.png", _saved(palette, transparency=bytes([0, 64, 255])), some[indices], tolerance=1)
    # One colour called transparent, at every depth that PNG has.
    for depth in (1, 2, 4, 8, 16):
        most = 2**depth - 1
        values = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) % min(most + 1, 5)
        if depth == 16:
            values = values * 16000
        clear = int(values.max())
        expected = _grey(np.where(values == clear, 255, np.rint(values * 255 / most)))
        yield Case(
            f"grey{depth}_clear.png",
            _written(_png(values, 0, depth, trns=struct.pack(">H", clear))),
            expected,
            tolerance=1,
        )
    deep = rgb.astype(np.uint16) * 256 + 7
    clear = struct.pack(">3H", *(int(value) for value in deep[2, 5]))
    expected = rgb.astype(float)
    expected[2, 5] = 255
    yield Case(
        "rgb8_clear.png", _written(_png(rgb, 2, 8, trns=struct.pack(">3H", *(int(v) for v in rgb[2, 5])))), expected
    )
    yield Case("rgb16_clear.png", _written(_png(deep, 2, 16, trns=clear)), expected)


def _turned() -> Iterator[Case]:
    rgb = photo()
    shown = {
        0: rgb, 1: rgb, 2: rgb[:, ::-1], 3: rgb[::-1, ::-1], 4: rgb[::-1], 5: rgb.transpose(1, 0, 2),
        6: np.rot90(rgb, -1), 7: rgb[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(rgb), 9: rgb,
    }  # fmt: skip
    for orientation, expected in shown.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix, lossy in (("png", 0.0), ("jpg", 6.0), ("webp", 0.0), ("tiff", 0.0)):
            options: dict[str, Any] = {"jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}.get(
                suffix, {}
            )
            yield Case(
                f"turned{orientation}.{suffix}",
                _saved(Image.fromarray(rgb), exif=exif, **options),
                expected,
                tolerance=lossy,
            )
    whole = exif.tobytes()
    broken_exif = {
        "cut": whole[:10],
        "noise": b"Exif\0\0" + bytes(range(200)),
        "offset": whole[:10] + b"\xff\xff\xff\xff" + whole[14:],
        "text": _exif_entry(2, 4, b"6\0\0\0"),
        "huge_count": _exif_entry(3, 0xFFFFFFFF, b"\6\0\0\0"),
        "double": _exif_entry(12, 1, b"\6\0\0\0"),
    }
    for name, broken in broken_exif.items():
        yield Case(
            f"exif_{name}.jpg", _saved(Image.fromarray(rgb), exif=broken, quality=95, subsampling=0), rgb, tolerance=6
        )
        yield Case(f"exif_{name}.png", _saved(Image.fromarray(rgb), exif=broken), rgb)


def _sizes() -> Iterator[Case]:
    for columns, rows in ((1, 1), (1, 2), (3, 1), (20_000, 3), (3, 20_000), (1, 5000)):
        noise = np.random.default_rng(columns).integers(0, 256, (rows, columns, 3), np.uint8)
        yield Case(f"size_{columns}x{rows}.png", _saved(Image.fromarray(noise)), noise)
        yield Case(f"size_{columns}x{rows}.jpg", _saved(Image.fromarray(noise)), size=(rows, columns))


def _animated() -> Iterator[Case]:
    rgb = photo()
    frames = [Image.fromarray(np.roll(rgb, shift, axis=1)) for shift in (0, 5, 9)]
    many: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    first = frames[0].quantize(256).convert("RGB")
    yield Case("frames.gif", _saved(frames[0].quantize(256), **many), np.asarray(first), tolerance=2)
    yield Case("frames.webp", _saved(frames[0], lossless=True, **many), rgb)
    yield Case("frames.png", _saved(frames[0], **many), rgb)
    yield Case("pages.tiff", _saved(frames[0], **many), rgb)
    yield Case("images.mpo", _saved(frames[0], quality=95, **many), rgb, tolerance=40)
    yield Case("icons.ico", _saved(Image.fromarray(rgb).resize((64, 64)), sizes=[(16, 16), (64, 64)]), size=(64, 64))


def _damaged() -> Iterator[Case]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for suffix in ("png", "jpg", "gif", "tiff", "webp", "bmp", "jp2", "avif"):
        whole = _bytes(noise, suffix)
        yield Case(f"cut.{suffix}", _written(whole[: len(whole) // 2]), refused=".")
        yield Case(f"head_only.{suffix}", _written(whole[:20]), refused=".")
    png = _bytes(noise, "png")
    at = len(png) // 2
    yield Case("flipped.png", _written(png[:at] + bytes([png[at] ^ 8]) + png[at + 1 :]), refused="cannot be decoded")
    # The pixels are stored uncompressed, with zlib's checksum in a later chunk, which Pillow does not read.
    stored = zlib.compress(b"".join(b"\0" + row.tobytes() for row in photo()), 0)
    size = (b"IHDR", struct.pack(">2I5B", COLUMNS, ROWS, 8, 2, 0, 0, 0))
    flipped = bytearray(_chunks(size, (b"IDAT", stored[:-4]), (b"IDAT", stored[-4:]), (b"IEND", b"")))
    flipped[200] ^= 8
    yield Case("flipped_stored.png", _written(bytes(flipped)), refused="cannot be decoded")
    yield Case(
        "no_pixels.png",
        _written(_chunks((b"IHDR", struct.pack(">2I5B", 24, 16, 8, 2, 0, 0, 0)), (b"IEND", b""))),
        refused=".",
    )
    yield Case(
        "zero_wide.png",
        _written(_chunks((b"IHDR", struct.pack(">2I5B", 0, 16, 8, 2, 0, 0, 0)), (b"IEND", b""))),
        refused=".",
    )
    yield Case("zero_bytes.jpg", _written(b""), refused=r"is empty \(0 bytes\)")
    yield Case("page.jpg", _written(b"<!DOCTYPE html><html>404</html>"), refused="is a web page")
    yield Case("page2.png", _written(b"\n <HTML><body>login</body></HTML>"), refused="is a web page")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    yield Case("pointer.jpg", _written(pointer), refused="is a Git LFS pointer")
    yield Case("text.png", _written(b"words " * 99), refused="is not an image format that Pillow reads")
    yield Case("zeros.jpg", _written(bytes(5000)), refused="is not an image format that Pillow reads")
    yield Case("drawing.png", _written(b"<svg xmlns='http://www.w3.org/2000/svg'></svg>"), refused="is SVG")
    yield Case(
        "program.jpg", _written(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"), refused="is PostScript"
    )
    yield Case("phone.jpg", _written(b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(64)), refused="is HEIC")


def _hostile() -> Iterator[Case]:
    def header(side: int) -> bytes:
        return struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)

    nothing = zlib.compress(b"")
    yield Case(
        "bomb_400mp.png",
        _written(_chunks((b"IHDR", header(20_000)), (b"IDAT", nothing), (b"IEND", b""))),
        refused="is too large",
    )
    yield Case(
        "bomb_170mp.png",
        _written(_chunks((b"IHDR", header(13_000)), (b"IDAT", nothing), (b"IEND", b""))),
        refused="is too large",
    )
    yield Case(
        "bomb_wide.png",
        _written(_chunks((b"IHDR", header(2**31 - 1)), (b"IDAT", nothing), (b"IEND", b""))),
        refused=".",
    )
    pixels = (b"IHDR", struct.pack(">2I5B", COLUMNS, ROWS, 8, 2, 0, 0, 0))
    text = zlib.compress(bytes(64 * 2**20), 9)
    body = (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in photo())))
    for kind, head in ((b"zTXt", b"Comment\0\0"), (b"iTXt", b"Comment\0\1\0\0\0")):
        chunks = (pixels, (kind, head + text), body, (b"IEND", b""))
        yield Case(f"text_bomb_{kind.decode()}.png", _written(_chunks(*chunks)), refused="unpacks to more")
    many = ((b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**20), 9)),) * 100
    yield Case("text_many.png", _written(_chunks(pixels, *many, body, (b"IEND", b""))), refused="text")
    profile = (b"iCCP", b"x\0\0" + text)
    yield Case("profile_bomb.png", _written(_chunks(pixels, profile, body, (b"IEND", b""))), refused="profile unpacks")
    lies = struct.pack("<2sHIH", b"II", 42, 8, 3)
    for tag, kind, count, value in ((256, 4, 1, 60_000), (257, 4, 1, 60_000), (273, 4, 0xFFFFFFF0, 8)):
        lies += struct.pack("<HHII", tag, kind, count, value)
    yield Case("lying.tiff", _written(lies + bytes(4)), refused=".")
    strip = _tiff(np.zeros((ROWS, COLUMNS), np.uint8), 8, 1)
    taller = strip.replace(struct.pack("<HHII", 257, 4, 1, ROWS), struct.pack("<HHII", 257, 4, 1, 100 * ROWS))
    yield Case("missing_strips.tiff", _written(taller), refused="holds 384 of its 38,400 pixels")
    samples = _tiff(np.zeros((ROWS, COLUMNS), np.uint8), 8, 1).replace(
        struct.pack("<HHII", 277, 3, 1, 1), struct.pack("<HHII", 277, 3, 1, 2570)
    )
    yield Case("many_samples.tiff", _written(samples), refused="is not an image format that Pillow reads")
    loop = bytearray(_bytes(Image.fromarray(photo()), "tiff"))
    entries = struct.unpack_from("<H", loop, struct.unpack_from("<I", loop, 4)[0])[0]
    first = struct.unpack_from("<I", loop, 4)[0]
    struct.pack_into("<I", loop, first + 2 + 12 * entries, first)  # the next page is this one
    yield Case("page_loop.tiff", _written(bytes(loop)), photo())
    yield Case("scan_bomb.jpg", _written(_scan_bomb()), refused="scans")
    jpeg, png, gif = (_bytes(Image.fromarray(photo()), suffix) for suffix in ("jpg", "png", "gif"))
    pieces = "is made of over 300,000 pieces"
    yield Case("pieces_padding.jpg", _written(jpeg[:2] + b"\xff" * 700_000 + jpeg[2:]), refused=pieces)
    yield Case("pieces_markers.jpg", _written(jpeg[:2] + b"\xff\xe2\0\2" * 160_000 + jpeg[2:]), refused=pieces)
    nothing = _chunks((b"prVt", b""))[8:] * 160_000
    yield Case("pieces_before.png", _written(png[:33] + nothing + png[33:]), refused=pieces)
    yield Case("pieces_behind.png", _written(png[:-12] + nothing + png[-12:]), refused=pieces)
    yield Case("pieces.gif", _written(gif[:781] + b"!\xfe\0" * 160_000 + gif[781:]), refused=pieces)
    yield Case("pieces.ppm", _written(b"P6" + b" " * 400_000 + b"2 2 255\n" + bytes(12)), refused=pieces)


def _names() -> Iterator[Case]:
    rgb = photo()
    save = _saved(Image.fromarray(rgb), format="PNG")
    for name in (
        "with space.png", "new\nline.png", "-rf.png", "--out.png", "tab\t.png", "ünï→🙂.png", "'quote\".png",
        "a;b|c&d.png", "\x1b[31mred.png", "%s{0}.png", "[bold]x.png",
    ):  # fmt: skip
        yield Case(name, save, rgb)
    yield Case(os.fsdecode(b"latin1-\xe9\xff.png"), save, rgb)
    yield Case("é" * 120 + ".png", save, rgb)
    yield Case(
        "dangling.png", lambda path: path.symlink_to(path.parent / "nowhere.png"), refused="is a link to nothing"
    )
    yield Case("looping.png", lambda path: path.symlink_to(path), refused="leads back to itself")
    yield Case("fifo.png", lambda path: os.mkfifo(path), refused="is a FIFO")
    yield Case("zero_device.png", lambda path: path.symlink_to("/dev/zero"), refused="is a device")
    yield Case("socket.png", _socket, refused="is a socket")
    yield Case("endless.png", _sparse, refused="is too large")
    yield Case("folder.png", lambda path: path.mkdir(), refused="is a folder")
    yield Case("link.png", lambda path: path.symlink_to(path.parent / "with space.png"), rgb)


def _written(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path may be 107 bytes long
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(_png(photo(), 2, 8)[:60] + struct.pack(">I", 2**31 - 1) + b"tEXt")
        file.truncate(2**31)


def _bytes(image: Image.Image, suffix: str) -> bytes:
    import io

    file = io.BytesIO()
    image.save(file, {"jpg": "JPEG", "jp2": "JPEG2000"}.get(suffix, suffix.upper()))
    return file.getvalue()


def _chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _png(values: Pixels, colour: int, depth: int, *, trns: bytes = b"", level: int = 6) -> bytes:
    """A PNG of any depth; ``colour`` is 0 for grey and 2 for RGB."""
    rows, columns = values.shape[:2]
    if depth < 8:
        bits = (values[:, :, None] >> np.arange(depth - 1, -1, -1)) & 1
        lines = np.packbits(bits.reshape(rows, -1).astype(np.uint8), axis=1)
        data = b"".join(b"\0" + line.tobytes() for line in lines)
    else:
        data = b"".join(b"\0" + line.astype(">u2" if depth == 16 else np.uint8).tobytes() for line in values)
    chunks = [(b"IHDR", struct.pack(">2I5B", columns, rows, depth, colour, 0, 0, 0))]
    if trns:
        chunks.append((b"tRNS", trns))
    return _chunks(*chunks, (b"IDAT", zlib.compress(data, level)), (b"IEND", b""))


def _tiff(values: Pixels, bits: int, photometric: int, *, sample_format: int = 1) -> bytes:
    """One grey strip of any depth; ``photometric`` 0 counts from white to black."""
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    return _tiff_of(data, [(258, 3, 1, bits), (262, 3, 1, photometric), (277, 3, 1, 1), (339, 3, 1, sample_format)])


def _tiff_rgba(image: Image.Image) -> bytes:
    """RGB with associated (premultiplied) alpha."""
    bits = (258, 3, 4, struct.pack("<4H", 8, 8, 8, 8))
    return _tiff_of(image.tobytes(), [bits, (262, 3, 1, 2), (277, 3, 1, 4), (338, 3, 1, 1)])


def _tiff_of(data: bytes, tags: list[tuple[int, int, int, Any]]) -> bytes:
    tags = [
        *tags,
        (256, 4, 1, COLUMNS),
        (257, 4, 1, ROWS),
        (259, 3, 1, 1),
        (273, 4, 1, 0),
        (278, 4, 1, ROWS),
        (279, 4, 1, len(data)),
    ]
    tags.sort()
    after = 8 + 2 + 12 * len(tags) + 4
    extra = b"".join(value for *_, value in tags if isinstance(value, bytes))
    place, entries = after, b""
    for tag, kind, count, value in tags:
        if isinstance(value, bytes):
            entries += struct.pack("<HHII", tag, kind, count, place)
            place += len(value)
        else:
            entries += struct.pack("<HHII", tag, kind, count, after + len(extra) if tag == 273 else value)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + extra + data


def _packed_12(ramp: Pixels) -> Pixels:
    values = np.rint(ramp * 4095).astype(np.uint16).reshape(-1, 2)
    first, second = values[:, 0], values[:, 1]
    return np.stack([first >> 4, ((first & 15) << 4) | (second >> 8), second & 255], axis=1).astype(np.uint8)


def _pgm(values: Pixels, most: int) -> bytes:
    return f"P5 {COLUMNS} {ROWS} {most}\n".encode() + values.astype(">u2").tobytes()


def _exif_entry(kind: int, count: int, value: bytes) -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHI", 1, 0x0112, kind, count) + value + bytes(4)


def _scan_bomb() -> bytes:
    """A progressive JPEG that repeats its last scan, which changes nothing, a thousand times."""
    import io

    file = io.BytesIO()
    Image.new("L", (64, 64), 99).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * 1000 + b"\xff\xd9"
