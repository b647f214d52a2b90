"""Parameters as a flat dict from path to array: `{"blocks.3.attn.qkv.kernel": Array, ...}`.

The path is the only selector in this project: layer decay, weight decay, freezing and weight conversion are ordered
tables of `(regex, value)`, in which the first match wins and no match is an error.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx, traverse_util

from dinojax.errors import RunError, first_of

T = TypeVar("T")
Params = dict[str, jax.Array]


def split(module: object) -> tuple[nnx.GraphDef, Params]:
    """A module as its static graph and its variables, a flat dict from dotted path to array."""
    graph, state = nnx.split(module)
    return graph, _flat(state)


def weights(module: object) -> Params:
    """The parameters that training may change: `split`'s without running statistics."""
    return _flat(nnx.state(module, nnx.Param))


def _flat(state: Any) -> Params:
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def merge(graph: nnx.GraphDef, params: Mapping[str, Any]) -> Any:
    """The module of `graph` with the arrays of `params`; the inverse of `split`. Cheap, also inside `jax.jit`."""

    def parts(path: str) -> tuple[str | int, ...]:
        return tuple(int(part) if part.isdigit() else part for part in path.split("."))

    return nnx.merge(graph, traverse_util.unflatten_dict({parts(path): value for path, value in params.items()}))


def prefixed(prefix: str, params: Mapping[str, T]) -> dict[str, T]:
    """Every path with `prefix.` before it."""
    return {f"{prefix}.{path}": value for path, value in params.items()}


def subtree(prefix: str, params: Mapping[str, T]) -> dict[str, T]:
    """The parameters below `prefix.`, which their paths then lack."""
    return {path.removeprefix(f"{prefix}."): value for path, value in params.items() if path.startswith(f"{prefix}.")}


def match(path: str, table: Sequence[tuple[str, T]]) -> T:
    """The value of the first row whose regular expression matches the whole path.

    Raises:
      KeyError: no row matches.
    """
    for pattern, value in table:
        if re.fullmatch(pattern, path):
            return value
    raise KeyError(f"no row of the table matches the parameter {path!r}")


def difference(expected: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Every way in which the paths and shapes of `given` differ from those expected, one line each; empty if none."""
    lines = [f"missing {path} {_shape(expected[path])}" for path in expected if path not in given]
    lines += [f"unexpected {path} {_shape(given[path])}" for path in given if path not in expected]
    lines += [
        f"wrong shape {path}: {_shape(given[path])}, expected {_shape(expected[path])}"
        for path in expected
        if path in given and np.shape(given[path]) != np.shape(expected[path])
    ]
    return lines


def check(expected: Mapping[str, Any], given: Mapping[str, Any], what: str) -> None:
    """Compares paths and shapes with those expected.

    Raises:
      RunError: they differ; the message counts the differences and lists the first.
    """
    lines = difference(expected, given)
    if lines:
        raise RunError(f"{what} holds another model ({len(lines)} differences): {first_of(lines, 450, '; ')}")


def _shape(array: Any) -> str:
    return "×".join(map(str, np.shape(array))) or "scalar"
