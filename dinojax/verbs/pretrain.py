"""`dinojax pretrain`: DINOv2's self-supervised pre-training on a folder of images."""

import contextlib
import itertools
from functools import partial
from pathlib import Path

import jax

from dinojax import processes, sharding, tree
from dinojax.config import parser
from dinojax.config.pretrain import PretrainConfig
from dinojax.data import pipeline
from dinojax.data.duplicates import equal_files
from dinojax.dino import assembly
from dinojax.dino.loop import Hooks, teacher_params, train
from dinojax.dino.modules import save_teacher
from dinojax.dino.monitor import Monitor
from dinojax.dino.outputs import Curves, leave_corpus, leave_figures, leave_verdict
from dinojax.errors import UsageError
from dinojax.look import sheets
from dinojax.protocols.starting_point import with_model_of_init
from dinojax.runs.checkpoint import Checkpoints
from dinojax.runs.directory import check_config, check_free, lock, pin_data, write_config
from dinojax.runs.files import read_json, write_json
from dinojax.runs.metrics import MetricsLog, read_metrics
from dinojax.runs.trackers import check_trackers, open_trackers


def main(config: PretrainConfig) -> Path:
    """Runs a pre-training, or resumes it where it stopped."""
    with processes.joined(config.distributed) as lead:
        pretrain(config, lead)
    return Path(config.out)


def pretrain(config: PretrainConfig, lead: bool) -> None:
    """One process of a run; the lead process writes everything but the others' shares of the checkpoints."""
    config = with_model_of_init(config)
    out, accepted = Path(config.out), parser.names(config.accept_changes)
    check_config(config, out, accepted)
    check_trackers(config.log_to)
    if lead:
        check_free(out)
    run = assembly.assemble(config, resuming=any((out / "checkpoints").glob("[0-9]*")))
    run = assembly.compile_step(run, config)
    if config.check:
        return
    mesh, source, steps, size = run.mesh, run.source, run.timeline.steps, config.batch_size
    paths = source.records.paths.tolist()
    curves = Curves(out, config)

    def save(params: tree.Params, step: int, name: str = "model_best") -> None:
        if lead:
            save_teacher(out / name, run.backbone, params, config.crops.global_size, out.name, step)

    def show(batch: assembly.DeviceBatch) -> None:
        if lead and jax.process_count() == 1:
            views = jax.jit(run.augment)(batch)
            crops = (views["globals"], views["locals"])
            sheets.crop_sheet(*crops, run.backbone.preprocessing, out / "figures" / "crops.png")

    with lock(out) if lead else contextlib.nullcontext(), contextlib.ExitStack() as stack:
        if lead:
            pin_data(out, source.records.flat().paths.tolist(), accept="data" in accepted)
        checkpoints = Checkpoints(out / "checkpoints", config.keep_checkpoints)
        stack.callback(checkpoints.close)
        state = run.state
        if resumed := bool(checkpoints.steps()):
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
            jax.tree.map(lambda x: x.delete(), state)  # else the devices would hold two states
            state = checkpoints.restore(like)
            assert state is not None
        start = int(state.step)
        if start > steps:
            raise UsageError(f"{out} is at step {start}, beyond the {steps} steps asked for; raise steps or epochs")
        log = None
        if lead:
            write_config(config, out, start)
            known = read_json(out / "facts.json") if resumed and (out / "facts.json").exists() else {}
            write_json(out / "facts.json", known | run.facts)
            (out / "figures").mkdir(exist_ok=True)
            track = open_trackers(config.log_to, out, parser.flatten(config), start) if config.log_to else None
            log = stack.enter_context(MetricsLog(out / "metrics.jsonl", start if resumed else None, track))
            stack.callback(leave_figures, out, curves, lambda: [*run.headers.bad, *source.skipped])
        equal = partial(equal_files, source.records)
        monitor = Monitor(out, log, run.guard, run.logged, paths, size, run.evaluators, equal)
        monitor.replay(read_metrics(out / "metrics.jsonl") if resumed else [], start)
        print(f"resuming after step {start} of {steps}" if start else f"{steps} steps of {size} images", flush=True)

        left = itertools.islice(run.read_batches(start), steps - start)
        batches = pipeline.prefetch(left, lambda batch: (sharding.put_batch(mesh, batch), batch["index"]))
        stack.callback(batches.close)  # type: ignore[attr-defined]
        hooks = Hooks(show, save, curves.redraw if lead else None)
        state = train(run, state, batches, monitor, checkpoints, hooks)
        save(teacher_params(mesh, state), steps, "model")
        if lead:
            leave_corpus(out, source.records, config)
            print(leave_verdict(out, config))
    print(f"done: {out / 'model'} holds the teacher's backbone; look at {out / 'figures'}")
