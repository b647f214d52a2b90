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
    colours = {1: "grey", 3: backbone.preprocessing.order}[backbone.channels]
    return f"{model_name(backbone)} of {origin}: {count:,} parameters; reads {colours} images of {size} pixels"


def _text(value: Any) -> str:
    return "–".join(map(_text, value)) if isinstance(value, tuple) else f"{value}"
