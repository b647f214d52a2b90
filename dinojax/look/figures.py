"""Figures of the results of `look.numbers`. Each function returns a new figure with a title, to show or to save.

`images` are those that the results belong to, uint8 [N, H, W, C]; maps stand beside them, without smoothing.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from dinojax.look import numbers
from dinojax.protocols.knn import Neighbours
from dinojax.reporting.plots import COLOURS, GREY

_BLUE, _ORANGE = COLOURS[:2]


def plot_parameters(table: pd.DataFrame, title: str) -> Figure:
    """Number and size of the parameters of each part, in a table of `numbers.parameters_by_part`."""
    total, mebibytes = table["parameters"].sum(), table["bytes"].sum() / 2**20
    figure = _figure(9, 0.27 * len(table) + 1.5, f"{title}: {total:,} parameters, {mebibytes:.1f} MiB")
    counts, sizes = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(table))
    bars = counts.barh(places, table["parameters"], color=_BLUE)
    counts.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=2)
    counts.margins(x=0.25)
    counts.set_yticks(places, table.index.tolist(), fontsize=8)
    counts.invert_yaxis()
    counts.xaxis.set_major_formatter(EngFormatter(sep=""))
    counts.set_xlabel("parameters")
    # Points, as bars have no base on a logarithmic scale; parts that are all zeros are left out.
    rms = table["rms"].where(table["rms"] > 0).to_numpy(float)
    sizes.plot(rms, places, "o", color=_ORANGE)
    sizes.set(xscale="log", xlabel="root mean square of the parameters (logarithmic)")
    low, high = np.nanmin(rms), np.nanmax(rms)
    if high < 100 * low:  # too narrow for powers of ten alone
        sizes.set_xlim(low / 3, high * 3)
        sizes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        sizes.xaxis.set_minor_locator(NullLocator())
        sizes.xaxis.set_major_formatter("{x:g}")
    for axis in (counts, sizes):
        axis.grid(axis="x", alpha=0.25)
        axis.set_axisbelow(True)
    return figure


def plot_attention(images: np.ndarray, attention: numbers.ClassAttention, title: str, columns: int = 8) -> Figure:
    """Attention of the class token to the patches: each image, the mean over the heads, and each head."""
    heads, height, width = attention.patches.shape[1:]
    relative = attention.patches * height * width
    # A percentile, so that one strong patch does not leave all others black; 2 at least, so that even maps look even.
    scale = Normalize(0, max(float(np.percentile(relative, 99.5)), 2.0))
    names = ["mean of heads", *(f"head {head}" for head in range(heads))]
    columns = min(columns, 1 + len(names))
    rows = -(-(1 + len(names)) // columns)
    figure = _figure(1.6 * columns + 0.9, 1.75 * rows * len(images) + 0.5, title)
    axes = figure.subplots(rows * len(images), columns, squeeze=False)
    for number, (image, maps, lines) in enumerate(zip(images, relative, axes.reshape(len(images), -1), strict=True)):
        for axis in lines:
            axis.set_axis_off()
        _image(lines[0], image, f"image {number}")
        for axis, name, values in zip(lines[1:], names, [maps.mean(0), *maps], strict=False):
            _map(axis, image, values, "inferno", scale, f"{name}, max {values.max():.3g}")
    label = "attention weight × number of patches\n(1: as much as every other)"
    _colour_bar(figure, axes, "inferno", scale, label, extend="max")
    return figure


def plot_attention_mass(table: pd.DataFrame, title: str) -> Figure:
    """Shares of the class token's attention in each head, in a table of `numbers.attention_mass`."""
    figure = _figure(7.5, 0.27 * len(table) + 1.6, title)
    axis = figure.subplots()
    left = np.zeros(len(table))
    colours = {"class token": GREY, "registers": COLOURS[2], "outlier patches": _ORANGE, "other patches": _BLUE}
    for name in table.columns:
        label = f"{name} {table[name].mean():.1%}"
        axis.barh(np.arange(len(table)), table[name], left=left, color=colours[name], label=label)
        left += table[name].to_numpy()
    axis.set_yticks(np.arange(len(table)), [f"head {head}" for head in table.index], fontsize=8)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="share of the class token's attention (below: mean over the heads)")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def plot_norms(images: np.ndarray, norms: numbers.TokenNorms, title: str, shown: int = 4) -> Figure:
    """Histogram of the tokens' norms with the cut-offs, and maps of the `shown` images with the most outliers."""
    shown = min(shown, len(images))
    figure = _figure(9.5, 4.9, title)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.9, 1))[:, 0]
    axis = above.subplots()
    values, registers = norms.patches.ravel(), norms.registers.ravel()
    edges = np.histogram_bin_edges(np.concatenate([values, registers]), bins=60)
    axis.hist(values, edges, color=_BLUE, label=f"{len(values):,} patches")
    if len(registers):
        axis.hist(registers, edges, color=COLOURS[2], alpha=0.8, label=f"{len(registers):,} registers")
    for name, cutoff, style in (
        (f"cut-off {norms.cutoff:.3g}", norms.cutoff, {"color": _ORANGE}),
        (f"published for ViT-g, {numbers.PUBLISHED_CUTOFF:g}", numbers.PUBLISHED_CUTOFF, {"color": GREY, "ls": "--"}),
    ):
        label = f"{name}: {(values > cutoff).mean():.2%} of the patches above it"
        if cutoff < 1.5 * values.max():
            axis.axvline(cutoff, label=label, **style)
        else:
            axis.plot([], [], label=f"{label}, off to the right", **style)
    axis.set(yscale="log", ylim=(0.7, None), xlabel="L2 norm after the last block", ylabel="tokens (logarithmic)")
    above.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    axis.grid(alpha=0.25)
    scale = Normalize(float(values.min()), max(float(values.max()), float(values.min()) + 1e-6))
    axes = below.subplots(1, 2 * shown, squeeze=False)
    most = np.argsort(-norms.outliers.sum((1, 2)), kind="stable")[:shown]
    for place, (left, right) in zip(most, axes.reshape(shown, 2), strict=True):
        outliers = norms.outliers[place]
        _image(left, images[place], f"image {place}")
        _map(right, images[place], norms.patches[place], "viridis", scale, f"outliers: {outliers.sum()}")
        _outline(right, images[place], outliers.shape, np.argwhere(outliers))
    _colour_bar(below, axes, "viridis", scale, "L2 norm")
    return figure


def plot_components(images: np.ndarray, components: numbers.Components, title: str, columns: int = 8) -> Figure:
    """Three principal components of the patches as red, green and blue, below their images."""
    colours = numbers.as_colours(components.scores)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = _figure(max(1.6 * columns, 6), 3.4 * rows + 0.9, title)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(3.4 * rows + 0.3, 0.6))[:, 0]
    axes = above.subplots(2 * rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, (image, map_) in enumerate(zip(images, colours, strict=True)):
        row, column = divmod(place, columns)
        _image(axes[2 * row, column], image, f"image {place}")
        axes[2 * row + 1, column].imshow(map_, interpolation="nearest")
    low, high = numbers.colour_range(components.scores)
    for number, (axis, colour) in enumerate(zip(below.subplots(1, 3), ("red", "lime", "blue"), strict=True)):
        colour_map = LinearSegmentedColormap.from_list(colour, ["black", colour])
        scale = Normalize(low[number], high[number])
        bar = below.colorbar(ScalarMappable(scale, colour_map), cax=axis, orientation="horizontal")
        _label(bar, f"component {number + 1}: {components.variance[number]:.0%} of the variance")
    return figure


def plot_neighbours(
    queries: tuple[np.ndarray, Sequence[str]],
    searched: tuple[np.ndarray, Sequence[str]],
    neighbours: Neighbours,
    title: str,
) -> Figure:
    """Each query and its neighbours, most similar first, in frames whose colour says whether the labels agree.

    Args:
      queries: images and their labels, "" where unknown.
      searched: images and labels of the set that was searched.
      neighbours: of these queries in this set.
      title: of the figure.
    """
    rows, found = neighbours.places.shape
    figure = _figure(1.6 * (found + 1), 1.95 * rows + 0.6, title)
    axes = figure.subplots(rows, found + 1, squeeze=False)
    # Enough digits to distinguish the lowest from 1.
    digits = int(np.clip(2 - np.log10(max(1 - neighbours.similarities.min(), 1e-6)), 3, 7))
    for row, (image, label) in enumerate(zip(*queries, strict=True)):
        _image(axes[row, 0], image, f"query {row}\n{label}")
        nearest = zip(axes[row, 1:], neighbours.places[row], neighbours.similarities[row], strict=True)
        for axis, place, similarity in nearest:
            other = searched[1][place]
            _image(axis, searched[0][place], f"image {place}: {similarity:.{digits}f}\n{other}")
            if label and other:
                colour = _BLUE if label == other else _ORANGE
                frame = Rectangle((0, 0), 1, 1, transform=axis.transAxes, fill=False, edgecolor=colour, linewidth=4)
                axis.add_patch(frame)
    note = "cosine similarity"
    if any(queries[1]):
        note += "; frame: blue where the label is the query's, orange where it is not"
    figure.supxlabel(note, fontsize=8)
    return figure


def plot_similarity(
    images: np.ndarray, maps: Sequence[np.ndarray], places: Sequence[tuple[int, int]], title: str
) -> Figure:
    """Similarity of all patches of an image to one of them, which is outlined.

    Args:
      images: one for each map; repeated for several patches of the same one.
      maps: [h, w] each, of `numbers.similarity_map`.
      places: row and column of the patch that each map refers to.
      title: of the figure.
    """
    figure = _figure(1.9 * len(maps) + 0.9, 4.3, title)
    axes = figure.subplots(2, len(maps), squeeze=False)
    scale = Normalize(min(float(np.percentile(maps, 1)), 0.99), 1)
    for column, (image, map_, (row, place)) in enumerate(zip(images, maps, places, strict=True)):
        _image(axes[0, column], image, f"patch at row {row},\ncolumn {place}")
        _map(axes[1, column], image, map_, "viridis", scale)
        for axis in axes[:, column]:
            _outline(axis, image, map_.shape, [(row, place)])
    _colour_bar(figure, axes, "viridis", scale, "cosine similarity to the patch outlined", extend="min")
    return figure


def plot_positions(similarity: np.ndarray, title: str, places: int = 4) -> Figure:
    """Similarity of positional embeddings to all others, [M, M, M, M] of `numbers.position_similarity`.

    There is a panel for each of `places` × `places` positions, spread over the grid.
    """
    side = len(similarity)
    chosen = np.unique(np.linspace(0, side - 1, min(places, side)).round().astype(int)).tolist()
    figure = _figure(1.5 * len(chosen) + 1.2, 1.5 * len(chosen) + 0.5, title)
    axes = figure.subplots(len(chosen), len(chosen), squeeze=False)
    maps = similarity[np.ix_(chosen, chosen)]
    others = maps[maps < 1 - 1e-5]
    limit = max(float(np.percentile(np.abs(others), 99.5)) if others.size else 1.0, 1e-3)
    scale = Normalize(-limit, limit)
    for (row, column), axis in np.ndenumerate(axes):
        axis.imshow(maps[row, column], cmap="RdBu_r", norm=scale, interpolation="nearest", extent=(0, side, side, 0))
        axis.add_patch(Rectangle((chosen[column], chosen[row]), 1, 1, fill=False, edgecolor="black"))
        axis.set(xticks=[], yticks=[])
    for place, number in enumerate(chosen):
        axes[0, place].set_title(f"column {number}", fontsize=8)
        axes[place, 0].set_ylabel(f"row {number}", fontsize=8)
    _colour_bar(figure, axes, "RdBu_r", scale, "cosine similarity to the position outlined", extend="both")
    return figure


def _figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of this size in inches."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure


def _image(axis: Axes, image: np.ndarray, title: str) -> None:
    height, width = image.shape[:2]
    axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    axis.set_title(title, fontsize=8)
    axis.set_axis_off()


def _map(axis: Axes, image: np.ndarray, values: np.ndarray, colours: str, scale: Normalize, title: str = "") -> None:
    """Draws a map [h, w] in the coordinates of its image."""
    height, width = image.shape[:2]
    axis.imshow(values, cmap=colours, norm=scale, extent=(0, width, height, 0), interpolation="nearest")
    axis.set_title(title, fontsize=8)
    axis.set_axis_off()


def _outline(axis: Axes, image: np.ndarray, grid: tuple[int, ...], places: Iterable[Sequence[int]]) -> None:
    """Draws squares around the patches at these places (row, column) of a grid (h, w)."""
    height, width = image.shape[0] / grid[0], image.shape[1] / grid[1]
    for row, column in places:
        corner = (column * width, row * height)
        axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=_ORANGE, linewidth=1.4))


def _colour_bar(
    figure: Figure | SubFigure, axes: np.ndarray, colour_map: str, scale: Normalize, label: str, extend: str = "neither"
) -> None:
    """Draws one colour bar for all axes; `extend` says at which end values may exceed the scale."""
    bar = figure.colorbar(ScalarMappable(scale, colour_map), ax=axes, fraction=0.03, pad=0.02, extend=extend)
    _label(bar, label)


def _label(bar: Colorbar, text: str) -> None:
    bar.set_label(text, fontsize=8)
    bar.ax.tick_params(labelsize=7)
