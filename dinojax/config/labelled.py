"""How a labelled data set is to be read: the keys of every verb that reads one."""

import dataclasses
from typing import Literal

from dinojax.config.images import ImagesConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledConfig(ImagesConfig):
    """What tells images, labels and patients where the names of files and columns do not."""

    label_column: str | None = None
    """The manifest's column of labels, if its name does not tell."""
    patient_column: str | None = None
    """The manifest's column of patients, if its name does not tell."""
    group_regex: str | None = None
    """Takes the patient from the path: the first group of this expression."""
    uncertain: Literal["ignore", "zero", "one"] | None = None
    """What -1 means in the columns `label_<class>` of a manifest: unknown, 0 or 1; null refuses it."""
