"""Masked patches of a batch packed into a fixed number of rows, so that only these go through the head."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange


class Packed(NamedTuple):
    """Where the masked patches of b images in g groups are, at most M in each group; R = g·M rows, padded."""

    indices: jax.Array
    """int32 [g, M] into the group's patches."""
    valid: jax.Array
    """bool [R]."""
    weights: jax.Array
    """float32 [R]: 1 / (masked patches of the same crop), 0 where not valid."""


def pack(masks: jax.Array, bound: int, groups: int) -> Packed:
    """Finds the masked patches.

    Args:
      masks: bool [b, V, N].
      bound: M, the most masked patches that a group can have (`MaskPlan.bound`).
      groups: g, equal slices of the images.
    """
    per_crop = jnp.broadcast_to(masks.sum(-1, keepdims=True), masks.shape)
    masks = rearrange(masks, "(g b) v n -> g (b v n)", g=groups)
    indices = jax.vmap(lambda mask: jnp.nonzero(mask, size=bound, fill_value=0)[0])(masks)
    valid = jnp.arange(bound) < masks.sum(1, keepdims=True)
    counts = jnp.take_along_axis(rearrange(per_crop, "(g b) v n -> g (b v n)", g=groups), indices, axis=1)
    return Packed(indices, valid.ravel(), (valid / jnp.maximum(counts, 1)).ravel())


def take_masked(patches: jax.Array, packed: Packed) -> jax.Array:
    """The masked ones of the patches: [b·V, h, w, D] to [R, D]."""
    grouped = rearrange(patches, "(g b) h w d -> g (b h w) d", g=len(packed.indices))
    return rearrange(jnp.take_along_axis(grouped, packed.indices[:, :, None], axis=1), "g m d -> (g m) d")
