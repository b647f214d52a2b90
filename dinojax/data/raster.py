"""Image files other than DICOM and NIfTI: PNG, JPEG, TIFF, BMP, WebP, GIF and JPEG 2000, whatever their names end in.

Values keep their bits, grey stays one channel, pictures are upright and shown over black:

- Samples of 1, 2 or 4 bits are 0..1, 0..3 and 0..15, of 12 bits 0..4095; nothing is scaled to a type's range.
- Pixels that are NaN or infinite are padding.
- WhiteIsZero values are as stored, with `inverted` set, of any number of bits.
- Palettes, CMYK, YCbCr and CIELAB become 8-bit RGB, as Pillow converts them.
- Colour times alpha, rounded, is what is seen over black; colours that the file says are multiplied already stay.
- The EXIF orientation, or TIFF's tag, is applied to the values and to the header's width and height.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from dinojax.data.deep_colour import check_png, deep_jpeg2000, deep_png, is_deep_png, jpeg2000_bits
from dinojax.data.formats import Header, Stored
from dinojax.data.header_texts import TEXT_TAGS, names_of, texts_of
from dinojax.data.tiff import Layout, Refused, Unknown, colours_of, layout_of, list_pages, open_page, page_at, samples
from dinojax.runs.files import reason

# Once, for all threads: sizes are checked here before decoding, and damaged files are refused with a reason.
Image.MAX_IMAGE_PIXELS = None
Image.init()  # all plugins at once: two threads that open their first files would do so side by side
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)

_PILLOW = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "GIF", "JPEG2000")
_NAMES = {"MPO": "JPEG", "DIB": "BMP", "WEBP": "WebP", "JPEG2000": "JPEG 2000"}
_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"RIFF", b"GIF8", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG2000_HEADER = 1 << 20  # bytes among which the codestream's header is looked for, behind a colour profile
_GREY = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION = 274


def read_header(path: Path, max_megapixels: float = 200.0) -> Header:
    """What the header of an image file says, without decoding pixels; of a PNG, all checksums are compared.

    Args:
      path: of the file.
      max_megapixels: files of more are refused.

    Raises:
      ValueError: the file cannot be read, and why, in one line.
    """
    with _one_reason(), path.open("rb") as file:
        start = file.read(32)
        if start.startswith(_TIFF_STARTS):
            return _tiff_header(file, max_megapixels)
        with _opened(file, start) as image:
            _guard(image.size, max_megapixels)
            frames = _frames(image)
            bits = _bits(image, file, start)
            if image.format == "PNG":
                check_png(file, image)
            if is_deep_png(start) and frames > 1:
                raise Refused("it is an animated PNG of 16-bit colours; save its frames as single files")
            grey = image.mode in _GREY or (is_deep_png(start) and start[25] == 4)  # which Pillow calls RGBA
            width, height = image.size
            if _orientation(image) > 4:
                width, height = height, width
            return Header(
                kind="raster",
                format=_NAMES.get(image.format or "", image.format or ""),
                width=width,
                height=height,
                channels=1 if grey else 3,
                bits=bits,
                frames=frames,
                names=names_of(image),
            )


def read_image(path: Path, frame: int = -1, max_megapixels: float = 200.0) -> Stored:
    """The stored values of one image; see the module's docstring for what they are.

    Args:
      path: of the file.
      frame: which image of a file of several, from 0; -1 where it has one.
      max_megapixels: images of more are refused before they are decoded.

    Returns:
      Values [H, W, 1 or 3]; of bits 1 to 8 uint8 (int8), to 16 uint16 (int16), then 32 or 64; float16 as float32. They
      may be read-only.

    Raises:
      ValueError: the file cannot be read, and why, in one line; it has several images, and none is named.
    """
    with _one_reason(), path.open("rb") as file:
        start = file.read(32)
        if start.startswith(_TIFF_STARTS):
            return _read_tiff(file, frame, max_megapixels)
        with _opened(file, start) as image:
            _guard(image.size, max_megapixels)
            number = _choose(_frames(image), frame)
            for step in range(1, number + 1):  # the frames of a GIF may enlarge it
                image.seek(step)
                _guard(image.size, max_megapixels)
            bits = _bits(image, file, start)
            if is_deep_png(start):
                if _frames(image) > 1:
                    raise Refused("it is an animated PNG of 16-bit colours; save its frames as single files")
                check_png(file, image)
                orientation = _orientation(image)
                file.seek(0)
                values, alpha = deep_png(file.read())
                values = values if alpha is None else _compose(values, alpha, 65535, inverted=False)
            elif image.format == "JPEG2000" and bits > 8 and image.mode not in _GREY:
                orientation = _orientation(image)
                file.seek(0)
                values = deep_jpeg2000(file.read())
            else:
                values = _pillow_values(image, bits)
                orientation = _orientation(image)  # after decoding: it may stand behind a PNG's pixels
            return Stored(_upright(values, orientation), (0.0, float(2**bits - 1)))


@contextlib.contextmanager
def _one_reason() -> Iterator[None]:
    try:
        yield
    except Refused:
        raise
    except MemoryError as error:
        raise Refused("it needs more memory than there is") from error
    except OSError as error:
        known = error.errno is not None
        raise Refused(reason(error) if known else f"it is damaged: {reason(error)}") from error
    except Exception as error:  # the libraries raise whatever the damage leads to
        raise Refused(f"it is damaged: {reason(error)}") from error


def _opened(file: IO[bytes], start: bytes) -> Image.Image:
    if not start:
        raise Refused("it is empty")
    file.seek(0)
    try:
        return Image.open(file, formats=_PILLOW)
    except UnidentifiedImageError as error:
        if not start.startswith(_STARTS):
            raise Unknown("it is not a PNG, JPEG, TIFF, BMP, WebP, GIF or JPEG 2000 file") from error
        if start.startswith(b"\xff\xd8\xff"):
            raise Refused(
                "its header is damaged, or it is a JPEG of 12 bits or without loss; save it as PNG"
            ) from error
        raise Refused("its header is damaged") from error


def _guard(size: tuple[int, int], limit: float) -> None:
    megapixels = size[0] * size[1] / 1e6
    if megapixels > limit:
        raise Refused(f"{megapixels:g} megapixels, more than max_megapixels {limit:g}; raise it if the file is meant")
    if min(size) < 1:
        raise Refused("it has no pixels")


def _choose(frames: int, frame: int) -> int:
    if frame < 0 and frames > 1:
        raise Refused(f"has {frames} frames; list them in a manifest with a column frame")
    if frame >= frames:
        raise Refused(f"has {frames} frame{'s' * (frames > 1)}, numbered from 0; there is no frame {frame}")
    return max(frame, 0)


def _frames(image: Image.Image) -> int:
    """A camera's MPO holds further views of its first picture, for 3-D or as a preview: they are not images."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def _bits(image: Image.Image, file: IO[bytes], start: bytes) -> int:
    """Of a stored value; Pillow tells only the type that it widens it to."""
    if image.format == "PNG":
        return 8 if image.mode in ("P", "PA") else start[24]
    if image.format == "JPEG2000":
        file.seek(0)
        return jpeg2000_bits(file.read(_JPEG2000_HEADER), image.mode)
    return 1 if image.mode == "1" else 8


def _pillow_values(image: Image.Image, bits: int) -> np.ndarray:
    """[H, W, 1 or 3]; what Pillow scaled to 8 or 16 bits is scaled back."""
    mode, key = image.mode, image.info.get("transparency")
    if mode in _GREY and mode not in ("LA", "La"):
        values = np.asarray(image)[:, :, None]
        if mode == "1":
            values = values.view(np.uint8) & 1  # stored as 0 and 255
        elif image.format == "JPEG2000":  # OpenJPEG's values were shifted up
            values = values >> (values.itemsize * 8 - bits) if bits not in (8, 16) else values
        elif bits < 8:
            values = values // (255 // (2**bits - 1))
        values = values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
        return np.where(values == key, values.dtype.type(0), values) if isinstance(key, int) else values
    if mode == "RGB":
        values = np.asarray(image)
        return values * (values != key).any(axis=2, keepdims=True) if isinstance(key, tuple) else values
    if mode in ("LA", "La"):
        return np.ascontiguousarray(np.asarray(image.convert("La"))[:, :, :1])
    if mode in ("PA", "RGBA", "RGBa") or (mode == "P" and image.has_transparency_data):
        image = image if mode in ("RGBA", "RGBa") else image.convert("RGBA")
        return np.ascontiguousarray(np.asarray(image.convert("RGBa"))[:, :, :3])
    return np.asarray(image.convert("RGB"))


def _compose(values: np.ndarray, alpha: np.ndarray, top: int, inverted: bool) -> np.ndarray:
    """Values [H, W, C] with alpha [H, W, 1] over black; `top` is the alpha of an opaque pixel, 0 of floats."""
    if not top:
        return values * alpha
    wide = values.astype(np.uint64)
    wide = top - wide if inverted else wide
    shown = (wide * alpha + top // 2) // top
    return (top - shown if inverted else shown).astype(values.dtype)


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turns what EXIF's orientation says is turned or mirrored."""
    if orientation == 1:
        return values
    if orientation > 4:
        values = values.swapaxes(0, 1)
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation, ())
    return np.ascontiguousarray(np.flip(values, flips))


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data do not spoil the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _tiff_header(file: IO[bytes], limit: float) -> Header:
    pages = list_pages(file)
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page = page_at(tiff, *pages[0], len(pages))
        _guard((page.imagewidth, page.imagelength), limit)
        layout = layout_of(page)
        if layout.by_pillow:
            open_page(file, page)
        width, height = layout.width, layout.height
        if layout.orientation > 4:
            width, height = height, width
        eight = layout.palette or (layout.by_pillow and layout.channels == 3)
        return Header(
            kind="raster",
            format="TIFF",
            width=width,
            height=height,
            channels=layout.channels,
            bits=8 if eight else max(layout.bits, 32) if layout.type == "f" else layout.bits,
            frames=len(pages),
            names=texts_of(page.tags.valueof(tag) for tag in TEXT_TAGS),
        )


def _read_tiff(file: IO[bytes], frame: int, limit: float) -> Stored:
    pages = list_pages(file)
    number = _choose(len(pages), frame)
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page = page_at(tiff, *pages[number], len(pages))
        _guard((page.imagewidth, page.imagelength), limit)
        layout = layout_of(page)
        if layout.by_pillow:
            return _tiff_by_pillow(open_page(file, page), layout)
        stored = samples(file, page, layout)
    top = 2**layout.bits - 1 if layout.type == "u" else 2 ** (layout.bits - 1) - 1
    full = {"u": (0.0, float(top)), "i": (-top - 1.0, float(top)), "f": (0.0, 1.0)}[layout.type]
    values = stored[:, :, : layout.channels]
    if layout.palette:
        values, full = colours_of(stored[:, :, 0], page, layout.bits), (0.0, 255.0)
    if layout.alpha > 0:
        alpha = stored[:, :, layout.alpha : layout.alpha + 1]
        values = _compose(values, alpha, 0 if layout.type == "f" else top, layout.inverted)
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    values = _upright(np.ascontiguousarray(values), layout.orientation)
    void = np.logical_not(np.isfinite(values).all(axis=2)) if layout.type == "f" else np.zeros(0, bool)
    return Stored(values, full, void if void.any() else None, layout.inverted)


def _tiff_by_pillow(image: Image.Image, layout: Layout) -> Stored:
    """Pillow turns TIFF pages upright, and WhiteIsZero values of 1 and 8 bits over."""
    bits = 8 if layout.channels == 3 else layout.bits
    values = _pillow_values(image, bits)
    if values.shape[2] != layout.channels:
        raise Refused("its tags contradict each other; save it as PNG")
    if layout.inverted:
        values = np.uint8(2**bits - 1) - values
    return Stored(values, (0.0, float(2**bits - 1)), None, layout.inverted)
