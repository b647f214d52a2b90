"""`python -m dinojax pretrain`: continues or begins DINOv2's self-supervised pre-training on a folder of images."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from dinojax import processes, progress, sharding, tree
from dinojax.config import parser as configuration
from dinojax.config.pretrain import PretrainConfig
from dinojax.data import pipeline
from dinojax.data.decode import BadFile, list_skipped
from dinojax.dino import assembly as pretraining
from dinojax.dino import monitor
from dinojax.dino.assembly import DeviceBatch, Run
from dinojax.dino.health import Guard
from dinojax.dino.monitor import Due, Monitor
from dinojax.dino.state import TrainState
from dinojax.errors import RunError, Stopped, UsageError
from dinojax.look import sheets
from dinojax.report import plots
from dinojax.runs import checkpoint
from dinojax.runs import directory as rundir
from dinojax.runs.checkpoint import Checkpoints, MetricsLog
from dinojax.runs.signals import StopRequest

Batches = Iterator[tuple[DeviceBatch, np.ndarray]]


def main(arguments: list[str]) -> None:
    """Runs the pre-training that the command line describes, or goes on with it where it stopped."""
    config = configuration.parse(PretrainConfig, arguments, "pretrain")
    with processes.joined(config.distributed) as lead:
        pretrain(config, lead)


def pretrain(config: PretrainConfig, lead: bool) -> None:
    """One process of a run; the one that leads writes all but its share of the checkpoints."""
    out, accepted = Path(config.out), [key for key in config.accept_changes.split(",") if key]
    mesh = sharding.make_mesh(config.batch_size, config.fsdp)
    backbone = pretraining.make_backbone(config)
    source, headers = pretraining.open_source(config, backbone.channels)
    pretraining.check_agreement(config, source)
    steps = pretraining.total_steps(config, len(source))
    probe = pretraining.make_probe(config, backbone)
    probe_every = (config.probe.every or pretraining.epoch_steps(config, len(source))) if probe else None
    due = monitor.plan(steps, config.log_every, config.checkpoint_every, probe_every)
    run = pretraining.prepare(config, mesh, backbone, steps, due.logged)

    with rundir.lock(out) if lead else contextlib.nullcontext(), contextlib.ExitStack() as stack:
        rundir.check_config(config, out, accepted)
        if lead:
            rundir.pin_data(out, source.records.paths.tolist(), accept="data" in accepted)
        checkpoints = Checkpoints(out / "checkpoints", config.keep_checkpoints)
        stack.callback(checkpoints.close)
        restored = checkpoints.restore(run.state)
        state = run.state if restored is None else restored
        start = int(state.step)
        if start > steps:
            raise UsageError(f"{out} is at step {start}, beyond the {steps} steps asked for; raise steps or epochs")
        log = None
        if lead:
            rundir.write_config(config, out, start)
            (out / "figures").mkdir(exist_ok=True)
            log = stack.enter_context(MetricsLog(out / "metrics.jsonl", None if restored is None else start))
            stack.callback(leave_figures, out, config.head.prototypes, lambda: [*headers.bad, *source.skipped])
        guard = Guard(config.guard, config.head.prototypes, pretraining.warmup_steps(config, run))
        stop_below = config.probe.stop_below
        watch = Monitor(out, log, guard, due, source.records, config.batch_size, probe, stop_below)
        watch.replay(checkpoint.read_metrics(out / "metrics.jsonl") if restored is not None else [], start)
        note = f"going on after step {start}" if start else "the first one compiles"
        print(f"{steps} steps of {config.batch_size} images on {mesh.size} {jax.default_backend()} device(s); {note}")

        part = jax.process_index(), jax.process_count()
        due_batches = itertools.islice(pretraining.read_batches(config, source, start, part), steps - start)
        batches = pipeline.prefetch(due_batches, lambda batch: (sharding.put_batch(mesh, batch), batch["index"]))
        stack.callback(batches.close)  # type: ignore[attr-defined]
        state = train(config, mesh, run, state, batches, due, checkpoints, watch, lead)
        save(run, teacher(mesh, state), out / "model", config, steps, lead)
    print(f"done: {out / 'model'} holds the teacher's backbone; look at {out / 'figures'}")


def train(
    config: PretrainConfig,
    mesh: Mesh,
    run: Run,
    state: TrainState,
    batches: Batches,
    due: Due,
    checkpoints: Checkpoints,
    watch: Monitor,
    lead: bool,
) -> TrainState:
    """Takes the steps that are left. A signal or an unreadable file ends the run after its state is saved."""
    start, steps, out = int(state.step), len(due.logged), Path(config.out)
    with StopRequest() as stop, progress.bar("pre-training", steps, start) as bar:
        if not start:
            watch.begin(lambda: teacher(mesh, state))
        for done in range(start + 1, steps + 1):
            asked = time.perf_counter()
            try:
                batch, rows = next(batches)
            except RunError as error:  # a bad file, or a worker that died
                watch.settle(lambda state=state: teacher(mesh, state))
                where = f"after step {done - 1}" if done > 1 else "before the first step"
                if done > 1 and jax.process_count() == 1:  # other processes would not know of it
                    checkpoints.save(done - 1, state, suspect=watch.suspect)
                    where += ", the state saved"
                advice = "; mend it, or go on with --on_bad_file skip" if isinstance(error, BadFile) else ""
                raise RunError(f"{error}: stopped {where}{advice}") from error
            waited = time.perf_counter() - asked
            if done == 1 and lead and jax.process_count() == 1:
                views = jax.jit(run.augment)(batch)
                shown = (views["globals"], views["locals"], run.backbone.preprocessing)
                sheets.crop_sheet(*shown, out / "figures" / "crops.png")
            flag = np.full(config.batch_size // jax.process_count(), stop.name is not None)
            state, metrics = run.step(state, batch | sharding.put_batch(mesh, {"stop": flag}))
            watch.take(done, metrics, rows, waited)
            bar(done, watch.note)
            asked_to_stop = watch.stop if jax.process_count() > 1 else stop.name is not None
            if due.probed[done - 1] or due.saved[done - 1] or asked_to_stop:
                better = watch.settle(lambda state=state: teacher(mesh, state))
                if better:
                    save(run, teacher(mesh, state), out / "model_best", config, done, lead)
                if due.saved[done - 1] or asked_to_stop or better:
                    checkpoints.save(done, state, watch.best[0] if better and watch.best else None, watch.suspect)
            if asked_to_stop and done < steps:
                who = stop.name or "another process was asked to stop"
                raise Stopped(f"{who} at step {done}: the state is saved, and the same command goes on")
    return state


def leave_figures(out: Path, prototypes: int, skipped: Callable[[], list[tuple[str, str]]]) -> None:
    """Draws the curves and lists the files that were skipped; what hinders it hides no other error."""
    try:
        plots.plot_metrics(out / "metrics.jsonl", out / "figures" / "curves.png", prototypes)
        list_skipped(skipped(), out / "skipped_files.csv")
    except OSError as error:
        print(f"the curves in {out / 'figures'} or skipped_files.csv are not of the end: {rundir.reason(error)}")


def teacher(mesh: Mesh, state: TrainState) -> tree.Params:
    """The teacher's parameters, whole, on one of this process' devices."""
    return sharding.local(sharding.gather(mesh, state.teacher))


def save(run: Run, params: tree.Params, directory: Path, config: PretrainConfig, step: int, lead: bool) -> None:
    """Writes a teacher, in the process that leads."""
    if lead:
        pretraining.save_teacher(run, params, directory, config, step)
