"""The whole way from phantoms to a report."""

import json
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from dinojax.errors import RunError, UsageError
from dinojax.verbs import demo
from dinojax.verbs import run as run_verb


def test_a_command_that_fails_ends_the_demo(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="phantoms ended with status 2; see above"):
        demo.run("phantoms", str(tmp_path))


def test_the_demo_goes_from_phantoms_to_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run", lambda *arguments: run_verb(arguments))
    run_verb(["demo", "--out", str(tmp_path / "demo"), "--quick", "true"])
    table = pd.read_csv(tmp_path / "demo" / "report" / "table.csv")
    rows = set(zip(table["starting_point"], table["protocol"], strict=True))
    assert rows == {(s, p) for s in ("random", "pretrained") for p in ("finetune", "knn")} | {("pixels", "pixels")}
    for name in ("random", "pretrained"):
        run = tmp_path / "demo" / f"{name}_cv"
        results = json.loads((run / "results.json").read_text())
        predictions = pd.read_csv(run / "predictions.csv")
        test = predictions[predictions["split"] == "test"]
        pooled = roc_auc_score(test["label"] == "malignant", test["score_malignant"])
        assert results["selection"]["pooled_auc"] == pooled
        assert pooled in list(table["pooled_auc"])
    with pytest.raises(UsageError, match="not empty"):
        run_verb(["demo", "--out", str(tmp_path / "demo")])
