"""`predictions.csv`: a row for every validation and test case of every setting and fold, and the questions it answers.

Everything that a run states follows from this table, so the numbers are computed from the file and not from what
preceded it.
"""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dinojax.errors import RunError
from dinojax.runs.files import reason, replacing

COLUMNS = ("task", "starting_point", "protocol", "seed", "setting", "fold", "split")
COLUMNS += ("path", "frame", "patient_id", "study_id", "volume_id")


class Question(NamedTuple):
    """One ROC curve: cases of which something holds or not, and a score of how likely it does."""

    name: str
    """The positive class or the label."""
    rest: str
    """What it is told apart from."""
    labels: np.ndarray
    """bool [n], the cases whose answer is known."""
    scores: np.ndarray
    """float64 [n], probabilities."""
    required: bool = True
    """Whether the AUC over all questions is undefined where this one's is: classes exclude one another, labels do
    not."""


def case_rows(
    cases: pd.DataFrame, labels: np.ndarray, scores: np.ndarray, classes: Sequence[str], facts: Mapping[str, object]
) -> pd.DataFrame:
    """Rows of a table of predictions.

    Args:
      cases: [n] with those of the columns `path`, `frame`, `patient_id`, `study_id`, `volume_id` that are known.
      labels: int [n], places in the classes; multi-label: float [n, C] of 0, 1 and NaN (unknown).
      scores: float [n, C], probabilities.
      classes: C names.
      facts: the other columns' values, the same for all rows: `task`, `setting`, ...
    """
    if labels.ndim == 2:
        known = dict(zip(label_columns(classes), labels.T, strict=True))
    else:
        known = {"label": np.asarray(classes, object)[labels]}
    return cases.assign(**facts, **known, **dict(zip(score_columns(classes), np.asarray(scores).T, strict=True)))


def write_predictions(path: Path, table: pd.DataFrame) -> None:
    """Writes a table of predictions, whole or not at all; columns of `COLUMNS` that it lacks are left empty."""
    table = table.reindex(columns=[*COLUMNS, *(name for name in table if name not in COLUMNS)])
    with replacing(path, newline="") as file:
        # 15 digits: every CSV reader keeps two such numbers apart and in order, so AUCs come out the same everywhere.
        table.to_csv(file, index=False, float_format="%.15g")


def read_predictions(path: Path, classes: Sequence[str]) -> pd.DataFrame:
    """Reads a table that `write_predictions` wrote.

    Returns:
      Columns as in the file: text, but for `seed` and `fold` (int), scores (float64) and the labels of a multi-label
      task (float64: 0, 1, NaN where unknown).

    Raises:
      RunError: it cannot be read, lacks a column, or holds a label or a score that cannot be.
    """
    try:
        types: dict[Hashable, type] = dict.fromkeys(
            (*COLUMNS, "label", *label_columns(classes), *score_columns(classes)), str
        )
        table = pd.read_csv(path, dtype=types | {"seed": int, "fold": int}, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {reason(error)}; restore it, or repeat the run") from error
    known = ["label"] if "label" in table else label_columns(classes)
    if missing := [name for name in (*COLUMNS, *known, *score_columns(classes)) if name not in table]:
        raise RunError(f"{path}: has no column {', '.join(missing)}; restore it, or repeat the run")
    for name in known:
        allowed = classes if name == "label" else ("0", "1", "")
        if unknown := sorted(set(table[name]) - set(allowed)):
            raise RunError(f"{path}: {name} {unknown[0]!r} is not one of {', '.join(map(repr, allowed))}")
    numbers = table[score_columns(classes)].apply(pd.to_numeric, errors="coerce")
    for name, values in numbers.items():
        if len(bad := np.flatnonzero(~np.isfinite(values))):
            raise RunError(f"{path}: row {bad[0] + 2}: {name} {table[name].iloc[bad[0]]!r} is not a finite number")
    if "label" not in table:
        numbers[known] = table[known].apply(pd.to_numeric, errors="coerce")
    table[numbers.columns] = numbers
    return table


def score_columns(classes: Sequence[str]) -> list[str]:
    """`score_<class>` of every class."""
    return [f"score_{name}" for name in classes]


def label_columns(classes: Sequence[str]) -> list[str]:
    """`label_<class>` of every class of a multi-label task."""
    return [f"label_{name}" for name in classes]


def questions(rows: pd.DataFrame, classes: Sequence[str]) -> list[Question]:
    """The ROC curves that a task asks for; the only place of the report that knows the kinds of tasks.

    Args:
      rows: of a table of predictions.
      classes: of two, the last is the positive one.

    Returns:
      Of a binary task one question, of a multi-class task each class against the rest, of a multi-label task each
      label over the cases where it is known.
    """
    scores = [rows[name].to_numpy(np.float64) for name in score_columns(classes)]
    if "label" not in rows:
        labels = [rows[name].to_numpy(np.float64) for name in label_columns(classes)]
        known = [~np.isnan(values) for values in labels]
        return [
            Question(name, f"no {name}", values[mask] == 1, score[mask], required=False)
            for name, values, score, mask in zip(classes, labels, scores, known, strict=True)
        ]
    label = rows["label"].to_numpy()
    if len(classes) == 2:
        return [Question(classes[1], classes[0], label == classes[1], scores[1])]
    return [Question(name, "rest", label == name, score) for name, score in zip(classes, scores, strict=True)]


def positive_text(asked: Sequence[Question]) -> str:
    """Which class is the positive one, as titles say it: 'positive: malignant'."""
    if len(asked) == 1:
        return f"positive: {asked[0].name}"
    return (
        "one-vs-rest, each class positive in turn" if asked[0].required else "each label positive against its absence"
    )


def averaging_text(asked: Sequence[Question]) -> str | None:
    """How the AUCs of several questions become one; None of a single question."""
    if len(asked) == 1:
        return None
    if asked[0].required:
        return f"unweighted (macro) mean of the {len(asked)} classes' AUCs, each class against the rest"
    return f"unweighted (macro) mean of the {len(asked)} labels' AUCs, each over the cases where it is known"


def accuracy(rows: pd.DataFrame, classes: Sequence[str]) -> float | None:
    """Share of the cases whose most probable class is theirs; None of several labels, or without cases."""
    if "label" not in rows or rows.empty:
        return None
    predicted = np.asarray(classes, object)[rows[score_columns(classes)].to_numpy().argmax(axis=1)]
    return float((predicted == rows["label"].to_numpy()).mean())


def select_rows(table: pd.DataFrame, split: str, chosen: Mapping[int, str]) -> pd.DataFrame:
    """The rows of one split as each fold's chosen setting predicted them."""
    return of_settings(pd.DataFrame(table.loc[table["split"] == split]), chosen)


def of_settings(table: pd.DataFrame, chosen: Mapping[int, str]) -> pd.DataFrame:
    """The rows of each fold's chosen setting, from any table with columns `fold` and `setting`."""
    return pd.DataFrame(table.loc[table["setting"] == table["fold"].map(dict(chosen).get)])
