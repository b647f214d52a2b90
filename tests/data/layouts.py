"""Data sets as people keep them, written from dictionaries; no pixel is in their images."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dinojax.data.records import SPLITS, Records

IMAGE = object()
FOLDER = object()
"""An empty one."""


class Link:
    """A symbolic link to another entry of the same dictionary; `hard`, a hard one."""

    def __init__(self, target: str, hard: bool = False):
        self.target, self.hard = target, hard


Content = object | str | bytes | Link
Layout = Mapping[str, Content]


def write(folder: Path, layout: Layout) -> Path:
    """Makes the folder."""
    for name, content in layout.items():
        path = folder / name
        (path if content is FOLDER else path.parent).mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link) and content.hard:
            os.link(folder / content.target, path)
        elif isinstance(content, Link):
            path.symlink_to(folder / content.target)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif content is IMAGE:
            path.touch()
    return folder


def images(*names: str) -> dict[str, Content]:
    return dict.fromkeys(names, IMAGE)


def classes(*names: str, each: int = 2) -> dict[str, Content]:
    """Class folders."""
    return images(*(f"{name}/{number}.png" for name in names for number in range(each)))


def table(*rows: str, name: str = "manifest.csv", encoding: str = "utf-8", **also: Content) -> dict[str, Content]:
    """A table and, of what its first column lists after the header, the images that are there."""
    return {name: "\n".join([*rows, ""]).encode(encoding), **also}


def radimagenet(
    names: str, header: str, rows: tuple[str, str], folds: int, paths: tuple[str, ...] | None = None
) -> dict[str, Content]:
    """Fold files of six images a fold.

    Args:
      names: such as `breast_{split}_fold{fold}.csv`.
      header: of all files.
      rows: of a negative and of a positive case; `{i}` is the number of the image, `{n}` that of the row.
      folds: how many; 0: one, without a number.
      paths: of the images of such rows; by default `images/{i}.png`.
    """
    layout: dict[str, Content] = {}
    for fold in range(max(folds, 1)):
        for place, split in enumerate(SPLITS):
            chosen = [(2 * (place + fold) + k) % 6 for k in range(2)]
            lines = [rows[i % 2].format(i=i, n=n) for n, i in enumerate(chosen)]
            layout["dataframe/" + names.format(split=split, fold=fold + 1)] = "\n".join([header, *lines, ""])
    pattern = paths or ("images/{i}.png",) * 2
    return layout | images(*(pattern[i % 2].format(i=i) for i in range(6)))


_COUNTED = re.compile(r"(\d+) (?:masks|hidden files|images that no table|other files|files whose|second names)")
_FOLDERS = re.compile(r"(?:system folders|folders of masks beside images|folders seen before by a link): (.*)")


def unnamed(folder: Path, records: Records, tables: int) -> int:
    """How many files of a folder are neither in the records nor in what they say is left out.

    Args:
      folder: that was given as `--data`.
      records: as read.
      tables: how many tables were read.
    """
    there = [path for path in folder.rglob("*") if path.is_file()]
    skipped = [name for line in records.left_out if (m := _FOLDERS.match(line)) for name in m[1].split(", ")]
    inside = [path for path in there if any(f"{path.relative_to(folder)}".startswith(f"{name}/") for name in skipped)]
    counted = sum(int(m[1]) for line in records.left_out if (m := _COUNTED.match(line)))
    read = len(np.unique(records.paths))
    return len(there) - len(inside) - counted - read - tables
