"""Writes `.pth` files, sound and malformed ones, as torch.save does: a zip of one pickle and the storages' bytes."""

import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}


@dataclass(frozen=True)
class Global:
    """A name that the pickle asks for."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """A call of `function` with `arguments`; `state`, if any, is then set on the result."""

    function: Any
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True)
class Persistent:
    pid: tuple[Any, ...]


def storage(key: str, length: Any, kind: str = "FloatStorage") -> Persistent:
    return Persistent(("storage", Global("torch", kind), key, "cpu", length))


def tensor(stored: Any, offset: Any, shape: Any, strides: Any) -> Call:
    hooks = Call(Global("collections", "OrderedDict"), ())
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), (stored, offset, shape, strides, False, hooks))


def pickled(tree: Any) -> bytes:
    """A pickle, protocol 2, of plain values and of the records above."""
    return b"\x80\x02" + _opcodes(tree) + b"."


def _opcodes(value: Any) -> bytes:
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            number = value.to_bytes(9, "little", signed=True)
            return b"\x8a" + bytes([len(number)]) + number
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(_opcodes, value)) + b"t"
        case list():
            return b"]" + b"".join(_opcodes(item) + b"a" for item in value)
        case dict():
            return b"}" + b"".join(_opcodes(key) + _opcodes(item) + b"s" for key, item in value.items())
        case Global(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments, state):
            return _opcodes(function) + _opcodes(arguments) + b"R" + (b"" if state is None else _opcodes(state) + b"b")
        case Persistent(pid):
            return _opcodes(pid) + b"Q"
    raise TypeError(f"cannot pickle {value!r}")


def write(path: Path, program: bytes, storages: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return path


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], wrapper: str | None = None) -> Path:
    """A state dict, contiguous, each tensor with a storage of its own; `wrapper` is a key to put it under."""
    records, storages = {}, {}
    for number, (name, array) in enumerate(tensors.items()):
        strides = tuple(int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim))
        stored = storage(str(number), array.size, _STORAGES[array.dtype.name])
        records[name] = tensor(stored, 0, array.shape, strides)
        storages[str(number)] = array.tobytes()
    return write(path, pickled({wrapper: records} if wrapper else records), storages)
