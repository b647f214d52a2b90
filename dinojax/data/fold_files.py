"""RadImageNet's fold files (doi 10.1148/ryai.210315): `dataframe/[<task>_]{train,val,test}[_fold<k>].csv`."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dinojax.data.columns import GROUP_COLUMNS, Wanted
from dinojax.data.files import TEXT, file_key
from dinojax.data.records import FROM_NAMES, SPLITS, Fold, Records
from dinojax.data.spellings import check_values
from dinojax.data.tables import SPLIT_NAMES, Table, folder_name, read_table
from dinojax.errors import RunError, UsageError

_FOLD_FILE = re.compile(
    rf"(?:(?P<task>.+?)_)?(?P<split>{'|'.join(SPLIT_NAMES)})(?:_fold_?(?P<fold>\d+))?\.csv", re.IGNORECASE
)
_KNEE = re.compile(r"(?:^|/)(\d+)_(?:sagittal|coronal|axial)[^/]*$")
_PATIENTS = {
    "acl": _KNEE,
    "meniscus": _KNEE,
    "thyroid": re.compile(r"(?:^|/)(\d+)_\d+\.\w+$"),
    "covid19": re.compile(r"(?:^|/)([^/]+_P\d+)-[^/]*$"),
}
"""Where the files of RadImageNet's tasks have the patient in their names."""

Part = tuple[int, str]
"""Number of the fold, 0 if the only one, and split."""


def fold_tables(folder: Path) -> list[Path]:
    """The tables in `dataframe/`, sorted; none if there is no such folder."""
    inside = folder / "dataframe"
    return sorted(path for path in inside.iterdir() if path.suffix.lower() == ".csv") if inside.is_dir() else []


def find_fold_files(folder: Path) -> tuple[str, dict[Part, Path]]:
    """The task, by the files' prefix or else the folder's name, and the files in `dataframe/`, at least one.

    Raises:
      RunError: a file is missing.
      UsageError: a file is none of the folds', or the files are of several tasks.
    """
    inside, files = folder / "dataframe", fold_tables(folder)
    matches = {path: _FOLD_FILE.fullmatch(path.name) for path in files}
    if strange := [path.name for path, match in matches.items() if not match]:
        raise UsageError(
            f"{inside}: {', '.join(strange)} cannot be told to be fold files ([<task>_]{{train,val,test}}"
            "[_fold<k>].csv); rename or move them, or name one table with --data"
        )
    found: dict[Part, Path] = {}
    tasks: dict[str, Path] = {}
    for path, match in matches.items():
        assert match
        tasks.setdefault(match["task"] or "", path)
        part = int(match["fold"] or 0), SPLIT_NAMES[match["split"].casefold()]
        if (other := found.setdefault(part, path)) != path and len(tasks) == 1:
            raise UsageError(f"{inside}: {other.name} and {path.name} are the same part; keep one")
    if len(tasks) > 1:
        listed = ", ".join(sorted(task or f"no name ({path.name})" for task, path in tasks.items()))
        raise UsageError(f"{inside}: holds the fold files of several tasks ({listed}); leave one task's")
    numbers = sorted({number for number, _ in found})
    if len(numbers) > 1 and 0 in numbers:
        single = found[min(found)].name
        raise UsageError(f"{inside}: {single} has no fold number while others have; move it elsewhere")
    task = next(iter(tasks))
    for number in numbers:
        for split in SPLITS:
            if (number, split) not in found:
                name = "_".join(filter(None, (task, split, f"fold{number}" if number else "")))
                raise RunError(f"{inside}: {name}.csv is missing")
    return task or folder_name(folder), found


def read_fold_files(folder: Path, root: Path, wanted: Wanted) -> Table:
    """Reads all folds of a task.

    Args:
      folder: the data set's; has fold files.
      root: folder that their paths are relative to.
      wanted: what to read.

    Returns:
      The distinct images, sorted by path and frame, with the folds by increasing number; of groups, `patient_id` only
      if all files have it, or if the task is known for having it in the files' names. Labels are as `read_table` gives
      them.

    Raises:
      RunError: as `read_table`; a file is missing; an image is in two splits of a fold, or has two labels or patients;
        a label or patient is written in two ways.
      UsageError: as `find_fold_files` and `read_table`.
    """
    task, files = find_fold_files(folder)
    parts = sorted(files, key=lambda part: (part[0], SPLITS.index(part[1])))
    tables = [read_table(files[part], root, wanted) for part in parts]
    records = _concatenate([table.records for table in tables])
    part = np.repeat(np.arange(len(parts)), [len(table.records) for table in tables])
    image = _images(records)

    def where(row: int) -> str:
        return f"{files[parts[part[row]]]}, row {records.rows[row]}"

    fold = part // len(SPLITS)
    if (leaks := pd.DataFrame({"image": image, "fold": fold}).duplicated().to_numpy()).any():
        row = int(leaks.argmax())
        other = int(np.argmax((image == image[row]) & (fold == fold[row])))
        raise RunError(f"{where(row)}: {records.paths[row]} is in another split of the same fold too: {where(other)}")
    assert records.labels is not None
    for column, what in ((records.labels, "label"), (records.patients, "patient")):
        if column is not None and column.dtype == TEXT:
            values, firsts = np.unique(column, return_index=True)
            check_values({value: where(row) for value, row in zip(values, firsts, strict=True) if value}, what)
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
    records = dataclasses.replace(records, task=task, reader=_reader(tables[0].records))
    records = _with_patients(records).take(first)
    return Table(dataclasses.replace(records, folds=folds), np.concatenate([table.inodes for table in tables]))


def _reader(records: Records) -> str:
    """As the tables were written, of which the first stands for all."""
    written = records.reader.partition(" (")[1:]
    return "RadImageNet folds (dataframe/)" + "".join(written)


def _images(records: Records) -> np.ndarray:
    """Number of the image of every row, by path and frame; a file may have several names."""
    names: dict[object, str] = {}
    of_path = {path: names.setdefault(file_key(records.root / path), path) for path in dict.fromkeys(records.paths)}
    table = pd.DataFrame({"path": [of_path[path] for path in records.paths], "frame": records.frames})
    return table.groupby(["path", "frame"]).ngroup().to_numpy()


def _with_patients(records: Records) -> Records:
    """With the patients that all files give, or else those that the files' names give."""
    groups = {name: column for name, column in records.groups.items() if name != "patient_id" or (column != "").all()}
    if "patient_id" in groups:
        return dataclasses.replace(records, groups=groups)
    records = dataclasses.replace(records, groups=groups, patient_source="")
    task = records.task.casefold()
    if not (pattern := _PATIENTS.get(task)):
        return records
    matches = [pattern.search(path) for path in records.paths]
    if not all(matches):
        return records
    patients = np.array([match[1] for match in matches if match], TEXT)
    return dataclasses.replace(
        records, groups={**groups, "patient_id": patients}, patient_source=f"{FROM_NAMES} (RadImageNet {task})"
    )


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

        if table.channel_columns != tables[0].channel_columns:
            raise RunError(
                f"{table.table}: has other columns path_<name> than {tables[0].table}; give all fold files the same"
            )

    def group(name: str) -> np.ndarray:
        return np.concatenate([table.groups.get(name, np.full(len(table), "", TEXT)) for table in tables])

    return dataclasses.replace(
        tables[0],
        paths=np.concatenate([table.paths for table in tables]),
        frames=np.concatenate([table.frames for table in tables]),
        rows=np.concatenate([table.rows for table in tables]),
        files=_joined([table.files for table in tables]),
        further=tuple(_files_of(channel) for channel in zip(*(table.further for table in tables), strict=True)),
        labels=np.concatenate([table.labels for table in tables if table.labels is not None]),
        groups={name: group(name) for name in GROUP_COLUMNS if any(name in table.groups for table in tables)},
        splits=None,
        table=None,
        unread_columns=tuple(dict.fromkeys(name for table in tables for name in table.unread_columns)),
        patient_source=next((table.patient_source for table in tables if table.patient_source), ""),
    )


def _files_of(tables: Sequence[Records]) -> Records:
    """One channel of the rows of all tables."""
    columns = {name: np.concatenate([getattr(table, name) for table in tables]) for name in ("paths", "frames", "rows")}
    return dataclasses.replace(tables[0], **columns, table=None)


def _joined(columns: list[np.ndarray | None]) -> np.ndarray | None:
    """One column of several tables'; None if a table lacks it."""
    known = [column for column in columns if column is not None]
    return np.concatenate(known) if len(known) == len(columns) else None


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
