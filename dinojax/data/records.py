"""What `--data` names, as columns: an entry an image, with what is known of it. No pixel is read here."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dinojax.data.files import FORMATS, find_images
from dinojax.data.fold_files import find_fold_files, read_fold_files
from dinojax.data.splits import Fold
from dinojax.data.tables import Table, TextColumn, Uncertain, read_table
from dinojax.errors import RunError, UsageError

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
    """A data set's images as columns, in an order that depends on their names (or on the manifest) alone.

    Attributes:
      root: folder that `paths` are relative to.
      paths: StringDType [N], as the manifest names them, or relative to `root` with forward slashes.
      frames: int32 [N], number of the frame in a file of several; -1 for a file that is one image.
      task: name of the task, from the fold files' prefix, else of the manifest or folder.
      labels: int32 [N], places in `classes`; multi-label: float32 [N, C] of 0, 1 and NaN (unknown); None if unlabelled.
      classes: sorted names, the positive class of a binary task last; multi-label: in the order of the columns.
      groups: StringDType [N] each, of `patient_id` and `study_id` those that are known; a study may be ''.
      splits: StringDType [N] of 'train', 'val', 'test' or '' (none given), or None.
      folds: indices into these columns, from fold files; else empty.
      table: the manifest, if there is one.
      rows: int32 [N], each entry's row in the manifest, the header being row 1; empty without a manifest.
      ignored: how many files of each suffix were left out, because they are no images that are read.
    """

    root: Path
    paths: np.ndarray
    frames: np.ndarray
    task: str
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    groups: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    splits: np.ndarray | None = None
    folds: tuple[Fold, ...] = ()
    table: Path | None = None
    rows: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int32))
    ignored: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def patients(self) -> np.ndarray | None:
        return self.groups.get("patient_id")

    @property
    def multilabel(self) -> bool:
        return self.labels is not None and self.labels.ndim == 2

    def file(self, index: int) -> Path:
        return self.root / self.paths[index]

    def describe(self, index: int) -> str:
        """The file and where it is listed, for messages."""
        return f"{self.file(index)}{self.listed(index)}"

    def listed(self, index: int) -> str:
        """Where an image is listed, in parentheses, to follow its name; empty without a manifest."""
        return f" ({self.table}, row {self.rows[index]})" if self.table else ""

    def take(self, kept: np.ndarray) -> "Records":
        """The entries at the places `kept`, which are distinct, in that order; the folds are renumbered."""
        place = np.full(len(self), -1)
        place[kept] = np.arange(len(kept))

        def renumber(indices: np.ndarray) -> np.ndarray:
            new = place[indices]
            return np.sort(new[new >= 0])

        return dataclasses.replace(
            self,
            paths=self.paths[kept],
            frames=self.frames[kept],
            labels=None if self.labels is None else self.labels[kept],
            groups={name: column[kept] for name, column in self.groups.items()},
            splits=None if self.splits is None else self.splits[kept],
            folds=tuple(Fold(renumber(f.train), renumber(f.val), renumber(f.test)) for f in self.folds),
            rows=self.rows[kept] if len(self.rows) else self.rows,
        )

    def summary(self) -> str:
        """One line: how many images, of which classes, and what was left out."""
        parts = [f"{len(self)} images"]
        if self.multilabel:
            assert self.labels is not None
            known, positive = (~np.isnan(self.labels)).sum(axis=0), (self.labels == 1).sum(axis=0)
            counts = zip(self.classes, positive, known, strict=True)
            parts.append(", ".join(f"{name} {ones} of {all_} known" for name, ones, all_ in counts))
        elif self.labels is not None:
            counts = np.bincount(self.labels, minlength=len(self.classes))
            parts.append(", ".join(f"{count} {name}" for name, count in zip(self.classes, counts, strict=True)))
        if self.patients is not None:
            parts.append(f"{len(np.unique(self.patients))} patients")
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
    uncertain: Uncertain | None = None,
) -> Records:
    """Lists the images that `--data` names; the first of these that matches.

    A CSV manifest; a folder with fold files in `dataframe/` (RadImageNet's layout, doi 10.1148/ryai.210315); one with
    `manifest.csv`; one with `{train,Training}/` and `{test,Testing}/` (`{val,Validation}/` too) of class folders; class
    folders. Without labels: a manifest, or a folder's `manifest.csv`, else every image below the folder. Hidden files
    and folders are left out. A manifest has a column `label`, or a column `label_<class>` of 0, 1 and empty cells
    (unknown) for each label of a multi-label task.

    Args:
      data: a path.
      labelled: read labels; False ignores them, and fold files with them.
      data_root: folder that a manifest's or the fold files' paths are relative to, if not their own.
      group_regex: its first group, found in the path, is the patient; else column `patient_id`.
      positive_class: name of the class to stand last; not of a multi-label task.
      uncertain: what -1 in a column `label_<class>` means: 'ignore' makes it unknown, 'zero' 0 and 'one' 1.

    Raises:
      UsageError: nothing is there, nothing in it can be read, or an option does not fit it.
      RunError: a table lacks a column, has a cell that cannot be read, or names a missing image; a fold lists an image
        twice; or all images have the same label.
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
        records, labels = _from_manifest(path, base or path.parent, labelled, uncertain)
    elif not path.is_dir():
        raise UsageError(f"--data {data}: no such file or folder")
    elif labelled and find_fold_files(path):
        records, labels = _from_folds(path, base or path, uncertain)
    elif (path / "manifest.csv").is_file():
        records, labels = _from_manifest(path / "manifest.csv", base or path, labelled, uncertain)
    else:
        records, labels = _from_folder(path, labelled)
    if group_regex:
        records = dataclasses.replace(records, groups={**records.groups, "patient_id": _patients(records, group_regex)})
    if labels is None:
        return records
    if labels.ndim == 2:
        if positive_class is not None:
            raise UsageError(f"--positive_class {positive_class}: {data} has several labels an image, not one class")
        _refuse_constant(labels, records.classes, data)
        return dataclasses.replace(records, labels=labels)
    if uncertain is not None:
        raise UsageError(f"--uncertain {uncertain}: {data} has no columns label_<class>")
    classes, labels = _encode(labels, data, positive_class)
    return dataclasses.replace(records, classes=classes, labels=labels)


Found = tuple[Records, np.ndarray | None]  # the labels as a `Table` has them: names, or several an image


def _task(folder: Path) -> str:
    return folder.resolve().name or "data"


def _from_table(table: Table, root: Path, task: str) -> Found:
    records = Records(
        root, table.paths, table.frames, task, classes=table.classes, groups=table.groups, splits=table.splits
    )
    return records, table.labels


def _from_manifest(path: Path, root: Path, labelled: bool, uncertain: Uncertain | None) -> Found:
    table = read_table(path, root, labelled, uncertain)
    records, labels = _from_table(table, root, _task(path.parent) if path.name == "manifest.csv" else path.stem)
    return dataclasses.replace(records, table=path, rows=table.rows), labels


def _from_folds(folder: Path, root: Path, uncertain: Uncertain | None) -> Found:
    task, table, folds = read_fold_files(folder, root, uncertain)
    records, labels = _from_table(table, root, task)
    return dataclasses.replace(records, folds=folds), labels


def _from_folder(folder: Path, labelled: bool) -> Found:
    paths, ignored = find_images(folder)
    if not len(paths):
        there = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(ignored.items()))
        raise UsageError(
            f"{folder}: no images found ({', '.join(FORMATS)}); "
            + (f"other files: {there}" if there else "it is empty")
        )
    splits, labels = _class_folders(folder, paths) if labelled else (None, None)
    frames = np.full(len(paths), -1, np.int32)
    return Records(folder, paths, frames, _task(folder), splits=splits, ignored=ignored), labels


def _class_folders(folder: Path, paths: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Split and class of every path from the folders that it lies in."""
    tops = {path.split("/", 1)[0] for path in paths if "/" in path}
    present = {_SPLIT_FOLDERS[top.lower()] for top in tops if top.lower() in _SPLIT_FOLDERS}
    depth = 0
    if present:
        depth = 1
        if missing := {"train", "test"} - present:
            raise UsageError(f"{folder}: holds a folder {min(present)} but no images in a folder {min(missing)}")
        if others := sorted(top for top in tops if top.lower() not in _SPLIT_FOLDERS):
            raise UsageError(f"{folder}: {others[0]} lies beside train and test; move it elsewhere")
    if stray := [path for path in paths if path.count("/") < depth + 1]:
        raise UsageError(
            f"{folder}: {len(stray)} images lie in no class folder, such as {stray[0]}; "
            "put each class in a folder of its own, or list path and label in manifest.csv"
        )
    splits, labels = TextColumn(), TextColumn()
    for path in paths:
        parts = path.split("/", depth + 1)
        splits.append(_SPLIT_FOLDERS[parts[0].lower()] if present else "")
        labels.append(parts[depth])
    return splits.to_numpy() if present else None, labels.to_numpy()


def _patients(records: Records, group_regex: str) -> np.ndarray:
    try:
        pattern = re.compile(group_regex)
    except re.error as error:
        raise UsageError(f"--group_regex {group_regex}: {error}") from error
    if not pattern.groups:
        raise UsageError(f"--group_regex {group_regex}: has no group; put parentheses around the patient's part")
    patients = TextColumn()
    for index, path in enumerate(records.paths):
        match = pattern.search(path)
        if match is None or match[1] is None:
            raise RunError(f"--group_regex {group_regex}: finds no patient in {records.describe(index)}")
        patients.append(match[1])
    return patients.to_numpy()


def _encode(names: np.ndarray, data: str, positive_class: str | None) -> tuple[tuple[str, ...], np.ndarray]:
    found, places = np.unique(names, return_inverse=True)
    classes = found.tolist()
    if len(classes) < 2:
        raise RunError(f"{data}: all {len(names)} images are of one class, {classes[0]!r}; at least two are needed")
    if positive_class is None:
        return tuple(classes), places.astype(np.int32)
    if positive_class not in classes:
        raise UsageError(f"--positive_class {positive_class}: the classes of {data} are {', '.join(classes)}")
    order = sorted(range(len(classes)), key=lambda place: classes[place] == positive_class)
    return tuple(classes[place] for place in order), np.argsort(order)[places].astype(np.int32)


def _refuse_constant(labels: np.ndarray, classes: tuple[str, ...], data: str) -> None:
    for name, column in zip(classes, labels.T, strict=True):
        values = np.unique(column[~np.isnan(column)])
        if len(values) < 2:
            known = f"all its known entries are {values[0]:g}" if len(values) else "no entry of it is known"
            raise RunError(f"{data}: label_{name} teaches nothing: {known}; leave the column out")
