"""Losses, probabilities and memberships of each kind of task against SciPy and scikit-learn."""

from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from dinojax.protocols.task import Task

RNG = np.random.default_rng(0)
BINARY = Task("binary", ("no", "yes"))
THREE = Task("multi-class", ("a", "b", "c"))
LABELS = Task("multi-label", ("edema", "effusion", "nodule"))
GAPS = np.asarray([[1, 0, np.nan], [0, np.nan, 1], [1, 1, 0], [np.nan, 0, 0], [0, 1, np.nan]], np.float32)


@pytest.mark.parametrize("task", [BINARY, THREE])
def test_single_labels(task: Task) -> None:
    classes = len(task.classes)
    logits, labels = RNG.normal(size=(9, task.outputs)).astype(np.float32), (np.arange(9) % classes).astype(np.int32)
    expected = softmax(logits.astype(float), 1) if classes == 3 else np.hstack([expit(-logits), expit(logits)])
    np.testing.assert_allclose(task.probabilities(logits), expected, rtol=1e-6)
    assert task.validation_loss(logits, labels) == pytest.approx(log_loss(labels, expected), rel=1e-6)
    assert float(task.loss(logits, labels)) == pytest.approx(log_loss(labels, expected), rel=1e-5)
    np.testing.assert_array_equal(task.memberships(labels), np.eye(classes)[labels])


def test_unknown_entries_of_several_labels_have_no_weight() -> None:
    logits = RNG.normal(size=(5, 3)).astype(np.float32)
    known = ~np.isnan(GAPS)
    expected = log_loss(GAPS[known], expit(logits.astype(float))[known])
    np.testing.assert_allclose(LABELS.probabilities(logits), expit(logits.astype(float)), rtol=1e-6)
    assert LABELS.validation_loss(logits, GAPS) == pytest.approx(expected, rel=1e-6)
    value, gradient = jax.value_and_grad(LABELS.loss)(logits, GAPS)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    wanted = np.where(known, expit(logits) - np.nan_to_num(GAPS), 0) / known.sum()
    np.testing.assert_allclose(gradient, wanted, atol=1e-7)


def test_nothing_known_is_no_loss_and_no_gradient() -> None:
    nothing = np.full((2, 3), np.nan, np.float32)
    value, gradient = jax.value_and_grad(LABELS.loss)(np.ones((2, 3), np.float32), nothing)
    assert float(value) == 0
    assert not np.asarray(gradient).any()
    assert np.isnan(LABELS.validation_loss(np.ones((2, 3)), nothing))


def test_probabilities_of_far_logits_keep_their_order() -> None:
    scores = BINARY.probabilities(np.asarray([[20.0], [21.0], [-800.0]], np.float32))
    assert scores[0, 1] < scores[1, 1] < 1
    assert scores[2].tolist() == [1.0, 0.0]
    assert LABELS.probabilities(np.asarray([[20.0, 21.0, -800.0]], np.float32))[0].tolist()[2] == 0


def test_where_an_auc_is_defined() -> None:
    assert THREE.has_auc(np.asarray([0, 1, 2]))
    assert not THREE.has_auc(np.asarray([0, 1, 1]))
    assert LABELS.has_auc(GAPS)
    assert not LABELS.has_auc(np.asarray([[1, np.nan, 0], [1, 0, np.nan]], np.float32))


def test_a_method_of_single_labels_learns_each_label_from_its_known_cases() -> None:
    features, labels = RNG.normal(size=(40, 4)), RNG.integers(0, 2, (40, 3)).astype(np.float32)
    labels[RNG.random((40, 3)) < 0.3] = np.nan

    def score(rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
        return LogisticRegression().fit(features[rows], classes).predict_proba(features)

    found = LABELS.score_by_label(labels, score)
    for place, column in enumerate(labels.T):
        known = ~np.isnan(column)
        expected = LogisticRegression().fit(features[known], column[known]).predict_proba(features)[:, 1]
        np.testing.assert_allclose(found[:, place], expected, rtol=1e-9)


def test_only_the_task_knows_its_kinds() -> None:
    package = Path(__file__).parents[2] / "dinojax"
    naming = {path.name for path in package.rglob("*.py") if '"multi-label"' in path.read_text()}
    assert naming == {"task.py"}
