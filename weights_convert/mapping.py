"""Moves arrays along a table, from a layout to our parameters and back, and refuses whatever does not fit.

A row pairs a tensor of a layout with a path of ours and says how the numbers are laid out, so that one table reads in
both directions. Names are templates in which `{i}` stands for a block's number. Shapes are written in letters that
are bound on first sight: "3D D" is a tensor whose first side is three times the width D.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from dinojax.errors import RunError, first_of
from dinojax.models.arrays import LazyArrays

Kind = Literal["same", "linear", "conv", "column", "grid", "counter"]

# Source axes in the order in which we store them. PyTorch: linear [out, in], convolution [out, in, h, w].
_AXES: Mapping[Kind, tuple[int, ...]] = {"linear": (1, 0), "conv": (2, 3, 1, 0)}
# The one parameter that a layout may lack: no image is masked when features are computed, and pre-training trains it.
_MAY_BE_ZERO = ("mask_token",)


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of a layout, or one in each block where the names hold `{i}`.

    `shape` is the source's. `kind`: "same" is stored as it is; "linear" and "conv" have their axes moved; a "column"
    [K, 1] becomes a vector [K]; a "grid" [1, N, D] of positions of patches has one of the class token, zero, put
    before it.

    Several sources are parts of one parameter, stacked along their first axis. A row without a source is a parameter
    that the layout has no place for: zeros on the way in, left out on the way out. A row without a target, kind
    "counter", is an int64 that the layout has and we have not: left out where it is there, zeros on the way out.

    Raises:
      ValueError: a parameter other than the mask token has no source; zeros would change what the model computes.
    """

    source: str | tuple[str, ...]
    target: str
    shape: str
    kind: Kind = "same"

    def __post_init__(self) -> None:
        if not self.sources and self.target not in _MAY_BE_ZERO:
            raise ValueError(f"{self.target} has no source and would be zero; only {', '.join(_MAY_BE_ZERO)} may be")

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def target_shape(self) -> str:
        sides = self.shape.split()
        if len(self.sources) > 1:
            sides[0] = f"{len(self.sources)}{sides[0]}"
        if self.kind in _AXES:
            sides = [sides[axis] for axis in _AXES[self.kind]]
        elif self.kind == "column":
            sides = sides[:1]
        elif self.kind == "grid":
            sides[1] += "+1"
        return " ".join(sides)


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a layout in the model's order, and what its files may hold besides."""

    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()
    """Regular expressions of source names that are left out on the way in, such as a classifier on the backbone."""

    def ignores(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)

    @property
    def lost(self) -> tuple[str, ...]:
        """Paths of our parameters that the layout has no place for."""
        return tuple(row.target for row in self.rows if not row.sources)


def to_ours(tensors: Mapping[str, np.ndarray], table: Table) -> LazyArrays:
    """Our parameters from the tensors of a layout.

    Args:
      tensors: source name -> array of any floating-point type. The number of blocks is read off the names.
      table: rows whose names, blocks counted out, must be exactly the names of `tensors` that it does not ignore.

    Returns:
      Path -> contiguous float32 array, in the table's order, each made when it is asked for. Each tensor is used once
      and each path is filled once. Arrays that need no change share memory with their source.

    Raises:
      RunError: names or shapes differ, or a tensor holds something else than finite floating-point numbers.
    """
    rows = _expand(table.rows, [name for row in table.rows for name in row.sources], tensors)
    used = [row for row in rows if row.target]
    wanted = [(name, row.shape) for row in used for name in row.sources]
    optional = {name for row in rows if not row.target for name in row.sources}
    left_out = {name for name in tensors if name in optional or table.ignores(name)} - {name for name, _ in wanted}
    lengths = _fit({name: tensor.shape for name, tensor in tensors.items() if name not in left_out}, wanted)
    if broken := [name for name, _ in wanted if not _finite(tensors[name])]:
        raise RunError("the tensors do not fit: " + _listed("not finite floating-point numbers", broken))
    return LazyArrays(
        {
            row.target: (
                _shape(row.target_shape, lengths),
                np.dtype(np.float32),
                functools.partial(_make_ours, tensors, row, _shape(row.target_shape, lengths)),
            )
            for row in used
        }
    )


def to_theirs(params: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], table: Table) -> LazyArrays:
    """The tensors of a layout from our parameters: the inverse of `to_ours`, float32 too.

    Args:
      params: path -> array, each read when what is made of it is asked for.
      shapes: of `params`.
      table: rows whose targets, blocks counted out, must be exactly the paths of `params`.

    Raises:
      RunError: paths or shapes differ; the message counts all and lists the first.
    """
    rows = _expand(table.rows, [row.target for row in table.rows], shapes)
    lengths = _fit(shapes, [(row.target, row.target_shape) for row in rows if row.target])
    return LazyArrays(
        {
            name: (
                _shape(row.shape, lengths),
                np.dtype(np.int64 if row.kind == "counter" else np.float32),
                functools.partial(_make_theirs, params, row, place, _shape(row.shape, lengths)),
            )
            for row in rows
            for place, name in enumerate(row.sources)
        }
    )


def _make_ours(tensors: Mapping[str, np.ndarray], row: Row, shape: tuple[int, ...]) -> np.ndarray:
    if not row.sources:
        return np.zeros(shape, np.float32)
    parts = [tensors[name] for name in row.sources]
    tensor = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if row.kind in _AXES:
        tensor = tensor.transpose(_AXES[row.kind])
    elif row.kind == "column":
        tensor = tensor[:, 0]
    elif row.kind == "grid":
        tensor = np.concatenate([np.zeros_like(tensor[:, :1]), tensor], axis=1)
    return np.ascontiguousarray(tensor, dtype=np.float32)


def _make_theirs(params: Mapping[str, np.ndarray], row: Row, place: int, shape: tuple[int, ...]) -> np.ndarray:
    if row.kind == "counter":
        return np.zeros(shape, np.int64)
    array = params[row.target]
    if row.kind in _AXES:
        array = array.transpose(np.argsort(_AXES[row.kind]))
    elif row.kind == "column":
        array = array[:, None]
    elif row.kind == "grid":
        array = array[:, 1:]
    part = np.split(array, len(row.sources))[place] if len(row.sources) > 1 else array
    return np.ascontiguousarray(part, dtype=np.float32)


def _expand(rows: Sequence[Row], templates: Iterable[str], names: Iterable[str]) -> list[Row]:
    """The rows of blocks written out for as many blocks as the names tell apart, read by the templates of one side."""
    patterns = [re.escape(name).replace(r"\{i\}", "([0-9]+)") for name in templates if "{i}" in name]
    anyone = re.compile("|".join(patterns))
    matches = [match for name in names if (match := anyone.fullmatch(name))] if patterns else []
    blocks = {number for match in matches for number in match.groups() if number is not None}
    # A run of rows with `{i}` is written block by block, so that the order is that of the model.
    expanded: list[Row] = []
    run: list[Row] = []
    for row in (*rows, None):
        if row is not None and "{i}" in row.target:
            run.append(row)
            continue
        expanded += [_numbered(inner, i) for i in range(max(len(blocks), 1)) for inner in run]
        run = []
        if row is not None:
            expanded.append(row)
    return expanded


def _numbered(row: Row, i: int) -> Row:
    sources = tuple(name.replace("{i}", str(i)) for name in row.sources)
    return dataclasses.replace(row, source=sources, target=row.target.replace("{i}", str(i)))


def _fit(given: Mapping[str, tuple[int, ...]], wanted: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The length of every letter, once the names and shapes are found to be exactly those wanted."""
    lengths: dict[str, int] = {}
    wrong = []
    for name, shape in wanted:
        sides = _sides(shape)
        if name not in given:
            continue
        if len(given[name]) == len(sides):
            for length, (factor, letter, more) in zip(given[name], sides, strict=True):
                if letter and length > more and (length - more) % factor == 0:
                    lengths.setdefault(letter, (length - more) // factor)
        expected = [_length(side, lengths) for side in sides]
        if list(given[name]) != expected:
            wrong.append(f"{name} has ({', '.join(map(str, given[name]))}), expected ({', '.join(map(str, expected))})")
    names = {name for name, _ in wanted}
    problems = [
        _listed("missing", [name for name, _ in wanted if name not in given]),
        _listed("unexpected", [name for name in given if name not in names]),
        _listed("wrong shape", wrong),
    ]
    if any(problems):
        raise RunError("the tensors do not fit: " + "; ".join(filter(None, problems)))
    return lengths


def _sides(shape: str) -> list[tuple[int, str, int]]:
    """Factor, letter and what is added, of each side: "3D" is (3, "D", 0), "N+1" is (1, "N", 1), "7" is (7, "", 0)."""
    matches = [re.fullmatch(r"([0-9]*)([A-Z]?)(?:\+([0-9]+))?", side) for side in shape.split()]
    return [(int(match[1] or 1), match[2], int(match[3] or 0)) for match in matches if match]


def _length(side: tuple[int, str, int], lengths: Mapping[str, int]) -> int | str:
    """The length of a side; a letter that no tensor has bound stays one."""
    factor, letter, more = side
    if not letter:
        return factor
    if letter in lengths:
        return factor * lengths[letter] + more
    return f"{factor if factor > 1 else ''}{letter}{f'+{more}' if more else ''}"


def _shape(shape: str, lengths: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(factor * (lengths[letter] if letter else 1) + more for factor, letter, more in _sides(shape))


def _finite(tensor: np.ndarray) -> bool:
    # numpy does not count bfloat16 among its own floating-point types, but it converts it.
    if np.issubdtype(tensor.dtype, np.floating) or tensor.dtype.name == "bfloat16":
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is found so
            return bool(np.isfinite(tensor.astype(np.float32, copy=False)).all())
    return False


def _listed(label: str, names: Sequence[str]) -> str:
    return f"{label} ({len(names)}): {first_of(names)}" if names else ""
