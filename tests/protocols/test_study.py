"""What a study is named by."""

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
        ("runs/cv/models/fold_2", "cv, fold 2"),
    ],
)
def test_a_starting_point_is_named_by_its_folder_or_run(init: str | None, name: str) -> None:
    assert name_of(init) == name
