"""k nearest neighbours by cosine similarity, on frozen features or on pixels."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dinojax.data.records import Fold
from dinojax.errors import UsageError
from dinojax.protocols.study import Score, Scored, Unit
from dinojax.protocols.task import Task

TEMPERATURE = 0.07
_ROWS = 1024  # queries at a time: their similarities to all that is searched are held


class Neighbours(NamedTuple):
    """What is most similar to each of Q queries, most similar first."""

    places: np.ndarray
    """int [Q, k], in what was searched."""
    similarities: np.ndarray
    """float32 [Q, k]: cosine, -1..1; −inf where fewer than k could be found."""


def nearest(
    queries: np.ndarray,
    searched: np.ndarray,
    k: int,
    query_groups: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> Neighbours:
    """The k nearest neighbours of each query; of equally similar ones, the first in the table.

    Args:
      queries: float [Q, D].
      searched: float [N, D].
      k: neighbours; N at most are found.
      query_groups: [Q], such as the patient: the query's own group is excluded.
      groups: [N], of what is searched.
    """
    queries, searched = _unit(queries), _unit(searched)
    places, similarities = [], []
    for first in range(0, len(queries), _ROWS):
        rows = slice(first, first + _ROWS)
        similarity = queries[rows] @ searched.T
        if query_groups is not None:
            similarity[query_groups[rows, None] == groups] = -np.inf
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        places.append(order)
        similarities.append(np.take_along_axis(similarity, order, axis=1))
    return Neighbours(np.concatenate(places), np.concatenate(similarities))


def vote(neighbours: Neighbours, memberships: np.ndarray, temperature: float | None = TEMPERATURE) -> np.ndarray:
    """Each class's share of the neighbours' votes.

    Args:
      neighbours: of Q queries among N cases.
      memberships: float [N, C] of 0, 1 and NaN, from `Task.memberships`; NaN casts no vote.
      temperature: a vote weighs exp(cosine similarity / temperature), as DINO's code has it (Caron et al. 2021, arXiv
        2104.14294, section 4.2.1; 0.07 as published); None: all weigh the same.

    Returns:
      float64 [Q, C] in 0..1. Where no neighbour's label is known, the class's frequency among all known cases.
    """
    similarities = neighbours.similarities.astype(np.float64)
    # Relative to the nearest, whose vote would otherwise underflow at low temperatures; it changes no share.
    closest = similarities.max(axis=1, keepdims=True)
    relative = similarities - np.where(np.isfinite(closest), closest, 0)
    weights = np.isfinite(similarities) * 1.0 if temperature is None else np.exp(relative / temperature)
    votes = memberships[neighbours.places]
    known = ~np.isnan(votes)
    total = np.einsum("qk,qkc->qc", weights, known)
    share = np.einsum("qk,qkc->qc", weights, np.where(known, votes, 0)) / np.where(total > 0, total, 1)
    return np.where(total > 0, share, np.nanmean(memberships, axis=0))


@dataclasses.dataclass(frozen=True)
class Neighbourhood:
    """A setting: how many neighbours vote."""

    k: int

    @property
    def name(self) -> str:
        """Such as `k20`; names it in tables and files."""
        return f"k{self.k}"


def make_settings(ks: Sequence[int], folds: Sequence[Fold]) -> tuple[Neighbourhood, ...]:
    """A setting for each k.

    Raises:
      UsageError: a k is there twice, or a training part has fewer cases than neighbours are asked for.
    """
    if len(set(ks)) < len(ks):
        raise UsageError(f"ks {list(ks)}: must be different numbers")
    if max(ks) > (smallest := min(len(fold.train) for fold in folds)):
        raise UsageError(f"ks: {max(ks)} neighbours, but a training part has {smallest} cases only; lower ks")
    return tuple(Neighbourhood(k) for k in ks)


def protocol(features: np.ndarray, labels: np.ndarray, task: Task, temperature: float | None) -> Score:
    """Scores a fold's validation and test part by the neighbours among its training part.

    Args:
      features: float [N, D], of all cases of the task.
      labels: of the same.
      task: of the labels.
      temperature: as of `vote`.
    """
    memberships = task.memberships(labels)

    def score(unit: Unit) -> Scored:
        train, k = unit.fold.train, unit.setting.k
        val, test = (
            vote(nearest(features[part], features[train], k), memberships[train], temperature)
            for part in (unit.fold.val, unit.fold.test)
        )
        return Scored(val, test)

    return score


def _unit(x: np.ndarray) -> np.ndarray:
    """float32 of length 1; zeros stay zeros."""
    x = x.astype(np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
