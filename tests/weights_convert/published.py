"""Names and shapes of the published models' state dicts, written down apart from the tables under test."""

import numpy as np

from tests import goldens_reader

Shapes = dict[str, tuple[int, ...]]


def backbone(width: int, depth: int, side: int, registers: int = 0, gated: int | None = None) -> Shapes:
    """A DINOv2 backbone with `side`² positions; `gated` is the hidden width of a SwiGLU MLP."""
    d = width
    shapes: Shapes = {"cls_token": (1, 1, d), "pos_embed": (1, 1 + side**2, d), "mask_token": (1, d)}
    if registers:
        shapes["register_tokens"] = (1, registers, d)
    shapes |= {"patch_embed.proj.weight": (d, 3, 14, 14), "patch_embed.proj.bias": (d,)}
    layers = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
    if gated:
        layers = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.w12": (2 * gated, d), "mlp.w3": (d, gated)}
    for i in range(depth):
        for name in ("norm1.weight", "norm1.bias", "ls1.gamma", "norm2.weight", "norm2.bias", "ls2.gamma"):
            shapes[f"blocks.{i}.{name}"] = (d,)
        for name, shape in layers.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    return shapes | {"norm.weight": (d,), "norm.bias": (d,)}


def head(width: int, prototypes: int, hidden: int, bottleneck: int) -> Shapes:
    """A DINO head of three layers."""
    layers = {"mlp.0": (hidden, width), "mlp.2": (hidden, hidden), "mlp.4": (bottleneck, hidden)}
    shapes: Shapes = {}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes | {"last_layer.weight_g": (prototypes, 1), "last_layer.weight_v": (prototypes, bottleneck)}


TINY = backbone(width=32, depth=2, side=5)
TINY_HEAD = head(width=32, prototypes=128, hidden=48, bottleneck=16)


def rebuilt(shapes: Shapes) -> dict[str, np.ndarray]:
    """The state dict with the weights that the reference figures were made with."""
    return {name: goldens_reader.rebuild(name, shape) for name, shape in shapes.items()}
