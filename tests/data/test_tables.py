"""Manifests as columns: several labels an image, images listed twice, and files that are not there."""

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dinojax.data import files
from dinojax.data.fold_files import write_fold_files
from dinojax.data.reading import read_records
from dinojax.data.records import Fold, Records
from dinojax.data.sources import ImageSource
from dinojax.errors import RunError, UsageError

HEADER = ("path", "label_effusion", "label_nodule")


def write_manifest(folder: Path, *rows: tuple[object, ...], images: int = 6) -> Path:
    for number in range(images):
        Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def read(folder: Path, **options: Any) -> Records:
    return read_records(str(folder), labelled=True, **options)


def test_columns_are_arrays(tmp_path: Path) -> None:
    rows = [(f"{number}.png", "ab"[number % 2], f"p{number // 2}", "") for number in range(6)]
    records = read(write_manifest(tmp_path, ("path", "label", "patient_id", "study_id"), *rows))
    for column in (records.paths, *records.groups.values()):
        assert isinstance(column.dtype, np.dtypes.StringDType)
    assert (records.frames.dtype, records.rows.dtype, records.labels.dtype) == (np.int32,) * 3  # type: ignore[union-attr]
    assert set(records.groups) == {"patient_id", "study_id"}
    # The digest in a run's data.json is that of the list of str.
    assert json.dumps(records.paths.tolist()) == json.dumps([f"{number}.png" for number in range(6)])
    copy: Records = pickle.loads(pickle.dumps(records))
    assert copy.paths.tolist() == records.paths.tolist()
    taken = records.take(np.array([4, 1]))
    assert taken.paths.tolist() == ["4.png", "1.png"]
    assert taken.rows.tolist() == [6, 3]
    assert taken.groups["patient_id"].tolist() == ["p2", "p0"]


def test_several_labels_an_image(tmp_path: Path) -> None:
    rows = [("0.png", "1", "0"), ("1.png", "0.0", ""), ("2.png", "", "1.0")]
    records = read(write_manifest(tmp_path, ("label_z", "path", "label_a"), *((b, a, c) for a, b, c in rows)))
    assert records.classes == ("z", "a")
    assert records.multilabel
    assert records.labels is not None
    assert records.labels.dtype == np.float32
    np.testing.assert_array_equal(records.labels, [[1, 0], [0, np.nan], [np.nan, 1]])
    assert records.summary().endswith(
        "/manifest.csv: 3 images; z 1 of 2 known, a 1 of 2 known; "
        "left out: 3 images that no table lists (such as 3.png)"
    )
    label = ImageSource(records)[0]["label"]
    assert label.dtype == np.float32
    np.testing.assert_array_equal(label, [1, 0])
    unlabelled = read_records(str(tmp_path), labelled=False)
    assert unlabelled.labels is None
    assert unlabelled.classes == ()
    assert not unlabelled.multilabel


@pytest.mark.parametrize(("uncertain", "value"), [("ignore", np.nan), ("zero", 0), ("one", 1)])
@pytest.mark.parametrize("cell", ["-1", "-1.0"])
def test_what_uncertain_means_must_be_said(tmp_path: Path, uncertain: str, value: float, cell: str) -> None:
    rows = [("0.png", "1", "0"), ("1.png", cell, "1"), ("2.png", "0", "1")]
    data = write_manifest(tmp_path, HEADER, *rows)
    with pytest.raises(
        RunError, match=rf"manifest.csv, row 3: label_effusion is {cell}, .*--uncertain ignore, zero or"
    ):
        read(data)
    np.testing.assert_array_equal(read(data, uncertain=uncertain).labels, [[1, 0], [value, 1], [0, 1]])


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (HEADER, [("0.png", "2", "0")], r"manifest.csv, row 2: label_effusion is '2'; it must be 0, 1 or empty"),
        (HEADER, [("0.png", "1", "yes")], r"row 2: label_nodule is 'yes'"),
        (HEADER, [("0.png", "1", "0"), ("1.png", "0", "0")], r"label_nodule .* all its known entries are 0"),
        (HEADER, [("0.png", "1", ""), ("1.png", "0", "")], r"label_nodule .* no entry of it is known"),
        ((*HEADER, "label"), [("0.png", "1", "0", "a")], r"columns label and label_effusion; keep one"),
        ((*HEADER, "acl_label"), [("0.png", "1", "0", "a")], r"columns acl_label and label_effusion"),
        (("path", "label_"), [("0.png", "1")], r"column label_ names no class"),
        (("path", "label", "label"), [("0.png", "a", "b")], r"several columns label"),
        (("path", "label", "frame"), [("0.png", "a", "x")], r"row 2: frame 'x' is not a whole number"),
        (("path", "label", "frame"), [("0.png", "a", "2147483648")], r"row 2: frame '2147483648' is not"),
        (("path", "label", "patient_id"), [("0.png", "a", "")], r"row 2: column patient_id is empty"),
        (("path", "label"), [("0.png", "a"), ("", ""), ("./0.png", "a")], r"row 4: ./0.png is listed .* in row 2"),
        (
            ("path", "label"),
            [("0.png", "a"), ("8.png", "b"), ("9.png", "b")],
            r"row 3: .*8.png \(and 1 more are missing",
        ),
    ],
)
def test_refusals_name_the_row_or_the_column(
    tmp_path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        read(write_manifest(tmp_path, header, *rows))


def test_options_must_fit_the_labels(tmp_path: Path) -> None:
    data = write_manifest(tmp_path, HEADER, ("0.png", "1", "0"), ("1.png", "0", "1"))
    with pytest.raises(UsageError, match=r"positive_class nodule: .* several labels"):
        read(data, positive_class="nodule")
    write_manifest(tmp_path, ("path", "label"), ("0.png", "a"), ("1.png", "b"))
    with pytest.raises(UsageError, match=r"uncertain one: .* no columns label_"):
        read(data, uncertain="one")


def test_frames_tell_images_of_one_file_apart(tmp_path: Path) -> None:
    data = write_manifest(
        tmp_path, ("path", "label", "frame"), ("0.png", "a", 0), ("0.png", "b", 1), ("0.png", "a", "")
    )
    assert read(data).frames.tolist() == [0, 1, -1]
    write_manifest(tmp_path, ("path", "label", "frame"), ("0.png", "a", 1), ("1.png", "b", 1), ("0.png", "a", 1))
    with pytest.raises(RunError, match=r"row 4: 0.png is listed before, in row 2"):
        read(data)


@pytest.mark.parametrize("listing_pays", [0, 10_000])
def test_missing_files_are_found_by_listing_and_singly(
    tmp_path: Path, listing_pays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_LISTING_PAYS", listing_pays)
    (tmp_path / "a/folder.png").mkdir(parents=True)
    for name in ("a/1.png", "a/2.png", "top.png"):
        (tmp_path / name).touch()
    (tmp_path / "a/link.png").symlink_to(tmp_path / "top.png")
    (tmp_path / "a/broken.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    there = ["a/1.png", "b/2.png", "a/link.png", "top.png", "./top.png", "a/../top.png", str(tmp_path / "a/1.png")]
    gone = ["a/3.png", "a/folder.png", "a/broken.png", "c/1.png", "/top.png", "1.png", "a/1.png/2.png"]
    missing, inodes = files.look_up(tmp_path, there)
    assert missing == []
    top, first, second = ((tmp_path / name).stat().st_ino for name in ("top.png", "a/1.png", "a/2.png"))
    assert inodes.tolist() == [first, second, top, top, top, top, first]
    assert files.look_up(tmp_path, [*gone, *there])[0] == list(range(len(gone)))
    if not (tmp_path / "A/1.PNG").exists():  # a case-sensitive file system
        assert files.look_up(tmp_path, ["a/1.PNG", "A/1.png"])[0] == [0, 1]


def test_an_absolute_path_is_the_same_image(tmp_path: Path) -> None:
    absolute = tmp_path / "0.png"
    data = write_manifest(tmp_path, ("path", "label"), ("1.png", "a"), ("0.png", "a"), (str(absolute), "b"))
    with pytest.raises(RunError, match=rf"row 4: {absolute} is listed before as 0.png, in row 3; keep one row"):
        read(data)


def test_fold_files_may_have_several_labels(tmp_path: Path) -> None:
    data = write_manifest(tmp_path, ("path",))
    paths = [f"{number}.png" for number in range(6)]
    parts = [np.array([0, 1]), np.array([2, 3]), np.array([4, 5])]
    folds = [Fold(parts[k], parts[(k + 1) % 3], parts[(k + 2) % 3]) for k in range(3)]
    listed = pd.DataFrame({"filename": paths, "label": ["0,1", "1,", "0,0", "1,1", ",0", "0,1"]})
    write_fold_files(data, "chest", listed, folds)
    for file in (data / "dataframe").iterdir():
        file.write_text(file.read_text().replace('"', "").replace("label", "label_a,label_b"))
    records = read(data)
    np.testing.assert_array_equal(records.labels, [[0, 1], [1, np.nan], [0, 0], [1, 1], [np.nan, 0], [0, 1]])
    assert [fold.test.tolist() for fold in records.folds] == [[4, 5], [0, 1], [2, 3]]
    taken = records.take(np.array([5, 0, 4]))
    assert [fold.test.tolist() for fold in taken.folds] == [[0, 2], [1], []]
    changed = data / "dataframe/chest_test_fold2.csv"
    changed.write_text(changed.read_text().replace("1.png,1,", "1.png,1,1"))
    with pytest.raises(
        RunError, match=r"test_fold2.csv, row 3: .*a 1, b 1 .*but label a 1, b unknown .*train_fold1.csv"
    ):
        read(data)
    changed.write_text(changed.read_text().replace("label_b", "label_c"))
    with pytest.raises(RunError, match=r"test_fold2.csv: has other columns label_<class> than .*train_fold1.csv"):
        read(data)
