"""Both selections, against numbers written out and scikit-learn."""

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from dinojax.errors import RunError
from dinojax.reporting.predictions import case_rows, of_settings
from dinojax.reporting.selection import Criterion, Selection, assemble
from tests.tasks import finished_run, write_multilabel_task, write_task

SETTINGS = [{"setting": "a", "k": 1}, {"setting": "b", "k": 2}]
# Of each (fold, setting): validation loss, and how many of four pairs are in the right order in each part.
UNITS = {(1, "a"): (0.5, 3, 4), (1, "b"): (0.4, 3, 2), (2, "a"): (0.3, 2, 4), (2, "b"): (0.3, 4, 0)}
RIGHT = {4: [0.1, 0.2, 0.7, 0.8], 3: [0.1, 0.5, 0.4, 0.8], 2: [0.1, 0.8, 0.2, 0.7], 0: [0.8, 0.7, 0.2, 0.1]}


def table(units: dict[tuple[int, str], tuple[float, int, int]] = UNITS) -> pd.DataFrame:
    rows = []
    for (fold, setting), (_, *pairs) in units.items():
        for split, right in zip(("val", "test"), pairs, strict=True):
            scores = np.asarray(RIGHT[right])
            cases = pd.DataFrame({"path": [f"{fold}{split}{i}" for i in range(4)]})
            facts = {"setting": setting, "fold": fold, "split": split}
            rows.append(case_rows(cases, np.repeat([0, 1], 2), np.stack([1 - scores, scores], 1), ["-", "+"], facts))
    return pd.concat(rows, ignore_index=True)


def assembled(rows: pd.DataFrame, selection: Selection, criterion: Criterion) -> dict[str, Any]:
    kept = {key: {"epoch": 7, "val_loss": loss} for key, (loss, *_) in UNITS.items()}
    return assemble(rows, ["-", "+"], SETTINGS, kept, selection, criterion)


def chosen(selection: dict[str, Any]) -> list[str]:
    return [entry["setting"] for entry in selection["folds"]]


def test_both_selections_come_out_and_one_is_the_one_asked_for() -> None:
    results = assembled(table(), "nested", "val_loss")
    assert [(setting["k"], setting["mean_auc"]) for setting in results["settings"]] == [(1, 1.0), (2, 0.25)]
    nested, published = results["selections"]["nested"], results["selections"]["published"]
    assert chosen(nested) == ["b", "a"]  # the lower loss; the first of equal ones
    assert (nested["mean_auc"], nested["criterion"]) == (0.75, "val_loss")
    assert nested["folds"][0] == {"fold": 1, "setting": "b", "epoch": 7, "val_loss": 0.4, "threshold": 0.8, "auc": 0.5}
    assert chosen(published) == ["a", "a"]
    assert published["mean_auc"] == published["pooled_auc"] == 1.0
    assert results["selection"] == nested
    assert assembled(table(), "published", "val_loss")["selection"] == published


def test_the_criterion_may_be_the_validation_auc() -> None:
    assert chosen(assembled(table(), "nested", "val_auc")["selection"]) == ["a", "b"]  # the first of equal ones


def test_without_a_mean_auc_nothing_can_be_published() -> None:
    rows = table()
    rows.loc[rows["split"] == "test", "label"] = "+"
    results = assembled(rows, "nested", "val_loss")
    assert results["selections"]["published"] is None
    assert results["selection"]["mean_auc"] is None
    with pytest.raises(RunError, match="selection published needs"):
        assembled(rows, "published", "val_loss")


@pytest.mark.parametrize("criterion", ["val_loss", "val_auc"])
def test_the_order_of_test_labels_changes_no_nested_selection(criterion: Criterion) -> None:
    rng, rows = np.random.default_rng(0), table()
    before = assembled(rows, "nested", criterion)
    changed, test = 0, rows["split"] == "test"
    for _ in range(8):
        rows.loc[test, "label"] = rng.permutation(rows.loc[test, "label"])
        after = assembled(rows, "nested", criterion)
        for fold, other in zip(before["selection"]["folds"], after["selection"]["folds"], strict=True):
            assert {**fold, "auc": None} == {**other, "auc": None}
        changed += chosen(after["selections"]["published"]) != chosen(before["selections"]["published"])
    assert changed  # while the published one goes by them


def independent_auc(rows: pd.DataFrame, classes: list[str]) -> tuple[float | None, dict[str, float | None]]:
    """By scikit-learn from the file's own cells: the AUC of all, and of each label or class."""
    if "label" in rows:
        truth = {name: rows["label"].eq(name).astype(int).astype(str) for name in classes}
    else:
        truth = {name: rows[f"label_{name}"] for name in classes}
    each: dict[str, float | None] = {}
    for name, cells in truth.items():
        known = cells != ""
        both = set(cells[known]) == {"0", "1"}
        each[name] = float(roc_auc_score(cells[known] == "1", rows[f"score_{name}"][known])) if both else None
    if "label" in rows and len(classes) == 2:
        return each[classes[1]], {}
    defined = [value for value in each.values() if value is not None]
    missing = len(defined) < len(classes) and "label" in rows
    return None if missing or not defined else float(np.mean(defined)), each


@pytest.mark.parametrize("kind", ["binary", "multi-class", "multi-label"])
def test_every_auc_is_scikit_learns(kind: str, tmp_path: Path) -> None:
    if kind == "multi-label":
        data = write_multilabel_task(tmp_path / "data")
    else:
        data = write_task(tmp_path / "data", ("a", "b") if kind == "binary" else ("a", "b", "c"), per_class=12)
    run = finished_run(tmp_path / "run", data)
    results = json.loads((run / "results.json").read_text())
    types: dict[Hashable, type] = {f"label_{name}": str for name in results["classes"]}
    rows = pd.read_csv(run / "predictions.csv", dtype=types, keep_default_na=False)
    rows = pd.DataFrame(rows.loc[rows["split"] == "test"])
    groups: list[tuple[dict[str, Any], dict[int, str]]] = [
        (setting, dict.fromkeys((1, 2, 3), setting["setting"])) for setting in results["settings"]
    ]
    groups += [(s, {e["fold"]: e["setting"] for e in s["folds"]}) for s in results["selections"].values()]
    absent = 0
    for stated, settings in groups:
        mine = of_settings(rows, settings)
        aucs = []
        for entry in stated["folds"]:
            expected, each = independent_auc(pd.DataFrame(mine.loc[mine["fold"] == entry["fold"]]), results["classes"])
            aucs.append(expected)
            assert entry["auc"] == pytest.approx(expected, abs=1e-12)
            assert entry.get("label_auc", {}) == pytest.approx(each, abs=1e-12)
            absent += sum(value is None for value in each.values())
        assert stated["mean_auc"] == pytest.approx(np.mean(aucs), abs=1e-12)
        assert stated["sd_auc"] == pytest.approx(np.std(aucs, ddof=1), abs=1e-12)
        pooled, each = independent_auc(mine, results["classes"])
        assert stated["pooled_auc"] == pytest.approx(pooled, abs=1e-12)
        if kind == "multi-label":
            assert stated["pooled_accuracy"] is None
        else:
            scores = mine[[f"score_{name}" for name in results["classes"]]].to_numpy()
            predicted = [results["classes"][place] for place in scores.argmax(axis=1)]
            assert stated["pooled_accuracy"] == accuracy_score(mine["label"], predicted)
        for name, value in each.items():
            assert stated["label_auc"][name]["pooled_auc"] == pytest.approx(value, abs=1e-12)
            of_folds = [e["label_auc"][name] for e in stated["folds"] if e["label_auc"][name] is not None]
            assert stated["label_auc"][name]["mean_auc"] == pytest.approx(np.mean(of_folds), abs=1e-12)
    assert (absent > 0) == (kind == "multi-label")  # some fold knows only one value of the rare label
