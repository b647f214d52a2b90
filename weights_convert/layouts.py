"""Recognises which model the tensors of a file are, and turns them into that model's name, arguments and parameters."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from dinojax import tree
from dinojax.errors import RunError, UsageError
from dinojax.models import ARGUMENTS, Arguments, Preprocessing, ViTArguments, arguments_of, build
from dinojax.models.features import imagenet_preprocessing
from dinojax.models.store import LazyArrays
from weights_convert import huggingface, tables
from weights_convert.mapping import Table, to_ours
from weights_convert.readers import Source

Tensors = Mapping[str, np.ndarray]

_PATCH_SIZE = 14
_PATCH_EMBED = "patch_embed.proj.weight"  # in every DINOv2 backbone, and in nothing else that is read here
_HF_PATCH_EMBED = "embeddings.patch_embeddings.projection.weight"
_ROOTS = ("", "model.")  # of training checkpoints
_HF_PREFIXES = ("", "dinov2.", "dinov2_with_registers.")
# Beside the student and the teacher, in checkpoints of DINOv2's training code.
_BESIDE = r"(optimizers?|optimizer_states|(lr_)?schedulers?|scaler|loops|callbacks)\."  # what training frameworks save
_OF_TRAINING = r"(optimizer|scheduler|iteration|scaler)(\..*)?|(model\.)?(dino_loss|ibot_patch_loss|koleo_loss)\..*"

_IMAGENET = Preprocessing()
# RadImageNet's scripts, doi 10.1148/ryai.210315: Keras' caffe mode, then divided by 255; its PyTorch notebook.
_CAFFE_MEAN = (103.939 / 255, 116.779 / 255, 123.68 / 255)
_RADIMAGENET_KERAS = Preprocessing(size=256, mean=_CAFFE_MEAN, std=(1.0, 1.0, 1.0), order="BGR")
_RADIMAGENET_PYTORCH = Preprocessing(size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
# keras.applications' own ImageNet weights are of the caffe mode, in grey levels. Without the classifier nothing in the
# file tells them from RadImageNet's but the digest that Keras states (keras/src/applications/resnet.py).
_IMAGENET_KERAS_MD5 = "4d473c1dd8becc155b73f8504c6f6626"
_IMAGENET_KERAS = Preprocessing(size=224, mean=_CAFFE_MEAN, std=(1 / 255,) * 3, order="BGR")


PUBLISHED_HEADS = {known.width: known.heads for known in ARGUMENTS.values() if isinstance(known, ViTArguments)}
"""Attention heads that a width tells."""


def usual_preprocessing(arguments: Arguments) -> Preprocessing:
    """What is taken for the preprocessing where nothing tells it; of DINOv2, 224 pixels, though its positional
    embeddings are those of 518."""
    size = min(224, arguments.image_size) if isinstance(arguments, ViTArguments) else 224
    return imagenet_preprocessing(arguments.channels, size)


@dataclasses.dataclass(frozen=True)
class Converted:
    """A checkpoint as a model directory holds it."""

    layout: str
    """`dinov2`, `dinov2_teacher`, `dinov2_training_teacher`, `dinov2_training_student`, `hf`, `timm`, `torchvision`,
    `radimagenet`, `keras` or `dinov2_linear_head`."""
    name: str
    """The named size that the arguments are nearest to; empty where there is no backbone."""
    arguments: Arguments | None
    """None where there is no backbone."""
    params: LazyArrays
    heads: dict[str, LazyArrays]
    """Heads that the file holds, by name: `dino_head` and `ibot_head`, or `linear_head` alone."""
    preprocessing: Preprocessing
    ignored: tuple[str, ...] = ()
    """What the file holds besides and is left out: names, or `optimizer.* (12 tensors)` where there are many."""
    zeros: tuple[str, ...] = ()
    """Parameters that the layout has no place for."""


def recognise_source(
    source: Source, heads: int | None = None, part: Literal["teacher", "student"] = "teacher"
) -> Converted:
    """As `recognise`, of all that was read."""
    converted = recognise(source.tensors, heads, source.config, part)
    if converted.layout == "keras" and source.md5() == _IMAGENET_KERAS_MD5:
        return dataclasses.replace(converted, preprocessing=_IMAGENET_KERAS)
    return converted


def recognise(
    tensors: Tensors,
    heads: int | None = None,
    config: Mapping[str, Any] | None = None,
    part: Literal["teacher", "student"] = "teacher",
) -> Converted:
    """Converts the tensors of a file of any known layout.

    Args:
      tensors: as `readers.read` names them.
      heads: number of attention heads; needed where neither `config` nor a published width tells it.
      config: of a Hugging Face folder, as `readers.read_file` gives it.
      part: which of its two models to take from a checkpoint of DINOv2's training.

    Raises:
      UsageError: `heads` is needed or wrong, or the file has no student.
      RunError: the tensors or the configuration are not those of a known model; the message lists the whole difference.
    """
    inner, beside = _unwrapped(tensors)
    converted = _recognise(inner, heads, config or {}, part)
    return dataclasses.replace(converted, ignored=(*converted.ignored, *_grouped(beside)))


def _recognise(tensors: Tensors, heads: int | None, config: Mapping[str, Any], part: str) -> Converted:
    """As `recognise`, once nothing stands before the names."""
    roots = [root for root in _ROOTS if f"{root}{part}.backbone.{_PATCH_EMBED}" in tensors]
    if roots:
        return _training_checkpoint(tensors, roots[0], part, heads)
    if part == "student":
        raise UsageError("the file has no student: only training checkpoints have one (model_N.rank_0.pth)")
    if hf := [prefix for prefix in _HF_PREFIXES if prefix + _HF_PATCH_EMBED in tensors]:
        return _huggingface(tensors, hf[0], heads, config)
    if _PATCH_EMBED in tensors:
        without_mask = not ({"mask_token", "register_tokens", "blocks.0.mlp.w12.weight"} & tensors.keys())
        if without_mask or "reg_token" in tensors:
            heads = _agreed(heads, huggingface.timm_heads_of(config))
            return _vit("timm", tensors, heads, config)
        return _vit("dinov2", _unchunk(tensors), heads, config)
    for known in _RESNETS:
        if known.mark in tensors:
            if heads is not None:
                raise UsageError("a ResNet has no attention heads; leave out --heads")
            huggingface.check_timm_resnet(config)
            return _resnet(known, tensors, config)
    if tensors.keys() == {"weight", "bias"} and tensors["weight"].ndim == 2:
        head = to_ours(tensors, tables.LINEAR_HEAD)
        return Converted("dinov2_linear_head", "", None, LazyArrays({}), {"linear_head": head}, _IMAGENET)
    names = [name or "one without a name" for name in tensors]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    told = f"no DINOv2, timm, Hugging Face, torchvision or Keras model; it holds {len(names)} tensors: {shown}"
    for name in names:
        if any(name.endswith(f".{mark}") for mark in _MARKS):
            told += f"; {name} is one of a known model: save the part that it belongs to alone, without other parts"
            break
    raise RunError(told)


def _unwrapped(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """The model's tensors without what wrappers put before all names (`state_dict.`, `module.`), and the names of those
    that a training run has put beside it. All as they are, where that leaves no known model."""
    if any(mark in tensors for mark in _MARKS):
        return tensors, []
    beside = [name for name in tensors if re.match(_BESIDE, name)]
    inner = {name: array for name, array in tensors.items() if not re.match(_BESIDE, name)}
    while not any(mark in inner for mark in _MARKS):
        if len({name.partition(".")[0] for name in inner}) != 1 or not all("." in name for name in inner):
            return tensors, []
        inner = {name.partition(".")[2]: array for name, array in inner.items()}
    return inner, beside


def linear_head_fits(converted: Converted, width: int, depth: int) -> int:
    """How many blocks' class tokens a published linear head reads: 1 or 4, each followed by the last mean patch.

    Args:
      converted: of layout `dinov2_linear_head`.
      width: of the backbone that the head shall be put on.
      depth: of the same.

    Raises:
      RunError: it is no linear head, or one for another width or a greater depth.
    """
    if "linear_head" not in converted.heads:
        raise RunError(f"holds no linear head, but a model in the layout {converted.layout}")
    inputs = converted.heads["linear_head"].shapes["kernel"][0]
    for blocks in (1, 4):
        if inputs == (blocks + 1) * width and blocks <= depth:
            return blocks
    raise RunError(
        f"the linear head reads {inputs} features, which is neither 2 nor 5 times the backbone's width, {width}, or of "
        f"more blocks than its {depth}"
    )


def _training_checkpoint(tensors: Tensors, root: str, part: str, heads: int | None) -> Converted:
    """One model of a checkpoint that DINOv2's training wrote, with its projection heads; nothing may be left over."""
    names = ("backbone", "dino_head", "ibot_head")
    inside = {name: tree.subtree(f"{root}{part}.{name}", tensors) for name in names}
    used = {f"{root}{part}.{name}.{tensor}" for name, of in inside.items() for tensor in of}
    other = f"{root}{'student' if part == 'teacher' else 'teacher'}."
    left_out = [name for name in tensors if name.startswith(other) or re.fullmatch(_OF_TRAINING, name)]
    known = used.union(left_out)
    if unknown := [name for name in tensors if name not in known]:
        raise RunError(f"a {part} checkpoint with unexpected tensors ({len(unknown)}): {', '.join(unknown)}")
    whole = root or any(name.startswith("student.") for name in tensors)
    layout = f"dinov2_training_{part}" if whole else f"dinov2_{part}"
    backbone = _within("backbone", _unchunk, inside.pop("backbone"))
    converted = _within("backbone", lambda tensors: _vit(layout, tensors, heads, {}), backbone)
    projections = {name: _within(name, tables.dino_head, head) for name, head in inside.items() if head}
    return dataclasses.replace(converted, heads=projections, ignored=_grouped(left_out))


def _unchunk(tensors: Tensors) -> dict[str, np.ndarray]:
    """`blocks.CHUNK.i.` becomes `blocks.i.`: trained in chunks, blocks keep their own number inside them."""
    plain = {re.sub(r"^blocks\.[0-9]+\.([0-9]+)\.", r"blocks.\1.", name): array for name, array in tensors.items()}
    if len(plain) != len(tensors):
        raise RunError("its chunks hold the same block twice")
    return plain


def _huggingface(tensors: Tensors, prefix: str, heads: int | None, config: Mapping[str, Any]) -> Converted:
    plain = {name.removeprefix(prefix): array for name, array in tensors.items()}
    if len(plain) != len(tensors):
        raise RunError(f"holds the same tensor twice, with the prefix {prefix} and without")
    converted = _vit("hf", plain, _agreed(heads, huggingface.heads_of(config)), config)
    assert isinstance(converted.arguments, ViTArguments)
    huggingface.check(config, converted.arguments)
    return converted


def _agreed(heads: int | None, told: int | None) -> int | None:
    """The number of attention heads that the user or a configuration gives."""
    if None not in (heads, told) and heads != told:
        raise UsageError(f"config.json says {told} attention heads, --heads {heads}; leave out --heads")
    return told or heads


def _vit(layout: str, tensors: Tensors, heads: int | None, config: Mapping[str, Any]) -> Converted:
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
    return tables.dinov2_table("register_tokens" in tensors, any(name.endswith(".mlp.w12.weight") for name in tensors))


def _vit_arguments(shapes: Mapping[str, tuple[int, ...]], heads: int | None) -> tuple[str, ViTArguments]:
    """The arguments that the parameters tell, and the named size nearest to them."""
    width, positions = shapes["cls_token"][2], shapes["pos_embed"][1]
    side = math.isqrt(max(positions - 1, 0))
    if side == 0 or side**2 != positions - 1:
        raise RunError(f"pos_embed has {positions} positions, which are not a class token and a square of patches")
    sizes = {name: known for name, known in ARGUMENTS.items() if isinstance(known, ViTArguments)}
    if heads is None and width not in PUBLISHED_HEADS:
        raise UsageError(f"the width, {width}, does not tell the number of attention heads; add --heads N")
    told = {
        "width": width,
        "depth": 1 + max(int(path.split(".")[1]) for path in shapes if path.startswith("blocks.")),
        "heads": heads or PUBLISHED_HEADS[width],
        "registers": shapes["register_tokens"][1] if "register_tokens" in shapes else 0,
        "mlp": "swiglu" if "blocks.0.mlp.w12.kernel" in shapes else "gelu",
        "channels": shapes["patch_embed.proj.kernel"][2],
        "image_size": side * _PATCH_SIZE,
    }

    def distance(name: str) -> tuple[int, int]:
        known = sizes[name]
        return sum(getattr(known, key) != value for key, value in told.items()), abs(known.width - width)

    name = min(sizes, key=distance)
    arguments = arguments_of(name, **told)
    assert isinstance(arguments, ViTArguments)
    return name, arguments


@dataclasses.dataclass(frozen=True)
class _ResNetLayout:
    """How a layout of ResNets is told and read."""

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


_RESNETS = (
    _ResNetLayout(
        "torchvision",
        "layer1.0.conv1.weight",
        r"layer([1-4])\.([0-9]+)\..*",
        "1234",
        tables.torchvision_table,
        "resnet50",
        _IMAGENET,
    ),
    _ResNetLayout(
        "radimagenet",
        "backbone.4.0.conv1.weight",
        r"backbone\.([4-7])\.([0-9]+)\..*",
        "4567",
        tables.radimagenet_table,
        "resnet50",
        _RADIMAGENET_PYTORCH,
    ),
    _ResNetLayout(
        "keras",
        "conv2_block1_1_conv/kernel",
        r"conv([2-5])_block([0-9]+)_.*",
        "2345",
        tables.keras_table,
        "resnet50_keras",
        _RADIMAGENET_KERAS,
    ),
)


def _resnet(known: _ResNetLayout, tensors: Tensors, config: Mapping[str, Any]) -> Converted:
    found = {match.groups() for name in tensors if (match := re.fullmatch(known.blocks, name))}
    # A stage without blocks is looked for all the same, so that it is listed as missing.
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
        preprocessing = _IMAGENET_KERAS
    if channels != 3:
        mean, std = ((float(np.mean(values)),) * channels for values in (preprocessing.mean, preprocessing.std))
        preprocessing = dataclasses.replace(preprocessing, mean=mean, std=std, order="RGB")
    preprocessing = huggingface.preprocessing_of(config, preprocessing)
    ignored = tuple(name for name in tensors if table.ignores(name))
    return Converted(known.layout, known.name, arguments, params, {}, preprocessing, ignored)


# One of these names is in every file with a backbone.
_MARKS = (
    *(known.mark for known in _RESNETS),
    *(prefix + _HF_PATCH_EMBED for prefix in _HF_PREFIXES),
    *(f"{root}{part}.backbone.{_PATCH_EMBED}" for root in _ROOTS for part in ("teacher", "student")),
    _PATCH_EMBED,
)


def check_model(name: str, arguments: Arguments, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Asserts that parameters of these shapes are those of the model that they are taken for.

    Raises:
      RunError: they are not; the message names `what` and lists the whole difference.
    """
    _, params = tree.split(nnx.eval_shape(lambda: build(name, _shallow(arguments), nnx.Rngs(0))))
    expected = {other: leaf for path, leaf in params.items() for other in _alike(path, arguments)}
    tree.check(expected, {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}, what)


def _shallow(arguments: Arguments) -> Arguments:
    """Of a model with no more blocks than there are kinds: building one takes its time."""
    if isinstance(arguments, ViTArguments):
        return dataclasses.replace(arguments, depth=1)
    return dataclasses.replace(arguments, blocks=tuple(min(count, 2) for count in arguments.blocks))


def _alike(path: str, arguments: Arguments) -> list[str]:
    """A parameter's path in the shallow model, and those of the further blocks that are like its own."""
    if isinstance(arguments, ViTArguments):
        return [re.sub(r"^blocks\.0\.", f"blocks.{i}.", path) for i in range(arguments.depth)]
    if match := re.fullmatch(r"layers\.([0-9]+)\.1\.(.*)", path):
        return [f"layers.{match[1]}.{k}.{match[2]}" for k in range(1, arguments.blocks[int(match[1])])]
    return [path]


def _within(part: str, convert: Callable[[Any], Any], tensors: Tensors) -> Any:
    try:
        return convert(tensors)
    except RunError as error:
        raise type(error)(f"the {part}: {error}") from None


def _grouped(names: list[str]) -> tuple[str, ...]:
    """`model.student.backbone.norm.bias` and its kind as `model.student.* (N tensors)`."""
    groups: dict[str, int] = {}
    for name in names:
        group = ".".join(name.split(".")[: 2 if name.startswith("model.") else 1])
        groups[group] = groups.get(group, 0) + 1
    return tuple(f"{group}.* ({count} tensors)" for group, count in groups.items())
