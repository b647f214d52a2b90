"""The layers of a vision transformer: patch embedding, attention, MLPs, and the block that they make up."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

Mlp = Literal["gelu", "swiglu"]
init_weight = nnx.initializers.truncated_normal(0.02)


def uniform_initializer(bound: float) -> nnx.Initializer:
    """Uniform in ± `bound`, as PyTorch's default initialisations are."""
    return lambda key, shape, dtype=jnp.float32, out_sharding=None: jax.random.uniform(
        key, shape, dtype, minval=-bound, maxval=bound
    )


class LayerScale(nnx.Module):
    """Multiplication by a learned vector (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, width: int, initial: float) -> None:
        self.gamma = nnx.Param(jnp.full((width,), initial, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.gamma[...]


class Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.qkv = nnx.Linear(width, 3 * width, kernel_init=init_weight, rngs=rngs)
        self.proj = nnx.Linear(width, width, kernel_init=init_weight, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        scores, v = self._scores(x)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        # Normalising after the product with V divides N·d numbers rather than N·N.
        total = weights.sum(-1, keepdims=True)
        out = jnp.einsum("bhnm,bhmd->bhnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
        out = self.proj(rearrange(out.astype(x.dtype), "b h n d -> (b n) (h d)"))
        return rearrange(out, "(b n) d -> b n d", b=len(x))

    def weights(self, x: jax.Array) -> jax.Array:
        """Attention weights: [B, N, D] to float32 [B, heads, N, N]; row i, of token i, sums to 1."""
        return jax.nn.softmax(self._scores(x)[0], axis=-1)

    def _scores(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Scores before the softmax, float32 [B, heads, N, N], and values [B, heads, N, D / heads]."""
        # Products of two-dimensional arrays are faster than of three-dimensional ones, forward and backward.
        qkv = self.qkv(rearrange(x, "b n d -> (b n) d"))
        q, k, v = rearrange(qkv, "(b n) (qkv h d) -> qkv b h n d", b=len(x), qkv=3, h=self.heads)
        # Float32 whatever the precision of the products.
        return jnp.einsum("bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32), v


class MLP(nnx.Module):
    """Two layers with the exact (erf) GELU."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.fc1 = nnx.Linear(width, 4 * width, kernel_init=init_weight, rngs=rngs)
        self.fc2 = nnx.Linear(4 * width, width, kernel_init=init_weight, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.fc2(jax.nn.gelu(self.fc1(rearrange(x, "b n d -> (b n) d")), approximate=False))
        return rearrange(out, "(b n) d -> b n d", b=len(x))


class SwiGLU(nnx.Module):
    """SiLU-gated linear unit of ViT-g (Shazeer 2020, arXiv 2002.05202), its hidden width a multiple of 8."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8
        self.w12 = nnx.Linear(width, 2 * hidden, kernel_init=init_weight, rngs=rngs)
        self.w3 = nnx.Linear(hidden, width, kernel_init=init_weight, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, value = jnp.split(self.w12(rearrange(x, "b n d -> (b n) d")), 2, axis=-1)
        return rearrange(self.w3(jax.nn.silu(gate) * value), "(b n) d -> b n d", b=len(x))


class Block(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(
        self, width: int, heads: int, mlp: Mlp, layer_scale: float, drop_path: "DropPath", rngs: nnx.Rngs
    ) -> None:
        self.drop_path = drop_path
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.attn = Attention(width, heads, rngs)
        self.ls1 = LayerScale(width, layer_scale)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.mlp = (MLP if mlp == "gelu" else SwiGLU)(width, rngs)
        self.ls2 = LayerScale(width, layer_scale)

    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """[B, N, D] to the same; keys [2, G], of branches and slices of the batch, drop the branches at random."""
        first, second = (None, None) if keys is None else keys
        x = residual(x, lambda x: self.ls1(self.attn(self.norm1(x))), self.drop_path, first)
        return residual(x, lambda x: self.ls2(self.mlp(self.norm2(x))), self.drop_path, second)


class DropPath(NamedTuple):
    """How residual branches are dropped in training."""

    rate: float
    subset: bool
    """For a random subset of the batch, rather than image by image."""


def residual(
    x: jax.Array, branch: Callable[[jax.Array], jax.Array], drop: DropPath, keys: jax.Array | None
) -> jax.Array:
    """Adds a branch to x [B, N, D]; with keys [G], drops it at random in each of G equal slices of the batch.

    By subset, the branch is computed for max(int(B/G·(1 − rate)), 1) random images of each slice and scaled by the
    inverse of their share, which saves compute (DINOv2, section 5, "efficient stochastic depth"); else it is computed
    for all images and multiplied by 0 or 1 / (1 − rate) (Huang et al. 2016, arXiv 1603.09382).
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
    # The indices of the largest random numbers are a random subset; a permutation compiles much more slowly.
    chosen = jax.lax.top_k(draws, subset)[1]
    picked = jnp.take_along_axis(grouped, chosen[:, :, None, None], axis=1)
    added = branch(rearrange(picked, "g b n d -> (g b) n d")) * (size / subset)
    added = rearrange(added, "(g b) n d -> g b n d", g=groups)
    return rearrange(jax.vmap(lambda x, i, a: x.at[i].add(a))(grouped, chosen, added), "g b n d -> (g b) n d")


class PatchEmbed(nnx.Module):
    """Linear projection of non-overlapping patches, its kernel [P, P, C, D] that of the equivalent convolution."""

    def __init__(self, size: int, channels: int, width: int, rngs: nnx.Rngs) -> None:
        # PyTorch's default for a convolution, which the published code keeps.
        draw = uniform_initializer((channels * size**2) ** -0.5)
        self.proj = nnx.Conv(channels, width, (size, size), strides=size, kernel_init=draw, bias_init=draw, rngs=rngs)
        self.size = size

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, h, w, D]."""
        patches = rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=self.size, q=self.size)
        kernel = rearrange(self.proj.kernel[...], "p q c d -> (p q c) d")
        assert self.proj.bias is not None
        return patches @ kernel + self.proj.bias[...]
