"""Discrimination of scores: areas under ROC curves, their spread, and thresholds chosen on validation cases."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

from dinojax.reporting.predictions import Question


def question_auc(question: Question) -> float | None:
    """Area under one ROC curve, in 0..1; None without a positive or without a negative case."""
    if question.labels.all() or not question.labels.any():
        return None
    return float(roc_auc_score(question.labels, question.scores))


def roc_auc(questions: Sequence[Question]) -> float | None:
    """Mean area under the ROC curves of all questions.

    Returns:
      In 0..1. None where a class has no case; of labels, which may be unknown, the mean is over those that have both
      values, and None if none has.
    """
    aucs = [question_auc(question) for question in questions]
    if any(auc is None and question.required for auc, question in zip(aucs, questions, strict=True)):
        return None
    return mean_and_sd(aucs)[0]


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


def mean_and_sd_text(summary: Mapping[str, Any]) -> str:
    """`0.812 ± 0.034` of a summary's `mean_auc` and `sd_auc`; one fold has no SD, and is said to be one.

    >>> mean_and_sd_text({"mean_auc": 0.8123, "sd_auc": None})
    '0.812 (one fold)'
    """
    mean, sd = summary["mean_auc"], summary["sd_auc"]
    if mean is None:
        return "none"
    return f"{mean:.3f} (one fold)" if sd is None else f"{mean:.3f} ± {sd:.3f}"


def youden_threshold(questions: Sequence[Question]) -> float | None:
    """The threshold with the largest sensitivity + specificity − 1 (Youden 1950); the highest of several.

    A case is called positive at or above it. Choose it on validation cases and apply it to test cases.

    Returns:
      One of the scores; None of more than one question, or without a positive or a negative case.
    """
    if len(questions) != 1 or question_auc(questions[0]) is None:
        return None
    (question,) = questions
    false_positives, true_positives, thresholds = roc_curve(question.labels, question.scores, drop_intermediate=False)
    # The first point calls nothing positive; its threshold is infinite.
    return float(thresholds[1:][np.argmax((true_positives - false_positives)[1:])])
