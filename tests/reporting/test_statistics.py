"""AUCs against their definition as the share of pairs in the right order."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from dinojax.reporting.predictions import Question
from dinojax.reporting.statistics import mean_and_sd, question_auc, roc_auc, youden_threshold

RNG = np.random.default_rng(0)


def share_of_pairs(positive: np.ndarray, negative: np.ndarray) -> float:
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in itertools.product(positive, negative)]
    return float(np.mean(pairs))


def question(labels: Sequence[int] | np.ndarray, scores: Sequence[float] | np.ndarray, required: bool = True):
    return Question("yes", "no", np.asarray(labels) == 1, np.asarray(scores, np.float64), required)


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    labels, scores = RNG.integers(0, 2, 40), RNG.integers(0, 8, 40) / 8  # with ties
    expected = share_of_pairs(scores[labels == 1], scores[labels == 0])
    assert question_auc(question(labels, scores)) == pytest.approx(expected, abs=1e-12)


def test_auc_of_several_questions_is_their_mean() -> None:
    labels, scores = np.arange(30) % 3, RNG.dirichlet(np.ones(3), 30)
    each = [share_of_pairs(scores[labels == c, c], scores[labels != c, c]) for c in range(3)]
    asked = [question(labels == c, scores[:, c]) for c in range(3)]
    assert roc_auc(asked) == pytest.approx(np.mean(each), abs=1e-12)


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], []])
def test_no_auc_without_a_positive_and_a_negative_case(labels: list[int]) -> None:
    one_sided = question(labels, RNG.uniform(size=len(labels)))
    assert question_auc(one_sided) is None
    assert youden_threshold([one_sided]) is None


def test_a_class_without_cases_leaves_no_auc_and_a_label_without_both_values_is_left_out() -> None:
    defined, absent = ([0, 1], [0.2, 0.9]), ([0, 0], [0.1, 0.2])
    assert roc_auc([question(*defined), question(*absent)]) is None
    assert roc_auc([question(*defined, required=False), question(*absent, required=False)]) == 1.0
    assert roc_auc([question(*absent, required=False)]) is None


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
    assert youden_threshold([question(labels, positive)]) == pytest.approx(expected)


def test_youden_threshold_stays_a_score_where_nothing_separates() -> None:
    assert youden_threshold([question([1, 0], [0.1, 0.8])]) in (0.1, 0.8)
    assert youden_threshold([question([0, 1], [0.1, 0.8])] * 2) is None
