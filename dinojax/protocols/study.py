"""A fine-tuning run's directory: its folds, its finished units (a fold with a setting), and what comes of them."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dinojax.data.records import Records
from dinojax.data.splits import Fold, cases_table
from dinojax.errors import RunError, UsageError
from dinojax.models import Model
from dinojax.models.store import write_model
from dinojax.protocols import pixels as baselines
from dinojax.protocols.finetuning import Fitted, Setting
from dinojax.report import plots
from dinojax.report import predictions as results

BASELINE = f"logistic_pixels_{baselines.SIDE}"


@dataclasses.dataclass(frozen=True)
class Study:
    """What every table of a run says, and where it lies."""

    out: Path
    task: str
    starting_point: str
    seed: int
    protocol: results.Protocol
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
    results.write_json(study.scores(fold, setting), values)


def drop_losers(study: Study, fold: int) -> None:
    """Removes the weights that nested selection leaves behind in a fold whose units are all finished."""
    if study.protocol != "nested":
        return
    losses = {(fold, s.name): results.read_json(study.scores(fold, s))["val_loss"] for s in study.settings}
    winner = results.select_nested(losses)[fold]
    for setting in study.settings:
        if setting.name != winner:
            shutil.rmtree(study.weights(fold, setting), ignore_errors=True)


def finish(study: Study, pixels: np.ndarray, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Writes predictions, results, selected models and figures, all of which follow from the units.

    Args:
      study: all of whose units are finished.
      pixels: float32 [N, 32²], for the baseline.
      facts: further keys of `results.json`.

    Returns:
      The contents of `results.json`.
    """
    units = {
        (fold, setting.name): results.read_json(study.scores(fold, setting))
        for setting in study.settings
        for fold, _ in study.numbered_folds()
    }
    classes = study.records.classes
    predictions = _read_back(study.out / "predictions.csv", _predictions(study, units), classes)
    baseline = _read_back(study.out / "baseline_predictions.csv", _baseline_predictions(study, pixels), classes)
    history = _history(study, units)
    history.to_csv(study.out / "history.csv", index=False)
    settings = [{"setting": s.name, **dataclasses.asdict(s)} for s in study.settings]
    kept = {key: {name: unit[name] for name in ("epoch", "val_loss")} for key, unit in units.items()}
    described = {
        **{name: getattr(study, name) for name in ("task", "starting_point", "seed")},
        "classes": list(classes),
        **facts,
        **results.assemble(predictions, classes, settings, kept, study.protocol),
        "baselines": {BASELINE: results.summarise(baseline, classes).as_json()},
    }
    _draw(study, described, predictions, baseline, history)
    _keep_models(study, described)
    results.write_json(study.out / "results.json", described)
    shutil.rmtree(study.out / "units")
    return described


def _read_back(path: Path, table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Writes predictions and reads them as anybody will: results follow from the file, not from what preceded it."""
    results.write_predictions(path, table)
    return results.read_predictions(path, classes)


def _predictions(study: Study, units: Mapping[tuple[int, str], Mapping[str, Any]]) -> pd.DataFrame:
    return pd.concat(
        [
            _rows(
                study, setting.name, number, split, getattr(fold, split), units[number, setting.name][f"{split}_scores"]
            )
            for setting in study.settings
            for number, fold in study.numbered_folds()
            for split in ("val", "test")
        ],
        ignore_index=True,
    )


def _baseline_predictions(study: Study, pixels: np.ndarray) -> pd.DataFrame:
    parts = []
    assert study.records.labels is not None
    for number, fold in study.numbered_folds():
        scores = baselines.score_fold(baselines.logistic_scores, pixels, study.records.labels, fold)
        parts.append(_rows(study, BASELINE, number, "test", fold.test, scores))
    return pd.concat(parts, ignore_index=True)


def _rows(
    study: Study, setting: str, fold: int, split: str, indices: np.ndarray, scores: np.ndarray | list[list[float]]
) -> pd.DataFrame:
    table = cases_table(study.records, indices)
    table = table.assign(
        task=study.task,
        starting_point=study.starting_point,
        seed=study.seed,
        setting=setting,
        fold=fold,
        split=split,
    )
    table = table.reindex(columns=list(results.COLUMNS))
    table[results.score_columns(study.records.classes)] = np.asarray(scores)
    return table


def _history(study: Study, units: Mapping[tuple[int, str], Mapping[str, Any]]) -> pd.DataFrame:
    rows = [
        {"setting": setting, "fold": fold, "epoch": epoch, "train_loss": train, "val_loss": val}
        for (fold, setting), unit in units.items()
        for epoch, (train, val) in enumerate(unit["history"], start=1)
    ]
    return pd.DataFrame(rows)


def _draw(
    study: Study, described: Mapping[str, Any], predictions: pd.DataFrame, baseline: pd.DataFrame, history: pd.DataFrame
) -> None:
    figures = study.out / "figures"
    figures.mkdir(exist_ok=True)
    classes, selection = described["classes"], described["selection"]["folds"]
    chosen = {entry["fold"]: entry["setting"] for entry in selection}
    test = results.of_chosen(results.of_split(predictions, "test"), chosen)
    parts = {"all folds": test} | {f"fold {fold}": rows for fold, rows in results.by_fold(test).items()}
    curves = [plots.Curve(name, *results.labels_and_scores(rows, classes)) for name, rows in parts.items()]
    curves.append(plots.Curve("logistic, 32² pixels", *results.labels_and_scores(baseline, classes), muted=True))
    title = f"{study.task} from {study.starting_point}"
    plots.plot_roc(curves, classes, f"{title}: test cases", figures / "roc.png")
    kept = {entry["fold"]: entry["epoch"] for entry in selection}
    plots.plot_losses(
        results.of_chosen(history, chosen), kept, f"{title}: losses of the chosen settings", figures / "losses.png"
    )


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
