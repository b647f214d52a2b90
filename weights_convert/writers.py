"""Writes a model directory in the layout of another library, so that what was trained here can be carried back."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from dinojax import tree
from dinojax.errors import UsageError
from dinojax.models import Arguments, Preprocessing, ResNetArguments, ViTArguments, store
from dinojax.models.arrays import LazyArrays, write_arrays
from dinojax.runs.files import replacing_directory, write_json
from weights_convert import huggingface, tables
from weights_convert.backbones import PUBLISHED_HEADS, check_model, usual_preprocessing
from weights_convert.mapping import Table, to_theirs

Layout = Literal["dinov2", "hf", "timm", "torchvision"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
_LIBRARIES: Mapping[Layout, str] = {"hf": "transformers", "timm": "timm"}
_METADATA = {"format": "pt"}  # without it, some versions of transformers refuse the file


@dataclasses.dataclass(frozen=True)
class Stored:
    """A model directory, its arrays mapped."""

    name: str
    arguments: Arguments
    preprocessing: Preprocessing
    params: Mapping[str, np.ndarray]
    heads: tuple[str, ...]
    """What the directory holds beside a backbone; no layout here has a place for it."""


def write(model_directory: str | Path, to: Layout, destination: str | Path) -> list[str]:
    """Writes the backbone of a model directory as safetensors of another library, float32, whole or not at all.

    Args:
      model_directory: as `weights_convert` or a run wrote it.
      to: `dinov2` (the names of the hub's files), `hf` (transformers), `timm` or `torchvision`.
      destination: a folder for `hf`, else a file that ends in .safetensors; it must not exist.

    Returns:
      What the layout cannot hold, a line each.

    Raises:
      UsageError: the destination is taken or has another ending, or the layout has no such model.
      RunError: the model cannot be read, or the destination cannot be written.
    """
    directory, destination = Path(model_directory), Path(destination)
    if destination.exists() or destination.is_symlink():
        raise UsageError(f"{destination} exists already; choose another name or remove it")
    if to != "hf" and destination.suffix != ".safetensors":
        raise UsageError(f"{destination}: what is written is a safetensors file; let its name end in .safetensors")
    stored = read_checked(directory)
    table = _table(to, stored)
    tensors = _tensors(stored, table)
    if to == "hf" and isinstance(stored.arguments, ViTArguments):
        _write_folder(destination, tensors, stored.arguments, stored.preprocessing)
    else:
        write_arrays(destination, tensors, _METADATA)
    return [*_lost(to, stored, table), *_lost_settings(to, stored.arguments, stored.preprocessing)]


def read_checked(directory: Path) -> Stored:
    """Reads a model directory and checks its parameters against the model that it names.

    Raises:
      UsageError: it is no model directory.
      RunError: it cannot be read, or holds another model; the message lists the whole difference.
    """
    description, name, arguments, preprocessing = store.read_checked_description(directory)
    params = store.read_params(directory)
    heads = sorted(path.stem for path in directory.glob("*.safetensors") if path.stem != "params")
    if "classifier" in description:
        params = tree.subtree("backbone", params)
        heads.append("the classifier")
    shapes = {path: array.shape for path, array in params.items()}
    check_model(name, arguments, shapes, str(directory / "params.safetensors"))
    return Stored(name, arguments, preprocessing, params, tuple(heads))


def _table(to: Layout, stored: Stored) -> Table:
    """The table of the layout for this model; refuses what the other library has no model for."""
    arguments = stored.arguments
    if isinstance(arguments, ResNetArguments):
        if arguments.conv_bias or arguments.stride_first or arguments.bn_eps != 1e-5:
            raise UsageError(
                f"{stored.name} has the biases, strides and epsilon of Keras, which torchvision and timm have not; "
                "no layout here holds it"
            )
        if to not in ("torchvision", "timm"):
            raise UsageError(f"the layout {to} has no ResNet; take --to torchvision or --to timm")
        return tables.torchvision_table(arguments.blocks)
    registers, swiglu = arguments.registers > 0, arguments.mlp == "swiglu"
    if to == "dinov2":
        return tables.dinov2_table(registers, swiglu)
    if to == "hf":
        return tables.hf_table(registers, swiglu)
    if to == "timm":
        return tables.timm_table(registers, swiglu)
    raise UsageError(f"torchvision has no {stored.name}; take --to dinov2, --to hf or --to timm")


def _tensors(stored: Stored, table: Table) -> LazyArrays:
    params = dict(stored.params)
    shapes = {path: array.shape for path, array in params.items()}
    if _adds_class_position(table):
        # timm gives the class token no position where there are registers, so the token holds it.
        params["cls_token"] = params["cls_token"].astype(np.float32) + params["pos_embed"][:, :1].astype(np.float32)
    return to_theirs(params, shapes, table)


def _adds_class_position(table: Table) -> bool:
    return any(row.kind == "grid" for row in table.rows)


def _lost(to: Layout, stored: Stored, table: Table) -> list[str]:
    lines = [f"{path}: {to} has no place for it" for path in table.lost]
    if _adds_class_position(table):
        lines.append("pos_embed[0], the position of the class token: added to cls_token, as timm does")
    if isinstance(stored.arguments, ResNetArguments):
        lines.append("fc, a classifier: there is none; load the file into a model whose fc is torch.nn.Identity()")
        lines.append("num_batches_tracked: not kept here; written as zeros")
    return [*lines, *(f"{head}: left out, the backbone alone is written" for head in stored.heads)]


def _lost_settings(to: Layout, arguments: Arguments, preprocessing: Preprocessing) -> list[str]:
    """What no tensor tells, and readers of such a file take to be otherwise: each with what they take it to be."""
    lines = []
    if isinstance(arguments, ViTArguments) and to != "hf":
        usual_heads = PUBLISHED_HEADS.get(arguments.width)
        if arguments.heads != usual_heads:
            taken = f"readers take {usual_heads}" if usual_heads else "readers must ask for it"
            lines.append(
                f"heads: {arguments.heads} is not kept; {taken}, so say --heads {arguments.heads} on the way in"
            )
    if isinstance(arguments, ViTArguments) and to != "dinov2" and not arguments.registers:
        lines.append(
            f"positions: at other sizes than {arguments.image_size} pixels {_LIBRARIES[to]} interpolates them in "
            "another way than DINOv2 where there are no registers, and its features differ"
        )
    usual = usual_preprocessing(arguments)
    kept = ("size", "mean", "std") if to == "hf" else ()
    for field in dataclasses.fields(Preprocessing):
        ours, theirs = (_shown(field.name, getattr(form, field.name)) for form in (preprocessing, usual))
        if field.name not in kept and ours != theirs:
            lines.append(f"preprocessing: {field.name} {ours} is not kept; readers take {theirs}")
    return lines


def _shown(name: str, value: Any) -> Any:
    """A value of the preprocessing; of intensities those that are not just as they are stored."""
    if name != "intensity":
        return value
    return ", ".join(f"{rule.group} {rule}" for rule in value if rule.name != "full") or "none"


def _write_folder(folder: Path, tensors: LazyArrays, arguments: ViTArguments, preprocessing: Preprocessing) -> None:
    """A folder that transformers' `from_pretrained` reads."""
    with replacing_directory(folder) as partial:
        write_arrays(partial / "model.safetensors", tensors, _METADATA)
        write_json(partial / "config.json", huggingface.config_of(arguments))
        write_json(partial / "preprocessor_config.json", huggingface.preprocessor_of(preprocessing))
