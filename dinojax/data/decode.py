"""Decodes one image of a data set to grey levels or colours, uint8, by the data set's intensity policy."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dinojax.augment import geometry
from dinojax.data import containers, dicom, nifti, raster
from dinojax.data.files import FORMATS, suffix_of
from dinojax.data.formats import KINDS, Axis, BadFile, Header, Stored
from dinojax.data.intensity import FULL, grey_levels
from dinojax.data.records import Records
from dinojax.data.tiff import Unknown
from dinojax.levels import Rule
from dinojax.runs.files import reason

MAX_MEGAPIXELS = 200.0
"""Of the largest image that is decoded where nothing else was said."""


def kind_of(file: Path) -> str:
    """By which reader of `KINDS` a file is read; one without a known suffix may be DICOM."""
    name = str(file)
    if containers.is_member(name):
        return "member"
    if name.lower().endswith(nifti.SUFFIXES):
        return "nifti"
    if suffix_of(name) in FORMATS and suffix_of(name) not in (".dcm", ".dicom"):
        return "raster"
    return "dicom" if dicom.is_dicom(file) else "raster"


def read_header(file: Path, frame: int = -1, max_megapixels: float = MAX_MEGAPIXELS) -> tuple[str, Header]:
    """The reader, and what the header says.

    Raises:
      Exception: whatever the damage leads to; of the readers ValueError.
    """
    kind = kind_of(file)
    if kind == "member":
        return kind, containers.header_of_member(str(file), frame)
    if kind == "nifti":
        return kind, nifti.read_header(file, max_megapixels)
    if kind == "dicom":
        return kind, dicom.read_header(file, max_megapixels)
    try:
        return kind, raster.read_header(file, max_megapixels)
    except ValueError as error:
        named = suffix_of(str(file)) in (".dcm", ".dicom") and isinstance(error, Unknown)
        if named or dicom.is_dicom(file):  # whatever its name says; and who calls it DICOM is told why it is not
            return "dicom", dicom.read_header(file, max_megapixels)
        raise


def read_stored(
    file: Path,
    kind: str,
    frame: int,
    rule: Rule = FULL,
    axis: Axis = "axial",
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Stored:
    """Stored values of one image; of a rule 'file' after the file's window."""
    if kind == "member":
        return containers.read_member(str(file), frame)
    if kind == "nifti":
        return nifti.read_slice(file, frame, axis, max_megapixels)
    if kind == "dicom":
        return dicom.read_frame(file, frame, rule.number if rule.name == "file" else None, max_megapixels)
    return raster.read_image(file, frame, max_megapixels)


def stored_of(records: Records, place: int) -> tuple[Stored, Rule, tuple[float, float] | None]:
    """One image before its values become grey levels, the rule by which they do, and its volume's black and white.

    Of a stack this is its first channel.

    Raises:
      BadFile: it cannot be read, or is of another kind than all those whose headers were read.
    """
    file, frame, display = records.file(place), int(records.frames[place]), records.display
    try:
        if display is None:
            return read_stored(file, kind_of(file), frame), FULL, None
        rule, kind = display.rules[display.rule[place]], KINDS[display.kind[place]]
        stored = read_stored(file, kind, frame, rule, display.axis, display.max_megapixels)
        if display.assumed[place] and (
            stored.values.dtype != np.uint8 or (display.grey and stored.values.shape[2] != 1)
        ):
            kinds = "grey pictures of 8 bits" if display.grey else "pictures of 8 bits"
            raise ValueError(f"all files whose headers were looked at are {kinds}, this is none; leave it out")
    # The readers of formats raise ValueError; a disk may raise more.
    except Exception as error:
        raise BadFile(f"cannot read {records.describe(place)}: {reason(error)}") from error
    low, high = display.levels[place].tolist()
    return stored, rule, None if np.isnan(low) else (low, high)


def decode(records: Records, place: int) -> np.ndarray:
    """One image, uint8 [H, W, 1] or [H, W, 3], as its data set's policy shows it; a stack is [H, W, channels].

    Raises:
      BadFile: it cannot be read; or the channels of a stack are not grey or not of one size.
    """
    return joined(records, place, [grey_levels(*stored_of(one, place)) for one in records.channels])


def joined(records: Records, place: int, channels: Sequence[np.ndarray]) -> np.ndarray:
    """One image, uint8 [H, W, C], with square pixels if these are asked for, of its channels as they were decoded.

    Raises:
      BadFile: the channels of a stack are not grey or not of one size.
    """
    images = [with_square_pixels(one, place, image) for one, image in zip(records.channels, channels, strict=True)]
    if len(images) == 1:
        return images[0]
    if {image.shape for image in images} != {(*images[0].shape[:2], 1)}:
        listed = ", ".join(f"{image.shape[1]}×{image.shape[0]}×{image.shape[2]}" for image in images)
        raise BadFile(f"cannot read {records.describe(place)}: its channels must be grey and of one size, not {listed}")
    return np.concatenate(images, axis=2)


def with_square_pixels(records: Records, place: int, image: np.ndarray) -> np.ndarray:
    """An image with square pixels, where these are asked for and the file says how high and wide they are."""
    display = records.display
    if display is None or not display.isotropic or not np.isfinite(ratio := float(display.ratio[place])):
        return image
    return geometry.stretch(image, ratio)
