"""Figures of runs, as PNG files. Every figure is an object of its own: no global state of pyplot's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator

from dinojax.reporting.layout import Sheet
from dinojax.reporting.lettering import plain_text

# Okabe & Ito's colours, which most colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#888888"


def plot_losses(history: pd.DataFrame, kept: Mapping[int, int], title: str, path: Path) -> None:
    """Training and validation loss of each fold's chosen setting.

    Args:
      history: columns `fold`, `epoch`, `train_loss`, `val_loss`; one setting per fold.
      kept: each fold's epoch whose weights predicted; marked.
      title: of the figure.
      path: PNG to write.
    """
    folds = [history[history["fold"] == fold] for fold in kept]
    with plain_text():
        sheet = Sheet(title, 1, 1, (4.7, 3.1))
        (axis,) = sheet.axes
        for (fold, epoch), rows, colour in zip(kept.items(), folds, _colours(len(kept)), strict=True):
            mark = "." if len(rows) < 2 else None  # a single epoch would show nothing without a marker
            axis.plot(rows["epoch"], rows["train_loss"], color=colour, linewidth=1, linestyle="--", marker=mark)
            axis.plot(rows["epoch"], rows["val_loss"], color=colour, label=f"fold {fold}")
            at = rows[rows["epoch"] == epoch]
            axis.plot(at["epoch"], at["val_loss"], "o", color=colour, markersize=6)
        axis.plot([], [], color=GREY, linestyle="--", linewidth=1, label="training")
        axis.plot([], [], color=GREY, label="validation")
        axis.plot([], [], "o", color=GREY, label="epoch kept")
        axis.set(xlabel="epoch", ylabel="cross-entropy (nats)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
        sheet.explain(axis, *axis.get_legend_handles_labels(), beside=True)
        sheet.save(path)


def _colours(count: int) -> list[str]:
    """As many colours: those of `COLOURS`, or, where they do not suffice, shades from dark to light."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    return [to_hex(shade) for shade in colormaps["viridis"](np.linspace(0, 0.93, count))]


class Panel(NamedTuple):
    """One panel of a run's curves."""

    title: str
    curves: Mapping[str, pd.Series]
    """Values by step; steps without one are left out."""
    references: Mapping[str, float] = {}
    """Dashed lines at what would be if nothing were learned."""
    best: int | None = None
    """Place at which the first curve is marked."""


def plot_metrics(
    metrics: Path, path: Path, prototypes: int, dino_weight: float = 1.0, targets: int | None = None
) -> None:
    """Curves of a pre-training run, a panel each, with what they would be if nothing were learned.

    Args:
      metrics: `metrics.jsonl`; without a line there is nothing to draw.
      path: PNG to write.
      prototypes: K; at log K targets and predictions are uniform.
      dino_weight: that the logged DINO terms were multiplied by.
      targets: of a batch, two for each image; the share of prototypes that they can use is drawn beside that used.

    Raises:
      RunError: the file cannot be written.
    """
    lines = [line for line in metrics.read_text().splitlines() if line.strip()]
    if not lines:
        return
    table = pd.json_normalize([json.loads(line) for line in lines]).set_index("step")
    panels = metrics_panels(table, prototypes, dino_weight, targets)
    if not panels:
        return
    columns = 3 if len(panels) <= 9 else 4
    with plain_text():
        sheet = Sheet("Pre-training", len(panels), columns, (3.6, 2.2), width=4.5 * columns)
        for axis, panel in zip(sheet.axes, panels, strict=True):
            _draw(axis, panel)
            sheet.entitle(axis, panel.title)
            if len(panel.curves) > 1 or panel.references:
                sheet.explain(axis, *axis.get_legend_handles_labels())
        sheet.save(path)


def metrics_panels(
    table: pd.DataFrame, prototypes: int, dino_weight: float = 1.0, targets: int | None = None
) -> list[Panel]:
    """What there is to draw of a run; a panel without any values is left out.

    Args:
      table: the lines of `metrics.jsonl`, by step; what stands under `time` as columns `time.…`. Only columns that
        are known are read, and none has to be there.
      prototypes: K.
      dino_weight, targets: as of `plot_metrics`.
    """
    found = {str(name): pd.Series(table[name]).replace([np.inf, -np.inf], np.nan).dropna() for name in table.columns}
    terms = ("dino_local", "dino_global", "ibot", "koleo")
    # A term with weight 0 is logged as 0.
    found = {name: values for name, values in found.items() if len(values) and (name not in terms or values.any())}

    def pick(*names: str) -> dict[str, pd.Series]:
        return {name: found[name] for name in names if name in found}

    most = {f"most that {targets} targets can use": min(targets / prototypes, 1.0)} if targets else {}
    uniform = {"log K: nothing learned": float(np.log(prototypes))}
    dino = pick("dino_local", "dino_global")
    total = {"local + global": pd.concat(dino, axis=1).dropna().sum(axis=1) / dino_weight} if dino else {}
    waited = {}
    if {"time.data_wait", "time.seconds"} <= found.keys():
        waited = {"data_wait / seconds": (found["time.data_wait"] / found["time.seconds"]).dropna()}
    probe, title, best = pick("probe", "probe_balanced"), "k-NN probe", None
    if "probe" in probe:
        best = int(np.argmax(probe["probe"].to_numpy()))
        title += f": best {probe['probe'].iloc[best]:.3f} at step {probe['probe'].index[best]}"
    baselines = {"probe_pixels": "k-NN on 32×32 pixels", "probe_majority": "largest class"}
    lines = {shown: float(found[name].iloc[-1]) for name, shown in baselines.items() if name in found}
    panels = [
        Panel(title, probe, lines, best),
        Panel("Loss (weighted sum)", pick("loss")),
        Panel("DINO loss", total, uniform),
        Panel("DINO terms", dino),
        Panel("KL(teacher ‖ student) (nats)", pick("kl")),
        Panel("Entropy of the targets (nats)", pick("target_entropy", "mean_target_entropy"), uniform),
        Panel("iBOT loss", pick("ibot")),
        Panel("KoLeo loss", pick("koleo")),
        Panel("Share of the prototypes used", pick("prototypes_used"), most),
        Panel("Spread of the class tokens (1: even)", pick("feature_std"), {"0: collapse": 0.0}),
        Panel("Effective rank of the class tokens", pick("effective_rank"), {"1: collapse": 1.0}),
        Panel("Gradient norms before clipping", pick(*(name for name in found if name.startswith("grad_norm")))),
        Panel("Learning rate", pick("lr")),
        Panel("Schedules", pick("momentum", "weight_decay", "teacher_temp")),
        Panel("Images per second", pick("time.images_per_s")),
        Panel("Share of the time waiting for data", waited),
    ]
    return [panel for panel in panels if panel.curves]


def _draw(axis: Axes, panel: Panel) -> None:
    for (name, values), colour in zip(panel.curves.items(), _colours(len(panel.curves)), strict=True):
        # A run of one logged step would show nothing without a marker.
        axis.plot(values.index, values, color=colour, label=name, marker="." if len(values) < 2 else None)
    if panel.best is not None:
        first = next(iter(panel.curves.values())).iloc[[panel.best]]
        axis.plot(first.index, first, "o", color=COLOURS[0], markersize=7)
    for (name, value), style in zip(panel.references.items(), ("--", ":"), strict=False):
        axis.axhline(value, color=GREY, linestyle=style, linewidth=1, label=name)
    axis.set_xlabel("step")
    axis.grid(alpha=0.25)
