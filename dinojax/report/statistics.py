"""Discrimination of scores: ROC AUC by fold and pooled, and thresholds chosen on validation cases."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Area under the ROC curve; with more than two classes, the mean over classes of each against the rest.

    Args:
      labels: int [N], places in the classes.
      scores: float [N, C], probabilities that sum to 1. Of two classes the last is the positive one.

    Returns:
      In 0..1; None where a class has no case, as the AUC is not defined there.
    """
    classes = scores.shape[1]
    if len(np.unique(labels)) < classes:
        return None
    if classes == 2:
        return float(roc_auc_score(labels, scores[:, 1]))
    return float(roc_auc_score(labels, scores, multi_class="ovr", average="macro", labels=range(classes)))


def mean_and_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n − 1) of the values that are defined.

    The SD over folds describes their spread. It is no confidence interval: the folds' training sets overlap
    (Nadeau & Bengio 2003).

    Returns:
      None for a mean of no value and for an SD of fewer than two.
    """
    defined = [value for value in values if value is not None]
    mean = float(np.mean(defined)) if defined else None
    return mean, float(np.std(defined, ddof=1)) if len(defined) > 1 else None


def youden_threshold(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """The threshold with the largest sensitivity + specificity − 1 (Youden 1950); the highest of several.

    A case is called positive at or above it. Choose it on validation cases and apply it to test cases.

    Args:
      labels: int [N].
      scores: float [N, C], as for `roc_auc`.

    Returns:
      One of the positive class's scores; None with more than two classes, or where one of the two has no case.
    """
    if scores.shape[1] != 2 or len(np.unique(labels)) < 2:
        return None
    false_positives, true_positives, thresholds = roc_curve(labels, scores[:, 1], drop_intermediate=False)
    # The first point calls nothing positive; its threshold is infinite.
    return float(thresholds[1:][np.argmax((true_positives - false_positives)[1:])])
