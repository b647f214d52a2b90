"""What the student's and the teacher's half of a step share: the settings of the step, and the batch in slices."""

from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from einops import rearrange

from dinojax import tree
from dinojax.config.pretrain import LossConfig
from dinojax.dino import accumulation
from dinojax.dino.masked_patches import Packed, pack
from dinojax.dino.state import Graphs
from dinojax.models import VisionTransformer
from dinojax.models.heads import DINOHead
from dinojax.tree import Params


class Batch(TypedDict):
    """What a step reads."""

    globals: jax.Array
    """float32 [B, 2, S, S, C], normalised."""
    locals: jax.Array
    """float32 [B, L, s, s, C], normalised."""
    masks: jax.Array | None
    """bool [B, 2, N]; patches of the global crops that the student does not see. None without the iBOT term."""


class BatchSlice(NamedTuple):
    """A slice of a batch, b images in g groups."""

    globals: jax.Array
    """[b, V, S, S, C]"""
    locals: jax.Array
    """[b, L, s, s, C]"""
    masks: jax.Array | None
    packed: Packed | None
    keys: jax.Array
    """[g, 2]: keys of drop path, for global and for local crops."""


def split_batch(batch: Batch, key: jax.Array, bound: int, groups: int, accumulate: int) -> BatchSlice:
    """All slices of a batch, stacked: every array has a leading axis of `accumulate` slices."""
    keys = jax.vmap(lambda group: jax.random.split(jax.random.fold_in(key, group)))(jnp.arange(groups))
    whole = (batch["globals"], batch["locals"], batch["masks"], keys)
    globals_, locals_, masks, keys = accumulation.split(whole, accumulate, groups)
    packed = None if masks is None else jax.vmap(lambda one: pack(one, bound, groups // accumulate))(masks)
    return BatchSlice(globals_, locals_, masks, packed, keys)


class StepContext(NamedTuple):
    """What is the same for all slices of a step; rebuilds modules from parameters."""

    graphs: Graphs
    loss: LossConfig
    groups: int
    """G, of the whole batch."""
    temperature: jax.Array
    """Of the teacher, float32 scalar."""
    images: int
    """B, of the whole batch."""
    dtype: Any

    def cast(self, params: Params) -> Params:
        return {path: value.astype(self.dtype) for path, value in params.items()}

    def images_of(self, crops: jax.Array) -> jax.Array:
        """[b, V, S, S, C] to what the backbone reads, [b·V, S, S, C]."""
        return rearrange(crops, "b v h w c -> (b v) h w c").astype(self.dtype)

    def backbone(self, params: Params) -> VisionTransformer:
        return tree.merge(self.graphs["backbone"], tree.subtree("backbone", params))

    def heads(self, params: Params) -> dict[str, DINOHead]:
        """The projection head of each term, `dino` and `ibot`; one for both where iBOT has none of its own."""
        names = [name for name in self.graphs if name != "backbone"]
        made = {name: tree.merge(self.graphs[name], tree.subtree(name, params)) for name in names}
        return {term: made.get(f"{term}_head", made["dino_head"]) for term in ("dino", "ibot")}

    def prototypes(self, params: Params) -> dict[str, jax.Array]:
        """[E, K] of the projection head of each term."""
        heads = self.heads(params)
        dino = heads["dino"].last_layer.normalised()
        return {"dino": dino, "ibot": dino if "ibot_head" not in self.graphs else heads["ibot"].last_layer.normalised()}
