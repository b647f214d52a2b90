"""Images that a data set holds twice: equal files, identical pixels, near duplicates."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dinojax.data.fingerprints import fingerprint
from dinojax.data.near import near_pairs
from dinojax.data.records import Records
from dinojax.runs.files import write_text

LIMIT = 20_000
"""Of more images than this none are compared unless it is asked for: each would have to be decoded once more."""


def find_duplicates(records: Records) -> list[list[int]]:
    """Groups of images that are equal: the same frame of files with the same bytes, under different names.

    Only files of equal size are read. A file that cannot be read equals no other.

    Returns:
      Places in the records, increasing in each group, the groups by their first image.
    """
    by_size: dict[Hashable, list[int]] = defaultdict(list)
    for index in range(len(records)):
        try:
            size = records.file(index).stat().st_size
        except OSError:
            continue
        by_size[size, int(records.frames[index])].append(index)
    by_content: dict[Hashable, list[int]] = defaultdict(list)
    for (size, frame), places in by_size.items():  # type: ignore[misc]
        for index in places if len(places) > 1 else ():
            try:
                with records.file(index).open("rb") as file:
                    content = hashlib.file_digest(file, "blake2b").digest()
            except OSError:
                continue
            by_content[content, size, frame].append(index)
    return sorted(group for group in by_content.values() if len(group) > 1)


def equal_files(records: Records, places: Sequence[int] | np.ndarray) -> str:
    """The first of these images that are equal, `a.png = b.png`, or an empty text; a place that occurs twice is one."""
    chosen = records.take(np.unique(places))
    groups = find_duplicates(chosen)
    return " = ".join(str(chosen.paths[place]) for place in groups[0][:2]) if groups else ""


class Twins(NamedTuple):
    """Which images of a data set are the same, or nearly."""

    first: np.ndarray
    """int64 [N], place of the first image with the same pixels: its own, where it is the first or the only one."""
    near: np.ndarray
    """int64 [P, 2], pairs of near duplicates whose pixels differ; of identical ones, the first stands for all."""
    pixels: np.ndarray
    """uint64 [N], `pixel_hash` of each; 0 for one that cannot be decoded."""

    def groups(self) -> list[list[int]]:
        """Places of the images with the same pixels, increasing; the groups by their first image."""
        return identical_groups(self.first)

    def take(self, kept: np.ndarray) -> "Twins":
        """Those of the images at the places `kept`, distinct and increasing, as places among them."""
        place = np.full(len(self.first), -1)
        place[kept] = np.arange(len(kept))
        near = place[self.near]
        _, starts, inverse = np.unique(self.first[kept], return_index=True, return_inverse=True)
        return Twins(starts[inverse], near[(near >= 0).all(axis=1)], self.pixels[kept])


def find_twins(records: Records, threads: int) -> Twins:
    """Decodes all images once, and compares them. One that cannot be decoded is like no other.

    Args:
      records: the images.
      threads: that decode.
    """
    found = fingerprint(records, threads)
    # Two images that show nothing, such as empty slices, are not the same case.
    first = first_equal(found.pixels, np.flatnonzero(~found.comparable))
    pairs = near_pairs(found, chosen=np.unique(first))
    return Twins(first, np.stack([pairs.a, pairs.b], axis=1), found.pixels)


def first_equal(hashes: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """Place of the first of the hashes (uint64 [N]) that equals each; those at the places `apart` equal no other."""
    first = np.arange(len(hashes))
    others = np.setdiff1d(first, apart)
    _, starts, inverse = np.unique(hashes[others], return_index=True, return_inverse=True)
    first[others] = others[starts[inverse]]
    return first


def identical_groups(first: np.ndarray) -> list[list[int]]:
    """Places that have the same `first`, in groups of two and more, ordered by it."""
    members: dict[int, list[int]] = defaultdict(list)
    for place in np.flatnonzero(np.bincount(first, minlength=len(first))[first] > 1).tolist():
        members[int(first[place])].append(place)
    return sorted(members.values())


def labels_differ(records: Records, group: Sequence[int]) -> bool:
    """Whether the images at these places have different labels; an unknown one equals an unknown one."""
    if records.labels is None:
        return False
    labels = records.labels[group]
    return not np.array_equal(labels, np.broadcast_to(labels[0], labels.shape), equal_nan=records.multilabel)


class Dropped(NamedTuple):
    """Images that are left out because others have the same pixels."""

    kept: np.ndarray
    """int64 [n], increasing: the places that remain."""
    rows: list[dict[str, str]]
    """`path`, `frame` and `why` of each that is left out."""


def drop_duplicates(records: Records, twins: Twins) -> Dropped:
    """Leaves one of each group of identical images, the first; none of a group whose labels differ.

    Which of several labels is right cannot be told from the image, so none of its copies may teach or test one.
    """
    rows, out = [], []
    for group in twins.groups():
        contrary = labels_differ(records, group)
        for place in group if contrary else group[1:]:
            others = [str(records.paths[other]) for other in group if other != place]
            why = f"labels differ: same pixels as {', '.join(others)}" if contrary else f"same pixels as {others[0]}"
            frame = records.frames[place]
            rows.append({"path": str(records.paths[place]), "frame": "" if frame < 0 else str(frame), "why": why})
            out.append(place)
    return Dropped(np.setdiff1d(np.arange(len(records)), out), rows)


def write_dropped(rows: Sequence[Mapping[str, str]], out: Path) -> None:
    """Writes `dropped_duplicates.csv` into a run's directory, where any were dropped."""
    if rows:
        write_text(out / "dropped_duplicates.csv", pd.DataFrame(list(rows)).to_csv(index=False))
