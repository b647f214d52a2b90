"""Writes `.pth` files, sound and malformed ones, as torch.save does: a zip of one pickle and the storages' bytes."""

import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.weights_convert import published

_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}


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


def numpy_number(value: float, package: str = "numpy._core") -> Call:
    """A number of NumPy's as protocol 2 has it; DINOv2's schedules leave such learning rates in optimizers."""
    kind = Call(Global("numpy", "dtype"), ("f8", False, True), (3, "<", None, None, None, -1, -1, 0))
    data = Call(Global("_codecs", "encode"), (np.float64(value).tobytes().decode("latin1"), "latin1"))
    return Call(Global(f"{package}.multiarray", "scalar"), (kind, data))


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


def write(
    path: Path,
    program: bytes,
    storages: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    compression: int = zipfile.ZIP_STORED,
    byteorder: str = "little",
) -> Path:
    """`storages` are read one at a time, so that a file larger than memory can be written."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", byteorder)
        for key, data in storages.items() if isinstance(storages, Mapping) else storages:
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return path


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], wrapper: str | None = None) -> Path:
    """A state dict, contiguous, each tensor with a storage of its own; `wrapper` is a key to put it under."""
    records = state_dict({name: (array.shape, array.dtype.name) for name, array in tensors.items()})
    storages = {str(number): array.tobytes() for number, array in enumerate(tensors.values())}
    return write(path, pickled({wrapper: records} if wrapper else records), storages)


def state_dict(tensors: Mapping[str, tuple[tuple[int, ...], str]], first: int = 0) -> dict[str, Call]:
    """Contiguous tensors of these shapes and types, each with a storage of its own, numbered from `first`."""
    return {
        name: tensor(
            storage(str(number), int(np.prod(shape)), _STORAGES[kind]),
            0,
            shape,
            tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))),
        )
        for number, (name, (shape, kind)) in enumerate(tensors.items(), first)
    }


def training_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """Writes a checkpoint of DINOv2's training with an optimizer; returns the student's backbone."""
    teacher = published.rebuilt(published.TINY)
    student = {name: array + 1 for name, array in teacher.items()}
    parts = {"teacher": (teacher, published.TINY_HEAD), "student": (student, published.TINY_HEAD)}
    flat = {
        f"{part}.{name}": array
        for part, (backbone, head) in parts.items()
        for name, array in [
            *((f"backbone.{name}", array) for name, array in backbone.items()),
            *((f"dino_head.{name}", array) for name, array in published.rebuilt(head).items()),
        ]
    } | {"dino_loss.center": np.zeros((1, 128), np.float32)}
    moments = np.ones(4, np.float32)
    records = state_dict({name: (array.shape, "float32") for name, array in flat.items()})
    state = {0: state_dict({"exp_avg": ((4,), "float32")}, first=len(flat))}
    group = {"lr": numpy_number(0.3), "params": [0]}
    tree = {"model": records, "optimizer": {"state": state, "param_groups": [group]}, "iteration": 7}
    storages = {str(number): array.tobytes() for number, array in enumerate([*flat.values(), moments])}
    write(path, pickled(tree), storages)
    return student


def linear_head(path: Path, inputs: int) -> np.ndarray:
    """Writes a linear head as DINOv2 publishes them; returns its weight."""
    weight = np.random.RandomState(0).standard_normal((1000, inputs)).astype(np.float32)
    write_tensors(path, {"weight": weight, "bias": np.zeros(1000, np.float32)})
    return weight
