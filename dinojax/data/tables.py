"""Reads tables of images as columns, and names the row of whatever is wrong in them."""

import csv
import dataclasses
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dinojax.data.files import FORMATS, TEXT, find_missing
from dinojax.errors import RunError

Uncertain = Literal["ignore", "zero", "one"]

_PATH_COLUMNS = ("path", "filename", "img_dir")
_LABEL_COLUMNS = ("label", "acl_label")
_MULTILABEL = "label_"
GROUP_COLUMNS = ("patient_id", "study_id")
SPLITS = ("train", "val", "test")
_FLAGS = {"": np.nan, "0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}
_UNCERTAIN = {"ignore": np.nan, "zero": 0.0, "one": 1.0}


class TextColumn:
    """A column under construction, whose values repeat: each is kept once."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._codes = array("i")

    def append(self, value: str) -> None:
        self._codes.append(self._places.setdefault(value, len(self._places)))

    def to_numpy(self) -> np.ndarray:
        """StringDType [N]."""
        return np.array(list(self._places), TEXT)[np.asarray(self._codes)]


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """The images that a table lists, as columns.

    Attributes:
      paths: StringDType [N], as written.
      frames: int32 [N], -1 where no frame is named.
      rows: int32 [N], lines in the file; the header is in line 1.
      labels: StringDType [N]; of a multi-label table float32 [N, C] of 0, 1 and NaN (unknown); None if not read.
      classes: the names of a multi-label table's labels, in the order of its columns; else empty.
      groups: StringDType [N] each: `patient_id`, `study_id`, of those that are there.
      splits: StringDType [N] of 'train', 'val', 'test' and '', or None.
    """

    paths: np.ndarray
    frames: np.ndarray
    rows: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    groups: Mapping[str, np.ndarray]
    splits: np.ndarray | None

    def __len__(self) -> int:
        return len(self.paths)


def read_table(file: Path, root: Path, labelled: bool, uncertain: Uncertain | None = None) -> Table:
    """Reads one table of images.

    Args:
      file: has a column `path`, `filename` or `img_dir`, and, if labelled, either `label` or `acl_label`, or a column
        `label_<class>` for each of several labels; may have `frame`, `patient_id`, `study_id` and `split`. Further
        columns are not read. Text stays as it is ('007' is no number).
      root: folder that the paths are relative to.
      labelled: whether labels are needed.
      uncertain: what -1 in a column `label_<class>` means: unknown, 0 or 1.

    Returns:
      The rows in the file's order, at least one.

    Raises:
      RunError: names the file, the row and what is wrong; also if an image is missing or listed twice.
    """
    table = _parse(file, labelled, uncertain)
    paths, rows = table.paths.tolist(), table.rows
    if missing := find_missing(root, paths):
        more = f" (and {len(missing) - 1} more are missing)" if len(missing) > 1 else ""
        first = missing[0]
        raise RunError(f"{file}, row {rows[first]}: there is no image {root / paths[first]}{more}")
    if repeated := _find_repeated(paths, table.frames.tolist()):
        place, before = repeated
        raise RunError(f"{file}, row {rows[place]}: {paths[place]} is listed before, in row {rows[before]}")
    return table


def _parse(file: Path, labelled: bool, uncertain: Uncertain | None) -> Table:
    lines = _lines(file)
    _, header = next(lines)
    path = _column(file, header, _PATH_COLUMNS)
    label, flags = _label_columns(file, header) if labelled else ((), ())
    place = {name: header.index(name) for name in (path, *label, *flags, *GROUP_COLUMNS, "split") if name in header}
    if repeated := [name for name in place if header.count(name) > 1]:
        raise RunError(f"{file}: has several columns {repeated[0]}; its columns are {', '.join(header)}")
    texts = {name: TextColumn() for name in (*label, *GROUP_COLUMNS, "split") if name in place}
    filled = [name for name in (path, *label, "patient_id") if name in place]
    frame_place = header.index("frame") if "frame" in header else None
    meanings = _FLAGS | (dict.fromkeys(("-1", "-1.0"), _UNCERTAIN[uncertain]) if uncertain else {})
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
            frames.append(-1 if frame_place is None else _frame(cells[frame_place]))
            for name in flags:
                values.append(_flag(name, cells[place[name]], meanings))
        except ValueError as error:
            raise RunError(f"{file}, row {row}: {error}") from error
        for name, column in texts.items():
            column.append(cells[place[name]])
        paths.append(cells[place[path]])
        rows.append(row)
    if not paths:
        raise RunError(f"{file}: lists no images")
    columns = {name: column.to_numpy() for name, column in texts.items()}
    return Table(
        paths=np.array(paths, TEXT),
        frames=np.array(frames),
        rows=np.array(rows),
        labels=np.array(values).reshape(-1, len(flags)) if flags else columns[label[0]] if label else None,
        classes=tuple(name.removeprefix(_MULTILABEL) for name in flags),
        groups={name: columns[name] for name in GROUP_COLUMNS if name in columns},
        splits=columns.get("split"),
    )


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and stripped values of every line that is not blank, the header first."""
    empty = True
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened)
            for values in reader:
                if any(stripped := [value.strip() for value in values]):
                    empty = False
                    yield reader.line_num, stripped
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{file}: not readable as CSV in UTF-8: {error}") from error
    if empty:
        raise RunError(f"{file}: is empty")


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


def _frame(cell: str) -> int:
    if not cell:
        return -1
    if not cell.isdecimal() or int(cell) >= 2**31:
        raise ValueError(f"frame {cell!r} is not a whole number below 2^31")
    return int(cell)


def _flag(name: str, cell: str, meanings: Mapping[str, float]) -> float:
    if cell in meanings:
        return meanings[cell]
    if cell in ("-1", "-1.0"):
        raise ValueError(f"{name} is {cell}, uncertain; say what that means with --uncertain ignore, zero or one")
    raise ValueError(f"{name} is {cell!r}; it must be 0, 1 or empty (unknown)")


def _find_repeated(paths: Sequence[str], frames: Sequence[int]) -> tuple[int, int] | None:
    """The first place whose image is listed before, however its path is written, and where; None if there is none."""

    def image(place: int) -> tuple[str, int]:
        return os.path.normpath(paths[place]), frames[place]

    # Hashes take eight bytes an image; only what shares one is compared.
    hashes = np.fromiter(map(hash, map(image, range(len(paths)))), np.int64, len(paths))
    ordered = np.sort(hashes)
    shared = ordered[1:][ordered[1:] == ordered[:-1]]
    first: dict[tuple[str, int], int] = {}
    for place in np.flatnonzero(np.isin(hashes, shared)).tolist():
        before = first.setdefault(image(place), place)
        if before != place:
            return place, before
    return None
