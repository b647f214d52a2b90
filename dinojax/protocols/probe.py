"""A k-NN probe: how well a backbone's class token tells the classes of other patients' images, without training."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dinojax import sharding, tree
from dinojax.augment.geometry import square
from dinojax.data.memory import decode_all
from dinojax.data.pipeline import prefetch
from dinojax.data.records import Records, read_records
from dinojax.errors import RunError, UsageError
from dinojax.models import VisionTransformer, preprocess
from dinojax.protocols.features import chunked, images_per_chunk
from dinojax.protocols.knn import TEMPERATURE
from dinojax.protocols.pixels import grey_pixels

_BATCH = 64  # images on a device at a time, however many devices there are, so that these change no feature
_ROWS = 1024  # of the similarities, at a time


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
        model: VisionTransformer,
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
          model: of the kind to be probed; its own parameters are not kept.
          data: a labelled data set of any kind; only its training part where it has one.
          size: side S in pixels that images are resized to, a multiple of the patch size.
          k: neighbours that vote; fewer where other patients have no more images.
          images: at most so many, evenly spaced in each class.
          data_root, group_regex: as of `read_records`.
          on_bad_file: 'skip' leaves out what cannot be read.
          threads: that decode.

        Raises:
          UsageError: names `probe.data`; there is no such data set, it has no labels, fewer than two classes or
            patients, or not more than k images.
          RunError: files cannot be read and may not be left out.
        """
        records, part = _training_part(_read(data, data_root, group_regex), data)
        whole = len(records)
        views = {"image": partial(square, size=size), "pixels": lambda image: grey_pixels([image])[0]}
        records, decoded, _ = decode_all(
            records.take(_choose(records, images)),
            views,
            channels=model.channels,
            threads=threads,
            on_bad_file=on_bad_file,
        )
        self._images, self._pixels = decoded["image"], decoded["pixels"]
        assert records.labels is not None
        present, self.labels = np.unique(records.labels, return_inverse=True)
        patients = np.arange(len(records)) if records.patients is None else records.patients
        self.groups = np.unique(patients, return_inverse=True)[1]
        self.k = k
        _check(self, data)
        counts = zip(np.bincount(self.labels), (records.classes[i] for i in present), strict=True)
        known = "no patients known, every image is its own"
        if records.patients is not None:
            known = f"{self.groups.max() + 1} patients"
        classes = ", ".join(f"{count} {name}" for count, name in counts)
        self.summary = f"probe: {len(records)} of {whole} images of {part}; {classes}; {known}"

        graph, _ = tree.split(model)

        def run(params: tree.Params, images: jax.Array) -> jax.Array:
            backbone = tree.merge(graph, params)
            return backbone(preprocess(images, backbone)).pooled.astype(jnp.float32)

        # Every process does all of it on its own devices, so that none waits for another.
        self._batch = min(_BATCH, len(records)) * jax.local_device_count()
        self._mesh = sharding.widest_mesh(self._batch)
        self._run = jax.jit(chunked(run, self._mesh, images_per_chunk(model, size, size)))

    def accuracy(self, params: tree.Params) -> float:
        """Share of the images, in 0..1, that their neighbours classify rightly; see `measure`."""
        return self.measure(params).plain

    def measure(self, params: tree.Params) -> Accuracy:
        """Classifies every image by the class tokens of other patients' images.

        Args:
          params: the backbone's; the same on all devices. In a single process they may be spread over them in any way.
        """
        return self._accuracy(self.features(params))

    def baselines(self) -> dict[str, float]:
        """What the probe's accuracy is to be held against, in 0..1.

        Returns:
          `probe_pixels`, that of the images' 32×32 grey pixels in the place of features, and `probe_majority`, the
          share of the largest class.
        """
        majority = np.bincount(self.labels).max() / len(self.labels)
        return {"probe_pixels": self._accuracy(self._pixels).plain, "probe_majority": float(majority)}

    def features(self, params: tree.Params) -> np.ndarray:
        """Class tokens of all images, float32 [N, D]; compiled at the first call only."""
        local = {path: _one_copy(value) for path, value in params.items()}
        local = jax.device_put(local, sharding.replicated(self._mesh))
        batches = prefetch(self._batches(), lambda images: sharding.put_batch(self._mesh, {"image": images})["image"])
        return np.concatenate([jax.device_get(self._run(local, images)) for images in batches])[: len(self._images)]

    def _batches(self) -> Iterator[np.ndarray]:
        for first in range(0, len(self._images), self._batch):
            images = self._images[first : first + self._batch]
            yield np.pad(images, [(0, self._batch - len(images)), (0, 0), (0, 0), (0, 0)])

    def _accuracy(self, features: np.ndarray) -> Accuracy:
        right = leave_one_group_out(features, self.labels, self.groups, self.k).argmax(axis=1) == self.labels
        recalls = np.bincount(self.labels, weights=right) / np.bincount(self.labels)
        return Accuracy(float(right.mean()), float(recalls.mean()))


def leave_one_group_out(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, k: int, temperature: float = TEMPERATURE
) -> np.ndarray:
    """Classifies every image by its nearest neighbours among the images of other groups.

    Votes are weighted by exp(cosine similarity / temperature), as DINO's code does (Caron et al. 2021, section 4.2.1).

    Args:
      features: float [N, D].
      labels: int [N], places in the classes.
      groups: int [N], such as the patient's number; at least two differ.
      k: neighbours. Of equally similar ones the first in the table count.
      temperature: 0.07 as published.

    Returns:
      float64 [N, C], each class's share of the votes.
    """
    features = features.astype(np.float32)
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    parts = []
    for first in range(0, len(unit), _ROWS):
        rows = slice(first, first + _ROWS)
        similarity = unit[rows] @ unit.T
        similarity[groups[rows, None] == groups] = -np.inf
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        # The similarity is at most 1; taking that off before exponentiating changes no share.
        weights = np.exp((np.take_along_axis(similarity, nearest, axis=1).astype(np.float64) - 1) / temperature)
        classes = range(int(labels.max()) + 1)
        parts.append(np.stack([np.where(labels[nearest] == c, weights, 0).sum(axis=1) for c in classes], axis=1))
    votes = np.concatenate(parts)
    return votes / votes.sum(axis=1, keepdims=True)


def _read(data: str, data_root: str | None, group_regex: str | None) -> Records:
    try:
        return read_records(data, labelled=True, data_root=data_root, group_regex=group_regex)
    except RunError as error:
        # Named as the run's configuration names them.
        message = re.sub(r"--(data|data_root|group_regex)\b", r"probe.\1", str(error))
        raise UsageError(message if message.startswith("probe.") else f"probe.data: {message}") from error


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


def _check(probe: Probe, data: str) -> None:
    count = len(probe.labels)
    if count <= probe.k:
        raise UsageError(f"probe.data {data}: {count} images are too few for probe.k {probe.k}; it must be lower")
    for what, values in (("class", probe.labels), ("patient", probe.groups)):
        if not values.any():
            raise UsageError(f"probe.data {data}: all {count} images are of one {what}; at least two are needed")


def _one_copy(value: jax.Array) -> jax.Array:
    """This process's copy of what is the same on the devices of several."""
    return value.addressable_data(0) if value.is_fully_replicated else value
