"""What raw pixels reach on the same folds: a model that has learned something beats this."""

import dataclasses

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from dinojax.augment import geometry
from dinojax.protocols.study import Score, Scored, Study, Unit, summarise
from dinojax.protocols.task import Task

SIDE = 32


@dataclasses.dataclass(frozen=True)
class LogisticPixels:
    """The one setting."""

    side: int = SIDE
    """Of the squares, in pixels."""

    @property
    def name(self) -> str:
        """Names it in tables and files."""
        return f"logistic_{self.side}"


def grey_pixels(image: np.ndarray, stacked: bool = False) -> np.ndarray:
    """An image as a small grey square, by Pillow's bilinear resize (antialiased).

    Args:
      image: uint8 [H, W, C]; colours become luminance (ITU-R 601-2) first.
      stacked: whether the channels are no colours; of them the mean is taken.

    Returns:
      float32 [32²] in 0..1.
    """
    return geometry.square(geometry.grey(image, stacked), SIDE).ravel().astype(np.float32) / 255


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


def protocol(pixels: np.ndarray, labels: np.ndarray, task: Task) -> Score:
    """Scores a fold's validation and test part by logistic regression on its training part's pixels.

    Args:
      pixels: float32 [N, 32²] of `grey_pixels`, of all cases of the task.
      labels: of the same.
      task: of the labels.
    """

    def score(unit: Unit) -> Scored:
        train, val = pixels[unit.fold.train], len(unit.fold.val)
        scored = pixels[np.concatenate([unit.fold.val, unit.fold.test])]
        scores = task.score_by_label(
            labels[unit.fold.train], lambda rows, classes: logistic_scores(train[rows], classes, scored)
        )
        return Scored(scores[:val], scores[val:])

    return score


def run_pixels(study: Study, small_images: np.ndarray) -> None:
    """Scores the trivial baseline on a study's folds, as a study of its own in the folder `pixels`.

    Args:
      study: gives cases and folds.
      small_images: float32 [N, 32²] of `grey_pixels`.
    """
    method = f"logistic regression on {SIDE}×{SIDE} grey pixels"
    baseline = dataclasses.replace(
        study,
        out=study.out / "pixels",
        starting_point="pixels",
        protocol="pixels",
        settings=(LogisticPixels(),),
        criterion="val_auc",
        recipe={"method": method},
    )
    if not (baseline.out / "results.json").exists():
        results = baseline.run(protocol(small_images, study.labels, study.task))
        print(f"baseline, {method}: {summarise(results)}", flush=True)
