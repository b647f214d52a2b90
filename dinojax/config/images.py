"""How image files are to be read: the keys of every verb that reads any."""

import dataclasses
from typing import Annotated, Literal

from dinojax.config.bounds import Ascending, Bounds, NonNegativeInt, Positive, PositiveInt
from dinojax.errors import UsageError

Window = Literal["lung", "mediastinum", "bone", "brain", "subdural", "stroke", "liver", "abdomen", "soft_tissue"]
Policy = Literal["auto", "full", "range", "percentiles", "file"] | Window

_NumberRange = Annotated[tuple[float, float], Bounds(), Ascending()]
_PercentRange = Annotated[tuple[float, float], Bounds(0, 100), Ascending()]


@dataclasses.dataclass(frozen=True)
class IntensityConfig:
    """How stored values become 256 grey levels. A checkpoint of a run brings its own along, which `auto` takes."""

    policy: Policy = "auto"
    """`auto`: 8 bits as they are; more bits by the range that the data set uses; DICOM by its modality (CT: soft
    tissue; MR: percentiles of each volume; others: the file's window). `full`: all of the stored type; `range` and
    `percentiles`: below; `file`: DICOM's own window; or the name of a CT window."""
    range: _NumberRange | None = None
    """Of `range`: the values that become black and white, in the files' unit (Hounsfield units in CT)."""
    percentiles: _PercentRange = (0.1, 99.9)
    """Of `percentiles`, and of `auto`."""
    over: Literal["image", "volume", "dataset"] = "volume"
    """What `percentiles` are taken over; a file that is no volume is one by itself."""
    number: PositiveInt = 1
    """Of `file`: which of the windows that a file holds."""

    def __post_init__(self) -> None:
        if (self.range is not None) != (self.policy == "range"):
            raise UsageError("intensity.policy range and intensity.range [LOW, HIGH] belong together; give both")
        if self.range is not None and self.range[0] >= self.range[1]:
            raise UsageError(f"intensity.range is {list(self.range)}; the lower one comes first")
        if self.percentiles[0] == self.percentiles[1]:
            raise UsageError(f"intensity.percentiles is {list(self.percentiles)}; they must differ")


@dataclasses.dataclass(frozen=True)
class SlicesConfig:
    """Which images of a volume or of a file of several frames are used."""

    axis: Literal["axial", "coronal", "sagittal"] = "axial"
    """Of NIfTI volumes, in canonical orientation."""
    every: PositiveInt = 1
    """Every n-th slice or frame."""
    middle: PositiveInt | None = None
    """The m middle ones, of which `every` takes its share; null: all."""
    time: NonNegativeInt | Literal["channels"] | None = None
    """Of 4-D volumes the one of this number, from 0; null: all of the fourth axis, each an image of its own;
    `channels`: all of it, as the channels of one image, such as MR sequences."""
    drop_empty: bool = True
    """Leaves out the slices of a NIfTI volume of which less than 1 % of the pixels are above the volume's background:
    its lowest value and a twentieth of its range."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Where images lie, and how they are decoded."""

    data_root: str | None = None
    """What a manifest's paths are relative to, if not its own folder."""
    path_column: str | None = None
    """The manifest's column of image files, if its name does not tell."""
    intensity: IntensityConfig = dataclasses.field(default_factory=IntensityConfig)
    slices: SlicesConfig = dataclasses.field(default_factory=SlicesConfig)
    spacing: Literal["keep", "isotropic"] = "keep"
    """`isotropic` resizes images whose pixels are not square, by the spacing that the file states."""
    max_megapixels: Positive = 200.0
    """Larger images are refused before they are decoded: a small file may claim to be huge."""
    salt_file: str | None = None
    """Secret by which patients' ids are hashed; null: `dinojax/salt` in the user's configuration folder, made at the
    first use."""
