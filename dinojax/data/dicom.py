"""Reads DICOM: headers without their pixels, single frames, and what a DICOMDIR lists.

No message of an error holds a value of the header that could identify a person.
"""

import contextlib
import math
import re
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread, uid
from pydicom.datadict import tag_for_keyword

from dinojax.data.dicom_file import HEAD, Refused, begins_bare, in_plain_words, is_little, opened, pixel_element
from dinojax.data.dicom_values import (
    LIFTED,
    coloured,
    decode,
    lift_groups,
    modality,
    padding_of,
    stored_range,
    values_of,
    voi_tables,
    voi_windows,
)
from dinojax.data.dicom_values import voi as apply_voi
from dinojax.data.formats import Header, Stored

_DIRECTORY = b"1.2.840.10008.1.3.10"
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_PERSONS = (
    "PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "ReferringPhysicianName",
    "ConsultingPhysicianName", "PerformingPhysicianName", "RequestingPhysician", "NameOfPhysiciansReadingStudy",
    "PhysiciansOfRecord", "OperatorsName", "ResponsiblePerson",
)  # fmt: skip
# Of PS3.15, table E.1-1, what people put in the names of folders and files.
_IDENTIFYING = (
    "PatientID", "OtherPatientIDs", "PatientBirthDate", "PatientAddress", "PatientTelephoneNumbers",
    "MedicalRecordLocator", "AccessionNumber", "StudyID", "AdmissionID", "InstitutionName", "InstitutionAddress",
    "InstitutionalDepartmentName", "ResponsibleOrganization", "StationName", "StudyDate", "SeriesDate",
    "AcquisitionDate", "ContentDate",
)  # fmt: skip
_OTHERS = (
    "OtherPatientIDsSequence", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "Rows", "Columns",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PixelAspectRatio", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit",
    "DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit", "SequenceOfUltrasoundRegions",
    "ModalityLUTSequence", "VOILUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
)  # fmt: skip
_PALETTE = [
    f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")
] + [f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")]
_TAGS: list[Any] = [
    tag_for_keyword(name) for name in (*_PERSONS, *_IDENTIFYING, *_SPACINGS, *LIFTED, *_OTHERS, *_PALETTE)
]


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, whatever its name, and not a DICOMDIR; also without preamble, if it has a SOP class or
    pixel data. Reads a thousand bytes of other files."""
    with contextlib.suppress(Exception), path.open("rb") as file:
        head = file.read(HEAD)
        if head[128:132] == b"DICM":
            return _DIRECTORY not in head
        if begins_bare(head):
            file.seek(0)
            dataset = dcmread(file, stop_before_pixels=True, force=True, specific_tags=[0x00080016])
            return "SOPClassUID" in dataset or pixel_element(file, is_little(dataset)) is not None
    return False


def list_dicomdir(path: Path) -> list[str]:
    """The files that a DICOMDIR names and that exist, relative to its folder, with forward slashes.

    Raises:
      ValueError: it cannot be read, or is no DICOMDIR.
    """
    with in_plain_words("its directory is damaged"):
        dataset = dcmread(path, specific_tags=[0x00041220])
        records = values_of(dataset, "DirectoryRecordSequence")
        names = ["/".join(values_of(record, "ReferencedFileID")) for record in records]
        if dataset.file_meta.get("MediaStorageSOPClassUID") != uid.MediaStorageDirectoryStorage:
            raise Refused("is not a DICOMDIR")
        inside = [name for name in names if name and ".." not in name.split("/") and not name.startswith("/")]
        return [name for name in dict.fromkeys(inside) if (path.parent / name).is_file()]


def read_header(path: Path, max_megapixels: float = 200.0) -> Header:
    """What the header says of the images; the pixels are not decoded.

    Of an enhanced multi-frame file, spacing and windows are those of the first frame. Where nothing gives millimetres,
    `spacing` is PixelAspectRatio, of which only the ratio of rows to columns means anything. `names` leaves out
    values of one and two letters. A window that cannot be used (no width, an unknown function) does not count.

    Args:
      path: a DICOM file, with or without preamble.
      max_megapixels: the largest frame that is accepted of compressed files.

    Raises:
      ValueError: why it cannot be read, in one line that names no value that identifies.
    """
    with opened(path, _TAGS, max_megapixels) as image:
        dataset, options = image.dataset, image.options
        lift_groups(dataset, 0)
        bits = options["bits_stored"]
        if image.photometric == "PALETTE COLOR":
            bits = 8 if values_of(dataset, "RedPaletteColorLookupTableDescriptor")[2:] == [8] else 16
        kind = "".join(_texts(dataset, "Modality"))
        return Header(
            kind="dicom",
            format="DICOM",
            width=options["columns"],
            height=options["rows"],
            channels=image.channels,
            bits=bits if bits <= 16 else 32 if bits <= 32 else 64,
            frames=image.frames,
            modality=kind if re.fullmatch("[A-Z]{2,16}", kind) else "",
            spacing=_spacing(dataset),
            windows=len(voi_tables(dataset)) + len(voi_windows(dataset)) if image.channels == 1 else 0,
            patient="\\".join(_texts(dataset, "PatientID")),
            study="\\".join(_texts(dataset, "StudyInstanceUID")),
            series="\\".join(_texts(dataset, "SeriesInstanceUID")),
            names=_names(dataset),
        )


def read_frame(path: Path, frame: int, voi: int | None = None, max_megapixels: float = 200.0) -> Stored:
    """Decodes one frame, and no other: modality table or rescale, then the file's own window if asked for.

    Args:
      path: a DICOM file, with or without preamble.
      frame: from 0; -1 where the file is one image.
      voi: number, from 1, of the VOI table or window to apply, tables first; `Stored.full` is then its output range. As
        pydicom's `apply_voi_lut`, but that black stays black if the rescale slope is negative.
      max_megapixels: the largest frame that is accepted of compressed files.

    Returns:
      The values; of colour images RGB. Overlays are ignored. Padding is compared with the values as stored.

    Raises:
      ValueError: why it cannot be read, in one line that names no value that identifies.
    """
    with opened(path, _TAGS, max_megapixels) as image:
        if frame >= image.frames or frame < -1:
            raise Refused(f"has {image.frames} frames, numbered from 0: there is no frame {frame}")
        if frame < 0 and image.frames > 1:
            raise Refused(f"has {image.frames} frames; name one")
        frame, dataset = max(frame, 0), image.dataset
        lift_groups(dataset, frame)
        values = decode(image, frame)
        full = stored_range(image)
        if image.channels == 3:
            if voi is not None:
                raise Refused(f"has no VOI window {voi}: it is in colour and has 0 windows")
            if image.photometric == "PALETTE COLOR":
                values, full = coloured(values, image)
            return Stored(values, full)
        padding = padding_of(values, dataset)
        values, full = modality(values, full, image)
        if voi is not None:
            values, full = apply_voi(values, full, image, voi)
        return Stored(values[:, :, None], full, padding, inverted=image.photometric == "MONOCHROME1")


def _texts(dataset: Dataset, name: str) -> list[str]:
    """The values of an element as text; bytes that have no meaning in its type are taken as they are."""
    tag: Any = tag_for_keyword(name)
    try:
        return [str(value) for value in values_of(dataset, name)]
    except Exception:  # a date that is none: it identifies all the same
        raw = dataset.get_item(tag)
        value = raw.value if raw is not None else None
        return value.decode("latin-1").strip(" \0").split("\\") if isinstance(value, bytes) else []


def _names(dataset: Dataset) -> tuple[str, ...]:
    """What identifies, whole and, of persons, in parts; of three letters at least, as shorter ones are everywhere."""
    found: list[str] = []
    for name in _PERSONS:
        for text in _texts(dataset, name):
            found += [text.strip("^= "), *re.split(r"[\^=,\s]+", text)]
    for name in _IDENTIFYING:
        found += _texts(dataset, name)
    for item in values_of(dataset, "OtherPatientIDsSequence"):
        found += _texts(item, "PatientID")
    return tuple(dict.fromkeys(text for text in found if len(text) > 2))


def _spacing(dataset: Dataset) -> tuple[float, float] | None:
    """Millimetres between rows and between columns, or their ratio alone, of PixelAspectRatio; None if unknown."""
    pairs = [values_of(dataset, name) for name in _SPACINGS]
    regions = [  # of two dimensions, in centimetres
        (abs(float(region.PhysicalDeltaY)) * 10, abs(float(region.PhysicalDeltaX)) * 10)
        for region in values_of(dataset, "SequenceOfUltrasoundRegions")
        if region.get("RegionSpatialFormat") == 1
        and region.get("PhysicalUnitsXDirection") == region.get("PhysicalUnitsYDirection") == 3
        and region.get("PhysicalDeltaX") and region.get("PhysicalDeltaY")
    ]  # fmt: skip
    if len(set(regions)) == 1:  # of two scales side by side, neither holds for the image
        pairs.append(list(regions[0]))
    ratio = values_of(dataset, "PixelAspectRatio")
    if len(set(map(str, ratio))) == 2:  # 1 to 1 says nothing of millimetres
        pairs.append(ratio)
    for pair in pairs:
        if len(pair) == 2 and all(0 < float(value) < math.inf for value in pair):
            return float(pair[0]), float(pair[1])
    return None
