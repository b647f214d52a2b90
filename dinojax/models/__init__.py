"""Backbones by name, their features, and the directories that hold them."""

import dataclasses

from flax import nnx

from dinojax.errors import UsageError
from dinojax.models.features import Backbone, Features, Preprocessing, normalise, preprocess, to_channels
from dinojax.models.vit import VisionTransformer, ViTArguments

_SIZES = {
    "vitt14": ViTArguments(width=192, depth=12, heads=3),  # ours, for laptops and tests
    "vits14": ViTArguments(width=384, depth=12, heads=6),
    "vitb14": ViTArguments(width=768, depth=12, heads=12),
    "vitl14": ViTArguments(width=1024, depth=24, heads=16),
    "vitg14": ViTArguments(width=1536, depth=40, heads=24, mlp="swiglu"),
}
ARGUMENTS = _SIZES | {f"{name}_reg4": dataclasses.replace(arguments, registers=4) for name, arguments in _SIZES.items()}


def model_names() -> tuple[str, ...]:
    """The names that `create_model` knows."""
    return tuple(ARGUMENTS)


def create_model(name: str, rngs: nnx.Rngs, **overrides: object) -> VisionTransformer:
    """A backbone with random weights and LayerScale 1.0.

    Args:
      name: one of `model_names()`.
      rngs: where the weights are drawn from, `nnx.Rngs(0)`.
      **overrides: fields of `ViTArguments` that differ from the named size, such as `depth=6`.

    Raises:
      UsageError: an unknown name or field, or a size that cannot be.
    """
    return VisionTransformer(name, arguments_of(name, **overrides), rngs)


def arguments_of(name: str, **overrides: object) -> ViTArguments:
    """The arguments of a named size with some of them replaced; raises as `create_model` does."""
    if name not in ARGUMENTS:
        raise UsageError(f"there is no model {name!r}; choose from {', '.join(ARGUMENTS)}")
    known = {field.name for field in dataclasses.fields(ViTArguments)}
    if unknown := sorted(overrides.keys() - known):
        raise UsageError(f"model {name} has no argument {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    arguments = dataclasses.replace(ARGUMENTS[name], **overrides)  # type: ignore[arg-type]
    if arguments.width % arguments.heads:
        raise UsageError(f"model {name}: width {arguments.width} is not a multiple of its {arguments.heads} heads")
    if arguments.image_size % arguments.patch_size or arguments.image_size <= 0:
        raise UsageError(f"model {name}: image_size {arguments.image_size} is not a multiple of {arguments.patch_size}")
    return arguments


__all__ = [
    "ARGUMENTS",
    "Backbone",
    "Features",
    "Preprocessing",
    "ViTArguments",
    "VisionTransformer",
    "arguments_of",
    "create_model",
    "model_names",
    "normalise",
    "preprocess",
    "to_channels",
]
