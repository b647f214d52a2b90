"""What `audit` can be told."""

import dataclasses

from dinojax.config.bounds import NonNegativeInt, PositiveInt, Share, check, positional
from dinojax.config.labelled import LabelledConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditConfig(LabelledConfig):
    """Finds images that data sets hold twice, and patients that their parts share."""

    data: tuple[str, ...] = positional("data sets, labelled or not; parts and folds that they bring along are used")
    out: str
    """Directory of the report; files of an earlier one are replaced."""
    corpus: tuple[str, ...] = ()
    """Data sets that models are pre-trained on, separated by commas, read without labels; their images are
    compared with those of `data`."""
    near: bool = True
    """Looks for near duplicates too, not for identical images alone."""
    near_distance: NonNegativeInt = 8
    """Bits, of 63, in which the perceptual hashes of near duplicates differ at most."""
    near_correlation: Share = 0.98
    """Of the images as grey squares of 32 pixels: near duplicates reach it."""
    same_patients: bool = False
    """Patients of the same id in two data sets are the same person. Without it, ids are compared inside one alone, as
    those of different sources may coincide."""
    pictures: PositiveInt = 24
    """Pairs that are drawn of each kind, at most."""
    threads: PositiveInt = 2
    """Threads that read images."""

    def __post_init__(self) -> None:
        check(self)
