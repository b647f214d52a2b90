"""Lists what `--data` names: manifests, fold files, folders of classes, folders of images. No pixel is read here."""

import dataclasses
import re
from pathlib import Path
from typing import Literal

import numpy as np

from dinojax.config.labelled import LabelledConfig
from dinojax.data import containers
from dinojax.data.class_folders import read_class_folders, read_images
from dinojax.data.columns import Uncertain, Wanted
from dinojax.data.files import TEXT
from dinojax.data.fold_files import fold_tables, read_fold_files
from dinojax.data.listing import list_images, shown
from dinojax.data.records import Records
from dinojax.data.spellings import check_values, in_order, meaning, says_normal
from dinojax.data.table_text import SUFFIXES
from dinojax.data.tables import find_manifest, read_table
from dinojax.errors import RunError, UsageError
from dinojax.runs.files import reason


def read_records(
    data: str,
    *,
    labelled: bool,
    data_root: str | None = None,
    salt_file: str | None = None,
    group_regex: str | None = None,
    positive_class: str | None = None,
    positive_needed: bool = True,
    uncertain: Uncertain | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    on_bad_file: Literal["stop", "skip"] = "stop",
) -> Records:
    """Lists the images that `--data` names; the first of these that matches.

    `tfds:name`, a data set of tensorflow-datasets that lies prepared on the disk; a table (`.csv`, `.tsv`, `.txt`) or
    MedMNIST-style arrays (`.npz`); a folder with fold files in `dataframe/` (RadImageNet's layout, doi
    10.1148/ryai.210315); one with `manifest.csv`, or Hugging Face's `metadata.csv`; one with `{train,Training}/` and
    `{test,Testing}/` (`{val,Validation}/` too) of class folders; class folders. Without labels: a manifest, or a
    folder's manifest, else every image below the folder. What a folder holds beside the images is named in `left_out`.
    A table has a column of labels, or a column `label_<class>` of 0, 1 and empty cells (unknown) for each label of a
    multi-label task.

    Args:
      data: a path.
      labelled: read labels; False ignores them, and fold files with them.
      data_root: folder that a manifest's or the fold files' paths are relative to, if not their own.
      group_regex: its first group, found in the path, is the patient; else a column such as `patient_id`.
      positive_class: name of the class to stand last; of a task of two classes.
      positive_needed: refuse two classes of which the last is by its name the normal one, and none is named.
      uncertain: what -1 in a column `label_<class>` means: 'ignore' makes it unknown, 'zero' 0 and 'one' 1.
      path_column, label_column, patient_column: of tables, where the columns' names do not tell them.
      salt_file: beside which the key of pseudonyms lies, where a table lists these.
      on_bad_file: 'skip' leaves out files of a folder whose names are no UTF-8, and lists them in `misnamed`.

    Raises:
      UsageError: nothing is there, nothing in it can be read with certainty, or an option does not fit it.
      RunError: a table lacks a column, has a cell that cannot be read, or names a missing image; a value or an image
        stands there under two names; a fold lists an image twice; or all images have the same label.
    """
    path = Path(data).expanduser()
    for name, value in (("data", data), ("data_root", data_root)):
        if value is not None and shown(value) != value:
            raise UsageError(f"--{name} {shown(value)}: its name is not UTF-8; rename it")
    base = Path(data_root).expanduser() if data_root else None
    if base is not None and not base.is_dir():
        raise UsageError(f"--data_root {data_root}: no such folder")
    wanted = Wanted(labelled, uncertain, path_column, label_column, patient_column, salt_file)
    try:
        records = _read(path, data, base, wanted)
    except OSError as error:
        raise RunError(f"--data {data}: cannot read {error.filename or data}: {reason(error)}") from error
    if records.misnamed and on_bad_file == "stop":
        raise RunError(
            f"{data}: {len(records.misnamed)} files have names that are not UTF-8, such as {records.misnamed[0]}; "
            "rename them, or leave them out with --on_bad_file skip"
        )
    if group_regex:
        records = _with_patients(records, group_regex)
    if labelled:
        records = _with_classes(records, data, positive_class, positive_needed, uncertain)
    return records


def read_labelled(
    data: str,
    config: LabelledConfig,
    *,
    positive_class: str | None = None,
    positive_needed: bool = True,
    on_bad_file: Literal["stop", "skip"] = "stop",
) -> Records:
    """Lists the labelled images that `data` names, read as a configuration says; see `read_records`."""
    names = ("data_root", "salt_file", "path_column", "label_column", "patient_column", "group_regex", "uncertain")
    return read_records(
        data,
        labelled=True,
        positive_class=positive_class,
        positive_needed=positive_needed,
        on_bad_file=on_bad_file,
        **{name: getattr(config, name) for name in names},
    )


def _read(path: Path, data: str, base: Path | None, wanted: Wanted) -> Records:
    """By the first kind that matches; labels are text."""
    if data.startswith("tfds:"):
        return containers.read_tfds(data.removeprefix("tfds:"), base, wanted.labelled)
    if path.is_file() and path.suffix.lower() == ".npz":
        return containers.read_npz(path, wanted.labelled)
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(
                f"--data {data}: as a file, only a table ({', '.join(SUFFIXES)}) or a MedMNIST-style .npz is read; "
                "give one, or a folder of images"
            )
        return read_table(path, base or path.parent, wanted).records
    if not path.is_dir():
        raise UsageError(f"--data {data}: no such file or folder")
    if wanted.labelled and fold_tables(path):
        return _with_unlisted(path, *read_fold_files(path, base or path, wanted))
    if manifest := find_manifest(path, wanted):
        return _with_unlisted(path, *read_table(manifest, base or path, wanted))
    columns = ("path_column", "label_column", "patient_column")
    options = {"data_root": base, **{name: getattr(wanted, name) for name in columns}}
    for name, value in options.items():
        if value:
            raise UsageError(f"--{name} {value}: {data} has no manifest.csv; name the table itself with --data")
    return read_class_folders(path) if wanted.labelled else read_images(path)


def _with_unlisted(folder: Path, records: Records, inodes: np.ndarray) -> Records:
    """Says what lies in the folder of a table and is not listed there."""
    if records.root != folder:  # the images lie elsewhere
        return records
    listing = list_images(folder)
    for file in [records.table] if records.table else fold_tables(folder):
        listing.used(file.relative_to(folder).as_posix())
    lines = listing.left_out()
    unlisted = ~np.isin(listing.inodes, inodes)
    if unlisted.any():
        first = listing.paths[unlisted][0]
        lines = (f"{unlisted.sum()} images that no table lists (such as {first})", *lines)
    return dataclasses.replace(records, left_out=lines)


def group_pattern(group_regex: str) -> re.Pattern[str]:
    """An expression whose first group is the patient; UsageError if it has none, or is none."""
    try:
        pattern = re.compile(group_regex)
    except re.error as error:
        raise UsageError(f"--group_regex {group_regex}: {error}") from error
    if not pattern.groups:
        raise UsageError(f"--group_regex {group_regex}: has no group; put parentheses around the patient's part")
    return pattern


def _with_patients(records: Records, group_regex: str) -> Records:
    pattern = group_pattern(group_regex)
    patients: list[str] = []
    for index, path in enumerate(records.paths):
        match = pattern.search(path)
        if match is None or match[1] is None:
            raise RunError(f"--group_regex {group_regex}: finds no patient in {records.describe(index)}")
        patients.append(match[1])
    firsts = {patient: records.paths[place] for place, patient in reversed([*enumerate(patients)])}
    check_values(firsts, "patient")
    source = records.patient_source
    unread = (source.removeprefix("column "),) if source.startswith("column ") else ()
    return dataclasses.replace(
        records,
        groups={**records.groups, "patient_id": np.array(patients, TEXT)},
        patient_source="--group_regex",
        unread_columns=(*records.unread_columns, *unread),
        hints=(),
    )


def _with_classes(
    records: Records, data: str, positive_class: str | None, positive_needed: bool, uncertain: Uncertain | None
) -> Records:
    """Labels as numbers of classes; those of a multi-label task are numbers already."""
    labels = records.labels
    assert labels is not None
    if records.multilabel:
        if positive_class is not None:
            raise UsageError(f"--positive_class {positive_class}: {data} has several labels an image, not one class")
        for name, column in zip(records.classes, labels.T, strict=True):
            values = np.unique(column[~np.isnan(column)])
            if len(values) < 2:
                known = f"all its known entries are {values[0]:g}" if len(values) else "no entry of it is known"
                raise RunError(f"{data}: label_{name} teaches nothing: {known}; leave the column out")
        return records
    if uncertain is not None:
        raise UsageError(f"--uncertain {uncertain}: {data} has no columns label_<class>")
    found, places = np.unique(labels, return_inverse=True)
    classes = in_order(found.tolist())
    if len(classes) < 2:
        raise RunError(f"{data}: all {len(records)} images are of one class, {classes[0]!r}; at least two are needed")
    listed = ", ".join(classes)
    if positive_class is not None:
        if positive_class not in classes:
            alike = [name for name in classes if meaning(name) == meaning(positive_class)]
            advice = f"; did you mean {alike[0]}?" if alike else ""
            raise UsageError(f"--positive_class {positive_class}: the classes of {data} are {listed}{advice}")
        if len(classes) > 2:
            raise UsageError(
                f"--positive_class {positive_class}: {data} has {len(classes)} classes ({listed}), of which each is "
                "told from the others; it is for two classes only"
            )
        classes.sort(key=lambda name: name == positive_class)
    elif len(classes) == 2 and positive_needed and says_normal(classes[1]):
        raise UsageError(
            f"{data}: of its classes, {' and '.join(classes)}, the last in order would be the positive one, but "
            f"{classes[1]} reads like the normal one; name the positive class with --positive_class"
        )
    numbers = np.array([classes.index(name) for name in found], np.int32)
    return dataclasses.replace(records, classes=tuple(classes), labels=numbers[places])
