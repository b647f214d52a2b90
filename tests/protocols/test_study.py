"""What a study is named by."""

import json
from pathlib import Path

import pytest

from dinojax.protocols.study import name_of


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
