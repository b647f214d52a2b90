"""Reads NIfTI volumes slice by slice, displayed as radiologists look at them, whatever the order of their voxels.

A volume is brought into canonical orientation, [X, Y, Z, T] with x from the patient's left to right, y from posterior
to anterior and z from inferior to superior, as `nibabel.as_closest_canonical` does, without interpolation. Slices are
displayed by radiological convention:

- axial: rows from anterior to posterior, columns from the patient's right to left; numbered from inferior to superior;
- coronal: rows from superior to inferior, columns from right to left; numbered from posterior to anterior;
- sagittal: rows from superior to inferior, columns from anterior to posterior; numbered from left to right.

The fourth axis is time or channel: frame = t × slices + slice, all from 0.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from nibabel.spatialimages import HeaderDataError

from dinojax.data.cache import Cache, stamp
from dinojax.data.formats import Axis, Header, Stored
from dinojax.data.nifti_layout import Layout, is_packed, mapped, read_layout, unpacked
from dinojax.runs.files import reason

SUFFIXES = (".nii", ".nii.gz")
"""Of one file each. Pairs of `.hdr` and `.img` are not read: an Analyze pair does not say which side is left."""
MAX_MEGAPIXELS = 200.0
_CACHED = 512 * 2**20
_NORMAL: dict[Axis, int] = {"sagittal": 0, "coronal": 1, "axial": 2}

_volumes: Cache[tuple[Layout, np.ndarray]] = Cache(_CACHED)
"""Volumes of compressed files, which can only be read whole: the slices of one cost one reading."""


def read_header(path: Path, max_megapixels: float = MAX_MEGAPIXELS) -> Header:
    """Reads what a file says of its volume, but no voxel.

    Args:
      path: a `.nii` or `.nii.gz` file, NIfTI-1 or NIfTI-2.
      max_megapixels: of the largest axial slice that is taken for sound.

    Returns:
      Width and height are those of an axial slice as it is displayed, `spacing` of its rows and columns, `thickness`
      between two of them; `frames` counts axial slices times the fourth axis. Texts of fewer than three characters are
      not among `names`.

    Raises:
      ValueError: it cannot be read, is larger than the file can hold, or is of a kind that is not read: complex
        numbers, numbers of 128 bits, five or more axes, a pair of header and image. No text of the header is in the
        message.
    """
    with _plain_errors():
        layout = read_layout(path)
        x, y, z, times = layout.canonical_shape
        _check_size(y, x, max_megapixels)
        size = layout.size
        return Header(
            kind="nifti",
            format=f"NIfTI-{layout.version}",
            width=x,
            height=y,
            channels=3 if layout.colours else 1,
            bits=layout.dtype.itemsize * 8,
            frames=z * times,
            volume=(x, y, z, times),
            spacing=None if size is None else (size[1], size[0]),
            thickness=None if size is None else size[2],
            names=layout.names,
        )


def slices(header: Header, axis: Axis) -> int:
    """How many slices a volume has along an axis, times its fourth axis."""
    return _volume(header)[_NORMAL[axis]] * _volume(header)[3]


def frame_of(slice_: int, t: int, header: Header, axis: Axis) -> int:
    """Number of a slice among all of a volume; see the module's docstring."""
    return t * _volume(header)[_NORMAL[axis]] + slice_


def slice_of(frame: int, header: Header, axis: Axis) -> tuple[int, int]:
    """(slice, t) of a frame: the inverse of `frame_of`."""
    t, slice_ = divmod(frame, _volume(header)[_NORMAL[axis]])
    return slice_, t


def slice_shape(header: Header, axis: Axis) -> tuple[int, int]:
    """(height, width) of a slice as it is displayed."""
    return _rows_and_columns(axis, _volume(header)[:3])


def slice_spacing(header: Header, axis: Axis) -> tuple[float, float] | None:
    """Millimetres between the centres of two rows and of two columns; None if unknown."""
    if header.spacing is None or header.thickness is None:
        return None
    return _rows_and_columns(axis, (header.spacing[1], header.spacing[0], header.thickness))


def read_slice(path: Path, frame: int, axis: Axis = "axial", max_megapixels: float = MAX_MEGAPIXELS) -> Stored:
    """Reads one slice, in canonical orientation, as it is displayed.

    Args:
      path: as of `read_header`.
      frame: t × slices + slice; -1 for the slice of a volume that has just one.
      axis: that the slice is perpendicular to.
      max_megapixels: of the largest slice that is read.

    Returns:
      Values after the header's slope and intercept: float32; integers of the stored type if there are neither. Voxels
      that are not finite are padding, with value 0.

    Raises:
      ValueError: as `read_header`; there is no such slice; or the voxels are damaged.
    """
    with _plain_errors():
        layout, volume = _canonical(path)
        normal = _NORMAL[axis]
        each, times = volume.shape[normal], volume.shape[3]
        if frame < 0 and each * times == 1:
            frame = 0
        if not 0 <= frame < each * times:
            raise ValueError(f"has {each * times} {axis} slices, numbered from 0, and none of number {frame}")
        rows, columns = _rows_and_columns(axis, volume.shape)
        _check_size(rows, columns, max_megapixels)
        t, place = divmod(frame, each)
        plane = np.moveaxis(volume[:, :, :, t], normal, 0)[place]  # [first, second] of the axes x, y, z that are left
        shown = np.swapaxes(plane, 0, 1)[::-1, ::-1]  # both run against the axes: down, and to the patient's left
        values = np.ascontiguousarray(layout.values(shown if layout.colours else shown[:, :, None]))
    finite = np.isfinite(values) if values.dtype.kind == "f" else None
    if finite is None or finite.all():
        return Stored(values, layout.full)
    return Stored(np.where(finite, values, np.float32(0)), layout.full, padding=~finite[:, :, 0])


def volume_values(path: Path, t: int | None = None) -> np.ndarray:
    """A whole volume in canonical orientation, for statistics.

    Args:
      path: as of `read_header`.
      t: place along the fourth axis; None for all.

    Returns:
      [X, Y, Z, T], of colours [X, Y, Z, T, 3], as `read_slice` returns them, but that voxels may be NaN or infinite;
      may be read-only.

    Raises:
      ValueError: as `read_slice`.
    """
    with _plain_errors():
        layout, volume = _canonical(path)
        if t is not None:
            if not 0 <= t < volume.shape[3]:
                raise ValueError(
                    f"its fourth axis has {volume.shape[3]} places, numbered from 0, and none of number {t}"
                )
            volume = volume[:, :, :, t : t + 1]
        if layout.scale is None and layout.dtype.isnative and layout.dtype.kind != "f" and layout.colours != 4:
            return volume
        # One by one: meanwhile values take up to eight times their memory.
        return np.stack([layout.values(volume[:, :, :, place]) for place in range(volume.shape[3])], axis=3)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Makes every error a ValueError of one line."""
    try:
        with np.errstate(all="ignore"):  # damaged headers overflow
            yield
    except MemoryError as error:
        raise ValueError("does not fit into memory") from error
    except Exception as error:
        known = isinstance(error, (ValueError, OSError, HeaderDataError))
        raise ValueError(reason(error) if known else f"its NIfTI header is damaged ({type(error).__name__})") from error


def _volume(header: Header) -> tuple[int, int, int, int]:
    if header.volume is None:
        raise ValueError("is no volume")
    return header.volume


def _rows_and_columns(axis: Axis, xyz: tuple) -> tuple:
    """Of three things along x, y and z those along the rows' and the columns' direction of a displayed slice."""
    x, y, z = xyz[:3]
    return {"axial": (y, x), "coronal": (z, x), "sagittal": (z, y)}[axis]


def _check_size(rows: int, columns: int, max_megapixels: float) -> None:
    if rows * columns > max_megapixels * 1e6:
        raise ValueError(
            f"its slices have {rows}×{columns} pixels, more than {max_megapixels:g} million; raise max_megapixels"
        )


def _canonical(path: Path) -> tuple[Layout, np.ndarray]:
    """Stored numbers in canonical orientation: of compressed files from memory, of others mapped from the disk."""
    if not is_packed(path):
        return mapped(path)

    def load() -> tuple[tuple[Layout, np.ndarray], int]:
        layout, volume = unpacked(path)
        return (layout, volume), volume.nbytes

    return _volumes.get(stamp(path), load)
