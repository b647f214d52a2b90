"""What `phantoms` can be told."""

import dataclasses

from dinojax.config.bounds import PositiveInt, Seed, check, positional


@dataclasses.dataclass(frozen=True)
class PhantomsConfig:
    """Writes synthetic breast ultrasound of both classes, with lesion masks and patient-grouped folds."""

    out: str = positional("the data set's directory; must be empty or not exist")
    patients: PositiveInt = 60
    """Half of them benign, half malignant."""
    images_per_patient: PositiveInt = 4
    size: PositiveInt = 128
    """Side of the images in pixels."""
    folds: PositiveInt = 5
    seed: Seed = 0

    def __post_init__(self) -> None:
        check(self)
