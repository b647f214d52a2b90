"""k nearest neighbours by cosine similarity, on frozen features or on pixels."""

from typing import Any

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

TEMPERATURE = 0.07


def knn_weighted(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, k: int = 20, temperature: float = TEMPERATURE
) -> np.ndarray:
    """Votes weighted by exp(cosine similarity / temperature), as DINO's code does (Caron et al. 2021, section 4.2.1).

    Args:
      train: float [N, D].
      labels: int [N], places in the classes; each of 0..C − 1 occurs.
      test: float [M, D].
      k: neighbours, at most N.
      temperature: 0.07 as published.

    Returns:
      float64 [M, C], each class's share of the votes.
    """
    # The similarity is at most 1; taking that off before exponentiating changes no share.
    return _shares(train, labels, test, k, lambda distances: np.exp(-distances / temperature))


def knn_majority(train: np.ndarray, labels: np.ndarray, test: np.ndarray, k: int = 20) -> np.ndarray:
    """One vote a neighbour; arguments and result as of `knn_weighted`. Ties go to the first class by `argmax`."""
    return _shares(train, labels, test, k, "uniform")


def accuracy(labels: np.ndarray, scores: np.ndarray) -> float:
    """Share of the cases, in 0..1, whose class has the highest score; labels int [M], scores float [M, C]."""
    return float((scores.argmax(axis=1) == labels).mean())


def _shares(train: np.ndarray, labels: np.ndarray, test: np.ndarray, k: int, weights: Any) -> np.ndarray:
    classifier = KNeighborsClassifier(min(k, len(train)), metric="cosine", algorithm="brute", weights=weights)
    return np.asarray(classifier.fit(train, labels).predict_proba(test))
