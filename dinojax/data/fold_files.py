"""RadImageNet's fold files (doi 10.1148/ryai.210315): `dataframe/<task>_{train,val,test}_fold<k>.csv`."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dinojax.data.files import TEXT
from dinojax.data.records import SPLITS, Fold, Records
from dinojax.data.tables import GROUP_COLUMNS, Uncertain, normalised_images, read_table
from dinojax.errors import RunError, UsageError

_FOLD_FILE = re.compile(r"(?P<task>.+)_(?P<split>train|val|test)_fold(?P<fold>\d+)\.csv")


def find_fold_files(folder: Path) -> dict[tuple[str, int, str], Path]:
    """The files in `dataframe/` by (task, fold, split); empty if there are none."""
    matches = [(_FOLD_FILE.fullmatch(path.name), path) for path in sorted((folder / "dataframe").glob("*.csv"))]
    return {(m["task"], int(m["fold"]), m["split"]): path for m, path in matches if m}


def read_fold_files(folder: Path, root: Path, uncertain: Uncertain | None = None) -> Records:
    """Reads all folds of a task.

    Args:
      folder: the data set's; has fold files.
      root: folder that their paths are relative to.
      uncertain: as of `read_table`.

    Returns:
      The distinct images, sorted by path and frame, with the folds by increasing number; of groups, `patient_id` only
      if all files have it. Labels are as `read_table` gives them.

    Raises:
      RunError: as `read_table`; a file is missing; an image is in two splits of a fold, or has two labels or patients.
      UsageError: several tasks have files there.
    """
    files = find_fold_files(folder)
    tasks = sorted({task for task, _, _ in files})
    if len(tasks) > 1:
        listed = ", ".join(tasks)
        raise UsageError(f"{folder / 'dataframe'}: holds the fold files of several tasks ({listed}); leave one task's")
    task, numbers = tasks[0], sorted({fold for _, fold, _ in files})
    parts = [(task, number, split) for number in numbers for split in SPLITS]
    for part in parts:
        if part not in files:
            raise RunError(f"{folder / 'dataframe'}: {task}_{part[2]}_fold{part[1]}.csv is missing")
    tables = [read_table(files[part], root, True, uncertain) for part in parts]
    records, part = _concatenate(tables), np.repeat(np.arange(len(parts)), [len(table) for table in tables])
    image = normalised_images(records).groupby(["path", "frame"]).ngroup().to_numpy()

    def where(row: int) -> str:
        return f"{files[parts[part[row]]]}, row {records.rows[row]}"

    fold = part // len(SPLITS)
    if (leaks := pd.DataFrame({"image": image, "fold": fold}).duplicated().to_numpy()).any():
        row = int(leaks.argmax())
        other = int(np.argmax((image == image[row]) & (fold == fold[row])))
        raise RunError(f"{where(row)}: {records.paths[row]} is in another split of the same fold too: {where(other)}")
    assert records.labels is not None
    first = np.unique(image, return_index=True)[1]
    known = first[image]
    labels = np.nan_to_num(records.labels, nan=-1) if records.multilabel else records.labels[:, None]
    differs = (labels != labels[known]).any(axis=1)
    if records.patients is not None:
        differs |= records.patients != records.patients[known]
    if differs.any():
        row = int(differs.argmax())
        raise RunError(
            f"{where(row)}: {records.paths[row]} has {_describe(records, row)}, "
            f"but {_describe(records, known[row])} in {where(known[row])}"
        )
    places = [np.sort(image[part == number]) for number in range(len(parts))]
    folds = tuple(Fold(*places[start : start + len(SPLITS)]) for start in range(0, len(parts), len(SPLITS)))
    groups = {name: column for name, column in records.groups.items() if name != "patient_id" or (column != "").all()}
    return dataclasses.replace(dataclasses.replace(records, groups=groups).take(first), task=task, folds=folds)


def _describe(records: Records, row: int) -> str:
    """Label and patient, in which the files must agree."""
    assert records.labels is not None
    label = records.labels[row]
    if records.multilabel:
        flags = zip(records.classes, label, strict=True)
        label = ", ".join(f"{name} {'unknown' if np.isnan(flag) else int(flag)}" for name, flag in flags)
    patient = "" if records.patients is None else records.patients[row]
    return f"label {label} and patient {patient or 'unknown'}"


def _concatenate(tables: list[Records]) -> Records:
    """The rows of all tables, which list images of one data set; '' in a group column that a row's own table lacks."""
    for table in tables:
        if table.classes != tables[0].classes:
            raise RunError(
                f"{table.table}: has other columns label_<class> than {tables[0].table}; give all fold files the same"
            )

    def group(name: str) -> np.ndarray:
        return np.concatenate([table.groups.get(name, np.full(len(table), "", TEXT)) for table in tables])

    return dataclasses.replace(
        tables[0],
        paths=np.concatenate([table.paths for table in tables]),
        frames=np.concatenate([table.frames for table in tables]),
        rows=np.concatenate([table.rows for table in tables]),
        labels=np.concatenate([table.labels for table in tables if table.labels is not None]),
        groups={name: group(name) for name in GROUP_COLUMNS if any(name in table.groups for table in tables)},
        splits=None,
        table=None,
    )


def write_fold_files(directory: Path, task: str, table: pd.DataFrame, folds: Sequence[Fold]) -> None:
    """Writes folds as RadImageNet does.

    Args:
      directory: the data set's folder; `dataframe/` is made in it.
      task: prefix of the files.
      table: a row an image, with the columns that `read_table` knows; the path is relative to `directory`.
      folds: of places in the table; numbered from 1 in the files.
    """
    folder = directory / "dataframe"
    folder.mkdir(parents=True, exist_ok=True)
    for number, fold in enumerate(folds, start=1):
        for split in SPLITS:
            table.iloc[getattr(fold, split)].to_csv(folder / f"{task}_{split}_fold{number}.csv", index=False)
