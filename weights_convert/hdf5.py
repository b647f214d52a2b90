"""Lists the arrays of an HDF5 file: `python hdf5.py FILE` writes a line of JSON, and what cannot be mapped behind it.

A program of its own, imported by nothing: a malformed file can crash the HDF5 library, make it loop, or ask it for all
memory, and that must end this process alone. Only groups and plain arrays that the file holds itself are followed:
no link of any other kind, no storage elsewhere, no filter that would have to be loaded.

The line is `{"arrays": [[name, type, shape, offset, copied], ...]}` or `{"error": ...}`. `offset` counts bytes: in
the file, or, where `copied`, behind the line, where the values of chunked (compressed) arrays follow each other.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import h5py
import h5py.h5o
import numpy as np

_TYPES = {
    "float16": h5py.h5t.IEEE_F16LE,
    "float32": h5py.h5t.IEEE_F32LE,
    "float64": h5py.h5t.IEEE_F64LE,
    "int8": h5py.h5t.STD_I8LE,
    "int16": h5py.h5t.STD_I16LE,
    "int32": h5py.h5t.STD_I32LE,
    "int64": h5py.h5t.STD_I64LE,
    "uint8": h5py.h5t.STD_U8LE,
}
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_DEEPEST = 16
_MOST = 100_000  # groups and arrays
_EXPANSION = 16  # times the file's size at most, once decompressed: trained weights hardly shrink at all
_MEMORY = 4 << 30  # bytes


class Refused(Exception):
    """The file holds something that is not read; the message says what."""


def walk(group: h5py.Group, seen: set[int], depth: int = 0) -> Iterator[h5py.Dataset]:
    """All arrays below a group, each found by one way only."""
    address = h5py.h5o.get_info(group.id).addr
    if address in seen or depth > _DEEPEST or len(seen) > _MOST:
        raise Refused(f"damaged: the group {group.name} holds itself, or its groups are too deep or too many")
    seen.add(address)
    for name in group:
        link = group.get(name, getlink=True)
        if type(link) is not h5py.HardLink:
            raise Refused(f"{group.name}/{name} is a link to another place or file, which is not followed")
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from walk(item, seen, depth + 1)
        elif isinstance(item, h5py.Dataset):
            yield item


def type_of(array: h5py.Dataset) -> str | None:
    """The name of an array's plain numeric type; None where it holds texts or records, which are left out."""
    stored = array.id.get_type()
    if stored.get_class() not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT):
        return None
    for name, known in _TYPES.items():
        if stored == known:
            return name
    raise Refused(f"damaged: {array.name} has numbers of a type that no weights have")


def listed(root: h5py.Group, size: int) -> Iterator[tuple[h5py.Dataset, str, bool]]:
    """The arrays to read, with their types, and whether they must be copied rather than mapped.

    Args:
      root: of the weights.
      size: of the file in bytes.
    """
    budget = max(_EXPANSION * size, 1 << 20)
    for array in walk(root, set()):
        kind = type_of(array)
        if kind is None:
            continue
        if array.shape is None:
            raise Refused(f"damaged: {array.name} has no shape")
        settings = array.id.get_create_plist()
        layout = settings.get_layout()
        if layout == h5py.h5d.VIRTUAL or settings.get_external_count():
            raise Refused(f"{array.name} keeps its values in another place or file, which is not followed")
        filters = {settings.get_filter(i)[0] for i in range(settings.get_nfilters())}
        if not filters <= _FILTERS:
            raise Refused(f"{array.name} is stored with a filter that is not read here; save it without")
        copied = layout != h5py.h5d.CONTIGUOUS
        chunk = settings.get_chunk() if layout == h5py.h5d.CHUNKED else ()
        if copied:
            budget -= array.nbytes
        if budget < 0 or np.prod(chunk, dtype=object) * array.dtype.itemsize > budget + array.nbytes:
            raise Refused(f"damaged: {array.name} declares more than a file of {size:,} bytes can hold")
        if array.nbytes and not array.id.get_storage_size():
            raise Refused(f"damaged: {array.name} was declared but never written")
        yield array, kind, copied


def write(path: str, output: BinaryIO) -> None:
    """Writes the line and the copied values of the file at `path`."""
    with h5py.File(path, "r", locking=False) as file:
        if file.userblock_size:
            raise Refused("has a user block before its contents")
        root = file.get("model_weights", getlink=True)
        inside = file["model_weights"] if type(root) is h5py.HardLink else file
        if not isinstance(inside, h5py.Group):
            raise Refused("damaged: model_weights is no group")
        found = list(listed(inside, Path(path).stat().st_size))
        lines, position = [], 0
        for array, kind, copied in found:
            offset = position if copied else array.id.get_offset()
            lines.append([array.name, kind, array.shape, offset or 0, copied])
            position += array.nbytes if copied else 0
        output.write(json.dumps({"arrays": lines}).encode() + b"\n")
        for array, kind, copied in found:
            if copied:
                output.write(np.ascontiguousarray(array[()], dtype=kind).tobytes())


def limit_memory() -> None:
    """Limits the memory that a malformed file may ask for, and keeps a crash from leaving a core file."""
    if sys.platform == "win32":
        return
    import resource

    for what, most in ((resource.RLIMIT_DATA, _MEMORY), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> int:
    limit_memory()
    try:
        write(sys.argv[1], sys.stdout.buffer)
    except Refused as refusal:
        print(json.dumps({"error": str(refusal)}))
        return 1
    except Exception as error:  # h5py raises nearly anything for a damaged file, all alike to the user
        print(json.dumps({"error": f"a truncated or damaged HDF5 file ({type(error).__name__})"}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
