"""DINOv2's vision transformer (Oquab et al. 2023, arXiv 2304.07193; registers: Darcet et al. 2023, 2309.16588)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from dinojax.models import positions
from dinojax.models.preprocessing import Features, imagenet_preprocessing

Mlp = Literal["gelu", "swiglu"]
_init_weight = nnx.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class ViTArguments:
    """Size and form of a vision transformer."""

    width: int
    depth: int
    heads: int
    image_size: int = 518
    """Side in pixels of the images whose patch grid the positional embeddings have."""
    patch_size: int = 14
    channels: int = 3
    registers: int = 0
    """With any, positional embeddings are resampled with antialiasing, as published."""
    mlp: Mlp = "gelu"
    layer_scale: float = 1.0
    """Initial value. Hub models are built with 1 and then loaded; the published training starts from 1e-5."""
    drop_path: float = 0.0
    """Rate of dropped residual branches in training. Not kept in a model directory."""
    drop_path_uniform: bool = False
    """The same rate in every block, or rising linearly from 0 to it."""
    drop_path_subset: bool = True
    """Above a rate of 0.1 a branch runs on a subset of the batch alone, as published; else they are dropped singly."""
    loop_blocks: bool = False
    """Blocks of equal drop path as a loop of the program: compiles sooner and holds one block's gathered weights at a
    time where they are spread over devices, but stacks all weights first. Not kept in a model directory."""


class LayerScale(nnx.Module):
    """Multiplies by a learned vector (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, width: int, initial: float) -> None:
        self.gamma = nnx.Param(jnp.full((width,), initial, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.gamma[...]


class Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.qkv = nnx.Linear(width, 3 * width, kernel_init=_init_weight, rngs=rngs)
        self.proj = nnx.Linear(width, width, kernel_init=_init_weight, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = self._projections(x)
        # Softmax is float32 whatever the precision of the products.
        scores = jnp.einsum("bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        # Dividing after the product with V touches N·d numbers rather than N·N.
        total = weights.sum(-1, keepdims=True)
        out = jnp.einsum("bhnm,bhmd->bhnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
        out = self.proj(rearrange(out.astype(x.dtype), "b h n d -> (b n) (h d)"))
        return rearrange(out, "(b n) d -> b n d", b=len(x))

    def weights(self, x: jax.Array) -> jax.Array:
        """What each token takes from which: [B, N, D] to float32 [B, heads, N, N], whose rows sum to 1."""
        q, k, _ = self._projections(x)
        scores = jnp.einsum("bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
        return jax.nn.softmax(scores, axis=-1)

    def _projections(self, x: jax.Array) -> jax.Array:
        """Queries, keys and values: [3, B, heads, N, D / heads]."""
        # Matrix products of two axes are faster than of three, forward and backward.
        qkv = self.qkv(rearrange(x, "b n d -> (b n) d"))
        return rearrange(qkv, "(b n) (qkv h d) -> qkv b h n d", b=len(x), qkv=3, h=self.heads)


class MLP(nnx.Module):
    """Two layers with the exact (erf) GELU."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.fc1 = nnx.Linear(width, 4 * width, kernel_init=_init_weight, rngs=rngs)
        self.fc2 = nnx.Linear(4 * width, width, kernel_init=_init_weight, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.fc2(jax.nn.gelu(self.fc1(rearrange(x, "b n d -> (b n) d")), approximate=False))
        return rearrange(out, "(b n) d -> b n d", b=len(x))


class SwiGLU(nnx.Module):
    """SiLU-gated linear unit of ViT-g (Shazeer 2020, arXiv 2002.05202), its hidden width a multiple of 8."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8
        self.w12 = nnx.Linear(width, 2 * hidden, kernel_init=_init_weight, rngs=rngs)
        self.w3 = nnx.Linear(hidden, width, kernel_init=_init_weight, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, value = jnp.split(self.w12(rearrange(x, "b n d -> (b n) d")), 2, axis=-1)
        return rearrange(self.w3(jax.nn.silu(gate) * value), "(b n) d -> b n d", b=len(x))


class Block(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, arguments: ViTArguments, drop_path: float, rngs: nnx.Rngs) -> None:
        width = arguments.width
        self.drop_path = DropPath(drop_path, arguments.drop_path_subset and drop_path > 0.1)
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.attn = Attention(width, arguments.heads, rngs)
        self.ls1 = LayerScale(width, arguments.layer_scale)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.mlp = (MLP if arguments.mlp == "gelu" else SwiGLU)(width, rngs)
        self.ls2 = LayerScale(width, arguments.layer_scale)

    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """[B, N, D] to the same; keys [2, G], one for each branch and group, drop branches at the block's rate."""
        first, second = (None, None) if keys is None else keys
        x = residual(x, lambda x: self.ls1(self.attn(self.norm1(x))), self.drop_path, first)
        return residual(x, lambda x: self.ls2(self.mlp(self.norm2(x))), self.drop_path, second)


class DropPath(NamedTuple):
    """Rate of dropped residual branches, and whether by a subset of the batch or image by image."""

    rate: float
    subset: bool


def residual(
    x: jax.Array, branch: Callable[[jax.Array], jax.Array], drop: DropPath, keys: jax.Array | None
) -> jax.Array:
    """Adds a branch, dropped at a rate when there are keys, one for each of G equal slices of the batch.

    By subset, the branch runs on max(int(B/G·(1 − rate)), 1) random images of each slice only and is scaled by the
    inverse of their share, so that compute falls with the rate (DINOv2, section 5, "efficient stochastic depth").
    """
    if keys is None or drop.rate == 0:
        return x + branch(x)
    groups, size = len(keys), len(x) // len(keys)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (size,)))(keys)
    if not drop.subset:
        kept = (draws.reshape(-1, 1, 1) >= drop.rate).astype(x.dtype)
        return x + branch(x) * kept / (1 - drop.rate)
    subset = max(int(size * (1 - drop.rate)), 1)
    grouped = rearrange(x, "(g b) n d -> g b n d", g=groups)
    # The places of the largest of random numbers are a random subset; a permutation compiles much slower.
    chosen = jax.lax.top_k(draws, subset)[1]
    picked = jnp.take_along_axis(grouped, chosen[:, :, None, None], axis=1)
    added = branch(rearrange(picked, "g b n d -> (g b) n d")) * (size / subset)
    added = rearrange(added, "(g b) n d -> g b n d", g=groups)
    return rearrange(jax.vmap(lambda x, i, a: x.at[i].add(a))(grouped, chosen, added), "g b n d -> (g b) n d")


class PatchEmbed(nnx.Module):
    """Linear projection of non-overlapping patches; the kernel has the shape of the convolution that it is."""

    def __init__(self, arguments: ViTArguments, rngs: nnx.Rngs) -> None:
        size, channels = arguments.patch_size, arguments.channels
        bound = (channels * size**2) ** -0.5  # PyTorch's default for a convolution, which the published code keeps
        uniform = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
        self.proj = nnx.Conv(
            channels,
            arguments.width,
            (size, size),
            strides=size,
            kernel_init=lambda key, shape, dtype, **_: uniform(key, shape, dtype),
            bias_init=lambda key, shape, dtype, **_: uniform(key, shape, dtype),
            rngs=rngs,
        )
        self.size = size

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, h, w, D]."""
        patches = rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=self.size, q=self.size)
        kernel = rearrange(self.proj.kernel[...], "p q c d -> (p q c) d")
        assert self.proj.bias is not None
        return patches @ kernel + self.proj.bias[...]


class VisionTransformer(nnx.Module):
    """DINOv2's ViT with class token, optional registers, LayerScale and drop path."""

    def __init__(self, name: str, arguments: ViTArguments, rngs: nnx.Rngs) -> None:
        self.name = name
        self.arguments = arguments
        self.width, self.channels = arguments.width, arguments.channels
        self.preprocessing = imagenet_preprocessing(arguments.channels)
        width, side = arguments.width, arguments.image_size // arguments.patch_size
        key = rngs.params()
        keys = jax.random.split(key, 3)
        self.cls_token = nnx.Param(1e-6 * jax.random.normal(keys[0], (1, 1, width)))
        self.pos_embed = nnx.Param(_init_weight(keys[1], (1, 1 + side**2, width)))
        self.mask_token = nnx.Param(jnp.zeros((1, width)))
        if arguments.registers:
            self.register_tokens = nnx.Param(1e-6 * jax.random.normal(keys[2], (1, arguments.registers, width)))
        self.patch_embed = PatchEmbed(arguments, rngs)
        rates = np.linspace(0, arguments.drop_path, arguments.depth)
        if arguments.drop_path_uniform:
            rates = np.full(arguments.depth, arguments.drop_path)
        self.blocks = nnx.List([Block(arguments, float(rate), rngs) for rate in rates])
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)

    def __call__(
        self, x: jax.Array, masks: jax.Array | None = None, train: bool = False, key: jax.Array | None = None
    ) -> Features:
        """Features of normalised images.

        Args:
          x: float [B, H, W, C]; height and width divisible by the patch size.
          masks: bool [B, h, w] or [B, h·w]; patches replaced by the mask token.
          train: drops residual branches at the model's rate, which needs a key.
          key: a PRNG key; or several, [G], one for each of G equal slices of the batch, inside which drop path draws.

        Raises:
          ValueError: a size or a number of channels that does not fit.
        """
        grid = self._grid(x)
        return self._features(self._run_blocks(self._tokens(x, masks), self._drop_keys(train, key)), grid)

    def intermediate(self, x: jax.Array, blocks: int = 4) -> tuple[Features, ...]:
        """Features after each of the last `blocks` blocks, the final norm applied to each; last block last."""
        if not 1 <= blocks <= len(self.blocks):
            raise ValueError(f"blocks must be 1 to {len(self.blocks)}, got {blocks}")
        grid = self._grid(x)
        tokens = self._tokens(x, None)
        outputs = []
        for block in self.blocks:
            tokens = block(tokens, None)
            outputs.append(tokens)
        return tuple(self._features(tokens, grid) for tokens in outputs[-blocks:])

    def attention(self, x: jax.Array, block: int = -1) -> jax.Array:
        """Attention weights of one block, to look at; no other block's are kept.

        Args:
          x: as in a call.
          block: its number from 0, or from the end as in a list.

        Returns:
          float32 [B, heads, N, N] with N = 1 + R + h·w: class token, registers, patches row by row. Row i is what token
          i takes from each token, and sums to 1.

        Raises:
          ValueError: a size or a number of channels that does not fit, or no such block.
        """
        if not -len(self.blocks) <= block < len(self.blocks):
            raise ValueError(f"there is no block {block}; the model has {len(self.blocks)}")
        number = block % len(self.blocks)
        chosen = self.blocks[number]
        return chosen.attn.weights(chosen.norm1(self.stream(x, number)))

    def stream(self, x: jax.Array, blocks: int) -> jax.Array:
        """The residual stream [B, N, D] after the first `blocks` blocks, without the final norm; raises as a call."""
        if not 0 <= blocks <= len(self.blocks):
            raise ValueError(f"blocks must be 0 to {len(self.blocks)}, got {blocks}")
        tokens = self._tokens(x, None)
        for block in self.blocks[:blocks]:
            tokens = block(tokens, None)
        return tokens

    def _grid(self, x: jax.Array) -> tuple[int, int]:
        patch = self.arguments.patch_size
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise ValueError(f"the model reads [B, H, W, {self.channels}], got shape {x.shape}")
        if x.shape[1] % patch or x.shape[2] % patch or 0 in x.shape:
            raise ValueError(f"height and width must be multiples of {patch}, got {x.shape[1]}×{x.shape[2]}")
        return x.shape[1] // patch, x.shape[2] // patch

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
        first_tokens = jnp.broadcast_to(
            jnp.concatenate(first, axis=1), (batch, 1 + self.arguments.registers, self.width)
        )
        return jnp.concatenate([first_tokens.astype(patches.dtype), patches], axis=1)

    def _drop_keys(self, train: bool, key: jax.Array | None) -> jax.Array | None:
        """[L, 2, G]: a key for each block, branch and group; None where nothing is dropped."""
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
