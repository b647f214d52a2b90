"""ROC curves of runs or of folds: a panel for each question, a few panels a figure."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from sklearn.metrics import roc_curve

from dinojax.reporting.layout import Sheet
from dinojax.reporting.lettering import drawable, plain_text
from dinojax.reporting.plots import COLOURS, GREY
from dinojax.reporting.predictions import Question
from dinojax.reporting.statistics import question_auc

_ALONE, _PAIRED = 3.9, 2.75
"""Inches of a panel's side: of one by itself, and of two in a row."""


class Curve(NamedTuple):
    """What one model answers, to be drawn as a ROC curve for each question."""

    name: str
    questions: Sequence[Question]
    muted: bool = False
    """Drawn grey and dashed: a baseline."""


def pages(curves: Sequence[Curve]) -> list[list[Curve]]:
    """The same curves with their questions dealt out to figures: four each, two where the legends are long."""
    each = 4 if len(curves) <= 6 else 2
    count = len(curves[0].questions)
    return [
        [curve._replace(questions=curve.questions[first : first + each]) for curve in curves]
        for first in range(0, count, each)
    ]


def plot_roc(curves: Sequence[Curve], title: str, path: Path) -> None:
    """Draws ROC curves, a panel for each question, at most two in a row.

    Args:
      curves: of the same questions; where one lacks positive or negative cases, the legend says so instead.
      title: of the figure.
      path: PNG to write.
    """
    count, names = len(curves[0].questions), _distinct([curve.name for curve in curves])
    columns, side = (1, _ALONE) if count == 1 else (2, _PAIRED)
    with plain_text():
        sheet = Sheet(title, count, columns, (side, side))
        for place, axis in enumerate(sheet.axes):
            asked = [curve.questions[place] for curve in curves]
            sheet.entitle(axis, f"{asked[0].name} against {asked[0].rest}")
            lines = _draw(axis, asked, [curve.muted for curve in curves])
            texts = [f"{name}: {_auc(question)}" for name, question in zip(names, asked, strict=True)]
            sheet.explain(axis, lines, texts, beside=count == 1)
        sheet.save(path)


def _distinct(names: Sequence[str]) -> list[str]:
    """Names as a figure can show them; numbered where they would look the same for want of letters."""
    shown = [drawable(name) for name in names]
    return [f"{n}. {name}" if shown.count(name) > 1 else name for n, name in enumerate(shown, start=1)]


def _auc(question: Question) -> str:
    auc = question_auc(question)
    # A space that does not break.
    return "one class only" if auc is None else f"AUC\N{NO-BREAK SPACE}{auc:.3f}"


def _draw(axis: Axes, asked: Sequence[Question], muted: Sequence[bool]) -> list[Line2D]:
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    styles = itertools.product(("-", "-.", (0, (5, 1, 1, 1, 1, 1))), COLOURS)
    lines = []
    for question, is_muted in zip(asked, muted, strict=True):
        style: dict[str, Any] = {"color": GREY, "linestyle": "--"}
        if not is_muted:
            style["linestyle"], style["color"] = next(styles, ("-", GREY))
        points = [], []
        if question_auc(question) is not None:
            points = roc_curve(question.labels, question.scores)[:2]
        lines += axis.plot(*points, **style)
    axis.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axis.grid(alpha=0.25)
    return lines
