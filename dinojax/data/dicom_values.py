"""Decodes a DICOM frame, and takes its stored values to its own unit and its own windows; padding and palettes."""

import struct
from typing import Any

import numpy as np
from pydicom import Dataset, uid
from pydicom.encaps import get_frame
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.sequence import Sequence

from dinojax.data.dicom_file import COLOUR, HEAD, Image, Refused, in_plain_words, name_of

_GROUPS = ("PixelMeasuresSequence", "FrameVOILUTSequence", "PixelValueTransformationSequence")
LIFTED = ("PixelSpacing", "WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleSlope", "RescaleIntercept")
"""What functional groups say of a frame, and single-frame files of themselves."""

Range = tuple[float, float]

# On damaged frames GDCM, which pydicom would try first, can end the process, and pylibjpeg-rle's panic is no Exception.
_SAFER = dict.fromkeys((uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit), "pillow") | {uid.RLELossless: "pydicom"}
_SAFER |= dict.fromkeys((uid.JPEG2000, uid.JPEG2000Lossless), "pylibjpeg")


def decode(image: Image, frame: int) -> np.ndarray:
    """Decodes one frame.

    Returns:
      [H, W] or [H, W, 3], as stored, in the machine's byte order; of the colour spaces of three channels RGB.
    """
    begin, options, kind = image.file.tell(), dict(image.options), name_of(image.syntax)
    with in_plain_words(f"its pixel data ({kind}) is damaged, or of a kind that no installed decoder reads"):
        if image.syntax.is_encapsulated:
            several = {"number_of_frames": image.frames, "extended_offsets": options.get("extended_offsets")}
            coded = _coded_shape(get_frame(image.file, frame, **several))  # type: ignore[arg-type]
            said = options["columns"], options["rows"], options["samples_per_pixel"]
            if coded and (coded[:3] != said or not 1 <= coded[3] <= options["bits_allocated"]):
                here = "{}×{} with {} samples of {} bits".format(*coded)
                raise Refused("its header says {}×{} with {} samples, its pixel data {}".format(*said, here))
            image.file.seek(begin)
        decoder, plugin = get_decoder(image.syntax), _SAFER.get(image.syntax, "")
        options["decoding_plugin"] = plugin if plugin in decoder.available_plugins else ""
        values, found = decoder.as_array(image.file, index=frame, validate=True, **options)
        if image.photometric in COLOUR and found["photometric_interpretation"] != "RGB":
            raise Refused(f"its colours are stored as {image.photometric}, which {kind} does not have")
        return values.astype(values.dtype.newbyteorder("="), copy=False)


def values_of(dataset: Dataset, name: str) -> list[Any]:
    """The values of an element, whether it has none, one or several."""
    value = dataset.get(name)
    if isinstance(value, (MultiValue, Sequence, list)):  # not whatever is iterable: a person's name is, by letters
        return list(value)
    return [] if value is None or value in ("", b"") else [value]


def lift_groups(dataset: Dataset, frame: int) -> None:
    """Puts what an enhanced file's functional groups say of a frame where single-frame files have it."""
    shared = values_of(dataset, "SharedFunctionalGroupsSequence")[:1]
    own = values_of(dataset, "PerFrameFunctionalGroupsSequence")[frame : frame + 1]
    for group in (*shared, *own):  # the frame's own come last, and win
        for item in (item for name in _GROUPS for item in values_of(group, name)[:1]):
            for name in LIFTED:
                if name in item:
                    dataset[name] = item[name]


def stored_range(image: Image) -> Range:
    """The values that the stored type can have; of floats 0 and 1."""
    if image.options["pixel_keyword"] != "PixelData":
        return 0.0, 1.0
    bits, signed = image.options["bits_stored"], image.options["pixel_representation"]
    return (float(-(2 ** (bits - 1))), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)


def padding_of(values: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """Pixels of a grey frame that measure nothing, by the values as stored: bool [H, W]; None if there are none."""
    mask = np.zeros(values.shape, bool)
    kind = "" if values.dtype.kind != "f" else "Float" if values.dtype.itemsize == 4 else "DoubleFloat"
    if found := values_of(dataset, f"{kind}PixelPaddingValue")[:1]:
        found += values_of(dataset, f"{kind}PixelPaddingRangeLimit")[:1]
        if not kind:  # writers confuse the signs: 63536 stands for −2000, or the reverse
            bits = 8 * values.dtype.itemsize
            found = [int(value) % 2**bits for value in found]
            found = [value - 2**bits if values.dtype.kind == "i" and value >> (bits - 1) else value for value in found]
        mask = (values >= min(found)) & (values <= max(found))
    if kind:
        mask |= ~np.isfinite(values)
    return mask if mask.any() else None


def modality(values: np.ndarray, full: Range, image: Image) -> tuple[np.ndarray, Range]:
    """Applies the modality table, or the rescale slope and intercept.

    Args:
      values: [H, W] as stored.
      full: of the stored type.

    Returns:
      Values, whole numbers where slope and intercept are, and `full` in their unit, the smaller first.
    """
    if items := values_of(image.dataset, "ModalityLUTSequence"):
        table, first, bits = _table(items[0], image.little)
        return _look_up(values, table, first), (0.0, 2.0**bits - 1)
    given = values_of(image.dataset, "RescaleSlope")[:1] + values_of(image.dataset, "RescaleIntercept")[:1]
    if len(given) < 2:
        return values, full
    slope, intercept = (float(value) for value in given)
    if not np.isfinite([slope, intercept]).all() or not slope:
        raise Refused("its rescale slope and intercept are no numbers, or the slope is 0")
    ends = sorted(value * slope + intercept for value in full)
    whole = slope.is_integer() and intercept.is_integer() and values.dtype.kind in "iu"
    if whole and ends[0] >= -(2.0**31) and ends[1] < 2.0**31 and values.dtype.itemsize <= 2:
        return values.astype(np.int32) * int(slope) + int(intercept), (ends[0], ends[1])
    return values.astype(np.float64) * slope + intercept, (ends[0], ends[1])


def voi(values: np.ndarray, full: Range, image: Image, number: int) -> tuple[np.ndarray, Range]:
    """Applies the file's n-th VOI table or window, from 1, tables first.

    Args:
      values: [H, W] after the modality table or rescale.
      full: in their unit; a window's output has this range, as in pydicom.

    Returns:
      Values, and the range of the output.
    """
    tables, windows = voi_tables(image.dataset), voi_windows(image.dataset)
    count = len(tables) + len(windows)
    if not 1 <= number <= count:
        raise Refused(f"has {count} VOI windows and tables: there is no number {number}")
    if number <= len(tables):
        table, first, bits = _table(tables[number - 1], image.little)
        return _look_up(values, table, first), (0.0, 2.0**bits - 1)
    center, width = windows[number - len(tables) - 1]
    low, high = full
    function = _function(image.dataset)
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values - center) / width, -700, 700)  # where exp does not overflow
        return (high - low) / (1 + np.exp(exponent)) + low, full
    if function == "LINEAR":  # PS3.3, C.11.2.1.2.1: center and width are of whole numbers
        center, width = center - 0.5, width - 1
    if not width:
        return np.where(values <= center, low, high), full
    return np.clip(((values - center) / width + 0.5) * (high - low) + low, low, high), full


def voi_tables(dataset: Dataset) -> list[Dataset]:
    """The VOI tables that can be used."""
    items = values_of(dataset, "VOILUTSequence")
    return [item for item in items if values_of(item, "LUTData") and len(values_of(item, "LUTDescriptor")) == 3]


def voi_windows(dataset: Dataset) -> list[Range]:
    """Center and width of the windows that can be used."""
    pairs = zip(values_of(dataset, "WindowCenter"), values_of(dataset, "WindowWidth"), strict=False)
    windows = [(float(center), float(width)) for center, width in pairs]
    narrowest = {"LINEAR": 1.0, "LINEAR_EXACT": 1e-300, "SIGMOID": 1e-300}.get(_function(dataset), np.inf)
    return [(center, width) for center, width in windows if np.isfinite(center) and narrowest <= width < np.inf]


def coloured(values: np.ndarray, image: Image) -> tuple[np.ndarray, Range]:
    """Colours of a palette's numbers [H, W]: RGB [H, W, 3] of 8 or 16 bits, and black and white."""
    dataset = image.dataset
    descriptor = [int(value) for value in values_of(dataset, "RedPaletteColorLookupTableDescriptor")]
    if len(descriptor) != 3:
        raise Refused("has no colour palette")
    if "RedPaletteColorLookupTableData" not in dataset:  # in segments, which pydicom knows to join
        wide = values.astype(np.int64)
        colours = apply_color_lut(np.clip(wide, descriptor[1], descriptor[1] + (descriptor[0] or 65536) - 1), dataset)
        return colours[:, :, :3], (0.0, 255.0 if colours.dtype == np.uint8 else 65535.0)
    tables = []
    for colour in ("Red", "Green", "Blue"):
        item = Dataset()
        item.LUTDescriptor = descriptor
        item.add_new("LUTData", "OW", dataset[f"{colour}PaletteColorLookupTableData"].value)
        tables.append(_table(item, image.little)[0])
    white = 255.0 if descriptor[2] == 8 and max(table.max() for table in tables) < 256 else 65535.0
    kind = np.uint8 if white == 255 else np.uint16
    return np.stack([_look_up(values, table, descriptor[1]).astype(kind) for table in tables], axis=-1), (0.0, white)


def _coded_shape(coded: bytes) -> tuple[int, int, int, int] | None:
    """Columns, rows, components and bits by a JPEG, JPEG-LS or JPEG 2000 codestream itself.

    By these, decoders take memory, and where they are absurd, GDCM ends the process.
    """
    if coded[:2] != b"\xff\xd8" and (start := coded.find(b"\xff\x4f\xff\x51", 0, HEAD)) >= 0:
        right, bottom, left, top = struct.unpack(">4I", coded[start + 8 : start + 24])
        components, precision = struct.unpack(">HB", coded[start + 40 : start + 43])
        return right - left, bottom - top, components, (precision & 0x7F) + 1
    place = 2
    while coded[:2] == b"\xff\xd8" and coded[place : place + 1] == b"\xff" and place + 10 <= len(coded):
        marker, length = coded[place + 1], int.from_bytes(coded[place + 2 : place + 4], "big")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            precision, rows, columns, components = struct.unpack(">B2HB", coded[place + 4 : place + 10])
            return columns, rows, components, precision
        place += 1 if marker == 0xFF else 2 + length
    return None


def _function(dataset: Dataset) -> str:
    """LINEAR, LINEAR_EXACT, SIGMOID, or what the file says instead."""
    return str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()


def _table(item: Dataset, little: bool) -> tuple[np.ndarray, int, int]:
    """A lookup table, the value that its first entry belongs to, and the bits of an entry."""
    count, first, bits = (int(value) for value in values_of(item, "LUTDescriptor"))
    count = count % 65536 or 65536  # 0 stands for 65536, which 16 bits cannot say; signed ones are negative
    data = item["LUTData"].value
    if isinstance(data, bytes):
        wide = len(data) >= 2 * count  # else entries of 8 bits, a byte each
        table = np.frombuffer(data, np.dtype("<u2" if little else ">u2") if wide else np.uint8)
    else:
        table = np.atleast_1d(np.asarray(data))
    if not 8 <= bits <= 16 or not len(table):
        raise Refused(f"has a lookup table of {len(table)} entries of {bits} bits")
    return table[:count].astype(np.uint16), first, bits


def _look_up(values: np.ndarray, table: np.ndarray, first: int) -> np.ndarray:
    """Entries of a table; values outside take the first and the last.

    pydicom's own indexes with the table's type, so that more than 256 entries of 8 bits wrap.
    """
    return table[np.clip(values - float(first), 0, len(table) - 1).astype(np.intp)]
