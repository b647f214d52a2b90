"""Lists what `--data` names: manifests, fold files, folders of classes, folders of images. No pixel is read here."""

import dataclasses
import re
from pathlib import Path

import numpy as np

from dinojax.data.files import FORMATS, TEXT, find_images
from dinojax.data.fold_files import find_fold_files, read_fold_files
from dinojax.data.records import Records
from dinojax.data.tables import Uncertain, folder_name, read_table
from dinojax.errors import RunError, UsageError

_SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SLASH = np.array("/", TEXT)


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
        records = read_table(path, base or path.parent, labelled, uncertain)
    elif not path.is_dir():
        raise UsageError(f"--data {data}: no such file or folder")
    elif labelled and find_fold_files(path):
        records = read_fold_files(path, base or path, uncertain)
    elif (path / "manifest.csv").is_file():
        records = read_table(path / "manifest.csv", base or path, labelled, uncertain)
    else:
        records = _from_folder(path, labelled)
    if group_regex:
        records = dataclasses.replace(records, groups={**records.groups, "patient_id": _patients(records, group_regex)})
    if records.labels is None:
        return records
    if records.multilabel:
        if positive_class is not None:
            raise UsageError(f"--positive_class {positive_class}: {data} has several labels an image, not one class")
        for name, column in zip(records.classes, records.labels.T, strict=True):
            values = np.unique(column[~np.isnan(column)])
            if len(values) < 2:
                known = f"all its known entries are {values[0]:g}" if len(values) else "no entry of it is known"
                raise RunError(f"{data}: label_{name} teaches nothing: {known}; leave the column out")
        return records
    if uncertain is not None:
        raise UsageError(f"--uncertain {uncertain}: {data} has no columns label_<class>")
    classes, labels = _encode(records.labels, data, positive_class)
    return dataclasses.replace(records, classes=classes, labels=labels)


def _from_folder(folder: Path, labelled: bool) -> Records:
    paths, ignored = find_images(folder)
    if not len(paths):
        there = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(ignored.items()))
        raise UsageError(
            f"{folder}: no images found ({', '.join(FORMATS)}); "
            + (f"other files: {there}" if there else "it is empty")
        )
    splits, labels = _class_folders(folder, paths) if labelled else (None, None)
    frames = np.full(len(paths), -1, np.int32)
    return Records(folder, paths, frames, folder_name(folder), labels=labels, splits=splits, ignored=ignored)


def _class_folders(folder: Path, paths: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Split and class of every path from the folders that it lies in."""
    top, slash, below = np.strings.partition(paths, _SLASH)
    names, places = np.unique(top, return_inverse=True)
    of_names = [_SPLIT_FOLDERS.get(name.lower(), "") for name in names]
    tops = np.unique(top[slash != ""]).tolist()
    present = {_SPLIT_FOLDERS[name.lower()] for name in tops if name.lower() in _SPLIT_FOLDERS}
    if present:
        if missing := {"train", "test"} - present:
            raise UsageError(f"{folder}: holds a folder {min(present)} but no images in a folder {min(missing)}")
        if others := [name for name in tops if name.lower() not in _SPLIT_FOLDERS]:
            raise UsageError(f"{folder}: {others[0]} lies beside train and test; move it elsewhere")
        top, slash, _ = np.strings.partition(below, _SLASH)
    if (stray := slash == "").any():
        raise UsageError(
            f"{folder}: {stray.sum()} images lie in no class folder, such as {paths[stray][0]}; "
            "put each class in a folder of its own, or list path and label in manifest.csv"
        )
    return np.array(of_names, TEXT)[places] if present else None, top


def _patients(records: Records, group_regex: str) -> np.ndarray:
    try:
        pattern = re.compile(group_regex)
    except re.error as error:
        raise UsageError(f"--group_regex {group_regex}: {error}") from error
    if not pattern.groups:
        raise UsageError(f"--group_regex {group_regex}: has no group; put parentheses around the patient's part")
    patients: list[str] = []
    for index, path in enumerate(records.paths):
        match = pattern.search(path)
        if match is None or match[1] is None:
            raise RunError(f"--group_regex {group_regex}: finds no patient in {records.describe(index)}")
        patients.append(match[1])
    return np.array(patients, TEXT)


def _encode(names: np.ndarray, data: str, positive_class: str | None) -> tuple[tuple[str, ...], np.ndarray]:
    found, places = np.unique(names, return_inverse=True)
    classes = found.tolist()
    if len(classes) < 2:
        raise RunError(f"{data}: all {len(names)} images are of one class, {classes[0]!r}; at least two are needed")
    if positive_class not in (None, *classes):
        raise UsageError(f"--positive_class {positive_class}: the classes of {data} are {', '.join(classes)}")
    order = sorted(range(len(classes)), key=lambda place: classes[place] == positive_class)
    return tuple(classes[place] for place in order), np.argsort(order)[places].astype(np.int32)
