"""DINOv2's vision transformer (Oquab et al. 2023, arXiv 2304.07193; registers: Darcet et al. 2023, 2309.16588)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from dinojax.models import positions
from dinojax.models.features import Features, imagenet_preprocessing

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
    mlp: Literal["gelu", "swiglu"] = "gelu"
    layer_scale: float = 1.0
    """Initial value. Hub models are built with 1 and then loaded; the published training starts from 1e-5."""
    drop_path: float = 0.0
    """Rate of dropped residual branches in training. Not kept in a model directory."""
    drop_path_uniform: bool = False
    """The same rate in every block, or rising linearly from 0 to it."""
    groups: int = 1
    """Equal slices of the batch inside each of which drop path picks its subset. Not kept in a model directory."""


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
        q, k, v = rearrange(self.qkv(x), "b n (qkv h d) -> qkv b h n d", qkv=3, h=self.heads)
        scores = jnp.einsum("bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        # Dividing after the product with V touches N·d numbers rather than N·N.
        out = jnp.einsum("bhnm,bhmd->bhnd", weights, v) / weights.sum(-1, keepdims=True)
        return self.proj(rearrange(out, "b h n d -> b n (h d)"))


class MLP(nnx.Module):
    """Two layers with the exact (erf) GELU."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.fc1 = nnx.Linear(width, 4 * width, kernel_init=_init_weight, rngs=rngs)
        self.fc2 = nnx.Linear(4 * width, width, kernel_init=_init_weight, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class SwiGLU(nnx.Module):
    """SiLU-gated linear unit of ViT-g (Shazeer 2020, arXiv 2002.05202), its hidden width a multiple of 8."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8
        self.w12 = nnx.Linear(width, 2 * hidden, kernel_init=_init_weight, rngs=rngs)
        self.w3 = nnx.Linear(hidden, width, kernel_init=_init_weight, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, value = jnp.split(self.w12(x), 2, axis=-1)
        return self.w3(jax.nn.silu(gate) * value)


class Block(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, arguments: ViTArguments, drop_path: float, rngs: nnx.Rngs) -> None:
        width = arguments.width
        self.drop_path = drop_path
        self.groups = arguments.groups
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.attn = Attention(width, arguments.heads, rngs)
        self.ls1 = LayerScale(width, arguments.layer_scale)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.mlp = (MLP if arguments.mlp == "gelu" else SwiGLU)(width, rngs)
        self.ls2 = LayerScale(width, arguments.layer_scale)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """[B, N, D] to the same; a key drops branches at the block's rate."""
        keys = (None, None) if key is None else jax.random.split(key)
        x = _residual(x, lambda x: self.ls1(self.attn(self.norm1(x))), self.drop_path, self.groups, keys[0])
        return _residual(x, lambda x: self.ls2(self.mlp(self.norm2(x))), self.drop_path, self.groups, keys[1])


def _residual(
    x: jax.Array, branch: Callable[[jax.Array], jax.Array], rate: float, groups: int, key: jax.Array | None
) -> jax.Array:
    """Adds a branch, dropped with probability `rate` when there is a key.

    Up to 0.1 images are dropped one by one; above, the branch runs on a random subset of the batch only and is scaled
    by batch / subset, so that compute falls with the rate (DINOv2, section 5, "efficient stochastic depth").
    """
    if key is None or rate == 0:
        return x + branch(x)
    if rate <= 0.1:
        kept = jax.random.bernoulli(key, 1 - rate, (len(x), 1, 1))
        return x + branch(x) * kept / (1 - rate)
    size = len(x) // groups
    subset = max(int(size * (1 - rate)), 1)
    grouped = rearrange(x, "(g b) n d -> g b n d", g=groups)
    # The places of the largest of random numbers are a random subset; a permutation compiles much slower.
    chosen = jax.lax.top_k(jax.random.uniform(key, (groups, size)), subset)[1]
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
          key: a PRNG key.

        Raises:
          ValueError: a size or a number of channels that does not fit.
        """
        grid = self._grid(x)
        tokens = self._tokens(x, masks)
        for block, block_key in zip(self.blocks, self._block_keys(train, key), strict=True):
            tokens = block(tokens, block_key)
        return self._features(tokens, grid)

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

    def _grid(self, x: jax.Array) -> tuple[int, int]:
        patch = self.arguments.patch_size
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise ValueError(f"the model reads [B, H, W, {self.channels}], got shape {x.shape}")
        if x.shape[1] % patch or x.shape[2] % patch:
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
        patches = patches + rearrange(interpolated, "h w d -> (h w) d")
        first = [self.cls_token[...] + pos_embed[:1]]
        if self.arguments.registers:
            first.append(self.register_tokens[...])  # after the positional embedding: registers have none
        first_tokens = jnp.broadcast_to(
            jnp.concatenate(first, axis=1), (batch, 1 + self.arguments.registers, self.width)
        )
        return jnp.concatenate([first_tokens.astype(patches.dtype), patches], axis=1)

    def _block_keys(self, train: bool, key: jax.Array | None) -> list[jax.Array | None]:
        if not train or self.arguments.drop_path == 0:
            return [None] * len(self.blocks)
        if key is None:
            raise ValueError("drop path in training needs a key")
        return list(jax.random.split(key, len(self.blocks)))

    def _features(self, tokens: jax.Array, grid: tuple[int, int]) -> Features:
        tokens = self.norm(tokens)
        first = 1 + self.arguments.registers
        patches = rearrange(tokens[:, first:], "b (h w) d -> b h w d", h=grid[0])
        return Features(tokens[:, 0], patches, tokens[:, 1:first] if self.arguments.registers else None)
