"""AUCs against their definition as the share of pairs in the right order."""

import itertools

import numpy as np
import pytest

from dinojax.report.statistics import mean_and_sd, roc_auc, youden_threshold

RNG = np.random.default_rng(0)


def share_of_pairs(positive: np.ndarray, negative: np.ndarray) -> float:
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in itertools.product(positive, negative)]
    return float(np.mean(pairs))


def test_binary_auc_is_that_of_the_last_class() -> None:
    labels = RNG.integers(0, 2, 40)
    positive = RNG.integers(0, 8, 40) / 8  # with ties
    expected = share_of_pairs(positive[labels == 1], positive[labels == 0])
    assert roc_auc(labels, np.stack([1 - positive, positive], 1)) == pytest.approx(expected, abs=1e-12)


def test_auc_of_several_classes_is_the_mean_of_each_against_the_rest() -> None:
    labels = np.arange(30) % 3
    scores = RNG.dirichlet(np.ones(3), 30)
    each = [share_of_pairs(scores[labels == c, c], scores[labels != c, c]) for c in range(3)]
    assert roc_auc(labels, scores) == pytest.approx(np.mean(each), abs=1e-12)


@pytest.mark.parametrize("classes", [2, 3])
def test_no_auc_without_a_case_of_every_class(classes: int) -> None:
    scores = RNG.dirichlet(np.ones(classes), 6)
    assert roc_auc(np.arange(6) % (classes - 1), scores) is None


def test_sd_is_that_of_a_sample_and_missing_values_are_left_out() -> None:
    assert mean_and_sd([0.6, None, 0.8]) == pytest.approx((0.7, 0.02**0.5))
    assert mean_and_sd([0.6, None]) == (0.6, None)
    assert mean_and_sd([None]) == (None, None)


def test_youden_threshold_is_the_best_of_all() -> None:
    labels = RNG.integers(0, 2, 50)
    positive = RNG.integers(0, 12, 50) / 12 + 0.2 * labels

    def youden(threshold: float) -> float:
        called = positive >= threshold
        return float(called[labels == 1].mean() - called[labels == 0].mean())

    best = max(youden(score) for score in positive)
    expected = max(score for score in positive if youden(score) == pytest.approx(best))
    assert youden_threshold(labels, np.stack([1 - positive, positive], 1)) == pytest.approx(expected)


def test_youden_threshold_stays_a_score_where_nothing_separates() -> None:
    scores = np.asarray([[0.9, 0.1], [0.2, 0.8]])
    assert youden_threshold(np.asarray([1, 0]), scores) in (0.1, 0.8)
    assert youden_threshold(np.asarray([1, 1]), scores) is None
    assert youden_threshold(np.asarray([0, 1, 2]), np.eye(3)) is None
