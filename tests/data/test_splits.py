"""Folds: whose they are, whole patients, every image tested once, about the same classes everywhere; refusals."""

import dataclasses
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dinojax.data.fold_files import write_fold_files
from dinojax.data.reading import read_records
from dinojax.data.records import Fold, Records
from dinojax.data.splits import folds_table, grouped_folds, make_folds, multilabel_folds
from dinojax.errors import RunError, UsageError
from tests.tasks import write_task


def make_patients(count=40, seed=0):
    """Patients of 1 to 6 images with one of three classes each, in shuffled order."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(count), rng.integers(1, 7, count))
    labels = np.array(["a", "b", "b", "c"])[groups % 4]
    order = rng.permutation(len(groups))
    return labels[order], np.array([f"patient {group}" for group in groups])[order]


def parts(fold: Fold):
    return fold.train, fold.val, fold.test


@pytest.mark.parametrize("folds", [3, 5])
def test_no_patient_stands_in_two_parts_of_a_fold(folds):
    labels, groups = make_patients()
    for fold in grouped_folds(labels, groups, folds, seed=1):
        train, val, test = (set(groups[part]) for part in parts(fold))
        assert not train & val
        assert not train & test
        assert not val & test


@pytest.mark.parametrize("grouped", [True, False])
def test_a_fold_holds_everything_once_and_all_is_tested_and_validated_once(grouped):
    labels, groups = make_patients()
    folds = grouped_folds(labels, groups if grouped else np.arange(len(labels)), 5, seed=1)
    everything = np.arange(len(labels))
    for fold in folds:
        np.testing.assert_array_equal(np.sort(np.concatenate(parts(fold))), everything)
    np.testing.assert_array_equal(np.sort(np.concatenate([fold.test for fold in folds])), everything)
    np.testing.assert_array_equal(np.sort(np.concatenate([fold.val for fold in folds])), everything)


@pytest.mark.parametrize("grouped", [True, False])
def test_classes_are_spread_evenly(grouped):
    labels, groups = make_patients(count=200)
    for fold in grouped_folds(labels, groups if grouped else np.arange(len(labels)), 5, seed=2):
        for name in "abc":
            for part in parts(fold):
                assert abs((labels[part] == name).mean() - (labels == name).mean()) < 0.05


def test_the_seed_alone_decides():
    labels, groups = make_patients()
    once, again, other = (grouped_folds(labels, groups, 5, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a.test, b.test) for a, b in zip(once, again, strict=True))
    assert not all(np.array_equal(a.test, b.test) for a, b in zip(once, other, strict=True))


def test_a_class_with_fewer_patients_than_folds_is_refused():
    labels = np.array(["common"] * 20 + ["rare"] * 10)
    groups = np.concatenate([np.arange(20), 20 + np.arange(10) % 4])
    assert len(grouped_folds(labels, groups, 4, seed=0)) == 4
    with pytest.raises(UsageError, match=r"class 'rare' has 4 groups \(patients\), too few for 5 folds"):
        grouped_folds(labels, groups, 5, seed=0)
    assert len(grouped_folds(labels, np.arange(len(labels)), 5, seed=0)) == 5
    with pytest.raises(UsageError, match=r"class 'rare' has 10 groups \(patients\), too few for 11 folds"):
        grouped_folds(labels, np.arange(len(labels)), 11, seed=0)


def test_two_folds_leave_nothing_to_train_on():
    with pytest.raises(UsageError, match="folds is 2; at least 3"):
        grouped_folds(np.arange(10) % 2, np.arange(10), 2, seed=0)


def test_a_slice_without_a_class_is_refused():
    # One patient has more than the others together, and two of the three with a "yes" end in one slice.
    groups = np.array(["a"] + ["b"] * 2 + ["c"] + ["d"] * 5)
    labels = np.array(["yes", "no", "yes", "no", "no", "yes", "yes", "yes", "yes"])
    with pytest.raises(UsageError, match=r"too unequal: one of 3 folds has no 'yes'; at least 3 folds are needed"):
        grouped_folds(labels, groups, 3, seed=0)


def test_fold_files_have_the_published_layout(tmp_path):
    labels = ["no", "yes"] * 6
    paths = [f"images/{place}.png" for place in range(12)]
    folds = grouped_folds(np.array(labels), np.arange(12), 3, seed=0)
    write_fold_files(tmp_path, "knee", pd.DataFrame({"filename": paths, "label": labels}), folds)
    names = {f"knee_{split}_fold{number}.csv" for split in ("train", "val", "test") for number in (1, 2, 3)}
    assert {file.name for file in (tmp_path / "dataframe").iterdir()} == names
    table = pd.read_csv(tmp_path / "dataframe" / "knee_val_fold2.csv")
    assert list(table.columns) == ["filename", "label"]
    assert list(table["filename"]) == [paths[place] for place in folds[1].val]
    assert list(table["label"]) == [labels[place] for place in folds[1].val]


def test_fold_files_keep_the_patients_as_written(tmp_path):
    labels, patients = ["no", "yes"] * 6, [f"00{place}" for place in range(12)]
    folds = grouped_folds(np.array(labels), np.array(patients), 3, seed=0)
    listed = pd.DataFrame({"filename": patients, "label": labels, "patient_id": patients})
    write_fold_files(tmp_path, "knee", listed, folds)
    table = pd.read_csv(tmp_path / "dataframe" / "knee_train_fold1.csv", dtype=str)
    assert list(table["patient_id"]) == [patients[place] for place in folds[0].train]


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return read_records(str(write_task(tmp_path / "task", per_class=12)), labelled=True)


def patients(records: Records, indices: np.ndarray) -> set[str]:
    assert records.patients is not None
    return set(records.patients[indices].tolist())


def text(values: Iterable[str]) -> np.ndarray:
    return np.array(list(values), np.dtypes.StringDType())


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
    splits = text("test" if place % 12 < 2 else "train" for place in range(24))
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


def test_a_class_is_called_by_its_name_and_the_advice_can_be_followed(records: Records) -> None:
    few = records.take(np.arange(16))  # two patients of the second class
    for folds in (5, 3):
        with pytest.raises(
            UsageError, match=r"class 'malignant' has 2 groups .* at least 3 folds are needed: add pati"
        ):
            make_folds(few, folds, seed=0)
    with pytest.raises(UsageError, match=r"class 'benign' has 6 groups .* for 7 folds; make fewer folds \(--folds 6\)"):
        make_folds(records, 7, seed=0)
    splits = text("train" if place < 14 else "test" for place in range(16))
    with pytest.raises(
        UsageError, match=r"cannot be taken for validation: class 'malignant' .* give a validation part"
    ):
        make_folds(dataclasses.replace(few, splits=splits), 5, seed=0)


def test_published_folds_may_share_patients_that_nobody_gave(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    fold = Fold(np.arange(1, 20), np.arange(20, 24), np.arange(1))
    derived = dataclasses.replace(records, folds=(fold,), patient_source="the file names (RadImageNet acl)")
    assert make_folds(derived, 5, seed=0) == (fold,)
    printed = capsys.readouterr().out
    assert printed.startswith("warning: ")
    assert "the file names (RadImageNet acl)" in printed
    assert "fold 1: 1 patients are in both train and test" in printed
    assert printed.count("\n") == 1
    for source in ("column pid", "--group_regex"):
        with pytest.raises(RunError, match="1 patients are in both train and test"):
            make_folds(dataclasses.replace(derived, patient_source=source), 5, seed=0)


def test_a_split_of_some_images_is_refused(records: Records) -> None:
    with pytest.raises(RunError, match=r"benign_3\.png .*row 5.* has no split"):
        make_folds(dataclasses.replace(records, splits=text(("train", "test", "val", "") * 6)), 5, seed=0)


# Several labels an image.


def make_labels(patients: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A common, a rare and a very rare label of patients with one to four images, a fifth of the entries unknown."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    labels = (rng.random((patients, 3)) < (0.5, 0.25, 0.03)).astype(np.float32)[groups]
    labels[rng.random(labels.shape) < 0.2] = np.nan
    labels[:8, 2] = (1, 0) * 4
    return labels, np.array([f"patient {group}" for group in groups])


@pytest.mark.parametrize("grouped", [True, False])
def test_folds_of_several_labels(grouped: bool) -> None:
    labels, groups = make_labels()
    groups = groups if grouped else np.arange(len(labels))
    folds = multilabel_folds(labels, groups, 5, seed=1)
    np.testing.assert_array_equal(np.sort(np.concatenate([fold.test for fold in folds])), np.arange(len(labels)))
    for fold, again in zip(folds, multilabel_folds(labels, groups, 5, seed=1), strict=True):
        for part, same in zip(parts(fold), parts(again), strict=True):
            np.testing.assert_array_equal(part, same)
        if grouped:
            assert not set(groups[fold.train]) & (set(groups[fold.val]) | set(groups[fold.test]))
            assert not set(groups[fold.val]) & set(groups[fold.test])
        # The rarer of the two labels with enough patients is spread evenly.
        assert abs(np.nanmean(labels[fold.test, 1]) - np.nanmean(labels[:, 1])) < 0.15
    others = multilabel_folds(labels, groups, 5, seed=2)
    assert not all(np.array_equal(a.test, b.test) for a, b in zip(folds, others, strict=True))


def test_the_rarest_positive_label_is_the_stratum() -> None:
    """Ten images have the rare label beside the common one: stratified by the rare one, each slice has two."""
    labels = np.zeros((50, 2), np.float32)
    labels[:30, 0], labels[:10, 1] = 1, 1
    for fold in multilabel_folds(labels, np.arange(len(labels)), 5, seed=0):
        assert labels[fold.test].sum(axis=0).tolist() == [6, 2]


def test_strata_of_too_few_patients_are_merged() -> None:
    labels = np.zeros((30, 2), np.float32)
    labels[:15, 0], labels[:2, 1] = 1, 1  # the rare label's two join the fifteen without any
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scikit-learn's, of a stratum with fewer images than folds
        folds = multilabel_folds(labels, np.arange(len(labels)), 5, seed=0)
    assert [int((labels[fold.test, 0] == 1).sum() - labels[fold.test, 1].sum()) for fold in folds].count(3) >= 3
    labels = np.ones((30, 2), np.float32)
    labels[:15, 0], labels[0] = 0, 0  # one image without any joins the largest
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sorted(len(fold.test) for fold in multilabel_folds(labels, np.arange(len(labels)), 5, seed=0)) == [6] * 5
    with pytest.raises(UsageError, match=r"4 groups \(patients\), too few for 5 folds"):
        multilabel_folds(labels, np.arange(30) % 4, 5, seed=0)
    with pytest.raises(UsageError, match="folds is 2"):
        multilabel_folds(labels, np.arange(len(labels)), 2, seed=0)


def of_several_labels(records: Records, labels: np.ndarray) -> Records:
    return dataclasses.replace(records, labels=labels.astype(np.float32), classes=("nodule", "effusion"))


def test_a_training_part_needs_both_values_of_every_label(records: Records) -> None:
    labels = np.stack([np.arange(24) % 2, np.arange(24) < 1], axis=1)
    with pytest.raises(RunError, match=r"fold \d of .* has no train image with label_effusion 1; give other folds"):
        make_folds(of_several_labels(records, labels), 3, seed=0)
    labels[:, 1] = np.arange(24) % 3 == 0
    folds = make_folds(of_several_labels(records, labels), 3, seed=0)
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(24))
    labels = labels.astype(np.float32)
    labels[:, 0] = np.where(labels[:, 0] == 0, np.nan, 1)
    with pytest.raises(RunError, match=r"fold 1 of .* has no train image with label_nodule 0"):
        make_folds(of_several_labels(records, labels), 3, seed=0)
    labels[folds[0].val] = np.nan
    given = dataclasses.replace(of_several_labels(records, labels), folds=tuple(folds))
    with pytest.raises(RunError, match=r"fold 1 of .* has no val image with a known label"):
        make_folds(given, 3, seed=0)


def test_tables_of_several_labels(records: Records) -> None:
    labels = np.array([[1, 0], [np.nan, 1]] * 12)
    fold = Fold(np.arange(2, 20), np.arange(20, 24), np.arange(2))
    table = folds_table(of_several_labels(records, labels), (fold,))
    columns = ["fold", "split", "path", "frame", "patient_id", "label_nodule", "label_effusion"]
    assert table.columns.tolist() == columns
    first = table[table["split"] == "test"]
    assert first["label_nodule"].tolist() == ["1", ""]
    assert first["label_effusion"].tolist() == ["0", "1"]
    assert set(table["fold"]) == {"1"}
