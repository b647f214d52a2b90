"""A backbone in words."""

import dataclasses
from typing import Any

from dinojax import tree
from dinojax.models.preprocessing import Backbone
from dinojax.models.zoo import ARGUMENTS


def model_name(backbone: Backbone) -> str:
    """The named size, and in brackets the arguments that differ from it: `vits14 (depth 6, channels 1)`."""
    form, published = dataclasses.asdict(backbone.arguments), dataclasses.asdict(ARGUMENTS[backbone.name])
    own = ", ".join(f"{name} {_text(value)}" for name, value in form.items() if value != published[name])
    return backbone.name + (f" ({own})" if own else "")


def describe_model(backbone: Backbone, origin: str, size: int) -> str:
    """One line: name, origin, parameters, and the images that it reads.

    Args:
      backbone: what is described.
      origin: a model directory, or `random weights`.
      size: side in pixels of the images that it is given.
    """
    count = sum(array.size for array in tree.weights(backbone).values())
    channels = backbone.channels
    reads = {1: "grey images", 3: f"{backbone.preprocessing.order} images"}.get(
        channels, f"images of {channels} channels"
    )
    reads += f" of {size} pixels" + (" (colour becomes luminance)" if channels == 1 else "")
    return f"{model_name(backbone)} of {origin}: {count:,} parameters; reads {reads}"


def _text(value: Any) -> str:
    return "–".join(map(_text, value)) if isinstance(value, tuple) else f"{value}"
