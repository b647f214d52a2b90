"""Turns the tensors of a backbone, once its layout is known, into a named size, arguments and parameters."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from dinojax import tree
from dinojax.errors import RunError, UsageError
from dinojax.models import ARGUMENTS, Arguments, Preprocessing, ViTArguments, arguments_of, build
from dinojax.models.arrays import LazyArrays
from dinojax.models.preprocessing import imagenet_preprocessing
from weights_convert import huggingface, tables
from weights_convert.mapping import Table, to_ours

Tensors = Mapping[str, np.ndarray]

IMAGENET = Preprocessing()
# RadImageNet's scripts, doi 10.1148/ryai.210315: Keras' caffe mode, then divided by 255; its PyTorch notebook.
_CAFFE_MEAN = (103.939 / 255, 116.779 / 255, 123.68 / 255)
_RADIMAGENET_KERAS = Preprocessing(size=256, mean=_CAFFE_MEAN, std=(1.0, 1.0, 1.0), order="BGR")
_RADIMAGENET_PYTORCH = Preprocessing(size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
# keras.applications' own ImageNet weights are of the caffe mode, in grey levels.
IMAGENET_KERAS = Preprocessing(size=224, mean=_CAFFE_MEAN, std=(1 / 255,) * 3, order="BGR")

PUBLISHED_HEADS = {known.width: known.heads for known in ARGUMENTS.values() if isinstance(known, ViTArguments)}
"""Attention heads of the published model of a width."""


def usual_preprocessing(arguments: Arguments) -> Preprocessing:
    """The preprocessing to assume where the file gives none; of DINOv2, 224 pixels, though its positional embeddings
    are those of 518."""
    size = min(224, arguments.image_size) if isinstance(arguments, ViTArguments) else 224
    return imagenet_preprocessing(arguments.channels, size)


@dataclasses.dataclass(frozen=True)
class Converted:
    """A checkpoint as a model directory holds it."""

    layout: str
    """`dinov2`, `dinov2_teacher`, `dinov2_training_teacher`, `dinov2_training_student`, `hf`, `timm`, `torchvision`,
    `radimagenet`, `keras`, `dinov2_linear_head` or `dinov2_dino_head`."""
    name: str
    """The named size that the arguments are nearest to; empty where there is no backbone."""
    arguments: Arguments | None
    """None where there is no backbone."""
    params: LazyArrays
    heads: dict[str, LazyArrays]
    """Heads that the file holds, by name: `dino_head` and `ibot_head`, or one head alone."""
    preprocessing: Preprocessing
    ignored: tuple[str, ...] = ()
    """What else the file holds and is left out: names, or `optimizer.* (12 tensors)` where there are many."""
    zeros: tuple[str, ...] = ()
    """Parameters that the layout has no place for, and that are therefore zero."""


def vit(layout: str, tensors: Tensors, heads: int | None, config: Mapping[str, Any]) -> Converted:
    """A vision transformer whose names have no prefix and no chunks."""
    table = _vit_table(layout, tensors, config)
    params = to_ours(tensors, table)
    name, arguments = _vit_arguments(params.shapes, heads)
    check_model(name, arguments, params.shapes, "the backbone")
    preprocessing = huggingface.preprocessing_of(config, usual_preprocessing(arguments))
    ignored = tuple(name for name in tensors if table.ignores(name))
    return Converted(layout, name, arguments, params, {}, preprocessing, ignored, table.lost)


def _vit_table(layout: str, tensors: Tensors, config: Mapping[str, Any]) -> Table:
    if layout == "hf":
        swiglu = any(name.endswith((".mlp.weights_in.weight", ".mlp.gate_proj.weight")) for name in tensors)
        renamed = any(name.endswith(".attention.q_proj.weight") for name in tensors)
        mask_token = "embeddings.mask_token" in tensors or config.get("use_mask_token") is not False
        return tables.hf_table("embeddings.register_tokens" in tensors, swiglu, mask_token, renamed)
    if layout == "timm":
        fc1, fc2 = (tensors.get(f"blocks.0.mlp.{layer}.weight") for layer in ("fc1", "fc2"))
        # Of SwiGLU's two layers the first is twice as wide as the second reads.
        swiglu = fc1 is not None and fc2 is not None and fc2.ndim == 2 and fc1.shape[:1] == (2 * fc2.shape[1],)
        return tables.timm_table("reg_token" in tensors, swiglu)
    if layout.startswith("dinov2"):
        return tables.dinov2_table_of(tensors)
    raise ValueError(f"there is no table for the layout {layout!r} of vision transformers")


def _vit_arguments(shapes: Mapping[str, tuple[int, ...]], heads: int | None) -> tuple[str, ViTArguments]:
    """The arguments that follow from the parameters, and the named size nearest to them."""
    width, positions = shapes["cls_token"][2], shapes["pos_embed"][1]
    patch, _, channels, _ = shapes["patch_embed.proj.kernel"]
    side = math.isqrt(max(positions - 1, 0))
    if side == 0 or side**2 != positions - 1:
        raise RunError(f"pos_embed has {positions} positions, which are not a class token and a square of patches")
    sizes = {name: known for name, known in ARGUMENTS.items() if isinstance(known, ViTArguments)}
    if heads is None and width not in PUBLISHED_HEADS:
        raise UsageError(f"the width, {width}, does not tell the number of attention heads; add --heads N")
    given = {
        "width": width,
        "depth": 1 + max(int(path.split(".")[1]) for path in shapes if path.startswith("blocks.")),
        "heads": heads or PUBLISHED_HEADS[width],
        "registers": shapes["register_tokens"][1] if "register_tokens" in shapes else 0,
        "mlp": "swiglu" if "blocks.0.mlp.w12.kernel" in shapes else "gelu",
        "patch_size": patch,
        "channels": channels,
        "image_size": side * patch,
    }

    def distance(name: str) -> tuple[int, int]:
        known = sizes[name]
        return sum(getattr(known, key) != value for key, value in given.items()), abs(known.width - width)

    name = min(sizes, key=distance)
    arguments = arguments_of(name, **given)
    assert isinstance(arguments, ViTArguments)
    return name, arguments


@dataclasses.dataclass(frozen=True)
class ResNetLayout:
    """How a layout of ResNets is recognised and read."""

    layout: str
    mark: str
    """A tensor that only this layout has."""
    blocks: str
    """Names of blocks: the number of the stage and that of the block."""
    stages: str
    """The numbers of the stages."""
    table: Callable[[Sequence[int]], Table]
    name: str
    preprocessing: Preprocessing


RESNETS = (
    ResNetLayout(
        "torchvision",
        "layer1.0.conv1.weight",
        r"layer([1-4])\.([0-9]+)\..*",
        "1234",
        tables.torchvision_table,
        "resnet50",
        IMAGENET,
    ),
    ResNetLayout(
        "radimagenet",
        "backbone.4.0.conv1.weight",
        r"backbone\.([4-7])\.([0-9]+)\..*",
        "4567",
        tables.radimagenet_table,
        "resnet50",
        _RADIMAGENET_PYTORCH,
    ),
    ResNetLayout(
        "keras",
        "conv2_block1_1_conv/kernel",
        r"conv([2-5])_block([0-9]+)_.*",
        "2345",
        tables.keras_table,
        "resnet50_keras",
        _RADIMAGENET_KERAS,
    ),
)


def resnet(known: ResNetLayout, tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    found = {match.groups() for name in tensors if (match := re.fullmatch(known.blocks, name))}
    # At least one block a stage is expected, so that those of an absent stage are listed as missing.
    blocks = tuple(max(sum(stage == of for of, _ in found), 1) for stage in known.stages)
    table = known.table(blocks)
    params = to_ours(tensors, table)
    filters = tuple(params.shapes[f"layers.{i}.0.conv1.kernel"][3] for i in range(len(blocks)))
    _, _, channels, stem = params.shapes["conv1.kernel"]
    arguments = arguments_of(known.name, blocks=blocks, filters=filters, stem=stem, channels=channels)
    check_model(known.name, arguments, params.shapes, "the backbone")
    preprocessing = known.preprocessing
    top = tensors.get("predictions/kernel")
    if known.layout == "keras" and top is not None and top.shape[1:] == (1000,):
        preprocessing = IMAGENET_KERAS
    if channels != 3:
        mean, std = ((float(np.mean(values)),) * channels for values in (preprocessing.mean, preprocessing.std))
        preprocessing = dataclasses.replace(preprocessing, mean=mean, std=std, order="RGB")
    preprocessing = huggingface.preprocessing_of(config, preprocessing)
    ignored = tuple(name for name in tensors if table.ignores(name))
    return Converted(known.layout, known.name, arguments, params, {}, preprocessing, ignored)


def check_model(name: str, arguments: Arguments, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Checks that parameters of these shapes are those of a model.

    Raises:
      RunError: they are not; the message names `what` and lists the whole difference.
    """
    _, params = tree.split(nnx.eval_shape(lambda: build(name, _shallow(arguments), nnx.Rngs(0))))
    expected = {other: leaf for path, leaf in params.items() for other in _alike(path, arguments)}
    tree.check(expected, {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}, what)


def _shallow(arguments: Arguments) -> Arguments:
    """The arguments of a model with one block of each kind, which is built faster."""
    if isinstance(arguments, ViTArguments):
        return dataclasses.replace(arguments, depth=1)
    return dataclasses.replace(arguments, blocks=tuple(min(count, 2) for count in arguments.blocks))


def _alike(path: str, arguments: Arguments) -> list[str]:
    """The paths of a parameter of the shallow model in all blocks of its kind."""
    if isinstance(arguments, ViTArguments):
        return [re.sub(r"^blocks\.0\.", f"blocks.{i}.", path) for i in range(arguments.depth)]
    if match := re.fullmatch(r"layers\.([0-9]+)\.1\.(.*)", path):
        return [f"layers.{match[1]}.{k}.{match[2]}" for k in range(1, arguments.blocks[int(match[1])])]
    return [path]
