"""How the tensors of published checkpoints correspond to our parameters, as data: one ordered table per layout.

`mapping` reads a table in either direction and says what its rows mean.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dinojax.errors import RunError
from dinojax.models.arrays import LazyArrays
from weights_convert.mapping import Row, Table, to_ours


def _linear(layer: str, shape: str, ours: str = "") -> tuple[Row, Row]:
    """The rows of a linear layer with a bias, which carries the same name on both sides unless `ours` is given."""
    ours, out = ours or layer, shape.split()[0]
    return Row(f"{layer}.weight", f"{ours}.kernel", shape, "linear"), Row(f"{layer}.bias", f"{ours}.bias", out)


def _norm(layer: str, ours: str = "") -> tuple[Row, Row]:
    ours = ours or layer
    return Row(f"{layer}.weight", f"{ours}.scale", "D"), Row(f"{layer}.bias", f"{ours}.bias", "D")


# Vision transformers. D width, N positions (class token and patches), R registers, C channels, P patch, H hidden width.
_CLS_TOKEN = Row("cls_token", "cls_token", "1 1 D")
_POSITIONS = Row("pos_embed", "pos_embed", "1 N D")
_MASK_TOKEN = Row("mask_token", "mask_token", "1 D")
_REGISTERS = Row("register_tokens", "register_tokens", "1 R D")
_PATCH_EMBED = (
    Row("patch_embed.proj.weight", "patch_embed.proj.kernel", "D C P P", "conv"),
    Row("patch_embed.proj.bias", "patch_embed.proj.bias", "D"),
)
_ATTENTION = (
    *_norm("blocks.{i}.norm1"),
    *_linear("blocks.{i}.attn.qkv", "3D D"),
    *_linear("blocks.{i}.attn.proj", "D D"),
    Row("blocks.{i}.ls1.gamma", "blocks.{i}.ls1.gamma", "D"),
    *_norm("blocks.{i}.norm2"),
)
_MLP = (*_linear("blocks.{i}.mlp.fc1", "H D"), *_linear("blocks.{i}.mlp.fc2", "D H"))
_SWIGLU = (*_linear("blocks.{i}.mlp.w12", "2H D"), *_linear("blocks.{i}.mlp.w3", "D H"))
_END = (Row("blocks.{i}.ls2.gamma", "blocks.{i}.ls2.gamma", "D"), *_norm("norm"))

# timm keeps SwiGLU's layers under the names of the plain MLP (`SwiGLUPacked`).
_TIMM_SWIGLU = (
    *_linear("blocks.{i}.mlp.fc1", "2H D", "blocks.{i}.mlp.w12"),
    *_linear("blocks.{i}.mlp.fc2", "D H", "blocks.{i}.mlp.w3"),
)

_HF_LAYER = "encoder.layer.{i}"
_HF_MLP = (
    *_linear(f"{_HF_LAYER}.mlp.fc1", "H D", "blocks.{i}.mlp.fc1"),
    *_linear(f"{_HF_LAYER}.mlp.fc2", "D H", "blocks.{i}.mlp.fc2"),
)
_HF_SWIGLU = (
    *_linear(f"{_HF_LAYER}.mlp.weights_in", "2H D", "blocks.{i}.mlp.w12"),
    *_linear(f"{_HF_LAYER}.mlp.weights_out", "D H", "blocks.{i}.mlp.w3"),
)


def _stacked(layers: Sequence[str], ours: str, shape: str) -> tuple[Row, Row]:
    """The rows of linear layers with biases that are one layer here."""
    return (
        Row(tuple(f"{_HF_LAYER}.{layer}.weight" for layer in layers), f"blocks.{{i}}.{ours}.kernel", shape, "linear"),
        Row(tuple(f"{_HF_LAYER}.{layer}.bias" for layer in layers), f"blocks.{{i}}.{ours}.bias", shape.split()[0]),
    )


_HF_ATTENTION = (
    *_stacked([f"attention.attention.{part}" for part in ("query", "key", "value")], "attn.qkv", "D D"),
    *_linear(f"{_HF_LAYER}.attention.output.dense", "D D", "blocks.{i}.attn.proj"),
)
# How transformers 5 calls its modules, though `save_pretrained` still writes the names above.
_HF_RENAMED_ATTENTION = (
    *_stacked([f"attention.{part}_proj" for part in "qkv"], "attn.qkv", "D D"),
    *_linear(f"{_HF_LAYER}.attention.o_proj", "D D", "blocks.{i}.attn.proj"),
)
_HF_RENAMED_SWIGLU = (
    *_stacked(["mlp.gate_proj", "mlp.up_proj"], "mlp.w12", "H D"),
    *_linear(f"{_HF_LAYER}.mlp.down_proj", "D H", "blocks.{i}.mlp.w3"),
)


def dinov2_table(registers: bool, swiglu: bool) -> Table:
    """DINOv2's own state dict, with or without register tokens, its MLP plain or SwiGLU (ViT-g).

    A classifier in the place of its `head`, which is empty as published, is left out.
    """
    mlp = _SWIGLU if swiglu else _MLP
    tokens = (_CLS_TOKEN, _POSITIONS, _MASK_TOKEN, *([_REGISTERS] if registers else []))
    return Table((*tokens, *_PATCH_EMBED, *_ATTENTION, *mlp, *_END), (r"head\.(weight|bias)",))


def dinov2_table_of(names: Iterable[str]) -> Table:
    """The one of `dinov2_table` that a state dict of these names needs."""
    names = set(names)
    return dinov2_table("register_tokens" in names, any(name.endswith(".mlp.w12.weight") for name in names))


def hf_table(registers: bool, swiglu: bool, mask_token: bool = True, renamed: bool = False) -> Table:
    """transformers' `Dinov2Model` and `Dinov2WithRegistersModel`; a classifier on the backbone is left out.

    `renamed` is for state dicts that transformers 5 has in memory, in contrast to the files that it writes.
    """
    attention = _HF_RENAMED_ATTENTION if renamed else _HF_ATTENTION
    mlp = (_HF_RENAMED_SWIGLU if renamed else _HF_SWIGLU) if swiglu else _HF_MLP
    rows = (
        Row("embeddings.cls_token", "cls_token", "1 1 D"),
        Row("embeddings.position_embeddings", "pos_embed", "1 N D"),
        Row("embeddings.mask_token" if mask_token else (), "mask_token", "1 D"),
        *([Row("embeddings.register_tokens", "register_tokens", "1 R D")] if registers else []),
        Row("embeddings.patch_embeddings.projection.weight", "patch_embed.proj.kernel", "D C P P", "conv"),
        Row("embeddings.patch_embeddings.projection.bias", "patch_embed.proj.bias", "D"),
        *_norm(f"{_HF_LAYER}.norm1", "blocks.{i}.norm1"),
        *attention,
        Row(f"{_HF_LAYER}.layer_scale1.lambda1", "blocks.{i}.ls1.gamma", "D"),
        *_norm(f"{_HF_LAYER}.norm2", "blocks.{i}.norm2"),
        *mlp,
        Row(f"{_HF_LAYER}.layer_scale2.lambda1", "blocks.{i}.ls2.gamma", "D"),
        *_norm("layernorm", "norm"),
    )
    return Table(rows, (r"classifier\.(weight|bias)",))


def timm_table(registers: bool, swiglu: bool) -> Table:
    """timm's `vit_*_patch14[_reg4]_dinov2`: no mask token, and with registers no position of the class token."""
    positions = Row("pos_embed", "pos_embed", "1 N D", "grid") if registers else _POSITIONS
    rows = (
        _CLS_TOKEN,
        positions,
        Row((), "mask_token", "1 D"),
        *([Row("reg_token", "register_tokens", "1 R D")] if registers else []),
        *_PATCH_EMBED,
        *_ATTENTION,
        *(_TIMM_SWIGLU if swiglu else _MLP),
        *_END,
    )
    return Table(rows, (r"head\.(weight|bias)",))


# How PyTorch's `parametrizations.weight_norm` calls what `weight_norm` calls weight_g and weight_v.
_WEIGHT_NORM = {
    "last_layer.parametrizations.weight.original0": "last_layer.weight_g",
    "last_layer.parametrizations.weight.original1": "last_layer.weight_v",
}


def is_dino_head(names: Iterable[str]) -> bool:
    """Whether a state dict of these names, without prefix, can only be that of a projection head."""
    names = {_WEIGHT_NORM.get(name, name) for name in names}
    return "last_layer.weight_v" in names and all(name.startswith(("mlp.", "last_layer.")) for name in names)


def dino_head_table(layers: int) -> Table:
    """The projection head of DINO and of iBOT with 1 to 9 layers; three as published.

    B bottleneck, K prototypes, D width of the backbone, E to M hidden widths.
    """
    widths = ["D", *"EFGHIJLM"[: layers - 1], "B"]
    # PyTorch numbers the activations between the layers too, and one layer alone has no number.
    names = [f"mlp.{2 * i}" if layers > 1 else "mlp" for i in range(layers)]
    rows = [
        row for i, name in enumerate(names) for row in _linear(name, f"{widths[i + 1]} {widths[i]}", ours=f"mlp.{i}")
    ]
    prototypes = (
        Row("last_layer.weight_g", "last_layer.weight_g", "K 1", "column"),
        Row("last_layer.weight_v", "last_layer.weight_v", "K B", "linear"),
    )
    return Table((*rows, *prototypes))


# The linear classifiers published with DINOv2: K classes, F features.
LINEAR_HEAD = Table((Row("weight", "kernel", "K F", "linear"), Row("bias", "bias", "K")))


class _Unit(NamedTuple):
    """A convolution of a ResNet and the norm after it: `place` 1 to 3 in its block, 0 the shortcut; -1 the stem."""

    stage: int
    block: int
    place: int
    shape: str
    """Out, in, height, width. S stem, C channels; P, Q, U and V the stages' inner widths."""

    @property
    def ours(self) -> tuple[str, str]:
        return self.named(f"layers.{self.stage}.{self.block}", ("shortcut.conv", "shortcut.bn"))

    def named(self, block: str, shortcut: tuple[str, str]) -> tuple[str, str]:
        """Of the convolution and the norm, as torchvision numbers them inside a block of this name."""
        if self.place < 0:
            return "conv1", "bn1"
        conv, norm = (f"conv{self.place}", f"bn{self.place}") if self.place else shortcut
        return f"{block}.{conv}", f"{block}.{norm}"


def _units(blocks: Sequence[int]) -> Iterator[_Unit]:
    """Every convolution of a ResNet of bottlenecks with so many blocks in its stages (He et al. 2015, 1512.03385)."""
    yield _Unit(0, 0, -1, "S C 7 7")
    before = "S"
    for stage, count in enumerate(blocks):
        inner = "PQUV"[stage]
        for block in range(count):
            yield _Unit(stage, block, 1, f"{inner} {before} 1 1")
            yield _Unit(stage, block, 2, f"{inner} {inner} 3 3")
            yield _Unit(stage, block, 3, f"4{inner} {inner} 1 1")
            if block == 0:
                yield _Unit(stage, block, 0, f"4{inner} {before} 1 1")
            before = f"4{inner}"


def _torch_unit(unit: _Unit, conv: str, norm: str) -> Iterator[Row]:
    ours_conv, ours_norm = unit.ours
    out = unit.shape.split()[0]
    yield Row(f"{conv}.weight", f"{ours_conv}.kernel", unit.shape, "conv")
    for theirs, ours in (("weight", "scale"), ("bias", "bias"), ("running_mean", "mean"), ("running_var", "var")):
        yield Row(f"{norm}.{theirs}", f"{ours_norm}.{ours}", out)
    yield Row(f"{norm}.num_batches_tracked", "", "", "counter")


def _keras_unit(unit: _Unit, conv: str, norm: str) -> Iterator[Row]:
    ours_conv, ours_norm = unit.ours
    out, into, height, width = unit.shape.split()
    yield Row(f"{conv}/kernel", f"{ours_conv}.kernel", f"{height} {width} {into} {out}")
    yield Row(f"{conv}/bias", f"{ours_conv}.bias", out)
    pairs = (("gamma", "scale"), ("beta", "bias"), ("moving_mean", "mean"), ("moving_variance", "var"))
    for theirs, ours in pairs:
        yield Row(f"{norm}/{theirs}", f"{ours_norm}.{ours}", out)


def _torchvision_names(unit: _Unit) -> tuple[str, str]:
    return unit.named(f"layer{unit.stage + 1}.{unit.block}", ("downsample.0", "downsample.1"))


def _radimagenet_names(unit: _Unit) -> tuple[str, str]:
    """torchvision's children by their number in an `nn.Sequential`: conv1 0, bn1 1, layer1 to layer4 4 to 7."""
    if unit.place < 0:
        return "backbone.0", "backbone.1"
    conv, norm = _torchvision_names(unit)
    stage = f"backbone.{unit.stage + 4}."
    return stage + conv.split(".", 1)[1], stage + norm.split(".", 1)[1]


def _keras_names(unit: _Unit) -> tuple[str, str]:
    name = "conv1" if unit.place < 0 else f"conv{unit.stage + 2}_block{unit.block + 1}_{unit.place}"
    return f"{name}_conv", f"{name}_bn"


def _resnet(
    blocks: Sequence[int],
    names: Callable[[_Unit], tuple[str, str]],
    rows: Callable[[_Unit, str, str], Iterator[Row]],
    ignored: str,
) -> Table:
    return Table(tuple(row for unit in _units(blocks) for row in rows(unit, *names(unit))), (ignored,))


def torchvision_table(blocks: Sequence[int]) -> Table:
    """torchvision's and timm's ResNets of bottlenecks; their classifier `fc` is left out."""
    return _resnet(blocks, _torchvision_names, _torch_unit, r"fc\.(weight|bias)")


def radimagenet_table(blocks: Sequence[int]) -> Table:
    """RadImageNet's `ResNet50.pt`; a classifier that was trained on it is left out."""
    return _resnet(blocks, _radimagenet_names, _torch_unit, r"(fc|classifier|head)(\.[0-9]+)?\.(weight|bias)")


def keras_table(blocks: Sequence[int]) -> Table:
    """`keras.applications` ResNet50, as RadImageNet's `.h5` files; a classifier at its top is left out."""
    return _resnet(blocks, _keras_names, _keras_unit, r"(predictions|probs|fc[0-9]*|dense(_[0-9]+)?)/(kernel|bias)")


def dinov2_backbone(tensors: Mapping[str, np.ndarray]) -> LazyArrays:
    """Our backbone parameters, float32, by path, from a DINOv2 state dict without prefix (`blocks.0.attn.qkv.weight`).

    Raises:
      RunError: the tensors are not exactly those of a DINOv2 backbone; the message lists the whole difference.
    """
    return to_ours(tensors, dinov2_table_of(tensors))


def dino_head(tensors: Mapping[str, np.ndarray]) -> LazyArrays:
    """Our DINO head's parameters, float32, by path, from the published head's state dict without prefix.

    The number of layers and their widths are read off. Either of PyTorch's two forms of weight normalisation will do.

    Raises:
      RunError: the tensors are not exactly those of a head; the message lists how they differ.
    """
    plain = {_WEIGHT_NORM.get(name, name): tensor for name, tensor in tensors.items()}
    if len(plain) != len(tensors):
        raise RunError("its last layer is there in two forms")
    layers = sum(re.fullmatch(r"mlp(\.[0-9]+)?\.weight", name) is not None for name in plain)
    if layers > 9:
        raise RunError(f"it has {layers} layers; 9 at most are known")
    return to_ours(plain, dino_head_table(layers or 3))


def to_dinov2_name(path: str) -> str:
    """The published name of our parameter: "blocks.3.attn.qkv.kernel" -> "blocks.3.attn.qkv.weight".

    Takes paths of the backbone and of the DINO head, both without prefix. Raises KeyError for any other path.
    """
    for row in (*dinov2_table(registers=True, swiglu=True).rows, *_MLP, *dino_head_table(9).rows):
        match = re.fullmatch(re.escape(row.target).replace(r"\{i\}", "([0-9]+)"), path)
        if match:
            return row.sources[0].replace("{i}", match[1]) if match.groups() else row.sources[0]
    raise KeyError(path)
