"""What a run leaves for its user: curves that are drawn while it goes on, and never end it."""

import json
from pathlib import Path

import pytest

from dinojax.config.pretrain import PretrainConfig
from dinojax.dino import outputs
from dinojax.dino.outputs import Curves


def test_curves_are_drawn_anew_but_not_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Drawing takes a second of this clock."""
    now, broken, drawn = 0.0, False, []

    def plot(metrics: Path, path: Path, *form: float) -> None:
        nonlocal now
        now += 1
        drawn.append((now, form))
        if broken:
            raise ValueError("no such font")

    monkeypatch.setattr(outputs.time, "monotonic", lambda: now)
    monkeypatch.setattr(outputs.plots, "plot_metrics", plot)
    curves = Curves(tmp_path, PretrainConfig(data="d", out="o", batch_size=8))
    for _ in range(100):
        curves.redraw()
        now += 1
    assert [moment for moment, _ in drawn] == [11, 42, 73]
    assert drawn[0][1] == (65536, 1.0, 16)
    broken = True
    curves.draw()
    curves.draw()
    assert capsys.readouterr().out == f"{tmp_path / 'figures' / 'curves.png'} is out of date: no such font\n"


def test_a_failure_leaves_the_former_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = Curves(tmp_path, PretrainConfig(data="d", out="o"))
    line = {"step": 1, "loss": 6.0, "prototypes_used": 0.001}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    curves.draw()
    before = (tmp_path / "figures" / "curves.png").read_bytes()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **form: file.write(b"half") and 1 / 0)
    curves.draw()
    assert (tmp_path / "figures" / "curves.png").read_bytes() == before
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["curves.png"]
