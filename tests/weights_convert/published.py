"""Names and shapes of the published models' state dicts, written down apart from the tables under test."""

from typing import Any

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


def hf(width: int, depth: int, side: int, registers: int = 0, gated: int | None = None) -> Shapes:
    """transformers' Dinov2Model, or Dinov2WithRegistersModel."""
    d = width
    shapes: Shapes = {
        "embeddings.cls_token": (1, 1, d),
        "embeddings.mask_token": (1, d),
        "embeddings.position_embeddings": (1, 1 + side**2, d),
        "embeddings.patch_embeddings.projection.weight": (d, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (d,),
    }
    if registers:
        shapes["embeddings.register_tokens"] = (1, registers, d)
    layers = {f"attention.attention.{part}": (d, d) for part in ("query", "key", "value")}
    layers |= {"attention.output.dense": (d, d), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
    if gated:
        del layers["mlp.fc1"], layers["mlp.fc2"]
        layers |= {"mlp.weights_in": (2 * gated, d), "mlp.weights_out": (d, gated)}
    for i in range(depth):
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"encoder.layer.{i}.{name}"] = (d,)
        for name in ("layer_scale1.lambda1", "layer_scale2.lambda1"):
            shapes[f"encoder.layer.{i}.{name}"] = (d,)
        for name, shape in layers.items():
            shapes |= {f"encoder.layer.{i}.{name}.weight": shape, f"encoder.layer.{i}.{name}.bias": shape[:1]}
    return shapes | {"layernorm.weight": (d,), "layernorm.bias": (d,)}


def timm(width: int, depth: int, side: int, registers: int = 0, gated: int | None = None) -> Shapes:
    """timm's vit_*_patch14_dinov2 and its forms with registers."""
    shapes = backbone(width, depth, side, registers, gated)
    del shapes["mask_token"]
    if registers:
        shapes["reg_token"] = shapes.pop("register_tokens")
        shapes["pos_embed"] = (1, side**2, width)
    return {name.replace("mlp.w12", "mlp.fc1").replace("mlp.w3", "mlp.fc2"): of for name, of in shapes.items()}


def _convolutions(blocks: tuple[int, ...], filters: tuple[int, ...], stem: int) -> list[tuple[int, int, int, Any]]:
    """Stage, block, place (0 the shortcut) and [out, in, h, w] of every convolution after the stem."""
    found, before = [], stem
    for stage, (count, inner) in enumerate(zip(blocks, filters, strict=True)):
        for block in range(count):
            found.append((stage, block, 1, (inner, before, 1, 1)))
            found.append((stage, block, 2, (inner, inner, 3, 3)))
            found.append((stage, block, 3, (4 * inner, inner, 1, 1)))
            if block == 0:
                found.append((stage, block, 0, (4 * inner, before, 1, 1)))
            before = 4 * inner
    return found


def torchvision(
    blocks: tuple[int, ...] = (3, 4, 6, 3), filters: tuple[int, ...] = (64, 128, 256, 512), stem: int = 64
) -> Shapes:
    """torchvision's ResNet50 without its classifier."""
    layers: dict[tuple[str, str], Any] = {("conv1", "bn1"): (stem, 3, 7, 7)}
    for stage, block, place, shape in _convolutions(blocks, filters, stem):
        conv, bn = (f"conv{place}", f"bn{place}") if place else ("downsample.0", "downsample.1")
        layers[f"layer{stage + 1}.{block}.{conv}", f"layer{stage + 1}.{block}.{bn}"] = shape
    shapes: Shapes = {}
    for (conv, bn), shape in layers.items():
        shapes[f"{conv}.weight"] = shape
        shapes |= {f"{bn}.{leaf}": shape[:1] for leaf in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{bn}.num_batches_tracked"] = ()
    return shapes


def radimagenet(**sizes: Any) -> Shapes:
    """RadImageNet's ResNet50.pt."""
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    parts = {name: name.split(".", 1) for name in torchvision(**sizes)}
    return {f"backbone.{numbers[parts[name][0]]}.{parts[name][1]}": of for name, of in torchvision(**sizes).items()}


def keras(
    blocks: tuple[int, ...] = (3, 4, 6, 3), filters: tuple[int, ...] = (64, 128, 256, 512), stem: int = 64
) -> Shapes:
    """The ResNet50 of keras.applications without its classifier."""
    layers: dict[str, Any] = {"conv1": (stem, 3, 7, 7)}
    for stage, block, place, shape in _convolutions(blocks, filters, stem):
        layers[f"conv{stage + 2}_block{block + 1}_{place}"] = shape
    shapes: Shapes = {}
    for name, (out, into, height, width) in layers.items():
        shapes |= {f"{name}_conv/kernel": (height, width, into, out), f"{name}_conv/bias": (out,)}
        shapes |= {f"{name}_bn/{leaf}": (out,) for leaf in ("gamma", "beta", "moving_mean", "moving_variance")}
    return shapes


SMALL: dict[str, Any] = {"blocks": (1, 2, 1, 2), "filters": (2, 3, 4, 5), "stem": 6}
