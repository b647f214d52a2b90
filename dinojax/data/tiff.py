"""TIFF pages by their tags: what a page holds, whether it can be read, and its samples bit by bit.

Pillow reads pages of 8-bit grey, RGB and other colours, and of fax and JPEG compression. It has neither 16-bit colours
nor 16-bit WhiteIsZero nor float64, so all other pages are put together here from their strips or tiles, whose places
tifffile tells.
"""

import dataclasses
import io
import logging
import re
import struct
import zlib
from typing import IO, Any, Literal

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

# Damaged files are refused with a reason; what tifffile logs of them as well would go to stderr.
logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _CIELAB = 0, 1, 2, 3, 5, 6, 8
_PHOTOMETRICS = {0: "WhiteIsZero grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELAB"}
_FAX, _JPEG, _DEFLATE = (2, 3, 4), (6, 7), (8, 32946)
_BY_LIBTIFF = (5, 32773, 34925, 50000)
"""LZW, PackBits, LZMA, Zstandard: decompressed by Pillow's libtiff, as far as it was built with them."""
_REDUCED, _MASK = 1, 4
_MOST_TAGS, _TILE_BYTES = 4096, 1 << 26
_TYPES = {1: "u", 2: "i", 3: "f", 4: "u"}
_ADVICE = "save it as a PNG or an uncompressed TIFF of 8 or 16 bits, grey or RGB"


class Refused(ValueError):
    """A file that is not read, with the reason in plain words."""


class Unknown(Refused):
    """A file that is of no kind of picture by its first bytes."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the samples of a page are stored.

    Attributes:
      by_pillow: whether Pillow reads the page; else `samples` does.
      width, height: in pixels as stored, before the orientation is applied.
      samples: number per pixel.
      channels: 1 or 3, of what is read: alpha applied, a palette looked up.
      bits: of a stored sample.
      type: of a sample: unsigned, signed or float.
      photometric: the tag's value.
      alpha: which sample is alpha that the colours must be multiplied by; -1 if none is.
      orientation: 1 to 8, as in EXIF.
    """

    by_pillow: bool
    width: int
    height: int
    samples: int
    channels: Literal[1, 3]
    bits: int
    type: str
    photometric: int
    alpha: int
    orientation: int

    @property
    def inverted(self) -> bool:
        return self.photometric == _WHITE_IS_ZERO

    @property
    def palette(self) -> bool:
        return self.photometric == _PALETTE


def list_pages(file: IO[bytes]) -> list[tuple[int, int]]:
    """Number and offset of the pages that are images of their own: neither reduced (thumbnails) nor masks.

    Only the chain of pages is read. It ends where it comes back to a page, as it does in some damaged files.

    Raises:
      Refused: there is no page.
    """
    file.seek(0)
    start = file.read(16)
    order = "<" if start.startswith(b"II") else ">"
    large = 43 in start[2:4]
    head, tail, size = (8, "Q", 20) if large else (2, "I", 12)
    (offset,) = struct.unpack_from(f"{order}{tail}", start, 8 if large else 4)
    seen: dict[int, int] = {}  # subfile type by offset
    while offset and offset not in seen:
        file.seek(offset)
        count = int.from_bytes(file.read(head), "little" if order == "<" else "big")
        if not 0 < count <= _MOST_TAGS:
            break
        entries = file.read(count * size)
        following = file.read(struct.calcsize(tail))
        if len(entries) < count * size:
            break
        tags = {struct.unpack_from(f"{order}H", entries, at)[0]: at for at in range(0, len(entries), size)}
        at = tags.get(254)
        seen[offset] = 0 if at is None else struct.unpack_from(f"{order}I", entries, at + (12 if large else 8))[0]
        offset = int.from_bytes(following, "little" if order == "<" else "big")
    pages = list(enumerate(seen))
    if not pages:
        raise Refused("it is a TIFF without an image")
    return [(number, place) for number, place in pages if not seen[place] & (_REDUCED | _MASK)] or pages[:1]


def page_at(tiff: tifffile.TiffFile, number: int, offset: int, pages: int) -> tifffile.TiffPage:
    """The tags of one page.

    Raises:
      Refused: the file holds more images than pages.
    """
    tiff.filehandle.seek(offset)
    page = tifffile.TiffPage(tiff, number)
    # The single page of such a file describes the first image of many, which lie behind one another.
    stated = re.search(r"^images=(\d+)", page.description, re.MULTILINE) if page.is_imagej else None
    truncated = page.is_shaped and '"truncated": true' in page.description
    if int(stated[1] if stated else 1) > pages == 1 or truncated or page.is_stk or page.imagedepth > 1:
        raise Refused("it is a stack of images in a single TIFF page; save one page for each image")
    return page


def layout_of(page: tifffile.TiffPage) -> Layout:
    """How a page's samples are stored.

    Raises:
      Refused: by name, because neither Pillow nor `samples` reads this combination of tags.
    """
    photometric, compression = int(page.photometric), int(page.compression)
    tagged = page.tags.valueof(258, 1)
    bits = {*tagged} if isinstance(tagged, tuple) else {int(tagged)}
    formats = page.tags.valueof(339, 1)
    formats = {int(value) for value in formats} if isinstance(formats, tuple) else {int(formats)}
    name = f"{'/'.join(map(str, sorted(bits)))}-bit {_PHOTOMETRICS.get(photometric, f'photometric {photometric}')}"
    name += f" TIFF ({tifffile.COMPRESSION(compression).name if compression in _known() else compression} compression)"
    if len(bits) > 1 or len(formats) > 1:
        raise Refused(f"its channels differ in bits or sample format ({name}); {_ADVICE}")
    (depth,), (sample_format,) = bits, formats
    if sample_format not in _TYPES:
        raise Refused(f"its samples are complex numbers ({name}); save their magnitude as float32")
    colours = {_RGB: 3, _YCBCR: 3, _CIELAB: 3, _CMYK: 4}.get(photometric, 1)
    extra = page.tags.valueof(338, ())
    extra = tuple(int(value) for value in (extra if isinstance(extra, tuple) else (extra,)))
    extra = (extra + (0,) * min(page.samplesperpixel, 99))[: max(page.samplesperpixel - colours, 0)]
    if page.samplesperpixel < colours or (colours == 1 and any(value not in (1, 2) for value in extra)):
        raise Refused(f"it has {page.samplesperpixel} channels ({name}); save one grey or RGB image for each")
    plain = compression in (1, *_DEFLATE, *_BY_LIBTIFF)
    simple = sample_format == 1 and not extra and page.fillorder == 1 and page.planarconfig == 1
    wide, simple = simple and depth == 16 and page.parent.byteorder == "<", simple and depth == 8
    converted = photometric in (_CMYK, _YCBCR, _CIELAB) and not (page.is_subsampled and plain)
    by_pillow = (
        (compression in _FAX and depth == 1 and photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO))
        or (compression in _JPEG and depth == 8 and photometric != _PALETTE)
        or (plain and simple and photometric in (_BLACK_IS_ZERO, _RGB))
        or (wide and compression in _BY_LIBTIFF and photometric == _BLACK_IS_ZERO)
        or (plain and converted and sample_format == 1 and (page.planarconfig == 1 or photometric == _CMYK))
    )
    kind = _TYPES[sample_format]
    sizes = {"u": (*range(1, 17), 32, 64), "i": (8, 16, 32, 64), "f": (16, 32, 64)}[kind]
    if photometric == _PALETTE:
        sizes = range(1, 17) if kind == "u" and page.colormap is not None else ()
    by_us = plain and photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE) and depth in sizes
    predicted = int(page.predictor)
    by_us = by_us and (predicted == 1 or (predicted == 2 and depth % 8 == 0) or (predicted == 3 and kind == "f"))
    if not (by_pillow or by_us):
        raise Refused(f"a {name} is not read; {_ADVICE}")
    alpha = colours + extra.index(2) if 2 in extra else -1
    if alpha > 0 and kind == "i":
        raise Refused(f"it has signed values and transparency ({name}); save it without alpha")
    return Layout(
        by_pillow=by_pillow,
        width=page.imagewidth,
        height=page.imagelength,
        samples=page.samplesperpixel,
        channels=1 if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) else 3,
        bits=depth,
        type=kind,
        photometric=photometric,
        alpha=alpha,
        orientation=_orientation(page),
    )


def open_page(file: IO[bytes], page: tifffile.TiffPage) -> Image.Image:
    """Opens a page by Pillow, without decoding it."""
    file.seek(0)
    try:
        image = Image.open(file, formats=("TIFF",))
        image.seek(page.index)
    except (UnidentifiedImageError, SyntaxError) as error:
        raise Refused("its tags are damaged, or of a rare combination; save it as PNG") from error
    return image


def samples(file: IO[bytes], page: tifffile.TiffPage, layout: Layout) -> np.ndarray:
    """The samples of a page as they are stored: [H, W, samples] of its own type in the machine's byte order.

    Raises:
      Refused: strips or tiles are missing or short.
    """
    planes, per_pixel = (layout.samples, 1) if page.planarconfig == 2 else (1, layout.samples)
    across = page.tilewidth if page.is_tiled else layout.width
    down = page.tilelength if page.is_tiled else min(page.rowsperstrip or layout.height, layout.height)
    if across <= 0 or down <= 0:
        raise Refused("it is damaged: its tiles or strips have no size")
    size = np.dtype(f"{layout.type}{_item_size(layout.bits)}")
    across_all, down_all = -(-layout.width // across), -(-layout.height // down)
    if min(len(page.dataoffsets), len(page.databytecounts)) < planes * across_all * down_all:
        raise Refused("it is truncated: strips or tiles are missing")
    row_bytes = (across * per_pixel * layout.bits + 7) // 8
    values = np.empty((layout.height, layout.width, layout.samples), size)
    if row_bytes * down > 2 * values.nbytes + _TILE_BYTES:
        raise Refused("it is damaged: its tiles or strips are larger than the image")
    places = [
        (plane, y * down, x * across) for plane in range(planes) for y in range(down_all) for x in range(across_all)
    ]
    for (plane, y, x), offset, count in zip(places, page.dataoffsets, page.databytecounts, strict=False):
        rows = down if page.is_tiled else min(down, layout.height - y)
        file.seek(offset)
        packed = _decompress(file.read(count), int(page.compression), row_bytes, rows)
        if int(page.fillorder) == 2:
            packed = packed.translate(_REVERSED)
        if len(packed) < rows * row_bytes:
            raise Refused("it is truncated: a strip or tile is too short")
        lines = np.frombuffer(packed, np.uint8, rows * row_bytes).reshape(rows, row_bytes)
        block = _unpack(lines, layout, (rows, across, per_pixel), page.parent.byteorder, int(page.predictor))
        target = values[y : y + rows, x : x + across, plane : plane + per_pixel]
        target[...] = block[: target.shape[0], : target.shape[1]]
    return values


def colours_of(indices: np.ndarray, page: tifffile.TiffPage, bits: int) -> np.ndarray:
    """Looks up [H, W] indices in the page's palette: uint8 [H, W, 3]."""
    palette = np.asarray(page.colormap)
    if palette.shape != (3, 2**bits):
        raise Refused("its palette is damaged")
    # The entries have 16 bits; some programs wrote 8-bit ones.
    return (palette if palette.max() < 256 else palette >> 8).astype(np.uint8).T[indices]


_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def _known() -> set[int]:
    return {int(member) for member in tifffile.COMPRESSION}


def _item_size(bits: int) -> int:
    return 1 if bits <= 8 else 2 if bits <= 16 else bits // 8


def _orientation(page: tifffile.TiffPage) -> int:
    value: Any = page.tags.valueof(274)
    if value is None and (stated := re.search(rb'tiff:Orientation(?:="|>)([0-9])', page.tags.valueof(700, b"") or b"")):
        value = int(stated[1])  # as Pillow does
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _decompress(packed: bytes, compression: int, row_bytes: int, rows: int) -> bytes:
    """The bytes of a strip or tile; no more than are expected, however many it would become."""
    if compression == 1:
        return packed
    if compression in _DEFLATE:
        return zlib.decompressobj().decompress(packed, row_bytes * rows)
    # An 8-bit grey TIFF of one strip, whose pixels are these bytes, lets libtiff decompress them.
    tags = [(256, row_bytes), (257, rows), (258, 8), (259, compression), (262, 1), (273, 122), (277, 1), (278, rows)]
    tags.append((279, len(packed)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    whole = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4 + packed
    with Image.open(io.BytesIO(whole), formats=("TIFF",)) as image:
        return image.tobytes()


def _unpack(lines: np.ndarray, layout: Layout, shape: tuple[int, int, int], order: str, predictor: int) -> np.ndarray:
    """[rows, bytes] to samples of the given shape (rows, columns, samples)."""
    rows, columns, per_pixel = shape
    size = _item_size(layout.bits)
    if layout.bits not in (8, 16, 32, 64):  # packed from the highest bit on; each row begins with a new byte
        single = np.unpackbits(lines, axis=1, count=columns * per_pixel * layout.bits)
        single = single.reshape(rows, columns * per_pixel, layout.bits)
        single = np.pad(single, ((0, 0), (0, 0), (size * 8 - layout.bits, 0)))
        return np.packbits(single, axis=2).view(f">u{size}").reshape(shape)
    if predictor == 3:  # Adobe's TIFF Technical Note 3: differences of bytes, those of one significance together
        summed = np.cumsum(lines.reshape(rows, columns * size, per_pixel), axis=1, dtype=np.uint8)
        summed = summed.reshape(rows, size, columns * per_pixel).transpose(0, 2, 1)
        return np.ascontiguousarray(summed).view(f">f{size}").reshape(shape)
    block = lines.view(f"{order}u{size}").reshape(shape)
    if predictor == 2:  # TIFF 6.0, section 14: differences along a row, which wrap around
        block = np.cumsum(block, axis=1, dtype=f"u{size}")
        order = "="
    return block.view(f"{order}{layout.type}{size}")
