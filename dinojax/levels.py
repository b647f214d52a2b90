"""The rule by which stored values of one kind of images become grey levels, as a model's preprocessing keeps it."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Rule:
    """How images of one kind are shown; plain numbers, as `model.json` keeps them.

    Attributes:
      group: the kind of images, such as 'CT'; see `data.intensity.GROUPS`.
      name: 'full': the range of the stored type; 'range': `low` is black and `high` white; 'percentiles': these two
        percentiles are; 'file': the window of number `number` that the DICOM file brings along.
      low, high: values in the files' unit, or percentiles in 0..100.
      over: what percentiles are taken over.
      number: from 1.
    """

    group: str
    name: Literal["full", "range", "percentiles", "file"]
    low: float = 0.0
    high: float = 0.0
    over: Literal["image", "volume"] = "image"
    number: int = 1

    def __str__(self) -> str:
        if self.name == "range":
            return f"{self.low:g} to {self.high:g}"
        if self.name == "percentiles" and (self.low, self.high) == (0, 100):
            return f"each {self.over}'s own range"
        if self.name == "percentiles":
            return f"percentiles {self.low:g} to {self.high:g} of each {self.over}"
        if self.name == "full":
            return "as they are" if self.group == EIGHT else "the range of the stored type (0 to 1 of floats)"
        return f"the file's window {self.number}"


EIGHT = "8 bits"
WIDE = "more than 8 bits"
"""The kind of pictures (no DICOM, no NIfTI) with more than 8 bits a pixel."""
