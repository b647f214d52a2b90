"""Backbones by name: `create_model("vits14", rngs=nnx.Rngs(0))`."""

import dataclasses
from collections.abc import Mapping
from typing import get_args

from flax import nnx

from dinojax.errors import UsageError
from dinojax.models.blocks import Mlp
from dinojax.models.preprocessing import Backbone
from dinojax.models.resnet import ResNet, ResNetArguments
from dinojax.models.vit import VisionTransformer, ViTArguments

Arguments = ViTArguments | ResNetArguments

_VITS = {
    "vitt14": ViTArguments(width=192, depth=12, heads=3),  # ours, for laptops and tests
    "vits14": ViTArguments(width=384, depth=12, heads=6),
    "vitb14": ViTArguments(width=768, depth=12, heads=12),
    "vitl14": ViTArguments(width=1024, depth=24, heads=16),
    "vitg14": ViTArguments(width=1536, depth=40, heads=24, mlp="swiglu"),
}
_RESNETS = {
    "resnet50": ResNetArguments(),
    "resnet50_keras": ResNetArguments(conv_bias=True, stride_first=True, bn_eps=1.001e-5, bn_momentum=0.01),
}
ARGUMENTS: Mapping[str, Arguments] = {
    **_VITS,
    **{f"{name}_reg4": dataclasses.replace(arguments, registers=4) for name, arguments in _VITS.items()},
    **_RESNETS,
}


def model_names() -> tuple[str, ...]:
    """The names that `create_model` knows."""
    return tuple(ARGUMENTS)


def create_model(name: str, rngs: nnx.Rngs, **overrides: object) -> Backbone:
    """A backbone with random weights; a ViT's LayerScale is 1.0.

    Args:
      name: one of `model_names()`.
      rngs: that the weights are drawn from, such as `nnx.Rngs(0)`.
      **overrides: fields of `ViTArguments` or `ResNetArguments` that differ from the named size, such as `depth=6`.

    Raises:
      UsageError: an unknown name or field, or values that do not go together.
    """
    return build(name, arguments_of(name, **overrides), rngs)


def create_transformer(name: str, rngs: nnx.Rngs, **overrides: object) -> VisionTransformer:
    """As `create_model`, where only a vision transformer will do; UsageError for other architectures."""
    if isinstance(ARGUMENTS.get(name), ResNetArguments):
        choices = (known for known, arguments in ARGUMENTS.items() if isinstance(arguments, ViTArguments))
        raise UsageError(f"model {name} is not a vision transformer; choose from {', '.join(choices)}")
    arguments = arguments_of(name, **overrides)
    assert isinstance(arguments, ViTArguments)
    return VisionTransformer(name, arguments, rngs)


def build(name: str, arguments: Arguments, rngs: nnx.Rngs) -> Backbone:
    """The backbone of these arguments, with random weights; `name` is only stored with it."""
    if isinstance(arguments, ResNetArguments):
        return ResNet(name, arguments, rngs)
    return VisionTransformer(name, arguments, rngs)


def arguments_of(name: str, **overrides: object) -> Arguments:
    """The arguments of a named size with some of them replaced; raises as `create_model` does."""
    if name not in ARGUMENTS:
        raise UsageError(f"there is no model {name!r}; choose from {', '.join(ARGUMENTS)}")
    known = {field.name for field in dataclasses.fields(ARGUMENTS[name])}
    if unknown := sorted(overrides.keys() - known):
        raise UsageError(f"model {name} has no argument {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    arguments = dataclasses.replace(ARGUMENTS[name], **overrides)  # type: ignore[arg-type]
    if isinstance(arguments, ResNetArguments):
        _check_resnet(name, arguments)
    else:
        _check_vit(name, arguments)
    return arguments


def _check_vit(name: str, arguments: ViTArguments) -> None:
    for field in ("width", "depth", "heads", "image_size", "patch_size", "channels"):
        _check_positive(name, field, getattr(arguments, field))
    if arguments.registers < 0:
        raise UsageError(f"model {name}: registers is {arguments.registers}; it must be 0 or above")
    if arguments.mlp not in get_args(Mlp):
        raise UsageError(f"model {name}: mlp is {arguments.mlp!r}; choose from {', '.join(get_args(Mlp))}")
    if arguments.width % arguments.heads:
        raise UsageError(f"model {name}: width {arguments.width} is not a multiple of its {arguments.heads} heads")
    if arguments.image_size % arguments.patch_size:
        raise UsageError(f"model {name}: image_size {arguments.image_size} is not a multiple of {arguments.patch_size}")


def _check_resnet(name: str, arguments: ResNetArguments) -> None:
    blocks, filters = arguments.blocks, arguments.filters
    if not blocks or len(blocks) != len(filters):
        raise UsageError(f"model {name}: blocks {list(blocks)} and filters {list(filters)} must be equally long")
    for field in ("stem", "channels", "bn_eps", "bn_momentum"):
        _check_positive(name, field, getattr(arguments, field))
    for field, values in (("blocks", blocks), ("filters", filters)):
        _check_positive(name, field, min(values))


def _check_positive(name: str, field: str, value: float) -> None:
    if value <= 0:
        raise UsageError(f"model {name}: {field} is {value}; it must be above 0")
