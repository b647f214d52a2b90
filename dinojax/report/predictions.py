"""A fine-tuning run's tables: predictions of every case, and the results that follow from them and nothing else."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from dinojax.errors import RunError
from dinojax.report.statistics import mean_and_sd, roc_auc, youden_threshold
from dinojax.runs.files import replacing

Protocol = Literal["nested", "published"]
TEXT_COLUMNS = ("task", "starting_point", "setting", "split", "path", "frame", "patient_id", "label")
COLUMNS = ("task", "starting_point", "seed", "setting", "fold", "split", "path", "frame", "patient_id", "label")


@dataclasses.dataclass(frozen=True)
class Summary:
    """AUCs of one score a case and fold, on test cases; None where a fold lacks a class."""

    folds: Mapping[int, float | None]
    mean_auc: float | None
    sd_auc: float | None
    pooled_auc: float | None
    """All folds' test cases together."""

    def as_json(self) -> dict[str, Any]:
        """`{folds: [{fold, auc}], mean_auc, sd_auc, pooled_auc}`."""
        folds = [{"fold": fold, "auc": auc} for fold, auc in self.folds.items()]
        return {"folds": folds, "mean_auc": self.mean_auc, "sd_auc": self.sd_auc, "pooled_auc": self.pooled_auc}


def write_predictions(path: Path, table: pd.DataFrame) -> None:
    """Writes a table of predictions, whole or not at all."""
    with replacing(path, newline="") as file:
        # 15 digits: every CSV reader keeps two such numbers apart and in order, so AUCs come out the same everywhere.
        table.to_csv(file, index=False, float_format="%.15g")


def read_predictions(path: Path, classes: Sequence[str]) -> pd.DataFrame:
    """A table that `write_predictions` wrote.

    Raises:
      RunError: it cannot be read, lacks a column, or has a label that is none of the classes.
    """
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=False)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {' '.join(str(error).split())}; run finetune again") from error
    if missing := [name for name in (*COLUMNS, *score_columns(classes)) if name not in table]:
        raise RunError(f"{path}: has no column {', '.join(missing)}; run finetune again")
    if unknown := sorted(set(table["label"]) - set(classes)):
        raise RunError(f"{path}: label {unknown[0]!r} is none of the classes {', '.join(classes)}")
    return table


def score_columns(classes: Sequence[str]) -> list[str]:
    """`score_<class>` of every class."""
    return [f"score_{name}" for name in classes]


def labels_and_scores(rows: pd.DataFrame, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Labels int [N] as places in the classes, and scores float64 [N, C]."""
    return pd.Index(classes).get_indexer(pd.Index(rows["label"])), rows[score_columns(classes)].to_numpy(np.float64)


def summarise(test: pd.DataFrame, classes: Sequence[str]) -> Summary:
    """AUCs of test rows, of which every fold has its own."""
    folds = {fold: roc_auc(*labels_and_scores(rows, classes)) for fold, rows in by_fold(test).items()}
    return Summary(folds, *mean_and_sd(list(folds.values())), roc_auc(*labels_and_scores(test, classes)))


def of_chosen(table: pd.DataFrame, chosen: Mapping[int, str]) -> pd.DataFrame:
    """The rows of each fold's chosen setting, from any table with columns `fold` and `setting`."""
    mask = [chosen[fold] == setting for fold, setting in zip(table["fold"], table["setting"], strict=True)]
    return pd.DataFrame(table.loc[mask])


def of_setting(table: pd.DataFrame, setting: str) -> pd.DataFrame:
    """The rows of one setting."""
    return pd.DataFrame(table.loc[table["setting"] == setting])


def of_split(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of 'val' or 'test'."""
    return pd.DataFrame(table.loc[table["split"] == split])


def by_fold(table: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """Each fold's rows."""
    return {int(str(fold)): pd.DataFrame(rows) for fold, rows in table.groupby("fold")}


def select_nested(val_losses: Mapping[tuple[int, str], float]) -> dict[int, str]:
    """For every fold the setting with its lowest validation loss, the first of equal ones.

    Args:
      val_losses: by (fold, setting), of the epoch that was kept. No test case has a part in them.
    """
    folds = sorted({fold for fold, _ in val_losses})
    settings = list(dict.fromkeys(setting for _, setting in val_losses))
    return {fold: min(settings, key=lambda setting: val_losses[fold, setting]) for fold in folds}


def select_published(summaries: Mapping[str, Summary]) -> str:
    """The setting with the best mean test AUC, as MediDino (2024) picks it: optimistic, as the test cases choose."""
    return max(summaries, key=lambda setting: _number(summaries[setting].mean_auc))


def assemble(
    table: pd.DataFrame,
    classes: Sequence[str],
    settings: Sequence[Mapping[str, Any]],
    kept: Mapping[tuple[int, str], Mapping[str, Any]],
    protocol: Protocol,
) -> dict[str, Any]:
    """`settings` and `selection` of `results.json`, from the predictions.

    Args:
      table: predictions as read from their file.
      classes: the last is a binary task's positive one.
      settings: `{setting, lr, batch_size}` each.
      kept: by (fold, setting), `{epoch, val_loss}` of the epoch whose weights predicted.
      protocol: how the setting is chosen.
    """
    test, validation = of_split(table, "test"), of_split(table, "val")
    folds = sorted({fold for fold, _ in kept})
    names = [str(setting["setting"]) for setting in settings]
    summaries = {name: summarise(of_setting(test, name), classes) for name in names}
    if protocol == "nested":
        chosen = select_nested({key: values["val_loss"] for key, values in kept.items()})
    else:
        best = select_published(summaries)
        chosen = dict.fromkeys(folds, best)
    selected = summarise(of_chosen(test, chosen), classes)
    chosen_validation = by_fold(of_chosen(validation, chosen))
    described = [
        {
            "fold": fold,
            "setting": setting,
            "epoch": kept[fold, setting]["epoch"],
            "threshold": youden_threshold(*labels_and_scores(chosen_validation[fold], classes)),
            "auc": selected.folds[fold],
        }
        for fold, setting in chosen.items()
    ]
    details = [_with_details(summaries[name], name, kept) for name in names]
    return {
        "settings": [{**setting, **detail} for setting, detail in zip(settings, details, strict=True)],
        "selection": {"protocol": protocol, **selected.as_json(), "folds": described},
    }


def _with_details(summary: Summary, setting: str, kept: Mapping[tuple[int, str], Mapping[str, Any]]) -> dict[str, Any]:
    """A setting's summary with the epoch that each fold kept, and its validation loss."""
    folds = [{"fold": fold, **kept[fold, setting], "auc": auc} for fold, auc in summary.folds.items()]
    return {**summary.as_json(), "folds": folds}


def _number(value: float | None) -> float:
    return -1.0 if value is None else value
