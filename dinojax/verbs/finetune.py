"""`python -m dinojax finetune`: every fold with every setting of one starting point, and what comes of them."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from dinojax import progress, sharding, tree
from dinojax.config import parser as configuration
from dinojax.config.finetune import FinetuneConfig
from dinojax.data.folds import folds_table, make_folds
from dinojax.data.memory import Cases, load_cases
from dinojax.data.sources import list_skipped, read_records
from dinojax.errors import Stopped, UsageError
from dinojax.models import Model, Preprocessing, ResNet, create_model
from dinojax.models.heads import Classifier
from dinojax.models.resnet import SMALLEST
from dinojax.models.store import load_model
from dinojax.protocols import study as studies
from dinojax.protocols.finetuning import Recipe, fit, head_of, make_grid, make_steps
from dinojax.protocols.study import Study
from dinojax.runs import directory as rundir
from dinojax.runs.signals import StopRequest

# A change of anything else would mix the units of two recipes.
CHANGEABLE = ("data", "data_root")


def main(arguments: list[str]) -> None:
    """Runs the fine-tuning that the command line describes, or goes on with it where it stopped."""
    config = configuration.parse(FinetuneConfig, arguments, "finetune")
    out = Path(config.out)
    settings, accepted = make_grid(config.lrs, config.batch_sizes), [k for k in config.accept_changes.split(",") if k]
    rundir.check_config(config, out, accepted, CHANGEABLE)
    recipe = Recipe(config.epochs, config.epoch_selection, config.image_size, config.augment, config.threads)
    if (out / "results.json").exists():
        print(f"{out} is finished: see {out / 'results.json'}, or choose another --out to run it again")
        return
    backbone = make_backbone(config)
    records = read_records(
        config.data,
        labelled=True,
        data_root=config.data_root,
        group_regex=config.group_regex,
        positive_class=config.positive_class,
    )
    print(records.summary())
    records, cases, skipped = load_cases(
        records, backbone.channels, config.image_size, config.threads, config.on_bad_file == "skip"
    )
    study = Study(
        out=out,
        task=config.task or records.task,
        starting_point=config.starting_point or studies.name_of(config.init),
        seed=config.seed,
        protocol=config.selection,
        records=records,
        folds=make_folds(records, config.folds, config.seed),
        settings=settings,
    )
    study.check()
    with rundir.lock(out):
        studies.pin_folds(out, folds_table(records, study.folds))
        rundir.write_config(config, out)
        list_skipped(skipped, out / "skipped_files.csv")
        train_units(config, recipe, study, backbone, cases)
        finish(config, study, backbone, cases)


def finish(config: FinetuneConfig, study: Study, backbone: Model, cases: Cases) -> None:
    """Writes what comes of all the units."""
    facts = {
        **{name: getattr(config, name) for name in ("image_size", "normalisation", "epochs", "epoch_selection")},
        **{"classifier": head_of(config.classifier, backbone), "augment": dataclasses.asdict(config.augment)},
        "weight_decay": config.weight_decay,
        "recipe": {
            **{name: getattr(config, name) for name in ("image_size", "normalisation", "epochs", "epoch_selection")},
            **{f"classifier.{name}": value for name, value in head_of(config.classifier, backbone).items()},
            "weight_decay": config.weight_decay,
            **{f"augment.{name}": str(value) for name, value in dataclasses.asdict(config.augment).items()},
            "model": f"{backbone.name}, {form(dataclasses.asdict(backbone.arguments))}, channels {backbone.channels}",
        },
        "preprocessing": dataclasses.asdict(backbone.preprocessing),
        "init": config.init,
        "model": {"name": backbone.name, **dataclasses.asdict(backbone.arguments)},
    }
    described = studies.finish(study, cases, facts)
    print(f"done: {studies.describe(described)}; look at {study.out / 'results.json'} and {study.out / 'figures'}")


def form(arguments: dict[str, Any]) -> str:
    """A model's width and depth in words."""
    if "filters" in arguments:  # a ResNet
        return f"width {4 * arguments['filters'][-1]}, blocks {'-'.join(map(str, arguments['blocks']))}"
    return f"width {arguments['width']}, depth {arguments['depth']}"


def train_units(config: FinetuneConfig, recipe: Recipe, study: Study, backbone: Model, cases: Cases) -> None:
    """Fits every setting on every fold, but for those that are finished; a signal ends it after the step it is at."""
    outputs = 1 if len(study.records.classes) == 2 else len(study.records.classes)
    head = {"outputs": outputs, **head_of(config.classifier, backbone)}
    details = {"classifier": head, "image_size": config.image_size, "normalisation": config.normalisation}
    graph, params = tree.split(Classifier(backbone, **head, rngs=nnx.Rngs(0)))
    steps = {
        batch_size: make_steps(graph, params, config.weight_decay, sharding.widest_mesh(batch_size, config.fsdp))
        for batch_size in config.batch_sizes
    }
    for batch_size, made in steps.items():
        if made.mesh.size < jax.device_count():
            print(
                f"batches of {batch_size} use {made.mesh.size} of {jax.device_count()} devices: more do not divide them"
            )
    units = [(number, fold, setting) for number, fold in study.numbered_folds() for setting in study.settings]
    with StopRequest() as stop, progress.bar("fine-tuning", len(units) * config.epochs) as bar:

        def after_step() -> None:
            if stop.name:
                raise Stopped(f"{stop.name}: what is finished is saved, and the same command goes on in {study.out}")

        for place, (number, fold, setting) in enumerate(units):
            if not study.scores(number, setting).exists():
                after_epoch = partial(show, bar, place * config.epochs, f"fold {number}, {setting.name}")
                # Order, augmentation and the head's weights are the same for every setting of a fold.
                seed = int(np.random.SeedSequence((config.seed, number)).generate_state(1)[0] >> 1)
                _, start = tree.split(Classifier(backbone, **head, rngs=nnx.Rngs(seed)))
                made = steps[setting.batch_size]
                fitted = fit(made, start, cases, fold, setting, recipe, seed, after_step, after_epoch)
                studies.store_unit(study, number, setting, fitted, backbone, details)
            if setting == study.settings[-1]:
                studies.drop_losers(study, number)


def show(bar: Callable[[int, str], None], before: int, unit: str, epoch: int, val_loss: float) -> None:
    """Tells of an epoch that has ended, `before` epochs having ended in other units."""
    bar(before + epoch, f"{unit}: validation loss {val_loss:.3f}")


def make_backbone(config: FinetuneConfig) -> Model:
    """The model of `init`, or one with random weights, with the preprocessing that this run uses."""
    if config.init is not None:
        backbone = load_model(config.init)
    else:
        given = {name: value for name, value in dataclasses.asdict(config.model).items() if value is not None}
        backbone = create_model(rngs=nnx.Rngs(config.seed), **given)
    size = config.image_size
    if isinstance(backbone, ResNet):
        if size < SMALLEST:
            raise UsageError(f"image_size {size} is too small for a ResNet; it must be {SMALLEST} or above")
        if size == SMALLEST and 1 in config.batch_sizes:
            raise UsageError(f"batch_sizes 1 at image_size {size} leaves BatchNorm one value; take more of either")
    elif size % backbone.arguments.patch_size:
        raise UsageError(f"image_size {size} is not a multiple of the patch size, {backbone.arguments.patch_size}")
    used = dataclasses.replace(backbone.preprocessing, size=size)
    if config.normalisation == "none":
        used = Preprocessing(size, (0.0,) * backbone.channels, (1.0,) * backbone.channels)
    backbone.preprocessing = used
    return backbone
