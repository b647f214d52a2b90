"""Stored values of every kind of image file against what it was written from, or another reader; and the refusals."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin

from dinojax.data.raster import read_header, read_image

PIXELS = Path(__file__).parent / "pixels"
RANDOM = np.random.default_rng(0)
H, W = 21, 35
GREY8, GREY16 = (RANDOM.integers(0, 2**bits, (H, W)).astype(f"u{bits // 8}") for bits in (8, 16))
GREY12 = (GREY16 >> 4).astype(np.uint16)
RGB8, RGB16 = (RANDOM.integers(0, 2**bits, (H, W, 3)).astype(f"u{bits // 8}") for bits in (8, 16))
ALPHA8, ALPHA16 = GREY8[::-1], GREY16[::-1]
FLOAT = RANDOM.normal(size=(H, W))
Written = tuple[bytes, np.ndarray]


def over_black(values: np.ndarray, alpha: np.ndarray, top: int = 255) -> np.ndarray:
    alpha = alpha if values.ndim == 2 else alpha[:, :, None]
    return np.floor(values.astype(float) * alpha / top + 0.5).astype(values.dtype)


def pillow(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_pillow(values: np.ndarray, kind: str, **options) -> bytes:
    return pillow(Image.fromarray(values), kind, **options)


def by_opencv(values: np.ndarray, suffix: str, *options: int) -> bytes:
    order = [2, 1, 0, 3][: values.shape[2]] if values.ndim == 3 else ...
    return cv2.imencode(suffix, np.ascontiguousarray(values[:, :, order] if values.ndim == 3 else values), options)[
        1
    ].tobytes()


def by_tifffile(values: np.ndarray, photometric: str = "minisblack", **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric=photometric, **options)
    return file.getvalue()


def tiff(strip: bytes, bits: int, photometric: int, order: str = "<", **tags: int | tuple[int, ...]) -> bytes:
    """A TIFF of one strip, by hand; further tags as t279=..."""
    known = {256: W, 257: H, 258: bits, 259: 1, 262: photometric, 277: 1, 278: H, 279: len(strip)}
    known |= {int(tag[1:]): value for tag, value in tags.items()}
    known[273] = 8
    at = 8 + len(strip)
    entries, behind = b"", b""
    for tag, value in sorted(known.items()):
        value = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(f"{order}{len(value)}{'H' if len(value) > 1 else 'I'}", *value)
        if len(packed) > 4:
            place = at + 2 + 12 * len(known) + 4 + len(behind)
            behind += packed
            packed = struct.pack(f"{order}I", place)
        entries += struct.pack(f"{order}HHI", tag, 3 if len(value) > 1 else 4, len(value)) + packed
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at)
    return head + strip + struct.pack(f"{order}H", len(known)) + entries + b"\0" * 4 + behind


def packed(values: np.ndarray, bits: int) -> bytes:
    """Rows of samples of few bits, the highest bit first; each row begins with a byte."""
    single = (values[..., None].astype(np.uint32) >> np.arange(bits)[::-1]) & 1
    return np.packbits(single.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


def png(rows: bytes, bits: int, colour: int, width: int = W, height: int = H, before: bytes = b"", behind: bytes = b""):
    """A PNG by hand, of rows of bytes without filters."""
    row = len(rows) // height
    raw = b"".join(b"\0" + rows[at : at + row] for at in range(0, len(rows), row))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), before, chunk(b"IDAT", zlib.compress(raw)), behind, chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def big(values: np.ndarray) -> bytes:
    return values.astype(values.dtype.newbyteorder(">")).tobytes()


def two_bands(alpha: np.ndarray) -> np.ndarray:
    return np.stack([GREY16 if alpha.dtype == np.uint16 else GREY8, alpha], axis=2)


def jpeg2000_of_12_bits(values: np.ndarray) -> bytes:
    """OpenCV writes 8 or 16; a lower depth in the header moves the level around which values are signed."""
    data = bytearray(by_opencv(values + np.uint16(2**15 - 2**11), ".jp2", cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000))
    at = data.index(b"\xff\x4f\xff\x51") + 42
    components = 3 if values.ndim == 3 else 1
    data[at : at + 3 * components : 3] = bytes([11]) * components
    if (box := data.find(b"ihdr")) >= 0:
        data[box + 14] = 11
    return bytes(data)


def cmyk() -> Image.Image:
    return Image.fromarray(np.concatenate([RGB8, GREY8[:, :, None]], axis=2), "CMYK")


def exif(orientation: int, artist: str = "") -> Image.Exif:
    made = Image.Exif()
    made[274] = orientation
    if artist:
        made[315] = artist
    return made


def lzw16(values: np.ndarray) -> bytes:
    return by_opencv(values, ".tiff")


BIG8 = RANDOM.integers(0, 256, (90, 70)).astype(np.uint8)
BIG12 = RANDOM.integers(0, 4096, (90, 70)).astype(np.uint16)
BIGRGB12 = RANDOM.integers(0, 4096, (90, 70, 3)).astype(np.uint16)
BIGRGB16 = RANDOM.integers(0, 65536, (90, 70, 3)).astype(np.uint16)
PALETTE = Image.fromarray(RGB8).quantize(40)
SEE_THROUGH = Image.fromarray(np.concatenate([RGB8, ALPHA8[:, :, None]], axis=2))
RGBA16 = np.concatenate([RGB16, ALPHA16[:, :, None]], axis=2)
ONE_BIT, TWO_BITS, FOUR_BITS = GREY8 >> 7, GREY8 >> 6, GREY8 >> 4
KEY8, KEY16 = tuple(int(v) for v in RGB8[0, 0]), RGB16[0, 0]
CASES: dict[str, tuple[str, int, bool, Callable[[], Written]]] = {
    # name: format, bits, inverted, file and values
    "png grey 8": ("PNG", 8, False, lambda: (by_pillow(GREY8, "PNG"), GREY8)),
    "png grey 16": ("PNG", 16, False, lambda: (by_pillow(GREY16, "PNG"), GREY16)),
    "png 12 in 16": ("PNG", 16, False, lambda: (by_opencv(GREY12, ".png"), GREY12)),
    "png 1 bit": ("PNG", 1, False, lambda: (png(packed(ONE_BIT, 1), 1, 0), ONE_BIT)),
    "png 2 bits": ("PNG", 2, False, lambda: (png(packed(TWO_BITS, 2), 2, 0), TWO_BITS)),
    "png 4 bits": ("PNG", 4, False, lambda: (png(packed(FOUR_BITS, 4), 4, 0), FOUR_BITS)),
    "png rgb 8": ("PNG", 8, False, lambda: (by_pillow(RGB8, "PNG"), RGB8)),
    "png rgb 16": ("PNG", 16, False, lambda: (by_opencv(RGB16, ".png"), RGB16)),
    "png palette": ("PNG", 8, False, lambda: (pillow(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB")))),
    "png palette seen through": (
        "PNG",
        8,
        False,
        lambda: (
            pillow(PALETTE, "PNG", transparency=bytes(range(0, 240, 6))),
            over_black(np.asarray(PALETTE.convert("RGB")), (np.asarray(PALETTE) * 6).astype(np.uint8)),
        ),
    ),
    "png grey alpha 8": ("PNG", 8, False, lambda: (by_pillow(two_bands(ALPHA8), "PNG"), over_black(GREY8, ALPHA8))),
    "png rgba 8": ("PNG", 8, False, lambda: (pillow(SEE_THROUGH, "PNG"), over_black(RGB8, ALPHA8))),
    "png grey alpha 16": (
        "PNG",
        16,
        False,
        lambda: (png(big(two_bands(ALPHA16)), 16, 4), over_black(GREY16, ALPHA16, 65535)),
    ),
    "png rgba 16": ("PNG", 16, False, lambda: (by_opencv(RGBA16, ".png"), over_black(RGB16, ALPHA16, 65535))),
    "png grey key 16": (
        "PNG",
        16,
        False,
        lambda: (
            png(big(GREY16), 16, 0, before=chunk(b"tRNS", big(GREY16[0, :1]))),
            np.where(GREY16[0, 0] == GREY16, 0, GREY16),
        ),
    ),
    "png grey key 2": (
        "PNG",
        2,
        False,
        lambda: (
            png(packed(TWO_BITS, 2), 2, 0, before=chunk(b"tRNS", b"\0\2")),
            np.where(TWO_BITS == 2, 0, TWO_BITS),
        ),
    ),
    "png rgb key 8": (
        "PNG",
        8,
        False,
        lambda: (by_pillow(RGB8, "PNG", transparency=KEY8), RGB8 * (RGB8 != KEY8).any(axis=2, keepdims=True)),
    ),
    "png rgb key 16": (
        "PNG",
        16,
        False,
        lambda: (
            png(big(RGB16), 16, 2, before=chunk(b"tRNS", big(KEY16))),
            RGB16 * (RGB16 != KEY16).any(axis=2, keepdims=True),
        ),
    ),
    "jpeg grey": (
        "JPEG",
        8,
        False,
        lambda: (data := by_pillow(GREY8, "JPEG"), np.asarray(Image.open(io.BytesIO(data)))),
    ),
    "jpeg rgb": (
        "JPEG",
        8,
        False,
        lambda: (data := by_pillow(RGB8, "JPEG"), np.asarray(Image.open(io.BytesIO(data)))),
    ),
    "jpeg cmyk": (
        "JPEG",
        8,
        False,
        lambda: (data := pillow(cmyk(), "JPEG"), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))),
    ),
    "bmp grey": ("BMP", 8, False, lambda: (by_pillow(GREY8, "BMP"), GREY8)),
    "bmp 1 bit": ("BMP", 1, False, lambda: (pillow(Image.fromarray(ONE_BIT * 255).convert("1"), "BMP"), ONE_BIT)),
    "bmp rgb": ("BMP", 8, False, lambda: (by_opencv(RGB8, ".bmp"), RGB8)),
    "webp rgb": ("WebP", 8, False, lambda: (by_pillow(RGB8, "WEBP", lossless=True), RGB8)),
    "webp rgba": (
        "WebP",
        8,
        False,
        lambda: (pillow(SEE_THROUGH, "WEBP", lossless=True, exact=True), over_black(RGB8, ALPHA8)),
    ),
    "gif palette": ("GIF", 8, False, lambda: (pillow(PALETTE, "GIF"), np.asarray(PALETTE.convert("RGB")))),
    "gif grey": ("GIF", 8, False, lambda: (by_pillow(GREY8, "GIF", optimize=False), GREY8)),
    "gif seen through": (
        "GIF",
        8,
        False,
        lambda: (
            pillow(PALETTE, "GIF", transparency=7),
            np.asarray(PALETTE.convert("RGB")) * (np.asarray(PALETTE) != 7)[:, :, None].astype(np.uint8),
        ),
    ),
    "jp2 grey 8": ("JPEG 2000", 8, False, lambda: (by_pillow(BIG8, "JPEG2000"), BIG8)),
    "j2k grey 16": ("JPEG 2000", 16, False, lambda: (by_pillow(BIG12, "JPEG2000", no_jp2=True), BIG12)),
    "jp2 grey 12": ("JPEG 2000", 12, False, lambda: (jpeg2000_of_12_bits(BIG12), BIG12)),
    "jp2 rgb 12": ("JPEG 2000", 12, False, lambda: (jpeg2000_of_12_bits(BIGRGB12), BIGRGB12)),
    "jp2 rgb 16": (
        "JPEG 2000",
        16,
        False,
        lambda: (by_opencv(BIGRGB16, ".jp2", cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000), BIGRGB16),
    ),
    "tiff grey 8": ("TIFF", 8, False, lambda: (by_tifffile(GREY8), GREY8)),
    "tiff grey 16": ("TIFF", 16, False, lambda: (by_tifffile(GREY16), GREY16)),
    "tiff grey 16 big endian": ("TIFF", 16, False, lambda: (by_tifffile(GREY16, byteorder=">"), GREY16)),
    "tiff 12 bits": ("TIFF", 12, False, lambda: (tiff(packed(GREY12, 12), 12, 1), GREY12)),
    "tiff 12 bits big endian": ("TIFF", 12, False, lambda: (tiff(packed(GREY12, 12), 12, 1, ">"), GREY12)),
    "tiff 1 bit": ("TIFF", 1, False, lambda: (tiff(packed(ONE_BIT, 1), 1, 1), ONE_BIT)),
    "tiff 2 bits": ("TIFF", 2, False, lambda: (tiff(packed(TWO_BITS, 2), 2, 1), TWO_BITS)),
    "tiff 4 bits": ("TIFF", 4, False, lambda: (tiff(packed(FOUR_BITS, 4), 4, 1), FOUR_BITS)),
    "tiff 4 bits lowest first": (
        "TIFF",
        4,
        False,
        lambda: (
            tiff(bytes(int(f"{v:08b}"[::-1], 2) for v in packed(FOUR_BITS, 4)), 4, 1, t266=2),
            FOUR_BITS,
        ),
    ),
    "tiff white 1": ("TIFF", 1, True, lambda: (tiff(packed(ONE_BIT, 1), 1, 0), ONE_BIT)),
    "tiff white 4": ("TIFF", 4, True, lambda: (tiff(packed(FOUR_BITS, 4), 4, 0), FOUR_BITS)),
    "tiff white 8": ("TIFF", 8, True, lambda: (by_tifffile(GREY8, "miniswhite"), GREY8)),
    "tiff white 8 jpeg": (
        "TIFF",
        8,
        True,
        lambda: (
            (data := by_pillow(GREY8, "TIFF", compression="jpeg", tiffinfo={262: 0})),
            255 - np.asarray(Image.open(io.BytesIO(data))),
        ),
    ),
    "tiff white 12": ("TIFF", 12, True, lambda: (tiff(packed(GREY12, 12), 12, 0), GREY12)),
    "tiff white 16": ("TIFF", 16, True, lambda: (by_tifffile(GREY16, "miniswhite"), GREY16)),
    "tiff white 16 deflate": (
        "TIFF",
        16,
        True,
        lambda: (by_tifffile(GREY16, "miniswhite", compression="zlib"), GREY16),
    ),
    "tiff fax": (
        "TIFF",
        1,
        False,
        lambda: (pillow(Image.fromarray(ONE_BIT * 255).convert("1"), "TIFF", compression="group4"), ONE_BIT),
    ),
    "tiff fax white": (
        "TIFF",
        1,
        True,
        lambda: (
            pillow(Image.fromarray(ONE_BIT * 255).convert("1"), "TIFF", compression="group4", tiffinfo={262: 0}),
            1 - ONE_BIT,
        ),
    ),
    "tiff signed 8": ("TIFF", 8, False, lambda: (by_tifffile(GREY8.view(np.int8)), GREY8.view(np.int8))),
    "tiff signed 16": ("TIFF", 16, False, lambda: (by_tifffile(GREY16.view(np.int16)), GREY16.view(np.int16))),
    "tiff int 32": ("TIFF", 32, False, lambda: (by_tifffile(GREY16 * np.int32(-40)), GREY16 * np.int32(-40))),
    "tiff uint 32": ("TIFF", 32, False, lambda: (by_tifffile(GREY16 * np.uint32(65536)), GREY16 * np.uint32(65536))),
    "tiff float 16": (
        "TIFF",
        32,
        False,
        lambda: (by_tifffile(FLOAT.astype(np.float16)), FLOAT.astype(np.float16).astype(np.float32)),
    ),
    "tiff float 32": ("TIFF", 32, False, lambda: (by_tifffile(FLOAT.astype(np.float32)), FLOAT.astype(np.float32))),
    "tiff float 64": ("TIFF", 64, False, lambda: (by_tifffile(FLOAT), FLOAT)),
    "tiff float 32 lzw predictor 3": (
        "TIFF",
        32,
        False,
        lambda: (
            by_opencv(
                FLOAT.astype(np.float32), ".tiff", cv2.IMWRITE_TIFF_COMPRESSION, 5, cv2.IMWRITE_TIFF_PREDICTOR, 3
            ),
            FLOAT.astype(np.float32),
        ),
    ),
    "tiff rgb 8": ("TIFF", 8, False, lambda: (by_tifffile(RGB8, "rgb"), RGB8)),
    "tiff rgb 16": ("TIFF", 16, False, lambda: (by_tifffile(RGB16, "rgb"), RGB16)),
    "tiff rgb 16 planar": (
        "TIFF",
        16,
        False,
        lambda: (by_tifffile(np.moveaxis(RGB16, 2, 0), "rgb", planarconfig="separate"), RGB16),
    ),
    "tiff rgb 8 planar tiled": (
        "TIFF",
        8,
        False,
        lambda: (by_tifffile(np.moveaxis(RGB8, 2, 0), "rgb", planarconfig="separate", tile=(16, 16)), RGB8),
    ),
    "tiff rgb 16 tiled deflate predictor": (
        "TIFF",
        16,
        False,
        lambda: (by_tifffile(RGB16, "rgb", tile=(16, 16), compression="zlib", predictor=2), RGB16),
    ),
    "tiff rgb 16 big endian predictor": (
        "TIFF",
        16,
        False,
        lambda: (by_tifffile(RGB16, "rgb", byteorder=">", compression="zlib", predictor=2, rowsperstrip=5), RGB16),
    ),
    "tiff rgb 16 lzw": ("TIFF", 16, False, lambda: (lzw16(RGB16), RGB16)),
    "tiff grey 16 lzw": ("TIFF", 16, False, lambda: (by_pillow(GREY16, "TIFF", compression="tiff_lzw"), GREY16)),
    "tiff rgb 8 packbits": ("TIFF", 8, False, lambda: (by_pillow(RGB8, "TIFF", compression="packbits"), RGB8)),
    "tiff grey 16 packbits": ("TIFF", 16, False, lambda: (by_pillow(GREY16, "TIFF", compression="packbits"), GREY16)),
    "tiff rgb 8 jpeg": (
        "TIFF",
        8,
        False,
        lambda: (
            (data := by_pillow(RGB8, "TIFF", compression="jpeg")),
            np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
        ),
    ),
    "bigtiff": ("TIFF", 16, False, lambda: (by_tifffile(GREY16, bigtiff=True), GREY16)),
    "tiff palette": ("TIFF", 8, False, lambda: (pillow(PALETTE, "TIFF"), np.asarray(PALETTE.convert("RGB")))),
    "tiff palette 4": (
        "TIFF",
        8,
        False,
        lambda: (
            tiff(packed(FOUR_BITS, 4), 4, 3, t320=tuple(v * 257 for v in range(48))),
            np.stack([FOUR_BITS, FOUR_BITS + 16, FOUR_BITS + 32], axis=2),
        ),
    ),
    "tiff cmyk": ("TIFF", 8, False, lambda: (pillow(cmyk(), "TIFF"), np.asarray(cmyk().convert("RGB")))),
    "tiff lab": (
        "TIFF",
        8,
        False,
        lambda: (
            pillow(image := Image.fromarray(RGB8, "LAB"), "TIFF"),
            np.asarray(image.convert("RGB")),
        ),
    ),
    "tiff grey associated": (
        "TIFF",
        8,
        False,
        lambda: (by_tifffile(two_bands(ALPHA8), planarconfig="contig", extrasamples=["assocalpha"]), GREY8),
    ),
    "tiff grey unassociated": (
        "TIFF",
        8,
        False,
        lambda: (
            by_tifffile(two_bands(ALPHA8), planarconfig="contig", extrasamples=["unassalpha"]),
            over_black(GREY8, ALPHA8),
        ),
    ),
    "tiff white unassociated": (
        "TIFF",
        8,
        True,
        lambda: (
            by_tifffile(two_bands(ALPHA8), "miniswhite", planarconfig="contig", extrasamples=["unassalpha"]),
            255 - over_black(255 - GREY8, ALPHA8),
        ),
    ),
    "tiff rgba 16": (
        "TIFF",
        16,
        False,
        lambda: (by_tifffile(RGBA16, "rgb", extrasamples=["unassalpha"]), over_black(RGB16, ALPHA16, 65535)),
    ),
    "tiff rgba 16 associated": (
        "TIFF",
        16,
        False,
        lambda: (by_tifffile(RGBA16, "rgb", extrasamples=["assocalpha"]), RGB16),
    ),
    "tiff rgbx 8": (
        "TIFF",
        8,
        False,
        lambda: (by_tifffile(np.asarray(SEE_THROUGH), "rgb", extrasamples=["unspecified"]), RGB8),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_stored_values(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    kind, bits, inverted, write = CASES[name]
    data, values = write()
    path = tmp_path / "a picture.of no kind"  # the content tells
    path.write_bytes(data)
    values = values[:, :, None] if values.ndim == 2 else values
    stored, header = read_image(path), read_header(path)
    np.testing.assert_array_equal(stored.values, values)
    assert stored.values.dtype == values.dtype
    assert stored.values.flags.c_contiguous
    assert stored.inverted == inverted
    assert stored.padding is None
    assert (header.kind, header.format, header.bits, header.frames) == ("raster", kind, bits, 1)
    assert (header.height, header.width, header.channels) == values.shape
    assert header.spacing is None
    top = {"u": 2**bits - 1, "b": 1, "i": 2 ** (bits - 1) - 1, "f": 1}[values.dtype.kind]
    assert stored.full == (-top - 1.0 if values.dtype.kind == "i" else 0.0, top)
    assert not capfd.readouterr().err


def test_associated_alpha_is_not_applied_again() -> None:
    stored = read_image(PIXELS / "la.tif")
    np.testing.assert_array_equal(stored.values[:, :, 0], tifffile.imread(PIXELS / "la.tif")[:, :, 0])
    assert read_header(PIXELS / "la.tif").channels == 1


def test_a_turned_photograph_is_upright() -> None:
    with Image.open(PIXELS / "exif6.jpg") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
        assert not np.array_equal(upright, np.asarray(image))
    np.testing.assert_array_equal(read_image(PIXELS / "exif6.jpg").values[:, :, 0], upright)


TURNED = {
    "png": lambda turn: by_pillow(RGB8, "PNG", exif=exif(turn)),
    "png behind": lambda turn: png(RGB8.tobytes(), 8, 2, behind=chunk(b"eXIf", exif(turn).tobytes()[6:])),
    "png 16": lambda turn: png(big(RGB16), 16, 2, behind=chunk(b"eXIf", exif(turn).tobytes()[6:])),
    "jpeg": lambda turn: by_pillow(RGB8, "JPEG", exif=exif(turn)),
    "webp": lambda turn: by_pillow(RGB8, "WEBP", lossless=True, exif=exif(turn)),
    "tiff": lambda turn: by_tifffile(RGB8, "rgb", extratags=[(274, "H", 1, turn, True)]),
    "tiff 16": lambda turn: by_tifffile(RGB16, "rgb", extratags=[(274, "H", 1, turn, True)]),
    "tiff cmyk": lambda turn: pillow(cmyk(), "TIFF", tiffinfo={274: turn}),
}


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("name", TURNED)
def test_every_format_is_upright(tmp_path: Path, name: str, turn: int) -> None:
    straight, turned = tmp_path / "straight", tmp_path / "turned"
    straight.write_bytes(TURNED[name](1))
    turned.write_bytes(TURNED[name](turn))
    values = read_image(straight).values
    tag = Image.Exif()
    tag[274] = turn
    expected = []
    for channel in range(3):  # Pillow's own rule, value by value: its mode F holds 16 bits
        image = Image.fromarray(values[:, :, channel].astype(np.float32))
        image.info["exif"] = tag.tobytes()
        expected.append(np.asarray(ImageOps.exif_transpose(image)))
    found, header = read_image(turned).values, read_header(turned)
    np.testing.assert_array_equal(found, np.stack(expected, axis=2))
    assert (header.height, header.width) == found.shape[:2]


FRAMES = [np.roll(RGB8, step, axis=1) for step in (0, 5, 9)]


def animated(kind: str, frames: list[np.ndarray], **options) -> bytes:
    images = [Image.fromarray(frame) for frame in frames]
    return pillow(images[0], kind, save_all=True, append_images=images[1:], **options)


@pytest.mark.parametrize(
    ("write", "frames"),
    [
        (lambda: animated("PNG", FRAMES), FRAMES),
        (lambda: animated("WEBP", FRAMES, lossless=True), FRAMES),
        (lambda: animated("TIFF", FRAMES), FRAMES),
        (lambda: animated("GIF", [f[:, :, 0] for f in FRAMES]), None),
        (lambda: by_tifffile(np.stack([GREY16, GREY16[::-1]])), [GREY16, GREY16[::-1]]),
    ],
    ids=["apng", "webp", "tiff", "gif", "tiff 16"],
)
def test_frames(tmp_path: Path, write: Callable[[], bytes], frames: list[np.ndarray] | None) -> None:
    path = tmp_path / "frames"
    path.write_bytes(write())
    if frames is None:  # Pillow composes GIF frames; what is seen must not depend on the order of reading
        with Image.open(path) as image:
            frames = [np.asarray((image.seek(number), image.convert("L"))[1]) for number in range(len(FRAMES))]
    count = len(frames)
    assert read_header(path).frames == count
    for number in reversed(range(count)):
        found = read_image(path, number).values
        expected = frames[number]
        np.testing.assert_array_equal(found if found.shape[2] == expected.shape[-1] else found[:, :, 0], expected)
    with pytest.raises(ValueError, match=f"^has {count} frames; list them in a manifest with a column frame$"):
        read_image(path)
    with pytest.raises(ValueError, match=f"there is no frame {count}$"):
        read_image(path, count)


def test_thumbnails_are_no_frames_and_each_page_has_its_orientation(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(GREY8, photometric="minisblack", extratags=[(274, "H", 1, 6, True)])
        writer.write(GREY8[::2, ::2], photometric="minisblack", subfiletype=1)
        writer.write(GREY16, photometric="minisblack", extratags=[(274, "H", 1, 3, True)])
        writer.write(GREY8, photometric="minisblack", extratags=[(274, "H", 1, 3, True)])
    assert read_header(path).frames == 3
    np.testing.assert_array_equal(read_image(path, 0).values[:, :, 0], np.rot90(GREY8, -1))
    np.testing.assert_array_equal(read_image(path, 1).values[:, :, 0], GREY16[::-1, ::-1])
    np.testing.assert_array_equal(read_image(path, 2).values[:, :, 0], GREY8[::-1, ::-1])


def test_a_cameras_second_picture_is_no_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    first, second = Image.fromarray(RGB8), Image.fromarray(RGB8[::-1])
    first.save(path, "MPO", save_all=True, append_images=[second])
    header = read_header(path)
    assert (header.format, header.frames) == ("JPEG", 1)
    np.testing.assert_array_equal(read_image(path).values, np.asarray(Image.open(io.BytesIO(by_pillow(RGB8, "JPEG")))))


def test_pixels_that_are_no_numbers_are_padding(tmp_path: Path) -> None:
    values = FLOAT.astype(np.float32)
    values[3, 4], values[5, 6] = np.nan, np.inf
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values)
    np.testing.assert_array_equal(read_image(path).padding, ~np.isfinite(values))


GOOD_PNG = by_pillow(GREY8, "PNG")
REFUSED = {
    "empty": (b"", "^it is empty$", True),
    "text": (b"a text\n" * 9, "^it is not a PNG, JPEG, TIFF, BMP, WebP, GIF or JPEG 2000 file$", True),
    "html": (b"<!DOCTYPE html><html></html>", "^it is not a PNG, JPEG", True),
    "png truncated": (GOOD_PNG[:-40], "truncated", True),
    "png checksum": (GOOD_PNG[:60] + b"\0\0" + GOOD_PNG[62:], "^it is damaged: ", True),
    "png deep truncated": (png(big(RGB16), 16, 2)[:-400], "truncated", True),
    "png deep rows missing": (
        png(big(RGB16)[: W * 6 * 5], 16, 2, height=5).replace(
            chunk(b"IHDR", struct.pack(">IIBBBBB", W, 5, 16, 2, 0, 0, 0)),
            chunk(b"IHDR", struct.pack(">IIBBBBB", W, 9, 16, 2, 0, 0, 0)),
        ),
        "truncated",
        False,
    ),
    "png deep filter": (
        png(big(RGB16), 16, 2).replace(
            chunk(b"IDAT", zlib.compress(ROWS := b"".join(b"\0" + big(row) for row in RGB16))),
            chunk(b"IDAT", zlib.compress(b"\7" + ROWS[1:])),
        ),
        "a row's filter is unknown",
        False,
    ),
    "tiff tiles missing": (
        tiff(bytes(99), 16, 0, t322=1, t323=1, t324=8, t325=2),
        "^it is truncated: strips or tiles are missing$",
        False,
    ),
    "png header alone": (GOOD_PNG[:20], "damaged", True),
    "jpeg truncated": (by_pillow(RGB8, "JPEG")[:-500], "truncated", False),
    "webp truncated": (by_pillow(RGB8, "WEBP")[:-200], "damaged|truncated", True),
    "gif truncated": (pillow(PALETTE, "GIF")[:-200], "damaged|truncated", False),
    "bmp truncated": (by_pillow(RGB8, "BMP")[:-200], "truncated", False),
    "jp2 truncated": (by_pillow(BIG8, "JPEG2000")[:600], "damaged|truncated", False),
    "tiff truncated": (tiff(packed(GREY12, 12)[:-9], 12, 1), "^it is truncated: a strip or tile is too short$", False),
    "tiff in a circle": (
        b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 256, 4, 1, 9, 8),
        "damaged|no pixels",
        True,
    ),
    "tiff without pages": (b"II*\0\0\0\0\0", "without an image|damaged", True),
    "tiff 24 bits": (tiff(bytes(H * W * 3), 24, 1), "^a 24-bit grey TIFF .* is not read; save it as a PNG", True),
    "tiff complex": (by_tifffile(FLOAT.astype(np.complex64)), "complex numbers .* save their magnitude", True),
    "tiff lerc": (
        tiff(bytes(99), 8, 1, t259=34887),
        "^a 8-bit grey TIFF .LERC compression. is not read; save it",
        True,
    ),
    "tiff unknown compression": (tiff(bytes(99), 8, 1, t259=54321), "54321 compression. is not read", True),
    "tiff log": (tiff(bytes(9999), 16, 32844), "photometric 32844", True),
    "tiff channels": (
        by_tifffile(np.stack([GREY8] * 5, axis=2), planarconfig="contig"),
        "^it has 5 channels .* save one grey or RGB image for each$",
        True,
    ),
    "tiff bits differ": (tiff(bytes(9999), 8, 2, t277=3, t258=(5, 6, 5)), "differ in bits", True),
    "tiff stack": (by_tifffile(np.stack([GREY8] * 3), truncate=True), "a stack of images in a single TIFF page", True),
    "tiff jpeg 12": (tiff(bytes(999), 12, 1, t259=7), "^a 12-bit grey TIFF .JPEG compression. is not read", True),
    "tiff signed alpha": (
        by_tifffile(two_bands(ALPHA16).view(np.int16), planarconfig="contig", extrasamples=["unassalpha"]),
        "signed values and transparency",
        True,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    data, reason, by_header = REFUSED[name]
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for read in (read_header, read_image) if by_header else (read_image,):
        with pytest.raises(ValueError, match=reason) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 250
    assert not capfd.readouterr().err


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    for read in (read_header, read_image):
        with pytest.raises(ValueError, match=r"^No such file or directory$"):
            read(tmp_path / "none.png")
        with pytest.raises(ValueError, match=r"^Is a directory$"):
            read(tmp_path)


SIDE = 60_000


def bomb(kind: str) -> bytes:
    """A small file that says it is 60000×60000."""
    if kind == "png 16":
        return png(bytes(SIDE), 16, 2, SIDE, SIDE)
    if kind == "png":
        return png(bytes(SIDE), 8, 0, SIDE, SIDE)
    if kind == "tiff":
        return tiff(bytes(99), 8, 1, t256=SIDE, t257=SIDE)
    if kind == "tiff 16":
        return tiff(bytes(99), 16, 0, t256=SIDE, t257=SIDE)
    if kind == "jpeg":
        data = bytearray(by_pillow(GREY8, "JPEG"))
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", SIDE, SIDE)
    elif kind == "gif":
        data = bytearray(pillow(PALETTE, "GIF"))
        data[6:10] = struct.pack("<HH", SIDE, SIDE)
    elif kind == "bmp":
        data = bytearray(by_pillow(GREY8, "BMP"))
        data[18:26] = struct.pack("<ii", SIDE, SIDE)
    else:
        data = bytearray(by_pillow(BIG8, "JPEG2000", no_jp2=True))
        at = data.index(b"\xff\x51") + 6
        data[at : at + 8] = struct.pack(">II", SIDE, SIDE)
    return bytes(data)


@pytest.mark.parametrize("kind", ["png", "png 16", "jpeg", "tiff", "tiff 16", "gif", "bmp", "jp2"])
def test_bombs_are_refused_by_their_header(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(bomb(kind))
    for read in (read_header, read_image):
        with pytest.raises(
            ValueError, match=r"^3600 megapixels, more than max_megapixels 200; raise it if the file is"
        ):
            read(path)


@pytest.mark.parametrize("name", ["png grey 8", "png rgb 16", "tiff grey 8", "tiff rgb 16", "jp2 rgb 16", "webp rgb"])
def test_the_limit_is_the_callers(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(CASES[name][3]()[0])
    read_image(path, max_megapixels=0.01)
    with pytest.raises(ValueError, match=r"more than max_megapixels 0\.0001; raise it"):
        read_image(path, max_megapixels=1e-4)


def test_more_pixels_than_pillow_allows(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (14_000, 13_500)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).values.shape == (13_500, 14_000, 1)


TEXTS = PngImagePlugin.PngInfo()
TEXTS.add_text("Author", "Jane Roe")
INFO = TiffImagePlugin.ImageFileDirectory_v2()
INFO[315] = "Jane Roe"


@pytest.mark.parametrize(
    "data",
    [
        by_pillow(GREY8, "JPEG", exif=exif(1, "Jane Roe")),
        by_pillow(GREY8, "JPEG", comment="Jane Roe"),
        by_pillow(GREY8, "PNG", pnginfo=TEXTS),
        png(GREY8.tobytes(), 8, 0, behind=chunk(b"tEXt", b"Author\0Jane Roe")),
        by_pillow(GREY8, "WEBP", exif=exif(1, "Jane Roe")),
        by_pillow(GREY8, "TIFF", tiffinfo=INFO),
        by_pillow(GREY8, "JPEG", xmp=b"<x:xmpmeta><rdf:RDF><dc:creator>Jane Roe</dc:creator></rdf:RDF></x:xmpmeta>"),
    ],
    ids=["exif", "comment", "png", "png behind", "webp", "tiff", "xmp"],
)
def test_names_in_headers_are_found(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(data)
    header = read_header(path)
    assert "Jane Roe" in header.names
    assert "Jane" not in repr(header)


def test_many_threads(tmp_path: Path) -> None:
    names = list(CASES) * 4
    written = {name: CASES[name][3]() for name in CASES}
    for name, (data, _) in written.items():
        (tmp_path / name).write_bytes(data)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: read_image(tmp_path / name).values, names))
    for name, values in zip(names, found, strict=True):
        np.testing.assert_array_equal(values.reshape(written[name][1].shape), written[name][1])


SMALL = {name: write()[0] for name, (_, _, _, write) in CASES.items()}


@given(
    name=st.sampled_from(sorted(SMALL)),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6),
    head=st.booleans(),
    cut=st.one_of(st.none(), st.integers(0, 2**12)),
)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_told_in_one_line(
    tmp_path: Path, name: str, changes: list[tuple[int, int]], head: bool, cut: int | None
) -> None:
    data = bytearray(SMALL[name])
    for at, value in changes:
        data[at % min(len(data), 200 if head else len(data))] = value
    path = tmp_path / "damaged"
    path.write_bytes(data[:cut])
    for read in (read_header, read_image):
        try:
            read(path, max_megapixels=1)
        except ValueError as error:
            lines = str(error).splitlines()
            if len(lines) != 1:
                raise
