"""Writes small DICOM files for tests."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    syntax: uid.UID = uid.ExplicitVRLittleEndian,
    keyword: str = "PixelData",
    preamble: bool = True,
    **elements: Any,
) -> Path:
    """Writes a DICOM file.

    Args:
      path: of the file.
      pixels: [H, W] or [H, W, 3]; or [F, H, W] if NumberOfFrames is among the elements.
      syntax: an uncompressed one, or RLELossless.
      keyword: of the element for the pixels.
      preamble: whether preamble and file meta information are written.
      **elements: values of further elements by their keywords, over what the pixels say; None leaves one out.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if syntax == uid.RLELossless else syntax
    dataset = Dataset()
    dataset.file_meta = meta
    colour = pixels.ndim == 3 and "NumberOfFrames" not in elements
    bits = pixels.dtype.itemsize * 8
    described: dict[str, Any] = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Rows": pixels.shape[0 if pixels.ndim == 2 or colour else 1],
        "Columns": pixels.shape[1 if pixels.ndim == 2 or colour else 2],
        "SamplesPerPixel": 3 if colour else 1,
        "PlanarConfiguration": 0 if colour else None,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "BitsAllocated": bits,
    }
    if keyword == "PixelData":
        stored = elements.get("BitsStored", bits)
        described |= {"BitsStored": stored, "HighBit": stored - 1, "PixelRepresentation": int(pixels.dtype.kind == "i")}
    for name, value in (described | elements).items():
        if value is not None:
            setattr(dataset, name, value)
    little = syntax != uid.ExplicitVRBigEndian
    data = pixels.astype(pixels.dtype.newbyteorder("<" if little else ">")).tobytes()
    setattr(dataset, keyword, data + b"\0" * (len(data) % 2))
    if keyword == "PixelData":
        dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    if syntax == uid.RLELossless:
        dataset.compress(uid.RLELossless, encoding_plugin="pydicom")
    if preamble:
        dataset.save_as(path, enforce_file_format=True)
    else:
        bare = Dataset(dict(dataset.items()))
        bare.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=little)
    return path


def table(first: int, bits: int, entries: np.ndarray) -> Dataset:
    """An item of a modality or VOI LUT sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item
