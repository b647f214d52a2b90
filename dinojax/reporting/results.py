"""Finished runs of any protocol, read back: every number is computed anew from the predictions and compared."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dinojax.errors import RunError, UsageError
from dinojax.reporting.predictions import label_columns, of_settings, read_predictions, select_rows
from dinojax.reporting.selection import COMPUTED, assemble
from dinojax.runs.files import read_json, reason

Key = tuple[str, str, str, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """One starting point on one task by one protocol with one seed."""

    directory: Path
    facts: Mapping[str, Any]
    """`results.json`"""
    test: pd.DataFrame
    """The test cases, as each fold's chosen setting predicted them."""
    history: pd.DataFrame | None
    """Losses of each fold's chosen setting, where the protocol has epochs."""
    baseline: "Result | None"
    """What raw pixels reach on the same folds: the run in `pixels/`."""
    is_baseline: bool = False
    name: str | None = None
    """What the report calls the starting point, where that is not its name in the run."""

    @property
    def key(self) -> Key:
        """Task, starting point, protocol and seed: what a row of the report stands for."""
        starting_point = self.facts["starting_point"] if self.name is None else self.name
        return self.facts["task"], starting_point, self.facts["protocol"], self.facts["seed"]

    @property
    def classes(self) -> list[str]:
        """Names; the last is a binary task's positive one."""
        return self.facts["classes"]

    @property
    def folds(self) -> list[dict[str, Any]]:
        """The selected setting of each fold, with its facts, threshold and AUC."""
        return self.facts["selection"]["folds"]

    def cases(self) -> set[tuple[int, str, str, tuple[str, ...]]]:
        """Fold, path, frame and labels of every test case."""
        names = ["label"] if "label" in self.test else label_columns(self.classes)
        labels = self.test[names].astype(str).itertuples(index=False, name=None)
        return set(zip(self.test["fold"], self.test["path"], self.test["frame"], labels, strict=True))


def read_run(directory: Path) -> Result:
    """Reads a run with its pixel baseline, if it has one, and checks both against themselves.

    Raises:
      UsageError: no such folder, not a run of a protocol, or an unfinished one.
      RunError: a file cannot be read, or `results.json` does not follow from the predictions.
    """
    path = directory / "results.json"
    if not path.is_file():
        if not (directory / "folds.csv").is_file():
            raise UsageError(f"{directory} is not a run of a protocol: it has neither results.json nor folds.csv")
        raise UsageError(f"{directory} is unfinished: it has no results.json; run its command again")
    facts = read_json(path)
    try:
        return _recomputed(directory, facts)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: is not of this version ({error!r}); repeat the run with another --out") from error


def _recomputed(directory: Path, facts: Mapping[str, Any]) -> Result:
    table = read_predictions(directory / "predictions.csv", facts["classes"])
    for name in ("task", "starting_point", "protocol", "seed"):
        if set(table[name]) != {facts[name]}:
            raise RunError(f"{directory}: predictions.csv and results.json differ in {name}; one of them was changed")
    settings = [_facts(setting) | {"setting": setting["setting"]} for setting in facts["settings"]]
    kept = {
        (entry["fold"], setting["setting"]): _facts(entry)
        for setting in facts["settings"]
        for entry in setting["folds"]
    }
    for name in ("recipe", "data"):
        if not isinstance(facts[name], Mapping):
            raise TypeError(name)
    criterion = facts["selections"]["nested"]["criterion"]
    computed = assemble(table, facts["classes"], settings, kept, facts["selection"]["protocol"], criterion)
    for where, before, now in _differences(facts, computed):
        raise RunError(
            f"{directory}: results.json states {before} for {where}, but the predictions give {now}; "
            "one of the files was changed: restore it, or repeat the run"
        )
    return make_result(directory, facts, table)


def make_result(directory: Path, facts: Mapping[str, Any], table: pd.DataFrame) -> Result:
    """A run as its selected settings predicted.

    Args:
      directory: of the run; its `history.csv` and its baseline are read, if it has them.
      facts: the contents of `results.json`.
      table: the contents of `predictions.csv`.

    Raises:
      RunError: they cannot be read, or the baseline has other cases.
    """
    chosen = {entry["fold"]: entry["setting"] for entry in facts["selection"]["folds"]}
    history = directory / "history.csv"
    try:
        losses = of_settings(pd.read_csv(history, dtype={"setting": str}), chosen) if history.is_file() else None
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{history}: cannot be read: {reason(error)}") from error
    result = Result(directory, facts, select_rows(table, "test", chosen), losses, baseline=None)
    if not (directory / "pixels").is_dir():
        return result
    baseline = dataclasses.replace(read_run(directory / "pixels"), is_baseline=True)
    if baseline.cases() != result.cases():
        raise RunError(f"{baseline.directory} and {directory} do not test the same cases in the same folds")
    return dataclasses.replace(result, baseline=baseline)


def _facts(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a setting or one of its folds says that does not follow from the predictions."""
    return {name: value for name, value in entry.items() if name not in COMPUTED}


def _differences(stated: Any, computed: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where the stated value is not the computed one: its place and both values, depth first."""
    if isinstance(computed, Mapping) and isinstance(stated, Mapping):
        for name, value in computed.items():
            yield from _differences(stated.get(name), value, f"{where}.{name}" if where else name)
    elif isinstance(computed, list) and isinstance(stated, list):
        if len(stated) != len(computed):
            yield f"the length of {where}", len(stated), len(computed)
        for before, now in zip(stated, computed, strict=False):
            yield from _differences(before, now, f"{where}[{now.get('fold', now.get('setting'))}]")
    elif isinstance(computed, float) and isinstance(stated, float):
        if not math.isclose(stated, computed, rel_tol=0, abs_tol=1e-12):
            yield where, stated, computed
    elif stated != computed:
        yield where, stated, computed


def renamed(runs: Sequence[Result], names: Sequence[str] | None) -> list[Result]:
    """The runs with other names of their starting points, in the same order.

    Raises:
      UsageError: there are more or fewer names than runs, or one is empty.
    """
    if names is None:
        return list(runs)
    if len(names) != len(runs):
        raise UsageError(f"names has {len(names)} ({', '.join(names)}) for {len(runs)} runs; give one a run, in order")
    if not all(name.strip() for name in names):
        raise UsageError("names holds an empty one; give every run's starting point a name")
    return [dataclasses.replace(run, name=name.strip()) for run, name in zip(runs, names, strict=True)]


def check_comparable(runs: Sequence[Result]) -> None:
    """Checks that runs may stand in one table.

    Raises:
      UsageError: two runs of a task differ in classes, folds or cases, or two have the same task, starting point,
        protocol and seed.
    """
    first: dict[str, Result] = {}
    seen: dict[Key, Result] = {}
    for run in runs:
        task, starting_point, protocol, seed = run.key
        if run.key in seen:
            raise UsageError(
                f"{seen[run.key].directory} and {run.directory} are both of task {task!r}, starting point "
                f"{starting_point!r}, protocol {protocol!r}, seed {seed}; name one otherwise (--names)"
            )
        seen[run.key] = run
        other = first.setdefault(task, run)
        if run.classes != other.classes:
            raise UsageError(
                f"{other.directory} and {run.directory} are of one task, {task!r}, but their classes differ: "
                f"{', '.join(other.classes)} and {', '.join(run.classes)}"
            )
        cases = other.cases()
        if different := run.cases() ^ cases:
            case = min(different)
            fold, path, frame, labels = case
            where = other.directory if case in cases else run.directory
            raise UsageError(
                f"{other.directory} and {run.directory} are of one task, {task!r}, but not of the same folds: only "
                f"{where} tests {path}{f' frame {frame}' if frame else ''} ({', '.join(labels)}) in fold {fold}"
            )


def by_task(runs: Iterable[Result]) -> dict[str, list[Result]]:
    """The runs of every task, in the order given, and after them the first's baseline.

    Pixels, folds and method are the same in all runs of a task, so one baseline stands for all.
    """
    tasks: dict[str, list[Result]] = {}
    for run in runs:
        tasks.setdefault(run.key[0], []).append(run)
    return {task: [*of_task, *baselines(of_task)[:1]] for task, of_task in tasks.items()}


def baselines(runs: Iterable[Result]) -> list[Result]:
    """The pixel baselines of the runs that have one."""
    return [run.baseline for run in runs if run.baseline is not None]
