"""Sheets of images to look at before trusting any number."""

from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from dinojax.models.preprocessing import Preprocessing, denormalise


def crop_sheet(
    global_crops: jax.Array, local_crops: jax.Array, preprocessing: Preprocessing, path: Path, images: int = 8
) -> None:
    """Draws the student's input: the augmented crops of each image in a row, global ones first.

    Of more than three channels the first three are shown as red, green and blue; of two, their mean as grey.

    Args:
      global_crops: float [B, 2, S, S, C], normalised.
      local_crops: float [B, L, s, s, C], normalised.
      preprocessing: that they were normalised with; it is undone.
      path: PNG to write.
      images: how many rows, at most.
    """
    rows = min(images, len(global_crops))
    columns = global_crops.shape[1] + local_crops.shape[1]
    figure = Figure(figsize=(1.3 * columns, 1.4 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        crops = [*np.asarray(global_crops[row]), *np.asarray(local_crops[row])]
        for column, (axis, crop) in enumerate(zip(axes[row], crops, strict=True)):
            axis.imshow(drawable_channels(denormalise(crop, preprocessing)), cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
            if row == 0:
                views = global_crops.shape[1]
                name = f"global {column + 1}" if column < views else f"local {column - views + 1}"
                axis.set_title(f"{name}\n{crop.shape[0]} px", fontsize=8)
    channels = global_crops.shape[-1]
    stacks = {1: "", 2: "; the mean of two channels", 3: ""}
    shown = stacks.get(channels, f"; channels 1 to 3 of {channels} as red, green and blue")
    figure.suptitle(f"Views of the first images, after augmentation{shown}", fontsize=10)
    figure.savefig(path, dpi=110)


def drawable_channels(image: np.ndarray) -> np.ndarray:
    """An image [H, W, C] as it can be drawn: grey [H, W], of two channels their mean; else the first three as RGB."""
    return image.mean(axis=2).astype(image.dtype) if image.shape[2] < 3 else image[:, :, :3]
