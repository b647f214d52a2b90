"""Fold files written once for all runs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dinojax.data.reading import read_records
from dinojax.data.splits import make_folds
from dinojax.errors import RunError, UsageError
from dinojax.verbs import run as run_verb
from tests.tasks import write_multilabel_task, write_task


def test_runs_read_the_folds_that_were_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_task(tmp_path / "breast", per_class=12), tmp_path / "elsewhere" / "folds"
    given = ["splits", str(data / "manifest.csv"), "--folds", "4", "--fold_seed", "3", "--out", str(out)]
    run_verb([*given, "--check", "true"])
    assert not out.exists()
    assert "4, made: stratified, grouped by patient, fold_seed 3" in capsys.readouterr().out
    assert run_verb(given) == out
    records, before = (read_records(str(folder), labelled=True) for folder in (out, data))
    assert (records.task, records.classes, len(records.folds)) == ("breast", before.classes, 4)
    tested = []
    for fold in records.folds:
        parts = [set(records.groups["patient_id"][places].tolist()) for places in (fold.train, fold.val, fold.test)]
        assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
        assert len(fold.train) + len(fold.val) + len(fold.test) == 24
        tested += [records.file(place).resolve() for place in fold.test]
    assert sorted(tested) == sorted(before.file(place).resolve() for place in range(24))
    with pytest.raises(UsageError, match="holds tables already"):
        run_verb(given)


def test_several_labels_keep_their_gaps(tmp_path: Path) -> None:
    data = write_multilabel_task(tmp_path / "chest", cases=144)
    run_verb(["splits", str(data), "--folds", "3", "--out", str(tmp_path / "folds")])
    again, before = (read_records(str(folder), labelled=True) for folder in (tmp_path / "folds", data))
    assert again.classes == before.classes
    assert again.labels is not None
    assert before.labels is not None
    tables = [
        pd.DataFrame(records.labels, index=[file.resolve() for file in map(records.file, range(len(records)))])
        for records in (again, before)
    ]
    pd.testing.assert_frame_equal(tables[0].sort_index(), tables[1].sort_index())


def test_patients_come_from_a_column_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_task(tmp_path / "breast", per_class=12)
    table = pd.read_csv(data / "manifest.csv", dtype=str).rename(columns={"patient_id": "who"}).assign(split="train")
    table.to_csv(data / "manifest.csv", index=False)
    run_verb(["splits", str(data), "--patient_column", "who", "--folds", "3", "--out", str(tmp_path / "folds")])
    shown = capsys.readouterr().out
    assert "12, from column who" in shown
    assert "the parts or folds that the data brings along are not kept" in shown
    with pytest.raises(UsageError, match=r"--patient_column whom: the columns of .* are path, label, who"):
        run_verb(["splits", str(data), "--patient_column", "whom", "--out", str(tmp_path / "other")])


def test_folds_of_other_patients_than_the_data_s_own_are_made(tmp_path: Path) -> None:
    """The data's own parts share patients, whose names are longer than NumPy keeps in place."""
    data, rng = tmp_path / "xray", np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("ill", "well"):
            (data / part / name).mkdir(parents=True)
            for number in range(90):
                path = data / part / name / f"patient-of-the-study-{number // 3:04}-{name}_{part}{number}.png"
                Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(path)
    given = [str(data), "--group_regex", "(patient-of-the-study-[0-9]+-[a-z]+)", "--folds", "3"]
    out = run_verb(["splits", *given, "--out", str(tmp_path / "folds")])
    assert len(read_records(str(out), labelled=True).folds) == 3
    with pytest.raises(RunError, match=r"patients are in both train and test, such as .*splits makes"):
        make_folds(read_records(str(data), labelled=True, group_regex=given[2]), 3, 0)


def test_folds_need_no_positive_class_and_take_the_names_of_columns(tmp_path: Path) -> None:
    data, rng = tmp_path / "xray", np.random.default_rng(0)
    data.mkdir()
    rows = ["where,finding"]
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(data / f"{number}.png")
        rows.append(f"{number}.png,{'abnormal' if number % 2 else 'normal'}")
    (data / "list.csv").write_text("\n".join(rows))
    given = ["--path_column", "where", "--label_column", "finding", "--folds", "3", "--out", str(tmp_path / "folds")]
    out = run_verb(["splits", str(data / "list.csv"), *given])
    with pytest.raises(UsageError, match="--positive_class"):
        read_records(str(out), labelled=True)
    assert read_records(str(out), labelled=True, positive_class="abnormal").classes == ("normal", "abnormal")
