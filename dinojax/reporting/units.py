"""Scores of images pooled to what they are images of: a volume, a patient."""

from collections.abc import Sequence
from typing import Literal

import pandas as pd

from dinojax.reporting.predictions import label_columns, score_columns

UNITS = {"volume": "volume_id", "patient": "patient_id"}
Pooling = Literal["mean", "max"]
POOLINGS: tuple[Pooling, ...] = ("mean", "max")


def units_of(rows: pd.DataFrame) -> list[str]:
    """Of `UNITS` those that are known of every row, and of which some hold several rows of a fold."""
    known = []
    for unit, column in UNITS.items():
        if column not in rows:
            continue
        if (
            len(rows)
            and bool((rows[column] != "").all())
            and bool(rows.duplicated(["fold", "setting", "split", column]).any())
        ):
            known.append(unit)
    return known


def pool(rows: pd.DataFrame, unit: str, pooling: Pooling, classes: Sequence[str]) -> pd.DataFrame:
    """A row for each unit of each fold, setting and split, in the order in which they first occur.

    Its score of a class is the mean or the highest of its images' scores. Where its images have different labels, it is
    of the last of the classes that occur, the positive one of two; of several labels a unit has those that any of its
    images has, and one that is known of none stays unknown.

    Args:
      rows: of a table of predictions.
      unit: 'volume' or 'patient'.
      pooling: of the scores.
      classes: names, in the order of the task.
    """
    by = ["task", "starting_point", "protocol", "seed", "setting", "fold", "split", UNITS[unit]]
    how: dict[str, str] = dict.fromkeys(score_columns(classes), pooling)
    if "label" in rows:
        rows = rows.assign(label=rows["label"].map({name: place for place, name in enumerate(classes)}.get))
        how["label"] = "max"
    else:
        how |= dict.fromkeys(label_columns(classes), "max")
    others = [column for column in UNITS.values() if column != UNITS[unit]]
    pooled = rows.groupby(by, sort=False, as_index=False).agg(
        {**how, **dict.fromkeys([*others, "study_id"], _same), "path": "size"}
    )
    pooled = pooled.rename(columns={"path": "images"})
    if "label" in rows:
        pooled["label"] = [classes[int(place)] for place in pooled["label"]]
    return pooled


def _same(values: pd.Series) -> str:
    """What all of a unit's images agree in, else nothing."""
    return values.iloc[0] if (values == values.iloc[0]).all() else ""
