"""The labelled images of a fine-tuning run, decoded once and kept in memory."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from dinojax.augment.classification import eval_transform
from dinojax.data.records import Records
from dinojax.data.sources import BadFile, ImageSource, check_headers
from dinojax.protocols.pixels import SIDE, grey_pixels


class Cases(NamedTuple):
    """All images of a task; row i is that of the records' entry i."""

    images: np.ndarray
    """uint8 [N, S, S, C], resized; one channel where every file is grey or the model reads one."""
    labels: np.ndarray
    """int32 [N]"""
    pixels: np.ndarray
    """float32 [N, 32²] in 0..1: the files' own images, small and grey, for the baseline."""


class CachedSource:
    """Random access to some of the cases, as Grain's sources give them."""

    def __init__(self, cases: Cases, indices: np.ndarray) -> None:
        self.cases = cases
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = int(self.indices[index])
        return {"image": self.cases.images[row], "label": self.cases.labels[row], "index": np.int32(row)}


def load_cases(
    records: Records, channels: int, size: int, threads: int, skip_bad_files: bool
) -> tuple[Records, Cases, list[tuple[str, str]]]:
    """Decodes every image. Resizing comes first in training too, so nothing is lost by doing it once.

    Args:
      records: labelled.
      channels: 1 or 3, what the model reads.
      size: side S in pixels.
      threads: that decode.
      skip_bad_files: leaves out what cannot be read.

    Returns:
      The records that were read, their cases, and (path, reason) of what was left out.

    Raises:
      RunError: files cannot be read and may not be left out, or none can be read.
    """
    records, headers = check_headers(records, on_bad_file="skip" if skip_bad_files else "stop")
    print(headers.summary())
    source = ImageSource(records, channels=1 if channels == 1 else headers.channels)
    assert records.labels is not None
    images = np.zeros((len(records), size, size, source.channels), np.uint8)
    pixels = np.zeros((len(records), SIDE**2), np.float32)
    bad: dict[int, str] = {}

    def load(index: int) -> None:
        try:
            element = source[index]
        except BadFile as error:
            if not skip_bad_files:
                raise
            bad[index] = str(error)
            return
        pixels[index] = grey_pixels([element["image"]])[0]
        images[index] = eval_transform(element, size)["image"]

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        list(pool.map(load, range(len(records))))  # raises what a thread raised
    skipped = [*headers.bad, *((records.paths[index], bad[index]) for index in sorted(bad))]
    if not bad:
        return records, Cases(images, records.labels, pixels), skipped
    if len(bad) == len(records):
        raise BadFile(f"none of the {len(records)} images can be read: {bad[0]}")
    kept = np.setdiff1d(np.arange(len(records)), list(bad))
    records = records.take(kept)
    assert records.labels is not None
    return records, Cases(images[kept], records.labels, pixels[kept]), skipped
