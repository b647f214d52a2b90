"""Images that lie in one file or data set, rather than in files of their own: MedMNIST-style `.npz` and TFDS.

Each is a member, named like a file that does not exist, and numbered by its `frame`:

- `FOLDER/NAME.npz/SPLIT`: row `frame` of the array `SPLIT_images`; SPLIT is train, val or test.
- `FOLDER/tfds:NAME[/CONFIG]:VERSION/SPLIT`: place `frame` in a split, by its own name, of the TFDS data set in
  `FOLDER/NAME[/CONFIG]/VERSION`.

`read_npz` and `read_tfds` make records whose columns `paths` and `frames` say that much, relative to their `root`, so
that `str(records.file(i))` is the name that `read_member` and `header_of_member` take. Members of one name have one
header, except that images of a TFDS split may differ in size and kind; `frames` counts them, and they are no volume.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from dinojax.data.arrays import read_array_header, read_array_image, read_npz
from dinojax.data.formats import Header, Stored
from dinojax.data.tfds import PREFIX, read_tfds, read_tfds_header, read_tfds_image
from dinojax.runs.files import reason

__all__ = ["PREFIX", "header_of_member", "is_member", "read_member", "read_npz", "read_tfds"]

_ARRAY = re.compile(r"(?P<place>.+(?i:\.npz))/(?P<split>train|val|test)", re.DOTALL)
_EXAMPLE = re.compile(
    r"(?:(?P<root>.*)/)?tfds:(?P<name>[^/:]+(?:/[^/:]+)?):(?P<version>[^/:]+)/(?P<split>[^/:]+)", re.DOTALL
)


def is_member(path: str) -> bool:
    """Whether a path names images in a container; the file system is not asked.

    >>> is_member("data/pathmnist.npz/train"), is_member("tfds:hands:1.0.0/train"), is_member("pathmnist.npz")
    (True, True, False)
    """
    return bool(_ARRAY.fullmatch(path) or _EXAMPLE.fullmatch(path))


def header_of_member(name: str, frame: int) -> Header:
    """What is known of an image without decoding it.

    Args:
      name: of its container, as `is_member` knows it, with the folder before it.
      frame: its number there.

    Raises:
      ValueError: it cannot be read.
    """
    with _plain_errors():
        kind, place, split = _parsed(name)
        return read_array_header(place, split) if kind == "npz" else read_tfds_header(place, split, max(frame, 0))


def read_member(name: str, frame: int) -> Stored:
    """Reads one image; see `header_of_member`."""
    with _plain_errors():
        kind, place, split = _parsed(name)
        return (read_array_image if kind == "npz" else read_tfds_image)(place, split, frame)


def _parsed(name: str) -> tuple[Literal["npz", "tfds"], Path, str]:
    """The kind of a member, the file or folder that it is in, and its split."""
    if match := _ARRAY.fullmatch(name):
        return "npz", Path(match["place"]), match["split"]
    if match := _EXAMPLE.fullmatch(name):
        return (
            "tfds",
            Path(match["root"] or "/" * (match["root"] == "")) / match["name"] / match["version"],
            match["split"],
        )
    raise ValueError("is no image of an .npz file or a TFDS data set")


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Makes every error a ValueError of one line."""
    try:
        yield
    except MemoryError as error:
        raise ValueError("does not fit into memory") from error
    except Exception as error:  # whatever the damage leads to
        raise ValueError(reason(error)) from error
