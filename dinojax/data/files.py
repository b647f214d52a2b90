"""Finds image files below a folder, and which files of a list are not there."""

import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from dinojax.errors import RunError

TEXT = np.dtypes.StringDType()
FORMATS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_CHUNK = 65_536
_LISTING_PAYS = 32
"""With fewer files than this to look up in a folder, they are looked up singly: the folder may hold many more."""


def find_images(folder: Path) -> tuple[np.ndarray, dict[str, int]]:
    """The images below a folder, links to folders included, hidden files and folders left out.

    Returns:
      The paths relative to `folder`, with forward slashes, sorted, StringDType [N]; and how many other files there are,
      by suffix.

    Raises:
      RunError: a folder cannot be read.
    """
    parts: list[np.ndarray] = []
    paths: list[str] = []
    others: Counter[str] = Counter()
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        real = os.path.realpath(parent)
        if real in seen:  # links may form a circle, or show one folder twice
            folders.clear()
            continue
        seen.add(real)
        # Sorted, so that of two links to one folder the same is followed everywhere.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(parent).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for name in files:
            if name.startswith("."):
                continue
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (a Path for each file is slow)
            if suffix in FORMATS:
                paths.append(prefix + name)
            else:
                others[suffix] += 1
        if len(paths) >= _CHUNK:  # as objects, millions of paths would take twice the memory
            parts.append(np.array(paths, TEXT))
            paths.clear()
    found = np.concatenate([*parts, np.array(paths, TEXT)])
    found.sort()
    return found, dict(others)


def find_missing(root: Path, paths: Sequence[str]) -> list[int]:
    """Places of the `paths`, relative to `root`, at which there is no file; links are followed.

    A folder is listed once, rather than every file looked up: on a network each lookup is a round trip.
    """
    folders: dict[str, array[int]] = defaultdict(lambda: array("i"))
    for place, path in enumerate(paths):
        folders[path[: path.rfind("/") + 1]].append(place)
    missing: list[int] = []
    for folder, places in folders.items():
        listed = _files_in(root / folder) if len(places) >= _LISTING_PAYS else set()
        # The file system may take a name that the listing spells otherwise, so it has the last word.
        unlisted = (place for place in places if paths[place][len(folder) :] not in listed)
        missing += [place for place in unlisted if not (root / paths[place]).is_file()]
    return sorted(missing)


def _files_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()


def _refuse(error: OSError) -> NoReturn:
    raise RunError(f"cannot read the folder {error.filename}: {error.strerror}") from error
