"""Model directories: `params.safetensors`, the parameters by path, and `model.json`, which describes the model."""

import dataclasses
import importlib.metadata
import shlex
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from dinojax import tree
from dinojax.errors import RunError, UsageError
from dinojax.models.arrays import Arrays, map_arrays, write_arrays
from dinojax.models.heads import Classifier, LinearHead
from dinojax.models.preprocessing import Backbone, Preprocessing
from dinojax.models.vit import VisionTransformer, ViTArguments
from dinojax.models.zoo import Arguments, arguments_of, build
from dinojax.runs.files import read_json, replacing_directory, write_json

M = TypeVar("M")

# Arguments of training, which belong to a run rather than to the model.
# Files that weights_convert reads, by their names, and what marks a folder that it reads.
_WEIGHT_FILES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".h5", ".hdf5")
_HUGGING_FACE = ("config.json", "model.safetensors", "pytorch_model.bin")
_NOT_STORED = ("drop_path", "drop_path_uniform", "drop_path_subset", "loop_blocks", "layer_scale")


def save_model(
    directory: str | Path, model: Backbone, source: Mapping[str, str] | None = None, overwrite: bool = False
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
      directory: to write; its parents are created.
      name: the named size that the arguments were derived from.
      arguments: of the backbone.
      params: array by path; those of `LazyArrays` are made one at a time.
      preprocessing: of the backbone.
      source: where the weights come from, such as file, sha256 and layout.
      extra: further arrays, by the stem of the file that each mapping is written to, such as `dino_head`.
      details: further keys of `model.json`, such as a classifier's classes.
      overwrite: replaces an existing directory, rather than only an empty one.

    Raises:
      UsageError: the directory exists and must not be replaced.
      RunError: it cannot be written.
    """
    description = {
        "name": name,
        "arguments": {k: v for k, v in dataclasses.asdict(arguments).items() if k not in _NOT_STORED},
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
    """The content of a directory's `model.json`; raises as `load_model` does."""
    path = Path(directory) / "model.json"
    if not path.is_file():
        raise UsageError(f"{directory} is not a model directory: {_why_no_model(path.parent)}")
    description = read_json(path)
    if not isinstance(description, dict):
        raise RunError(f"{path} cannot be read: it holds no settings by name")
    return description


def _why_no_model(path: Path) -> str:
    """What lies at a path that is no model directory, and what to do with it."""
    if not path.exists():
        return "there is nothing of this name; python -m weights_convert SRC DST makes one"
    if path.is_file() and (path.parent / "model.json").is_file():
        return f"it is a file of one; take {path.parent}"
    if path.is_file() and path.suffix.lower() in _WEIGHT_FILES:
        return f"it is a file of weights to convert first: {_conversion(path)}"
    run = (path / "model", path / "models" / "fold_1")  # what `pretrain` and `finetune` write
    if inside := next((model for model in run if (model / "model.json").is_file()), None):
        return f"it has no model.json; take {inside}"
    if path.is_dir() and any((path / name).is_file() for name in _HUGGING_FACE):
        return f"it is a Hugging Face folder to convert first: {_conversion(path)}"
    return "it has no model.json; python -m weights_convert SRC DST makes one"


def _conversion(path: Path) -> str:
    """The command that makes a model directory of a weight file or a Hugging Face folder."""
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    name = folder.name if path.is_dir() or path.name in _HUGGING_FACE else path.stem.removesuffix("_pretrain")
    return f"python -m weights_convert {shlex.quote(str(path))} {shlex.quote(f'weights/{name}')}"


def read_params(directory: str | Path, file: str = "params") -> dict[str, np.ndarray]:
    """The arrays in a file of a model directory, mapped rather than read; raises as `load_model` does."""
    path = Path(directory) / f"{file}.safetensors"
    try:
        return map_arrays(path)
    except RunError as error:
        raise RunError(f"{error}; convert or copy the model again") from error


def load_model(directory: str | Path, **overrides: object) -> Backbone:
    """Loads the backbone of a directory that `weights_convert` or a run wrote.

    Of a fine-tuned classifier, that part alone; a warning says so.

    Args:
      directory: contains `params.safetensors` and `model.json`.
      **overrides: arguments of training, such as `drop_path=0.1`.

    Raises:
      UsageError: not a model directory, or its model has no such argument.
      RunError: a file cannot be read, or its parameters are not those of the model described; lists all differences.
    """
    if note := head_left_out(directory):
        warnings.warn(f"{note}; dinojax.models.store.load_classifier loads both", stacklevel=2)
    return load_backbone(directory, **overrides)


def classifier_origin(directory: str | Path) -> str | None:
    """What classifier a model directory holds: "a classifier fine-tuned on thyroid, fold 1, of thyroid_dinov2".

    None where it holds a backbone; raises as `load_model` does.
    """
    description = read_description(directory)
    if "classifier" not in description:
        return None
    source = description.get("source")
    task, fold, run = description.get("task"), description.get("fold"), isinstance(source, dict) and source.get("run")
    parts = [f"on {task}"] if task else []
    parts += [f"fold {fold}"] if fold else []
    parts += [f"of {run}"] if run else []
    return f"a classifier fine-tuned {', '.join(parts)}".rstrip()


def head_left_out(directory: str | Path) -> str | None:
    """The line to say where only the backbone of a fine-tuned classifier is used; None for a backbone."""
    origin = classifier_origin(directory)
    return f"{directory} is {origin}: its backbone is taken, its head is left out" if origin else None


def load_backbone(directory: str | Path, **overrides: object) -> Backbone:
    """As `load_model`, without the warning: for callers that say themselves what `head_left_out` gives."""
    description, name, arguments, preprocessing = read_checked_description(directory, overrides)
    params = read_params(directory)
    if "classifier" in description:
        params = tree.subtree("backbone", params)
    model = _filled(lambda: build(name, arguments, nnx.Rngs(0)), params, directory)
    model.preprocessing = preprocessing
    return model


def load_transformer(directory: str | Path, **overrides: object) -> VisionTransformer:
    """As `load_backbone`, where only a vision transformer will do; UsageError for other architectures."""
    _, name, arguments, _ = read_checked_description(directory)
    if not isinstance(arguments, ViTArguments):
        raise UsageError(f"{directory} holds a {name}; a vision transformer is needed here")
    model = load_backbone(directory, **overrides)
    assert isinstance(model, VisionTransformer)
    return model


def load_classifier(directory: str | Path) -> Classifier:
    """Loads a fine-tuned classifier, such as `models/fold_1` of a run, with the preprocessing that it was trained with.

    Raises:
      UsageError: not the directory of a classifier.
      RunError: as `load_model` does.
    """
    description, name, arguments, preprocessing = read_checked_description(directory)
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
    """Loads the published linear head that `weights_convert` put beside its backbone.

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


def read_checked_description(
    directory: str | Path, overrides: Mapping[str, object] | None = None
) -> tuple[dict[str, Any], str, Arguments, Preprocessing]:
    """`model.json`, and the name, arguments and preprocessing in it; raises as `load_model` does."""
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
    """The module that `make` makes, with these parameters."""
    graph, expected = tree.split(nnx.eval_shape(make))
    tree.check(expected, params, str(Path(directory) / "params.safetensors"))
    # Copied, so that overwriting the mapped file neither changes the model nor kills the process.
    return tree.merge(graph, {path: jax.numpy.array(array) for path, array in params.items()})
