"""Opens DICOM files and checks that header and pixel data hold together."""

import contextlib
import dataclasses
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydicom import Dataset, dcmread, uid
from pydicom.pixels.decoders.base import get_decoder

from dinojax.runs.files import reason

# pydicom warns with the values that it finds odd, names and dates among them. Once, for all threads: a context manager
# around each read would not be safe in several threads.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", module=r"pydicom\b")
with contextlib.suppress(ImportError):
    import gdcm

    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()

HEAD = 1024
"""Bytes that hold the preamble and the file meta information."""
GREY = ("MONOCHROME1", "MONOCHROME2")

COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_OTHER_COLOUR = ("HSV", "ARGB", "CMYK", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "XYB")
_DEFLATED = b"\x02\x00\x10\x00UI\x16\x001.2.840.10008.1.2.1.99"
_MOST_INFLATED = 1 << 30
_PIXELS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
_UNDEFINED = 0xFFFFFFFF
_INSTALL = {uid.HTJ2KLossless: "pylibjpeg and pylibjpeg-openjpeg", uid.RLELossless: "pylibjpeg and pylibjpeg-rle"}
_INSTALL |= dict.fromkeys((uid.HTJ2K, uid.HTJ2KLosslessRPCL), _INSTALL[uid.HTJ2KLossless])
_INSTALL |= dict.fromkeys((*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes), "python-gdcm")
_INSTALL |= dict.fromkeys((uid.JPEG2000, uid.JPEG2000Lossless), "python-gdcm")


class Refused(ValueError):
    """A reason in our own words; every other exception's words may hold values of the header."""


@dataclasses.dataclass(frozen=True)
class Image:
    """A file whose header was checked, open at the value of its pixel data.

    Attributes:
      dataset: the elements asked for.
      file: the data set, inflated if it was deflated.
      syntax: in which the pixel data is encoded.
      options: of the header, checked, as pydicom's decoders take them.
    """

    dataset: Dataset
    file: BinaryIO
    syntax: uid.UID
    options: dict[str, Any]

    @property
    def little(self) -> bool:
        """Whether tables that are stored as bytes are little endian."""
        return is_little(self.dataset)

    @property
    def photometric(self) -> str:
        return self.options["photometric_interpretation"]

    @property
    def channels(self) -> Literal[1, 3]:
        return 1 if self.photometric in GREY else 3

    @property
    def frames(self) -> int:
        return self.options["number_of_frames"]


@contextlib.contextmanager
def in_plain_words(otherwise: str) -> Iterator[None]:
    """Turns every exception into a ValueError of one line without a word of pydicom's, whose words quote the header."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:  # pydicom and the decoders raise whatever the damage leads to
        system = isinstance(error, OSError) and error.strerror
        raise Refused(reason(error) if system else otherwise) from error


@contextlib.contextmanager
def opened(path: Path, tags: Sequence[Any], max_megapixels: float) -> Iterator[Image]:
    """Opens a file and checks that its header holds together and that its pixel data is all there.

    Args:
      path: a DICOM file, with or without preamble.
      tags: of the elements to read.
      max_megapixels: the largest frame that is accepted of compressed files.

    Raises:
      ValueError: why it cannot be read; also for whatever is raised in the body of `with`.
    """
    with in_plain_words("its header is damaged"), path.open("rb") as file:
        head = file.read(HEAD)
        if head[128:132] != b"DICM" and not begins_bare(head):
            raise Refused("is not DICOM, or is encrypted" if head else "is empty")
        source = _inflated(file, head) if _DEFLATED in head else file
        source.seek(0)
        dataset = dcmread(source, stop_before_pixels=True, force=True, specific_tags=list(tags))
        if dataset.file_meta.get("MediaStorageSOPClassUID") == uid.MediaStorageDirectoryStorage:
            raise Refused("is a DICOMDIR, which lists files and holds no image")
        yield _checked(dataset, source, max_megapixels)


def begins_bare(head: bytes) -> bool:
    """Whether a file begins with an element of groups 2 or 8, as a data set without preamble does."""
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    if head[:2] in (b"\x02\0", b"\x08\0"):
        return explicit or 0 < int.from_bytes(head[4:8], "little") < HEAD
    return head[:2] in (b"\0\x02", b"\0\x08") and explicit


def is_little(dataset: Dataset) -> bool:
    """Whether a data set was read as little endian."""
    return dataset.original_encoding[1] is not False


def pixel_element(file: BinaryIO, little: bool) -> tuple[str, str, int] | None:
    """Keyword, value representation and length of the pixel data that the file stands at; leaves it at the value."""
    start, order = file.read(12), "<" if little else ">"
    if len(start) < 8:
        return None
    group, element = struct.unpack(f"{order}HH", start[:4])
    if (keyword := _PIXELS.get(group << 16 | element)) is None:
        return None
    if start[4:6] in (b"OB", b"OW", b"OF", b"OD", b"UN"):
        return keyword, start[4:6].decode(), struct.unpack(f"{order}L", start[8:])[0]
    file.seek(8 - len(start), 1)  # implicit: the length follows the tag
    return keyword, "OW", struct.unpack(f"{order}L", start[4:8])[0]


def _inflated(file: BinaryIO, head: bytes) -> BinaryIO:
    """A deflated file's data set, which is explicit little endian; at most a gigabyte of it."""
    if head[132:138] != b"\x02\0\0\0UL":
        raise Refused("is deflated and does not say where its data set begins")
    file.seek(144 + int.from_bytes(head[140:144], "little"))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(file.read(), _MOST_INFLATED)
    if inflater.unconsumed_tail:
        raise Refused("is deflated and holds more than a gigabyte")
    return BytesIO(data)


def _checked(dataset: Dataset, file: BinaryIO, max_megapixels: float) -> Image:
    """The image of an open file, which stands at its pixel data, if header and length agree."""
    element = pixel_element(file, is_little(dataset))
    if element is None:
        raise Refused("has no pixel data, or ends before it")
    keyword, representation, length = element
    guessed = uid.ImplicitVRLittleEndian if dataset.original_encoding[0] else uid.ExplicitVRLittleEndian
    guessed = guessed if is_little(dataset) else uid.ExplicitVRBigEndian
    syntax = dataset.file_meta.get("TransferSyntaxUID") or guessed
    allocated = _whole(dataset, "BitsAllocated")
    options: dict[str, Any] = {
        "pixel_keyword": keyword,
        "pixel_vr": representation,
        "rows": _whole(dataset, "Rows"),
        "columns": _whole(dataset, "Columns"),
        "samples_per_pixel": _whole(dataset, "SamplesPerPixel", 1),
        "planar_configuration": _whole(dataset, "PlanarConfiguration", 0),
        "number_of_frames": _whole(dataset, "NumberOfFrames", 1) or 1,
        "bits_allocated": allocated,
        "bits_stored": _whole(dataset, "BitsStored", allocated),
        "pixel_representation": _whole(dataset, "PixelRepresentation", 0),
        "photometric_interpretation": _photometric(dataset),
    }
    if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
        options["extended_offsets"] = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    image = Image(dataset, file, syntax, options)
    _check_layout(image)
    _check_syntax(syntax, options)
    _check_length(image, length, max_megapixels)
    return image


def _whole(dataset: Dataset, name: str, default: int | None = None) -> int:
    """A count in the header."""
    value = dataset.get(name)
    value = default if value is None or value == "" else value
    if not isinstance(value, int) or value < 0:
        raise Refused(f"its header has no {name}" if value is None else f"its header's {name} is damaged")
    return int(value)


def _photometric(dataset: Dataset) -> str:
    """The colour space."""
    value = dataset.get("PhotometricInterpretation") or ""
    if value not in (*GREY, *COLOUR, "PALETTE COLOR"):
        raise Refused(f"its colours are stored as {value if value in _OTHER_COLOUR else 'an unknown kind'}")
    return value


def _check_layout(image: Image) -> None:
    """Refuses what no image can have."""
    options = image.options
    rows, columns, stored = options["rows"], options["columns"], options["bits_stored"]
    allocated, samples = options["bits_allocated"], options["samples_per_pixel"]
    if not rows or not columns:
        raise Refused(f"has {rows} rows and {columns} columns")
    if samples != (3 if image.photometric in COLOUR else 1):
        raise Refused(f"has {samples} samples a pixel in {image.photometric}")
    integers = options["pixel_keyword"] == "PixelData"
    sizes = (1, 8, 16, 32, 64) if integers else (32,) if options["pixel_keyword"] == "FloatPixelData" else (64,)
    if allocated not in sizes or not 1 <= stored <= allocated:
        raise Refused(f"has {stored} bits in {allocated} for a value of {options['pixel_keyword']}")
    if integers and _whole(image.dataset, "HighBit", stored - 1) != stored - 1 and not image.syntax.is_encapsulated:
        raise Refused(f"keeps its {stored} bits in the upper ones of {allocated}, which is not supported")
    if options["pixel_representation"] > 1 or options["planar_configuration"] > 1:
        raise Refused("its header's PixelRepresentation or PlanarConfiguration is damaged")


def _check_syntax(syntax: uid.UID, options: dict[str, Any]) -> None:
    """Refuses a transfer syntax that nothing installed decodes."""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise Refused(f"is encoded as {name_of(syntax)}: no decoder reads that; convert the file") from error
    if not decoder.is_available:
        raise Refused(f"is encoded as {name_of(syntax)}: install {_INSTALL.get(syntax, 'a decoder')}")
    twelve = syntax == uid.JPEGExtended12Bit and options["bits_stored"] > 8
    seven = syntax in uid.JPEGLSTransferSyntaxes and options["bits_stored"] in (6, 7)
    if seven and decoder.available_plugins == ("gdcm",):
        raise Refused(f"is encoded as {name_of(syntax)} with 6 or 7 bits: install pyjpegls")
    if twelve and "pylibjpeg" not in decoder.available_plugins:
        raise Refused(f"is encoded as {name_of(syntax)} with more than 8 bits: install pylibjpeg and pylibjpeg-libjpeg")


def _check_length(image: Image, length: int, max_megapixels: float) -> None:
    """Refuses pixel data that is cut off, or sizes in the header that the file could not hold."""
    options, begin = image.options, image.file.tell()
    end = image.file.seek(0, 2)
    image.file.seek(begin)
    rows, columns, frames = options["rows"], options["columns"], options["number_of_frames"]
    if image.syntax.is_encapsulated:
        if rows * columns > max_megapixels * 1e6:
            raise Refused(f"has frames of {columns}×{rows} pixels, more than {max_megapixels:g} megapixels")
        _check_fragments(image.file, end, frames)
        image.file.seek(begin)
        return
    if length == _UNDEFINED:
        raise Refused(f"is said to be {name_of(image.syntax)}, which is not compressed, and its pixel data is")
    needed = -(-rows * columns * frames * options["samples_per_pixel"] * options["bits_allocated"] // 8)
    needed = needed // 3 * 2 if image.photometric == "YBR_FULL_422" else needed
    if (held := min(length, end - begin)) < needed:
        raise Refused(f"is cut off, or its header damaged: {needed} bytes of pixel data expected, {held} found")


def _check_fragments(file: BinaryIO, end: int, frames: int) -> None:
    """Walks over compressed pixel data: an offset table, and then at least a fragment for every frame."""
    found = -1  # the table
    while len(start := file.read(8)) == 8 and start[:4] == b"\xfe\xff\x00\xe0":
        found += 1
        if file.seek(int.from_bytes(start[4:], "little"), 1) > end:
            raise Refused("is cut off: its pixel data ends before it should")
    if found < frames:
        raise Refused(f"is cut off, or its header damaged: {frames} frames expected, at most {max(found, 0)} found")


def name_of(syntax: uid.UID) -> str:
    """A transfer syntax for people."""
    name = syntax.name
    return name if name != syntax or re.fullmatch(r"[\d.]{5,64}", name) else "an unknown transfer syntax"
