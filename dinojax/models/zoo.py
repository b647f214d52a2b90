"""Backbones by name: `create_model("vits14", rngs=nnx.Rngs(0))`."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args, overload

from flax import nnx

from dinojax.errors import UsageError
from dinojax.models.resnet import ResNet, ResNetArguments
from dinojax.models.vit import Mlp, VisionTransformer, ViTArguments

Arguments = ViTArguments | ResNetArguments
Model = VisionTransformer | ResNet
ViTName = (
    Literal["vitt14", "vits14", "vitb14", "vitl14", "vitg14"]
    | Literal["vitt14_reg4", "vits14_reg4", "vitb14_reg4", "vitl14_reg4", "vitg14_reg4"]
)
ResNetName = Literal["resnet50", "resnet50_keras"]

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


@overload
def create_model(name: ViTName, rngs: nnx.Rngs, **overrides: object) -> VisionTransformer: ...
@overload
def create_model(name: ResNetName, rngs: nnx.Rngs, **overrides: object) -> ResNet: ...
@overload
def create_model(name: str, rngs: nnx.Rngs, **overrides: object) -> Model: ...
def create_model(name: str, rngs: nnx.Rngs, **overrides: object) -> Model:
    """A backbone with random weights; LayerScale of a ViT is 1.0.

    Args:
      name: one of `model_names()`.
      rngs: where the weights are drawn from, `nnx.Rngs(0)`.
      **overrides: fields of `ViTArguments` or `ResNetArguments` that differ from the named size, such as `depth=6`.

    Raises:
      UsageError: an unknown name or field, or a size that cannot be.
    """
    return build(name, arguments_of(name, **overrides), rngs)


@overload
def build(name: str, arguments: ViTArguments, rngs: nnx.Rngs) -> VisionTransformer: ...
@overload
def build(name: str, arguments: ResNetArguments, rngs: nnx.Rngs) -> ResNet: ...
@overload
def build(name: str, arguments: Arguments, rngs: nnx.Rngs) -> Model: ...
def build(name: str, arguments: Arguments, rngs: nnx.Rngs) -> Model:
    """The module that the arguments are of, with random weights; `name` is kept beside them."""
    if isinstance(arguments, ResNetArguments):
        return ResNet(name, arguments, rngs)
    return VisionTransformer(name, arguments, rngs)


@overload
def arguments_of(name: ViTName, **overrides: object) -> ViTArguments: ...
@overload
def arguments_of(name: ResNetName, **overrides: object) -> ResNetArguments: ...
@overload
def arguments_of(name: str, **overrides: object) -> Arguments: ...
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
    if arguments.registers < 0 or arguments.mlp not in get_args(Mlp):
        raise UsageError(
            f"model {name}: registers {arguments.registers} or mlp {arguments.mlp!r} is none that there is"
        )
    if arguments.width % arguments.heads:
        raise UsageError(f"model {name}: width {arguments.width} is not a multiple of its {arguments.heads} heads")
    if arguments.image_size % arguments.patch_size:
        raise UsageError(f"model {name}: image_size {arguments.image_size} is not a multiple of {arguments.patch_size}")


def _check_resnet(name: str, arguments: ResNetArguments) -> None:
    blocks, filters = arguments.blocks, arguments.filters
    if not blocks or len(blocks) != len(filters):
        raise UsageError(f"model {name}: blocks {list(blocks)} and filters {list(filters)} must be as many")
    for field in ("stem", "channels", "bn_eps", "bn_momentum"):
        _check_positive(name, field, getattr(arguments, field))
    for field, values in (("blocks", blocks), ("filters", filters)):
        _check_positive(name, field, min(values))


def _check_positive(name: str, field: str, value: float) -> None:
    if value <= 0:
        raise UsageError(f"model {name}: {field} is {value}; it must be above 0")
