"""`dinojax phantoms OUT`: writes a phantom data set, and a sheet of examples."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from dinojax.config.phantoms import PhantomsConfig
from dinojax.data.phantoms.dataset import CLASSES, write_phantoms


def main(config: PhantomsConfig) -> Path:
    """Writes a phantom data set."""
    given = dataclasses.asdict(config)
    out = Path(given.pop("out"))
    table = write_phantoms(out, **given)
    draw_sheet(out, table)
    counts = ", ".join(f"{(table['label'] == name).sum()} {name}" for name in CLASSES)
    print(f"{len(table)} images of {config.patients} patients ({counts}) in {out}; look at {out / 'phantoms.png'}")
    return out


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
