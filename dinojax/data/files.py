"""Finds image files below a folder."""

import os
from collections import Counter
from pathlib import Path
from typing import NoReturn

from dinojax.errors import RunError

FORMATS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def find_images(folder: Path) -> tuple[list[str], dict[str, int]]:
    """The images below a folder, links to folders included, hidden files and folders left out.

    Returns:
      The paths relative to `folder`, with forward slashes, sorted; and how many other files there are, by suffix.

    Raises:
      RunError: a folder cannot be read.
    """
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
        for name in files:
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in FORMATS:
                paths.append((Path(parent) / name).relative_to(folder).as_posix())
            else:
                others[suffix] += 1
    return sorted(paths), dict(others)


def _refuse(error: OSError) -> NoReturn:
    raise RunError(f"cannot read the folder {error.filename}: {error.strerror}") from error
