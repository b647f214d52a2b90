"""A k-NN probe: how well a backbone's class token tells the classes of other patients' images, without training."""

import dataclasses
import re
from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import numpy as np
from sklearn.metrics import balanced_accuracy_score

from dinojax import tree
from dinojax.augment import geometry
from dinojax.config.labelled import LabelledConfig
from dinojax.config.pretrain import ProbeConfig
from dinojax.data.memory import decode_all
from dinojax.data.opening import open_images
from dinojax.data.reading import read_labelled
from dinojax.data.records import Records
from dinojax.errors import RunError, UsageError
from dinojax.levels import Rule
from dinojax.models import Backbone
from dinojax.models.channels import check_readable
from dinojax.protocols.features import FeatureRunner, pooled
from dinojax.protocols.knn import nearest, vote
from dinojax.protocols.pixels import grey_pixels

_BATCH = 64  # images on a device at a time, however many devices there are, so that these change no feature


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
        config: ProbeConfig,
        *,
        size: int,
        on_bad_file: Literal["stop", "skip"] = "stop",
        threads: int = 2,
        intensity: Sequence[Rule] = (),
    ) -> None:
        """Decodes the images; N·S²·C bytes stay in memory.

        Args:
          model: of the kind to be probed.
          config: names the data, of which only the training part is used where it has one; fewer than k neighbours vote
            where other patients have no more images.
          size: side S in pixels that images are resized to, one that the model reads.
          on_bad_file: 'skip' leaves out what cannot be read.
          threads: that decode.
          intensity: the rules of the run that is probed.

        Raises:
          UsageError: names `probe.data`; there is no such data set, it has no labels or several an image, fewer than
            two classes or patients, or not more than k images.
          RunError: files cannot be read and may not be left out.
        """
        records, part = _training_part(_read(config, on_bad_file), config)
        chosen, headers = open_images(
            records.take(_choose(records, config.images)), config, on_bad_file=on_bad_file, known=intensity
        )
        check_readable(model.channels, headers.channels, headers.stacked)
        decoded = decode_all(
            chosen,
            {"image": partial(geometry.square, size=size), "pixels": partial(grey_pixels, stacked=headers.stacked)},
            channels=1 if model.channels == 1 else headers.channels,
            threads=threads,
            on_bad_file=on_bad_file,
        )
        self._images, self._pixels, kept = decoded.views["image"], decoded.views["pixels"], decoded.records
        assert kept.labels is not None
        present, self.labels = np.unique(kept.labels, return_inverse=True)
        self.groups = kept.units
        self._config = config
        self._check()
        counts = zip(np.bincount(self.labels), (kept.classes[i] for i in present), strict=True)
        classes = ", ".join(f"{count} {name}" for count, name in counts)
        named = kept.patients is not None
        known = f"{self.groups.max() + 1} patients" if named else "no patients known, every image is its own"
        self.summary = f"{len(kept)} of {len(records)} images of {part}; {classes}; {known}"
        # Every process does all of it on its own devices, so that none waits for another.
        self._features = FeatureRunner(model, pooled, min(_BATCH, len(kept)) * jax.local_device_count())

    def measure(self, params: tree.Params) -> dict[str, float]:
        """Classifies every image by the class tokens of other patients' images.

        Args:
          params: the backbone's; the same on all devices. In a single process they may be spread over them in any way.

        Returns:
          `probe`, the share in 0..1 of the images whose class has the most votes, and `probe_balanced`, the mean of the
          classes' shares; 1 / classes is chance.
        """
        predicted = self._predict(self.features(params))
        balanced = balanced_accuracy_score(self.labels, predicted)
        return {"probe": float((predicted == self.labels).mean()), "probe_balanced": float(balanced)}

    def baselines(self) -> dict[str, float]:
        """What to compare the probe's accuracy with, in 0..1.

        Returns:
          `probe_pixels`, that of the images' 32×32 grey pixels in the place of features, `probe_majority`, the share
          of the largest class, and `probe_images`, their number.
        """
        right = self._predict(self._pixels) == self.labels
        majority = np.bincount(self.labels).max() / len(self.labels)
        return {
            "probe_pixels": float(right.mean()),
            "probe_majority": float(majority),
            "probe_images": float(len(right)),
        }

    def features(self, params: tree.Params) -> np.ndarray:
        """Class tokens of all images, float32 [N, D]; compiled at the first call only."""
        return self._features(self._images, params)

    def _predict(self, features: np.ndarray) -> np.ndarray:
        neighbours = nearest(features, features, self._config.k, self.groups, self.groups)
        return vote(neighbours, np.eye(self.labels.max() + 1)[self.labels]).argmax(axis=1)

    def _check(self) -> None:
        count, data, k = len(self.labels), self._config.data, self._config.k
        if count <= k:
            raise UsageError(f"probe.data {data}: {count} images are too few for probe.k {k}; it must be lower")
        for what, values in (("class", self.labels), ("patient", self.groups)):
            if not values.any():
                raise UsageError(f"probe.data {data}: all {count} images are of one {what}; at least two are needed")


def _read(config: ProbeConfig, on_bad_file: Literal["stop", "skip"]) -> Records:
    assert config.data is not None, "without data there is no probe"
    try:
        records = read_labelled(config.data, config, positive_needed=False, on_bad_file=on_bad_file)
    except RunError as error:
        # Named as the run's configuration names them.
        keys = "|".join(("data", *(field.name for field in dataclasses.fields(LabelledConfig))))
        message = re.sub(rf"--({keys})\b", r"probe.\1", str(error))
        raise UsageError(message if message.startswith("probe.") else f"probe.data: {message}") from error
    if records.multilabel:
        raise UsageError(f"probe.data {config.data}: has several labels an image; the probe needs a column label")
    return records


def _training_part(records: Records, config: ProbeConfig) -> tuple[Records, str]:
    """What may be looked at while training, and its name."""
    if records.folds:
        return records, f"all {len(records.folds)} folds, test images included"
    if records.splits is None or not (records.splits != "").any():
        return records, "a data set without parts"
    train = np.flatnonzero(records.splits == "train")
    if not len(train):
        raise UsageError(f"probe.data {config.data}: none of its {len(records)} images is of the training part")
    return records.take(train), "the training part"


def _choose(records: Records, images: int) -> np.ndarray:
    """At most `images` places, increasing and evenly spaced in each class, of which each keeps its share."""
    assert records.labels is not None
    by_class = np.argsort(records.labels, kind="stable")
    count = min(images, len(records))
    return np.sort(by_class[np.arange(count) * len(records) // count])
