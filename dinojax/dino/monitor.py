"""Watches a pre-training run: its metrics line by line, its evaluators, and why it has to stop."""

import csv
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from dinojax import tree
from dinojax.dino.evaluators import Evaluator, Measure
from dinojax.dino.health import Guard, not_finite
from dinojax.errors import RunError, UsageError
from dinojax.runs.files import replacing
from dinojax.runs.metrics import MetricsLog

Teacher = Callable[[], tree.Params]


class _PendingStep(NamedTuple):
    """A step that the device may still be computing."""

    step: int
    metrics: Mapping[str, jax.Array]
    rows: np.ndarray
    """Places of this process' images of the batch in the paths."""
    waited: float


class Monitor:
    """Reads each step's metrics while the device computes the next one, and ends a run that cannot continue.

    Attributes:
      note: for the progress bar.
      stop: whether a process was asked to stop.
      best: (score, step) of the best teacher so far.
    """

    def __init__(
        self,
        out: Path,
        log: MetricsLog | None,
        guard: Guard,
        logged: np.ndarray,
        paths: Sequence[str] | np.ndarray,
        batch_size: int,
        evaluators: Sequence[Evaluator] = (),
        equal: Callable[[np.ndarray], str] = lambda rows: "",
    ) -> None:
        """A monitor at the beginning of a run.

        Args:
          out: the run's directory.
          log: None in processes that write nothing.
          guard: decides from the metrics.
          logged: bool [steps]: the steps whose metrics are written, all that are due for an evaluator among them.
          paths: of the images, which the batches' rows are places in.
          batch_size: B, of all processes.
          evaluators: measure before the first step and where they are due; at most one has a score.
          equal: names equal images among those of a batch's rows.
        """
        self.note, self.stop = "", False
        self.best: tuple[float, int] | None = None
        self._start: float | None = None
        self._first: dict[str, Any] = {}
        self._out, self._log, self._guard, self._logged, self._paths = out, log, guard, logged, paths
        self._batch_size, self._evaluators, self._equal = batch_size, evaluators, equal
        scored = [evaluator for evaluator in evaluators if evaluator.score]
        if len(scored) > 1:
            raise ValueError(f"only one score can decide which teacher is the best, not {[e.score for e in scored]}")
        self._scored, self._score = (scored[0], str(scored[0].score)) if scored else (None, "")
        self._pending: _PendingStep | None = None
        self._began, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def replay(self, lines: Iterable[Mapping[str, Any]], start: int) -> None:
        """Takes in the lines that the run wrote up to step `start`, from which it resumes.

        Raises:
          UsageError: an evaluator may stop the run, but its first score is not among the lines.
        """
        lines, scored = [line for line in lines if line["step"] <= start], self._scored
        if self._logged[:start].any() and not any(line["step"] for line in lines):
            print(f"metrics.jsonl has no line up to step {start}: curves, best and guard start afresh", flush=True)
        scores = {line["step"]: line[self._score] for line in lines if self._score in line}
        if start and scored and scored.stop_below is not None and 0 not in scores:
            raise UsageError(
                f"{scored.name}.stop_below needs the {scored.name} of step 0, which {self._out / 'metrics.jsonl'} "
                f"does not have; put the file back, or resume without it and --accept_changes {scored.name}.stop_below"
            )
        self._first = dict(next((line for line in lines if not line["step"]), {}))
        self._guard.replay([line for line in lines if line["step"]])
        for step, score in scores.items():
            self._note_score(step, score)

    @property
    def suspect(self) -> int | None:
        """The step since which the run looks as if it had collapsed, if it does."""
        return self._guard.since

    def begin(self, teacher: Teacher) -> None:
        """Runs the evaluators before the first step."""
        if not self._evaluators:
            return
        params, values = teacher(), {}
        for evaluator in self._evaluators:
            values |= _measure(evaluator.begin, params)
        self._first = dict(values)
        if self._scored:
            self._note_score(0, values[self._score])
        if self._log:
            self._log.write(0, values, {"memory_gib": _memory()})
        shares = {name: f"{value:.3f}" if value <= 1 else f"{value:g}" for name, value in values.items()}
        listed = ", ".join(f"{name} {value}" for name, value in shares.items())
        print(f"before the first step: {listed}", flush=True)
        self._began = time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Leaves so much of the time since the last line, which was spent on something else, out of the speed."""
        self._began += seconds

    def record(self, step: int, metrics: Mapping[str, jax.Array], rows: np.ndarray, waited: float) -> None:
        """Keeps the metrics of a step that was dispatched, and processes those of the step before.

        Args:
          step: from 1.
          metrics: of the step, on the device.
          rows: int, places of this process' images in the paths.
          waited: seconds that the batch was waited for.
        """
        before, self._pending = self._pending, _PendingStep(step, metrics, rows, waited)
        if before is not None:
            self._process(before, None)

    def flush(self, teacher: Teacher) -> bool:
        """Waits for the step that was recorded last, and runs the evaluators that are due after it.

        Args:
          teacher: gives its parameters after that step.

        Returns:
          Whether the teacher is the best so far.

        Raises:
          RunError: the run cannot continue, and why.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return False
        self._process(pending, teacher)
        if self._log:
            self._log.sync()
        return self.best is not None and self.best[1] == pending.step

    def _process(self, pending: _PendingStep, teacher: Teacher | None) -> None:
        step = pending.step
        values = {name: float(value) for name, value in jax.device_get(dict(pending.metrics)).items()}
        self.stop = bool(values.pop("stop"))
        self._waited += pending.waited
        self._steps += 1
        if reason := not_finite(step, values, lambda: self._equal(pending.rows)):
            self._fail(reason, pending)
        if not self._logged[step - 1]:
            return
        seconds = time.perf_counter() - self._began
        speed = self._steps * self._batch_size / seconds
        clock = {"images_per_s": speed, "seconds": seconds, "data_wait": self._waited, "memory_gib": _memory()}
        due = [evaluator for evaluator in self._evaluators if evaluator.due[step - 1]] if teacher else []
        params = teacher() if teacher and due else {}
        measured: dict[str, dict[str, float]] = {}
        for evaluator in due:
            began = time.perf_counter()
            measured[evaluator.name] = _measure(evaluator.measure, params)
            clock[f"{evaluator.name}_seconds"] = time.perf_counter() - began
        for found in measured.values():
            values |= found
        if self._log:
            self._log.write(step, values, clock | _device_memory())
        self.note = f"loss {values['loss']:.3f}, {speed:.1f} images/s"
        self._began, self._waited, self._steps = time.perf_counter(), 0.0, 0
        if reason := self._guard.check(step, values):
            self._fail(reason, pending)
        if self._scored and self._scored in due:
            self._note_score(step, values[self._score])
        if measured:
            self._tell(step, measured)
        if self._scored and self._scored in due:
            self._judge(self._scored, step, values[self._score])

    def _tell(self, step: int, measured: Mapping[str, Mapping[str, float]]) -> None:
        """Prints a line on what the evaluators have found: the score beside its start, its baseline and its best."""
        told = []
        for name, values in measured.items():
            if not self._scored or name != self._scored.name:
                told += [f"{metric} {value:.3f}" for metric, value in values.items()]
                continue
            beside = {"start": self._start, "pixels": self._first.get(f"{self._score}_pixels")}
            known = ", ".join(f"{word} {value:.3f}" for word, value in beside.items() if value is not None)
            best = f", best {self.best[0]:.3f} at step {self.best[1]}" if self.best else ""
            told.append(f"{self._score} {values[self._score]:.3f}{f' ({known})' if known else ''}{best}")
        print(f"step {step}: {', '.join(told)}", flush=True)

    def _judge(self, evaluator: Evaluator, step: int, score: float) -> None:
        """Ends a run whose score has fallen too far."""
        if evaluator.stop_below is None or self._start is None or score >= self._start - evaluator.stop_below:
            return
        name = evaluator.name
        assert self.best is not None
        best = "model_best holds the best" if self.best[1] else "none was better than the start"
        raise RunError(
            f"the {name} fell from {self._start:.3f} to {score:.3f} at step {step}, by more than {name}.stop_below "
            f"{evaluator.stop_below:g} ({best}); lower optim.lr or lengthen its warm-up, in another --out"
        )

    def _note_score(self, step: int, score: float) -> None:
        if step == 0:
            self._start = score
        if self.best is None or score > self.best[0]:
            self.best = score, step

    def _fail(self, reason: str, pending: _PendingStep) -> None:
        path, rows = self._out / "failed_batch.csv", pending.rows
        if jax.process_count() > 1:  # each has its share of the batch, and all of them fail here
            rows = np.asarray(multihost_utils.process_allgather(rows)).ravel()
        files = [str(self._paths[row]) for row in rows]
        if self._log:
            with replacing(path, newline="") as file:
                csv.writer(file).writerows([("step", "path"), *((pending.step, name) for name in files)])
        first = ", ".join(files[:3])
        raise RunError(
            f"{reason}. The files of the batch: {first}{' and more' if len(files) > 3 else ''}, all in {path}; "
            "the checkpoints before it are kept"
        )


def _measure(measure: Measure, params: tree.Params) -> dict[str, float]:
    values = measure(params)
    if jax.process_count() > 1:  # rounding could let processes disagree on which teacher is the best
        agreed = multihost_utils.broadcast_one_to_all(np.array(list(values.values())))
        values = dict(zip(values, np.asarray(agreed).tolist(), strict=True))
    return values


def _memory() -> float:
    """The most memory of the host that this process has had, in GiB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**30 if sys.platform == "darwin" else 2**20)


def _device_memory() -> dict[str, float]:
    """The most memory that this process' devices have had, where they report it."""
    peaks = [stats["peak_bytes_in_use"] for device in jax.local_devices() if (stats := device.memory_stats())]
    return {"device_memory_gib": max(peaks) / 2**30} if peaks else {}
