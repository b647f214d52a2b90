"""Finished fine-tuning runs, read back: every number is computed anew from the predictions and compared."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dinojax.errors import RunError, UsageError
from dinojax.report import predictions as results
from dinojax.report.predictions import Summary
from dinojax.report.statistics import youden_threshold
from dinojax.runs.files import read_json


@dataclasses.dataclass(frozen=True)
class Run:
    """One starting point on one task with one seed."""

    directory: Path
    facts: Mapping[str, Any]
    """`results.json`"""
    test: pd.DataFrame
    """The test cases, as each fold's chosen setting predicted them."""
    summary: Summary
    baselines: Mapping[str, tuple[pd.DataFrame, Summary]]
    """By name: the test cases as a baseline predicted them, and its AUCs."""
    history: pd.DataFrame
    """Losses of each fold's chosen setting."""

    @property
    def key(self) -> tuple[str, str, int]:
        """Task, starting point and seed: what a row of the report stands for."""
        return self.facts["task"], self.facts["starting_point"], self.facts["seed"]

    @property
    def classes(self) -> list[str]:
        """Names; the last is a binary task's positive one."""
        return self.facts["classes"]


def read_run(directory: Path) -> Run:
    """Reads a run and checks it against itself.

    Raises:
      UsageError: no such folder, no run of `finetune`, or an unfinished one.
      RunError: a file cannot be read, or `results.json` does not follow from the predictions.
    """
    if not (directory / "config.yaml").is_file():
        raise UsageError(f"{directory} is no run of finetune: it holds no config.yaml")
    path = directory / "results.json"
    if not path.is_file():
        if not (directory / "folds.csv").is_file():
            raise UsageError(f"{directory} is no run of finetune: it holds neither folds.csv nor results.json")
        raise UsageError(f"{directory} is unfinished: it has no results.json; run its finetune command again")
    facts = read_json(path)
    try:
        return _recomputed(directory, facts)
    except (KeyError, TypeError) as error:
        raise RunError(f"{path}: is not one of this version ({error!r}); run finetune again") from error


def _recomputed(directory: Path, facts: Mapping[str, Any]) -> Run:
    classes = facts["classes"]
    chosen = {entry["fold"]: entry["setting"] for entry in facts["selection"]["folds"]}
    predictions = results.read_predictions(directory / "predictions.csv", classes)
    _check_names(directory, predictions, facts)
    test, validation = (results.of_split(predictions, split) for split in ("test", "val"))
    for setting in facts["settings"]:
        name = str(setting["setting"])
        summary = results.summarise(results.of_setting(test, name), classes)
        _compare(directory, f"setting {name}", setting, summary)
    test = results.of_chosen(test, chosen)
    summary = results.summarise(test, classes)
    _compare(directory, "selection", facts["selection"], summary)
    of_fold = results.by_fold(results.of_chosen(validation, chosen))
    for entry in facts["selection"]["folds"]:
        threshold = youden_threshold(*results.labels_and_scores(of_fold[entry["fold"]], classes))
        _compare_number(directory, f"the threshold of fold {entry['fold']}", entry["threshold"], threshold)
    table = results.read_predictions(directory / "baseline_predictions.csv", classes)
    baselines = {}
    for name, stated in facts["baselines"].items():
        rows = results.of_setting(table, name)
        baselines[name] = rows, results.summarise(rows, classes)
        _compare(directory, name, stated, baselines[name][1])
    history = results.of_chosen(pd.read_csv(directory / "history.csv"), chosen)
    return Run(directory, facts, test, summary, baselines, history)


def _check_names(directory: Path, predictions: pd.DataFrame, facts: Mapping[str, Any]) -> None:
    for name in ("task", "starting_point", "seed"):
        if set(predictions[name]) != {facts[name]}:
            raise RunError(f"{directory}: predictions.csv and results.json name another {name}; run finetune again")


def _compare(directory: Path, what: str, stated: Mapping[str, Any], computed: Summary) -> None:
    """Raises a `RunError` where a stated AUC is not the one that follows from the predictions."""
    pairs = [(f"fold {entry['fold']}", entry["auc"], computed.folds.get(entry["fold"])) for entry in stated["folds"]]
    pairs += [(name, stated[name], getattr(computed, name)) for name in ("mean_auc", "sd_auc", "pooled_auc")]
    for name, before, now in pairs:
        _compare_number(directory, f"{what}, {name}", before, now)


def _compare_number(directory: Path, what: str, stated: float | None, computed: float | None) -> None:
    # A missing value equals nothing but another missing one.
    before, now = (math.nan if value is None else value for value in (stated, computed))
    if not (math.isclose(before, now, rel_tol=0, abs_tol=1e-12) or (math.isnan(before) and math.isnan(now))):
        raise RunError(
            f"{directory}: results.json states {stated} for {what}, but the predictions give {computed}; "
            "one of the files was changed: run finetune again"
        )


def check_comparable(runs: Sequence[Run]) -> None:
    """Asserts that runs may stand in one table.

    Raises:
      UsageError: two runs of a task differ in classes, folds or cases, or two have the same task, starting point and
        seed.
    """
    first: dict[str, Run] = {}
    seen: dict[tuple[str, str, int], Run] = {}
    for run in runs:
        if run.key in seen:
            raise UsageError(
                f"{seen[run.key].directory} and {run.directory} are both of task {run.key[0]!r}, starting point "
                f"{run.key[1]!r}, seed {run.key[2]}; name one otherwise (--starting_point)"
            )
        seen[run.key] = run
        other = first.setdefault(run.key[0], run)
        if run.classes != other.classes:
            raise UsageError(
                f"{other.directory} and {run.directory} are of one task, {run.key[0]!r}, but their classes differ: "
                f"{', '.join(other.classes)} and {', '.join(run.classes)}"
            )
        if different := _cases(run) ^ _cases(other):
            fold, path, frame, label = min(different)
            where = other.directory if (fold, path, frame, label) in _cases(other) else run.directory
            raise UsageError(
                f"{other.directory} and {run.directory} are of one task, {run.key[0]!r}, but not of the same folds: "
                f"only {where} tests {path}{f' frame {frame}' if frame else ''} ({label}) in fold {fold}"
            )


def _cases(run: Run) -> set[tuple[int, str, str, str]]:
    table = run.test
    return set(zip(table["fold"], table["path"], table["frame"], table["label"], strict=True))


def by_task(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of every task, in the order given."""
    tasks: dict[str, list[Run]] = {}
    for run in runs:
        tasks.setdefault(run.key[0], []).append(run)
    return tasks
