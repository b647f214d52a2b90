"""What `demo` can be told."""

import dataclasses

from dinojax.config.bounds import Seed, check


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Writes a phantom data set, pre-trains on it, scores two starting points over its folds, and reports."""

    out: str
    """A new folder for all of it."""
    seed: Seed = 0
    quick: bool = False
    """A few steps of everything: shows that it runs, and learns nothing."""

    def __post_init__(self) -> None:
        check(self)
