"""Reads tables of images as columns, and names the row of whatever is wrong in them."""

import itertools
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinojax.data import privacy
from dinojax.data.columns import GROUP_COLUMNS, Columns, Wanted, choose_path, find_columns, key_of
from dinojax.data.files import FORMATS, TEXT, look_up, may_be_image, repeated, respell
from dinojax.data.listing import shown
from dinojax.data.records import SPLITS, Records
from dinojax.data.spellings import check_values
from dinojax.data.table_text import headers
from dinojax.errors import RunError, UsageError

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MANIFESTS = ("manifest.csv", "metadata.csv")
"""The second is that of Hugging Face's image folders."""
_FLAGS = {"": np.nan, "0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}
_UNCERTAIN = ("-1", "-1.0")
_MEANINGS = {"ignore": np.nan, "zero": 0.0, "one": 1.0}
_TEXTS = ("label", *GROUP_COLUMNS, "split")
_FILLED = ("path", "label", "patient_id")
_COMPARED = {"label": "label", "patient_id": "patient"}
_HEAD = 100


class Table(NamedTuple):
    """A table that was read."""

    records: Records
    inodes: np.ndarray
    """uint64 [N], of the files; of several columns of files one after the other."""


def read_table(file: Path, root: Path, wanted: Wanted) -> Table:
    """Reads one table of images.

    Args:
      file: has a column of paths and, if labelled, either one of labels, or a column `label_<class>` for each of
        several labels; may have `frame`, `patient_id`, `study_id` and `split`. Names may be any of `columns.KNOWN`.
        In place of the column of paths, two or more columns `path_<name>` give the files of an image's channels, in
        that order. Further columns are not read. Text stays as it is ('007' is no number).
      root: folder that the paths are relative to.
      wanted: what to read.

    Returns:
      The rows in the file's order, at least one, with the paths as the files are called. A column of labels stays as it
      is, StringDType [N], without `classes`.

    Raises:
      RunError: names the file, the row and what is wrong; also if an image is missing or listed twice, or a label or
        patient is written in two ways.
      UsageError: as `find_columns`.
    """
    columns = find_columns(file, wanted)
    head = [cells for _, cells in itertools.islice(columns.text.rows(), 1, _HEAD + 1)]
    columns = choose_path(columns, lambda path: not _missing(root, [path]), head)
    records, paths = _parse(columns, root, wanted)
    names = paths
    if "pseudonym" in columns.roles:
        paths = _files_of(columns, records, names, wanted.salt_file)
    count, channels = len(records), columns.channels

    def where(place: int) -> str:
        row = _at(columns, records.rows[place % count])
        return f"{row}, column {columns.header[channels[place // count]]}" if channels else row

    missing, inodes = look_up(root, paths)
    if missing and names is not paths:
        raise RunError(
            f"{where(missing[0])}: the file of {names[missing[0]]} is no longer where it was "
            f"({len(missing)} of {len(names)}); run index again"
        )
    if missing and (missing := respell(root, paths, missing, inodes)):
        more = f" (and {len(missing) - 1} more are missing)" if len(missing) > 1 else ""
        first = missing[0]
        raise RunError(
            f"{where(first)}: there is no image {shown(str(root / paths[first]))}{more}; "
            "paths are relative to the table's folder, or to --data_root"
        )
    listed = np.array(names, TEXT)
    if again := repeated(root, listed, inodes, np.tile(records.frames, len(listed) // count)):
        place, before = again[0]
        other = "" if names[before] == names[place] else f" as {names[before]}"
        advice = f", column {columns.header[channels[before // count]]}; list it once" if channels else "; keep one row"
        raise RunError(
            f"{where(place)}: {names[place]} is listed before{other}, in row {records.rows[before % count]}{advice}"
        )
    files = None if names is paths else np.array(paths, TEXT)
    return Table(records.of_files(np.split(listed, len(listed) // count), files), inodes)


def find_manifest(folder: Path, wanted: Wanted) -> Path | None:
    """The folder's list of images, if it has one; a `metadata.csv` without file names is something else.

    Raises:
      UsageError: there are two.
      RunError: it cannot be read.
    """
    for wished in MANIFESTS:
        found = sorted(path for path in folder.iterdir() if path.name.casefold() == wished and path.is_file())
        if len(found) > 1:
            raise UsageError(f"{folder}: holds {' and '.join(path.name for path in found)}; keep one")
        if found and (wished == MANIFESTS[0] or _lists_files(found[0], wanted)):
            return found[0]
    return None


def _lists_files(file: Path, wanted: Wanted) -> bool:
    names = {"filename", *([key_of(wanted.path_column)] if wanted.path_column else [])}
    return any(not names.isdisjoint(map(key_of, header)) for _, header in headers(file))


def folder_name(folder: Path) -> str:
    """What the task of a folder is called."""
    return shown(folder.resolve().name) or "data"


def _missing(root: Path, paths: list[str]) -> list[int]:
    missing, inodes = look_up(root, paths)
    return respell(root, paths, missing, inodes)


def _at(columns: Columns, row: int) -> str:
    encoding = " (read as cp1252: it is not UTF-8)" if columns.text.encoding == "cp1252" else ""
    return f"{columns.text.file}, row {row}{encoding}"


def _files_of(columns: Columns, records: Records, names: list[str], salt_file: str | None) -> list[str]:
    """The files that pseudonyms stand for."""
    keys = privacy.read_keys(salt_file)
    for place, name in enumerate(names):
        if name not in keys:
            raise RunError(
                f"{_at(columns, records.rows[place])}: the key beside the salt has no file of {name}; "
                "name the salt that `index` used with --salt_file"
            )
    return [keys[name] for name in names]


def _parse(columns: Columns, root: Path, wanted: Wanted) -> tuple[Records, list[str]]:
    """The table without a look at the files, and its paths, of one column after the other."""
    file, header, roles = columns.text.file, columns.header, columns.roles
    pseudonyms = "pseudonym" in roles
    flags = [(number, header[number]) for number in columns.flags]
    listed: dict[int, list[str]] = {number: [] for number in columns.channels or [roles["path"]]}
    texts: dict[str, list[str]] = {role: [] for role in _TEXTS if role in roles}
    cells_of = [(role, roles[role], texts[role]) for role in texts]
    filled = [(roles[role], header[roles[role]]) for role in _FILLED if role in roles]
    filled += [(number, header[number]) for number in columns.channels[1:]]
    # Values repeat: each is kept once, with the row that has it first.
    known: dict[str, dict[str, tuple[str, int]]] = {role: {} for role in texts}
    meanings = _FLAGS | (dict.fromkeys(_UNCERTAIN, _MEANINGS[wanted.uncertain]) if wanted.uncertain else {})
    frames, rows, values = array("i"), array("i"), array("f")
    lines = columns.text.rows()
    next(lines)
    for row, cells in lines:
        try:
            if len(cells) != len(header):
                raise ValueError(f"has {len(cells)} values, but the header names {len(header)}")
            for number, name in filled:
                if not cells[number]:
                    raise ValueError(f"column {name} is empty")
            if not pseudonyms and (other := [cells[number] for number in listed if not may_be_image(cells[number])]):
                raise ValueError(f"{other[0]} is not a kind of file that is read ({', '.join(FORMATS)})")
            frames.append(_frame(cells[roles["frame"]]) if "frame" in roles else -1)
            if flags:
                values.extend(_flag(name, cells[number], meanings) for number, name in flags)
        except ValueError as error:
            raise RunError(f"{_at(columns, row)}: {error}") from error
        for role, number, column in cells_of:
            cell = cells[number]
            kept = known[role].get(cell)
            if kept is None:
                kept = known[role][cell] = (cell, row)
            column.append(kept[0])
        for number, paths in listed.items():
            paths.append(cells[number])
        rows.append(row)
    if not rows:
        raise RunError(f"{file}: lists no images")
    for role, what in _COMPARED.items():
        check_values({value: _at(columns, row) for value, row in known.get(role, {}).values()}, what)
    arrays = {role: np.array(column, TEXT) for role, column in texts.items()}
    if "split" in arrays:
        arrays["split"] = _splits(columns, texts["split"], known["split"])
    labels = arrays.get("label")
    if flags:
        labels = np.array(values).reshape(-1, len(flags))
    written = f" ({columns.text})" if str(columns.text) else ""
    records = Records(
        root,
        np.empty(len(rows), TEXT),
        np.array(frames),
        task=folder_name(file.parent) if file.name.casefold() in MANIFESTS else file.stem,
        labels=labels,
        classes=columns.classes,
        groups={name: arrays[name] for name in GROUP_COLUMNS if name in arrays},
        splits=arrays.get("split"),
        table=file,
        rows=np.array(rows),
        reader=f"manifest {folder_name(file.parent)}/{file.name}{written}",
        channel_columns=tuple(header[number] for number in columns.channels),
        unread_columns=columns.unread,
        patient_source=f"column {header[roles['patient_id']]}" if "patient_id" in roles else "",
    )
    return records, list(itertools.chain(*listed.values()))


def _splits(columns: Columns, cells: list[str], known: Mapping[str, tuple[str, int]]) -> np.ndarray:
    """The parts under their usual names."""
    names = {"": ""}
    for value, row in known.values():
        if value and value.casefold() not in SPLIT_NAMES:
            raise RunError(f"{_at(columns, row)}: split {value!r} is not one of {', '.join(SPLITS)}")
        names[value] = SPLIT_NAMES.get(value.casefold(), "")
    return np.array([names[cell] for cell in cells], TEXT)


def _frame(cell: str) -> int:
    if cell and not (cell.isdecimal() and int(cell) < 2**31):
        raise ValueError(f"frame {cell!r} is not a whole number below 2^31")
    return int(cell) if cell else -1


def _flag(name: str, cell: str, meanings: Mapping[str, float]) -> float:
    if cell in meanings:
        return meanings[cell]
    if cell in _UNCERTAIN:
        raise ValueError(f"{name} is {cell}, uncertain; say what that means with --uncertain ignore, zero or one")
    raise ValueError(f"{name} is {cell!r}; it must be 0, 1 or empty (unknown)")
