"""Images whose files are equal byte for byte."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from dinojax.data.records import Records

LIMIT = 20_000
"""Of more images than this the files are not compared: each would have to be looked up."""


def find_duplicates(records: Records) -> list[list[int]]:
    """Groups of images that are equal: the same frame of files with the same bytes, under different names.

    Only files of equal size are read. A file that cannot be read equals no other.

    Returns:
      Places in the records, increasing in each group, the groups by their first image.
    """
    by_size: dict[Hashable, list[int]] = defaultdict(list)
    for index in range(len(records)):
        try:
            size = records.file(index).stat().st_size
        except OSError:
            continue
        by_size[size, int(records.frames[index])].append(index)
    by_content: dict[Hashable, list[int]] = defaultdict(list)
    for (size, frame), places in by_size.items():  # type: ignore[misc]
        for index in places if len(places) > 1 else ():
            try:
                with records.file(index).open("rb") as file:
                    content = hashlib.file_digest(file, "blake2b").digest()
            except OSError:
                continue
            by_content[content, size, frame].append(index)
    return sorted(group for group in by_content.values() if len(group) > 1)


def equal_files(records: Records, places: Sequence[int] | np.ndarray) -> str:
    """The first of these images that are equal, `a.png = b.png`, or an empty text; a place that occurs twice is one."""
    chosen = records.take(np.unique(places))
    groups = find_duplicates(chosen)
    return " = ".join(str(chosen.paths[place]) for place in groups[0][:2]) if groups else ""
