"""A run ends when it has gone wrong, and says why and with which files; on recorded metrics, without training."""

import csv
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dinojax.config.pretrain import GuardConfig
from dinojax.data.duplicates import equal_files
from dinojax.data.reading import read_records
from dinojax.dino import monitor as monitoring
from dinojax.dino.evaluators import Evaluator, every, knn_evaluator
from dinojax.dino.health import Guard
from dinojax.dino.monitor import Monitor
from dinojax.errors import RunError, UsageError
from dinojax.runs.metrics import MetricsLog

PATHS = [f"images/{number}.png" for number in range(20)]
WELL = {"loss": 1.0, "feature_std": 1.0, "target_entropy": 2.0, "mean_target_entropy": 2.0, "stop": 0.0}
STEPS = 6


class Probe:
    """Gives these accuracies one after the other."""

    def __init__(self, *accuracies: float) -> None:
        self._left = iter(accuracies)

    def measure(self, params: dict[str, str]) -> dict[str, float]:
        assert params == {"norm.scale": "of the teacher"}
        return {"probe": next(self._left), "probe_balanced": 0.4}

    def baselines(self) -> dict[str, float]:
        return {"probe_pixels": 0.5, "probe_majority": 0.5}


def teacher() -> Any:
    return {"backbone.norm.scale": "of the teacher", "dino_head.mlp.0.bias": "as well"}


def probed(*accuracies: float) -> Evaluator:
    return knn_evaluator(Probe(*accuracies), every(STEPS, 2), stop_below=0.1)  # type: ignore[arg-type]


def watch(
    out: Path,
    evaluators: Sequence[Evaluator] = (),
    log: MetricsLog | None = None,
    log_every: int = 1,
    guard_steps: int = 500,
) -> Monitor:
    logged = np.any([every(STEPS, log_every), *(evaluator.due for evaluator in evaluators)], axis=0)
    guard = Guard(GuardConfig(steps=guard_steps), prototypes=64, warmup_steps=1)
    return Monitor(out, log, guard, logged, PATHS, 8, evaluators)


def record(monitor: Monitor, step: int, **changed: float) -> None:
    values = {name: jnp.asarray(value) for name, value in (WELL | changed).items()}
    monitor.record(step, values, np.arange(step, step + 8), waited=0.0)


def take(monitor: Monitor, step: int, **changed: float) -> bool:
    record(monitor, step, **changed)
    return monitor.flush(teacher)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_every_so_many_steps_and_the_last() -> None:
    assert every(7, 3).tolist() == [False, False, True, False, False, True, True]


def test_a_value_that_is_not_finite_stops_the_run_and_names_the_files(tmp_path: Path) -> None:
    """Also in a step that is not logged, and as soon as the next step is recorded."""
    with MetricsLog(tmp_path / "metrics.jsonl", None) as log:
        monitor = watch(tmp_path, log=log, log_every=5)
        record(monitor, 1)
        record(monitor, 2, koleo=float("nan"))
        with pytest.raises(RunError, match=r"koleo is nan at step 2.*images/2\.png.* and more.*failed_batch\.csv"):
            record(monitor, 3)
    with (tmp_path / "failed_batch.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"step": "2", "path": PATHS[place]} for place in range(2, 10)]
    assert lines(tmp_path) == []


def test_equal_images_of_the_batch_are_named_where_koleo_fails(tmp_path: Path) -> None:
    for name, value in (("0.png", 1), ("1.png", 2), ("2.png", 1), ("3.png", 3)):
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(tmp_path / name)
    records = read_records(str(tmp_path), labelled=False)
    assert equal_files(records, np.array([1, 3, 3])) == ""
    guard = Guard(GuardConfig(), prototypes=64, warmup_steps=1)
    equal = partial(equal_files, records)
    for rows, advice in (
        ([0, 1, 2, 3], r"equal images \(0\.png = 2\.png\).*remove the copies"),
        ([0, 1, 3], "lower optim"),
    ):
        monitor = Monitor(tmp_path, None, guard, np.ones(STEPS, bool), records.paths.tolist(), 4, equal=equal)
        values = {name: jnp.asarray(value) for name, value in (WELL | {"koleo": float("inf")}).items()}
        monitor.record(1, values, np.array(rows), waited=0.0)
        with pytest.raises(RunError, match=rf"koleo is inf at step 1; .*{advice}"):
            monitor.flush(teacher)


def test_a_constant_teacher_stops_the_run(tmp_path: Path) -> None:
    monitor = watch(tmp_path)
    take(monitor, 1)
    with pytest.raises(RunError, match=r"all images have the same features .* at step 2"):
        take(monitor, 2, feature_std=1e-8)


def test_uniform_targets_that_last_stop_the_run(tmp_path: Path) -> None:
    monitor = watch(tmp_path, guard_steps=2)
    take(monitor, 1, target_entropy=float(np.log(64)))  # in the warm-up
    take(monitor, 2)
    assert monitor.suspect is None
    take(monitor, 3, target_entropy=float(np.log(64)))
    assert monitor.suspect == 3
    with pytest.raises(RunError, match=r"collapsed to uniform ones: .* since step 3.* at step 4"):
        take(monitor, 4, target_entropy=float(np.log(64)))


def test_another_process_that_was_asked_to_stop_is_heard(tmp_path: Path) -> None:
    monitor = watch(tmp_path)
    take(monitor, 1)
    assert not monitor.stop
    take(monitor, 2, stop=1.0)
    assert monitor.stop


def test_a_probe_that_falls_stops_the_run(tmp_path: Path) -> None:
    monitor = watch(tmp_path, [probed(0.7, 0.8, 0.62, 0.59)])
    monitor.begin(teacher)
    assert not take(monitor, 1)
    assert take(monitor, 2)
    assert monitor.best == (0.8, 2)
    assert monitor.note.startswith("loss 1.000, ")
    take(monitor, 3)
    assert not take(monitor, 4)
    take(monitor, 5)
    with pytest.raises(
        RunError, match=r"probe fell from 0\.700 to 0\.590 at step 6.*probe\.stop_below 0\.1.*model_best"
    ):
        take(monitor, 6)


def test_every_probe_is_a_line_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of a resumed run, which has read start and baseline from the metrics."""
    monitor = watch(tmp_path, [probed(0.7, 0.8, 0.75)])
    monitor.begin(teacher)
    for step in range(1, 5):
        take(monitor, step)
    told = capsys.readouterr().out.splitlines()
    assert told[-2:] == [
        "step 2: probe 0.800 (start 0.700, pixels 0.500), best 0.800 at step 2",
        "step 4: probe 0.750 (start 0.700, pixels 0.500), best 0.800 at step 2",
    ]
    monitor = watch(tmp_path, [probed(0.9)])
    monitor.replay([{"step": 0, "probe": 0.7, "probe_pixels": 0.5}, {"step": 4, "probe": 0.8}], 4)
    take(monitor, 6)
    assert "step 6: probe 0.900 (start 0.700, pixels 0.500), best 0.900 at step 6" in capsys.readouterr().out


def test_the_speed_leaves_probes_and_saves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes a second of this clock, a probe 100, a save 1000."""
    now = 0.0
    monkeypatch.setattr(monitoring.time, "perf_counter", lambda: now)

    def slow(params: Any) -> dict[str, float]:
        nonlocal now
        now += 100
        return {"slow": 1.0}

    with MetricsLog(tmp_path / "metrics.jsonl", None) as log:
        monitor = watch(tmp_path, [Evaluator("slow", every(STEPS, 2), slow, slow)], log)
        monitor.begin(teacher)
        for step in range(1, STEPS + 1):
            now += 1
            take(monitor, step)
            now += 1000
            monitor.leave_out(1000)
    assert [line["time"]["images_per_s"] for line in lines(tmp_path)[1:]] == [8.0] * STEPS


def test_a_run_that_resumes_knows_its_start_and_its_best(tmp_path: Path) -> None:
    monitor = watch(tmp_path, [probed(0.75, 0.59)])
    monitor.replay([{"step": 0, "probe": 0.7}, {"step": 2, "probe": 0.8}, {"step": 3}, {"step": 4, "probe": 0.9}], 3)
    assert not take(monitor, 4)
    assert monitor.best == (0.8, 2)
    with pytest.raises(RunError, match=r"fell from 0\.700 to 0\.590"):
        take(monitor, 6)


def test_a_lost_start_is_not_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"probe\.stop_below needs the probe of step 0"):
        watch(tmp_path, [probed()]).replay([], 3)
    assert "no line up to step 3" in capsys.readouterr().out


def test_a_second_evaluator_is_plugged_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The monitor knows neither: it asks each where it is due, and writes what it is given."""
    seen = []

    def count(params: Any) -> dict[str, float]:
        seen.append(params)
        return {"counted": float(len(seen))}

    due = np.array([True, False, False, True, False, False])
    counter = Evaluator("count", due, count, begin=lambda params: count(params) | {"counted_baseline": 0.25})
    with MetricsLog(tmp_path / "metrics.jsonl", None) as log:
        monitor = watch(tmp_path, [probed(0.5, 0.6, 0.7, 0.8), counter], log, log_every=STEPS)
        monitor.begin(teacher)
        better = [take(monitor, step) for step in range(1, STEPS + 1)]
    assert better == [False, True, False, True, False, True]
    assert "probe 0.500, probe_balanced 0.400" in (told := capsys.readouterr().out)
    assert "counted 1.000, counted_baseline 0.250" in told
    assert all(params == teacher() for params in seen)
    written = {line.pop("step"): line for line in lines(tmp_path)}
    evaluated = {
        step: {name: value for name, value in line.items() if name[:5] in ("probe", "count")}
        for step, line in written.items()
    }
    assert evaluated == {
        0: {
            **{"probe": 0.5, "probe_balanced": 0.4, "probe_pixels": 0.5, "probe_majority": 0.5},
            **{"counted": 1.0, "counted_baseline": 0.25},
        },
        1: {"counted": 2.0},
        2: {"probe": 0.6, "probe_balanced": 0.4},
        4: {"probe": 0.7, "probe_balanced": 0.4, "counted": 3.0},
        6: {"probe": 0.8, "probe_balanced": 0.4},
    }
    clocks = {step: {name for name in line["time"] if name.endswith("_seconds")} for step, line in written.items()}
    assert clocks == {
        0: set(),
        1: {"count_seconds"},
        2: {"probe_seconds"},
        4: {"probe_seconds", "count_seconds"},
        6: {"probe_seconds"},
    }


def test_one_score_decides_which_teacher_is_the_best(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only one score"):
        watch(tmp_path, [probed(), probed()])
