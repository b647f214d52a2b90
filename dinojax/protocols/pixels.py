"""What raw pixels reach on the same folds: a model that has learned something beats this."""

from collections.abc import Callable, Iterable

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from dinojax.augment import geometry
from dinojax.data.splits import Fold
from dinojax.protocols.knn import knn_majority

SIDE = 32
Scorer = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def grey_pixels(images: Iterable[np.ndarray], side: int = SIDE) -> np.ndarray:
    """Images as small grey squares, by Pillow's bilinear resize (antialiased).

    Args:
      images: uint8 [H, W, C] each, C 1 or 3; colours become luminance (ITU-R 601-2).
      side: of the square, in pixels.

    Returns:
      float32 [N, side²] in 0..1.
    """
    rows = [geometry.square(geometry.grey(image), side) for image in images]
    return np.stack(rows).reshape(len(rows), -1).astype(np.float32) / 255


def logistic_scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Logistic regression (L2, C = 1) on features standardised by the training part.

    Args:
      train: float [N, D].
      labels: int [N]; each of 0..C − 1 occurs.
      test: float [M, D].

    Returns:
      float64 [M, C], probabilities.
    """
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    # Its threads wait for one another in every small step, for minutes on a busy machine.
    with threadpool_limits(1):
        return np.asarray(classifier.fit(train.astype(np.float64), labels).predict_proba(test.astype(np.float64)))


def knn_scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """20 nearest neighbours by cosine similarity, by majority; as `logistic_scores`."""
    return knn_majority(train, labels, test, k=20)


def score_fold(scorer: Scorer, features: np.ndarray, labels: np.ndarray, fold: Fold) -> np.ndarray:
    """Fits on a fold's training part alone and scores its test part: float64 [len(fold.test), C]."""
    return scorer(features[fold.train], labels[fold.train], features[fold.test])
