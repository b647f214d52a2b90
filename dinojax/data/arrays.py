"""Images in MedMNIST-style `.npz` files: arrays `{train,val,test}_images` and `{train,val,test}_labels`."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinojax.data.cache import Cache, stamp
from dinojax.data.files import TEXT
from dinojax.data.formats import Header, Stored
from dinojax.data.records import SPLITS, Records
from dinojax.errors import RunError
from dinojax.runs.files import reason

_LARGEST = 8 * 2**30
"""Compressed arrays of a file that are read may take so many bytes together: they can only be read whole."""
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_LOCAL = 30
"""Bytes before the name in a zip file's local header, of which the last four are two lengths."""

_arrays: Cache[np.ndarray] = Cache(_LARGEST)


class _Array(NamedTuple):
    """What an `.npz` file says of one of its arrays."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int
    """Bytes of the array's own header."""
    member: zipfile.ZipInfo

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def read_npz(path: Path, labelled: bool) -> Records:
    """Lists the images of an `.npz` file.

    Args:
      path: has arrays `train_images`, [N, H, W] or [N, H, W, 3] of 8 or 16 bits, and `train_labels`, [N] or [N, 1] of
        whole numbers or text, or [N, C] of 0 and 1 for several labels an image; the same for `val` and `test`, of
        which any may be missing.
      labelled: read the labels.

    Returns:
      An entry an image, with path `<file>.npz/train` and its number as frame. Labels as text, StringDType [N], without
      `classes`; of several labels, float32 [N, C] with the columns' numbers as classes.

    Raises:
      RunError: it cannot be read, or an array is missing or of another kind, which is named.
    """
    try:
        listed = _listed(path)
        parts = [part for part in SPLITS if f"{part}_images" in listed]
        if not parts:
            names = ", ".join(sorted(listed)) or "none"
            raise ValueError(f"has no arrays train_images, val_images or test_images; its arrays are {names}")
        counts = [_images(listed, part).shape[0] for part in parts]
        if not sum(counts):
            raise ValueError("holds no images")
        labels = [_labels(path, listed, part, count) for part, count in zip(parts, counts, strict=True) if labelled]
    except Exception as error:  # whatever the damage leads to
        raise RunError(f"cannot read {path}: {reason(error)}") from error
    if len({array.shape[1:] for array in labels}) > 1:
        raise RunError(f"cannot read {path}: its parts have different numbers of labels an image")
    together = np.concatenate(labels) if labels else None
    several = together is not None and together.ndim == 2
    read = {f"{part}_{what}" for part in parts for what in (("images", "labels") if labelled else ("images",))}
    return Records(
        path.parent,
        np.repeat(np.array([f"{path.name}/{part}" for part in parts], TEXT), counts),
        np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
        task=path.stem,
        labels=together,
        classes=tuple(map(str, range(together.shape[1]))) if together is not None and several else (),
        splits=np.repeat(np.array(parts, TEXT), counts),
        reader=f"MedMNIST arrays {path.name}",
        unread_columns=tuple(sorted(set(listed) - read)),
    )


def read_array_header(path: Path, part: str) -> Header:
    """What the images of a part have in common; `frames` counts them.

    Raises:
      Exception: whatever the damage leads to.
    """
    images = _images(_listed(path), part)
    return Header(
        kind="raster",
        format="NumPy array",
        width=images.shape[2],
        height=images.shape[1],
        channels=3 if len(images.shape) == 4 else 1,
        bits=8 * images.dtype.itemsize,
        frames=images.shape[0],
    )


def read_array_image(path: Path, part: str, frame: int) -> Stored:
    """One image of a part.

    Arrays that are not compressed are mapped from the disk; others are read whole, once in a process.

    Raises:
      Exception: whatever the damage leads to.
    """
    images = _arrays.get((*stamp(path), part), lambda: _loaded(path, part))
    if not 0 <= frame < len(images):
        raise ValueError(f"has {len(images)} images, numbered from 0, and none of number {frame}")
    image = np.array(images[frame], images.dtype.newbyteorder("="), order="C")
    return Stored(image if image.ndim == 3 else image[:, :, None], (0.0, float(np.iinfo(image.dtype).max)))


def _listed(path: Path) -> dict[str, _Array]:
    """The arrays of a file, by name, none of which is read."""
    found: dict[str, _Array] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                if version not in _HEADERS:
                    raise ValueError(f"{member.filename} is of a version of NumPy's format that is not read")
                shape, fortran, dtype = _HEADERS[version](file)
                found[member.filename.removesuffix(".npy")] = _Array(shape, dtype, fortran, file.tell(), member)
    return found


def _named(listed: dict[str, _Array], name: str) -> _Array:
    """An array that is there and holds numbers or text."""
    if name not in listed:
        raise ValueError(f"has no array {name}")
    if listed[name].dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which may run code when they are read; save it as numbers")
    return listed[name]


def _images(listed: dict[str, _Array], part: str) -> _Array:
    """The images of a part, if they are of a kind that is read."""
    name = f"{part}_images"
    array = _named(listed, name)
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise ValueError(f"{name} is of type {array.dtype.name}; images of uint8 and uint16 are read")
    shape = "×".join(map(str, array.shape))
    if len(array.shape) not in (3, 4) or 0 in array.shape[1:]:
        raise ValueError(f"{name} has shape {shape}; images of shape N×H×W and N×H×W×3 are read")
    if len(array.shape) == 4 and array.shape[3] != 3:
        raise ValueError(
            f"{name} has shape {shape}, volumes: save their slices as N×H×W, or the volumes as NIfTI files"
        )
    if array.nbytes + array.offset > array.member.file_size:
        raise ValueError(f"{name} is cut off")
    return array


def _labels(path: Path, listed: dict[str, _Array], part: str, count: int) -> np.ndarray:
    """Text [N], or float32 [N, C] of several labels an image."""
    name = f"{part}_labels"
    array = _named(listed, name)
    if array.dtype.kind not in "iubU" or len(array.shape) not in (1, 2):
        shape = "×".join(map(str, array.shape))
        raise ValueError(f"{name} is of type {array.dtype.name} and shape {shape}; whole numbers N×1 or N×C are read")
    if array.shape[0] != count:
        raise ValueError(f"{name} has {array.shape[0]} rows, but there are {count} images")
    with np.load(path, allow_pickle=False) as file:
        values = file[name]
    if values.ndim == 2 and values.shape[1] != 1:
        if values.dtype.kind == "U" or not np.isin(values, (0, 1)).all():
            raise ValueError(f"{name} has {values.shape[1]} columns, which must be 0 or 1")
        return values.astype(np.float32)
    values = values.reshape(count)
    return np.array((values if values.dtype.kind == "U" else values.astype(np.int64)).astype(str).tolist(), TEXT)


def _loaded(path: Path, part: str) -> tuple[np.ndarray, int]:
    """The images of a part, read-only, and the bytes that they take."""
    listed = _listed(path)
    array = _images(listed, part)
    if array.member.compress_type == zipfile.ZIP_STORED:
        return _mapped(path, array), 0
    names = [f"{other}_images" for other in SPLITS if f"{other}_images" in listed]
    total = sum(listed[name].nbytes for name in names)
    if total > _LARGEST:
        raise ValueError(
            f"its images take {total / 2**30:.1f} GiB when they are unpacked, more than {_LARGEST / 2**30:g}; save "
            "them with numpy.savez, uncompressed, to have them read from the disk"
        )
    with np.load(path, allow_pickle=False) as file:
        images = file[f"{part}_images"]
    images.flags.writeable = False
    return images, images.nbytes


def _mapped(path: Path, array: _Array) -> np.ndarray:
    with path.open("rb") as file:
        file.seek(array.member.header_offset)
        local = file.read(_LOCAL)
    lengths = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    offset = array.member.header_offset + _LOCAL + lengths + array.offset
    return np.memmap(path, array.dtype, "r", offset, array.shape, order="F" if array.fortran else "C").view(np.ndarray)
