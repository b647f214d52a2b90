"""Panels of constant size in rows: titles and legends, however long, make a figure higher and its panels no smaller."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dinojax.reporting.lettering import DPI, wrapped
from dinojax.runs.files import replacing

WIDTH = 7.2
"""Inches of a figure of the report: with `DPI` the width of its page, and little more than that of printed A4."""
LEFT = 0.68
"""Inches for a panel's vertical axis."""
_BELOW = 0.5
"""Inches for a panel's horizontal axis."""
_GAP = 0.14
_LEGEND = {"fontsize": 8, "frameon": False, "borderaxespad": 0, "handlelength": 2.2, "labelspacing": 0.45}
_HANDLE = 0.4
"""Inches of a legend's line, with the gap to its text."""


class Sheet:
    """A figure of equal panels that grows downwards; made and saved inside `lettering.plain_text`."""

    def __init__(self, title: str, count: int, columns: int, panel: tuple[float, float], width: float = WIDTH) -> None:
        """Makes the panels, `axes`.

        Args:
          title: of the figure.
          count: number of panels.
          columns: in a row.
          panel: width and height of the axes in inches, which they keep.
          width: of the figure in inches.
        """
        self._width, self._panel, self._columns = width, panel, columns
        self._figure = Figure(figsize=(width, 1), dpi=DPI)
        self._title = self._figure.text(_GAP / width, 0, wrapped(title, width - 2 * _GAP, 10.5), size=10.5, va="top")
        self.axes: list[Axes] = [self._figure.add_axes(self._place(place, 0, 1)) for place in range(count)]
        for axis in self.axes:
            axis.tick_params(labelsize=8)
            axis.xaxis.label.set_fontsize(9)
            axis.yaxis.label.set_fontsize(9)

    def _place(self, place: int, bottom: float, height: float) -> tuple[float, float, float, float]:
        """A panel's place in parts of the figure, whose height and the panel's bottom are in inches."""
        left = LEFT + place % self._columns * self._width / self._columns
        return left / self._width, bottom / height, self._panel[0] / self._width, self._panel[1] / height

    def entitle(self, axis: Axes, title: str) -> None:
        """Gives a panel its title."""
        axis.set_title(wrapped(title, self._width / self._columns - LEFT, 9), size=9, loc="left")

    def explain(self, axis: Axes, handles: Sequence[Artist], labels: Sequence[str], beside: bool = False) -> None:
        """Gives a panel its legend, below it or beside it, never over its curves."""
        (width, height), room = self._panel, self._width / self._columns - _HANDLE - _GAP
        anchor, columns = (-(LEFT - _GAP) / width, -_BELOW / height), 1
        if beside:
            anchor, room = (1 + _GAP / width, 1), room - LEFT - width - _GAP
        elif all(len(label) < 22 for label in labels):
            columns = max(1, int((room + _HANDLE) / 1.7))
        texts = [wrapped(label, room if columns == 1 else 1.7 - _HANDLE, 8) for label in labels]
        axis.legend(handles, texts, loc="upper left", bbox_to_anchor=anchor, ncols=columns, **_LEGEND)

    def save(self, path: Path) -> None:
        """Sets every row as far below the one above as titles and legends need, and writes the figure."""
        renderer = FigureCanvasAgg(self._figure).get_renderer()

        def inches(artist: Artist) -> tuple[float, float]:
            box = artist.get_tightbbox(renderer)
            assert box is not None
            return box.y0 / self._figure.dpi, box.y1 / self._figure.dpi

        low, high = inches(self._title)
        down, bottoms = _GAP + high - low, []
        for first in range(0, len(self.axes), self._columns):
            extents = [inches(axis) for axis in self.axes[first : first + self._columns]]
            # The panels stand on 0 as yet: what a row needs above and below them does not depend on where it is.
            down += _GAP + max(high for _, high in extents)
            bottoms.append(down)
            down -= min(low for low, _ in extents)
        height = down + _GAP
        self._figure.set_size_inches(self._width, height)
        self._title.set_y(1 - _GAP / height)
        for place, axis in enumerate(self.axes):
            axis.set_position(self._place(place, height - bottoms[place // self._columns], height))
        with replacing(path, "wb") as file:  # it may be looked at while it is drawn anew
            self._figure.savefig(file, format="png")
