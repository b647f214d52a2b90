"""Decodes image files to uint8, and checks their headers before a run begins."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from PIL import Image

from dinojax.data.records import Records
from dinojax.errors import RunError
from dinojax.runs.files import reason, replacing

_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_GREY = ("1", "L", "LA", "La", *_SIXTEEN_BITS)
_OPENED_AT_A_TIME = 8
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


class BadFile(RunError):
    """An image file that cannot be read. The message names it, its row in the manifest, and why."""


@dataclasses.dataclass(frozen=True)
class Headers:
    """What the headers of a data set's files say.

    Attributes:
      grey, colour: how many of the files that can be read have one channel, and three.
      sixteen_bits: how many of the grey ones have 16 bits a pixel.
      smallest, largest: (width, height) in pixels, by area; (0, 0) if none was readable.
      bad: (path as in the records, reason) of the files that cannot be read.
    """

    grey: int
    colour: int
    sixteen_bits: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    bad: tuple[tuple[str, str], ...]

    @property
    def channels(self) -> Literal[1, 3]:
        """1 if every file is grey, so that one channel stays one channel; else 3."""
        return 3 if self.colour else 1

    def summary(self) -> str:
        """One line for the run's log."""
        readable = self.grey + self.colour
        parts = [f"{readable + len(self.bad)} headers checked: {self.grey} grey, {self.colour} RGB"]
        if readable:
            parts.append("{}×{} to {}×{} pixels".format(*self.smallest, *self.largest))
        if self.sixteen_bits:
            parts.append(f"{self.sixteen_bits} of 16 bits, scaled from 0..65535")
        if self.bad:
            parts.append(f"{len(self.bad)} unreadable and left out")
        return "; ".join(parts)


def decode(path: Path, frame: int = -1) -> np.ndarray:
    """Reads one image file.

    Grey files (1, 8 or 16 bits, with or without alpha) keep one channel; 16 bits are scaled by their full range,
    round(value / 257), whatever the file's brightest pixel, so that files of one set stay comparable. Everything else,
    palettes and CMYK included, becomes RGB. Alpha is dropped.

    Args:
      path: a file that Pillow reads.
      frame: number of the frame, from 0, in a file of several; -1 where the file is one image.

    Returns:
      uint8 [H, W, 1] or [H, W, 3].

    Raises:
      BadFile: it cannot be read, has several frames and none is named, or has 32 bits a pixel.
    """
    try:
        with Image.open(path) as image:
            mode = _select(image, frame)
            if mode in _SIXTEEN_BITS:
                wide = np.asarray(image).astype(np.uint32)
                return ((wide + 128) // 257).astype(np.uint8)[:, :, None]
            if mode in _GREY:
                return np.asarray(image if mode == "L" else image.convert("L"))[:, :, None]
            return np.asarray(image if mode == "RGB" else image.convert("RGB"))
    # Pillow raises whatever the damage leads to: OSError, SyntaxError, EOFError, struct.error.
    except Exception as error:
        raise BadFile(f"cannot read {path}: {reason(error)}") from error


def check_headers(
    records: Records,
    limit: int = 10_000,
    on_bad_file: Literal["stop", "skip"] = "stop",
) -> tuple[Records, Headers]:
    """Checks that files can be opened, without decoding them: size, mode and, where the format has them, checksums.

    Args:
      records: the images; of more than `limit` an evenly spaced choice is checked.
      limit: how many files at most.
      on_bad_file: 'skip' leaves unreadable files out of the records returned, and lists them in the headers.

    Raises:
      RunError: files are unreadable, and `on_bad_file` is 'stop'; or no file is readable.
    """
    chosen = np.unique(np.linspace(0, len(records) - 1, min(limit, len(records))).astype(int))
    with ThreadPoolExecutor(_OPENED_AT_A_TIME) as pool:
        found = list(pool.map(lambda index: _header(records.file(index), int(records.frames[index])), chosen))
    bad = {int(index): why for index, (_, _, why) in zip(chosen, found, strict=True) if why}
    if bad and (on_bad_file == "stop" or len(bad) == len(records)):
        first = "; ".join(f"{why}: {records.describe(index)}" for index, why in list(bad.items())[:3])
        advice = "repair them, or leave them out with --on_bad_file skip" if len(bad) < len(records) else "none is left"
        raise RunError(f"{len(bad)} of {len(chosen)} files checked cannot be read ({first}); {advice}")
    modes = Counter(mode for mode, _, _ in found)
    sizes = sorted((size for _, size, why in found if not why), key=lambda size: (size[0] * size[1], size))
    headers = Headers(
        grey=sum(modes[mode] for mode in _GREY),
        colour=sum(modes[mode] for mode in _COLOUR),
        sixteen_bits=sum(modes[mode] for mode in _SIXTEEN_BITS),
        smallest=sizes[0] if sizes else (0, 0),
        largest=sizes[-1] if sizes else (0, 0),
        bad=(
            *((path, "its name is not UTF-8") for path in records.misnamed),
            *((records.paths[index], why) for index, why in bad.items()),
        ),
    )
    kept = np.setdiff1d(np.arange(len(records)), list(bad))
    return (records.take(kept) if bad else records), headers


def list_skipped(skipped: Sequence[tuple[str, str]], path: Path) -> None:
    """Adds (path, reason) of the files that were left out, because they cannot be read, to the table `path`."""
    if not skipped:
        return
    table = pd.DataFrame(skipped, columns=["path", "reason"])
    if path.exists():  # from before the run was interrupted
        table = pd.concat([pd.read_csv(path, dtype=str, keep_default_na=False), table])
    with replacing(path, newline="") as file:
        table.drop_duplicates("path", keep="last").sort_values("path").to_csv(file, index=False)


def _header(path: Path, frame: int) -> tuple[str, tuple[int, int], str]:
    """Mode and size of an image; or the reason why it cannot be opened, else ''."""
    try:
        with Image.open(path) as image:
            mode, size = _select(image, frame), image.size
            image.verify()
    except Exception as error:  # whatever the damage leads to, as in `decode`
        return "", (0, 0), reason(error)
    return mode, size, ""


def _select(image: Image.Image, frame: int) -> str:
    """Seeks the frame and returns the mode of its pixels."""
    frames = getattr(image, "n_frames", 1)
    if frame >= 0:
        image.seek(frame)
    elif frames > 1:
        raise ValueError(f"has {frames} frames; list them in a manifest with a column frame")
    if image.mode not in _GREY + _COLOUR:
        raise ValueError(f"its pixels are of Pillow's mode {image.mode}; save them with 8 or 16 bits")
    return image.mode
