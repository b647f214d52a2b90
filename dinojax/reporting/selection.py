"""Which setting counts: chosen fold by fold on validation rows, or by all test rows as the papers did; always both."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from dinojax.errors import RunError
from dinojax.reporting.predictions import accuracy, questions, select_rows
from dinojax.reporting.statistics import mean_and_sd, question_auc, roc_auc, youden_threshold
from dinojax.reporting.units import POOLINGS, pool, units_of

Selection = Literal["nested", "published"]
Criterion = Literal["val_loss", "val_auc"]
# What `summarise` and `assemble` compute; every other key of a setting or of its folds is a fact of the run.
COMPUTED = ("folds", "fold", "setting", "threshold", "auc", "label_auc")
COMPUTED += ("mean_auc", "sd_auc", "pooled_auc", "pooled_accuracy")


def assemble(
    table: pd.DataFrame,
    classes: Sequence[str],
    settings: Sequence[Mapping[str, Any]],
    kept: Mapping[tuple[int, str], Mapping[str, Any]],
    selection: Selection,
    criterion: Criterion,
) -> dict[str, Any]:
    """`settings`, `selections` and `selection` of `results.json`.

    Args:
      table: predictions as read from their file.
      classes: of two, the last is the positive one.
      settings: `setting` (its name) and whatever else describes it.
      kept: by (fold, setting), facts of what predicted, such as `{epoch, val_loss}`.
      selection: the one that the run was asked for.
      criterion: of the nested selection: the lowest `val_loss` of `kept`, or the highest AUC of the validation rows;
        the first setting of equal ones.

    Raises:
      RunError: `published` was asked for, and no setting has a mean test AUC.
    """
    folds, names = sorted({fold for fold, _ in kept}), [str(setting["setting"]) for setting in settings]
    described = []
    for setting, name in zip(settings, names, strict=True):
        summary = summarise(select_rows(table, "test", dict.fromkeys(folds, name)), folds, classes)
        summary["folds"] = [{**kept[entry["fold"], name], **entry} for entry in summary["folds"]]
        described.append({**setting, **summary})

    nested = {}
    for fold in folds:
        facts = {name: kept[fold, name] for name in names}
        validation = pd.DataFrame(table[(table["split"] == "val") & (table["fold"] == fold)])
        nested[fold] = best_setting(criterion, facts, validation, classes)
    means: dict[str, float] = {
        entry["setting"]: entry["mean_auc"] for entry in described if entry["mean_auc"] is not None
    }
    published = dict.fromkeys(folds, max(means, key=lambda name: means[name])) if means else None

    selections = {
        "nested": _selected("nested", criterion, nested, table, classes, kept),
        "published": published and _selected("published", "test_auc", published, table, classes, kept),
    }
    if selections[selection] is None:
        raise RunError(f"selection {selection} needs a fold whose test part has every class; choose nested")
    return {"settings": described, "selections": selections, "selection": selections[selection]}


def summarise(test: pd.DataFrame, folds: Sequence[int], classes: Sequence[str]) -> dict[str, Any]:
    """AUCs of test rows that hold every fold's cases once; None where a fold lacks a class.

    Returns:
      `{folds: [{fold, auc}], mean_auc, sd_auc, pooled_auc, pooled_accuracy}`, the pooled ones of all folds' cases
      together, the accuracy None of several labels; where there is more than one question, each fold has `label_auc`
      too, `{name: auc}`, and the whole `{name: {mean_auc, sd_auc, pooled_auc}}`.
    """
    asked = {fold: questions(pd.DataFrame(test.loc[test["fold"] == fold]), classes) for fold in folds}
    pooled = questions(test, classes)
    entries: list[dict[str, Any]] = [{"fold": fold, "auc": roc_auc(asked[fold])} for fold in folds]
    summary = {"folds": entries, **_spread([entry["auc"] for entry in entries], roc_auc(pooled))}
    summary["pooled_accuracy"] = accuracy(test, classes)
    if len(pooled) > 1:
        for entry in entries:
            entry["label_auc"] = {question.name: question_auc(question) for question in asked[entry["fold"]]}
        summary["label_auc"] = {
            question.name: _spread([entry["label_auc"][question.name] for entry in entries], question_auc(question))
            for question in pooled
        }
    return summary


def _spread(aucs: Sequence[float | None], pooled: float | None) -> dict[str, float | None]:
    return {**dict(zip(("mean_auc", "sd_auc"), mean_and_sd(aucs), strict=True)), "pooled_auc": pooled}


def best_setting(
    criterion: Criterion, facts: Mapping[str, Mapping[str, Any]], validation: pd.DataFrame, classes: Sequence[str]
) -> str:
    """The setting that looks best in one fold by its validation part alone; the first of equal ones.

    Args:
      criterion: `val_loss` is taken from the facts, `val_auc` computed from the rows (−∞ where it is not defined).
      facts: of each setting in the fold.
      validation: the fold's validation rows, of all settings.
      classes: of two, the last is the positive one.
    """

    def merit(setting: str) -> float:
        if criterion == "val_loss":
            return -facts[setting]["val_loss"]
        auc = roc_auc(questions(pd.DataFrame(validation[validation["setting"] == setting]), classes))
        return -math.inf if auc is None else auc

    return max(facts, key=merit)


def _selected(
    protocol: Selection,
    criterion: str,
    chosen: Mapping[int, str],
    table: pd.DataFrame,
    classes: Sequence[str],
    kept: Mapping[tuple[int, str], Mapping[str, Any]],
) -> dict[str, Any]:
    test = select_rows(table, "test", chosen)
    summary = summarise(test, list(chosen), classes)
    if units := units_of(test):
        summary["units"] = {
            unit: {how: summarise(pool(test, unit, how, classes), list(chosen), classes) for how in POOLINGS}
            for unit in units
        }
    folds = []
    for entry in summary["folds"]:
        fold, setting = entry["fold"], chosen[entry["fold"]]
        threshold = youden_threshold(questions(select_rows(table, "val", {fold: setting}), classes))
        folds.append({"fold": fold, "setting": setting, **kept[fold, setting], "threshold": threshold, **entry})
    return {"protocol": protocol, "criterion": criterion, **summary, "folds": folds}
