"""Model directories: `params.safetensors`, one flat mapped file, and `model.json`, which says what it is."""

import dataclasses
import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from dinojax import tree
from dinojax.errors import RunError, UsageError
from dinojax.models import VisionTransformer, arguments_of
from dinojax.models.features import Preprocessing
from dinojax.models.vit import ViTArguments

# How a model is trained is a run's business, not the model's.
_NOT_KEPT = ("drop_path", "drop_path_uniform", "drop_path_subset", "loop_blocks", "layer_scale")


def save_model(
    directory: str | Path, model: VisionTransformer, source: Mapping[str, str] | None = None, overwrite: bool = False
) -> None:
    """Writes a backbone as a model directory that `load_model` reads; see `write_model`."""
    _, params = tree.split(model)
    write_model(directory, model.name, model.arguments, params, model.preprocessing, source, overwrite=overwrite)


def write_model(
    directory: str | Path,
    name: str,
    arguments: ViTArguments,
    params: Mapping[str, Any],
    preprocessing: Preprocessing,
    source: Mapping[str, str] | None = None,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
    details: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a model directory, whole or not at all.

    Args:
      directory: where to; its parents are made.
      name: the named size that the arguments began from.
      arguments: of the backbone.
      params: flat dict from path to array.
      preprocessing: what the model expects of its input.
      source: where the weights come from, such as file, sha256 and layout.
      extra: further flat dicts of arrays, each written to a file of its key's name (`dino_head`).
      details: further keys of `model.json`, such as a classifier's classes.
      overwrite: replaces a model that is there.

    Raises:
      UsageError: the directory exists and may not be replaced.
    """
    directory = Path(directory)
    if directory.exists() and not overwrite and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory} exists already; choose another directory or remove it")
    description = {
        "name": name,
        "arguments": {k: v for k, v in dataclasses.asdict(arguments).items() if k not in _NOT_KEPT},
        "preprocessing": dataclasses.asdict(preprocessing),
        "source": dict(source or {}),
        **(details or {}),
        "versions": {package: importlib.metadata.version(package) for package in ("dinojax", "jax", "flax")},
    }
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for file, arrays in {"params": params, **(extra or {})}.items():
            # safetensors writes an array's buffer whatever its strides say.
            contiguous = {path: np.ascontiguousarray(array) for path, array in arrays.items()}
            safetensors.numpy.save_file(contiguous, partial / f"{file}.safetensors")
            (partial / f"{file}.safetensors").chmod(0o644)  # safetensors writes for the owner alone; models are shared
        (partial / "model.json").write_text(json.dumps(description, indent=2) + "\n")
        replaced = directory.with_name(f".{directory.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if directory.exists():
            directory.rename(replaced)
        partial.rename(directory)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def read_description(directory: str | Path) -> dict[str, Any]:
    """The contents of a model directory's `model.json`; raises as `load_model` does."""
    path = Path(directory) / "model.json"
    if not path.is_file():
        raise UsageError(f"{directory} is not a model directory: it has no model.json (see python -m weights_convert)")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def read_params(directory: str | Path, file: str = "params") -> dict[str, np.ndarray]:
    """The arrays of a model directory, each mapped rather than read whole; raises as `load_model` does."""
    path = Path(directory) / f"{file}.safetensors"
    try:
        return safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}; convert or copy the model again") from error


def load_model(directory: str | Path, **overrides: object) -> VisionTransformer:
    """The model of a directory that `weights_convert` or a run wrote.

    Args:
      directory: holds `params.safetensors` and `model.json`.
      **overrides: arguments of training, such as `drop_path=0.1`.

    Raises:
      UsageError: not a model directory.
      RunError: an unreadable file, or parameters that are not those of the model it names; all differences are listed.
    """
    description = read_description(directory)
    try:
        arguments = arguments_of(description["name"], **{**description["arguments"], **overrides})
        stored: dict[str, Any] = description["preprocessing"]
        lists = {key: tuple(value) for key, value in stored.items() if isinstance(value, list)}
        preprocessing = Preprocessing(**{**stored, **lists})
    except (KeyError, TypeError) as error:
        raise RunError(f"{Path(directory) / 'model.json'} is not one of this version: {error!r}") from error
    graph, expected = tree.split(nnx.eval_shape(lambda: VisionTransformer(description["name"], arguments, nnx.Rngs(0))))
    params = read_params(directory)
    tree.check(expected, params, str(Path(directory) / "params.safetensors"))
    model = tree.merge(graph, {path: jax.numpy.asarray(array) for path, array in params.items()})
    model.preprocessing = preprocessing
    return model
