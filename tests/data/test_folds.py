"""Folds: whose they are, and what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dinojax.data.folds import folds_table, make_folds
from dinojax.data.records import Records, read_records
from dinojax.data.splits import Fold
from dinojax.errors import RunError
from tests.tasks import write_task


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return read_records(str(write_task(tmp_path / "task", per_class=12)), labelled=True)


def patients(records: Records, indices: np.ndarray) -> set[str]:
    assert records.patients is not None
    return {records.patients[i] for i in indices}


def test_made_folds_test_every_image_once_and_keep_patients_together(records: Records) -> None:
    folds = make_folds(records, 3, seed=0)
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(24))
    for fold in folds:
        parts = [patients(records, part) for part in (fold.train, fold.val, fold.test)]
        assert not (parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2])
    table = folds_table(records, folds)
    assert len(table) == 72
    assert set(table["label"]) == {"benign", "malignant"}


def test_a_given_split_gets_a_validation_part_of_its_training_patients(records: Records) -> None:
    splits = tuple("test" if place % 12 < 2 else "train" for place in range(24))
    (fold,) = make_folds(dataclasses.replace(records, splits=splits), 5, seed=0)
    assert fold.test.tolist() == [0, 1, 12, 13]
    assert sorted([*fold.train, *fold.val, *fold.test]) == list(range(24))
    assert len(fold.val) >= 2
    assert not patients(records, fold.train) & patients(records, fold.val)


def test_folds_of_the_data_are_taken_as_they_are(records: Records) -> None:
    given = (Fold(train=np.arange(6, 20), val=np.arange(20, 24), test=np.arange(6)),)
    assert make_folds(dataclasses.replace(records, folds=given), 5, seed=0) == given


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        (Fold(np.arange(1, 20), np.arange(20, 24), np.arange(1)), "1 patients are in both train and test"),
        (Fold(np.arange(12), np.arange(12, 20), np.arange(20, 24)), "no train image of class malignant"),
        (Fold(np.arange(24), np.arange(0), np.arange(1)), "no val images"),
    ],
)
def test_bad_folds_are_refused(records: Records, fold: Fold, message: str) -> None:
    with pytest.raises(RunError, match=message):
        make_folds(dataclasses.replace(records, folds=(fold,)), 5, seed=0)


def test_a_split_of_some_images_is_refused(records: Records) -> None:
    with pytest.raises(RunError, match=r"benign_3\.png .*row 5.* has no split"):
        make_folds(dataclasses.replace(records, splits=("train", "test", "val", "") * 6), 5, seed=0)
