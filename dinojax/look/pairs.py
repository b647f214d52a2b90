"""Sheets of pairs of images, side by side."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from dinojax.augment import geometry
from dinojax.look.sheets import drawable_channels
from dinojax.reporting.lettering import drawable

_PAIRS_A_ROW = 3
_SIDE = 160  # pixels of a thumbnail's longer side


class Pair(NamedTuple):
    """Two images that are shown beside each other."""

    images: tuple[np.ndarray, np.ndarray]
    """uint8 [H, W, C] each."""
    names: tuple[str, str]
    note: str
    """What is known of the two together."""


def pair_sheet(pairs: Sequence[Pair], title: str, path: Path) -> None:
    """Draws pairs of images with their names.

    Args:
      pairs: one at least.
      title: of the sheet.
      path: PNG to write.
    """
    rows = -(-len(pairs) // _PAIRS_A_ROW)
    figure = Figure(figsize=(4.2 * min(len(pairs), _PAIRS_A_ROW), 2.6 * rows + 0.5), layout="constrained")
    widths = [1, 1, 0.1] * min(len(pairs), _PAIRS_A_ROW)  # a gap between pairs
    grid = figure.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
    axes = grid[:, np.array(widths) == 1].ravel()
    for axis in grid.ravel():
        axis.set_axis_off()
    for place, pair in enumerate(pairs):
        for side in (0, 1):
            axis = axes[2 * place + side]
            axis.imshow(_thumbnail(pair.images[side]), cmap="gray", vmin=0, vmax=255)
            name = "\n".join(textwrap.wrap(drawable(pair.names[side]), 30)[-3:])
            axis.set_title(f"{drawable(pair.note) if side == 0 else ' '}\n{name}", fontsize=6.5, loc="left")
    figure.suptitle(drawable(title), fontsize=10)
    figure.savefig(path, dpi=110)


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """A small copy, uint8 [h, w] or [h, w, 3], of the same aspect."""
    pil = geometry.to_pil(np.atleast_3d(drawable_channels(image)))
    pil.thumbnail((_SIDE, _SIDE))
    return np.asarray(pil)
