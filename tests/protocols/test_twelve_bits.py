"""A set of 12-bit images is worth what its 8-bit twin is; shown by a wrong policy, it is warned of."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from dinojax.config.images import ImagesConfig, IntensityConfig
from dinojax.data.headers import Headers
from dinojax.data.memory import decode_all
from dinojax.data.opening import open_images
from dinojax.data.phantoms.dataset import write_phantoms
from dinojax.data.reading import read_records
from dinojax.protocols import pixels
from dinojax.protocols.study import Unit
from dinojax.protocols.task import Task


class Sets(NamedTuple):
    eight: Path
    twelve: Path


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    """The same 40 phantoms as v of 8 bits and as v · 4095/255 of 16, with the same folds."""
    root = tmp_path_factory.mktemp("phantoms")
    found = Sets(root / "eight", root / "twelve")
    for folder in found:
        write_phantoms(folder, patients=20, images_per_patient=2, size=64, folds=3)
    for path in (found.twelve / "images").iterdir():
        values = np.asarray(Image.open(path)).astype(np.float64)
        Image.fromarray(np.rint(values * 4095 / 255).astype(np.uint16)).save(path)
    return found


class Result(NamedTuple):
    headers: Headers
    scores: np.ndarray
    """Of the test parts, one after another."""
    auc: float
    """Mean over the folds."""
    interval: float
    """Half the width of its 95 % interval."""


def scored(folder: Path, policy: Any = "auto") -> Result:
    """Logistic regression on pixels, on the folds' test parts."""
    records = read_records(str(folder), labelled=True)
    records, headers = open_images(records, ImagesConfig(intensity=IntensityConfig(policy=policy)))
    decoded = decode_all(records, {"pixels": pixels.grey_pixels}, channels=1, threads=2, on_bad_file="stop")
    assert records.labels is not None
    score = pixels.protocol(decoded.views["pixels"], records.labels, Task("binary", records.classes))
    units = [Unit(number, fold, pixels.LogisticPixels(), 0) for number, fold in enumerate(records.folds)]
    parts = [score(unit).test[:, 1] for unit in units]
    labels = [records.labels[unit.fold.test] for unit in units]
    auc = np.mean([roc_auc_score(*pair) for pair in zip(labels, parts, strict=True)])
    # Hanley and McNeil 1982 (doi 10.1148/radiology.143.1.7063747), eq. 2, of as many cases.
    positive, negative = (sum((part == label).sum() for part in labels) for label in (1, 0))
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positive - 1) * (q1 - auc**2) + (negative - 1) * (q2 - auc**2)
    return Result(headers, np.concatenate(parts), float(auc), 1.96 * float(np.sqrt(variance / (positive * negative))))


def test_twelve_bits_are_worth_what_eight_are(sets: Sets) -> None:
    eight, twelve, wrong = scored(sets.eight), scored(sets.twelve), scored(sets.twelve, "full")
    for result, group in ((eight, "8 bits"), (twelve, "more than 8 bits")):
        assert (result.headers.groups, result.headers.warnings) == ({group: 40}, ())
    assert abs(twelve.auc - eight.auc) <= 0.01 < eight.interval
    agreement = [np.corrcoef(eight.scores, result.scores)[0, 1] for result in (twelve, wrong)]
    assert agreement[0] > 0.999 > agreement[1]


def test_a_policy_that_leaves_few_grey_levels_is_warned_of(sets: Sets) -> None:
    assert scored(sets.twelve, "full").headers.warnings == (
        "more than 8 bits, the range of the stored type (0 to 1 of floats): "
        "only 17 of 256 grey levels are in use; choose a narrower range",
    )
    assert scored(sets.eight, "full").headers.warnings == ()
