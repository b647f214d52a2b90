"""The training loop: steps, evaluations, saves, and what ends it early."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dinojax import progress, sharding, tree
from dinojax.data.sources import BadFile
from dinojax.dino.assembly import DeviceBatch, Pretraining
from dinojax.dino.monitor import Monitor
from dinojax.dino.state import TrainState
from dinojax.errors import RunError, Stopped
from dinojax.runs.checkpoint import Checkpoints
from dinojax.runs.signals import StopRequest


class Hooks(NamedTuple):
    """What else happens in the course of a run."""

    show: Callable[[DeviceBatch], None]
    """Gets the first batch of the run."""
    save_best: Callable[[tree.Params, int], None]
    """Gets the teacher, and the number of steps taken, whenever it is the best so far."""
    redraw: Callable[[], None] | None = None
    """Is called after every save and evaluation."""


def train(
    run: Pretraining,
    state: TrainState,
    batches: Iterator[tuple[DeviceBatch, np.ndarray]],
    monitor: Monitor,
    checkpoints: Checkpoints,
    hooks: Hooks,
) -> TrainState:
    """Takes the steps that are left.

    Args:
      run: its parts.
      state: before the first of these steps.
      batches: on the device, each with the places of this process' images in the records.
      monitor: sees the metrics of every step.
      checkpoints: where the state is saved.
      hooks: are called as they say.

    Raises:
      Stopped: a signal asked for it; the state is saved.
      RunError: an unreadable file, or metrics of a run that cannot continue; saved is what can be trusted.
    """
    start, steps, together = int(state.step), run.timeline.steps, jax.process_count() > 1
    evaluated = np.any([np.zeros(steps, bool), *(evaluator.due for evaluator in run.evaluators)], axis=0)

    def teacher() -> tree.Params:
        return teacher_params(run.mesh, state)

    with StopRequest() as stop, progress.bar("pre-training", steps, start) as bar:
        if not start:
            monitor.begin(teacher)
        for done in range(start + 1, steps + 1):
            asked = time.perf_counter()
            try:
                batch, rows = next(batches)
            except RunError as error:  # a bad file, or a worker that died
                monitor.flush(teacher)
                where = f"after step {done - 1}" if done > 1 else "before the first step"
                if done > 1 and not together:  # other processes would not know of it
                    checkpoints.save(done - 1, state, suspect=monitor.suspect)
                    where += ", the state saved"
                advice = "; repair it, or resume with --on_bad_file skip" if isinstance(error, BadFile) else ""
                raise RunError(f"{error}: stopped {where}{advice}") from error
            waited = time.perf_counter() - asked
            if done == 1:
                hooks.show(batch)
            flag = np.full(len(rows), stop.name is not None)
            state, metrics = run.step(state, batch | sharding.put_batch(run.mesh, {"stop": flag}))
            monitor.record(done, metrics, rows, waited)
            bar(done, monitor.note)
            stopping = monitor.stop if together else stop.name is not None
            save = run.saved[done - 1] or stopping
            if save or evaluated[done - 1]:
                better, began = monitor.flush(teacher), time.perf_counter()
                if better:
                    hooks.save_best(teacher(), done)
                if save or better:
                    checkpoints.save(done, state, monitor.best[0] if better and monitor.best else None, monitor.suspect)
                if hooks.redraw is not None:
                    hooks.redraw()
                monitor.leave_out(time.perf_counter() - began)
            if stopping and done < steps:
                who = stop.name or "another process was asked to stop"
                raise Stopped(f"{who} at step {done}: the state is saved, and the same command resumes")
    return state


def teacher_params(mesh: Mesh, state: TrainState) -> tree.Params:
    """The teacher's parameters, whole, on one of this process' devices."""
    return sharding.gather(mesh, state.teacher)
