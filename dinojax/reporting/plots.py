"""Figures of runs, as PNG files. Every figure is an object of its own: no global state of pyplot's."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from dinojax.reporting.predictions import Question
from dinojax.reporting.statistics import question_auc
from dinojax.runs.files import replacing

# Okabe & Ito's colours, which most colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#888888"


class Curve(NamedTuple):
    """What one model answers, to be drawn as a ROC curve for each question."""

    name: str
    questions: Sequence[Question]
    muted: bool = False
    """Drawn grey and dashed: a baseline."""


def plot_roc(curves: Sequence[Curve], title: str, path: Path) -> None:
    """ROC curves, a panel for each question.

    Args:
      curves: of the same questions; where one lacks positive or negative cases, the legend says so instead.
      title: of the figure.
      path: PNG to write.
    """
    # Beyond some curves the legend would hide them: it moves below the panel.
    below = len(curves) > 7
    height = 4.9 + (0.5 + 0.19 * len(curves) if below else 0)
    legend: dict[str, Any] = (
        {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)} if below else {"loc": "lower right"}
    )
    figure, axes = _panels(len(curves[0].questions), 3, (4.8, height), title)
    for place, axis in enumerate(axes):
        _roc_panel(axis, [(curve.name, curve.questions[place], curve.muted) for curve in curves])
        axis.set_anchor("N")
        axis.legend(fontsize=7.5, **legend)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def _panels(count: int, columns: int, size: tuple[float, float], title: str) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels of `size` (width, height) in inches, at most `columns` in a row."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows + 0.3), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def _roc_panel(axis: Axes, curves: Sequence[tuple[str, Question, bool]]) -> None:
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    styles = itertools.product(("-", "-.", (0, (5, 1, 1, 1, 1, 1))), COLOURS)
    for name, question, muted in curves:
        style: dict[str, Any] = {"color": GREY, "linestyle": "--"}
        if not muted:
            style["linestyle"], style["color"] = next(styles, ("-", GREY))
        if (auc := question_auc(question)) is None:
            axis.plot([], [], label=f"{name}: one class only", **style)
            continue
        false_positives, true_positives, _ = roc_curve(question.labels, question.scores)
        axis.plot(false_positives, true_positives, label=f"{name}: AUC {auc:.3f}", **style)
    axis.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axis.set_title(f"{curves[0][1].name} against {curves[0][1].rest}", fontsize=10)
    axis.grid(alpha=0.25)


def plot_losses(history: pd.DataFrame, kept: Mapping[int, int], title: str, path: Path) -> None:
    """Training and validation loss of each fold's chosen setting.

    Args:
      history: columns `fold`, `epoch`, `train_loss`, `val_loss`; one setting per fold.
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
    figure, axes = _panels(len(panels), 3 if len(panels) <= 9 else 4, (4.4, 3.1), "Pre-training")
    for axis, panel in zip(axes, panels, strict=True):
        _draw(axis, panel)
    with replacing(path, "wb") as file:  # it may be looked at while it is drawn anew
        figure.savefig(file, format="png", dpi=110)


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
    for (name, values), colour in zip(panel.curves.items(), COLOURS * len(panel.curves), strict=False):
        # A run of one logged step would show nothing without a marker.
        axis.plot(values.index, values, color=colour, label=name, marker="." if len(values) < 2 else None)
    if panel.best is not None:
        first = next(iter(panel.curves.values())).iloc[[panel.best]]
        axis.plot(first.index, first, "o", color=COLOURS[0], markersize=7)
    for (name, value), style in zip(panel.references.items(), ("--", ":"), strict=False):
        axis.axhline(value, color=GREY, linestyle=style, linewidth=1, label=name)
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel("step")
    axis.grid(alpha=0.25)
    if len(panel.curves) > 1 or panel.references:
        axis.legend(fontsize=8)
