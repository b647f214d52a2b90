"""Reads `.pth` files into named arrays, without PyTorch and without running anything that a file asks for.

What the pickle of such a file builds are records (`pickles`); only a record whose every number has been checked becomes
an array. Arrays are views of the mapped file.
"""

import io
import itertools
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.errors import RunError, first_of
from weights_convert.pickles import MOST, Storage, View, unpickle

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle in a file that torch.save wrote before 1.6
LEGACY_START = b"\x80\x02\x8a\x0a" + _LEGACY_MAGIC.to_bytes(10, "little")
_DEEPEST = 16  # levels of containers; real checkpoints have about four


def read_zip(path: Path, mapped: mmap.mmap) -> dict[str, np.ndarray]:
    """PyTorch 1.6 and later: a zip file, nothing compressed, of `NAME/data.pkl` and one entry for each storage.

    Raises:
      RunError: damaged, of another kind, or its pickle wants anything but tensors.
    """
    entries = _entries(path)
    programs = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(programs) != 1:
        inside = first_of(list(entries)) or "nothing"
        raise RunError(f"a zip file, but not one that torch.save wrote: it holds {inside}; name a file of weights")
    root = programs[0].removesuffix("data.pkl")

    @cache
    def locate(name: str) -> tuple[int, int]:
        if name not in entries:
            raise RunError(f"damaged: the entry {name} is missing")
        return _locate_entry(mapped, entries[name])

    if f"{root}byteorder" in entries:
        start, stop = locate(f"{root}byteorder")
        if mapped[start:stop] != b"little":
            raise RunError("was written on a big-endian machine; save it anew on a little-endian one")
    start, stop = locate(programs[0])
    tree = unpickle(io.BytesIO(mapped[start:stop]))

    def place(storage: Storage) -> int:
        start, stop = locate(f"{root}data/{storage.key}")
        if stop - start != storage.length * storage.element.itemsize:
            raise RunError(f"damaged: storage {storage.key} has {stop - start} bytes, not what its pickle says")
        return start

    return _tensors(tree, mapped, place)


def read_legacy(mapped: mmap.mmap) -> dict[str, np.ndarray]:
    """Before PyTorch 1.6: pickles of a magic number, a version, the machine, the object and the storages' keys, then
    for each key the number of elements and the elements; raises as `read_zip` does."""
    unpickle(mapped)
    version, machine, tree, keys = (unpickle(mapped) for _ in range(4))
    if version != 1001 or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise RunError("of an unknown version, or written on a big-endian machine")
    storages = {view.storage.key: view.storage for _, view in _views(tree)}
    starts: dict[str, int] = {}
    position = mapped.tell()
    for key in keys if isinstance(keys, list) else ():
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or key in starts:
            raise RunError("damaged: it lists a storage twice, or one that no tensor uses")
        starts[key] = position + 8
        position += 8 + storage.length * storage.element.itemsize
        length = mapped[starts[key] - 8 : starts[key]]
        if position > len(mapped) or length != storage.length.to_bytes(8, "little"):
            raise RunError(f"truncated or damaged: storage {key} is not whole")

    def place(storage: Storage) -> int:
        if storages[storage.key] != storage or storage.key not in starts:
            raise RunError(f"damaged: storage {storage.key} is missing")
        return starts[storage.key]

    return _tensors(tree, mapped, place)


def _entries(path: Path) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
    # What zipfile raises for a directory that is damaged, besides its own error.
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, OSError, struct.error) as error:
        raise RunError(f"a truncated or damaged zip file ({error})") from None
    entries = {entry.filename: entry for entry in listed}
    if len(entries) != len(listed):
        raise RunError("damaged: a zip file with two entries of one name")
    return entries


def _locate_entry(mapped: mmap.mmap, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Where the bytes of an entry begin and end, once their checksum has been found right."""
    header = mapped[entry.header_offset : entry.header_offset + 30] if entry.header_offset >= 0 else b""
    if entry.compress_type != zipfile.ZIP_STORED or len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise RunError(f"damaged: the entry {entry.filename} is not stored as torch.save does")
    start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
    stop = start + entry.file_size
    if stop > len(mapped) or zlib.crc32(memoryview(mapped)[start:stop]) != entry.CRC:
        raise RunError(f"damaged: the checksum of {entry.filename} is wrong; get the file anew")
    return start, stop


def _tensors(tree: object, mapped: mmap.mmap, place: Callable[[Storage], int]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for name, view in _views(tree):
        if name in tensors:
            raise RunError(f"two tensors are called {name}")
        element = view.storage.element
        try:
            tensors[name] = np.ndarray(
                view.shape,
                element,
                buffer=mapped,
                offset=place(view.storage) + view.offset * element.itemsize,
                strides=[stride * element.itemsize for stride in view.strides],
            )
        except (ValueError, OverflowError):
            raise RunError(f"damaged: {name} is no tensor that fits its storage") from None
    return tensors


def _views(
    value: object, path: tuple[Any, ...] = (), counter: Iterator[int] | None = None
) -> Iterator[tuple[str, View]]:
    """All tensors in nested containers, with their dotted names, each checked to lie within its storage."""
    counter = counter or itertools.count()
    if next(counter) == MOST:  # few containers that hold each other many times
        raise RunError("its containers hold more than those of any checkpoint")
    if isinstance(value, View):
        name = ".".join(map(str, path))
        if not _sound(value):
            raise RunError(f"damaged: {name or 'a tensor'} does not fit its storage")
        yield name, value
    elif isinstance(value, dict | list | tuple):
        if len(path) == _DEEPEST:
            raise RunError(f"its containers are nested more than {_DEEPEST} deep")
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _views(inner, (*path, key), counter)


def _sound(view: View) -> bool:
    """Whether a record describes a tensor whose elements lie within its storage, no two of them in one place."""
    storage, offset, shape, strides = view
    numbers = [offset, *shape, *strides] if isinstance(shape, tuple) and isinstance(strides, tuple) else [None]
    if not isinstance(storage, Storage) or not all(type(number) is int and number >= 0 for number in numbers):
        return False
    if len(shape) != len(strides):
        return False
    if 0 in shape:
        return offset <= storage.length
    reach = 0  # the farthest element of the axes so far, which those beyond must step over
    for stride, side in sorted(zip(strides, shape, strict=True)):
        if side > 1 and stride <= reach:
            return False
        reach += (side - 1) * stride
    return offset + reach < storage.length
