"""Safetensors files (huggingface.co/docs/safetensors): arrays by name, written one at a time, and mapped to be read.

`safetensors.numpy` writes only what is in memory all at once.
"""

import json
import math
import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import numpy.typing as npt
import safetensors

from dinojax.errors import RunError
from dinojax.runs.files import replacing

# Names of dtypes in the format.
_DTYPES: dict[str, Any] = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "BOOL": np.bool_},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8},
}

Arrays = Mapping[str, np.ndarray | jax.Array]


class LazyArrays(Mapping[str, np.ndarray]):
    """Arrays that are computed on each access, and whose shapes and dtypes are known before."""

    def __init__(self, arrays: Mapping[str, tuple[tuple[int, ...], npt.DTypeLike, Callable[[], np.ndarray]]]) -> None:
        """Takes {path: (shape, dtype, function that computes the array)}."""
        self.shapes: Mapping[str, tuple[int, ...]] = {path: shape for path, (shape, _, _) in arrays.items()}
        self.dtypes: Mapping[str, np.dtype] = {path: np.dtype(dtype) for path, (_, dtype, _) in arrays.items()}
        self._functions = {path: function for path, (_, _, function) in arrays.items()}

    def __getitem__(self, path: str) -> np.ndarray:
        return self._functions[path]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)


def write_arrays(path: str | Path, arrays: Arrays, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, whole or not at all, one array at a time.

    Args:
      path: of the file; an existing one is replaced.
      arrays: each is accessed once, when the one before it has been written.
      metadata: texts stored in the file's header, such as the `format` that some libraries ask for.

    Raises:
      RunError: the file cannot be written, or the format has no such dtype.
      ValueError: a lazy array has not the shape and dtype that were announced.
    """
    if isinstance(arrays, LazyArrays):
        shapes, dtypes = arrays.shapes, arrays.dtypes
    else:
        shapes = {name: array.shape for name, array in arrays.items()}
        dtypes = {name: np.dtype(array.dtype) for name, array in arrays.items()}
    codes = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
    if others := sorted({str(dtype) for dtype in dtypes.values()} - {str(dtype) for dtype in codes}):
        raise RunError(f"safetensors has no arrays of {', '.join(others)}; make them another dtype")
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    # Sorted by the size of a number, so that each array is aligned.
    names = sorted(shapes, key=lambda name: -dtypes[name].itemsize)
    for name in names:
        begin, end = end, end + math.prod(shapes[name]) * dtypes[name].itemsize
        header[name] = {"dtype": codes[dtypes[name]], "shape": list(shapes[name]), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(Path(path), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:  # no reference to an array is kept while the next one is computed
            file.write(_bytes(np.asarray(arrays[name]), name, tuple(shapes[name]), dtypes[name]))


def _bytes(array: np.ndarray, name: str, shape: tuple[int, ...], dtype: np.dtype) -> memoryview:
    if (array.shape, array.dtype) != (shape, dtype):
        raise ValueError(f"{name} is {array.dtype} {array.shape}, announced as {dtype} {shape}")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def map_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file as read-only views of the mapped file; bfloat16 is `ml_dtypes.bfloat16`.

    Raises:
      RunError: the file is missing, damaged or no safetensors file, or it has a dtype that is neither numpy's nor
        bfloat16.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, "numpy") as checked, path.open("rb") as file:
            names = checked.keys()
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError, struct.error, safetensors.SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    if others := sorted({header[name]["dtype"] for name in names} - _DTYPES.keys()):
        raise RunError(f"{path} holds arrays of {', '.join(others)}, which cannot be read here")
    found = {}
    for name in names:
        dtype, shape = np.dtype(_DTYPES[header[name]["dtype"]]), header[name]["shape"]
        offset = 8 + length + header[name]["data_offsets"][0]
        found[name] = np.frombuffer(mapped, dtype, math.prod(shape), offset).reshape(shape)
    return found
