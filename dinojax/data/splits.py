"""The folds that a comparison runs on: the data's own, or made so that no patient is in two parts."""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from dinojax.data.records import SPLITS, Fold, Records
from dinojax.errors import RunError, UsageError

_LEAST = 3
"""Folds, to train, validate and test on different slices."""
_INNER = 5
"""The validation part that a training part gives is one of so many slices."""


def make_folds(
    records: Records,
    folds: int,
    seed: int,
    first: np.ndarray | None = None,
    allow_shared_patients: bool = False,
) -> tuple[Fold, ...]:
    """Folds of labelled images, in which no patient is in two parts.

    The data's own fold files are taken as they are. A given split into training and test part is one fold, its
    validation part being a fifth of the training part, grouped by patient, if none is given. Otherwise folds are made,
    stratified and grouped by patient; an image without a patient is its own. What is made here puts images of the same
    pixels into one part too, and with them all images of their patients. Multi-label data is stratified by each
    image's rarest positive label. A patient in two parts is an error, but where the patients were only derived from the
    files' names, of which the publishers of the folds made no use: then a warning is printed.

    Args:
      records: labelled.
      folds: how many to make where the data brings none.
      seed: of what is drawn.
      first: int [N], place of the first image with the same pixels, where that is known.
      allow_shared_patients: a patient in two parts is no error, and is warned of.

    Raises:
      RunError: a fold has an empty part, no training image of a class (or, multi-label, with one of a label's two
        values), or a patient in two parts; or the data gives the split of some images only.
      UsageError: as `grouped_folds`.
    """
    if records.folds:
        made = records.folds
    elif records.splits is not None and (records.splits != "").any():
        made = (_given_split(records, seed, first),)
    else:
        made = tuple(_divide(records, np.arange(len(records)), folds, seed, first))
    for number, fold in enumerate(made, start=1):
        _check(records, number, fold)
    _check_patients(records, made, allow_shared_patients)
    return made


def describe_folds(records: Records, folds: int, seed: int, first: np.ndarray | None = None) -> str:
    """How `make_folds` divides a data set, in words."""
    volumes = "grouped by volume" if "volume_id" in records.groups else "every image by itself"
    grouped = "grouped by patient" if records.patients is not None else volumes
    if first is not None and (first != np.arange(len(first))).any():
        grouped += ", identical images together"
    if records.folds:
        return f"{len(records.folds)}, as the fold files give them"
    if records.splits is not None and (records.splits != "").any():
        if (records.splits == "val").any():
            return "1, as the data gives its parts"
        return (
            f"1, as the data gives its parts; validation is a fifth of the training part, {grouped}, fold_seed {seed}"
        )
    return f"{folds}, made: stratified, {grouped}, fold_seed {seed}"


def grouped_folds(
    labels: np.ndarray, groups: np.ndarray, folds: int, seed: int, names: Sequence[str] = ()
) -> list[Fold]:
    """Divides a data set `folds` times, with about the same share of every class in every part.

    The data set is cut into `folds` slices. Fold k tests on slice k, validates on slice k + 1 (the last fold on the
    first slice) and trains on the others, so every image is tested once and validated once.

    Args:
      labels: [N] classes, of any type that sorts.
      groups: [N] what must stay together, such as the patient.
      folds: how many, at least 3.
      seed: of the shuffle.
      names: of the classes, where labels are places in them; for messages.

    Raises:
      UsageError: fewer than 3 folds, a class with fewer groups than folds, or groups so unequal that a slice would
        lack a class.
    """
    values, strata = np.unique(labels, return_inverse=True)
    classes = [names[value] if names else str(value) for value in values]
    for name, count in zip(classes, _groups_of_each(strata, groups), strict=True):
        if count < folds:
            raise UsageError(f"class {name!r} has {_too_few(count, folds)}")
    made = _cut(strata, groups, folds, seed)
    for fold in made:
        if missing := set(range(len(classes))) - set(strata[fold.test].tolist()):
            raise UsageError(
                f"groups (patients) are too unequal: one of {folds} folds has no {classes[min(missing)]!r}; "
                f"{_advice(folds - 1)}"
            )
    return made


def _too_few(count: int, folds: int) -> str:
    return f"{count} groups (patients), too few for {folds} folds; {_advice(min(count, folds - 1))}"


def _advice(folds: int) -> str:
    """What to do where no more than so many folds may be made."""
    if folds < _LEAST:
        return f"at least {_LEAST} folds are needed: add patients, or give a `split` column"
    return f"make fewer folds (--folds {folds}), or add patients"


def multilabel_folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> list[Fold]:
    """As `grouped_folds`, stratified by each image's rarest positive label.

    Images whose rarest positive label has fewer groups than there are folds are treated as those without any.

    Args:
      labels: float [N, C] of 0, 1 and NaN.
      groups, folds, seed: as of `grouped_folds`.

    Raises:
      UsageError: fewer than 3 folds, or fewer groups than folds.
    """
    if (count := len(np.unique(groups))) < folds:
        raise UsageError(f"there are {_too_few(count, folds)}")
    positive = labels == 1
    none = labels.shape[1]
    rarest_first = np.argsort(positive.sum(axis=0), kind="stable")
    strata = np.where(positive.any(axis=1), rarest_first[positive[:, rarest_first].argmax(axis=1)], none)
    strata[_groups_of_each(strata, groups)[strata] < folds] = none
    sizes = _groups_of_each(strata, groups)
    if len(sizes) > none and sizes[none] < folds:  # too few as well: they join the largest
        strata[strata == none] = sizes[:none].argmax()
    return _cut(strata, groups, folds, seed)


def _groups_of_each(strata: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """How many groups have images of stratum 0, 1, ..., the highest in `strata` (int [N])."""
    pairs = pd.DataFrame({"stratum": strata, "group": groups}).drop_duplicates()
    return np.bincount(pairs["stratum"])


def _cut(strata: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> list[Fold]:
    """Fold k tests on slice k, validates on the next and trains on the rest."""
    if folds < _LEAST:
        raise UsageError(
            f"folds is {folds}; at least {_LEAST} are needed to train, validate and test on different slices"
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    members = np.unique(groups, return_inverse=True)[1]
    slices = [test for _, test in splitter.split(strata, strata, members)]
    everything = np.arange(len(strata))
    return [
        Fold(train=np.setdiff1d(everything, np.concatenate([test, val])), val=val, test=test)
        for test, val in zip(slices, [*slices[1:], slices[0]], strict=True)
    ]


def folds_table(records: Records, folds: tuple[Fold, ...]) -> pd.DataFrame:
    """Which image stands where: `fold`, `split`, and the columns of `cases_table`, all text."""
    parts = []
    for number, fold in enumerate(folds, start=1):
        for split in SPLITS:
            table = cases_table(records, getattr(fold, split))
            table.insert(0, "fold", str(number))
            table.insert(1, "split", split)
            parts.append(table)
    return pd.concat(parts, ignore_index=True)


def cases_table(records: Records, indices: np.ndarray | slice) -> pd.DataFrame:
    """`path`, `frame`, the known groups and `label`, or `label_<class>` ('0', '1'), of labelled images, as text.

    Empty where there is none.
    """
    assert records.labels is not None
    labels = records.labels[indices]
    columns = {
        "path": records.paths[indices].tolist(),
        "frame": ["" if frame < 0 else str(frame) for frame in records.frames[indices]],
        "patient_id": [""] * len(labels),
        **{name: values[indices].tolist() for name, values in records.groups.items()},
    }
    if records.multilabel:
        text = np.where(np.isnan(labels), "", np.where(labels == 1, "1", "0"))
        columns |= {f"label_{name}": text[:, place].tolist() for place, name in enumerate(records.classes)}
    else:
        columns["label"] = [records.classes[label] for label in labels]
    return pd.DataFrame(columns, dtype=object)


def _divide(records: Records, chosen: np.ndarray, folds: int, seed: int, first: np.ndarray | None = None) -> list[Fold]:
    """Folds of some of the images, as places in `chosen`; an image without a patient is its own."""
    assert records.labels is not None
    groups = records.units if first is None else joined_groups(records.units, first)
    if records.multilabel:
        return multilabel_folds(records.labels[chosen], groups[chosen], folds, seed)
    return grouped_folds(records.labels[chosen], groups[chosen], folds, seed, records.classes)


def joined_groups(groups: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Groups that share an identical image, joined to one.

    Args:
      groups: [N], such as the patient of each image.
      first: int [N], place of the first image with the same pixels.

    Returns:
      `groups` itself where none share one, so that folds stay what they are; else int [N], in their order.
    """
    if (groups[first] == groups).all():
        return groups
    members = np.unique(groups, return_inverse=True)[1]
    shape = (int(members.max()) + 1,) * 2
    links = coo_array((np.ones(len(members), bool), (members, members[first])), shape=shape)
    component = connected_components(links, directed=False)[1]
    lowest = np.unique(component, return_index=True)[1]  # the groups are numbered in order, so the first is the lowest
    return lowest[component][members]


def _given_split(records: Records, seed: int, first: np.ndarray | None) -> Fold:
    splits = records.splits
    assert splits is not None
    if (splits == "").any():
        raise RunError(
            f"{records.describe(int(np.argmax(splits == '')))} has no split while others have; give all or none"
        )
    train, val, test = (np.flatnonzero(splits == part) for part in SPLITS)
    if not len(val) and len(train):
        try:
            inner = _divide(records, train, _INNER, seed, first)[0]
        except UsageError as error:
            why = str(error).partition(";")[0]
            raise UsageError(
                f"a fifth of the training part cannot be taken for validation: {why}; give a validation part too"
            ) from error
        train, val = train[np.sort(np.concatenate([inner.train, inner.val]))], train[inner.test]
    return Fold(train=train, val=val, test=test)


def _check(records: Records, number: int, fold: Fold) -> None:
    assert records.labels is not None
    where = f"fold {number} of {records.root}"
    for part in SPLITS:
        if not len(getattr(fold, part)):
            raise RunError(f"{where} has no {part} images; give other folds")
        if records.multilabel and np.isnan(records.labels[getattr(fold, part)]).all():
            raise RunError(f"{where} has no {part} image with a known label; give other folds, or fewer")
    labels = records.labels[fold.train]
    for place, name in enumerate(records.classes):
        needed = {f"of class {name}": labels == place}
        if records.multilabel:
            needed = {f"with label_{name} {value}": labels[:, place] == value for value in (0, 1)}
        for what, found in needed.items():
            if not found.any():
                raise RunError(f"{where} has no train image {what}; give other folds, or fewer")


def shared_patients(records: Records, folds: Sequence[Fold]) -> list[str]:
    """Of each fold and two of its parts that share patients, a line: how many, and one of them."""
    if records.patients is None:
        return []
    lines = []
    # As numbers: NumPy's set functions have crashed on text of its own type (intersect1d, NumPy 2.4).
    names, patients = np.unique(records.patients, return_inverse=True)
    for number, fold in enumerate(folds, start=1):
        for a, b in itertools.combinations(SPLITS, 2):
            shared = names[np.intersect1d(patients[getattr(fold, a)], patients[getattr(fold, b)])]
            if len(shared):
                lines.append(f"fold {number}: {len(shared)} patients are in both {a} and {b}, such as {shared[0]}")
    return lines


def _check_patients(records: Records, folds: Sequence[Fold], allowed: bool) -> None:
    """Refuses a patient in two parts; or prints a warning, if nobody gave the patients or it is allowed."""
    if not (lines := shared_patients(records, folds)):
        return
    if not records.patients_derived and not allowed:
        where, _, what = lines[0].partition(": ")
        raise RunError(
            f"{where} of {records.root}: {what}; give folds grouped by patient, which the verb splits makes, "
            "or patients that tell the parts apart, if their ids restart in each; or allow it with "
            "--allow_shared_patients true"
        )
    print(
        f"warning: the folds of {records.root} share patients, by {records.patient_source}, so that results on "
        f"them are optimistic ({'; '.join(lines)})"
    )
