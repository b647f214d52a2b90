"""Which figures a run gets, and what stands in them."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from dinojax.reporting.figures import draw_run
from dinojax.reporting.plots import Curve, plot_roc
from dinojax.reporting.predictions import Question
from dinojax.reporting.results import read_run
from tests.tasks import finished_run, write_task


def test_losses_are_drawn_where_a_protocol_has_epochs(tmp_path: Path) -> None:
    data = write_task(tmp_path / "data")
    for protocol, expected in (("finetune", {"roc.png", "losses.png"}), ("knn", {"roc.png"})):
        run = read_run(finished_run(tmp_path / protocol, data, protocol=protocol))
        draw_run(run, run.directory / "figures")
        assert {path.name for path in (run.directory / "figures").iterdir()} == expected


def test_every_question_has_a_panel_and_every_curve_its_auc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: drawn.append(figure))
    scores = np.asarray([0.1, 0.4, 0.35, 0.8])
    good = Question("a", "no a", np.asarray([False, False, True, True]), scores)
    none = Question("b", "no b", np.asarray([False] * 4), scores)
    curves = [Curve(str(number), [good, none], muted=number == 8) for number in range(9)]
    plot_roc(curves, "title", tmp_path / "roc.png")
    first, second = (axis for axis in drawn[0].axes if axis.get_title())
    assert (first.get_title(), second.get_title()) == ("a against no a", "b against no b")
    for axis, told in ((first, "AUC 0.750"), (second, "one class only")):
        legend = axis.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == [f"{n}: {told}" for n in range(9)]
    lines = {(line.get_color(), str(line.get_linestyle())) for line in first.lines}
    assert len(lines) == 10  # the diagonal, and no two curves of one style
