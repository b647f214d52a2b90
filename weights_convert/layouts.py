"""Recognises which layout the tensors of a file are in, and takes the backbone and the heads out of it."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from dinojax import tree
from dinojax.errors import RunError, UsageError, first_of
from dinojax.models import ViTArguments
from dinojax.models.arrays import LazyArrays
from weights_convert import huggingface, tables
from weights_convert.backbones import IMAGENET, IMAGENET_KERAS, RESNETS, Converted, Tensors, resnet, vit
from weights_convert.mapping import to_ours
from weights_convert.others import known_model
from weights_convert.readers import Source

_PATCH_EMBED = "patch_embed.proj.weight"  # in every DINOv2 backbone, and in nothing else that is read here
_HF_PATCH_EMBED = "embeddings.patch_embeddings.projection.weight"
_ROOTS = ("", "model.")  # of training checkpoints
_HF_PREFIXES = ("", "dinov2.", "dinov2_with_registers.")
# Projection heads alone: a prefix of all names, and what the head is called in a model directory.
_HEAD_PREFIXES = {"": "dino_head", "dino_head.": "dino_head", "head.": "dino_head", "ibot_head.": "ibot_head"}
# What training frameworks save beside a model, and DINOv2's own code beside the student and the teacher.
_BESIDE = r"(optimizers?|optimizer_states|(lr_)?schedulers?|scaler|iteration|loops|callbacks)(\..*)?"
# Modules that PyTorch puts around others, at any depth: torch.compile, FSDP, activation checkpointing.
_WRAPPERS = r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
_LOSSES = r"(model\.)?(dino_loss|ibot_patch_loss|koleo_loss)\..*"
# One of these names is in every file with a backbone.
_MARKS = (
    *(known.mark for known in RESNETS),
    *(prefix + _HF_PATCH_EMBED for prefix in _HF_PREFIXES),
    *(f"{root}{part}.backbone.{_PATCH_EMBED}" for root in _ROOTS for part in ("teacher", "student")),
    _PATCH_EMBED,
)
# Keras' own ImageNet file without the classifier differs from RadImageNet's in nothing but the digest that Keras
# states (keras/src/applications/resnet.py).
_IMAGENET_KERAS_MD5 = "4d473c1dd8becc155b73f8504c6f6626"


def recognise_source(
    source: Source, heads: int | None = None, part: Literal["teacher", "student"] = "teacher"
) -> Converted:
    """As `recognise`, of a file or folder."""
    converted = recognise(source.tensors, heads, source.config, part)
    if converted.layout == "keras" and source.md5() == _IMAGENET_KERAS_MD5:
        return dataclasses.replace(converted, preprocessing=IMAGENET_KERAS)
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
      heads: number of attention heads; needed where neither `config` nor a published model of this width gives it.
      config: of a Hugging Face folder, as `readers.read_file` gives it.
      part: which of its two models to take from a checkpoint of DINOv2's training.

    Raises:
      UsageError: `heads` is needed or wrong, or the file has no student.
      RunError: the tensors or the configuration are not those of a known model; the message says which other model
        they are of, where the names tell, and how they differ.
    """
    inner, beside = _unwrapped(_without_wrappers(tensors))
    try:
        converted = _recognise(inner, heads, config or {}, part)
    except UsageError:
        raise
    except RunError as error:
        other = known_model(inner, config or {})
        raise RunError(f"seems to be {other}; that is not read here: {error}" if other else str(error)) from None
    return dataclasses.replace(converted, ignored=(*converted.ignored, *_grouped(beside)))


def _recognise(tensors: Tensors, heads: int | None, config: Mapping[str, Any], part: str) -> Converted:
    """As `recognise`, of names without the prefixes of wrappers."""
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
            return vit("timm", tensors, heads, config)
        return vit("dinov2", _unchunk(tensors), heads, config)
    for known in RESNETS:
        if known.mark in tensors:
            if heads is not None:
                raise UsageError("a ResNet has no attention heads; leave out --heads")
            huggingface.check_timm_resnet(config)
            return resnet(known, tensors, config)
    for prefix, name in _HEAD_PREFIXES.items():
        inside = {of.removeprefix(prefix): array for of, array in tensors.items() if of.startswith(prefix)}
        if len(inside) == len(tensors) and tables.is_dino_head(inside):
            return Converted(f"dinov2_{name}", "", None, LazyArrays({}), {name: tables.dino_head(inside)}, IMAGENET)
    if tensors.keys() == {"weight", "bias"} and tensors["weight"].ndim == 2:
        head = to_ours(tensors, tables.LINEAR_HEAD)
        return Converted("dinov2_linear_head", "", None, LazyArrays({}), {"linear_head": head}, IMAGENET)
    names = [name or "one without a name" for name in tensors]
    message = "no DINOv2, timm, Hugging Face, torchvision or Keras model; "
    message += f"it holds {len(names)} tensors: {first_of(names, 100)}"
    for name in names:
        if any(name.endswith(f".{mark}") for mark in _MARKS):
            message += f"; {name} is part of a known model: save the state dict that it is in by itself"
            break
    raise RunError(message)


def _without_wrappers(tensors: Tensors) -> Tensors:
    """The tensors without the names of `_WRAPPERS`: `blocks.0._orig_mod.ls1.gamma` becomes `blocks.0.ls1.gamma`."""
    plain = {re.sub(_WRAPPERS, "", name): array for name, array in tensors.items()}
    if len(plain) != len(tensors):
        raise RunError("holds the same tensor twice, inside a wrapper such as _orig_mod and outside")
    return plain


def _unwrapped(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """The model's tensors without the prefixes of wrappers (`state_dict.`, `module.`), and the names of what training
    saved beside it. Unchanged, if that leaves no known model."""
    if any(mark in tensors for mark in _MARKS):
        return tensors, []
    beside = [name for name in tensors if re.fullmatch(_BESIDE, name)]
    inner = {name: array for name, array in tensors.items() if not re.fullmatch(_BESIDE, name)}
    while not any(mark in inner for mark in _MARKS):
        if len({name.partition(".")[0] for name in inner}) != 1 or not all("." in name for name in inner):
            return tensors, []
        inner = {name.partition(".")[2]: array for name, array in inner.items()}
    return inner, beside


def linear_head_fits(converted: Converted, width: int, depth: int) -> int:
    """How many blocks' class tokens a published linear head reads: 1 or 4, each followed by the last mean patch.

    Args:
      converted: of layout `dinov2_linear_head`.
      width: of the head's backbone.
      depth: its number of blocks.

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
        f"the linear head reads {inputs} features; one for this backbone of width {width} with {depth} blocks reads "
        f"{2 * width}, or {5 * width} where there are 4 blocks or more"
    )


def projection_head_fits(head: LazyArrays, width: int) -> None:
    """Checks that a projection head, as `Converted.heads` has it, reads the features of a backbone of this width.

    Raises:
      RunError: it reads others.
    """
    first = "mlp.0.kernel"
    if head.shapes[first][0] != width:
        raise RunError(f"the projection head reads {head.shapes[first][0]} features, the backbone's width is {width}")


def _training_checkpoint(tensors: Tensors, root: str, part: str, heads: int | None) -> Converted:
    """One model of a checkpoint that DINOv2's training wrote, with its projection heads; nothing may be left over."""
    names = ("backbone", "dino_head", "ibot_head")
    inside = {name: tree.subtree(f"{root}{part}.{name}", tensors) for name in names}
    used = {f"{root}{part}.{name}.{tensor}" for name, of in inside.items() for tensor in of}
    other = f"{root}{'student' if part == 'teacher' else 'teacher'}."
    left_out = [name for name in tensors if name.startswith(other) or re.fullmatch(f"{_BESIDE}|{_LOSSES}", name)]
    known = used.union(left_out)
    if unknown := [name for name in tensors if name not in known]:
        raise RunError(f"a {part} checkpoint with unexpected tensors ({len(unknown)}): {first_of(unknown)}")
    whole = root or any(name.startswith("student.") for name in tensors)
    layout = f"dinov2_training_{part}" if whole else f"dinov2_{part}"
    backbone = _within("backbone", _unchunk, inside.pop("backbone"))
    converted = _within("backbone", lambda tensors: vit(layout, tensors, heads, {}), backbone)
    projections = {name: _within(name, tables.dino_head, head) for name, head in inside.items() if head}
    classifier = (f"{part}.backbone.{name}" for name in converted.ignored)
    return dataclasses.replace(converted, heads=projections, ignored=(*classifier, *_grouped(left_out)))


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
    converted = vit("hf", plain, _agreed(heads, huggingface.heads_of(config)), config)
    assert isinstance(converted.arguments, ViTArguments)
    huggingface.check(config, converted.arguments)
    return converted


def _agreed(heads: int | None, configured: int | None) -> int | None:
    """The number of attention heads that the user or a configuration gives."""
    if None not in (heads, configured) and heads != configured:
        raise UsageError(f"config.json says {configured} attention heads, --heads {heads}; leave out --heads")
    return configured or heads


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
