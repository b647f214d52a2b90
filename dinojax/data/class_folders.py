"""Reads folders of images: of all kinds together, or one folder a class, maybe below `train/` and `test/`."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dinojax.data.columns import Wanted
from dinojax.data.files import FORMATS, TEXT, repeated
from dinojax.data.fold_files import fold_tables
from dinojax.data.listing import IMAGE_FOLDERS, MASK_FOLDERS, Listing, kinds, list_images, some
from dinojax.data.records import Records
from dinojax.data.spellings import check_values
from dinojax.data.table_text import SUFFIXES
from dinojax.data.tables import SPLIT_NAMES, find_manifest, folder_name
from dinojax.errors import RunError, UsageError

_NO_CLASSES = IMAGE_FOLDERS | MASK_FOLDERS | {"dataframe", "figures", "figure", "figs", "bboxes", "xml", "json"}
_SHEETS = (".xlsx", ".xls", ".ods")
_PART = re.compile(r"(?:cv|fold|part|partition|split)[ _-]?\d+", re.IGNORECASE)
_SLASH = np.array("/", TEXT)


def read_images(folder: Path) -> Records:
    """Every image below a folder, without labels.

    Raises:
      UsageError: there is none.
      RunError: a folder cannot be read.
    """
    listing = list_images(folder)
    return _unique(_records(folder, listing, "images below the folder"), listing)


def read_class_folders(folder: Path) -> Records:
    """The images of `<class>/`, or of `{train,val,test}/<class>/` (Training, Validation, Testing), with subfolders.

    Returns:
      Labels are the folders' names, StringDType [N], without `classes`.

    Raises:
      UsageError: there are no images; they do not all lie in folders that may be classes; or a class has none.
      RunError: one class or one image stands there under two names.
    """
    listing = list_images(folder)
    records = _records(folder, listing, "class folders")
    _check_tables(folder, listing)
    children = [name for name in listing.folders if "/" not in name]
    parts = {name: SPLIT_NAMES[name.casefold()] for name in children if name.casefold() in SPLIT_NAMES}
    top, _, below = np.strings.partition(records.paths, _SLASH)
    if parts:
        _check_parts(folder, listing, children, parts)
    else:
        below = records.paths
    classes, slash, _ = np.strings.partition(below, _SLASH)
    if (stray := slash == "").any():
        tables = _table_advice(folder, listing)
        raise UsageError(
            f"{folder}: {stray.sum()} images lie in no class folder, such as {records.paths[stray][0]}; "
            f"put each class in a folder of its own, or {tables}"
        )
    _check_classes(folder, listing, [f"{name}/" for name in parts] or [""])
    splits = None
    if parts:
        names, places = np.unique(top, return_inverse=True)
        splits = np.array([parts[name] for name in names], TEXT)[places]
        records = dataclasses.replace(records, reader="train/test class folders")
    return _unique(_with_labels(records, classes, splits), listing)


def _records(folder: Path, listing: Listing, reader: str) -> Records:
    paths = listing.paths
    if not len(paths):
        there = ", ".join(listing.left_out())
        raise UsageError(
            f"{folder}: no images found ({', '.join(FORMATS)}); " + (f"there are {there}" if there else "it is empty")
        )
    return Records(
        folder,
        paths,
        np.full(len(paths), -1, np.int32),
        folder_name(folder),
        reader=reader,
        left_out=listing.left_out(),
        misnamed=tuple(listing.misnamed),
    )


def _table_advice(folder: Path, listing: Listing) -> str:
    """What to do where a table has the labels."""
    sheets = [suffix for suffix in listing.others.get("", {}) if suffix in _SHEETS]
    if sheets:
        return f"save the {sheets[0]} file as CSV, if it lists their labels, and name it with --data"
    if listing.others.get("", {}).keys() & {*SUFFIXES}:
        tables = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        if len(tables) == 1:
            return f"if {tables[0]} lists their labels, give --data {folder / tables[0]}"
        return f"if {some(tables)} list their labels, name one of them with --data, or put fold files into dataframe/"
    return "list path and label in manifest.csv"


def _check_parts(folder: Path, listing: Listing, children: Sequence[str], parts: Mapping[str, str]) -> None:
    """Refuses what is not a training and a test part, and nothing else."""
    held = {*np.unique(np.strings.partition(listing.paths, _SLASH)[0]).tolist()}
    if missing := {"train", "test"} - {part for name, part in parts.items() if name in held}:
        raise UsageError(f"{folder}: holds a folder {min(parts)} but no images in a folder {min(missing)}")
    if empty := [name for name in parts if name not in held]:
        raise UsageError(f"{folder}: {empty[0]} {_contents(listing, empty[0])}; remove it, or put images there")
    if others := [name for name in children if name not in parts]:
        raise UsageError(f"{folder}: {others[0]} lies beside train and test; move it elsewhere")
    named: dict[str, str] = {}
    for name, part in parts.items():
        if (other := named.setdefault(part, name)) != name:
            raise UsageError(f"{folder}: {other} and {name} are both the {part} part; put their images in one folder")


def _check_classes(folder: Path, listing: Listing, prefixes: Sequence[str]) -> None:
    """Refuses folders that are no classes, or that have no images; `prefixes` are those of the parts."""

    def classes(folders: Iterable[str]) -> list[str]:
        return [name for name in folders if any(_is_child(name, prefix) for prefix in prefixes)]

    there = classes(listing.folders)
    depth = 1 + (prefixes != [""])
    held = {"/".join(parent.split("/")[:depth]) for parent in _parents(listing.paths)}
    empty = [name for name in there if name not in held]
    if len(held) == 1:
        _check_level(folder, listing, min(held), empty)
    _check_parts_below(folder, listing, depth)
    names = sorted({name.rpartition("/")[2] for name in (*there, *classes(listing.mask_folders))})
    if wrong := [name for name in names if name.casefold() in _NO_CLASSES]:
        raise UsageError(
            f"{folder}: {some(wrong)} {'reads' if len(wrong) == 1 else 'read'} like kinds of files, not classes; "
            f"give a folder that holds a folder a class and nothing else, or {_table_advice(folder, listing)}"
        )
    if wrong := [name for name in names if _PART.fullmatch(name)]:
        raise UsageError(
            f"{folder}: {some(wrong)} read like parts of a cross-validation, not classes; list the images in "
            "dataframe/{train,val,test}_fold<k>.csv, or in manifest.csv with label and split"
        )
    if empty:
        told = ", ".join(f"{name} {_contents(listing, name)}" for name in empty[:3])
        raise UsageError(f"{folder}: {told}; convert the files, or move the folder elsewhere")


def _is_child(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and "/" not in name[len(prefix) :]


def _parents(paths: np.ndarray) -> list[str]:
    """The folders that images lie in."""
    return np.unique(np.strings.rpartition(paths, _SLASH)[0]).tolist()


def _contents(listing: Listing, name: str) -> str:
    """Why a folder has no images."""
    again = dict(listing.again)
    if name in again:
        return f"shows the same folder as {again[name]}"
    found = [kinds(others)] if (others := listing.others_below(name)) else []
    left_out = {"masks": listing.masks, "hidden files": listing.hidden, "names that are not UTF-8": listing.misnamed}
    counts = {what: sum(path.startswith(f"{name}/") for path in paths) for what, paths in left_out.items()}
    found += [f"{count} {what}" for what, count in counts.items() if count]
    return f"holds no image that is read ({', '.join(found)})" if found else "is empty"


def _check_tables(folder: Path, listing: Listing) -> None:
    """Refuses a folder of data sets that have tables of their own: their names are no classes."""
    tables: dict[str, Path] = {}
    for name in [name for name, counts in listing.others.items() if name and ".csv" in counts]:
        below = folder / name
        if not below.is_dir():  # its name is no UTF-8
            continue
        if below.name == "dataframe" and below.parent != folder and fold_tables(below.parent):
            tables[name] = below.parent
        elif manifest := find_manifest(below, Wanted(labelled=True)):
            tables[manifest.relative_to(folder).as_posix()] = manifest
    if tables:
        names = sorted(tables)
        raise UsageError(
            f"{folder}: {some(names)} {'lists' if len(names) == 1 else 'list'} the images below; "
            f"give one data set, such as --data {tables[names[0]]}"
        )


def _check_parts_below(folder: Path, listing: Listing, depth: int) -> None:
    """Refuses `<class>/train/` and `<class>/test/`, or `<class>/fold1/`, which would be mixed."""
    below = [name for name in listing.folders if name.count("/") == depth]
    parts = {SPLIT_NAMES.get(name.rpartition("/")[2].casefold()): name for name in below}
    names = [parts["train"], parts["test"]] if {"train", "test"} <= parts.keys() else []
    if names := names or [name for name in below if _PART.fullmatch(name.rpartition("/")[2])]:
        whole = folder / names[0].rpartition("/")[0]
        raise UsageError(
            f"{folder}: {some(names)} read like parts below the classes; if {whole} is the data set, give "
            f"--data {whole}, else put the class folders into folders train and test, or list path, label and split in "
            "manifest.csv"
        )


def _check_level(folder: Path, listing: Listing, name: str, empty: Sequence[str]) -> None:
    """Refuses a folder whose images lie in one folder, with several below it: maybe it is one level too high."""
    parents = _parents(listing.paths)
    place = name
    while True:
        below = sorted({rest[: (rest + "/").index("/")] for rest in _below(parents, place)})
        if len(below) != 1 or "" in below:
            break
        place = f"{place}/{below[0]}"
    if len(below) > 1 and "" not in below:
        beside = "".join(f"; {other} {_contents(listing, other)}" for other in empty[:3])
        raise UsageError(
            f"{folder}: all images lie in {place}, below which are {some(below)}{beside}; "
            f"if these are the classes, give --data {folder / place}"
        )


def _below(parents: Sequence[str], place: str) -> list[str]:
    return [parent[len(place) + 1 :] for parent in parents if f"{parent}/".startswith(f"{place}/")]


def _with_labels(records: Records, names: np.ndarray, splits: np.ndarray | None) -> Records:
    found, first, places = np.unique(names, return_index=True, return_inverse=True)
    check_values({name: f"folder of {records.paths[row]}" for name, row in zip(found, first, strict=True)}, "class")
    # A space at the end of a folder's name is nobody's intention.
    labels = np.array([name.strip() for name in found], TEXT)[places]
    return dataclasses.replace(records, labels=labels, splits=splits, hints=_hints(records.paths, splits is not None))


_REPEATED = re.compile(r"([A-Za-z]{2,}[-_ ]?\d+)[-_ ].")
"""How a file's name begins that may tell its patient: `person12_virus_47.jpeg`, `IM-0117-0001-0002.jpeg`."""
_REPEATED_SHARE = 0.1


def _hints(paths: np.ndarray, divided: bool) -> tuple[str, ...]:
    """What folders between class and image look like."""
    depth = 2 + divided
    below = sorted({tuple(parent.split("/")[:depth]) for parent in _parents(paths)})
    if any(len(parts) < depth for parts in below) or len(below) <= len({parts[:-1] for parts in below}):
        return _name_hint(paths)
    pattern = "^" + "[^/]+/" * (depth - 1) + "([^/]+)/"
    names = some(["/".join(parts) for parts in below])
    return (f"folders below the classes look like patients ({names}): if they are, give --group_regex '{pattern}'",)


def _name_hint(paths: np.ndarray) -> tuple[str, ...]:
    """Beginnings of file names that repeat: those with most different numbers."""
    counts = Counter(match[1] for path in paths if (match := _REPEATED.match(path[path.rfind("/") + 1 :])))
    repeated = {start: count for start, count in counts.items() if count > 1}
    if sum(repeated.values()) < max(_REPEATED_SHARE * len(paths), 2):
        return ()
    words = Counter(start.rstrip("0123456789") for start in repeated)
    word = words.most_common(1)[0][0]
    start = next(start for start in repeated if start.rstrip("0123456789") == word)
    total = f"{words[word]} beginnings of file names repeat, such as {start} of {repeated[start]} files"
    return (f"{total}: if they are patients, --group_regex '({word}[0-9]+)' takes them (it has to fit every file)",)


def _unique(records: Records, listing: Listing) -> Records:
    """Without second names of the same files, which links make; they must agree in class and part."""
    again = repeated(records.root, records.paths, listing.inodes, records.frames)
    if not again:
        return records
    for place, before in again:
        for column in (records.labels, records.splits):
            if column is not None and column[place] != column[before]:
                raise RunError(
                    f"{records.root}: {records.paths[before]} and {records.paths[place]} are the same file, "
                    f"once {column[before]} and once {column[place]}; remove one"
                )
    kept = np.setdiff1d(np.arange(len(records)), [place for place, _ in again])
    line = f"{len(again)} second names of the same file by links (such as {records.paths[again[0][0]]})"
    return dataclasses.replace(records.take(kept), left_out=(*records.left_out, line))
