"""DINOv2's vision transformer (Oquab et al. 2023, arXiv 2304.07193; registers: Darcet et al. 2023, 2309.16588)."""

import dataclasses
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from dinojax.models import positions
from dinojax.models.blocks import Block, DropPath, Mlp, PatchEmbed, init_weight
from dinojax.models.preprocessing import Backbone, Features, imagenet_preprocessing

_TOKEN_NUMBERS = 200_000  # tokens × width of a chunk: two images of 224 pixels in a ViT-S/14


@dataclasses.dataclass(frozen=True)
class ViTArguments:
    """Size and form of a vision transformer."""

    width: int
    depth: int
    heads: int
    image_size: int = 518
    """Side in pixels of the images whose grid of patches the positional embeddings have."""
    patch_size: int = 14
    channels: int = 3
    registers: int = 0
    """Register tokens; with any, positional embeddings are interpolated with antialiasing, as published."""
    mlp: Mlp = "gelu"
    layer_scale: float = 1.0
    """Initial value. The hub's models are built with 1 and then loaded; the published training starts from 1e-5."""
    drop_path: float = 0.0
    """Rate at which residual branches are dropped in training. Not kept in a model directory."""
    drop_path_uniform: bool = False
    """The same rate in every block, rather than one that rises linearly from 0."""
    drop_path_subset: bool = True
    """At rates above 0.1 a branch is computed for a random subset of the batch only, as published, rather than dropped
    image by image."""
    loop_blocks: bool = False
    """Runs blocks of equal drop path in a `jax.lax.scan`: compiles faster and, where weights are sharded, gathers those
    of one block at a time, but stacks all of them first. Not kept in a model directory."""


class VisionTransformer(nnx.Module):
    """DINOv2's ViT with class token, optional registers, LayerScale and drop path."""

    def __init__(self, name: str, arguments: ViTArguments, rngs: nnx.Rngs) -> None:
        self.name = name
        self.arguments = arguments
        self.width, self.channels = arguments.width, arguments.channels
        self.preprocessing = imagenet_preprocessing(arguments.channels)
        width, side = arguments.width, arguments.image_size // arguments.patch_size
        keys = jax.random.split(rngs.params(), 3)
        self.cls_token = nnx.Param(1e-6 * jax.random.normal(keys[0], (1, 1, width)))
        self.pos_embed = nnx.Param(init_weight(keys[1], (1, 1 + side**2, width)))
        self.mask_token = nnx.Param(jnp.zeros((1, width)))
        if arguments.registers:
            self.register_tokens = nnx.Param(1e-6 * jax.random.normal(keys[2], (1, arguments.registers, width)))
        self.patch_embed = PatchEmbed(arguments.patch_size, arguments.channels, width, rngs)
        first = arguments.drop_path if arguments.drop_path_uniform else 0.0
        rates = map(float, np.linspace(first, arguments.drop_path, arguments.depth))
        drops = [DropPath(rate, arguments.drop_path_subset and rate > 0.1) for rate in rates]
        form = (width, arguments.heads, arguments.mlp, arguments.layer_scale)
        self.blocks = nnx.List([Block(*form, drop, rngs) for drop in drops])
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)

    def __call__(
        self, x: jax.Array, masks: jax.Array | None = None, train: bool = False, key: jax.Array | None = None
    ) -> Features:
        """Features of normalised images.

        Args:
          x: float [B, H, W, C]; height and width divisible by the patch size.
          masks: bool [B, h, w] or [B, h·w]; True where the mask token replaces a patch.
          train: drops residual branches at the model's rate, which needs a key.
          key: a PRNG key, or [G] of them, one for each of G equal slices of the batch, in which drop path draws apart.

        Raises:
          ValueError: a size or a number of channels that does not fit.
        """
        grid = self._grid(x)
        return self._features(self._run_blocks(self._tokens(x, masks), self._drop_keys(train, key)), grid)

    def intermediate(self, x: jax.Array, blocks: int = 4) -> tuple[Features, ...]:
        """Features after each of the last `blocks` blocks, with the final norm applied to each; the last block last."""
        if not 1 <= blocks <= len(self.blocks):
            raise ValueError(f"blocks must be 1 to {len(self.blocks)}, got {blocks}")
        streams, grid = list(self._streams(x)), self._grid(x)
        return tuple(self._features(tokens, grid) for tokens in streams[-blocks:])

    def attention(self, x: jax.Array, block: int = -1) -> jax.Array:
        """Attention weights of one block, for inspection.

        Args:
          x: as in a call.
          block: its index, counted from the end where negative.

        Returns:
          float32 [B, heads, N, N] with N = 1 + R + h·w: class token, registers, patches row by row. Row i holds the
          weights with which token i attends to every token, and sums to 1.

        Raises:
          ValueError: a size or a number of channels that does not fit, or no such block.
        """
        if not -len(self.blocks) <= block < len(self.blocks):
            raise ValueError(f"there is no block {block}; the model has {len(self.blocks)}")
        number = block % len(self.blocks)
        chosen = self.blocks[number]
        return chosen.attn.weights(chosen.norm1(self.stream(x, number)))

    def stream(self, x: jax.Array, blocks: int) -> jax.Array:
        """The residual stream [B, N, D] after the first `blocks` blocks, without the final norm.

        Raises:
          ValueError: as of a call, or the model has fewer blocks.
        """
        if not 0 <= blocks <= len(self.blocks):
            raise ValueError(f"blocks must be 0 to {len(self.blocks)}, got {blocks}")
        return next(itertools.islice(self._streams(x), blocks, None))

    @property
    def final_norm(self) -> nnx.LayerNorm:
        """See `Backbone`."""
        return self.norm

    def check_size(self, height: int, width: int) -> None:
        """See `Backbone`: positive multiples of the patch size."""
        patch = self.arguments.patch_size
        if min(height, width) < 1 or height % patch or width % patch:
            raise ValueError(f"height and width must be multiples of {patch}, got {height}×{width}")

    def check_batch(self, batch_size: int, height: int, width: int) -> None:
        """See `Backbone`: any batch will do, as no image sees another."""

    def for_inference(self) -> "VisionTransformer":
        """The model itself: nothing is faster in inference; see `Backbone`."""
        return self

    def images_per_chunk(self, height: int, width: int) -> int:
        """See `Backbone`; measured by the numbers in the tokens of a block."""
        tokens = height * width // self.arguments.patch_size**2
        return max(_TOKEN_NUMBERS // (tokens * self.width), 1)

    def _grid(self, x: jax.Array) -> tuple[int, int]:
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise ValueError(f"the model reads [B, H, W, {self.channels}], got shape {x.shape}")
        self.check_size(x.shape[1], x.shape[2])
        return x.shape[1] // self.arguments.patch_size, x.shape[2] // self.arguments.patch_size

    def _tokens(self, x: jax.Array, masks: jax.Array | None) -> jax.Array:
        """[B, 1 + R + h·w, D]: class token, registers, patches, with positional embeddings."""
        batch, grid = len(x), self._grid(x)
        patches = rearrange(self.patch_embed(x), "b h w d -> b (h w) d")
        if masks is not None:
            mask_token = self.mask_token[...].astype(patches.dtype)
            patches = jnp.where(masks.reshape(batch, -1, 1), mask_token, patches)
        pos_embed = self.pos_embed[...][0]
        side = self.arguments.image_size // self.arguments.patch_size
        table = rearrange(pos_embed[1:], "(h w) d -> h w d", h=side)
        interpolated = positions.interpolate(table, grid, antialias=self.arguments.registers > 0)
        # Interpolated in float32; the residual stream keeps the dtype of the computation.
        patches = patches + rearrange(interpolated, "h w d -> (h w) d").astype(patches.dtype)
        first = [self.cls_token[...] + pos_embed[:1]]
        if self.arguments.registers:
            first.append(self.register_tokens[...])  # after the positional embedding: registers have none
        tokens = jnp.broadcast_to(jnp.concatenate(first, axis=1), (batch, 1 + self.arguments.registers, self.width))
        return jnp.concatenate([tokens.astype(patches.dtype), patches], axis=1)

    def _streams(self, x: jax.Array) -> Iterator[jax.Array]:
        """The residual stream [B, N, D] before the first block and after each."""
        first = self._tokens(x, None)
        return itertools.accumulate(self.blocks, lambda tokens, block: block(tokens, None), initial=first)

    def _drop_keys(self, train: bool, key: jax.Array | None) -> jax.Array | None:
        """Keys [L, 2, G] of blocks, branches and slices of the batch; None where nothing is dropped."""
        if not train or self.arguments.drop_path == 0:
            return None
        if key is None:
            raise ValueError("drop path in training needs a key")
        split = jax.vmap(lambda key: jax.random.split(key, (len(self.blocks), 2)))(jnp.atleast_1d(key))
        return rearrange(split, "g l two -> l two g")

    def _run_blocks(self, tokens: jax.Array, keys: jax.Array | None) -> jax.Array:
        alike = keys is None or len({block.drop_path for block in self.blocks}) == 1
        if not (self.arguments.loop_blocks and alike):
            for number, block in enumerate(self.blocks):
                tokens = block(tokens, None if keys is None else keys[number])
            return tokens
        states = [nnx.split(block) for block in self.blocks]
        graph = states[0][0]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(state for _, state in states))
        return jax.lax.scan(lambda x, of: (nnx.merge(graph, of[0])(x, of[1]), None), tokens, (stacked, keys))[0]

    def _features(self, tokens: jax.Array, grid: tuple[int, int]) -> Features:
        tokens = self.norm(tokens)
        first = 1 + self.arguments.registers
        patches = rearrange(tokens[:, first:], "b (h w) d -> b h w d", h=grid[0])
        return Features(tokens[:, 0], patches, tokens[:, 1:first] if self.arguments.registers else None)


def as_transformer(model: Backbone, what: str) -> VisionTransformer:
    """The model, narrowed to a vision transformer.

    Raises:
      ValueError: it is another architecture, which has no `what`, such as "attention maps".
    """
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"a {type(model).__name__} has no {what}: only a vision transformer has tokens that attend")
    return model
