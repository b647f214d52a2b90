"""A batch in slices that are processed one after the other, so that one slice's activations are held at a time."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from einops import rearrange

S = TypeVar("S")
T = TypeVar("T")


def split(batch: S, slices: int, groups: int) -> S:
    """Every array [B, ...] as [A, B/A, ...], for A slices that divide the G groups.

    Slice a holds the groups a, a + A, a + 2A and so on: with the batch spread over devices, each of them has its share
    of every slice, and nothing moves between them.
    """
    if slices == 1:
        return jax.tree.map(lambda x: x[None], batch)
    each = groups // slices
    return jax.tree.map(lambda x: rearrange(x, "(g a b) ... -> a (g b) ...", g=each, a=slices), batch)


def join(slices: S, groups: int) -> S:
    """The inverse of `split`."""

    def joined(x: jax.Array) -> jax.Array:
        return rearrange(x, "a (g b) ... -> (g a b) ...", g=groups // len(x))

    return jax.tree.map(joined, slices)


def map_slices(function: Callable[[S], T], slices: S) -> T:
    """The function's results for every slice, stacked; a single slice makes no loop."""
    if len(jax.tree.leaves(slices)[0]) == 1:
        return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], slices)))
    return jax.lax.map(function, slices)


def sum_slices(function: Callable[[S], T], slices: S) -> T:
    """The sum of the function's results over the slices, held once."""
    first: Any = jax.tree.map(lambda x: x[0], slices)
    if len(jax.tree.leaves(slices)[0]) == 1:
        return function(first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, first))
    return jax.lax.scan(lambda total, one: (jax.tree.map(jnp.add, total, function(one)), None), zeros, slices)[0]
