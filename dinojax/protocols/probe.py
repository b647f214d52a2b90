"""A k-NN probe: how well a backbone's class token tells the classes of other patients' images, without training."""

import re
from functools import partial
from typing import Literal, NamedTuple

import jax
import numpy as np

from dinojax import tree
from dinojax.augment import geometry
from dinojax.data.memory import decode_all
from dinojax.data.reading import read_records
from dinojax.data.records import Records
from dinojax.errors import RunError, UsageError
from dinojax.models import Backbone
from dinojax.protocols.features import FeatureRunner, pooled
from dinojax.protocols.knn import nearest, vote
from dinojax.protocols.pixels import grey_pixels

_BATCH = 64  # images on a device at a time, however many devices there are, so that these change no feature


class Accuracy(NamedTuple):
    """Shares in 0..1 of the images whose class has the most votes."""

    plain: float
    balanced: float
    """The mean over classes; 1 / classes is chance."""


class Probe:
    """Labelled images in memory, and a compiled program that takes a backbone's parameters to their features.

    Attributes:
      summary: one line for the run's log: how many images of which classes and patients, of which part of the data.
      labels: int64 [N], places in the classes that occur.
      groups: int64 [N], number of the patient; images without one are a patient each.
    """

    def __init__(
        self,
        model: Backbone,
        data: str,
        *,
        size: int,
        k: int = 20,
        images: int = 2000,
        data_root: str | None = None,
        group_regex: str | None = None,
        on_bad_file: Literal["stop", "skip"] = "stop",
        threads: int = 2,
    ) -> None:
        """Decodes the images; N·S²·C bytes stay in memory.

        Args:
          model: of the kind to be probed.
          data: a labelled data set of any kind; only its training part where it has one.
          size: side S in pixels that images are resized to, one that the model reads.
          k: neighbours that vote; fewer where other patients have no more images.
          images: at most so many, evenly spaced in each class.
          data_root, group_regex: as of `read_records`.
          on_bad_file: 'skip' leaves out what cannot be read.
          threads: that decode.

        Raises:
          UsageError: names `probe.data`; there is no such data set, it has no labels or several an image, fewer than
            two classes or patients, or not more than k images.
          RunError: files cannot be read and may not be left out.
        """
        records, part = _training_part(_read(data, data_root, group_regex), data)
        decoded = decode_all(
            records.take(_choose(records, images)),
            {"image": partial(geometry.square, size=size), "pixels": grey_pixels},
            channels=model.channels,
            threads=threads,
            on_bad_file=on_bad_file,
        )
        self._images, self._pixels, kept = decoded.views["image"], decoded.views["pixels"], decoded.records
        assert kept.labels is not None
        present, self.labels = np.unique(kept.labels, return_inverse=True)
        patients = np.arange(len(kept)) if kept.patients is None else kept.patients
        self.groups = np.unique(patients, return_inverse=True)[1]
        self.k = k
        self._check(data)
        counts = zip(np.bincount(self.labels), (kept.classes[i] for i in present), strict=True)
        classes = ", ".join(f"{count} {name}" for count, name in counts)
        known = "no patients known, every image is its own"
        if kept.patients is not None:
            known = f"{self.groups.max() + 1} patients"
        self.summary = f"{len(kept)} of {len(records)} images of {part}; {classes}; {known}"
        # Every process does all of it on its own devices, so that none waits for another.
        self._features = FeatureRunner(model, pooled, min(_BATCH, len(kept)) * jax.local_device_count())

    def measure(self, params: tree.Params) -> Accuracy:
        """Classifies every image by the class tokens of other patients' images.

        Args:
          params: the backbone's; the same on all devices. In a single process they may be spread over them in any way.
        """
        return self._accuracy(self.features(params))

    def baselines(self) -> dict[str, float]:
        """What to compare the probe's accuracy with, in 0..1.

        Returns:
          `probe_pixels`, that of the images' 32×32 grey pixels in the place of features, and `probe_majority`, the
          share of the largest class.
        """
        majority = np.bincount(self.labels).max() / len(self.labels)
        return {"probe_pixels": self._accuracy(self._pixels).plain, "probe_majority": float(majority)}

    def features(self, params: tree.Params) -> np.ndarray:
        """Class tokens of all images, float32 [N, D]; compiled at the first call only."""
        return self._features(self._images, params)

    def _accuracy(self, features: np.ndarray) -> Accuracy:
        neighbours = nearest(features, features, self.k, self.groups, self.groups)
        shares = vote(neighbours, np.eye(self.labels.max() + 1)[self.labels])
        right = shares.argmax(axis=1) == self.labels
        recalls = np.bincount(self.labels, weights=right) / np.bincount(self.labels)
        return Accuracy(float(right.mean()), float(recalls.mean()))

    def _check(self, data: str) -> None:
        count = len(self.labels)
        if count <= self.k:
            raise UsageError(f"probe.data {data}: {count} images are too few for probe.k {self.k}; it must be lower")
        for what, values in (("class", self.labels), ("patient", self.groups)):
            if not values.any():
                raise UsageError(f"probe.data {data}: all {count} images are of one {what}; at least two are needed")


def _read(data: str, data_root: str | None, group_regex: str | None) -> Records:
    try:
        records = read_records(data, labelled=True, data_root=data_root, group_regex=group_regex)
    except RunError as error:
        # Named as the run's configuration names them.
        message = re.sub(r"--(data|data_root|group_regex)\b", r"probe.\1", str(error))
        raise UsageError(message if message.startswith("probe.") else f"probe.data: {message}") from error
    if records.multilabel:
        raise UsageError(f"probe.data {data}: has several labels an image; the probe needs a column label")
    return records


def _training_part(records: Records, data: str) -> tuple[Records, str]:
    """What may be looked at while training, and its name."""
    if records.folds:
        return records, f"all {len(records.folds)} folds, test images included"
    if records.splits is None or not (records.splits != "").any():
        return records, "a data set without parts"
    train = np.flatnonzero(records.splits == "train")
    if not len(train):
        raise UsageError(f"probe.data {data}: none of its {len(records)} images is of the training part")
    return records.take(train), "the training part"


def _choose(records: Records, images: int) -> np.ndarray:
    """At most `images` places, increasing and evenly spaced in each class, of which each keeps its share."""
    assert records.labels is not None
    by_class = np.argsort(records.labels, kind="stable")
    count = min(images, len(records))
    return np.sort(by_class[np.arange(count) * len(records) // count])
