"""Configuration of a backbone with random weights."""

import dataclasses
from typing import Literal

from dinojax.config.bounds import PositiveInt


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The backbone of a run without `init`; a number overrides that of the named size."""

    name: str = "vits14"
    width: PositiveInt | None = None
    depth: PositiveInt | None = None
    heads: PositiveInt | None = None
    image_size: PositiveInt | None = None
    """Side of the image, in pixels, whose patch grid the positional embeddings have."""
    channels: PositiveInt | None = None
    """1 for a backbone that reads grey images, 3 for RGB, N for as many images of a place, such as MR sequences."""
    mlp: Literal["gelu", "swiglu"] | None = None
    """Of the blocks: two layers with GELU, or SiLU-gated as in ViT-g."""
    layer_scale: float | None = 1e-5
    """Initial value of LayerScale; 1e-5 as published for training from scratch; null: 1.0."""
