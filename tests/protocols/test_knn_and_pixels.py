"""Neighbours and pixels against computations written out."""

import numpy as np
from PIL import Image

from dinojax.data.splits import Fold
from dinojax.protocols.knn import accuracy, knn_majority, knn_weighted
from dinojax.protocols.pixels import grey_pixels, logistic_scores, score_fold

RNG = np.random.default_rng(0)
TRAIN, LABELS, TEST = RNG.normal(size=(60, 5)), np.arange(60) % 3, RNG.normal(size=(9, 5))


def votes(k: int, temperature: float | None) -> np.ndarray:
    """Shares of the votes, neighbour by neighbour."""
    shares = np.zeros((len(TEST), 3))
    for row, case in enumerate(TEST):
        similarity = TRAIN @ case / np.linalg.norm(TRAIN, axis=1) / np.linalg.norm(case)
        for neighbour in np.argsort(-similarity)[:k]:
            weight = 1.0 if temperature is None else np.exp(similarity[neighbour] / temperature)
            shares[row, LABELS[neighbour]] += weight
    return shares / shares.sum(1, keepdims=True)


def test_weighted_neighbours() -> None:
    np.testing.assert_allclose(knn_weighted(TRAIN, LABELS, TEST), votes(20, 0.07), atol=1e-9)


def test_majority_of_neighbours() -> None:
    np.testing.assert_allclose(knn_majority(TRAIN, LABELS, TEST, k=7), votes(7, None), atol=1e-12)


def test_accuracy() -> None:
    assert accuracy(np.asarray([0, 1, 1]), np.asarray([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])) == 2 / 3


def test_pixels_are_luminance_resized_by_pillow() -> None:
    colour = RNG.integers(0, 256, (50, 40, 3), dtype=np.uint8)
    expected = Image.fromarray(colour).convert("L").resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(grey_pixels([colour]) * 255, np.asarray(expected, np.float32).reshape(1, -1))
    grey = colour[:, :, :1]
    assert grey_pixels([grey, colour], side=8).shape == (2, 64)


def test_a_baseline_learns_from_the_training_part_alone() -> None:
    labels = np.arange(40) % 2
    features = RNG.normal(size=(40, 6)) + labels[:, None]
    fold = Fold(train=np.arange(20), val=np.arange(20, 30), test=np.arange(30, 40))
    before = score_fold(logistic_scores, features, labels, fold)
    features[20:31] *= 100
    labels[20:] = 0
    np.testing.assert_array_equal(score_fold(logistic_scores, features, labels, fold)[1:], before[1:])
    assert before.shape == (10, 2)
