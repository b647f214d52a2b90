"""RadImageNet's fold files (doi 10.1148/ryai.210315): `dataframe/<task>_{train,val,test}_fold<k>.csv`."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dinojax.data.files import TEXT
from dinojax.data.splits import Fold
from dinojax.data.tables import GROUP_COLUMNS, SPLITS, Table, Uncertain, read_table
from dinojax.errors import RunError, UsageError

_FOLD_FILE = re.compile(r"(?P<task>.+)_(?P<split>train|val|test)_fold(?P<fold>\d+)\.csv")


def find_fold_files(folder: Path) -> dict[tuple[str, int, str], Path]:
    """The files in `dataframe/` by (task, fold, split); empty if there are none."""
    matches = [(_FOLD_FILE.fullmatch(path.name), path) for path in sorted((folder / "dataframe").glob("*.csv"))]
    return {(m["task"], int(m["fold"]), m["split"]): path for m, path in matches if m}


def read_fold_files(
    folder: Path, root: Path, uncertain: Uncertain | None = None
) -> tuple[str, Table, tuple[Fold, ...]]:
    """Reads all folds of a task.

    Args:
      folder: the data set's; has fold files.
      root: folder that their paths are relative to.
      uncertain: as of `read_table`.

    Returns:
      The task's name; a table of the distinct images, sorted by path and frame; and the folds, by increasing number,
      as places in that table.

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
    names = [files[part] for part in parts]
    listing = _Listing(names, [read_table(name, root, True, uncertain) for name in names])
    first_parts = range(0, len(parts), len(SPLITS))
    for first in first_parts:
        listing.refuse_leaks(range(first, first + len(SPLITS)))
    listing.refuse_contradictions()
    places = [np.sort(listing.images[listing.parts == part]) for part in range(len(parts))]
    return task, listing.distinct(), tuple(Fold(*places[first : first + len(SPLITS)]) for first in first_parts)


class _Listing:
    """The rows of several tables that list the same images.

    Attributes:
      table: the rows, one table after the other; '' in a group column that a row's own table lacks.
      parts: int64 [N], which table a row is of.
      images: int64 [N], places in the list of the distinct images, which is sorted by path and frame.
      first: int64 [M], the first row of each distinct image.
    """

    def __init__(self, files: list[Path], tables: list[Table]) -> None:
        self._files = files
        self.table = _concatenate(files, tables)
        self.parts = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        paths = np.array([os.path.normpath(path) for path in self.table.paths], TEXT)
        file_numbers = np.unique(paths, return_inverse=True)[1]
        keys = (file_numbers << 32) + self.table.frames
        _, self.first, self.images = np.unique(keys, return_index=True, return_inverse=True)

    def distinct(self) -> Table:
        """One row an image; `patient_id` only if all tables have it."""
        table, rows = self.table, self.first
        assert table.labels is not None
        groups = {name: column[rows] for name, column in table.groups.items()}
        if "patient_id" in groups and (groups["patient_id"] == "").any():
            del groups["patient_id"]
        return Table(
            table.paths[rows], table.frames[rows], table.rows[rows], table.labels[rows], table.classes, groups, None
        )

    def refuse_leaks(self, parts: range) -> None:
        """Raises if an image is in two of the tables, which make up a fold."""
        rows = np.flatnonzero(np.isin(self.parts, parts))
        _, first, image = np.unique(self.images[rows], return_index=True, return_inverse=True)
        known = rows[first[image]]
        if (known != rows).any():
            place = int(np.argmax(known != rows))
            raise RunError(
                f"{self._where(rows[place])}: {self.table.paths[rows[place]]} is in another split of the same fold "
                f"too: {self._where(known[place])}"
            )

    def refuse_contradictions(self) -> None:
        """Raises if two tables give an image different labels or patients."""
        known = self.first[self.images]
        labels = self.table.labels
        assert labels is not None
        if labels.ndim == 1:
            differs = labels != labels[known]
        else:
            differs = ~((labels == labels[known]) | (np.isnan(labels) & np.isnan(labels[known]))).all(axis=1)
        if (patients := self.table.groups.get("patient_id")) is not None:
            differs |= patients != patients[known]
        if differs.any():
            row = int(np.argmax(differs))
            raise RunError(
                f"{self._where(row)}: {self.table.paths[row]} has {self._describe(row)}, "
                f"but {self._describe(known[row])} in {self._where(known[row])}"
            )

    def _where(self, row: int) -> str:
        return f"{self._files[self.parts[row]]}, row {self.table.rows[row]}"

    def _describe(self, row: int) -> str:
        assert self.table.labels is not None
        label = self.table.labels[row]
        if self.table.classes:
            flags = zip(self.table.classes, label, strict=True)
            label = ", ".join(f"{name} {'unknown' if np.isnan(flag) else int(flag)}" for name, flag in flags)
        patients = self.table.groups.get("patient_id")
        return f"label {label} and patient {(patients is not None and patients[row]) or 'unknown'}"


def _concatenate(files: list[Path], tables: list[Table]) -> Table:
    for file, table in zip(files, tables, strict=True):
        if table.classes != tables[0].classes:
            raise RunError(f"{file}: has other columns label_<class> than {files[0]}; give all fold files the same")

    def group(name: str) -> np.ndarray:
        return np.concatenate([table.groups.get(name, np.full(len(table), "", TEXT)) for table in tables])

    return Table(
        paths=np.concatenate([table.paths for table in tables]),
        frames=np.concatenate([table.frames for table in tables]),
        rows=np.concatenate([table.rows for table in tables]),
        labels=np.concatenate([table.labels for table in tables if table.labels is not None]),
        classes=tables[0].classes,
        groups={name: group(name) for name in GROUP_COLUMNS if any(name in table.groups for table in tables)},
        splits=None,
    )


def write_fold_files(
    directory: Path,
    task: str,
    paths: Sequence[str],
    labels: Sequence[str],
    folds: Sequence[Fold],
    patients: Sequence[str] | None = None,
) -> None:
    """Writes folds as RadImageNet does.

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
