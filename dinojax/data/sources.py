"""Random access to decoded images, as Grain's sources give it."""

import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np

from dinojax.augment import geometry
from dinojax.config.pretrain import WindowJitterConfig
from dinojax.data.decode import decode, joined, stored_of
from dinojax.data.formats import BadFile, Stored
from dinojax.data.intensity import FULL, grey_levels, levels_of
from dinojax.data.records import Records


@dataclasses.dataclass(frozen=True, eq=False)
class Windowed:
    """A decoded image of which it is still open which values are black and white."""

    stored: tuple[Stored, ...]
    """One; of a stack, one of each channel."""
    levels: tuple[tuple[float, float], ...]
    """Those of its data set's policy, of each."""
    finish: Callable[[list[np.ndarray]], np.ndarray]
    """Square pixels and the number of channels."""

    def at(self, levels: Iterable[tuple[float, float]]) -> np.ndarray:
        """The image with these values black and white in each of `stored`, uint8 [H, W, C]."""
        return self.finish([grey_levels(one, FULL, own) for one, own in zip(self.stored, levels, strict=True)])

    @property
    def nbytes(self) -> int:
        return sum(one.values.nbytes for one in self.stored)


def jitter_window(element: Mapping[str, Any], rng: np.random.Generator, config: WindowJitterConfig) -> dict[str, Any]:
    """Moves and stretches an image's window by chance; the channels' of a stack alike, each by its own width.

    Args:
      element: `image`, a `Windowed`.
      rng: of all draws: one, or three.
      config: how often and how far.

    Returns:
      The element with `image` uint8 [H, W, C].
    """
    image: Windowed = element["image"]
    levels = image.levels
    if rng.random() < config.probability:
        moved, stretched = rng.uniform(-config.centre, config.centre), (1 + config.width) ** rng.uniform(-1, 1)
        centred = [((low + high) / 2 + (high - low) * moved, (high - low) / 2 * stretched) for low, high in levels]
        levels = tuple((centre - half, centre + half) for centre, half in centred)
    return {**element, "image": image.at(levels)}


class ImageSource:
    """Decoded images by place; any number of threads may read.

    Element i is `{"image": uint8 [H, W, channels], "label": int32, "index": int32}`: the class (-1 if unlabelled;
    multi-label: float32 [C]) and the place in the records, of image `indices[i]`. The image is not writeable, as it may
    be cached.

    With `on_bad_file="skip"`, an unreadable file's place is taken by the next readable one in `indices`, which has its
    own label and index, and the file is listed in `skipped`. Which file takes it depends on the files alone, not on
    the order of reading.

    Args:
      records: the data set.
      indices: which of its images; None means all, in order.
      channels: 1 or 3. Grey files are repeated to 3; colour files become luminance (ITU-R 601-2) for 1. Of stacks, as
        many as they have.
      on_bad_file: 'stop' raises `BadFile` when a file proves unreadable, 'skip' as above.
      windowed: gives a `Windowed` in place of `image`, for `jitter_window`.
      cache_gib: memory in GiB for decoded images. None is ever evicted: as the order is random, each is as likely to
        be read next. An unpickled source begins with an empty cache and nothing skipped.

    Raises:
      BadFile: on access, names the file and its row; with 'skip' when no file is readable.
    """

    def __init__(
        self,
        records: Records,
        indices: np.ndarray | None = None,
        channels: int = 3,
        on_bad_file: Literal["stop", "skip"] = "stop",
        cache_gib: float = 0.0,
        windowed: bool = False,
    ):
        self.records = records
        self.indices = np.arange(len(records)) if indices is None else np.asarray(indices)
        self.channels = channels
        self.on_bad_file = on_bad_file
        self.cache_gib = cache_gib
        self.windowed = windowed
        self._cache: dict[int, np.ndarray | Windowed] = {}
        self._room = int(cache_gib * 2**30)
        self._skipped: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.records, self.indices, self.channels, self.on_bad_file, self.cache_gib, self.windowed)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for ahead in range(len(self)):
            row = int(self.indices[(index + ahead) % len(self)])
            try:
                return self._read(row)
            except BadFile as error:
                if self.on_bad_file == "stop":
                    raise
                self.add_skipped([(str(self.records.paths[row]), str(error))])
        raise BadFile(f"none of the {len(self)} images can be read, such as {self.records.describe(0)}")

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(path, reason) of the files found unreadable so far, sorted; of a file of several images, of each of them."""
        with self._lock:
            return sorted(self._skipped)

    def add_skipped(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Lists (path, reason) of files that were found unreadable elsewhere, such as in a worker process."""
        with self._lock:
            self._skipped.update(skipped)

    def _finished(self, image: np.ndarray) -> np.ndarray:
        given = image.shape[2]
        image = geometry.grey(image) if self.channels == 1 else np.repeat(image, self.channels // given, axis=2)
        image.flags.writeable = False
        return image

    def _windowed(self, row: int) -> Windowed:
        found = [stored_of(one, row) for one in self.records.channels]
        return Windowed(
            tuple(stored for stored, _, _ in found),
            tuple(levels or levels_of(stored, rule) for stored, rule, levels in found),
            lambda images: self._finished(joined(self.records, row, images)),
        )

    def _read(self, row: int) -> dict[str, Any]:
        records, image = self.records, self._cache.get(row)
        if image is None:
            image = self._windowed(row) if self.windowed else self._finished(decode(records, row))
            with self._lock:
                if row not in self._cache and image.nbytes <= self._room:
                    self._cache[row] = image
                    self._room -= image.nbytes
        label = np.int32(-1) if records.labels is None else records.labels[row]
        return {"image": image, "label": label, "index": np.int32(row)}
