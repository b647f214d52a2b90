"""`python -m dinojax pretrain`: continues or begins DINOv2's self-supervised pre-training on a folder of images."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from dinojax import config as configuration
from dinojax import pretraining, progress, sharding, tree
from dinojax.checkpoint import Checkpoints, MetricsLog
from dinojax.config import PretrainConfig
from dinojax.data import pipeline
from dinojax.data.sources import BadFile, list_skipped
from dinojax.dino import step as dino
from dinojax.errors import RunError, Stopped, UsageError
from dinojax.evaluation import plots, sheets
from dinojax.models.store import save_model
from dinojax.signals import StopRequest

DeviceBatch = dict[str, jax.Array]
Step = Callable[[dino.TrainState, DeviceBatch], tuple[dino.TrainState, dict[str, jax.Array]]]


def main(arguments: list[str]) -> None:
    """Runs the pre-training that the command line describes, or goes on with it where it stopped."""
    config = configuration.parse(PretrainConfig, arguments, "pretrain")
    out = Path(config.out)
    mesh = sharding.make_mesh(config.batch_size)
    backbone = pretraining.make_backbone(config)
    source, headers = pretraining.open_source(config, backbone.channels)
    steps = pretraining.total_steps(config, len(source))
    graphs, params = dino.split_modules(backbone, pretraining.make_head(config, backbone.width))
    schedules = dino.make_schedules(steps, config.epochs, config.batch_size, config.optim, config.teacher)
    frozen_steps = round(config.optim.freeze_prototypes_epochs * steps / config.epochs)
    optimizer = dino.make_optimizer(params, backbone.arguments.depth, schedules, config.optim, frozen_steps)
    bound = pretraining.masked_bound(config)
    train_step = dino.make_train_step(graphs, optimizer, schedules, config.loss, bound, config.groups, config.seed)
    augment = pretraining.make_augment(config, backbone)
    replicated = sharding.replicated(mesh)
    step = jax.jit(
        lambda state, batch: train_step(state, augment(batch)), donate_argnums=0, out_shardings=(replicated, replicated)
    )

    configuration.store(config, out, config.accept_changes.split(","))
    (out / "figures").mkdir(exist_ok=True)
    checkpoints = Checkpoints(out / "checkpoints", config.keep_checkpoints)
    state = jax.device_put(dino.init_state(params, optimizer), replicated)
    state = checkpoints.restore(state) or state
    start = int(state.step)
    if start > steps:
        raise UsageError(f"{out} is at step {start}, beyond the {steps} steps asked for; raise steps or epochs")
    note = f"going on after step {start}" if start else "the first one compiles"
    print(f"{steps} steps of {config.batch_size} images on {mesh.size} {jax.default_backend()} device(s); {note}")
    due = itertools.islice(pretraining.read_batches(config, source, start), steps - start)
    batches = pipeline.prefetch(due, lambda batch: sharding.put_batch(mesh, batch))

    def show(batch: DeviceBatch) -> None:
        views = jax.jit(augment)(batch)
        sheets.crop_sheet(views["globals"], views["locals"], backbone.preprocessing, out / "figures" / "crops.png")

    try:
        state = train(config, step, state, batches, steps, checkpoints, show)
    finally:
        checkpoints.close()
        list_skipped([*headers.bad, *source.skipped], out / "skipped_files.csv")
        if (out / "metrics.jsonl").stat().st_size:
            plots.plot_metrics(out / "metrics.jsonl", out / "figures" / "curves.png", config.head.prototypes)
    backbone = tree.merge(graphs.backbone, tree.subtree("backbone", state.teacher))
    backbone.preprocessing = dataclasses.replace(backbone.preprocessing, size=config.crops.global_size)
    save_model(out / "model", backbone, source={"run": out.name, "step": str(steps)}, overwrite=True)
    print(f"done: {out / 'model'} holds the teacher's backbone; look at {out / 'figures'}")


def train(
    config: PretrainConfig,
    step: Step,
    state: dino.TrainState,
    batches: Iterator[DeviceBatch],
    steps: int,
    checkpoints: Checkpoints,
    show: Callable[[DeviceBatch], None],
) -> dino.TrainState:
    """Takes the steps that are left. A signal or an unreadable file ends the run after its state is saved."""
    start = int(state.step)
    metrics_file = Path(config.out) / "metrics.jsonl"
    with (
        MetricsLog(metrics_file, start) as log,
        StopRequest() as stop,
        progress.bar("pre-training", steps, start) as bar,
    ):
        began, waited, logged, note = time.perf_counter(), 0.0, start, ""
        for done in range(start + 1, steps + 1):
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except BadFile as error:
                checkpoints.save(done - 1, state)
                advice = "mend it, or go on with --on_bad_file skip"
                raise RunError(f"{error}; stopped with the state saved after step {done - 1}: {advice}") from error
            waited += time.perf_counter() - asked
            if done == 1:
                show(batch)
            state, metrics = step(state, batch)
            if done % config.log_every == 0 or done == steps:
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                seconds = time.perf_counter() - began
                images = (done - logged) * config.batch_size
                log.write(done, values, {"images_per_s": images / seconds, "seconds": seconds, "data_wait": waited})
                if not np.isfinite(values["loss"]):
                    raise RunError(f"the loss is {values['loss']} at step {done}; the last checkpoint is from before")
                note = f"loss {values['loss']:.3f}, {images / seconds:.1f} images/s"
                began, waited, logged = time.perf_counter(), 0.0, done
            bar(done, note)
            if done % config.checkpoint_every == 0 or done == steps or stop.name:
                checkpoints.save(done, state)
            if stop.name and done < steps:
                raise Stopped(f"{stop.name} at step {done}: the state is saved, and the same command goes on")
    return state
