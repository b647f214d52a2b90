"""What `splits` can be told."""

import dataclasses
from typing import Literal

from dinojax.config.bounds import PositiveInt, Seed, check, positional


@dataclasses.dataclass(frozen=True)
class SplitsConfig:
    """Writes stratified folds, in which no patient is in two parts, once for all runs."""

    out: str
    """Folder of the fold files, which is then given as `--data`; the data's own folder, or another."""
    data: str = positional("a manifest, or a labelled data set of any kind that the README lists")
    folds: PositiveInt = 5
    fold_seed: Seed = 0
    data_root: str | None = None
    """What a manifest's paths are relative to, if not its own folder."""
    group_regex: str | None = None
    """Takes the patient from the path: the first group of this expression."""
    uncertain: Literal["ignore", "zero", "one"] | None = None
    """What -1 means in the columns `label_<class>` of a manifest: unknown, 0 or 1; null refuses it."""
    check: bool = False
    """Says how everything was read and what would be written, and stops there."""

    def __post_init__(self) -> None:
        check(self)
