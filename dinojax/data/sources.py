"""From `--data` to decoded images: the table of what is there, and Grain's random access to it."""

import threading
from typing import Any, Literal

import numpy as np
from PIL import Image

from dinojax.data.images import BadFile, Headers, check_headers, decode, list_skipped
from dinojax.data.records import Records, read_records

__all__ = ["BadFile", "Headers", "ImageSource", "Records", "check_headers", "decode", "list_skipped", "read_records"]


class ImageSource:
    """Decoded images by place, as Grain's sources give them; any number of threads may read.

    Element i is `{"image": uint8 [H, W, channels], "label": int32, "index": int32}`: the class (-1 if unlabelled) and
    the place in the records, of image `indices[i]`.

    With `on_bad_file="skip"`, an unreadable file's place is taken by the next readable one in `indices`, which has its
    own label and index, and the file is listed in `skipped`. Which file takes it depends on the files alone, not on
    the order of reading.

    Args:
      records: the data set.
      indices: which of its images; None means all, in order.
      channels: 1 or 3. Grey files are repeated to 3; colour files become luminance (ITU-R 601-2) for 1.
      on_bad_file: 'stop' raises `BadFile` when a file proves unreadable, 'skip' as above.

    Raises:
      BadFile: on access, names the file and its row; with 'skip' when no file is readable.
    """

    def __init__(
        self,
        records: Records,
        indices: np.ndarray | None = None,
        channels: Literal[1, 3] = 3,
        on_bad_file: Literal["stop", "skip"] = "stop",
    ):
        self.records = records
        self.indices = np.arange(len(records)) if indices is None else np.asarray(indices)
        self.channels = channels
        self.on_bad_file = on_bad_file
        self._skipped: dict[str, str] = {}
        self._lock = threading.Lock()

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
                with self._lock:
                    self._skipped[self.records.paths[row]] = str(error)
        raise BadFile(f"none of the {len(self)} images can be read, such as {self.records.describe(0)}")

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(path, reason) of the files found unreadable so far, sorted."""
        with self._lock:
            return sorted(self._skipped.items())

    def _read(self, row: int) -> dict[str, Any]:
        records = self.records
        try:
            image = decode(records.file(row), records.frames[row])
        except BadFile as error:
            listed = f" ({records.table}, row {records.rows[row]})" if records.table else ""
            raise BadFile(f"{error}{listed}") from error
        label = -1 if records.labels is None else records.labels[row]
        return {"image": _with_channels(image, self.channels), "label": np.int32(label), "index": np.int32(row)}


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
