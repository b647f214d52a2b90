"""Reads CSV manifests and fold files, and names the row of whatever is wrong in them."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from dinojax.data.files import FORMATS
from dinojax.errors import RunError, UsageError

_PATH_COLUMNS = ("path", "filename", "img_dir")
_LABEL_COLUMNS = ("label", "acl_label")
_SPLITS = ("train", "val", "test")
_FOLD_FILE = re.compile(r"(?P<task>.+)_(?P<split>train|val|test)_fold(?P<fold>\d+)\.csv")


def read(csv: Path, root: Path, labelled: bool) -> pd.DataFrame:
    """Reads one table of images.

    Args:
      csv: has a column `path`, `filename` or `img_dir`, and, if labelled, `label` or `acl_label`; may have `frame`,
        `patient_id` and `split`. Further columns are not read.
      root: folder that the paths are relative to.
      labelled: whether labels are needed.

    Returns:
      Columns `path`, `frame` (int or None) and those of `label`, `patient_id` and `split` that are there, as strings
      ('007' stays so); indexed by the row in the file, the header being row 1.

    Raises:
      RunError: names the file, the row and what is wrong.
    """
    raw = _read_csv(csv)
    columns = {"path": _column(raw, _PATH_COLUMNS, csv)}
    if labelled:
        columns["label"] = _column(raw, _LABEL_COLUMNS, csv)
    columns |= {name: name for name in ("patient_id", "split") if name in raw}
    table = pd.DataFrame({name: raw[column] for name, column in columns.items()})
    for name in {"path", "label", "patient_id"} & set(table.columns):
        _refuse_rows(csv, table[name] == "", f"column {columns[name]} is empty")
    table["frame"] = _frames(raw["frame"], csv) if "frame" in raw else pd.Series(None, table.index, dtype=object)
    if "split" in table:
        _refuse_rows(csv, ~table["split"].isin([*_SPLITS, ""]), "split is none of train, val, test", table["split"])
    unknown = ~table["path"].str.lower().str.endswith(FORMATS)
    _refuse_rows(csv, unknown, f"not a kind of file that is read ({', '.join(FORMATS)})", table["path"])
    missing = [not os.path.isfile(root / path) for path in table["path"]]  # noqa: PTH113: twice as fast on long lists
    _refuse_rows(csv, pd.Series(missing, table.index, dtype=bool), f"no such image under {root}", table["path"])
    _refuse_rows(csv, image_key(table).duplicated(), "listed a second time", table["path"])
    return table


def image_key(table: pd.DataFrame) -> pd.Series:
    """What two rows share if they mean one image: the file, however it is written, and the frame."""
    return table["path"].map(os.path.normpath) + "\0" + table["frame"].astype(str)


def _read_csv(csv: Path) -> pd.DataFrame:
    try:
        # Blank lines are kept at first, so that the index tells the row in the file.
        raw = pd.read_csv(csv, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig")
    except (ValueError, OSError) as error:  # pandas' ParserError and EmptyDataError, and UnicodeDecodeError
        raise RunError(f"{csv}: not readable as CSV: {' '.join(str(error).split())}") from error
    raw = raw.fillna("").apply(lambda column: column.str.strip())
    raw.columns = [str(name).strip() for name in raw.columns]
    raw.index = pd.RangeIndex(2, len(raw) + 2)
    raw = raw[(raw != "").any(axis=1)]
    if raw.empty:
        raise RunError(f"{csv}: lists no images")
    return raw


def _column(raw: pd.DataFrame, names: tuple[str, ...], csv: Path) -> str:
    for name in names:
        if name in raw:
            return name
    raise RunError(f"{csv}: has no column {' or '.join(names)}; its columns are {', '.join(raw.columns)}")


def _frames(column: pd.Series, csv: Path) -> pd.Series:
    _refuse_rows(csv, ~column.str.fullmatch(r"\d*"), "frame is not a whole number", column)
    return column.map(lambda value: int(value) if value else None).astype(object).where(column != "", None)


def _refuse_rows(csv: Path, wrong: pd.Series, what: str, shown: pd.Series | None = None) -> None:
    """Raises for the first row that is wrong, telling how many more there are."""
    rows = wrong.index[wrong]
    if len(rows):
        value = f"{shown[rows[0]]}: " if shown is not None else ""
        more = f" (and {len(rows) - 1} more rows)" if len(rows) > 1 else ""
        raise RunError(f"{csv}, row {rows[0]}: {value}{what}{more}")


def fold_files(folder: Path) -> dict[tuple[str, int, str], Path]:
    """`dataframe/<task>_{train,val,test}_fold<k>.csv` by (task, k, split); empty if there are none."""
    matches = [(_FOLD_FILE.fullmatch(path.name), path) for path in sorted((folder / "dataframe").glob("*.csv"))]
    return {(m["task"], int(m["fold"]), m["split"]): path for m, path in matches if m}


def read_folds(folder: Path, root: Path) -> tuple[str, pd.DataFrame, list[dict[str, np.ndarray]]]:
    """Reads RadImageNet's fold files.

    Returns:
      The task's name; one row an image (`path`, `frame`, `label`, maybe `patient_id`), sorted by path; and per fold,
      by increasing number, the places in that table of its `train`, `val` and `test` images (int64, increasing).

    Raises:
      RunError: as `read`; a file is missing; an image is in two splits of a fold or has two labels; or several tasks
        have files there.
    """
    files = fold_files(folder)
    tasks = sorted({task for task, _, _ in files})
    if len(tasks) > 1:
        raise UsageError(f"{folder / 'dataframe'}: holds several tasks ({', '.join(tasks)}); leave one task's files in it")
    task, folds = tasks[0], sorted({fold for _, fold, _ in files})
    for fold in folds:
        for split in _SPLITS:
            if (task, fold, split) not in files:
                raise RunError(f"{folder / 'dataframe'}: {task}_{split}_fold{fold}.csv is missing")
    parts = [
        read(csv, root, labelled=True).assign(fold=fold, split=split, file=csv.name)
        for (_, fold, split), csv in sorted(files.items())
    ]
    rows = pd.concat(parts, names=["row"]).reset_index()
    rows["key"] = image_key(rows)
    _refuse_contradictions(folder, rows)
    images = rows.drop_duplicates("key").sort_values("key", ignore_index=True)
    if "patient_id" in images and images["patient_id"].isna().any():
        raise RunError(f"{folder / 'dataframe'}: some fold files have a column patient_id and some have none")
    rows["place"] = pd.Index(images["key"]).get_indexer(pd.Index(rows["key"]))
    numbered = [
        {split: np.sort(rows["place"][(rows["fold"] == fold) & (rows["split"] == split)].to_numpy()) for split in _SPLITS}
        for fold in folds
    ]
    return task, images, numbered


def _refuse_contradictions(folder: Path, rows: pd.DataFrame) -> None:
    """An image stands in one split of a fold, with one label and one patient everywhere."""

    def place(row: pd.Series) -> str:
        return f"{row['file']} row {row['row']}"

    def refuse(mask: pd.Series, by: list[str], differing: str, what: str) -> None:
        if mask.any():
            first = rows[mask].iloc[0]
            same = rows[(rows[by] == first[by]).all(axis=1)]
            other = same[same[differing] != first[differing]].iloc[0]
            raise RunError(f"{folder / 'dataframe'}: {first['path']} {what}: {place(first)} and {place(other)}")

    refuse(rows.duplicated(["fold", "key"], keep=False), ["fold", "key"], "split", "is in two splits of one fold")
    for column, what in (("label", "has two labels"), ("patient_id", "has two patients")):
        if column in rows:
            different = rows.groupby("key")[column].transform("nunique") > 1
            refuse(different, ["key"], column, what)
