"""How the tensors of published checkpoints correspond to ours, as data: one ordered table per layout.

A row of a table pairs the name of a tensor in a source file with the path of our parameter, and says how the numbers
are laid out. Both names are templates in which `{i}` stands for a block's number, so a row reads in either direction.
Shapes are written in letters that are bound on first sight: "3D D" is a tensor whose first side is three times the
width D.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dinojax.errors import RunError

Kind = Literal["same", "linear", "conv", "column"]

# Source axes in the order in which we store them. PyTorch: linear [out, in], convolution [out, in, h, w].
AXES: Mapping[Kind, tuple[int, ...] | None] = {"same": None, "linear": (1, 0), "conv": (2, 3, 1, 0), "column": None}


@dataclass(frozen=True)
class Row:
    """One tensor of a layout, or one in each block where the names hold `{i}`.

    `shape` is the source's. `kind`: "same" is stored as it is, "linear" and "conv" have their axes moved, a "column"
    [K, 1] becomes a vector [K].
    """

    source: str
    target: str
    shape: str
    kind: Kind = "same"


def _linear(layer: str, shape: str) -> tuple[Row, Row]:
    """The rows of a linear layer that carries the same name on both sides and has a bias."""
    out = shape.split()[0]
    return (
        Row(f"{layer}.weight", f"{layer}.kernel", shape, "linear"),
        Row(f"{layer}.bias", f"{layer}.bias", out),
    )


def _norm(layer: str) -> tuple[Row, Row]:
    return Row(f"{layer}.weight", f"{layer}.scale", "D"), Row(f"{layer}.bias", f"{layer}.bias", "D")


# D width, N positions (class token and patches), R registers, C channels, H hidden width of the MLP.
_TOKENS = (
    Row("cls_token", "cls_token", "1 1 D"),
    Row("pos_embed", "pos_embed", "1 N D"),
    Row("mask_token", "mask_token", "1 D"),
)
_REGISTERS = (Row("register_tokens", "register_tokens", "1 R D"),)
_PATCH_EMBED = (
    Row("patch_embed.proj.weight", "patch_embed.proj.kernel", "D C 14 14", "conv"),
    Row("patch_embed.proj.bias", "patch_embed.proj.bias", "D"),
)
_ATTENTION = (
    *_norm("blocks.{i}.norm1"),
    *_linear("blocks.{i}.attn.qkv", "3D D"),
    *_linear("blocks.{i}.attn.proj", "D D"),
    Row("blocks.{i}.ls1.gamma", "blocks.{i}.ls1.gamma", "D"),
    *_norm("blocks.{i}.norm2"),
)
_MLP = (*_linear("blocks.{i}.mlp.fc1", "H D"), *_linear("blocks.{i}.mlp.fc2", "D H"))
_SWIGLU = (*_linear("blocks.{i}.mlp.w12", "2H D"), *_linear("blocks.{i}.mlp.w3", "D H"))
_END = (Row("blocks.{i}.ls2.gamma", "blocks.{i}.ls2.gamma", "D"), *_norm("norm"))

# B bottleneck, K prototypes, F and G hidden widths. PyTorch numbers the activations between the layers too.
DINO_HEAD = (
    Row("mlp.0.weight", "mlp.0.kernel", "F D", "linear"),
    Row("mlp.0.bias", "mlp.0.bias", "F"),
    Row("mlp.2.weight", "mlp.1.kernel", "G F", "linear"),
    Row("mlp.2.bias", "mlp.1.bias", "G"),
    Row("mlp.4.weight", "mlp.2.kernel", "B G", "linear"),
    Row("mlp.4.bias", "mlp.2.bias", "B"),
    Row("last_layer.weight_g", "last_layer.weight_g", "K 1", "column"),
    Row("last_layer.weight_v", "last_layer.weight_v", "K B", "linear"),
)


def dinov2_table(registers: bool, swiglu: bool) -> tuple[Row, ...]:
    """The table of DINOv2's own state dict, with or without register tokens, its MLP plain or SwiGLU (ViT-g)."""
    mlp = _SWIGLU if swiglu else _MLP
    return (*_TOKENS, *(_REGISTERS if registers else ()), *_PATCH_EMBED, *_ATTENTION, *mlp, *_END)


def dinov2_backbone(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our backbone parameters, float32, by path, from a DINOv2 state dict without prefix (`blocks.0.attn.qkv.weight`).

    Raises:
      RunError: the tensors are not exactly those of a DINOv2 backbone; the message lists the whole difference.
    """
    swiglu = any(name.endswith(".mlp.w12.weight") for name in tensors)
    return convert(tensors, dinov2_table("register_tokens" in tensors, swiglu))


def dino_head(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our DINO head's parameters, float32, by path, from the published head's state dict without prefix.

    Raises:
      RunError: the tensors are not exactly those of a head of three layers; the message lists the whole difference.
    """
    return convert(tensors, DINO_HEAD)


def to_dinov2_name(path: str) -> str:
    """The published name of our parameter: "blocks.3.attn.qkv.kernel" -> "blocks.3.attn.qkv.weight".

    Takes paths of the backbone and of the DINO head, both without prefix. Raises KeyError for any other path.
    """
    for row in (*dinov2_table(registers=True, swiglu=True), *_MLP, *DINO_HEAD):
        match = re.fullmatch(re.escape(row.target).replace(r"\{i\}", "([0-9]+)"), path)
        if match:
            return row.source.replace("{i}", match[1]) if match.groups() else row.source
    raise KeyError(path)


def convert(tensors: Mapping[str, np.ndarray], table: Sequence[Row]) -> dict[str, np.ndarray]:
    """Moves every tensor of a source to our path and layout, in the table's order.

    Args:
      tensors: source name -> array of any floating-point type. The number of blocks is read off the names.
      table: rows whose names, blocks counted out, must be exactly the names of `tensors`.

    Returns:
      Path -> contiguous float32 array. Each tensor is used once and each path is filled once. Arrays that need no
      change share memory with their source.

    Raises:
      RunError: names or shapes differ, or a tensor holds something else than finite floating-point numbers.
    """
    rows = _expand(table, tensors)
    sources = [row.source for row in rows]
    problems = [
        *_listed("missing", [name for name in sources if name not in tensors]),
        *_listed("unexpected", [name for name in tensors if name not in set(sources)]),
        *_listed("wrong shape", _wrong_shapes(tensors, [row for row in rows if row.source in tensors])),
    ]
    if not problems:
        problems = _listed("not finite numbers", [name for name in sources if not _finite(tensors[name])])
    if problems:
        raise RunError("the tensors do not fit: " + "; ".join(problems))
    return {row.target: np.ascontiguousarray(_move(tensors[row.source], row.kind), dtype=np.float32) for row in rows}


def _expand(table: Sequence[Row], names: Mapping[str, object]) -> list[Row]:
    """The table with its rows of blocks written out for as many blocks as the names tell apart."""
    templates = [re.escape(row.source).replace(r"\{i\}", "([0-9]+)") for row in table if "{i}" in row.source]
    blocks = {match[1] for name in names for template in templates if (match := re.fullmatch(template, name))}
    # A run of rows with `{i}` is written block by block, so that the order is that of the model.
    expanded: list[Row] = []
    run: list[Row] = []
    for row in (*table, None):
        if row is not None and "{i}" in row.source:
            run.append(row)
            continue
        expanded += [_numbered(inner, i) for i in range(max(len(blocks), 1)) for inner in run]
        run = []
        if row is not None:
            expanded.append(row)
    return expanded


def _numbered(row: Row, i: int) -> Row:
    return Row(row.source.replace("{i}", str(i)), row.target.replace("{i}", str(i)), row.shape, row.kind)


def _wrong_shapes(tensors: Mapping[str, np.ndarray], rows: Sequence[Row]) -> list[str]:
    """Both shapes of every tensor that disagrees with the letters bound by those before it."""
    sides: dict[str, int] = {}
    wrong = []
    for row in rows:
        shape = tensors[row.source].shape
        factors = [re.fullmatch(r"([0-9]*)([A-Z]?)", side) for side in row.shape.split()]
        pairs = [(int(match[1] or 1), match[2]) for match in factors if match]
        if len(shape) == len(pairs):
            for (factor, letter), length in zip(pairs, shape, strict=True):
                if letter and length > 0 and length % factor == 0:
                    sides.setdefault(letter, length // factor)
        expected = [_side(factor, letter, sides) for factor, letter in pairs]
        if [str(length) for length in shape] != expected:
            wrong.append(f"{row.source} has ({', '.join(map(str, shape))}), expected ({', '.join(expected)})")
    return wrong


def _side(factor: int, letter: str, sides: Mapping[str, int]) -> str:
    """The length of a side as text; a letter that no tensor has bound stays one."""
    if not letter:
        return str(factor)
    return str(factor * sides[letter]) if letter in sides else f"{factor if factor > 1 else ''}{letter}"


def _finite(tensor: np.ndarray) -> bool:
    # numpy does not count bfloat16 among its own floating-point types, but it converts it.
    if np.issubdtype(tensor.dtype, np.floating) or tensor.dtype.name == "bfloat16":
        return bool(np.isfinite(tensor.astype(np.float32, copy=False)).all())
    return False


def _move(tensor: np.ndarray, kind: Kind) -> np.ndarray:
    if kind == "column":
        return tensor[:, 0]
    axes = AXES[kind]
    return tensor if axes is None else tensor.transpose(axes)


def _listed(label: str, names: Sequence[str]) -> list[str]:
    return [f"{label} ({len(names)}): {', '.join(names)}"] if names else []
