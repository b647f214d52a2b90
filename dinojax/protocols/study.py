"""A study's directory: its folds, its units (a fold with a setting) by any protocol, and what follows from them."""

import dataclasses
import functools
import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dinojax.data.facts import Facts
from dinojax.data.records import Fold, Records
from dinojax.data.splits import cases_table, folds_table
from dinojax.errors import RunError, UsageError
from dinojax.models.store import read_description
from dinojax.protocols.task import Task
from dinojax.reporting.figures import draw_run
from dinojax.reporting.predictions import case_rows, read_predictions, select_rows, write_predictions
from dinojax.reporting.render import number
from dinojax.reporting.results import make_result
from dinojax.reporting.selection import Criterion, Selection, assemble, best_setting
from dinojax.reporting.statistics import mean_and_sd_text
from dinojax.reporting.units import POOLINGS, pool, units_of
from dinojax.runs.files import read_json, replacing, write_json, write_text


class Unit(NamedTuple):
    """A fold with a setting."""

    number: int
    """Of the fold, from 1."""
    fold: Fold
    setting: Any
    """A dataclass whose `name` names it in tables and files; its fields are stated beside the results."""
    place: int
    """Among all units of the study, from 0."""

    @property
    def key(self) -> tuple[int, str]:
        """Number of the fold and name of the setting."""
        return self.number, self.setting.name


class Scored(NamedTuple):
    """A protocol's result for one unit."""

    val: np.ndarray
    """float64 [len(fold.val), C], probabilities."""
    test: np.ndarray
    """float64 [len(fold.test), C]."""
    facts: Mapping[str, float] = {}
    """Such as the epoch that was kept; `val_loss`, where units are selected by it."""
    history: Sequence[Mapping[str, float]] = ()
    """Losses by epoch, where there are epochs."""
    write_weights: Callable[[Path], None] | None = None
    """Writes the unit's weights as a folder, where it has any."""


Score = Callable[[Unit], Scored]
"""A protocol: turns a unit into its result."""


@dataclasses.dataclass(frozen=True)
class Study:
    """One protocol on one starting point: names units, stores, resumes and selects them, and writes the results."""

    out: Path
    task_name: str
    starting_point: str
    protocol: str
    seed: int
    selection: Selection
    """Which selection decides the models that are kept and fills `selection`; both are in `selections`."""
    criterion: Criterion
    records: Records
    folds: tuple[Fold, ...]
    settings: Sequence[Any]
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """How it was done, as the report shows it: names to numbers and short texts."""
    facts: Facts = dataclasses.field(default_factory=dict)
    """How data and model were understood; kept in `facts.json`."""

    @property
    def labels(self) -> np.ndarray:
        """Of all cases."""
        assert self.records.labels is not None
        return self.records.labels

    @functools.cached_property
    def task(self) -> Task:
        """The task that the labels define."""
        return Task.of(self.records)

    def units(self) -> list[Unit]:
        """Every fold with every setting, fold by fold."""
        pairs = itertools.product(enumerate(self.folds, start=1), self.settings)
        return [Unit(number, fold, setting, place) for place, ((number, fold), setting) in enumerate(pairs)]

    def finished(self) -> int:
        """Number of the units that are finished."""
        return sum(self._facts(unit).exists() for unit in self.units())

    def begin(self) -> None:
        """Writes `facts.json` and `folds.csv`, or compares the folds with those that the run began with.

        Raises:
          UsageError: the published selection has no AUC to choose by.
          RunError: the data has changed since.
        """
        if self.selection == "published" and not any(self.task.has_auc(self.labels[fold.test]) for fold in self.folds):
            raise UsageError("selection published needs a fold whose test part has every class; choose nested")
        path, table = self.out / "folds.csv", folds_table(self.records, self.folds)
        if path.exists():
            before = pd.read_csv(path, dtype=str, keep_default_na=False)
            if not before.equals(table.astype(before.dtypes.to_dict())):
                raise RunError(
                    f"the images, labels or folds are no longer those of {path}; put them back, or choose another --out"
                )
        else:
            write_json(self.out / "facts.json", self.facts)
            write_text(path, table.to_csv(index=False))

    def run(self, score: Score) -> dict[str, Any]:
        """Scores the units that are not finished yet, by the protocol, and writes what follows from all of them.

        Returns:
          The contents of `results.json`.
        """
        for unit in self.units():
            if not self._facts(unit).exists():
                self._store(unit, score(unit))
            if unit.setting == self.settings[-1]:
                self._drop_unselected_weights(unit.number)
        return self._finish()

    def _rows(self, unit: Unit) -> Path:
        return self.out / "units" / f"fold_{unit.number}_{unit.setting.name}.csv"

    def _facts(self, unit: Unit) -> Path:
        """Where it exists, the unit is finished: it is written last."""
        return self._rows(unit).with_suffix(".json")

    def _weights(self, number: int, setting: str) -> Path:
        return self.out / "units" / f"fold_{number}_{setting}"

    def _store(self, unit: Unit, scored: Scored) -> None:
        if scored.write_weights is not None:
            scored.write_weights(self._weights(*unit.key))
        facts = self._identity | {"setting": unit.setting.name, "fold": unit.number}
        parts = []
        for split in ("val", "test"):
            indices, scores = getattr(unit.fold, split), getattr(scored, split)
            cases, labels = cases_table(self.records, indices), self.labels[indices]
            parts.append(case_rows(cases, labels, scores, self.task.classes, facts | {"split": split}))
        write_predictions(self._rows(unit), pd.concat(parts, ignore_index=True))
        write_json(self._facts(unit), {"facts": dict(scored.facts), "history": list(scored.history)})

    @property
    def _identity(self) -> dict[str, Any]:
        own = {"starting_point": self.starting_point, "protocol": self.protocol, "seed": self.seed}
        return {"task": self.task_name, **own}

    def _drop_unselected_weights(self, number: int) -> None:
        """Removes the weights that nested selection leaves behind in a fold whose units are all finished."""
        if self.selection != "nested":
            return
        units, classes = [unit for unit in self.units() if unit.number == number], self.task.classes
        facts = {unit.setting.name: read_json(self._facts(unit))["facts"] for unit in units}
        rows = pd.concat(read_predictions(self._rows(unit), classes) for unit in units)
        chosen = best_setting(self.criterion, facts, pd.DataFrame(rows[rows["split"] == "val"]), classes)
        for setting in facts.keys() - {chosen}:
            shutil.rmtree(self._weights(number, setting), ignore_errors=True)

    def _finish(self) -> dict[str, Any]:
        """Writes predictions, results, selected models and figures, all of which follow from the units."""
        units = {unit.key: read_json(self._facts(unit)) for unit in self.units()}
        by_setting = sorted(self.units(), key=lambda unit: self.settings.index(unit.setting))
        path, classes = self.out / "predictions.csv", self.task.classes
        with replacing(path) as file:
            for place, unit in enumerate(by_setting):
                header, rows = self._rows(unit).read_text(encoding="utf-8").split("\n", 1)
                file.write(rows if place else f"{header}\n{rows}")
        # Read back from disk: results must follow from the file.
        table = read_predictions(path, classes)
        history = [{"setting": s, "fold": k, **epoch} for (k, s), unit in units.items() for epoch in unit["history"]]
        if history:
            write_text(self.out / "history.csv", pd.DataFrame(history).to_csv(index=False))
        settings = [{"setting": setting.name, **dataclasses.asdict(setting)} for setting in self.settings]
        facts = {key: unit["facts"] for key, unit in units.items()}
        results = {
            **self._identity,
            "classes": list(classes),
            "recipe": dict(self.recipe),
            "data": dict(self.facts),
            **assemble(table, classes, settings, facts, self.selection, self.criterion),
        }
        chosen = {entry["fold"]: entry["setting"] for entry in results["selection"]["folds"]}
        test = select_rows(table, "test", chosen)
        for unit in units_of(test):
            pooled = [pool(test, unit, how, classes).assign(pooling=how) for how in POOLINGS]
            rows = pd.concat(pooled, ignore_index=True)
            write_text(self.out / f"predictions_{unit}.csv", rows.to_csv(index=False, float_format="%.15g"))
        draw_run(make_result(self.out, results, table), self.out / "figures")
        self._keep_models(results)
        write_json(self.out / "results.json", results)
        shutil.rmtree(self.out / "units")
        return results

    def _keep_models(self, results: Mapping[str, Any]) -> None:
        """Moves the selected weights to `models/fold_<k>`; those moved before an interruption are there already."""
        for entry in results["selection"]["folds"]:
            weights = self._weights(entry["fold"], entry["setting"])
            target = self.out / "models" / f"fold_{entry['fold']}"
            if weights.exists():
                target.parent.mkdir(exist_ok=True)
                shutil.rmtree(target, ignore_errors=True)
                weights.rename(target)


def is_finished(out: Path) -> bool:
    """Whether a study's results lie in its directory already; prints what to do then."""
    finished = (out / "results.json").exists()
    if finished:
        shutil.rmtree(out / "units", ignore_errors=True)  # a run killed in its last moment left them
        print(f"{out} is finished: see {out / 'results.json'}, or choose another --out to run it again")
    return finished


def name_of(init: str | None) -> str:
    """A starting point's name: that of its folder, or of the run that wrote it, with what tells its models apart.

    A fine-tuned classifier is named as its `model.json` says, wherever it lies: `thyroid_dinov2/fold_1`.
    """
    if init is None:
        return "random"
    folder = Path(init).resolve()
    if (folder / "model.json").is_file():
        description = read_description(folder)
        run, fold = (description.get("source") or {}).get("run"), description.get("fold")
        if "classifier" in description and run and fold:
            return f"{run}/fold_{fold}"
    if folder.name == "model":
        return folder.parent.name
    if folder.name == "model_best":
        return f"{folder.parent.name}, best"
    if folder.parent.name == "models" and folder.name.startswith("fold_"):
        return f"{folder.parents[1].name}/{folder.name}"
    return folder.name


def summarise(results: Mapping[str, Any]) -> str:
    """One line of a run's results: both selections, which are the same where there is one setting."""
    parts = []
    for name, found in results["selections"].items():
        if found is not None:
            text = f"{mean_and_sd_text(found)}, pooled {number(found['pooled_auc'])}"
            right = found["pooled_accuracy"]
            parts.append((name, text if right is None else f"{text}, accuracy {right:.3f}"))
    aucs = [number(entry["auc"]) for entry in results["selection"]["folds"]]
    spread = "mean ± SD" if len(aucs) > 1 else "AUC"
    if len(results["settings"]) == 1:
        return f"AUC by fold {', '.join(aucs)}; {spread} {parts[0][1]}"
    return f"AUC by fold {', '.join(aucs)}; {spread} by selection: {'; '.join(map(' '.join, parts))}"
