"""Reads tables of images as columns, and names the row of whatever is wrong in them."""

import csv
import os
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from dinojax.data.files import FORMATS, TEXT, find_missing
from dinojax.data.records import SPLITS, Records
from dinojax.errors import RunError

Uncertain = Literal["ignore", "zero", "one"]

_PATH_COLUMNS = ("path", "filename", "img_dir")
_LABEL_COLUMNS = ("label", "acl_label")
_MULTILABEL = "label_"
GROUP_COLUMNS = ("patient_id", "study_id")
_FLAGS = {"": np.nan, "0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}
_UNCERTAIN = ("-1", "-1.0")
_MEANINGS = {"ignore": np.nan, "zero": 0.0, "one": 1.0}


def read_table(file: Path, root: Path, labelled: bool, uncertain: Uncertain | None = None) -> Records:
    """Reads one table of images.

    Args:
      file: has a column `path`, `filename` or `img_dir`, and, if labelled, either `label` or `acl_label`, or a column
        `label_<class>` for each of several labels; may have `frame`, `patient_id`, `study_id` and `split`. Further
        columns are not read. Text stays as it is ('007' is no number).
      root: folder that the paths are relative to.
      labelled: whether labels are needed.
      uncertain: what -1 in a column `label_<class>` means: unknown, 0 or 1.

    Returns:
      The rows in the file's order, at least one. A column `label` stays as it is, StringDType [N], without `classes`.

    Raises:
      RunError: names the file, the row and what is wrong; also if an image is missing or listed twice.
    """
    records = _parse(file, root, labelled, uncertain)
    paths, rows = records.paths.tolist(), records.rows
    if missing := find_missing(root, paths):
        more = f" (and {len(missing) - 1} more are missing)" if len(missing) > 1 else ""
        first = missing[0]
        raise RunError(f"{file}, row {rows[first]}: there is no image {root / paths[first]}{more}")
    images = normalised_images(records)
    if (again := images.duplicated().to_numpy()).any():
        place = int(again.argmax())
        before = int((images == images.iloc[place]).all(axis=1).to_numpy().argmax())
        raise RunError(f"{file}, row {rows[place]}: {paths[place]} is listed before, in row {rows[before]}")
    return records


def normalised_images(records: Records) -> pd.DataFrame:
    """Columns `path` and `frame`, which are the same in two rows of the same image, however its path is written."""
    return pd.DataFrame({"path": [os.path.normpath(path) for path in records.paths], "frame": records.frames})


def _parse(file: Path, root: Path, labelled: bool, uncertain: Uncertain | None) -> Records:
    lines = _lines(file)
    _, header = next(lines, (0, []))
    if not header:
        raise RunError(f"{file}: is empty")
    path = _column(file, header, _PATH_COLUMNS)
    label, flags = _label_columns(file, header) if labelled else ((), ())
    text_columns = (*label, *GROUP_COLUMNS, "split")
    place = {name: header.index(name) for name in (path, *text_columns, *flags, "frame") if name in header}
    if repeated := [name for name in place if header.count(name) > 1]:
        raise RunError(f"{file}: has several columns {repeated[0]}; its columns are {', '.join(header)}")
    texts: dict[str, list[str]] = {name: [] for name in text_columns if name in place}
    known: dict[str, str] = {}  # values repeat: each is kept once
    filled = [name for name in (path, *label, "patient_id") if name in place]
    meanings = _FLAGS | (dict.fromkeys(_UNCERTAIN, _MEANINGS[uncertain]) if uncertain else {})
    paths: list[str] = []
    frames, rows, values = array("i"), array("i"), array("f")
    for row, cells in lines:
        try:
            if len(cells) != len(header):
                raise ValueError(f"has {len(cells)} values, but the header names {len(header)}")
            for name in filled:
                if not cells[place[name]]:
                    raise ValueError(f"column {name} is empty")
            if not cells[place[path]].lower().endswith(FORMATS):
                raise ValueError(f"{cells[place[path]]} is not a kind of file that is read ({', '.join(FORMATS)})")
            if "split" in place and cells[place["split"]] not in (*SPLITS, ""):
                raise ValueError(f"split {cells[place['split']]!r} is not one of {', '.join(SPLITS)}")
            frame = cells[place["frame"]] if "frame" in place else ""
            if frame and not (frame.isdecimal() and int(frame) < 2**31):
                raise ValueError(f"frame {frame!r} is not a whole number below 2^31")
            values.extend(_flag(name, cells[place[name]], meanings) for name in flags)
        except ValueError as error:
            raise RunError(f"{file}, row {row}: {error}") from error
        for name, column in texts.items():
            column.append(known.setdefault(cells[place[name]], cells[place[name]]))
        paths.append(cells[place[path]])
        frames.append(int(frame or -1))
        rows.append(row)
    if not paths:
        raise RunError(f"{file}: lists no images")
    columns = {name: np.array(column, TEXT) for name, column in texts.items()}
    return Records(
        root,
        np.array(paths, TEXT),
        np.array(frames),
        task=folder_name(file.parent) if file.name == "manifest.csv" else file.stem,
        labels=np.array(values).reshape(-1, len(flags)) if flags else columns[label[0]] if label else None,
        classes=tuple(name.removeprefix(_MULTILABEL) for name in flags),
        groups={name: columns[name] for name in GROUP_COLUMNS if name in columns},
        splits=columns.get("split"),
        table=file,
        rows=np.array(rows),
    )


def folder_name(folder: Path) -> str:
    """What the task of a folder is called."""
    return folder.resolve().name or "data"


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and stripped values of every line that is not blank, the header first."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened)
            for values in reader:
                if any(stripped := [value.strip() for value in values]):
                    yield reader.line_num, stripped
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{file}: not readable as CSV in UTF-8: {error}") from error


def _column(file: Path, header: list[str], names: tuple[str, ...]) -> str:
    for name in names:
        if name in header:
            return name
    raise RunError(f"{file}: has no column {' or '.join(names)}; its columns are {', '.join(header)}")


def _label_columns(file: Path, header: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The one column of a single label, or those of several."""
    several = tuple(name for name in header if name.startswith(_MULTILABEL))
    if not several:
        return (_column(file, header, _LABEL_COLUMNS),), ()
    if both := [name for name in _LABEL_COLUMNS if name in header]:
        raise RunError(f"{file}: has columns {both[0]} and {several[0]}; keep one label an image, or several")
    if _MULTILABEL in several:
        raise RunError(f"{file}: column {_MULTILABEL} names no class; call it {_MULTILABEL}<class>")
    return (), several


def _flag(name: str, cell: str, meanings: Mapping[str, float]) -> float:
    if cell in meanings:
        return meanings[cell]
    if cell in _UNCERTAIN:
        raise ValueError(f"{name} is {cell}, uncertain; say what that means with --uncertain ignore, zero or one")
    raise ValueError(f"{name} is {cell!r}; it must be 0, 1 or empty (unknown)")
