"""Folds in which no patient stands on two sides, and the files that hold them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from dinojax.errors import UsageError


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
    """One way to divide a data set; each part is int64 [n], places in the data set, increasing."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def grouped_folds(labels: np.ndarray, groups: np.ndarray | None, folds: int, seed: int) -> list[Fold]:
    """Divides a data set `folds` times, with about the same share of every class in every part.

    The data set is cut into `folds` slices. Fold k tests on slice k, validates on slice k + 1 (the last fold on the
    first slice) and trains on the others, so every image is tested once and validated once.

    Args:
      labels: [N] classes, of any type that sorts.
      groups: [N] what must stay together, such as the patient; None if every image stands alone.
      folds: how many, at least 3.
      seed: of the shuffle.

    Raises:
      UsageError: fewer than 3 folds, a class with fewer groups than folds, or groups so unequal that a slice would
        lack a class.
    """
    if folds < 3:
        raise UsageError(f"folds is {folds}; at least 3 are needed to train, validate and test on different slices")
    classes, labels = np.unique(np.asarray(labels), return_inverse=True)
    what = "images" if groups is None else "groups (patients)"
    members = np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    for place, name in enumerate(classes):
        count = len(np.unique(members[labels == place]))
        if count < folds:
            raise UsageError(f"class {str(name)!r} has {count} {what}, too few for {folds} folds; make fewer folds")
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    cut = splitter(n_splits=folds, shuffle=True, random_state=seed)
    slices = [test for _, test in cut.split(np.zeros((len(labels), 1)), labels, None if groups is None else members)]
    for part in slices:
        if missing := set(range(len(classes))) - set(labels[part].tolist()):
            name = str(classes[min(missing)])
            raise UsageError(f"{what} are too unequal: one of {folds} folds has no {name!r}; make fewer folds")
    return [_fold(slices, k) for k in range(folds)]


def _fold(slices: list[np.ndarray], k: int) -> Fold:
    after = (k + 1) % len(slices)
    rest = [part for place, part in enumerate(slices) if place not in (k, after)]
    return Fold(train=np.sort(np.concatenate(rest)), val=slices[after], test=slices[k])


def write_fold_files(
    directory: Path,
    task: str,
    paths: Sequence[str],
    labels: Sequence[str],
    folds: Sequence[Fold],
    patients: Sequence[str] | None = None,
) -> None:
    """Writes folds as RadImageNet does (doi 10.1148/ryai.210315): `dataframe/<task>_{train,val,test}_fold<k>.csv`.

    Args:
      directory: the data set's folder; `dataframe/` is made in it.
      task: prefix of the files.
      paths: [N] relative to `directory`; column `filename`.
      labels: [N] names of the classes; column `label`.
      folds: numbered from 1 in the files.
      patients: [N] column `patient_id`, which RadImageNet's own files lack; None leaves it out.
    """
    columns = {"filename": list(paths), "label": list(labels)}
    if patients is not None:
        columns["patient_id"] = list(patients)
    table = pd.DataFrame(columns)
    folder = Path(directory) / "dataframe"
    folder.mkdir(parents=True, exist_ok=True)
    for number, fold in enumerate(folds, start=1):
        for split, places in (("train", fold.train), ("val", fold.val), ("test", fold.test)):
            table.iloc[places].to_csv(folder / f"{task}_{split}_fold{number}.csv", index=False)
