"""What data sets share: identical images, near duplicates and patients, inside one and between them."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dinojax.config.audit import AuditConfig
from dinojax.data.duplicates import digest, first_equal, identical_groups
from dinojax.data.fingerprints import Fingerprints
from dinojax.data.near import near_pairs
from dinojax.data.opening import open_images
from dinojax.data.reading import read_labelled, read_records
from dinojax.data.records import SPLITS, Records
from dinojax.errors import RunError

KINDS = ("file", "pixels", "near", "patient")
"""Equal files, identical pixels, near duplicates, and a patient on both sides."""
PLACES = ("across parts", "within", "between data sets", "corpus and test", "corpus")
"""Where the two images of a pair stand; `corpus` is against a part that tests nothing."""
_ALL_PAIRS = 30  # images of a group that are paired each with each


class Audited(NamedTuple):
    """One of the data sets."""

    name: str
    records: Records
    parts: np.ndarray
    """object [F, N]: 'train', 'val', 'test' or '' of each image in each fold; no row where no parts are given."""
    corpus: bool
    bad: tuple[tuple[str, str], ...]
    """(path, reason) of the files whose headers cannot be read."""


class Pairs(NamedTuple):
    """Images that are alike, as places in all data sets one after the other."""

    a: np.ndarray
    """int64 [P]"""
    b: np.ndarray
    """int64 [P]"""
    kind: np.ndarray
    """object [P]"""
    distance: np.ndarray
    """int64 [P], of perceptual hashes; 0 where the pixels are identical."""
    correlation: np.ndarray
    """float [P]"""
    patient: np.ndarray
    """object [P], id of the patient that both are of, in pairs of that kind; else ''."""


def read_audited(data: str, config: AuditConfig, corpus: bool) -> Audited:
    """Lists a data set with the parts that it gives; one that has no labels is read without, which is printed."""
    if corpus:
        # Of a corpus, patients count only where they are those of the data sets.
        group_regex = config.group_regex if config.same_patients else None
        records = read_records(
            data, labelled=False, on_bad_file="skip", group_regex=group_regex, salt_file=config.salt_file
        )
        records, headers = open_images(records, config, on_bad_file="skip")
        return Audited(data, records, np.empty((0, len(records)), object), corpus, headers.bad)
    try:
        records = read_labelled(data, config, positive_needed=False, on_bad_file="skip")
    except RunError as error:
        if config.group_regex and "finds no patient" in str(error):  # it is of another of the data sets
            print(f"{data}: patients are unknown: {error}")
            return read_audited(data, dataclasses.replace(config, group_regex=None), corpus)
        records = read_records(
            data,
            labelled=False,
            data_root=config.data_root,
            path_column=config.path_column,
            salt_file=config.salt_file,
            group_regex=config.group_regex,
            on_bad_file="skip",
        )
        print(f"{data} is read without labels and parts: {error}")
    records, headers = open_images(records, config, on_bad_file="skip")
    parts = np.full((len(records.folds), len(records)), "", dtype=object)
    for row, fold in zip(parts, records.folds, strict=True):
        for split in SPLITS:
            row[getattr(fold, split)] = split
    if not len(parts) and records.splits is not None and (records.splits != "").any():
        parts = np.array([records.splits.tolist()], dtype=object)
    return Audited(data, records, parts, corpus, headers.bad)


class Audit:
    """Several data sets with the fingerprints of their images, and the pairs among them.

    Args:
      sets: the data sets.
      found: their fingerprints.
    """

    def __init__(self, sets: Sequence[Audited], found: Sequence[Fingerprints]) -> None:
        sizes = [len(one.records) for one in sets]
        self.sets = tuple(sets)
        self.of = np.repeat(np.arange(len(sets)), sizes)
        """int64 [N], which data set each image is of."""
        self.place = np.concatenate([np.arange(size) for size in sizes])
        """int64 [N], its place there."""
        starts = np.cumsum([0, *sizes]).tolist()
        unreadable = {starts[k] + i: why for k, one in enumerate(found) for i, why in one.unreadable.items()}
        self.found = Fingerprints(
            np.concatenate([one.pixels for one in found]),
            np.concatenate([one.small for one in found]),
            np.concatenate([one.perceptual for one in found]),
            np.concatenate([one.flat for one in found]),
            unreadable,
        )
        self.corpus = np.array([one.corpus for one in sets])[self.of]
        """bool [N]"""
        cells = [[k, *one.parts[:, i]] for k, one in enumerate(sets) for i in range(len(one.records))]
        self._cell = np.unique(["/".join(map(str, cell)) for cell in cells], return_inverse=True)[1]

    @property
    def readable(self) -> np.ndarray:
        """bool [N]"""
        readable = np.ones(len(self.of), bool)
        readable[list(self.found.unreadable)] = False
        return readable

    def pairs(self, near: bool, distance: int, correlation: float, same_patients: bool) -> Pairs:
        """All pairs but those inside the corpora and between them.

        A large group of identical images is not paired each with each, but each with one of every part.

        Args:
          near: look for near duplicates too.
          distance, correlation: as of `near_pairs`.
          same_patients: an id in two data sets is one patient.

        Raises:
          RunError: there are too many near duplicates to list.
        """
        first = first_equal(self.found.pixels, np.array(list(self.found.unreadable), np.int64))
        rows: list[tuple[int, int, str, int, float, str]] = []
        for group in identical_groups(first):
            if not self.corpus[group].all():
                rows += [(a, b, self._same(a, b), 0, 1.0, "") for a, b in self._paired(group)]
        if near:
            # Of identical images in the same parts, one stands for all.
            chosen = np.unique(np.stack([first, self._cell]), axis=1, return_index=True)[1]
            found = near_pairs(self.found, distance, correlation, chosen, ~self.corpus)
            rows += [
                (a, b, "near", d, round(r, 4), "") for a, b, d, r in zip(*(x.tolist() for x in found), strict=True)
            ]
        rows += self._patients(same_patients)
        columns = list(zip(*rows, strict=True)) if rows else [()] * 6
        types = (np.int64, np.int64, object, np.int64, np.float64, object)
        return Pairs(*(np.array(column, dtype) for column, dtype in zip(columns, types, strict=True)))

    def crossed(self, pairs: Pairs) -> list[list[int]]:
        """Of each pair, the folds (from 1) of its data set that have it in two parts, or where a corpus meets a test.

        Of a pair between data sets there are none.
        """
        made = []
        for a, b in zip(pairs.a, pairs.b, strict=True):
            sides = [self.sets[self.of[x]].parts[:, self.place[x]] for x in (a, b) if not self.corpus[x]]
            if len(sides) == 1:
                made.append((np.flatnonzero(sides[0] == "test") + 1).tolist())
            elif self.of[a] == self.of[b]:
                x, y = sides
                made.append((np.flatnonzero((x != y) & (x != "") & (y != "")) + 1).tolist())
            else:
                made.append([])
        return made

    def where(self, pairs: Pairs, crossed: Sequence[Sequence[int]]) -> list[str]:
        """One of `PLACES` for each pair. All images of a data set without parts may be tested on."""
        made = []
        for a, b, folds in zip(pairs.a, pairs.b, crossed, strict=True):
            if self.corpus[a] or self.corpus[b]:
                side = self.sets[self.of[a if self.corpus[b] else b]]
                made.append("corpus and test" if folds or not len(side.parts) else "corpus")
            elif self.of[a] != self.of[b]:
                made.append("between data sets")
            else:
                made.append("across parts" if folds else "within")
        return made

    def table(self, pairs: Pairs) -> pd.DataFrame:
        """`audit.csv`: a row a pair, what matters most first; see the columns."""
        crossed = self.crossed(pairs)
        made: dict[str, list[Any]] = {
            "kind": pairs.kind.tolist(),
            "where": self.where(pairs, crossed),
            "folds": [" ".join(map(str, folds)) for folds in crossed],
            "distance": ["" if kind == "patient" else d for kind, d in zip(pairs.kind, pairs.distance, strict=True)],
            "correlation": ["" if k == "patient" else r for k, r in zip(pairs.kind, pairs.correlation, strict=True)],
            "patient_id": pairs.patient.tolist(),
        }
        for side, places in (("a", pairs.a), ("b", pairs.b)):
            images = [(self.sets[self.of[x]], int(self.place[x])) for x in places]
            made |= {
                f"data_{side}": [one.name for one, _ in images],
                f"path_{side}": [str(one.records.paths[i]) for one, i in images],
                f"frame_{side}": ["" if one.records.frames[i] < 0 else int(one.records.frames[i]) for one, i in images],
                f"part_{side}": [_part(one, i, folds) for (one, i), folds in zip(images, crossed, strict=True)],
                f"label_{side}": [_label(one.records, i) for one, i in images],
            }
        table = pd.DataFrame({**made, "labels_differ": self._labels_differ(pairs), "a": pairs.a, "b": pairs.b})
        ranks = {"kind": KINDS, "where": PLACES, "labels_differ": ("true", "false", "")}
        where, kind, differ = (
            [ranks[name].index(value) for value in table[name].tolist()] for name in ("where", "kind", "labels_differ")
        )
        order = np.lexsort([pairs.b, pairs.a, -pairs.correlation, pairs.distance, differ, kind, where])
        return table.iloc[order].reset_index(drop=True)

    def _labels_differ(self, pairs: Pairs) -> list[str]:
        """'true' or 'false', '' where the two have no labels of the same classes."""
        made = []
        for a, b in zip(pairs.a, pairs.b, strict=True):
            x, y = (self.sets[self.of[side]].records for side in (a, b))
            known = x.labels is not None and y.labels is not None and x.classes == y.classes
            differ = known and _label(x, int(self.place[a])) != _label(y, int(self.place[b]))
            made.append(str(bool(differ)).lower() if known else "")
        return made

    def _paired(self, group: Sequence[int]) -> Iterator[tuple[int, int]]:
        """The pairs of a group of identical images that are listed."""
        if len(group) <= _ALL_PAIRS:
            listed = itertools.combinations(group, 2)
        else:
            one_of_each = {int(self._cell[x]): x for x in reversed(group)}.values()
            listed = {(min(x, y), max(x, y)) for x in group for y in one_of_each if x != y}
        yield from ((a, b) for a, b in sorted(listed) if not (self.corpus[a] and self.corpus[b]))

    def _same(self, a: int, b: int) -> str:
        """'file' if two images of the same pixels are the same frame of equal files, else 'pixels'."""
        x, y = ((self.sets[self.of[side]].records, int(self.place[side])) for side in (a, b))
        same = x[0].frames[x[1]] == y[0].frames[y[1]] and _digest(*x) == _digest(*y)
        return "file" if same else "pixels"

    def _patients(self, same_patients: bool) -> Iterator[tuple[int, int, str, int, float, str]]:
        """A pair of each patient's images that stand on two sides, an example for each two sides."""
        members: dict[tuple[int, str], dict[int, int]] = {}
        for x in range(len(self.of)):
            one = self.sets[self.of[x]]
            if one.records.patients is not None:
                source = -1 if same_patients else int(self.of[x])
                cells = members.setdefault((source, str(one.records.patients[self.place[x]])), {})
                cells.setdefault(int(self._cell[x]), x)
        for (_, patient), cells in members.items():
            for a, b in itertools.combinations(sorted(cells.values()), 2):
                apart = self.of[a] != self.of[b] and not (self.corpus[a] and self.corpus[b])
                x, y = (self.sets[self.of[side]].parts[:, self.place[side]] for side in (a, b))
                if apart or (self.of[a] == self.of[b] and ((x != y) & (x != "") & (y != "")).any()):
                    yield a, b, "patient", 0, 0.0, patient


def _digest(records: Records, index: int) -> bytes:
    try:
        return digest(records, index)
    except OSError:  # it was there a moment ago
        return str(records.file(index)).encode()


def _part(one: Audited, index: int, folds: Sequence[int]) -> str:
    """The part in the first fold in which it matters; '' where the folds are several and it matters in none."""
    if len(one.parts) == 1:
        return one.parts[0, index]
    return one.parts[folds[0] - 1, index] if folds and len(one.parts) else ""


def _label(records: Records, index: int) -> str:
    if records.labels is None:
        return ""
    if not records.multilabel:
        return records.classes[records.labels[index]]
    values = zip(records.classes, records.labels[index], strict=True)
    return ", ".join(f"{name} {value:g}" for name, value in values if not np.isnan(value))
