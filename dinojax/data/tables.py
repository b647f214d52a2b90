"""Reads CSV manifests and fold files, and names the row of whatever is wrong in them."""

import csv
import dataclasses
import os
import re
from pathlib import Path

import numpy as np

from dinojax.data.files import FORMATS
from dinojax.errors import RunError, UsageError

_PATH_COLUMNS = ("path", "filename", "img_dir")
_LABEL_COLUMNS = ("label", "acl_label")
_SPLITS = ("train", "val", "test")
_FOLD_FILE = re.compile(r"(?P<task>.+)_(?P<split>train|val|test)_fold(?P<fold>\d+)\.csv")


@dataclasses.dataclass(frozen=True)
class Row:
    """One image as a table lists it; None stands for a column that is not there, or not read."""

    table: Path
    number: int
    """Line in the file; the header is in line 1."""
    path: str
    frame: int | None
    label: str | None
    patient: str | None
    split: str | None

    def __str__(self) -> str:
        return f"{self.table}, row {self.number}"

    @property
    def image(self) -> tuple[str, int]:
        """What two rows share if they mean one image: the file, however it is written, and the frame; sorts."""
        return os.path.normpath(self.path), -1 if self.frame is None else self.frame


def read(table: Path, root: Path, labelled: bool) -> list[Row]:
    """Reads one table of images.

    Args:
      table: has a column `path`, `filename` or `img_dir`, and, if labelled, `label` or `acl_label`; may have `frame`,
        `patient_id` and `split`. Further columns are not read. All values stay strings ('007' is no number).
      root: folder that the paths are relative to.
      labelled: whether labels are needed.

    Returns:
      The rows in the file's order, at least one.

    Raises:
      RunError: names the file, the row and what is wrong; also if an image is missing or listed twice.
    """
    (_, header), *lines = _lines(table)
    path_column = _column(table, header, _PATH_COLUMNS)
    label_column = _column(table, header, _LABEL_COLUMNS) if labelled else ""
    rows: list[Row] = []
    for number, values in lines:
        if len(values) != len(header):
            raise RunError(f"{table}, row {number}: has {len(values)} values, but the header names {len(header)}")
        cells = dict(zip(header, values, strict=True))
        for name in {path_column, label_column, "patient_id"} & cells.keys():
            if not cells[name]:
                raise RunError(f"{table}, row {number}: column {name} is empty")
        frame = cells.get("frame", "")
        if frame and not frame.isdecimal():
            raise RunError(f"{table}, row {number}: frame {frame!r} is not a whole number")
        if cells.get("split", "") not in (*_SPLITS, ""):
            raise RunError(f"{table}, row {number}: split {cells['split']!r} is none of {', '.join(_SPLITS)}")
        row = Row(
            table,
            number,
            cells[path_column],
            int(frame) if frame else None,
            cells.get(label_column),
            cells.get("patient_id"),
            cells.get("split"),
        )
        rows.append(row)
    if not rows:
        raise RunError(f"{table}: lists no images")
    _check_images(rows, root)
    return rows


def _lines(table: Path) -> list[tuple[int, list[str]]]:
    """Number and stripped values of every line that is not blank, the header first."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, [value.strip() for value in values]) for values in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{table}: not readable as CSV in UTF-8: {error}") from error
    lines = [(number, values) for number, values in lines if any(values)]
    if not lines:
        raise RunError(f"{table}: is empty")
    return lines


def _column(table: Path, header: list[str], names: tuple[str, ...]) -> str:
    for name in names:
        if name in header:
            return name
    raise RunError(f"{table}: has no column {' or '.join(names)}; its columns are {', '.join(header)}")


def _check_images(rows: list[Row], root: Path) -> None:
    for row in rows:
        if not row.path.lower().endswith(FORMATS):
            raise RunError(f"{row}: {row.path} is not a kind of file that is read ({', '.join(FORMATS)})")
    missing = [row for row in rows if not (root / row.path).is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more are missing)" if len(missing) > 1 else ""
        raise RunError(f"{missing[0]}: there is no image {root / missing[0].path}{more}")
    first: dict[tuple[str, int], Row] = {}
    for row in rows:
        if row.image in first:
            raise RunError(f"{row}: {row.path} is listed before, in row {first[row.image].number}")
        first[row.image] = row


def fold_files(folder: Path) -> dict[tuple[str, int, str], Path]:
    """`dataframe/<task>_{train,val,test}_fold<k>.csv` by (task, k, split); empty if there are none."""
    matches = [(_FOLD_FILE.fullmatch(path.name), path) for path in sorted((folder / "dataframe").glob("*.csv"))]
    return {(m["task"], int(m["fold"]), m["split"]): path for m, path in matches if m}


def read_folds(folder: Path, root: Path) -> tuple[str, list[Row], list[dict[str, np.ndarray]]]:
    """Reads RadImageNet's fold files.

    Returns:
      The task's name; one row an image, sorted by path and frame; and per fold, by increasing number, the places in
      that list of its `train`, `val` and `test` images (int64, increasing).

    Raises:
      RunError: as `read`; a file is missing; or an image is in two splits of a fold, or has two labels or patients.
      UsageError: several tasks have files there.
    """
    files = fold_files(folder)
    tasks = sorted({task for task, _, _ in files})
    if len(tasks) > 1:
        listed = ", ".join(tasks)
        raise UsageError(f"{folder / 'dataframe'}: holds the fold files of several tasks ({listed}); leave one task's")
    task, numbers = tasks[0], sorted({fold for _, fold, _ in files})
    images: dict[tuple[str, int], Row] = {}
    folds: list[dict[str, list[Row]]] = []
    for number in numbers:
        fold: dict[str, list[Row]] = {}
        for split in _SPLITS:
            if (task, number, split) not in files:
                raise RunError(f"{folder / 'dataframe'}: {task}_{split}_fold{number}.csv is missing")
            fold[split] = read(files[task, number, split], root, labelled=True)
        _refuse_leaks(fold)
        for row in (row for rows in fold.values() for row in rows):
            known = images.setdefault(row.image, row)
            if (row.label, row.patient) != (known.label, known.patient):
                raise RunError(
                    f"{row}: {row.path} has label {row.label} and patient {row.patient or 'unknown'}, "
                    f"but {known.label} and {known.patient or 'unknown'} in {known}"
                )
        folds.append(fold)
    place = {image: i for i, image in enumerate(sorted(images))}
    numbered = [
        {split: np.array(sorted(place[row.image] for row in rows), np.int64) for split, rows in fold.items()}
        for fold in folds
    ]
    return task, [images[image] for image in place], numbered


def _refuse_leaks(fold: dict[str, list[Row]]) -> None:
    seen: dict[tuple[str, int], Row] = {}
    for row in (row for rows in fold.values() for row in rows):
        if row.image in seen:
            raise RunError(f"{row}: {row.path} stands in another split of the same fold too, {seen[row.image]}")
        seen[row.image] = row
