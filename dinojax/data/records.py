"""What `--data` names, as a table: one entry an image, with what is known of it. No pixel is read here."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from dinojax.data import tables
from dinojax.data.files import FORMATS, find_images
from dinojax.data.splits import Fold
from dinojax.errors import RunError, UsageError

T = TypeVar("T")

_SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """A data set's images, in an order that depends on their names (or on the manifest) alone.

    Attributes:
      root: folder that `paths` are relative to.
      paths: [N] as the manifest names them, or relative to `root` with forward slashes.
      frames: [N] number of the frame in a file of several, None for a file that is one image.
      task: name of the task, from the fold files' prefix, else of the manifest or folder.
      labels: int32 [N], places in `classes`; None if unlabelled.
      classes: sorted names; the positive class of a binary task stands last.
      patients: [N] or None.
      splits: [N] of 'train', 'val', 'test' or '' (none given), or None.
      folds: indices into this table, from fold files; else empty.
      table: the manifest, if there is one, and `rows` [N] the row of each entry in it, the header being row 1.
      ignored: how many files of each suffix were passed over, as they are no images that we read.
    """

    root: Path
    paths: tuple[str, ...]
    frames: tuple[int | None, ...]
    task: str
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    patients: tuple[str, ...] | None = None
    splits: tuple[str, ...] | None = None
    folds: tuple[Fold, ...] = ()
    table: Path | None = None
    rows: tuple[int, ...] = ()
    ignored: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, index: int) -> Path:
        return self.root / self.paths[index]

    def describe(self, index: int) -> str:
        """The file and where it is listed, for messages."""
        return f"{self.file(index)}" + (f" ({self.table}, row {self.rows[index]})" if self.table else "")

    def take(self, kept: np.ndarray) -> "Records":
        """The entries at the places `kept` (increasing), with the folds renumbered."""
        place = np.full(len(self), -1)
        place[kept] = np.arange(len(kept))

        def pick(values: tuple[T, ...]) -> tuple[T, ...]:
            return tuple(values[i] for i in kept)

        def renumber(indices: np.ndarray) -> np.ndarray:
            new = place[indices]
            return new[new >= 0]

        return dataclasses.replace(
            self,
            paths=pick(self.paths),
            frames=pick(self.frames),
            labels=None if self.labels is None else self.labels[kept],
            patients=None if self.patients is None else pick(self.patients),
            splits=None if self.splits is None else pick(self.splits),
            folds=tuple(Fold(renumber(f.train), renumber(f.val), renumber(f.test)) for f in self.folds),
            rows=pick(self.rows) if self.rows else (),
        )

    def summary(self) -> str:
        """One line: how many images, of which classes, and what was passed over."""
        parts = [f"{len(self)} images"]
        if self.labels is not None:
            counts = np.bincount(self.labels, minlength=len(self.classes))
            parts.append(", ".join(f"{count} {name}" for name, count in zip(self.classes, counts, strict=True)))
        if self.patients is not None:
            parts.append(f"{len(set(self.patients))} patients")
        if self.folds:
            parts.append(f"{len(self.folds)} folds")
        if self.ignored:
            kinds = ", ".join(f"{suffix or 'no suffix'} {count}" for suffix, count in sorted(self.ignored.items()))
            parts.append(f"{sum(self.ignored.values())} other files ignored ({kinds})")
        return "; ".join(parts)


def read_records(
    data: str,
    *,
    labelled: bool,
    data_root: str | None = None,
    group_regex: str | None = None,
    positive_class: str | None = None,
) -> Records:
    """Lists the images that `--data` names; the first of these that matches.

    A CSV manifest; a folder with fold files in `dataframe/` (RadImageNet's layout, doi 10.1148/ryai.210315); one with
    `manifest.csv`; one with `{train,Training}/` and `{test,Testing}/` (`{val,Validation}/` too) of class folders; class
    folders. Without labels: a manifest, or a folder's `manifest.csv`, else every image below the folder. Hidden files
    and folders are left out.

    Args:
      data: a path.
      labelled: read labels; False ignores them, and fold files with them.
      data_root: folder that a manifest's or the fold files' paths are relative to, if not their own.
      group_regex: its first group, found in the path, is the patient; else column `patient_id`.
      positive_class: name of the class to stand last.

    Raises:
      UsageError: nothing is there, nothing in it can be read, or an option does not fit it.
      RunError: a table lacks a column or names a missing image, a fold lists an image twice, or there are not two
        classes.
    """
    path = Path(data).expanduser()
    base = Path(data_root).expanduser() if data_root else None
    if base is not None and not base.is_dir():
        raise UsageError(f"--data_root {data_root}: no such folder")
    if data.startswith("tfds:"):
        raise UsageError(f"--data {data}: TFDS data sets are not read; give a folder of images or a CSV manifest")
    if path.is_file():
        if path.suffix.lower() != ".csv":
            raise UsageError(
                f"--data {data}: as a file, only a CSV manifest is read; give a folder of images or a .csv"
            )
        records, names = _from_manifest(path, base or path.parent, labelled)
    elif not path.is_dir():
        raise UsageError(f"--data {data}: no such file or folder")
    elif labelled and tables.fold_files(path):
        records, names = _from_folds(path, base or path)
    elif (path / "manifest.csv").is_file():
        records, names = _from_manifest(path / "manifest.csv", base or path, labelled)
    else:
        records, names = _from_folder(path, labelled)
    if group_regex:
        records = dataclasses.replace(records, patients=_patients(records, group_regex))
    if names is None:
        return records
    classes, labels = _encode(names, data, positive_class)
    return dataclasses.replace(records, classes=classes, labels=labels)


Found = tuple[Records, list[str] | None]  # the labels still as names


def _task(folder: Path) -> str:
    return folder.resolve().name or "data"


def _from_rows(rows: list[tables.Row], root: Path, task: str) -> Found:
    """The columns that all rows have."""
    names, patients, splits = ([getattr(row, name) for row in rows] for name in ("label", "patient", "split"))
    records = Records(
        root,
        paths=tuple(row.path for row in rows),
        frames=tuple(row.frame for row in rows),
        task=task,
        patients=None if None in patients else tuple(patients),
        splits=None if None in splits else tuple(splits),
    )
    return records, None if None in names else names


def _from_manifest(path: Path, root: Path, labelled: bool) -> Found:
    rows = tables.read(path, root, labelled)
    task = _task(path.parent) if path.name == "manifest.csv" else path.stem
    records, names = _from_rows(rows, root, task)
    return dataclasses.replace(records, table=path, rows=tuple(row.number for row in rows)), names


def _from_folds(folder: Path, root: Path) -> Found:
    task, rows, numbered = tables.read_folds(folder, root)
    records, names = _from_rows(rows, root, task)
    folds = tuple(Fold(train=parts["train"], val=parts["val"], test=parts["test"]) for parts in numbered)
    return dataclasses.replace(records, folds=folds, splits=None), names


def _from_folder(folder: Path, labelled: bool) -> Found:
    paths, ignored = find_images(folder)
    if not paths:
        there = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(ignored.items()))
        raise UsageError(
            f"{folder}: no images found ({', '.join(FORMATS)}); "
            + (f"other files: {there}" if there else "it is empty")
        )
    records = Records(folder, tuple(paths), (None,) * len(paths), _task(folder), ignored=ignored)
    if not labelled:
        return records, None
    splits, names = _class_folders(folder, paths)
    return dataclasses.replace(records, splits=splits), names


def _class_folders(folder: Path, paths: list[str]) -> tuple[tuple[str, ...] | None, list[str]]:
    """Split and class of every path from the folders that it lies in."""
    tops = {path.split("/")[0] for path in paths if "/" in path}
    present = {_SPLIT_FOLDERS[top.lower()] for top in tops if top.lower() in _SPLIT_FOLDERS}
    depth = 0
    if present:
        depth = 1
        if missing := {"train", "test"} - present:
            raise UsageError(f"{folder}: holds a folder {min(present)} but no images in a folder {min(missing)}")
        if others := sorted(top for top in tops if top.lower() not in _SPLIT_FOLDERS):
            raise UsageError(f"{folder}: {others[0]} lies beside train and test; move it elsewhere")
    parts = [path.split("/") for path in paths]
    stray = [path for path, part in zip(paths, parts, strict=True) if len(part) < depth + 2]
    if stray:
        raise UsageError(
            f"{folder}: {len(stray)} images lie in no class folder, such as {stray[0]}; "
            "put each class in a folder of its own, or list path and label in manifest.csv"
        )
    splits = tuple(_SPLIT_FOLDERS[part[0].lower()] for part in parts) if present else None
    return splits, [part[depth] for part in parts]


def _patients(records: Records, group_regex: str) -> tuple[str, ...]:
    try:
        pattern = re.compile(group_regex)
    except re.error as error:
        raise UsageError(f"--group_regex {group_regex}: {error}") from error
    if not pattern.groups:
        raise UsageError(f"--group_regex {group_regex}: has no group; put parentheses around the patient's part")
    found = [pattern.search(path) for path in records.paths]
    for index, match in enumerate(found):
        if match is None or match[1] is None:
            raise RunError(f"--group_regex {group_regex}: finds no patient in {records.describe(index)}")
    return tuple(match[1] for match in found if match)


def _encode(names: list[str], data: str, positive_class: str | None) -> tuple[tuple[str, ...], np.ndarray]:
    classes = sorted(set(names))
    if len(classes) < 2:
        raise RunError(f"{data}: all {len(names)} images are of one class, {classes[0]!r}; at least two are needed")
    if positive_class is not None:
        if positive_class not in classes:
            raise UsageError(f"--positive_class {positive_class}: the classes of {data} are {', '.join(classes)}")
        classes.remove(positive_class)
        classes.append(positive_class)
    place = {name: i for i, name in enumerate(classes)}
    return tuple(classes), np.array([place[name] for name in names], np.int32)
