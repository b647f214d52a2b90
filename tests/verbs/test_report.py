"""The report against the runs' predictions, and what it refuses."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dinojax.errors import RunError, UsageError
from dinojax.verbs import report
from tests.tasks import finished_run, write_task
from tests.verbs.test_finetune import auc


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("data") / "breast", per_class=12)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    three = write_task(folder / "brain", ("a", "b", "c"), per_class=12)
    return [
        finished_run(folder / "one", data),
        finished_run(folder / "two", data, "pre-trained", seed=1, protocol="published"),
        finished_run(folder / "three", three, "pre-trained", task="brain|T2"),
    ]


def make(runs: list[Path], out: Path) -> Path:
    report.main([*map(str, runs), "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def out(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(runs, tmp_path_factory.mktemp("report") / "out")


def test_the_table_is_what_the_predictions_give(runs: list[Path], out: Path) -> None:
    table = pd.read_csv(out / "table.csv").set_index(["task", "starting_point"])
    stated = json.loads((out / "report.json").read_text())["table"]
    assert len(table) == len(stated) == 5  # three runs and a baseline a task
    for run, key in zip(
        runs, [("breast", "random"), ("breast", "pre-trained"), ("brain|T2", "pre-trained")], strict=True
    ):
        results = json.loads((run / "results.json").read_text())
        chosen = {entry["fold"]: entry["setting"] for entry in results["selection"]["folds"]}
        rows: list[dict[str, Any]] = pd.read_csv(run / "predictions.csv").to_dict("records")  # type: ignore[assignment]
        rows = [row for row in rows if row["split"] == "test" and row["setting"] == chosen[row["fold"]]]
        aucs = [auc([row for row in rows if row["fold"] == fold], results["classes"]) for fold in (1, 2, 3)]
        pooled = auc(rows, results["classes"])
        line = table.loc[key]
        np.testing.assert_allclose([line[f"fold_{fold}"] for fold in (1, 2, 3)], aucs, atol=1e-12)
        np.testing.assert_allclose(line[["mean_auc", "sd_auc"]].astype(float), [np.mean(aucs), np.std(aucs, ddof=1)])
        assert line["pooled_auc"] == pytest.approx(pooled, abs=1e-12)
        text = f"{np.mean(aucs):.3f} ± {np.std(aucs, ddof=1):.3f} | {pooled:.3f} |"
        assert text in (out / "report.md").read_text()
    assert table.loc[("breast", "logistic_pixels_32"), "kind"] == "baseline"
    assert str(table.loc[("breast", "random"), "epochs"]) in ("2", "2.0")


def test_the_text_says_how_to_read_it(out: Path) -> None:
    text = (out / "report.md").read_text()
    for words in ("not a confidence interval", "optimistic", "no test case has a part", "32×32 pixels (baseline)"):
        assert words in text
    assert "| brain\\|T2 |" in text  # a name breaks no table
    for link in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (out / link).stat().st_size
    assert len(list((out / "figures").iterdir())) == 5


def test_the_page_needs_no_other_file(out: Path) -> None:
    page = (out / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{5})', page)
    assert sources == ["data:"] * 5
    assert "<td>brain|T2</td>" in page


def test_one_protocol_needs_no_word_on_the_other(runs: list[Path], tmp_path: Path) -> None:
    assert "optimistic" not in (make(runs[:1], tmp_path) / "report.md").read_text()


def refuse(runs: list[Path], tmp_path: Path, error: type[RunError], message: str) -> None:
    with pytest.raises(error, match=message):
        make(runs, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_changed_predictions_are_refused(data: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", data)
    table = pd.read_csv(run / "predictions.csv")
    table["score_malignant"] = 1 - table["score_malignant"]
    table.to_csv(run / "predictions.csv", index=False)
    refuse([run], tmp_path, RunError, r"run: results\.json states .* but the predictions give")


@pytest.mark.parametrize(("key", "field"), [("selection", "pooled_auc"), ("baselines", "mean_auc")])
def test_changed_results_are_refused(data: Path, tmp_path: Path, key: str, field: str) -> None:
    run = finished_run(tmp_path / "run", data)
    results = json.loads((run / "results.json").read_text())
    part = results[key] if key == "selection" else results[key]["logistic_pixels_32"]
    part[field] += 0.001
    (run / "results.json").write_text(json.dumps(results))
    refuse([run], tmp_path, RunError, f"{field}, but the predictions give")


def test_runs_of_other_folds_or_cases_are_refused(runs: list[Path], data: Path, tmp_path: Path) -> None:
    other = finished_run(tmp_path / "other", data, "another", folds_seed=5)
    refuse(
        [runs[0], other], tmp_path, UsageError, "one and .*other are of one task, 'breast', but not of the same folds"
    )


def test_runs_of_other_classes_are_refused(runs: list[Path], tmp_path: Path) -> None:
    other = finished_run(tmp_path / "other", write_task(tmp_path / "data", ("no", "yes")), "another")
    refuse([runs[0], other], tmp_path, UsageError, "classes differ: benign, malignant and no, yes")


def test_two_runs_of_one_name_are_refused(runs: list[Path], data: Path, tmp_path: Path) -> None:
    other = finished_run(tmp_path / "other", data)
    refuse([runs[0], other], tmp_path, UsageError, "are both of task 'breast', starting point 'random', seed 0")


def test_unfinished_and_foreign_folders_are_refused(runs: list[Path], data: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", data)
    (run / "results.json").unlink()
    refuse([runs[0], run], tmp_path, UsageError, "run is unfinished")
    refuse([tmp_path / "nowhere"], tmp_path, UsageError, "nowhere is no run of finetune")
