"""What `evaluate` can be told."""

import dataclasses
from typing import Literal

from dinojax.config.bounds import Positive, PositiveInt
from dinojax.config.study import StudyConfig


@dataclasses.dataclass(frozen=True)
class FrozenConfig(StudyConfig):
    """A protocol on one starting point's frozen features."""

    features: Literal["class_token", "mean_patch"] = "class_token"
    """Of a CNN, both are the global average of the last feature map."""


@dataclasses.dataclass(frozen=True)
class KNNConfig(FrozenConfig):
    """Classifies every fold by the nearest neighbours of frozen features; each k is a setting."""

    ks: tuple[PositiveInt, ...] = (1, 10, 20)
    """Numbers of neighbours."""
    temperature: Positive | None = 0.07
    """A neighbour's vote weighs exp(cosine similarity / temperature), as DINO's; null: all weigh the same."""
