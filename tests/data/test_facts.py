"""The block of facts: what it says of readers, classes, patients, parts and duplicates."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinojax.data.duplicates import find_duplicates
from dinojax.data.facts import data_facts, describe_classes, render
from dinojax.data.opening import open_images
from dinojax.data.reading import read_records
from dinojax.data.records import Fold
from dinojax.data.splits import describe_folds, make_folds
from tests.tasks import write_multilabel_task, write_task


def write_class_folders(folder: Path) -> Path:
    """Nine pictures of two classes, of which c.png is b.png, and d.png, of the other class, is too."""
    for place, name in enumerate(("x/a.png", "x/b.png", "x/c.png", "x/e.png", "y/d.png", "y/f.png", "y/g.png")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        value = 1 if name[2] in "bcd" else 10 + place
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)
    (folder / "notes.txt").touch()
    return folder


def test_equal_files_are_found_by_content(tmp_path: Path) -> None:
    records = read_records(str(write_class_folders(tmp_path)), labelled=True)
    groups = [[str(records.paths[place]) for place in group] for group in find_duplicates(records)]
    assert groups == [["x/b.png", "x/c.png", "y/d.png"]]
    frames = np.array([-1, 0, 1, -1, 0, -1, -1], np.int32)  # another frame of an equal file is another image
    groups = find_duplicates(dataclasses.replace(records, frames=frames))
    assert [[str(records.paths[place]) for place in group] for group in groups] == [["x/b.png", "y/d.png"]]


def test_the_block_names_classes_parts_and_leaks(tmp_path: Path) -> None:
    records, headers = open_images(read_records(str(write_class_folders(tmp_path)), labelled=True))
    fold = Fold(train=np.array([0, 1, 4]), val=np.array([2, 5]), test=np.array([3, 6]))
    shown = render(data_facts(records, headers, [fold], "1, as the data gives its parts")).splitlines()
    assert "classes:    'x' × 4, 'y' × 3 (positive: 'y')" in shown
    assert "folds:      1, as the data gives its parts" in shown
    assert "            fold 1: train 3, validation 2, test 2" in shown
    assert "            1 of these under different labels: x/b.png = x/c.png = y/d.png" in shown
    leak = "            fold 1: 1 across its parts, a leak: x/b.png (train) = x/c.png (val) = y/d.png (train)"
    assert leak in shown
    assert any(line.startswith("patients:   unknown: every image counts as its own") for line in shown)
    assert any(line.startswith("not read:") and ".txt" in line for line in shown)


def test_classes_of_several_labels_are_counted_where_they_are_known(tmp_path: Path) -> None:
    records = read_records(str(write_multilabel_task(tmp_path / "task")), labelled=True)
    assert records.labels is not None
    known, ones = (~np.isnan(records.labels[:, 3])).sum(), (records.labels[:, 3] == 1).sum()
    assert describe_classes(records).endswith(f"'rare' × {ones} of {known} known")


def test_how_folds_come_about(tmp_path: Path) -> None:
    records = read_records(str(write_task(tmp_path / "task")), labelled=True)
    assert describe_folds(records, 3, 7) == "3, made: stratified, grouped by patient, fold_seed 7"
    given = dataclasses.replace(records, folds=make_folds(records, 3, 0))
    assert describe_folds(given, 5, 7) == "3, as the fold files give them"
    splits = np.array(["train", "train", "test"] * 4, np.dtypes.StringDType())
    text = describe_folds(dataclasses.replace(records, splits=splits), 5, 7)
    assert text.endswith("validation is a fifth of the training part, grouped by patient, fold_seed 7")


@pytest.mark.parametrize("text", ["one line", ["first", "second"]])
def test_every_line_stands_under_its_name(text: str | list[str]) -> None:
    assert render({"a": text}) == ("a: one line" if isinstance(text, str) else "a: first\n   second")
