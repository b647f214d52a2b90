"""All images of a data set, decoded once and kept in memory."""

import dataclasses
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np

from dinojax.data.formats import BadFile
from dinojax.data.records import Records
from dinojax.data.sources import ImageSource


class Decoded(NamedTuple):
    """Images, or what was made of them, in memory; row i of a view is that of the records' entry i."""

    records: Records
    """Those that were read."""
    views: dict[str, np.ndarray]
    """[N, ...] each."""
    skipped: list[tuple[str, str]]
    """(path, reason) of the files that were left out."""


def decode_all(
    records: Records,
    views: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    *,
    channels: int,
    threads: int,
    on_bad_file: Literal["stop", "skip"],
) -> Decoded:
    """Decodes every image once, and keeps what each view makes of it.

    Args:
      records: the images, opened.
      views: functions of an image, uint8 [H, W, C], to an array whose shape and type are the same for all images.
      channels: of the images that the views get: 1 or 3; of stacks, as many as they have.
      threads: that decode.
      on_bad_file: 'skip' leaves out what cannot be read.

    Raises:
      RunError: files cannot be read and may not be left out, or none can be read.
    """
    source = ImageSource(records, channels=channels)
    arrays: dict[str, np.ndarray] = {}
    bad: dict[int, str] = {}
    lock = threading.Lock()

    def load(index: int) -> None:
        try:
            image = source[index]["image"]
        except BadFile as error:
            if on_bad_file == "stop":
                raise
            bad[index] = str(error)
            return
        for name, view in views.items():
            made = view(image)
            with lock:
                if name not in arrays:
                    arrays[name] = np.empty((len(records), *made.shape), made.dtype)
            arrays[name][index] = made

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        list(pool.map(load, range(len(records))))  # raises what a thread raised
    skipped = [(records.paths[index], bad[index]) for index in sorted(bad)]
    if not bad:
        return Decoded(records, arrays, skipped)
    if len(bad) == len(records):
        raise BadFile(f"none of the {len(records)} images can be read: {bad[0]}")
    kept = np.setdiff1d(np.arange(len(records)), list(bad))
    return Decoded(records.take(kept), {name: array[kept] for name, array in arrays.items()}, skipped)


@dataclasses.dataclass(frozen=True, eq=False)
class MemorySource:
    """Random access to some of the images in memory, as Grain's sources give them.

    Element i is `{"image", "label", "index"}` of the place `indices[i]` in `images` [N, ...] and `labels` [N, ...];
    `index` is int32.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = int(self.indices[index])
        return {"image": self.images[row], "label": self.labels[row], "index": np.int32(row)}
