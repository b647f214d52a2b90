"""The trivial baseline against Pillow and scikit-learn."""

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dinojax.data.records import Fold
from dinojax.protocols import pixels
from dinojax.protocols.study import Unit
from dinojax.protocols.task import Task

RNG = np.random.default_rng(0)
FOLD = Fold(train=np.arange(20), val=np.arange(20, 30), test=np.arange(30, 40))


def test_pixels_are_luminance_resized_by_pillow() -> None:
    colour = RNG.integers(0, 256, (50, 40, 3), dtype=np.uint8)
    expected = Image.fromarray(colour).convert("L").resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels.grey_pixels(colour) * 255, np.asarray(expected, np.float32).ravel())
    assert pixels.grey_pixels(colour[:, :, :1]).shape == (1024,)


def test_the_protocol_learns_from_the_training_part_alone() -> None:
    labels = np.arange(40) % 2
    features = RNG.normal(size=(40, 6)) + labels[:, None]
    unit, task = Unit(1, FOLD, pixels.LogisticPixels(), 0), Task("binary", ("a", "b"))
    scored = pixels.protocol(features, labels, task)(unit)
    scaler = StandardScaler().fit(features[:20])
    reference = LogisticRegression(max_iter=5000).fit(scaler.transform(features[:20]), labels[:20])
    np.testing.assert_allclose(scored.val, reference.predict_proba(scaler.transform(features[20:30])), atol=1e-9)
    np.testing.assert_allclose(scored.test, reference.predict_proba(scaler.transform(features[30:])), atol=1e-9)
    labels[20:] = 0
    again = pixels.protocol(features, labels, task)(unit)
    np.testing.assert_array_equal(again.test, scored.test)


def test_each_of_several_labels_has_a_regression_of_its_own() -> None:
    labels = RNG.integers(0, 2, (40, 2)).astype(np.float32)
    labels[[0, 5, 7], 1] = np.nan
    features = RNG.normal(size=(40, 6))
    scored = pixels.protocol(features, labels, Task("multi-label", ("a", "b")))(
        Unit(1, FOLD, pixels.LogisticPixels(), 0)
    )
    rows = np.setdiff1d(np.arange(20), [0, 5, 7])
    expected = pixels.logistic_scores(features[rows], labels[rows, 1].astype(int), features[30:])[:, 1]
    np.testing.assert_allclose(scored.test[:, 1], expected)
