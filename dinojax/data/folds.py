"""The folds that a comparison runs on: the data's own, or patient-grouped ones."""

import numpy as np
import pandas as pd

from dinojax.data.records import Records
from dinojax.data.splits import Fold, grouped_folds
from dinojax.errors import RunError

_PARTS = ("train", "val", "test")


def make_folds(records: Records, folds: int, seed: int) -> tuple[Fold, ...]:
    """Folds of labelled images, in which no patient stands in two parts.

    The data's own fold files are taken as they are. A given split into training and test part is one fold, its
    validation part being a fifth of the training part, grouped by patient, if none is given. Otherwise folds are made,
    stratified and grouped by patient; an image without a patient is its own.

    Args:
      records: labelled.
      folds: how many to make where the data brings none.
      seed: of what is drawn.

    Raises:
      RunError: a fold has an empty part, no training case of a class, or a patient in two parts; or
        the data says the split of some images only.
    """
    assert records.labels is not None
    if records.folds:
        made = records.folds
    elif records.splits is not None and any(records.splits):
        made = (_given_split(records, seed),)
    else:
        made = tuple(grouped_folds(records.labels, _groups(records), folds, seed))
    for number, fold in enumerate(made, start=1):
        _check(records, number, fold)
    return made


def folds_table(records: Records, folds: tuple[Fold, ...]) -> pd.DataFrame:
    """Which image stands where: `fold`, `split`, `path`, `frame`, `patient_id`, `label`, all text."""
    parts = []
    for number, fold in enumerate(folds, start=1):
        for split in _PARTS:
            parts.append(cases_table(records, getattr(fold, split)).assign(fold=str(number), split=split))
    columns = ["fold", "split", "path", "frame", "patient_id", "label"]
    return pd.concat(parts, ignore_index=True).reindex(columns=columns)


def cases_table(records: Records, indices: np.ndarray) -> pd.DataFrame:
    """`path`, `frame`, `patient_id` and `label` of labelled images, as text; empty where there is none."""
    assert records.labels is not None
    labels, patients = records.labels, records.patients
    return pd.DataFrame(
        {
            "path": [records.paths[i] for i in indices],
            "frame": ["" if records.frames[i] is None else str(records.frames[i]) for i in indices],
            "patient_id": ["" if patients is None else patients[i] for i in indices],
            "label": [records.classes[labels[i]] for i in indices],
        },
        dtype=object,
    )


def _groups(records: Records) -> np.ndarray:
    return np.asarray(records.patients if records.patients is not None else range(len(records)))


def _given_split(records: Records, seed: int) -> Fold:
    assert records.splits is not None
    assert records.labels is not None
    splits = np.asarray(records.splits)
    if not splits.all():
        raise RunError(
            f"{records.describe(int(np.argmin(splits != '')))} has no split while others have; give all or none"
        )
    train, val, test = (np.flatnonzero(splits == part) for part in _PARTS)
    if not len(val) and len(train):
        inner = grouped_folds(records.labels[train], _groups(records)[train], 5, seed)[0]
        train, val = train[np.sort(np.concatenate([inner.train, inner.val]))], train[inner.test]
    return Fold(train=train, val=val, test=test)


def _check(records: Records, number: int, fold: Fold) -> None:
    assert records.labels is not None
    for part in _PARTS:
        indices = getattr(fold, part)
        if not len(indices):
            raise RunError(f"fold {number} of {records.root} has no {part} images; give other folds")
        absent = set(range(len(records.classes))) - set(records.labels[indices].tolist())
        if part == "train" and absent:
            raise RunError(
                f"fold {number} of {records.root} has no {part} image of class {records.classes[min(absent)]}; "
                "give other folds, or fewer"
            )
    if records.patients is not None:
        patients = [{records.patients[i] for i in getattr(fold, part)} for part in _PARTS]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            if shared := sorted(patients[a] & patients[b]):
                raise RunError(
                    f"fold {number} of {records.root}: {len(shared)} patients are in both {_PARTS[a]} and {_PARTS[b]}, "
                    f"such as {shared[0]}; give folds grouped by patient"
                )
