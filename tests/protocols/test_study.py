"""What a study is named by."""

import json
from pathlib import Path
from typing import Any

import pytest

from dinojax.protocols.study import name_of, summarise


@pytest.mark.parametrize(
    ("init", "name"),
    [
        (None, "random"),
        ("weights/dinov2_vits14", "dinov2_vits14"),
        ("weights/models/imagenet", "imagenet"),
        ("runs/ssl/model", "ssl"),
        ("runs/ssl/model_best", "ssl, best"),
        ("runs/cv/models/fold_2", "cv/fold_2"),
    ],
)
def test_a_starting_point_is_named_by_its_folder_or_run(init: str | None, name: str) -> None:
    assert name_of(init) == name


def results(folds: list[float | None], mean: float | None, sd: float | None) -> dict[str, Any]:
    found = {"folds": [{"auc": auc} for auc in folds], "mean_auc": mean, "sd_auc": sd, "pooled_auc": 0.8}
    found["pooled_accuracy"] = 0.7
    return {"settings": [{}, {}], "selection": found, "selections": {"nested": found, "published": None}}


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (results([0.7, 0.8], 0.75, 0.07), "AUC by fold 0.700, 0.800; mean ± SD by selection: nested 0.750 ± 0.070,"),
        (results([0.812], 0.812, None), "AUC by fold 0.812; AUC by selection: nested 0.812 (one fold), pooled 0.800"),
        (results([None, 0.8], 0.8, None), "AUC by fold none, 0.800; mean ± SD by selection: nested 0.800 (one fold),"),
        (results([None], None, None), "AUC by fold none; AUC by selection: nested none, pooled 0.800"),
    ],
)
def test_the_line_of_results_invents_no_spread(found: dict[str, Any], line: str) -> None:
    assert summarise(found).startswith(line)


def test_the_line_of_one_setting_names_no_selection() -> None:
    found = results([0.7, 0.8], 0.75, 0.07)
    found["settings"], found["selections"]["published"] = [{}], found["selection"]
    line = "AUC by fold 0.700, 0.800; mean ± SD 0.750 ± 0.070, pooled 0.800, accuracy 0.700"
    assert summarise(found) == line
    for selection in found["selections"].values():
        selection["pooled_accuracy"] = None
    assert summarise(found) == line.removesuffix(", accuracy 0.700")


def test_a_fine_tuned_classifier_is_named_by_its_run_wherever_it_lies(tmp_path: Path) -> None:
    for place, details, name in [
        ("fold_1", {"fold": 3, "classifier": {}, "source": {"run": "thyroid_dinov2"}}, "thyroid_dinov2/fold_3"),
        ("renamed/models/fold_2", {"fold": 2, "classifier": {}, "source": {"run": "cv"}}, "cv/fold_2"),
        ("best", {"fold": 2, "classifier": {}, "source": {}}, "best"),
        ("weights", {"source": {"run": "ssl", "step": "7"}}, "weights"),
    ]:
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "model.json").write_text(json.dumps(details))
        assert name_of(str(tmp_path / place)) == name
