"""Heads on a backbone: DINO's projection head, DINOv2's published linear classifier, and that of fine-tuning."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from dinojax.models.blocks import init_weight, uniform_initializer
from dinojax.models.preprocessing import Backbone


class DINOHead(nnx.Module):
    """DINO's projection head: MLP, L2 normalisation and weight-normalised prototypes (Caron et al. 2021, 2104.14294).

    The prototypes' magnitudes `weight_g` are trained, as in the published DINOv2 code.
    """

    def __init__(self, width: int, prototypes: int, hidden: int, bottleneck: int, layers: int, rngs: nnx.Rngs) -> None:
        pairs = itertools.pairwise([width, *[hidden] * (layers - 1), bottleneck])
        self.mlp = nnx.List([nnx.Linear(*pair, kernel_init=init_weight, rngs=rngs) for pair in pairs])
        self.last_layer = Prototypes(bottleneck, prototypes, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to logits over the prototypes, float32 [..., K]."""
        return self.last_layer(self.embed(x))

    def embed(self, x: jax.Array) -> jax.Array:
        """Bottleneck features of unit length, [..., D] to [..., bottleneck], in the dtype of x."""
        for layer in self.mlp[:-1]:
            x = jax.nn.gelu(layer(x), approximate=False)
        x = self.mlp[-1](x)
        # The norm of an all-zero row has no gradient; padded rows must not make it NaN.
        squared = jnp.sum(jnp.square(x.astype(jnp.float32)), -1, keepdims=True)
        return (x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))).astype(x.dtype)


class Prototypes(nnx.Module):
    """A bias-free linear layer whose columns are `weight_g · weight_v / |weight_v|` (Salimans & Kingma 2016)."""

    def __init__(self, width: int, prototypes: int, rngs: nnx.Rngs) -> None:
        bound = width**-0.5  # PyTorch's default for a linear layer, which the published code keeps
        self.weight_g = nnx.Param(jnp.ones((prototypes,)))
        self.weight_v = nnx.Param(jax.random.uniform(rngs.params(), (width, prototypes), minval=-bound, maxval=bound))

    def __call__(self, x: jax.Array) -> jax.Array:
        return prototype_logits(x, self.normalised())

    def normalised(self) -> jax.Array:
        """The prototypes [bottleneck, K] as `prototype_logits` takes them: to normalise once for several calls."""
        v = self.weight_v[...].astype(jnp.float32)
        return (v * (self.weight_g[...] / jnp.linalg.norm(v, axis=0))).astype(self.weight_v[...].dtype)


def prototype_logits(x: jax.Array, prototypes: jax.Array) -> jax.Array:
    """Logits, float32 [..., K], of bottleneck features [..., bottleneck] on normalised prototypes [bottleneck, K]."""
    return jnp.matmul(x, prototypes, preferred_element_type=jnp.float32)


class LinearHead(nnx.Module):
    """A published linear classifier of DINOv2 on frozen features (Oquab et al. 2023, arXiv 2304.07193, section 7.1).

    It reads the class tokens of the last `blocks` blocks (1 or 4), in the order of the blocks, followed by the mean of
    the last block's patch tokens; all after the final norm.
    """

    def __init__(self, kernel: jax.Array, bias: jax.Array, blocks: int) -> None:
        """Stores the kernel [(blocks + 1) · D, classes] and the bias [classes]."""
        self.kernel, self.bias, self.blocks = nnx.Param(kernel), nnx.Param(bias), blocks

    def __call__(self, model: Backbone, x: jax.Array) -> jax.Array:
        """Normalised images [B, H, W, C] to logits [B, classes].

        Raises:
          ValueError: the model has another width than the head was trained on, or cannot read the images.
        """
        if self.kernel.shape[0] != (self.blocks + 1) * model.width:
            raise ValueError(f"the head reads {self.kernel.shape[0]} features, not those of a {model.name}")
        features = model.intermediate(x, self.blocks)
        tokens = [after.pooled for after in features]
        return jnp.concatenate([*tokens, features[-1].patches.mean((1, 2))], -1) @ self.kernel[...] + self.bias[...]


class Classifier(nnx.Module):
    """A backbone with MediDino's head on its pooled features: [norm,] Linear, ReLU, Linear; or a linear layer alone."""

    def __init__(self, backbone: Backbone, outputs: int, hidden: int, renormalise: bool, rngs: nnx.Rngs) -> None:
        """Draws the head's weights as PyTorch's `nn.Linear` does.

        Args:
          backbone: becomes part of the classifier, and is trained with it.
          outputs: number of logits.
          hidden: width of the layer with ReLU; 0 for a linear head.
          renormalise: applies the final norm of a ViT to the class token a second time, as MediDino's code does.
          rngs: for the head's weights.

        Raises:
          ValueError: `renormalise` with a backbone that has no final norm.
        """
        if renormalise and backbone.final_norm is None:
            raise ValueError(f"{backbone.name} has no final norm to apply a second time")
        self.backbone = backbone
        self.renormalise = renormalise
        widths = [backbone.width, *([hidden] if hidden else []), outputs]
        layers = itertools.pairwise(widths)
        self.head = nnx.List([_torch_linear(before, after, rngs) for before, after in layers])

    def __call__(self, x: jax.Array, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """Normalised images [B, H, W, C] to logits [B, outputs]; `train` and `key` are the backbone's."""
        x = self.backbone(x, train=train, key=key).pooled
        if self.renormalise and (norm := self.backbone.final_norm) is not None:
            x = norm(x)
        for layer in self.head[:-1]:
            x = jax.nn.relu(layer(x))
        return self.head[-1](x)


def _torch_linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer with PyTorch's default weights and biases: uniform in ± 1 / √inputs."""
    draw = uniform_initializer(inputs**-0.5)
    return nnx.Linear(inputs, outputs, kernel_init=draw, bias_init=draw, rngs=rngs)
