"""Fold files written once for all runs."""

from pathlib import Path

import pandas as pd
import pytest

from dinojax.data.reading import read_records
from dinojax.errors import UsageError
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
