"""What a run has understood of its data, in lines that it prints before it does anything, and keeps."""

from collections.abc import Mapping, Sequence

import numpy as np

from dinojax.data.duplicates import LIMIT, Twins, find_duplicates, labels_differ
from dinojax.data.headers import Headers
from dinojax.data.records import SPLITS, Fold, Records
from dinojax.data.splits import shared_patients
from dinojax.wording import counted

Facts = dict[str, str | list[str]]
"""What a fact is about, to a line or several."""

_SHOWN, _COLUMNS = 3, 12


def data_facts(
    records: Records, headers: Headers, folds: Sequence[Fold] = (), how: str = "", twins: Twins | None = None
) -> Facts:
    """How a data set was read: by which reader, its classes, patients and parts, and what was left out.

    Args:
      records: the images.
      headers: what their headers say.
      folds: how they are divided.
      how: in words, how the folds came about.
      twins: which images are the same, where they were decoded; else only their files are compared.
    """
    facts: Facts = {"read as": f"{records.reader}, {records.root}", "images": f"{len(records)}; {headers.summary()}"}
    if headers.intensity:
        facts["intensity"] = [*headers.intensity, *(f"warning: {text}" for text in headers.warnings)]
    if records.labels is not None:
        facts["classes"] = describe_classes(records)
        shared = [f"{line}, a leak" for line in shared_patients(records, folds)]
        facts["patients"] = [_patients(records), *shared] if shared else _patients(records)
    if folds:
        facts["folds"] = [how, *(_parts(records, number, fold) for number, fold in enumerate(folds, start=1))]
    more = len(records.unread_columns) - _COLUMNS
    listed = ", ".join(records.unread_columns[:_COLUMNS]) + (f" and {more} more" if more > 0 else "")
    columns = [f"columns {listed}"] if listed else []
    facts["not read"] = [*columns, *records.left_out] or "nothing was left out"
    near = _near(records, folds, twins) if twins is not None and len(twins.near) else []
    lines = [*_duplicates(records, folds, twins), *near]
    facts["duplicates"] = lines if len(lines) > 1 else lines[0]
    return facts


def describe_classes(records: Records) -> str:
    """The classes with their numbers of images, and which one is positive."""
    assert records.labels is not None
    if records.multilabel:
        known, ones = (~np.isnan(records.labels)).sum(axis=0), (records.labels == 1).sum(axis=0)
        counts = zip(records.classes, ones, known, strict=True)
        return ", ".join(f"{name!r} × {one} of {count} known" for name, one, count in counts)
    counts = np.bincount(records.labels, minlength=len(records.classes))
    listed = ", ".join(f"{name!r} × {count}" for name, count in zip(records.classes, counts, strict=True))
    return f"{listed} (positive: {records.classes[-1]!r})" if len(records.classes) == 2 else listed


def render(facts: Mapping[str, str | Sequence[str]]) -> str:
    """The facts as a block of lines, each under its name."""
    width = max(map(len, facts)) + 2
    lines = []
    for name, text in facts.items():
        first, *more = [text] if isinstance(text, str) else text
        lines += [f"{name + ':':<{width}}{first}", *(" " * width + line for line in more)]
    return "\n".join(lines)


def _patients(records: Records) -> str:
    if records.patients is None:
        hints = "".join(f"; {hint}" for hint in records.hints)
        each = "volume" if "volume_id" in records.groups else "image"
        return f"unknown: every {each} counts as its own (--group_regex takes them from the paths){hints}"
    return f"{len(np.unique(records.patients))}, from {records.patient_source}"


def _parts(records: Records, number: int, fold: Fold) -> str:
    parts = []
    for split in SPLITS:
        places = getattr(fold, split)
        of = "" if records.patients is None else f" of {len(np.unique(records.patients[places]))} patients"
        parts.append(f"{'validation' if split == 'val' else split} {len(places)}{of}")
    unused = len(records) - len(np.unique(np.concatenate([fold.train, fold.val, fold.test])))
    return f"fold {number}: {', '.join(parts)}" + (f"; {counted(unused, 'image')} in no part" if unused else "")


def _duplicates(records: Records, folds: Sequence[Fold], twins: Twins | None) -> list[str]:
    if twins is None and len(records) > LIMIT:
        return [f"not looked for among more than {LIMIT:,} images"]
    alike = "byte for byte" if twins is None else "pixel by pixel"
    groups = find_duplicates(records) if twins is None else twins.groups()
    if not groups:
        return [f"no two {'files' if twins is None else 'images'} are equal {alike}"]
    again = sum(map(len, groups)) - len(groups)
    noun = "file" if twins is None else "image"
    equal = f"{counted(again, noun)} {'equals' if again == 1 else 'equal'} another one {alike}"
    lines = [f"{equal}, such as {' = '.join(records.paths[groups[0][:2]].tolist())}"]
    if contrary := [group for group in groups if labels_differ(records, group)]:
        lines.append(f"{len(contrary)} of these under different labels: {_listed(records, contrary)}")
    for number, fold in enumerate(folds, start=1):
        part = _part_of_each(records, fold)
        if leaks := [group for group in groups if len(set(part[group]) - {""}) > 1]:
            lines.append(f"fold {number}: {len(leaks)} across its parts, a leak: {_listed(records, leaks, part)}")
    return lines


def _near(records: Records, folds: Sequence[Fold], twins: Twins) -> list[str]:
    a, b = twins.near.T
    lines = [
        f"{counted(len(twins.near), 'pair')} of images nearly the same but not equal, such as "
        f"{_listed(records, twins.near[:1].tolist(), sign=' ~ ')}; the verb audit shows them"
    ]
    for number, fold in enumerate(folds, start=1):
        part = _part_of_each(records, fold)
        if nearly := int(((part[a] != part[b]) & (part[a] != "") & (part[b] != "")).sum()):
            lines.append(f"fold {number}: {counted(nearly, 'such pair')} across its parts")
    return lines


def _part_of_each(records: Records, fold: Fold) -> np.ndarray:
    """object [N]: 'train', 'val', 'test' or '' of each image."""
    part = np.full(len(records), "", dtype=object)
    for split in SPLITS:
        part[getattr(fold, split)] = split
    return part


def _listed(
    records: Records, groups: Sequence[Sequence[int]], part: np.ndarray | None = None, sign: str = " = "
) -> str:
    """A few groups of images that are alike, with the part that each is in."""
    names = [
        sign.join(f"{records.paths[i]}{'' if part is None else f' ({part[i]})' if part[i] else ''}" for i in group)
        for group in groups[:_SHOWN]
    ]
    return "; ".join(names) + (f"; and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else "")
