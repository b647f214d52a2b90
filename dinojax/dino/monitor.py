"""What a pre-training run says of itself: its metrics line by line, its probe, and why it has to stop."""

import csv
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from dinojax import tree
from dinojax.data.records import Records
from dinojax.dino.health import Guard, not_finite
from dinojax.errors import RunError, UsageError
from dinojax.protocols.probe import Accuracy, Probe
from dinojax.runs.checkpoint import MetricsLog


class Due(NamedTuple):
    """Which steps are written, probed and saved; bool [steps] each, the first place being step 1."""

    logged: np.ndarray
    probed: np.ndarray
    saved: np.ndarray


def plan(steps: int, log_every: int, save_every: int, probe_every: int | None) -> Due:
    """Every so many steps, and the last one; what is probed is also written."""
    done = np.arange(1, steps + 1)
    last = done == steps
    probed = (done % probe_every == 0) | last if probe_every else np.zeros(steps, bool)
    return Due((done % log_every == 0) | last | probed, probed, (done % save_every == 0) | last)


class _Taken(NamedTuple):
    """A step that the device may still be at."""

    step: int
    metrics: Mapping[str, jax.Array]
    rows: np.ndarray
    """Places of this process' images of the batch in the records."""
    waited: float


class Monitor:
    """Reads each step's metrics while the device is at the next one, and ends a run that cannot go on.

    Attributes:
      note: for the progress bar.
      stop: whether a process has asked to stop.
      best: (accuracy, step) of the best probe so far.
    """

    def __init__(
        self,
        out: Path,
        log: MetricsLog | None,
        guard: Guard,
        due: Due,
        records: Records,
        batch_size: int,
        probe: Probe | None = None,
        stop_below: float | None = None,
    ) -> None:
        """A monitor at the beginning of a run.

        Args:
          out: the run's directory.
          log: None in processes that write nothing.
          guard: decides from the metrics.
          due: from `plan`.
          records: that the batches' rows are places in.
          batch_size: B, of all processes.
          probe: measured before the first step and where it is due.
          stop_below: see `ProbeConfig`.
        """
        self.note, self.stop = "", False
        self.best: tuple[float, int] | None = None
        self._start: float | None = None
        self._out, self._log, self._guard, self._due, self._records = out, log, guard, due, records
        self._batch_size, self._probe, self._stop_below = batch_size, probe, stop_below
        self._taken: _Taken | None = None
        self._began, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def replay(self, lines: Iterable[Mapping[str, Any]], start: int) -> None:
        """Takes in what the run wrote up to step `start`, after which it goes on.

        Raises:
          UsageError: `stop_below` is set, but the first probe is not among the lines.
        """
        lines = [line for line in lines if line["step"] <= start]
        if self._due.logged[:start].any() and not any(line["step"] for line in lines):
            print(f"metrics.jsonl has no line up to step {start}: curves, best probe and guard begin anew", flush=True)
        if start and self._stop_below is not None and not any("probe" in line and not line["step"] for line in lines):
            raise UsageError(
                f"probe.stop_below needs the probe of step 0, which {self._out / 'metrics.jsonl'} does not have; "
                "put the file back, or go on without stop_below and --accept_changes probe.stop_below"
            )
        self._guard.replay([line for line in lines if line["step"]])
        for line in lines:
            if "probe" in line:
                self._note_probe(line["step"], line["probe"])

    @property
    def suspect(self) -> int | None:
        """The step since which the run looks as if it had collapsed, if it does."""
        return self._guard.since

    def begin(self, teacher: Callable[[], tree.Params]) -> None:
        """Probes a run before its first step, and holds the accuracy against trivial methods."""
        if self._probe is None:
            return
        values = self._measure(teacher) | self._probe.baselines()
        self._note_probe(0, values["probe"])
        if self._log:
            self._log.write(0, values, {"memory_gib": _memory()})
        told = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        print(f"before the first step: {told}", flush=True)
        self._began = time.perf_counter()

    def take(self, step: int, metrics: Mapping[str, jax.Array], rows: np.ndarray, waited: float) -> None:
        """Notes a step that was begun, and settles the one before.

        Args:
          step: from 1.
          metrics: of the step, on the device.
          rows: int, places of this process' images in the records.
          waited: seconds that the batch was waited for.
        """
        before, self._taken = self._taken, _Taken(step, metrics, rows, waited)
        if before is not None:
            self._settle(before, None)

    def settle(self, teacher: Callable[[], tree.Params]) -> bool:
        """Waits for the step that was taken last, and probes where it is due.

        Args:
          teacher: gives its parameters after that step.

        Returns:
          Whether the probe is the best so far.

        Raises:
          RunError: the run cannot go on, and why.
        """
        taken, self._taken = self._taken, None
        if taken is None:
            return False
        self._settle(taken, teacher)
        if self._log:
            self._log.sync()
        return self.best is not None and self.best[1] == taken.step

    def _settle(self, taken: _Taken, teacher: Callable[[], tree.Params] | None) -> None:
        values = {name: float(value) for name, value in jax.device_get(dict(taken.metrics)).items()}
        self.stop = bool(values.pop("stop"))
        self._waited += taken.waited
        self._steps += 1
        if reason := not_finite(taken.step, values):
            self._fail(reason, taken)
        if not self._due.logged[taken.step - 1]:
            return
        seconds = time.perf_counter() - self._began
        speed = self._steps * self._batch_size / seconds
        told = {"images_per_s": speed, "seconds": seconds, "data_wait": self._waited, "memory_gib": _memory()}
        if teacher is not None and self._due.probed[taken.step - 1] and self._probe is not None:
            values |= self._measure(teacher)
            told["probe_seconds"] = time.perf_counter() - self._began - seconds
        if self._log:
            self._log.write(taken.step, values, told | _device_memory())
        self.note = f"loss {values['loss']:.3f}, {speed:.1f} images/s"
        self._began, self._waited, self._steps = time.perf_counter(), 0.0, 0
        if reason := self._guard.check(taken.step, values):
            self._fail(reason, taken)
        if "probe" in values:
            self._note_probe(taken.step, values["probe"])
            self.note += f", probe {values['probe']:.3f}"
            self._judge_probe(taken.step, values["probe"])

    def _measure(self, teacher: Callable[[], tree.Params]) -> dict[str, float]:
        assert self._probe is not None
        found = self._probe.measure(tree.subtree("backbone", teacher()))
        if jax.process_count() > 1:  # rounding could let processes disagree on which one is the best
            found = Accuracy(*multihost_utils.broadcast_one_to_all(np.array(found)).tolist())
        return {"probe": found.plain, "probe_balanced": found.balanced}

    def _note_probe(self, step: int, accuracy: float) -> None:
        if step == 0:
            self._start = accuracy
        if self.best is None or accuracy > self.best[0]:
            self.best = accuracy, step

    def _judge_probe(self, step: int, accuracy: float) -> None:
        if self._stop_below is None or self._start is None or accuracy >= self._start - self._stop_below:
            return
        best = (
            "none was better than the start" if self.best is None or self.best[1] == 0 else "model_best holds the best"
        )
        raise RunError(
            f"the probe fell from {self._start:.3f} to {accuracy:.3f} at step {step}, by more than probe.stop_below "
            f"{self._stop_below:g} ({best}); lower optim.lr or lengthen its warm-up, in another --out"
        )

    def _fail(self, reason: str, taken: _Taken) -> None:
        path = self._out / "failed_batch.csv"
        rows = taken.rows
        if jax.process_count() > 1:  # each has its share of the batch, and all of them fail here
            rows = np.asarray(multihost_utils.process_allgather(rows)).ravel()
        files = self._records.paths[rows].tolist()
        if self._log:
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([("step", "path"), *((taken.step, name) for name in files)])
        first = ", ".join(files[:3])
        raise RunError(
            f"{reason}. The files of the batch: {first}{' and more' if len(files) > 3 else ''}, all in {path}; "
            "the checkpoints before it are kept"
        )


def _memory() -> float:
    """The most memory of the host that this process has had, in GiB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**30 if sys.platform == "darwin" else 2**20)


def _device_memory() -> dict[str, float]:
    """The most memory that this process' devices have had, where they tell."""
    told = [stats["peak_bytes_in_use"] for device in jax.local_devices() if (stats := device.memory_stats())]
    return {"device_memory_gib": max(told) / 2**30} if told else {}
