"""What a weight file or a model directory is, in words, without converting it."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dinojax.errors import RunError, UsageError
from dinojax.models import ARGUMENTS, Arguments, Preprocessing, ViTArguments
from dinojax.models.store import read_description, read_params
from weights_convert import readers, writers
from weights_convert.backbones import Converted
from weights_convert.layouts import recognise_source

Tensors = Mapping[str, np.ndarray]


def inspect_file(path: Path, heads: int | None = None, part: Literal["teacher", "student"] = "teacher") -> str:
    """Describes a weight file or a Hugging Face folder: kind, layout, digest, model, preprocessing, and its tensors.

    A layout that is unknown, or that needs `heads`, is reported and raises nothing.

    Args:
      path: of anything that `readers.read_file` reads.
      heads, part: as for `layouts.recognise`.

    Raises:
      RunError: as `readers.read_file`.
    """
    source = readers.read_file(path)
    lines = [f"{path}: {source.kind}", f"sha256         {source.sha256()}"]
    try:
        converted = recognise_source(source, heads, part)
    except UsageError as error:
        lines.append(f"layout         known, but {error}")
    except RunError as error:
        lines.append(f"layout         not recognised: {error}")
    else:
        lines += describe(converted)
    return "\n".join([*lines, "", *table(source.tensors)])


def inspect_directory(directory: Path) -> str:
    """Describes a model directory that `weights_convert` or a run wrote; raises as `store.load_model` does."""
    writers.read_checked(directory)
    description = read_description(directory)
    with (directory / "params.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    lines = [
        f"{directory}: model directory",
        f"sha256         {digest} of params.safetensors",
        f"model          {description.get('name')}",
    ]
    heads = ("linear_head", "dino_head", "ibot_head")
    for title in ("arguments", "preprocessing", "source", *heads, "classifier", "classes", "versions"):
        if value := description.get(title):
            lines.append(f"{title:<14} {_listed(value)}")
    files = sorted(path.stem for path in directory.glob("*.safetensors"))
    for name in sorted(files, key=lambda name: name != "params"):
        lines += ["", f"{name}.safetensors", *table(read_params(directory, name))]
    return "\n".join(lines)


def describe(converted: Converted) -> list[str]:
    """Layout, model, heads and preprocessing of a recognised file, a line each."""
    lines = [f"layout         {converted.layout}"]
    if converted.arguments is not None:
        lines += [
            f"model          {model_name(converted.name, converted.arguments)}: {size_of(converted.arguments)}",
            f"preprocessing  {preprocessing_of(converted.preprocessing)}",
        ]
    for name, head in converted.heads.items():
        lines.append(f"{name:<14} " + ", ".join(f"{path} {_shape(shape)}" for path, shape in head.shapes.items()))
    if converted.ignored:
        lines.append(f"left out       {', '.join(converted.ignored)}")
    if converted.zeros:
        lines.append(f"zeros          {', '.join(converted.zeros)}: not in the file")
    return lines


def model_name(name: str, arguments: Arguments) -> str:
    return name if arguments == ARGUMENTS[name] else f"a variant of {name}"


def size_of(arguments: Arguments) -> str:
    """Depth, width and what else distinguishes one model from another."""
    if isinstance(arguments, ViTArguments):
        return (
            f"{arguments.depth} blocks of width {arguments.width}, {arguments.heads} heads, "
            f"{arguments.registers} registers, positions for {arguments.image_size} pixels"
        )
    blocks, filters = ("/".join(map(str, numbers)) for numbers in (arguments.blocks, arguments.filters))
    return f"{blocks} blocks with {filters} filters, width {arguments.width}"


def preprocessing_of(preprocessing: Preprocessing) -> str:
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    return f"{preprocessing.size} pixels, {preprocessing.order}, mean ({mean}), std ({std}) of values in 0..1"


def table(tensors: Tensors) -> list[str]:
    """Names, shapes and types as aligned lines, numbered names on one line, and the totals at the end."""
    groups: dict[tuple[tuple[str, ...], tuple[int, ...], str], list[tuple[str, ...]]] = {}
    for name, array in tensors.items():
        texts, numbers = re.split(r"[0-9]+", name), re.findall(r"[0-9]+", name)
        groups.setdefault((tuple(texts), array.shape, array.dtype.name), []).append(tuple(numbers))
    rows = [
        (name, f"{_shape(shape)} {dtype}", f"× {count}" if count > 1 else "")
        for (texts, shape, dtype), found in groups.items()
        for name, count in _collapsed(texts, found)
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    lines = [f"{name:<{widths[0]}}  {what:<{widths[1]}}  {times}".rstrip() for name, what, times in rows]
    numbers, size = (sum(getattr(array, key) for array in tensors.values()) for key in ("size", "nbytes"))
    return [*lines, f"{len(tensors)} tensors, {numbers:,} parameters, {size:,} bytes"]


def _collapsed(texts: Sequence[str], found: Sequence[tuple[str, ...]]) -> list[tuple[str, int]]:
    """`blocks.{0..11}.norm{1..2}.bias` and 24, where every combination of numbers occurs; else more such names.

    Args:
      texts: the parts of the names before, between and after the numbers.
      found: the numbers of each name.
    """
    sides = [sorted(set(column), key=lambda number: (int(number), number)) for column in zip(*found, strict=True)]
    if math.prod(len(side) for side in sides) == len(found):
        pieces = [*map(_range, sides), ""]
        return [("".join(text + piece for text, piece in zip(texts, pieces, strict=True)), len(found))]
    place = next(i for i, side in enumerate(sides) if len(side) > 1)
    parts = [[numbers for numbers in found if numbers[place] == value] for value in sides[place]]
    return [line for part in parts for line in _collapsed(texts, part)]


def _range(numbers: Sequence[str]) -> str:
    if len(numbers) == 1:
        return numbers[0]
    if list(numbers) == [str(i) for i in range(int(numbers[0]), int(numbers[0]) + len(numbers))]:
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return f"{{{','.join(numbers)}}}"


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _listed(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
