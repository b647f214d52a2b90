"""`dinojax finetune`: every fold with every setting of one starting point, and what follows from them."""

from functools import partial
from pathlib import Path

from dinojax import progress
from dinojax.config import parser
from dinojax.config.finetune import FinetuneConfig
from dinojax.data.duplicates import write_dropped
from dinojax.data.facts import render
from dinojax.data.headers import list_skipped
from dinojax.errors import Stopped
from dinojax.models.preprocessing import keep_intensity
from dinojax.protocols import assembly, pixels, recipes
from dinojax.protocols.finetuning import make_grid
from dinojax.protocols.starting_point import with_model_of_init
from dinojax.protocols.study import Scored, Unit, is_finished, summarise
from dinojax.protocols.task import Task
from dinojax.runs.directory import check_config, lock, write_config
from dinojax.runs.signals import StopRequest

# Changing any other key would mix the units of two configurations.
CHANGEABLE = ("data", "data_root")


def main(config: FinetuneConfig) -> Path:
    """Runs a fine-tuning, or resumes it."""
    out, settings = Path(config.out), make_grid(config.lrs, config.batch_sizes)
    config = with_model_of_init(config)
    check_config(config, out, parser.names(config.accept_changes), CHANGEABLE)
    if is_finished(out):
        return out
    backbone = assembly.make_backbone(config)
    cases = assembly.read_cases(config, backbone.preprocessing.intensity)
    keep_intensity(backbone, cases.headers.rules)
    classifier, rates = assembly.make_classifier(config, backbone, Task.of(cases.records))
    facts, here = recipes.finetuning_facts(config, cases, classifier, rates)
    print(render(facts | here), flush=True)
    if config.check:
        return out
    with lock(out):
        decoded = assembly.decode_cases(config, backbone, cases)
        cases = assembly.without_skipped(config, cases, decoded.records)
        recipe = recipes.finetuning_recipe(config, classifier, rates)
        study = assembly.make_study(config, "finetune", cases, settings, "val_loss", recipe, facts)
        images = decoded.views["image"]
        finetuning = assembly.make_finetuning(config, study, classifier, rates, images, cases.twins)
        study.begin()
        write_config(config, out)
        write_dropped(cases.dropped, out)
        list_skipped(decoded.skipped, out / "skipped_files.csv")
        pixels.run_pixels(study, decoded.views["pixels"])
        total, done = (count * config.epochs for count in (len(study.units()), study.finished()))
        with StopRequest() as stop, progress.bar("fine-tuning", total, done) as bar:

            def after_step() -> None:
                if stop.name:
                    raise Stopped(f"{stop.name}: finished units are saved, and the same command resumes {out}")

            def show(unit: Unit, epoch: int, val_loss: float) -> None:
                name = f"fold {unit.number}, {unit.setting.name}"
                bar(unit.place * config.epochs + epoch, f"{name}: validation loss {val_loss:.3f}")

            def score(unit: Unit) -> Scored:
                return finetuning(unit, after_step, partial(show, unit))

            results = study.run(score)
    print(f"done: {summarise(results)}; look at {out / 'results.json'} and {out / 'figures'}")
    return out
