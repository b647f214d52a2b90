"""What Pillow cuts to 8 bits, read whole: PNG and JPEG 2000 of 16-bit colours; and the chunks of a PNG."""

import struct
import zlib
from collections.abc import Iterator
from typing import IO

import cv2
import numpy as np
from PIL import Image

from dinojax.data.tiff import Refused

# Once, for all threads: damaged files are refused with a reason, not logged on stderr.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {2: 3, 4: 2, 6: 4}
_WHOLE = ((0, 0, 1, 1),)
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""The passes of an interlaced PNG: first column and row, step of columns and rows."""
_CODESTREAM = b"\xff\x4f\xff\x51"
_SYCC = b"colr\x01\x00\x00\x00\x00\x00\x12"


def is_deep_png(start: bytes) -> bool:
    """Whether a file that begins with these 32 bytes is a PNG of 16-bit colours, or of 16-bit grey with alpha."""
    return start.startswith(_PNG) and start[24:25] == b"\x10" and start[25:26] in (b"\x02", b"\x04", b"\x06")


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG, (type, content), their checksums compared.

    Raises:
      Refused: a checksum is wrong, or the file ends before its last chunk.
    """
    at, whole = len(_PNG), memoryview(data)
    while True:
        length, kind = int.from_bytes(whole[at : at + 4]), bytes(whole[at + 4 : at + 8])
        end = at + 8 + length
        if end + 4 > len(whole):
            raise Refused("it is truncated")
        if zlib.crc32(whole[at + 4 : end]) != int.from_bytes(whole[end : end + 4]):
            raise Refused("it is damaged: a checksum is wrong")
        yield kind, bytes(whole[at + 8 : end])
        if kind == b"IEND":
            return
        at = end + 4


def check_png(file: IO[bytes], image: Image.Image) -> None:
    """Compares a PNG's checksums, and tells Pillow of EXIF data and texts behind the pixels.

    Pillow itself would decode the pixels to find them.

    Raises:
      Refused: as of `png_chunks`.
    """
    file.seek(0)
    exif = b""
    for kind, content in png_chunks(file.read()):
        if kind == b"eXIf":
            exif = b"Exif\0\0" + content
        elif kind == b"tEXt":
            keyword, _, text = content.partition(b"\0")
            image.info.setdefault(keyword.decode("latin-1"), text)
    if "Raw profile type exif" not in image.info:
        image.info.setdefault("exif", exif)


def deep_png(data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """Decodes a PNG for which `is_deep_png` is true.

    Returns:
      uint16 [H, W, 1 or 3], and alpha [H, W, 1] if it has transparency.

    Raises:
      Refused: it is damaged.
    """
    header, parts, key = b"", [], b""
    for kind, content in png_chunks(data):
        if kind == b"IHDR":
            header = content
        elif kind == b"IDAT":
            parts.append(content)
        elif kind == b"tRNS":
            key = content
    width, height, _, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    channels = _PNG_CHANNELS[colour]
    passes = [
        (-(-(width - x) // across) * channels * 2 + 1, -(-(height - y) // down))
        for x, y, across, down in (_ADAM7 if interlaced else _WHOLE)
        if width > x and height > y
    ]
    expected = sum(row * rows for row, rows in passes)
    raw = zlib.decompressobj().decompress(b"".join(parts), expected)
    if len(raw) < expected:
        raise Refused("it is truncated")
    # libpng, inside OpenCV, writes on stderr what displeases it: it gets nothing but whole rows with valid filters.
    lines, at = np.frombuffer(raw, np.uint8), 0
    for row, rows in passes:
        if lines[at : at + row * rows : row].max() > 4:
            raise Refused("it is damaged: a row's filter is unknown")
        at += row * rows
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 0)), (b"IEND", b""))
    clean = b"".join(
        len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4) for kind, content in chunks
    )
    values = _decode(_PNG + clean)
    alpha = values[:, :, 3:] if values.shape[2] == 4 else None
    values = values[:, :, :1] if channels == 2 else np.ascontiguousarray(values[:, :, 2::-1])
    if len(key) == 6 and channels == 3:  # one colour is transparent
        alpha = (values != np.frombuffer(key, ">u2")).any(axis=2, keepdims=True) * np.uint16(65535)
    return values, alpha


def jpeg2000_bits(data: bytes, mode: str) -> int:
    """Bits of a JPEG 2000 file's values, of which Pillow tells the mode.

    Raises:
      Refused: by name, what neither Pillow nor OpenCV reads with its bits.
    """
    at = data.find(_CODESTREAM) + len(_CODESTREAM)
    components = data[at + 38 : at + 38 + 3 * int.from_bytes(data[at + 36 : at + 38])]  # Ssiz, XRsiz, YRsiz of each
    if at < len(_CODESTREAM) or not components:
        raise Refused("its header is damaged")
    depths = {*components[::3]}
    bits = (components[0] & 127) + 1
    if len(depths) > 1 or components[0] > 127:
        raise Refused("a JPEG 2000 of signed values or of channels that differ in bits is not read; save it as PNG")
    if mode == "P":
        return 8
    converted = mode not in ("L", "I;16", "RGB") or _SYCC in data[:at] or {*components[1::3], *components[2::3]} != {1}
    if bits > 16 or (bits != 8 and converted):
        raise Refused(f"a JPEG 2000 of {bits} bits with transparency or YCC colours is not read; save it as PNG")
    return bits


def deep_jpeg2000(data: bytes) -> np.ndarray:
    """Decodes a JPEG 2000 file of 9 to 16 bits and three channels: uint16 [H, W, 3]."""
    return np.ascontiguousarray(_decode(data)[:, :, 2::-1])


def _decode(data: bytes) -> np.ndarray:
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 3 or values.dtype != np.uint16:
        raise Refused("its pixels are damaged")
    return values
