"""`python -m dinojax phantoms OUT`: writes a phantom data set, and a sheet of examples."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from dinojax.config import parser as configuration
from dinojax.data.phantoms.dataset import CLASSES, write_phantoms


@dataclasses.dataclass(frozen=True)
class PhantomsConfig:
    """Writes synthetic breast ultrasound of both classes, with lesion masks and patient-grouped folds."""

    out: str
    """The data set's directory; must be empty or not exist."""
    patients: int = 60
    """Half of them benign, half malignant."""
    images_per_patient: int = 4
    size: int = 128
    """Side of the images in pixels."""
    folds: int = 5
    seed: int = 0


def main(arguments: list[str]) -> None:
    """Writes the data set that the command line describes."""
    config = configuration.parse(PhantomsConfig, arguments, "phantoms", positional=True)
    out = Path(config.out)
    table = write_phantoms(
        out,
        patients=config.patients,
        images_per_patient=config.images_per_patient,
        size=config.size,
        folds=config.folds,
        seed=config.seed,
    )
    draw_sheet(out, table)
    counts = ", ".join(f"{(table['label'] == name).sum()} {name}" for name in CLASSES)
    print(f"{len(table)} images of {config.patients} patients ({counts}) in {out}; look at {out / 'phantoms.png'}")


def draw_sheet(out: Path, table: pd.DataFrame, columns: int = 6) -> None:
    """Draws one image of each of the first patients of either class, with the lesion outlined: `phantoms.png`.

    Args:
      out: the data set's directory.
      table: columns `path`, `patient_id`, `label`, `mask`.
      columns: how many patients of a class.
    """
    figure = Figure(figsize=(2.2 * columns, 5.2), layout="constrained")
    axes = figure.subplots(len(CLASSES), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for label, line in zip(CLASSES, axes, strict=True):
        shown = table[(table["label"] == label) & ~table["patient_id"].duplicated()]
        # There may be fewer patients than columns.
        for axis, path, mask, patient in zip(line, shown["path"], shown["mask"], shown["patient_id"], strict=False):
            axis.imshow(np.asarray(Image.open(out / path)), cmap="gray", vmin=0, vmax=255)
            axis.contour(np.asarray(Image.open(out / mask)), levels=[127], colors="gold", linewidths=0.8)
            axis.set_title(f"{label}, {patient}", fontsize=9)
    figure.suptitle("Phantoms, lesions outlined", fontsize=11)
    figure.savefig(out / "phantoms.png", dpi=110)
