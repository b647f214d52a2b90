"""A fine-tuning run's directory: its folds, its finished units (a fold with a setting), and what comes of them."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dinojax.data.folds import cases_table
from dinojax.data.memory import Cases
from dinojax.data.records import Records
from dinojax.data.splits import Fold
from dinojax.errors import RunError, UsageError
from dinojax.models import Model
from dinojax.models.store import write_model
from dinojax.protocols import pixels as baselines
from dinojax.protocols.finetuning import Fitted, Setting
from dinojax.report.figures import draw_run
from dinojax.report.predictions import case_rows, of_settings, read_predictions, select_rows, write_predictions
from dinojax.report.results import Result
from dinojax.report.selection import Criterion, Selection, assemble, best, validation_merit
from dinojax.runs.files import read_json, write_json

BASELINE = f"logistic_pixels_{baselines.SIDE}"


@dataclasses.dataclass(frozen=True)
class Study:
    """What every table of a run says, and where it lies."""

    out: Path
    task: str
    starting_point: str
    seed: int
    protocol: Selection
    records: Records
    folds: tuple[Fold, ...]
    settings: tuple[Setting, ...]

    def numbered_folds(self) -> list[tuple[int, Fold]]:
        """The folds with their numbers, from 1."""
        return list(enumerate(self.folds, start=1))

    def check(self) -> None:
        """Raises a `UsageError` if the published selection has no AUC to go by."""
        labels, classes = self.records.labels, set(range(len(self.records.classes)))
        assert labels is not None
        if self.protocol == "published" and all(set(labels[fold.test].tolist()) < classes for fold in self.folds):
            raise UsageError("selection published needs a fold whose test part has every class; choose nested")

    def weights(self, fold: int, setting: Setting) -> Path:
        """Folder of a unit's weights, until the selected ones move to `models/`."""
        return self.out / "units" / f"fold_{fold}_{setting.name}"

    def scores(self, fold: int, setting: Setting) -> Path:
        """File of a unit's scores and losses; where it exists, the unit is finished."""
        return self.out / "units" / f"fold_{fold}_{setting.name}.json"


def name_of(init: str | None) -> str:
    """A starting point's name: that of its folder, or of the run whose `model/` it is."""
    if init is None:
        return "random"
    folder = Path(init).resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def pin_folds(out: Path, table: pd.DataFrame) -> None:
    """Writes `folds.csv`, or compares with the one that the run began with.

    Raises:
      RunError: the data has changed since.
    """
    path = out / "folds.csv"
    if path.exists():
        before = pd.read_csv(path, dtype=str, keep_default_na=False)
        if not before.equals(table.astype(before.dtypes.to_dict())):
            raise RunError(
                f"the images, labels or folds are no longer those of {path}; put them back, or choose another --out"
            )
        return
    partial = path.with_suffix(".partial")
    table.to_csv(partial, index=False)
    partial.replace(path)


def store_unit(
    study: Study, fold: int, setting: Setting, fitted: Fitted, backbone: Model, details: Mapping[str, Any]
) -> None:
    """Writes a unit's weights, and then its scores and losses, which mark it as finished.

    Args:
      study: to which it belongs.
      fold: its number.
      setting: of the unit.
      fitted: what came of it.
      backbone: gives name, arguments and preprocessing; the weights are the fitted ones.
      details: further keys of the weights' `model.json`.
    """
    chosen = {"task": study.task, "fold": fold, "setting": setting.name, "epoch": fitted.epoch}
    write_model(
        study.weights(fold, setting),
        backbone.name,
        backbone.arguments,
        fitted.params,
        backbone.preprocessing,
        source={"run": study.out.name, "starting_point": study.starting_point},
        details={**chosen, "classes": list(study.records.classes), **details},
        overwrite=True,
    )
    values = {
        "epoch": fitted.epoch,
        "val_loss": fitted.val_loss,
        "history": fitted.history,
        "val_scores": fitted.val_scores.tolist(),
        "test_scores": fitted.test_scores.tolist(),
    }
    write_json(study.scores(fold, setting), values)


def drop_losers(study: Study, fold: int) -> None:
    """Removes the weights that nested selection leaves behind in a fold whose units are all finished."""
    if study.protocol != "nested":
        return
    no_rows, classes = pd.DataFrame(), study.records.classes
    winner = best(
        {
            s.name: validation_merit("val_loss", read_json(study.scores(fold, s)), no_rows, classes)
            for s in study.settings
        }
    )
    for setting in study.settings:
        if setting.name != winner:
            shutil.rmtree(study.weights(fold, setting), ignore_errors=True)


def finish(study: Study, cases: Cases, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Writes predictions, results, selected models and figures, all of which follow from the units.

    Args:
      study: all of whose units are finished.
      cases: for the baseline on pixels.
      facts: further keys of `results.json`.

    Returns:
      The contents of `results.json`.
    """
    units = {
        (fold, setting.name): read_json(study.scores(fold, setting))
        for setting in study.settings
        for fold, _ in study.numbered_folds()
    }
    history = _history(study, units)
    history.to_csv(study.out / "history.csv", index=False)
    settings = [{"setting": s.name, **dataclasses.asdict(s)} for s in study.settings]
    kept = {key: {name: unit[name] for name in ("epoch", "val_loss")} for key, unit in units.items()}
    baseline = _finish_pixels(study, cases)
    run = _result(study, study.out, study.starting_point, "finetune", facts, _rows(study, units), settings, kept)
    chosen = run.test.groupby("fold")["setting"].first().to_dict()
    draw_run(dataclasses.replace(run, history=of_settings(history, chosen), baseline=baseline), study.out / "figures")
    _keep_models(study, run.facts)
    write_json(study.out / "results.json", run.facts)
    shutil.rmtree(study.out / "units")
    return dict(run.facts)


def _result(
    study: Study,
    out: Path,
    starting_point: str,
    protocol: str,
    facts: Mapping[str, Any],
    rows: pd.DataFrame,
    settings: list[dict[str, Any]],
    kept: Mapping[tuple[int, str], Mapping[str, Any]],
) -> Result:
    """Writes predictions and reads them as anybody will: results follow from the file, not from what preceded it."""
    key = {"task": study.task, "starting_point": starting_point, "protocol": protocol, "seed": study.seed}
    classes = list(study.records.classes)
    write_predictions(out / "predictions.csv", rows.assign(**key))
    table = read_predictions(out / "predictions.csv", classes)
    criterion: Criterion = "val_loss" if protocol == "finetune" else "val_auc"
    selection = study.protocol if protocol == "finetune" else "nested"
    described = assemble(table, classes, settings, kept, selection, criterion)
    chosen = {entry["fold"]: entry["setting"] for entry in described["selection"]["folds"]}
    described = {**key, "classes": classes, "multilabel": False, **facts, **described}
    return Result(out, described, select_rows(table, "test", chosen), history=None, baseline=None)


def _finish_pixels(study: Study, cases: Cases) -> Result:
    units = {}
    for number, fold in study.numbered_folds():
        train = cases.pixels[fold.train], cases.labels[fold.train]
        units[number, BASELINE] = {
            f"{split}_scores": baselines.logistic_scores(*train, cases.pixels[getattr(fold, split)])
            for split in ("val", "test")
        }
    out = study.out / "pixels"
    out.mkdir(exist_ok=True)
    recipe = {"classifier": "logistic regression", "image_size": baselines.SIDE}
    kept = {key: {} for key in units}
    rows = _rows(study, units)
    run = _result(study, out, "pixels", "pixels", {"recipe": recipe}, rows, [{"setting": BASELINE}], kept)
    write_json(out / "results.json", run.facts)
    return run


def _rows(study: Study, units: Mapping[tuple[int, str], Mapping[str, Any]]) -> pd.DataFrame:
    records = study.records
    assert records.labels is not None
    parts = []
    for (number, setting), unit in units.items():
        for split in ("val", "test"):
            indices = getattr(study.folds[number - 1], split)
            facts = {"setting": setting, "fold": number, "split": split}
            cases, scores = cases_table(records, indices), np.asarray(unit[f"{split}_scores"])
            parts.append(case_rows(cases, records.labels[indices], scores, records.classes, facts))
    return pd.concat(parts, ignore_index=True)


def _history(study: Study, units: Mapping[tuple[int, str], Mapping[str, Any]]) -> pd.DataFrame:
    rows = [
        {"setting": setting, "fold": fold, "epoch": epoch, "train_loss": train, "val_loss": val}
        for (fold, setting), unit in units.items()
        for epoch, (train, val) in enumerate(unit["history"], start=1)
    ]
    return pd.DataFrame(rows)


def _keep_models(study: Study, described: Mapping[str, Any]) -> None:
    """Moves the selected weights to `models/fold_<k>`; those moved before an interruption are there already."""
    for entry in described["selection"]["folds"]:
        weights = study.out / "units" / f"fold_{entry['fold']}_{entry['setting']}"
        target = study.out / "models" / f"fold_{entry['fold']}"
        if weights.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            weights.rename(target)


def describe(described: Mapping[str, Any]) -> str:
    """One line of a run's results."""
    selection = described["selection"]
    folds = ", ".join(f"{entry['auc']:.3f}" if entry["auc"] is not None else "none" for entry in selection["folds"])
    spread = {name: "none" if selection[name] is None else f"{selection[name]:.3f}" for name in _SPREAD}
    return f"AUC by fold {folds}; mean {spread['mean_auc']}, SD {spread['sd_auc']}; pooled {spread['pooled_auc']}"


_SPREAD = ("mean_auc", "sd_auc", "pooled_auc")
