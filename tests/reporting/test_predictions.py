"""The table of predictions: what is written is read, and what cannot be is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dinojax.errors import RunError
from dinojax.reporting.predictions import COLUMNS, case_rows, questions, read_predictions, write_predictions

CASES = pd.DataFrame({"path": ["001.png", "002.png", "NA"], "patient_id": ["007", "", "x"], "frame": ["", "3", ""]})
FACTS = {"task": "t", "starting_point": "01", "protocol": "knn", "seed": 3, "setting": "1", "fold": 1, "split": "val"}
SCORES = np.asarray([[0.1, 0.9], [1 / 3, 2 / 3], [1 - 1e-13, 1e-13]])


def single() -> pd.DataFrame:
    return case_rows(CASES, np.asarray([1, 0, 1]), SCORES, ["no", "yes"], FACTS)


def multilabel() -> pd.DataFrame:
    labels = np.asarray([[1, np.nan], [0, 1], [np.nan, 0]])
    return case_rows(CASES, labels, SCORES, ["a", "b"], FACTS)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.csv", single())
    table = read_predictions(tmp_path / "p.csv", ["no", "yes"])
    assert list(table) == [*COLUMNS, "label", "score_no", "score_yes"]
    assert table["path"].tolist() == ["001.png", "002.png", "NA"]  # text stays text
    assert table["setting"].tolist() == ["1"] * 3
    assert table["study_id"].tolist() == [""] * 3
    assert table["label"].tolist() == ["yes", "no", "yes"]
    np.testing.assert_allclose(table[["score_no", "score_yes"]], SCORES, rtol=1e-14)
    assert list(tmp_path.iterdir()) == [tmp_path / "p.csv"]


def test_unknown_labels_are_empty_cells(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.csv", multilabel())
    raw = pd.read_csv(tmp_path / "p.csv", dtype=str, keep_default_na=False)
    assert raw["label_a"].tolist() == ["1", "0", ""]
    table = read_predictions(tmp_path / "p.csv", ["a", "b"])
    np.testing.assert_array_equal(table[["label_a", "label_b"]], [[1, np.nan], [0, 1], [np.nan, 0]])


def test_questions_of_each_kind_of_task() -> None:
    (binary,) = questions(single(), ["no", "yes"])
    assert (binary.name, binary.rest, binary.labels.tolist()) == ("yes", "no", [True, False, True])
    np.testing.assert_array_equal(binary.scores, SCORES[:, 1])
    a, b = questions(multilabel(), ["a", "b"])
    assert (a.labels.tolist(), b.labels.tolist()) == ([True, False], [True, False])  # the known ones
    np.testing.assert_array_equal(a.scores, SCORES[:2, 0])
    np.testing.assert_array_equal(b.scores, SCORES[1:, 1])
    three = case_rows(CASES, np.asarray([2, 0, 1]), np.eye(3), ["x", "y", "z"], FACTS)
    asked = questions(three, ["x", "y", "z"])
    assert [(q.name, q.rest, q.labels.tolist().index(True)) for q in asked] == [
        ("x", "rest", 1),
        ("y", "rest", 2),
        ("z", "rest", 0),
    ]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("label", "maybe", "label 'maybe' is not one of 'no', 'yes'"),
        ("score_yes", "nan", "row 2: score_yes 'nan' is not a finite number"),
        ("score_yes", "high", "row 2: score_yes 'high'"),
        ("fold", "one", "cannot be read"),
        ("path", None, "has no column path"),
        ("label", None, "has no column label_no, label_yes"),
    ],
)
def test_refusals(tmp_path: Path, column: str, value: str | None, message: str) -> None:
    write_predictions(tmp_path / "p.csv", single())
    table = pd.read_csv(tmp_path / "p.csv", dtype=str, keep_default_na=False)
    table = table.drop(columns=column) if value is None else table.assign(**{column: value})
    table.to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(RunError, match=rf"p\.csv: .*{message}"):
        read_predictions(tmp_path / "p.csv", ["no", "yes"])


def test_a_label_that_is_neither_0_nor_1_is_refused(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.csv", multilabel().assign(label_b=-1))
    with pytest.raises(RunError, match="label_b '-1' is not one of '0', '1', ''"):
        read_predictions(tmp_path / "p.csv", ["a", "b"])
