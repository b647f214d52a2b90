"""Weight files and Hugging Face folders as named arrays, without the libraries that wrote them.

The kind of a file is recognised by its content. Arrays are views of the mapped file wherever its format allows.
"""

import hashlib
import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.errors import RunError, UsageError, first_of
from dinojax.models.arrays import map_arrays
from weights_convert import keras, pytorch
from weights_convert.others import known_file
from weights_convert.pickles import SHARDED

# As transformers looks for them: one file, or the index of several.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_SETTINGS = ("config.json", "preprocessor_config.json")
_LONGEST_NAME = 500
_LONGEST_JSON = 64 << 20  # bytes


@dataclass(frozen=True)
class Source:
    """The contents of a file, or of a Hugging Face folder."""

    tensors: dict[str, np.ndarray]
    """Name -> array of the file's own type, bfloat16 as `ml_dtypes.bfloat16`."""
    config: dict[str, Any] | None
    """A folder's `config.json`, and under `preprocessor` its `preprocessor_config.json`."""
    file: Path
    """The file or folder that was read."""
    kind: str
    """What it is, in words."""
    weights: tuple[Path, ...]
    """The files that hold the tensors."""

    def sha256(self) -> str:
        """The digest of the weights; of several files, that of all one after the other, in the order of `weights`."""
        return self._digest(hashlib.sha256())

    def md5(self) -> str:
        """Likewise, to recognise published files; no protection against forgery."""
        return self._digest(hashlib.md5(usedforsecurity=False))

    def _digest(self, digest: "hashlib._Hash") -> str:
        for path in self.weights:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of `read_file(path)` alone, by name; raises as that does."""
    return read_file(path).tensors


def read_file(path: Path) -> Source:
    """Reads a weight file of any supported kind, or a Hugging Face folder.

    Files: what torch.save wrote (PyTorch 0.4 and later; `.pth`, `.pt`, `.bin`), `.safetensors`, Keras' `.h5`. Folders:
    `model.safetensors` or `pytorch_model.bin`, or the index of several such files, beside `config.json`. One of these
    files is read like its folder if there are settings beside it.

    Names in a pickle's nested containers are joined with dots, so that the class token of a teacher checkpoint is
    called `teacher.backbone.cls_token`; whatever is no tensor is left out. For Keras' names see `keras.read_keras`.

    Raises:
      UsageError: there is no such file, or it is the directory of a run.
      RunError: the file cannot be read, is damaged or of another kind, or its pickle wants anything but tensors.
    """
    if not path.exists():
        raise UsageError(f"{path}: there is no such file")
    if path.is_dir():
        found = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
        if (path / "model" / "model.json").is_file():
            raise UsageError(f"{path} is the directory of a run; its model is {path / 'model'}")
        if found is None:
            raise RunError(f"{path}: a folder without {' or '.join(_WEIGHTS[::2])}; name a file, or such a folder")
        return _read_folder(path, found)
    if path.name in _WEIGHTS and any(path.with_name(name).is_file() for name in _SETTINGS):
        return _read_folder(path, path)
    tensors, kind = _read_weights(path)
    return Source(tensors, None, path, kind, (path,))


def _read_weights(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """The tensors of one file, and what kind of file it is."""
    try:
        if not path.is_file():  # opening a pipe would wait for somebody to write
            raise RunError(f"{path}: cannot be read: it is no regular file")
        with path.open("rb") as file:
            if not file.read(1):
                raise RunError(f"{path}: the file is empty; download or copy it anew")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # mmap refuses what is no regular file with either
        raise RunError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        tensors, kind = _parse(path, mapped)
        _check(tensors)
    except RunError as error:
        # Parts of the message may come from the file.
        message = "".join(c if c.isprintable() else "�" for c in str(error).removeprefix(f"{path} "))
        raise RunError(f"{path}: {message}") from None
    return tensors, kind


def _parse(path: Path, mapped: mmap.mmap) -> tuple[dict[str, np.ndarray], str]:
    start = mapped[:16]
    if start[:4] == b"PK\x03\x04":
        return pytorch.read_zip(path, mapped), "PyTorch file"
    if start.startswith(pytorch.LEGACY_START):
        return pytorch.read_legacy(mapped), "PyTorch file of the format before 1.6"
    if start.startswith(keras.START):
        return keras.read_keras(path, mapped), "Keras HDF5 file"
    if start[8:9] == b"{":
        return map_arrays(path), "safetensors file"
    if what := known_file(mapped[:1024], len(mapped)):
        raise RunError(what)
    raise RunError("neither a file that torch.save wrote nor a .safetensors file nor a Keras .h5 file")


def _check(tensors: Mapping[str, np.ndarray]) -> None:
    for name in tensors:
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise RunError(f"damaged: it calls a tensor {name[:50]!a}")
    if any(name.endswith("flat_param") for name in tensors):
        raise RunError(SHARDED)
    if not tensors:
        raise RunError("holds no tensors")


def _read_folder(path: Path, found: Path) -> Source:
    """A Hugging Face folder, as whose part `path` was named and whose weights, or their index, are `found`."""
    folder = found.parent
    config = _read_json(folder / _SETTINGS[0]) if (folder / _SETTINGS[0]).is_file() else None
    if (folder / _SETTINGS[1]).is_file():
        config = (config or {}) | {"preprocessor": _read_json(folder / _SETTINGS[1])}
    if found.suffix != ".json":
        tensors, kind = _read_weights(found)
        return Source(tensors, config, path, f"Hugging Face folder with a {kind}", (found,))
    tensors, paths = _read_shards(found)
    return Source(tensors, config, path, f"Hugging Face folder with {len(paths)} files of weights", paths)


def _read_shards(index: Path) -> tuple[dict[str, np.ndarray], tuple[Path, ...]]:
    """The tensors of all files that an index names, which lie beside it, and these files by the order of names."""
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise RunError(f"{index}: damaged: it has no weight_map")
    for name in places.values():
        # A name alone: no other folder, no other disk, no stream of a file.
        if not isinstance(name, str) or not name.endswith((".safetensors", ".bin")) or set(name) & set("/\\:\0"):
            raise RunError(f"{index}: it names a file that does not lie beside it: {ascii(name)[:100]}")
    paths = tuple(index.with_name(name) for name in sorted(set(places.values())))
    if missing := [path.name for path in paths if not path.exists()]:
        raise RunError(f"{index}: it names {first_of(missing)}, which is not there")
    tensors: dict[str, np.ndarray] = {}
    for path in paths:
        inside, _ = _read_weights(path)
        if inside.keys() != {name for name, place in places.items() if place == path.name}:
            raise RunError(f"{path}: does not hold the tensors that {index.name} places there")
        tensors |= inside
    return tensors, paths


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LONGEST_JSON:
            raise RunError(f"{path}: is too long for a file of settings")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        message = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise RunError(f"{path}: cannot be read: {message}") from None
    if not isinstance(found, dict):
        raise RunError(f"{path}: cannot be read: it holds no settings by name")
    return found
