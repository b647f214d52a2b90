"""Which figures a run gets, and what stands in them."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from dinojax.reporting.figures import draw_comparison, draw_run
from dinojax.reporting.lettering import drawable
from dinojax.reporting.plots import plot_losses
from dinojax.reporting.predictions import Question
from dinojax.reporting.results import read_run
from dinojax.reporting.roc import Curve, pages, plot_roc
from tests.tasks import finished_run, write_task


def test_losses_are_drawn_where_a_protocol_has_epochs(tmp_path: Path) -> None:
    data = write_task(tmp_path / "data")
    for protocol, expected in (("finetune", {"roc.png", "losses.png"}), ("knn", {"roc.png"})):
        run = read_run(finished_run(tmp_path / protocol, data, protocol=protocol))
        draw_run(run, run.directory / "figures")
        assert {path.name for path in (run.directory / "figures").iterdir()} == expected


class Drawn(NamedTuple):
    """A figure as it was saved, in inches."""

    axes: list[Axes]
    width: float
    panels: list[tuple[float, float]]
    legends: list[Bbox]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Drawn]:
    """What is saved from here on."""
    figures: list[Drawn] = []

    def record(figure: Figure, path: Path, **options: Any) -> None:
        renderer = FigureCanvasAgg(figure).get_renderer()

        def inches(box: Bbox) -> Bbox:
            return box.transformed(figure.dpi_scale_trans.inverted())

        whole = Bbox.from_bounds(0, 0, *figure.get_size_inches())
        panels, legends = [inches(axis.get_window_extent(renderer)) for axis in figure.axes], []
        for axis, panel in zip(figure.axes, panels, strict=True):
            tight = axis.get_tightbbox(renderer)
            assert tight is not None
            assert inside(inches(tight), whole)
            if (legend := axis.get_legend()) is not None:
                legends.append(inches(legend.get_window_extent(renderer)))
                assert not any(legends[-1].overlaps(other) for other in panels)
                assert not any(legends[-1].overlaps(other) for other in legends[:-1])
            assert not any(panel.overlaps(other) for other in panels if other is not panel)
        assert all(inside(inches(text.get_window_extent(renderer)), whole) for text in figure.texts)
        figures.append(Drawn(figure.axes, whole.width, [(panel.width, panel.height) for panel in panels], legends))

    monkeypatch.setattr(Figure, "savefig", record)
    return figures


def inside(box: Bbox, whole: Bbox) -> bool:
    return whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1


SCORES = np.asarray([0.1, 0.4, 0.35, 0.8])
GOOD = Question("a", "no a", np.asarray([False, False, True, True]), SCORES)
NONE = Question("b", "no b", np.asarray([False] * 4), SCORES)


def test_every_question_has_a_panel_and_every_curve_its_auc(tmp_path: Path, drawn: list[Drawn]) -> None:
    curves = [Curve(str(number), [GOOD, NONE], muted=number == 8) for number in range(9)]
    plot_roc(curves, "title", tmp_path / "roc.png")
    first, second = drawn[0].axes
    assert (first.get_title("left"), second.get_title("left")) == ("a against no a", "b against no b")
    for axis, told in ((first, "AUC\xa00.750"), (second, "one class only")):
        legend = axis.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == [f"{n}: {told}" for n in range(9)]
    lines = {(line.get_color(), str(line.get_linestyle())) for line in first.lines}
    assert len(lines) == 10  # the diagonal, and no two curves of one style


LONG = "a checkpoint pre-trained for three hundred epochs on all the ultrasound images there are"
UGLY = [*(f"{LONG}, {n}" for n in range(5)), "w" * 90, "Грудь: $x^2$ \\ & $", "_hidden", "乳腺\nультразвук"]


@pytest.mark.parametrize("count", [1, 6])
def test_panels_keep_their_size_whatever_the_names(tmp_path: Path, drawn: list[Drawn], count: int) -> None:
    """Also no text leaves the figure and no legend lies on a panel, which `drawn` checks."""
    for names, label in ((["a", "b"], "c"), (UGLY, LONG), (["a"] * 12, "W_" * 40)):
        curves = [Curve(name, [GOOD._replace(name=label)] * count) for name in names]
        for page in pages(curves):
            plot_roc(page, f"{names[0]}: test cases", tmp_path / "roc.png")
    assert {figure.width for figure in drawn} == {7.2}
    sizes = {(round(width, 3), round(height, 3)) for figure in drawn for width, height in figure.panels}
    assert len(sizes) == 1
    assert min(sizes.pop()) > 2.5
    assert max(len(figure.axes) for figure in drawn) <= 4
    assert sum(len(figure.axes) for figure in drawn) == 3 * count


def test_every_name_is_in_the_legend_and_no_two_look_the_same(tmp_path: Path, drawn: list[Drawn]) -> None:
    names = [*UGLY, "\U000f0000\U000f0001", "\U000f0002\U000f0003"]  # letters that no font has
    plot_roc([Curve(name, [GOOD]) for name in names], "title", tmp_path / "roc.png")
    legend = drawn[0].axes[0].get_legend()
    assert legend is not None
    shown = [text.get_text().replace("\n", " ") for text in legend.get_texts()]
    assert [text.startswith(LONG[:20]) and f", {n}: AUC" in text for n, text in enumerate(shown[:5])] == [True] * 5
    assert shown[6:8] == ["Грудь: $x^2$ \\ & $: AUC\xa00.750", "_hidden: AUC\xa00.750"]
    assert shown[9:] == ["10. □□: AUC\xa00.750", "11. □□: AUC\xa00.750"]


@pytest.mark.parametrize("folds", [1, 8, 30])
def test_losses_of_many_folds_are_told_apart(tmp_path: Path, drawn: list[Drawn], folds: int) -> None:
    rows = [(fold, epoch, 1.0, 12345.0) for fold in range(1, folds + 1) for epoch in (1, 2)]
    history = pd.DataFrame(rows, columns=["fold", "epoch", "train_loss", "val_loss"])
    plot_losses(history, dict.fromkeys(range(1, folds + 1), 1), f"{LONG}, {LONG}", tmp_path / "losses.png")
    (axis,) = drawn[0].axes
    assert len({line.get_color() for line in axis.lines}) == folds + 1  # and grey
    assert len(drawn[0].legends) == 1


@pytest.mark.parametrize(
    ("classes", "folds", "title"),
    [
        (("benign", "malignant"), 1, "breast: test cases of its one fold; positive: malignant"),
        (("a", "b", "c", "d"), 3, "breast: test cases of all folds; one-vs-rest, each class positive in turn"),
    ],
)
def test_a_figure_says_which_class_is_positive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: tuple[str, ...], folds: int, title: str
) -> None:
    titles = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, path, **_: titles.append(figure.texts[0].get_text().replace("\n", " "))
    )
    data = write_task(tmp_path / "data", classes, per_class=8)
    run = read_run(finished_run(tmp_path / "run", data, protocol="knn", folds=folds))
    draw_comparison([run], tmp_path)
    draw_run(run, tmp_path)
    assert titles == [title, f"breast, random, knn: test cases; {title.split('; ')[1]}"]


def test_names_longer_than_a_file_system_allows_have_figures(tmp_path: Path) -> None:
    data = write_task(tmp_path / "data")
    run = read_run(finished_run(tmp_path / "run", data, "乳" * 90, task="腺" * 80))
    shown = draw_comparison([run], tmp_path)["腺" * 80]
    assert all(picture.path.stat().st_size for picture in shown)
    assert all("□ stands for letters that no font of this machine has" in picture.caption for picture in shown) == (
        drawable("乳腺") != "乳腺"
    )
