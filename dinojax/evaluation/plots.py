"""Figures of runs, as PNG files. Every figure is an object of its own: no global state of pyplot's."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_auc_score, roc_curve

# Okabe & Ito's colours, which most colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#888888"


class Curve(NamedTuple):
    """Cases of one ROC curve."""

    name: str
    labels: np.ndarray
    """int [N], places in the classes."""
    scores: np.ndarray
    """float [N, C]."""
    muted: bool = False
    """Drawn thin or dashed: a baseline, or one fold beside the pool of all."""


def plot_roc(curves: Sequence[Curve], classes: Sequence[str], title: str, path: Path) -> None:
    """ROC curves in one panel; with more than two classes, a panel for each class against the rest.

    Args:
      curves: those that lack a case of a class, or of the rest, are named in the legend without a curve.
      classes: the last is a binary task's positive one.
      title: of the figure.
      path: PNG to write.
    """
    panels = [len(classes) - 1] if len(classes) == 2 else list(range(len(classes)))
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.8 * columns, 4.9 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, place in zip(axes, panels, strict=False):
        _roc_panel(axis, curves, place)
        rest = classes[0] if len(classes) == 2 else "rest"
        axis.set_title(f"{classes[place]} against {rest}", fontsize=10)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120)


def _roc_panel(axis: Axes, curves: Sequence[Curve], place: int) -> None:
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    colours = iter(COLOURS * len(curves))
    for curve in curves:
        positive = curve.labels == place
        style: dict[str, Any] = {"color": GREY, "linestyle": "--"} if curve.muted else {"color": next(colours)}
        if positive.all() or not positive.any():
            axis.plot([], [], label=f"{curve.name}: one class only", **style)
            continue
        false_positives, true_positives, _ = roc_curve(positive, curve.scores[:, place])
        auc = roc_auc_score(positive, curve.scores[:, place])
        axis.plot(false_positives, true_positives, label=f"{curve.name}: AUC {auc:.3f}", **style)
    axis.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axis.grid(alpha=0.25)
    axis.legend(loc="lower right", fontsize=7.5)


def plot_losses(history: pd.DataFrame, kept: Mapping[int, int], title: str, path: Path) -> None:
    """Training and validation loss of each fold's chosen setting.

    Args:
      history: columns `fold`, `epoch`, `train_loss`, `val_loss`; one setting a fold.
      kept: each fold's epoch whose weights predicted; marked.
      title: of the figure.
      path: PNG to write.
    """
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axis = figure.subplots()
    folds = [history[history["fold"] == fold] for fold in kept]
    for (fold, epoch), rows, colour in zip(kept.items(), folds, COLOURS * len(kept), strict=False):
        axis.plot(rows["epoch"], rows["train_loss"], color=colour, linewidth=1, linestyle="--")
        axis.plot(rows["epoch"], rows["val_loss"], color=colour, label=f"fold {fold}")
        at = rows[rows["epoch"] == epoch]
        axis.plot(at["epoch"], at["val_loss"], "o", color=colour, markersize=6)
    axis.plot([], [], color=GREY, linestyle="--", linewidth=1, label="training")
    axis.plot([], [], color=GREY, label="validation")
    axis.plot([], [], "o", color=GREY, label="epoch kept")
    axis.set(xlabel="epoch", ylabel="cross-entropy (nats)", title=title)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=120)


def plot_metrics(metrics: Path, path: Path, prototypes: int) -> None:
    """Curves of a pre-training run, a panel each, with what they would be if nothing were learned.

    Args:
      metrics: `metrics.jsonl`.
      path: PNG to write.
      prototypes: K; at log K targets and predictions are uniform.
    """
    lines = [line for line in metrics.read_text().splitlines() if line.strip()]
    table = pd.DataFrame([json.loads(line) for line in lines]).set_index("step")
    dino = table.filter(["dino_local", "dino_global"]).sum(axis=1)
    norms = list(table.filter(regex="^grad_norm").columns)
    uniform = float(np.log(prototypes))
    figure = Figure(figsize=(13, 9.5), layout="constrained")
    axes = figure.subplots(3, 3)
    _panel(axes[0, 0], _columns(table, "loss"), "Loss (weighted sum)")
    _panel(axes[0, 1], {"local + global": dino}, "DINO loss", reference=uniform)
    _panel(axes[0, 2], _columns(table, "dino_global", "dino_local"), "DINO terms")
    entropies = _columns(table, "target_entropy", "mean_target_entropy")
    _panel(axes[1, 0], entropies, "Entropy of the targets (nats)", reference=uniform)
    _panel(axes[1, 1], _columns(table, "ibot"), "iBOT loss")
    _panel(axes[1, 2], _columns(table, "koleo"), "KoLeo loss")
    _panel(axes[2, 0], _columns(table, "lr"), "Learning rate")
    _panel(axes[2, 1], _columns(table, "momentum", "weight_decay", "teacher_temp"), "Schedules")
    _panel(axes[2, 2], _columns(table, *norms), "Gradient norms before clipping")
    figure.suptitle("Pre-training", fontsize=12)
    figure.savefig(path, dpi=110)


def _columns(table: pd.DataFrame, *names: str) -> dict[str, pd.Series]:
    return {name: pd.Series(table[name]) for name in names if name in table}


def _panel(axis: Axes, curves: Mapping[str, pd.Series], title: str, reference: float | None = None) -> None:
    for (name, values), colour in zip(curves.items(), COLOURS, strict=False):
        # A run of one logged step would show nothing without a marker.
        axis.plot(values.index, values, color=colour, label=name, marker="." if len(values) < 2 else None)
    if reference is not None:
        axis.axhline(reference, color=GREY, linestyle="--", linewidth=1, label="log K: nothing learned")
    axis.set(title=title, xlabel="step")
    axis.grid(alpha=0.25)
    if curves or reference is not None:
        axis.legend(fontsize=8)
    else:
        axis.text(0.5, 0.5, "not part of this run", ha="center", va="center", transform=axis.transAxes, color=GREY)
