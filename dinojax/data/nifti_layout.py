"""Where and how a NIfTI file keeps its voxels: its header, checked, and the bytes that follow."""

import dataclasses
import logging
import zlib
from pathlib import Path
from typing import Literal, cast

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, io_orientation

_HEADER = 540
"""Bytes of the longer of the two headers, NIfTI-2's."""
_GZIP = b"\x1f\x8b"
_RATIO = 1032
"""More than so many bytes do not come out of one byte of a gzip file."""
_BEHIND = 1 << 20
"""Bytes that may follow the voxels of a gzip file before its checksum; a longer rest is not read."""
_TEXTS = ("descrip", "aux_file", "db_name", "intent_name", "data_type")
_TO_MM = {"meter": 1000.0, "micron": 0.001}
_UNREAD = {
    1: "single bits",
    1536: "floats of 128 bits",
    **dict.fromkeys((32, 1792, 2048), "complex numbers"),
}
"""NIfTI's codes of types that are not read."""
_COLOURS = {128: 3, 2304: 4}
"""NIfTI's codes of RGB and RGBA, and how many bytes a voxel has."""

# nibabel's own logger writes to stderr what it repairs in a header.
_SILENT = logging.Logger("dinojax.nifti")
_SILENT.addHandler(logging.NullHandler())


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Where and how a file keeps its voxels.

    Attributes:
      version: 1 or 2.
      shape: [4] as stored.
      dtype: of a stored number, in the file's byte order.
      colours: numbers a voxel: 3 of RGB, 4 of RGBA, else 0.
      offset: bytes before the first voxel.
      scale: slope and intercept, None if the stored numbers are the values.
      orientation: that `nibabel.orientations.apply_orientation` takes.
      size: millimetres of a voxel along x, y and z; None if unknown.
      names: texts of the header.
    """

    version: int
    shape: tuple[int, int, int, int]
    dtype: np.dtype
    colours: int
    offset: int
    scale: tuple[float, float] | None
    orientation: np.ndarray
    size: tuple[float, float, float] | None
    names: tuple[str, ...]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of a Fortran-ordered array; the colours of a voxel lie together."""
        return (self.colours, *self.shape) if self.colours else self.shape

    @property
    def nbytes(self) -> int:
        count = self.dtype.itemsize
        for length in self.stored_shape:
            count *= length
        return count

    @property
    def canonical_shape(self) -> tuple[int, int, int, int]:
        x, y, z = (self.shape[np.flatnonzero(self.orientation[:, 0] == axis)[0]] for axis in range(3))
        return x, y, z, self.shape[3]

    def canonical(self, stored: np.ndarray) -> np.ndarray:
        """A view of the stored numbers, [X, Y, Z, T] or [X, Y, Z, T, colours]."""
        return apply_orientation(np.moveaxis(stored, 0, -1) if self.colours else stored, self.orientation)

    def values(self, numbers: np.ndarray) -> np.ndarray:
        """Stored numbers in the file's unit, of this machine's byte order; RGBA over black."""
        if self.colours == 4:
            colours, alpha = numbers[..., :3].astype(np.uint32), numbers[..., 3:]
            return ((colours * alpha + 127) // 255).astype(np.uint8)
        if self.scale is not None:
            slope, intercept = self.scale
            return (numbers.astype(np.float64) * slope + intercept).astype(np.float32)
        return numbers.astype(np.float32 if self.dtype.kind == "f" else self.dtype.newbyteorder("="), order="C")

    @property
    def full(self) -> tuple[float, float]:
        """As of `Stored`."""
        if self.dtype.kind == "f":
            return 0.0, 1.0
        limits, (slope, intercept) = np.iinfo(self.dtype), self.scale or (1.0, 0.0)
        low, high = sorted(float(limit) * slope + intercept for limit in (limits.min, limits.max))
        return low, high


def is_packed(path: Path) -> bool:
    """Whether it is compressed by gzip, whatever its name says."""
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def unpacked(path: Path) -> tuple[Layout, np.ndarray]:
    """Stored numbers of a compressed file, read-only, in canonical orientation."""
    layout = read_layout(path)
    contents = _gunzip(path.read_bytes(), layout.offset + layout.nbytes)
    if (missing := layout.offset + layout.nbytes - len(contents)) > 0:
        raise ValueError(f"ends {missing} bytes too early: it is cut off")
    flat = np.frombuffer(contents, layout.dtype, layout.nbytes // layout.dtype.itemsize, layout.offset)
    stored = flat.reshape(layout.stored_shape, order="F")
    return layout, layout.canonical(stored)


def _gunzip(packed: bytes, size: int) -> bytes:
    """The first `size` bytes of what gzip packed, and a rest that is not long, so that the checksum is compared."""
    parts: list[bytes] = []
    length = 0
    while packed and length < size + _BEHIND:
        if packed[:2] != _GZIP:  # whatever was appended
            break
        member = zlib.decompressobj(wbits=31)
        try:
            while not member.eof and length < size + _BEHIND:
                part = member.decompress(packed, max(size - length, 1 << 16))
                if not part and not member.unconsumed_tail and not member.eof:
                    return b"".join(parts)  # cut off
                parts.append(part)
                length += len(part)
                packed = member.unused_data if member.eof else member.unconsumed_tail
        except zlib.error as error:
            raise ValueError("its compressed data are damaged") from error
    return b"".join(parts)


def mapped(path: Path) -> tuple[Layout, np.ndarray]:
    """Stored numbers of an uncompressed file, read-only, in canonical orientation; read from the disk when used."""
    layout = read_layout(path)
    stored = np.memmap(path, layout.dtype, "r", layout.offset, layout.stored_shape, order="F")
    return layout, layout.canonical(stored.view(np.ndarray))


def read_layout(path: Path) -> Layout:
    """Reads and checks a header.

    Raises:
      ValueError: it is damaged, asks for more than the file can hold, or is of a kind that is not read.
      Exception: what nibabel raises.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        block = file.read(1 << 14)
    if not block:
        raise ValueError("is empty")
    packed = block[:2] == _GZIP
    if packed:
        try:
            block = zlib.decompressobj(wbits=31).decompress(block, _HEADER)
        except zlib.error as error:
            raise ValueError("its compressed data are damaged") from error
    header, version = _checked(block)
    shape = _shape(header)
    code = int(header["datatype"])
    colours = _COLOURS.get(code, 0)
    dtype = np.dtype(np.uint8) if colours else header.get_data_dtype()
    slope, intercept = (None, None) if colours else header.get_slope_inter()
    affine = np.asarray(header.get_best_affine())
    if not np.isfinite(affine).all():
        raise ValueError("its header does not say how the patient lies: the affine matrix is not finite")
    orientation = io_orientation(affine)
    if np.isnan(orientation).any():
        raise ValueError("its header does not say how the patient lies: the affine matrix is singular")
    layout = Layout(
        version=version,
        shape=shape,
        dtype=dtype,
        colours=colours,
        offset=header.get_data_offset(),
        scale=None if slope is None or (slope, intercept) == (1, 0) else (float(slope), float(intercept or 0)),
        orientation=orientation,
        size=_voxel_size(header, affine, orientation),
        names=_names(header),
    )
    needed, most = layout.offset + layout.nbytes, size * _RATIO if packed else size
    if needed > most:
        held = "its compressed bytes can hold at most" if packed else "the file has"
        raise ValueError(f"its header asks for {needed} bytes, but {held} {most}: it is cut off or damaged")
    return layout


def _checked(block: bytes) -> tuple[nibabel.Nifti1Header, Literal[1, 2]]:
    """A header whose lesser faults nibabel has repaired; extensions, which may be anything, are not read."""
    if block[4:8] in (b"n+2\0", b"ni2\0"):
        kind, length, version = nibabel.Nifti2Header, 540, 2
    elif block[344:348] in (b"n+1\0", b"ni1\0"):
        kind, length, version = nibabel.Nifti1Header, 348, 1
    elif block[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") and len(block) < 348:
        raise ValueError("is cut off within its header")
    elif block[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        raise ValueError("is an Analyze file, which does not say which side is left; convert it to NIfTI")
    else:
        raise ValueError("is no NIfTI file")
    if block[4:8] == b"ni2\0" or block[344:348] == b"ni1\0":
        raise ValueError("is the header of a pair of .hdr and .img files; save it as one .nii file")
    if len(block) < length:
        raise ValueError("is cut off within its header")
    header = kind(block[:length], check=False)
    if name := _UNREAD.get(int(header["datatype"])):
        raise ValueError(f"holds {name}, which are not read; save it with 8 to 64 bits, integers or floats")
    header.check_fix(logger=_SILENT, error_level=40)
    return header, cast(Literal[1, 2], version)


def _shape(header: nibabel.Nifti1Header) -> tuple[int, int, int, int]:
    shape = [int(length) for length in header.get_data_shape()]
    if any(length < 1 for length in shape) or len(shape) < 2:
        raise ValueError(f"its header gives {len(shape)} axes of lengths {shape}, which are no volume")
    while len(shape) > 4 and shape[-1] == 1:
        shape.pop()
    if len(shape) > 4:
        raise ValueError(
            f"has {len(shape)} axes ({'×'.join(map(str, shape))}): vectors are not read; save volumes of 3 or 4 axes"
        )
    x, y, z, t = (*shape, 1, 1)[:4]
    return x, y, z, t


def _voxel_size(
    header: nibabel.Nifti1Header, affine: np.ndarray, orientation: np.ndarray
) -> tuple[float, float, float] | None:
    """Along x, y and z of the canonical orientation."""
    stored = voxel_sizes(affine) * _TO_MM.get(str(header.get_xyzt_units()[0]), 1.0)
    x, y, z = (float(stored[np.flatnonzero(orientation[:, 0] == axis)[0]]) for axis in range(3))
    return (x, y, z) if min(x, y, z) > 0 and np.isfinite([x, y, z]).all() else None


def _names(header: nibabel.Nifti1Header) -> tuple[str, ...]:
    known = [bytes(header[name].item()).split(b"\0")[0] for name in _TEXTS if name in header]
    texts = [text.decode("utf-8", "replace").strip() for text in known]
    return tuple(text for text in texts if len(text) > 2)
