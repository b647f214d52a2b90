"""What `splits` can be told."""

import dataclasses

from dinojax.config.bounds import PositiveInt, Seed, check, positional
from dinojax.config.labelled import LabelledConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitsConfig(LabelledConfig):
    """Writes stratified folds, in which no patient is in two parts, once for all runs."""

    data: str = positional("a manifest, or a labelled data set of any kind that the README lists")
    out: str
    """Folder of the fold files, which is then given as `--data`; the data's own folder, or another."""
    folds: PositiveInt = 5
    fold_seed: Seed = 0
    threads: PositiveInt = 2
    """Threads that read images, of which identical ones are put into one part."""
    check: bool = False
    """Says how everything was read and what would be written, and stops there."""

    def __post_init__(self) -> None:
        check(self)
