"""Reads weight files into named arrays, without PyTorch and without running anything that a file asks for.

A `.pth` file holds a pickle, a small program that may call any function. The unpickler here knows the few names that
plain tensors need and refuses every other one before it is looked up. What it builds are records; only a record whose
every number has been checked becomes an array. Arrays are views of the mapped file.
"""

import io
import mmap
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from dinojax.errors import RunError

_ELEMENTS: dict[str, np.dtype[Any]] = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle in a file that torch.save wrote before 1.6
_LEGACY_START = b"\x80\x02\x8a\x0a" + _LEGACY_MAGIC.to_bytes(10, "little")
_DEEPEST = 16  # levels of containers; real checkpoints have about four
_SHARDED = (
    "holds one rank's part of an FSDP model; load every part with the code that wrote them, gather the weights with "
    "FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT) and save those, or take the teacher_checkpoint.pth "
    "that DINOv2 writes at each evaluation"
)


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a `.pth` file (PyTorch 0.4 and later) or of a `.safetensors` file, by name.

    The kind of file is told from its content. Names in nested containers are joined with dots, so that the class token
    of a teacher checkpoint is called `teacher.backbone.cls_token`; whatever is no tensor is left out.

    Returns:
      Name -> array of the file's own type, bfloat16 as `ml_dtypes.bfloat16`; of a `.pth` file read-only views.

    Raises:
      RunError: the file cannot be read, is damaged or of another kind, or its pickle wants anything but tensors.
    """
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise RunError(f"{path}: the file is empty")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        if mapped[:4] == b"PK\x03\x04":
            tensors = _read_zip(path, mapped)
        elif mapped[: len(_LEGACY_START)] == _LEGACY_START:
            tensors = _read_legacy(mapped)
        elif mapped[8:9] == b"{":
            tensors = _read_safetensors(path)
        else:
            raise RunError("neither a file that torch.save wrote nor a .safetensors file")
        if any(name.endswith("flat_param") for name in tensors):
            raise RunError(_SHARDED)
        if not tensors:
            raise RunError("holds no tensors")
    except RunError as error:
        raise RunError(f"{path}: {error}") from None
    return tensors


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:
        raise RunError(f"not a sound .safetensors file: {' '.join(str(error).split())}") from None


class _Storage(NamedTuple):
    """A run of elements in the file, as the pickle describes it."""

    element: np.dtype[Any]
    key: str
    length: int


class _View(NamedTuple):
    """A tensor, as the pickle describes it: `shape` and `strides`, in elements, from `offset` in a storage."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


class _Dict(dict[Any, Any]):
    """A state dict, without the attributes (`_metadata`) that PyTorch hangs on it."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Builds plain containers, numbers and texts, and `_View` records where the file has tensors."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="utf-8")
        # Made anew for each file, as a pickle can set attributes of any object that it is handed.
        self._known: dict[str, object] = {
            "collections.OrderedDict": lambda items=(): _Dict(items),
            "torch._utils._rebuild_tensor_v2": lambda storage, offset, shape, strides, *_: _View(
                storage, offset, shape, strides
            ),
            "torch._utils._rebuild_parameter": lambda view, *_: view,
            **{f"torch.{name}": name for name in _ELEMENTS},
        }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        name = f"{module_name}.{global_name}"
        if name in self._known:
            return self._known[name]
        if module_name.startswith("torch.distributed"):
            raise RunError(_SHARDED)
        raise RunError(f"its pickle asks for {name}, which is no part of plain weights; refused, and nothing was run")

    def persistent_load(self, pid: Any, /) -> _Storage:
        match pid:
            case ("storage", str(kind), str(key), str(), int(length), *rest) if kind in _ELEMENTS and length >= 0:
                if any(item is not None for item in rest):
                    raise RunError("has tensors in the form of PyTorch before 0.4; save it anew with a later one")
                return _Storage(_ELEMENTS[kind], key, length)
        raise RunError("its pickle refers to something that is no storage of a tensor")


def _check_places(file: Any) -> None:
    """Refuses a pickle that remembers a value in a place out of all order: room is made for all places below it."""
    start = file.tell()
    for count, (opcode, place, _) in enumerate(pickletools.genops(file)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(place, int) and place > count:
            raise RunError(f"its pickle is damaged: it asks for {place:,} places in memory")
    file.seek(start)


def _unpickle(file: Any) -> Any:
    try:
        _check_places(file)
        return _Unpickler(file).load()
    except RunError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way, all of them meaning the same to the user
        raise RunError(f"its pickle is damaged ({type(error).__name__})") from None


def _read_zip(path: Path, mapped: mmap.mmap) -> dict[str, np.ndarray]:
    """PyTorch 1.6 and later: a zip file, nothing compressed, of `NAME/data.pkl` and one entry for each storage."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise RunError(f"a truncated or damaged zip file ({error})") from None
    programs = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(programs) != 1:
        raise RunError("a zip file, but not one that torch.save wrote")
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
    tree = _unpickle(io.BytesIO(mapped[start:stop]))

    def place(storage: _Storage) -> int:
        start, stop = locate(f"{root}data/{storage.key}")
        if stop - start != storage.length * storage.element.itemsize:
            raise RunError(f"damaged: storage {storage.key} has {stop - start} bytes, not what its pickle says")
        return start

    return _tensors(tree, mapped, place)


def _locate_entry(mapped: mmap.mmap, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Where the bytes of an entry begin and end, once their checksum has been found right."""
    header = mapped[entry.header_offset : entry.header_offset + 30]
    if entry.compress_type != zipfile.ZIP_STORED or len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise RunError(f"damaged: the entry {entry.filename} is not stored as torch.save does")
    start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
    stop = start + entry.file_size
    if stop > len(mapped) or zlib.crc32(memoryview(mapped)[start:stop]) != entry.CRC:
        raise RunError(f"damaged: the checksum of {entry.filename} is wrong; get the file anew")
    return start, stop


def _read_legacy(mapped: mmap.mmap) -> dict[str, np.ndarray]:
    """Before PyTorch 1.6: pickles of a magic number, a version, the machine, the object and the storages' keys, then
    for each key the number of elements and the elements."""
    _unpickle(mapped)
    version, machine, tree, keys = (_unpickle(mapped) for _ in range(4))
    if version != 1001 or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise RunError("of an unknown version, or written on a big-endian machine")
    storages = {view.storage.key: view.storage for _, view in _views(tree)}
    starts: dict[str, int] = {}
    position = mapped.tell()
    for key in keys if isinstance(keys, list) else ():
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise RunError("damaged: it lists a storage that no tensor uses")
        starts[key] = position + 8
        position += 8 + storage.length * storage.element.itemsize
        length = mapped[starts[key] - 8 : starts[key]]
        if length != storage.length.to_bytes(8, "little") or position > len(mapped):
            raise RunError(f"truncated or damaged: storage {key} is not whole")

    def place(storage: _Storage) -> int:
        if storages[storage.key] != storage or storage.key not in starts:
            raise RunError(f"damaged: storage {storage.key} is missing")
        return starts[storage.key]

    return _tensors(tree, mapped, place)


def _tensors(tree: object, mapped: mmap.mmap, place: Callable[[_Storage], int]) -> dict[str, np.ndarray]:
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


def _views(tree: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, _View]]:
    """All tensors in nested containers, with their dotted names, each checked to lie within its storage."""
    if isinstance(tree, _View):
        if not _sound(tree):
            raise RunError(f"damaged: {name or 'a tensor'} reaches beyond its storage")
        yield name, tree
    elif isinstance(tree, dict | list | tuple):
        if depth == _DEEPEST:
            raise RunError(f"its containers are nested more than {_DEEPEST} deep")
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _views(value, f"{name}.{key}" if name else str(key), depth + 1)


def _sound(view: _View) -> bool:
    """Whether a record describes a tensor, with as many elements as its storage at most, all of them inside it."""
    storage, offset, shape, strides = view
    numbers = [offset, *shape, *strides] if isinstance(shape, tuple) and isinstance(strides, tuple) else [None]
    if not isinstance(storage, _Storage) or not all(type(number) is int and number >= 0 for number in numbers):
        return False
    if len(shape) != len(strides) or prod(shape) > storage.length:
        return False
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    return offset <= storage.length if 0 in shape else last < storage.length
