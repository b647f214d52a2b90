"""Model directories: `params.safetensors`, one flat mapped file, and `model.json`, which says what it is."""

import dataclasses
import importlib.metadata
import json
import math
import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import jax
import ml_dtypes
import numpy as np
import numpy.typing as npt
import safetensors
from flax import nnx

from dinojax import tree
from dinojax.errors import RunError, UsageError
from dinojax.models.heads import Classifier, LinearHead
from dinojax.models.preprocessing import Preprocessing
from dinojax.models.vit import VisionTransformer, ViTArguments
from dinojax.models.zoo import Arguments, Model, arguments_of, build
from dinojax.runs.files import replacing, replacing_directory, write_json

M = TypeVar("M", bound=nnx.Module)

# How a model is trained is a run's business, not the model's.
_NOT_KEPT = ("drop_path", "drop_path_uniform", "drop_path_subset", "loop_blocks", "layer_scale")
# How safetensors calls the dtypes.
_DTYPES: dict[str, Any] = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "BOOL": np.bool_},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8},
}

Arrays = Mapping[str, np.ndarray | jax.Array]


class LazyArrays(Mapping[str, np.ndarray]):
    """Arrays that are made when they are asked for, each time anew, and whose shapes and dtypes are known before."""

    def __init__(self, arrays: Mapping[str, tuple[tuple[int, ...], npt.DTypeLike, Callable[[], np.ndarray]]]) -> None:
        """Takes {path: (shape, dtype, function that makes the array)}."""
        self.shapes: Mapping[str, tuple[int, ...]] = {path: shape for path, (shape, _, _) in arrays.items()}
        self.dtypes: Mapping[str, np.dtype] = {path: np.dtype(dtype) for path, (_, dtype, _) in arrays.items()}
        self._functions = {path: function for path, (_, _, function) in arrays.items()}

    def __getitem__(self, path: str) -> np.ndarray:
        return self._functions[path]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)


def save_model(
    directory: str | Path, model: Model, source: Mapping[str, str] | None = None, overwrite: bool = False
) -> None:
    """Writes a backbone as a model directory that `load_model` reads; see `write_model`."""
    _, params = tree.split(model)
    write_model(directory, model.name, model.arguments, params, model.preprocessing, source, overwrite=overwrite)


def write_model(
    directory: str | Path,
    name: str,
    arguments: Arguments,
    params: Arrays,
    preprocessing: Preprocessing,
    source: Mapping[str, str] | None = None,
    extra: Mapping[str, Arrays] | None = None,
    details: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a model directory, whole or not at all.

    Args:
      directory: where to; its parents are made.
      name: the named size that the arguments began from.
      arguments: of the backbone.
      params: array by path; those of `LazyArrays` are made one at a time.
      preprocessing: what the model expects of its input.
      source: where the weights come from, such as file, sha256 and layout.
      extra: further such arrays, each written to a file of its key's name (`dino_head`).
      details: further keys of `model.json`, such as a classifier's classes.
      overwrite: replaces a model that is there.

    Raises:
      UsageError: the directory exists and may not be replaced.
      RunError: it cannot be written.
    """
    description = {
        "name": name,
        "arguments": {k: v for k, v in dataclasses.asdict(arguments).items() if k not in _NOT_KEPT},
        "preprocessing": dataclasses.asdict(preprocessing),
        "source": dict(source or {}),
        **(details or {}),
        "versions": {package: importlib.metadata.version(package) for package in ("dinojax", "jax", "flax")},
    }
    with replacing_directory(Path(directory), overwrite) as partial:
        for file, arrays in {"params": params, **(extra or {})}.items():
            write_arrays(partial / f"{file}.safetensors", arrays)
        write_json(partial / "model.json", description)


def read_description(directory: str | Path) -> dict[str, Any]:
    """The contents of a model directory's `model.json`; raises as `load_model` does."""
    path = Path(directory) / "model.json"
    if not path.is_file():
        why = "it has no model.json" if path.parent.exists() else "there is nothing of this name"
        run = (path.parent / "model", path.parent / "models" / "fold_1")  # what `pretrain` and `finetune` write
        inside = next((model for model in run if (model / "model.json").is_file()), None)
        hint = f"take {inside}" if inside else "python -m weights_convert SRC DST makes one"
        raise UsageError(f"{directory} is not a model directory: {why}; {hint}")
    try:
        description = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    if not isinstance(description, dict):
        raise RunError(f"{path} cannot be read: it holds no settings by name")
    return description


def read_params(directory: str | Path, file: str = "params") -> dict[str, np.ndarray]:
    """The arrays of a model directory, each mapped rather than read whole; raises as `load_model` does."""
    path = Path(directory) / f"{file}.safetensors"
    try:
        return map_arrays(path)
    except RunError as error:
        raise RunError(f"{error}; convert or copy the model again") from error


def load_model(directory: str | Path, **overrides: object) -> Model:
    """The model of a directory that `weights_convert` or a run wrote; of a fine-tuned classifier, its backbone.

    Args:
      directory: holds `params.safetensors` and `model.json`.
      **overrides: arguments of training, such as `drop_path=0.1`.

    Raises:
      UsageError: not a model directory, or its model has no such argument.
      RunError: an unreadable file, or parameters that are not those of the model it names; all differences are listed.
    """
    description, name, arguments, preprocessing = described(directory, overrides)
    params = read_params(directory)
    if "classifier" in description:
        params = tree.subtree("backbone", params)
    model = _filled(lambda: build(name, arguments, nnx.Rngs(0)), params, directory)
    model.preprocessing = preprocessing
    return model


def load_vit(directory: str | Path, **overrides: object) -> VisionTransformer:
    """As `load_model`, where only a vision transformer will do; a `UsageError` says so of any other model."""
    _, name, arguments, _ = described(directory)
    if not isinstance(arguments, ViTArguments):
        raise UsageError(f"{directory} holds a {name}; a vision transformer is needed here")
    model = load_model(directory, **overrides)
    assert isinstance(model, VisionTransformer)
    return model


def load_classifier(directory: str | Path) -> Classifier:
    """A fine-tuned classifier, `models/fold_1` of a run, say; its `backbone.preprocessing` is what `finetune` used.

    Raises:
      UsageError: not the directory of a classifier.
      RunError: as `load_model` does.
    """
    description, name, arguments, preprocessing = described(directory)
    if "classifier" not in description:
        raise UsageError(f"{directory} holds a backbone without a classifier; finetune writes classifiers")

    def make() -> Classifier:
        return Classifier(build(name, arguments, nnx.Rngs(0)), **description["classifier"], rngs=nnx.Rngs(0))

    try:
        classifier = _filled(make, read_params(directory), directory)
    except TypeError as error:
        raise RunError(f"{Path(directory) / 'model.json'} is not one of this version: {error!r}") from error
    classifier.backbone.preprocessing = preprocessing
    return classifier


def load_linear_head(directory: str | Path) -> LinearHead:
    """The published linear head that `weights_convert` put beside its backbone.

    Raises:
      UsageError: not a model directory, or it has no linear head.
      RunError: as `load_model` does.
    """
    description = read_description(directory)
    if "linear_head" not in description:
        raise UsageError(
            f"{directory} holds no linear head; python -m weights_convert HEAD.pth {directory} puts one in"
        )
    arrays = read_params(directory, "linear_head")
    try:
        kernel, bias = (jax.numpy.array(arrays[name]) for name in ("kernel", "bias"))
        return LinearHead(kernel, bias, int(description["linear_head"]["blocks"]))
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{directory}: its linear head is not one of this version: {error!r}") from error


def described(
    directory: str | Path, overrides: Mapping[str, object] | None = None
) -> tuple[dict[str, Any], str, Arguments, Preprocessing]:
    """A model directory's description, and the name, arguments and preprocessing in it; raises as `load_model` does."""
    description = read_description(directory)
    try:
        name, arguments = description["name"], _tuples(description["arguments"])
        preprocessing = Preprocessing(**_tuples(description["preprocessing"]))
        return description, name, arguments_of(name, **{**arguments, **(overrides or {})}), preprocessing
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{Path(directory) / 'model.json'} is not one of this version: {error!r}") from error


def _tuples(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}


def _filled(make: Callable[[], M], params: Mapping[str, np.ndarray], directory: str | Path) -> M:
    """The module that `make` makes, with these parameters for its own."""
    graph, expected = tree.split(nnx.eval_shape(make))
    tree.check(expected, params, str(Path(directory) / "params.safetensors"))
    # Copies: the model must not change, nor the process die, with a file that somebody overwrites.
    return tree.merge(graph, {path: jax.numpy.array(array) for path, array in params.items()})


def write_arrays(path: str | Path, arrays: Arrays, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, readable by all, one array after the other; whole or not at all.

    Args:
      path: of the file; one that is there is replaced.
      arrays: each is read once, after the one before it was written; shapes and dtypes are read of all before.
      metadata: texts kept in the file's header, such as the `format` that some libraries ask for.

    Raises:
      RunError: it cannot be written, or the format has no such dtype.
    """
    with replacing(Path(path), "wb") as file:
        _write(file, arrays, metadata)


def _write(file: IO[bytes], arrays: Arrays, metadata: Mapping[str, str] | None) -> None:
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
    # Those of larger numbers first: then each begins at a multiple of its numbers' size.
    names = sorted(shapes, key=lambda name: -dtypes[name].itemsize)
    for name in names:
        begin, end = end, end + math.prod(shapes[name]) * dtypes[name].itemsize
        header[name] = {"dtype": codes[dtypes[name]], "shape": list(shapes[name]), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:  # none is held while the next one is made
        file.write(_bytes(np.asarray(arrays[name]), name, tuple(shapes[name]), dtypes[name]))


def _bytes(array: np.ndarray, name: str, shape: tuple[int, ...], dtype: np.dtype) -> memoryview:
    if (array.shape, array.dtype) != (shape, dtype):
        raise ValueError(f"{name} is {array.dtype} {array.shape}, announced as {dtype} {shape}")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def map_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, read-only views of the mapped file; bfloat16 is `ml_dtypes.bfloat16`.

    Raises:
      RunError: the file is missing, damaged or no safetensors file, or holds another dtype than numpy's and bfloat16.
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
