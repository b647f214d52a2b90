"""What the readers of all kinds of files have in common: headers, stored values, and files that cannot be read."""

import dataclasses
import re
from typing import Literal

import numpy as np

from dinojax.errors import RunError

KINDS = ("raster", "dicom", "nifti", "member")
"""By which reader: pictures, DICOM, NIfTI, and the images of an `.npz` file or of a TFDS data set."""
Axis = Literal["axial", "coronal", "sagittal"]
"""Of a volume's slices, in canonical orientation: the third, second or first axis of (right, anterior, superior)."""


class BadFile(RunError):
    """An image that cannot be read; the message names it, its row in the manifest, and why."""


_LONG = 6
"""Letters and digits of a name that is looked for without the signs between them."""


def _bare(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()


@dataclasses.dataclass(frozen=True)
class Header:
    """What the header of a file says of the images in it, without decoding them.

    Attributes:
      kind: by which its values are turned into grey levels: 'raster' (PNG, TIFF and the like), 'dicom' or 'nifti'.
      format: such as 'PNG', 'JPEG 2000', 'DICOM' or 'NIfTI', for people.
      width, height: in pixels, of an upright image as it is displayed; of a volume, of its axial slices.
      channels: 1 or 3.
      bits: of a stored value that are in use: 1 to 16 of integers, 32 or 64 of floating-point or larger numbers.
      frames: number of images; of a volume, of its axial slices times its fourth axis.
      volume: (x, y, z, t) voxels in canonical orientation, of a NIfTI file.
      modality: DICOM's, such as 'CT'; else ''.
      spacing: millimetres between the centres of two rows and of two columns; None if unknown.
      thickness: millimetres between the centres of two axial slices, of a NIfTI file; None if unknown.
      windows: number of VOI windows and tables that the file brings along.
      patient, study, series: DICOM's ids as they stand in the file; '' where there are none. For grouping alone: they
        must not be printed or written, see `data.privacy`.
      names: further values of the header that may identify the patient (name, birth date ...): none may be printed.
    """

    kind: Literal["raster", "dicom", "nifti"]
    format: str
    width: int
    height: int
    channels: Literal[1, 3]
    bits: int
    frames: int = 1
    volume: tuple[int, int, int, int] | None = None
    modality: str = ""
    spacing: tuple[float, float] | None = None
    thickness: float | None = None
    windows: int = 0
    patient: str = dataclasses.field(default="", repr=False)
    study: str = dataclasses.field(default="", repr=False)
    series: str = dataclasses.field(default="", repr=False)
    names: tuple[str, ...] = dataclasses.field(default=(), repr=False)

    def tells(self, path: str) -> bool:
        """Whether a path contains one of `names`, also written with other signs between its parts."""
        written, bare = path.casefold(), _bare(path)
        return any(
            name.casefold() in written or (len(_bare(name)) >= _LONG and _bare(name) in bare) for name in self.names
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """One decoded image, before its values become grey levels.

    Attributes:
      values: [H, W, 1 or 3], integers or floats, in the file's own unit: after DICOM's modality table or rescale slope
        and intercept, NIfTI's scl_slope and scl_inter. No value is NaN where `padding` is False.
      full: the values that are black and white if the whole range of the stored type is shown: 0 and 2^bits − 1 (of
        signed ones, −2^(bits−1) and 2^(bits−1) − 1), in the unit of `values`; floats: 0 and 1.
      padding: bool [H, W], pixels that measure nothing; None if there are none.
      inverted: whether low values are bright (MONOCHROME1, WhiteIsZero).
    """

    values: np.ndarray
    full: tuple[float, float]
    padding: np.ndarray | None = None
    inverted: bool = False
