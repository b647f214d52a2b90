"""Near duplicates: pairs of images whose fingerprints are alike, found without comparing every two in Python."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dinojax.data.fingerprints import Fingerprints
from dinojax.errors import RunError

DISTANCE = 8
"""Bits in which two perceptual hashes of near duplicates may differ; measured, see BENCHMARKS.md."""
CORRELATION = 0.98
"""What the small grey images of near duplicates reach; without it one pair of X-rays in 1,500 is a false alarm."""
MOST = 5_000_000
"""Pairs that are kept; more say that the threshold is too loose for these images."""
_BITS = 63
_ALL_AT_ONCE = 30_000
"""So many hashes are compared each with each, in about a second; more are sorted into bands first."""
_FEW = 0.05
_BLOCK = 1 << 22  # comparisons in memory together


class NearPairs(NamedTuple):
    """Pairs of images, the lower place first, in order."""

    a: np.ndarray
    """int64 [P]"""
    b: np.ndarray
    """int64 [P]"""
    distance: np.ndarray
    """int64 [P], bits in which their perceptual hashes differ."""
    correlation: np.ndarray
    """float32 [P], of their small grey images."""


def near_pairs(
    found: Fingerprints,
    distance: int = DISTANCE,
    correlation: float = CORRELATION,
    chosen: np.ndarray | None = None,
    asked: np.ndarray | None = None,
) -> NearPairs:
    """Pairs of images that are nearly the same picture, but not pixel by pixel.

    Args:
      found: fingerprints. Flat and unreadable images are in no pair.
      distance: the most bits in which their perceptual hashes differ.
      correlation: the least of their small grey images.
      chosen: int [n], places of the images to compare; None means all.
      asked: bool [N]; a pair has one of these at least. None means that every pair counts.

    Raises:
      RunError: there are more than `MOST` such pairs.
    """
    places = np.sort(np.arange(len(found.pixels)) if chosen is None else chosen)
    places = places[found.comparable[places]]
    kept: list[tuple[np.ndarray, ...]] = []
    total = 0
    for i, j in hamming_pairs(found.perceptual[places], distance, None if asked is None else asked[places]):
        a, b = places[i], places[j]
        alike = _correlations(found.small, a, b)
        near = (alike >= correlation) & (found.pixels[a] != found.pixels[b])
        kept.append((a[near], b[near], alike[near]))
        total += int(near.sum())
        if total > MOST:
            raise RunError(
                f"more than {MOST:,} pairs of images are near duplicates by --near_distance {distance} and "
                f"--near_correlation {correlation:g}; lower the one, raise the other, or give --near false"
            )
    empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    a, b, alike = (np.concatenate(column) for column in zip(empty, *kept, strict=True))
    order = np.lexsort((b, a))
    a, b = a[order], b[order]
    bits = np.bitwise_count(found.perceptual[a] ^ found.perceptual[b]).astype(np.int64)
    return NearPairs(a, b, bits, alike[order])


def hamming_pairs(
    hashes: np.ndarray, distance: int, asked: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of hashes that differ in so many bits at most, in blocks; each pair once, and none is missed.

    Up to 30,000 hashes are compared each with each. Of more, the 63 bits are cut into `distance` + 1 bands: two hashes
    that differ in no more bits than `distance` agree in one band at least (pigeonhole), so only those that have a band
    in common are compared (multi-index hashing; Norouzi et al. 2012, doi 10.1109/CVPR.2012.6248043).

    Args:
      hashes: uint64 [N], of which the highest bit is 0.
      distance: in bits.
      asked: bool [N]; a pair has one of these at least. Where they are few, they alone are compared with the rest.

    Yields:
      Places, int64 [n] twice, the lower and the higher of each pair.
    """
    everything = np.arange(len(hashes))
    if asked is not None and asked.sum() <= _FEW * len(hashes):
        yield from _close_to(hashes, asked, distance)
        return
    asked = np.ones(len(hashes), bool) if asked is None else asked
    if len(hashes) <= _ALL_AT_ONCE:
        for i, j in _close(hashes, everything, distance):
            wanted = asked[i] | asked[j]
            yield i[wanted], j[wanted]
        return
    edges = np.linspace(0, _BITS, distance + 2).round().astype(int).tolist()
    masks = [np.uint64((1 << high) - (1 << low)) for low, high in itertools.pairwise(edges)]
    for band, mask in enumerate(masks):
        values = hashes & mask
        order = np.argsort(values, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(values[order])) + 1):
            if len(group) < 2:
                continue
            for i, j in _close(hashes, group, distance):
                differing = hashes[i] ^ hashes[j]
                # Who agrees in a band before this one has been found there.
                new = asked[i] | asked[j]
                for earlier in masks[:band]:
                    new &= (differing & earlier) != 0
                yield i[new], j[new]


def _close(hashes: np.ndarray, group: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs within a group of places, which increase, in blocks of rows."""
    members, rows = hashes[group], max(_BLOCK // len(group), 1)
    for first in range(0, len(group) - 1, rows):
        block = members[first : first + rows]
        i, j = np.nonzero(np.bitwise_count(block[:, None] ^ members[None, first + 1 :]) <= distance)
        above = j >= i  # column j stands for member first + 1 + j
        yield group[first + i[above]], group[first + 1 + j[above]]


def _close_to(hashes: np.ndarray, asked: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of which one at least is asked for, in blocks of these."""
    places, rows = np.flatnonzero(asked), max(_BLOCK // max(len(hashes), 1), 1)
    for first in range(0, len(places), rows):
        block = places[first : first + rows]
        i, j = np.nonzero(np.bitwise_count(hashes[block, None] ^ hashes[None, :]) <= distance)
        i = block[i]
        once = (i < j) | (~asked[j])  # of two that are asked for, and both compared with all
        once &= i != j
        yield np.minimum(i, j)[once], np.maximum(i, j)[once]


def _correlations(small: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the small images `a` and `b` (int [P]), float32 [P]."""
    made = np.empty(len(a), np.float32)
    for first in range(0, len(a), 4096):
        part = slice(first, first + 4096)
        x, y = (small[places[part]].reshape(len(places[part]), -1).astype(np.float32) for places in (a, b))
        x, y = (values - values.mean(axis=1, keepdims=True) for values in (x, y))
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        made[part] = (x * y).sum(axis=1) / np.maximum(norms, 1e-6)
    return made
