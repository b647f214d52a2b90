"""A run ends when it has gone wrong, and says why and with which files."""

import csv
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dinojax.config.pretrain import GuardConfig
from dinojax.data.records import read_records
from dinojax.dino import assembly as pretraining
from dinojax.dino import monitor
from dinojax.dino.health import Guard
from dinojax.dino.state import TrainState
from dinojax.errors import RunError, UsageError
from dinojax.models.store import read_description
from dinojax.protocols.probe import Accuracy
from dinojax.verbs import pretrain
from tests.verbs.test_pretrain import TINY, metrics


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of twelve pictures each, dark and bright."""
    folder, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 120)):
        (folder / name).mkdir()
        for number, pixels in enumerate(rng.integers(low, low + 130, (12, 60, 60), np.uint8)):
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def command(data: Path, out: Path, *more: str) -> list[str]:
    return [*TINY, "--data", str(data), "--out", str(out), *more]


def spoil(monkeypatch: pytest.MonkeyPatch, at: int, change: Callable[[TrainState], TrainState]) -> None:
    """Changes the state of a run before its step `at`."""
    prepare = pretraining.prepare

    def prepared(*given: Any) -> pretraining.Run:
        run = prepare(*given)

        def step(state: TrainState, batch: Any) -> Any:
            return run.step(change(state) if int(state.step) == at - 1 else state, batch)

        return run._replace(step=step)  # type: ignore[arg-type]

    monkeypatch.setattr(pretraining, "prepare", prepared)


def test_a_value_that_is_not_finite_stops_the_run_and_names_the_files(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, path = tmp_path / "run", "backbone.blocks.0.mlp.fc1.bias"
    with monkeypatch.context() as patched:
        spoil(patched, 4, lambda s: dataclasses.replace(s, student=s.student | {path: s.student[path] * jnp.nan}))
        with pytest.raises(RunError, match=r"loss is nan.* at step 4.*bright.*failed_batch\.csv") as caught:
            pretrain.main(command(classes, out, "--log_every", "5"))
    assert caught.value.status == 1
    assert "\n" not in str(caught.value)
    with (out / "failed_batch.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert all(row["step"] == "4" and (classes / row["path"]).is_file() for row in rows)
    assert [path.name for path in (out / "checkpoints").iterdir() if path.name.isdigit()] == ["2"]

    pretrain.main(command(classes, out, "--log_every", "5"))  # from the last good state
    pretrain.main(command(classes, tmp_path / "whole", "--log_every", "5"))
    assert metrics(out) == metrics(tmp_path / "whole")


def test_a_constant_teacher_stops_the_run(classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "backbone.norm.scale"
    spoil(monkeypatch, 3, lambda s: dataclasses.replace(s, teacher=s.teacher | {path: s.teacher[path] * 0}))
    with pytest.raises(RunError, match=r"all images have the same features .* at step 3"):
        pretrain.main(command(classes, tmp_path / "run"))


def test_uniform_targets_that_last_stop_the_run(classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "dino_head.last_layer.weight_g"

    def silence(state: TrainState) -> TrainState:
        return dataclasses.replace(state, teacher=state.teacher | {path: state.teacher[path] * 0})

    spoil(monkeypatch, 3, silence)
    with pytest.raises(RunError, match=r"collapsed to uniform ones: .* since step 3.* at step 4"):
        pretrain.main(command(classes, tmp_path / "run", "--guard.steps", "2", "--teacher.momentum", "1"))


def test_the_probe_is_in_the_metrics_and_keeps_the_best(classes: Path, tmp_path: Path) -> None:
    probe = ("--probe.data", str(classes), "--probe.every", "2", "--probe.k", "3")
    pretrain.main(command(classes, tmp_path / "run", "--log_every", "4", *probe))
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 2, 4, 6]
    assert {"probe", "probe_pixels", "probe_majority"} <= lines[0].keys()
    assert lines[0]["probe_majority"] == 0.5
    best = max(lines, key=lambda line: line["probe"])
    if best["step"]:
        stored = read_description(tmp_path / "run" / "model_best")
        assert stored["source"]["step"] == str(best["step"])


def test_the_first_batch_unreadable_leaves_no_trace_of_a_start(classes: Path, tmp_path: Path) -> None:
    """The run that goes on writes the line of step 0 once."""
    broken = tmp_path / "broken"
    shutil.copytree(classes, broken)
    for path in list((broken / "dark").glob("*.png")):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
        whole = path.with_suffix(".jpg").read_bytes()
        path.with_suffix(".jpg").write_bytes(whole[: len(whole) // 2])  # its header is whole
    probe = ("--probe.data", str(classes), "--probe.every", "2", "--probe.k", "3")
    with pytest.raises(RunError, match="stopped before the first step"):
        pretrain.main(command(broken, tmp_path / "run", *probe))
    pretrain.main(command(broken, tmp_path / "run", *probe, "--on_bad_file", "skip"))
    assert [line["step"] for line in metrics(tmp_path / "run")] == [0, 1, 2, 3, 4, 5, 6]


class Scores:
    """A probe that gives these accuracies one after the other."""

    def __init__(self, *accuracies: float) -> None:
        self._left = iter(accuracies)

    def measure(self, params: object) -> Accuracy:
        return Accuracy(next(self._left), 0.5)

    def baselines(self) -> dict[str, float]:
        return {"probe_pixels": 0.5, "probe_majority": 0.5}


def watch(classes: Path, out: Path, probe: Scores) -> monitor.Monitor:
    due = monitor.plan(steps=6, log_every=1, save_every=6, probe_every=2)
    records = read_records(str(classes), labelled=True)
    guard = Guard(GuardConfig(), 64, 0)
    return monitor.Monitor(out, None, guard, due, records, 8, probe, stop_below=0.1)  # type: ignore[arg-type]


def take(watched: monitor.Monitor, step: int) -> bool:
    values = {"loss": 1.0, "feature_std": 1.0, "target_entropy": 2.0, "mean_target_entropy": 2.0, "stop": 0.0}
    watched.take(step, {name: jnp.asarray(value) for name, value in values.items()}, np.arange(8), 0.0)
    return watched.settle(dict)


def test_a_probe_that_falls_stops_the_run(classes: Path, tmp_path: Path) -> None:
    watched = watch(classes, tmp_path, Scores(0.7, 0.8, 0.62, 0.59))
    watched.begin(dict)
    assert not take(watched, 1)
    assert take(watched, 2)
    assert watched.best == (0.8, 2)
    take(watched, 3)
    assert not take(watched, 4)
    take(watched, 5)
    with pytest.raises(RunError, match=r"fell from 0\.700 to 0\.590 at step 6.*stop_below 0\.1.*model_best"):
        take(watched, 6)


def test_a_run_that_goes_on_knows_its_start_and_its_best(classes: Path, tmp_path: Path) -> None:
    watched = watch(classes, tmp_path, Scores(0.75, 0.59))
    watched.replay([{"step": 0, "probe": 0.7}, {"step": 2, "probe": 0.8}, {"step": 3}], 3)
    assert not take(watched, 4)
    assert watched.best == (0.8, 2)
    with pytest.raises(RunError, match=r"fell from 0\.700 to 0\.590"):
        take(watched, 6)


def test_a_lost_start_is_not_passed_over(classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"probe\.stop_below needs the probe of step 0"):
        watch(classes, tmp_path, Scores()).replay([], 3)
    assert "no line up to step 3" in capsys.readouterr().out
